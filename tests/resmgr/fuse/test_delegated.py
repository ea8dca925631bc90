"""Delegations at the client, without a kernel: what is answered here, and when that ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from stat import S_IFREG

import pytest

from resmgr.fuse import awake, delegated, formats
from resmgr.fuse.delegated import KEPT, RECENT
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import FuseOptions
from resmgr.testing.fuserig import Rig
from resmgr.testing.memfs import Fault, MemFs


class Delegating(Rig):
    """A mount of a server that tells changes and delegates files. `node`: of d/f, which holds "first"."""

    def __init__(self, options: FuseOptions | None = None) -> None:
        super().__init__(options)
        self.fs.add(b"d/f", b"first")
        self.serve()
        self.node = self.walk(b"d/f")

    def serve(self) -> None:
        self.fs.watch().spares = True
        self.fs.delegate()

    def restart(self) -> None:
        """The server ends, and another one has the same files."""
        chid, old = self.fs.manager.channel.chid, self.fs
        old.destroy()
        self.fs = MemFs(self.kernel, chid=chid)
        self.fs.root = old.root
        self.fs._next_ino, self.fs._change, self.fs._next_cookie = old._next_ino, old._change, old._next_cookie
        self.serve()

    def look(self, node: int | None = None) -> bytes:
        """Open, read and close."""
        node = self.node if node is None else node
        answer = self.open(node)
        assert answer.error == 0
        data = self.read(node, answer.fh, 0, 100).body
        self.release(node, answer.fh)
        return data

    def hold(self) -> None:
        """Have a delegation of `node`."""
        self.look()
        self.look()
        assert len(self.machine.delegated) == 1
        self.messages()

    def here(self) -> bool:
        """Whether an open is answered without the server."""
        self.messages()
        answer = self.open(self.node)
        assert answer.error == 0
        self.release(self.node, answer.fh)
        return "open" not in self.messages()

    def write(self, data: bytes) -> None:  # type: ignore[override]  # what is written, and where, is always the same here
        """A program of the server's machine, which may have to wait."""
        assert self.fs.delegations is not None
        inode = self.fs.find(b"d/f")

        def change() -> None:
            inode.data[:] = data
            self.fs.touch(inode, data=True)

        self.fs.delegations.locally(inode, change)

    def given(self) -> int:
        """Delegations that the server thinks there are."""
        assert self.fs.delegations is not None
        return len(self.fs.delegations.table)


@pytest.fixture
def rig() -> Iterator[Delegating]:
    made = Delegating()
    yield made
    made.machine.close()


def test_the_third_open_is_answered_here(rig: Delegating) -> None:
    rig.look()
    rig.run(0.1)
    assert not rig.here()
    assert rig.given() == 1
    assert rig.here()
    # By several programs at once, and by one that does not want to wait.
    first, second = rig.open(rig.node), rig.open(rig.node, os.O_RDONLY | os.O_NONBLOCK)
    assert first.fh != second.fh
    rig.release(rig.node, first.fh)
    assert rig.read(rig.node, second.fh, 0, 100).body == b"first"
    rig.release(rig.node, second.fh)
    assert rig.given() == 1


def test_it_is_kept_for_a_while(rig: Delegating) -> None:
    rig.hold()
    answer = rig.open(rig.node)
    rig.run(KEPT * 2)
    assert rig.here()
    rig.release(rig.node, answer.fh)
    rig.run(KEPT / 2)
    assert rig.here()
    rig.run(KEPT + 1)
    assert not rig.given()
    assert not [handle for handle in rig.fs.manager.table.handles.values() if rig.fs.inode_of(handle) is rig.fs.find(b"d/f")]
    assert not rig.here()


def test_rights_are_asked_for_now_and_then(rig: Delegating) -> None:
    """They may have been changed by a second name, of which nothing is told."""
    rig.hold()
    seconds = rig.machine.options.lease
    began = rig.machine.dispatch.now()
    asked = []
    while rig.machine.dispatch.now() < began + 2.5 * seconds:
        if not rig.here():
            asked.append(rig.machine.dispatch.now() - began)
        rig.run(RECENT / 4)
    assert len(asked) == 2
    assert seconds <= asked[0] < seconds + RECENT
    assert rig.given() == 1


def test_a_local_program_waits_for_it(rig: Delegating) -> None:
    rig.hold()
    rig.write(b"second")
    rig.run(0.05)
    assert rig.fs.find(b"d/f").data == b"second"
    assert rig.look() == b"second"
    assert rig.machine.drops["delegations_recalled"] == 1


def test_an_open_file_goes_on_after_a_recall(rig: Delegating) -> None:
    rig.hold()
    one, two = rig.open(rig.node), rig.open(rig.node)
    rig.write(b"second")
    rig.run(0.05)
    assert rig.read(rig.node, one.fh, 0, 100).body == b"second"
    rig.release(rig.node, one.fh)
    rig.run(1)
    assert rig.read(rig.node, two.fh, 0, 100).body == b"second"
    before = len(rig.fs.manager.table.handles)
    rig.release(rig.node, two.fh)
    rig.run(1)
    assert len(rig.fs.manager.table.handles) == before - 1


def test_a_recall_that_overtakes_the_answer_counts(rig: Delegating) -> None:
    rig.look()
    rig.fs.faults.append(Fault("open", late=0.5, times=1))
    unique = rig.start(Opcode.OPEN, rig.node, formats.OPEN_IN.pack(os.O_RDONLY, 0))
    rig.write(b"second")
    rig.run(0.1)
    assert rig.fs.find(b"d/f").data == b"first"
    rig.run(1)
    assert rig.answers[unique].error == 0
    # Given back when the answer came.
    assert rig.fs.find(b"d/f").data == b"second"
    assert not len(rig.machine.delegated)


def test_who_may_not_be_answered_here(rig: Delegating) -> None:
    rig.hold()
    rig.uid = 7
    assert not rig.here()
    rig.uid = 0
    assert rig.here()
    # For more: the server's own open would be held up by it.
    answer = rig.open(rig.node, os.O_RDWR)
    assert answer.error == 0
    assert not rig.given()
    rig.release(rig.node, answer.fh)


@pytest.mark.parametrize("how", ["silence", "sleep", "stall", "unleased", "removed", "chmod", "truncated"])
def test_what_ends_it(rig: Delegating, how: str) -> None:
    rig.hold()
    machine = rig.machine
    before = machine.drops["delegated_opens"]
    if how == "silence":
        machine.leases.silent(0, True)
        machine.leases.silent(0, False)
    elif how == "sleep":
        machine.awake.asleep = lambda: 5.0
    elif how == "stall":
        timer = machine.awake._timer
        assert timer is not None
        timer.cancel()
        rig.run(awake.STALLED + 0.1)
    elif how == "unleased":
        parent = machine.nodes.get(rig.node)
        assert parent is not None
        assert parent.parent is not None
        machine.leases.connection_lost(next(iter(parent.server.connections.values())))
    elif how == "removed":
        rig.fs.remove(b"d/f")
        rig.run(0.1)
    elif how == "chmod":
        inode = rig.fs.find(b"d/f")
        inode.mode = S_IFREG | 0o600
        rig.fs.touch(inode)
        rig.run(0.1)
    else:
        body = formats.SETATTR_IN.pack(formats.FATTR_SIZE, 0, 2, *[0] * 12)
        assert rig.ask(Opcode.SETATTR, rig.node, body).error == 0
    answer = rig.open(rig.node)
    assert bool(answer.error) == (how == "removed")
    assert machine.drops["delegated_opens"] == before


def test_a_file_that_others_change_is_not_asked_for_again(rig: Delegating) -> None:
    rig.hold()
    rig.write(b"second")
    rig.run(0.1)
    for _ in range(5):
        rig.look()
    assert not rig.given()
    rig.run(delegated.QUIET)
    for _ in range(2):
        rig.look()
    assert rig.given()


def test_two_names_of_one_file_that_was_renamed(rig: Delegating) -> None:
    """Two nodes, one file: what is recalled is both."""
    rig.hold()
    inode = rig.fs.find(b"d/f")
    directory = rig.fs.find(b"d")
    directory.entries[b"g"] = directory.entries.pop(b"f")
    rig.machine.delegated.quiet = 0.0
    other = rig.walk(b"d/g")
    assert other != rig.node
    for _ in range(3):
        rig.look(other)
    assert len(rig.machine.delegated) == 2
    assert rig.fs.delegations is not None
    rig.fs.delegations.locally(inode, lambda: inode.data.__setitem__(slice(None), b"second"))
    rig.run(0.1)
    assert not len(rig.machine.delegated)
    assert inode.data == b"second"


def test_open_files_of_a_server_that_restarts(rig: Delegating) -> None:
    rig.hold()
    one, two = rig.open(rig.node), rig.open(rig.node)
    rig.restart()
    rig.run(0.1)
    assert not len(rig.machine.delegated)
    for answer in (one, two):
        rig.release(rig.node, answer.fh)
    rig.run(5)
    assert not [number for number, handle in rig.fs.manager.table.handles.items() if rig.fs.inode_of(handle) is rig.fs.find(b"d/f")]
    assert rig.look() == b"first"


def test_no_more_than_the_option_says(rig: Delegating) -> None:
    rig = Delegating(FuseOptions(delegations=2, open_ahead=0))
    nodes = []
    for number in range(4):
        rig.fs.add(b"d/n%d" % number, b"x")
        nodes.append(rig.walk(b"d/n%d" % number))
    rig.machine.delegated.quiet = 0.0
    for _ in range(3):
        for node in nodes:
            rig.look(node)
    assert rig.given() == 2
    rig.run(RECENT)
    rig.machine.close()


def test_a_server_that_delegates_nothing(rig: Delegating) -> None:
    rig.fs.delegations = None
    for _ in range(4):
        rig.look()
    assert not len(rig.machine.delegated)
    assert not rig.here()


def test_a_server_that_does_not_know_it_any_more(rig: Delegating) -> None:
    rig.hold()
    rig.fs.manager.table.close_all()
    answer = rig.open(rig.node)
    assert rig.read(rig.node, answer.fh, 0, 100).error == -errno.ESTALE
    rig.release(rig.node, answer.fh)
    assert rig.look() == b"first"
