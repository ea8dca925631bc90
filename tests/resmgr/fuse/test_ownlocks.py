"""Locks of files that only one mount has open, without a kernel: what is granted here, and what becomes of it when somebody else comes."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmgr.channel import Message
from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.ownlocks import NOT_AGAIN
from resmgr.iofunc.handle import Client, Handle
from resmgr.iomsg import DELEGATION_LOCKS_MAX, Io
from resmgr.lockrequest import parse_delegation
from resmgr.testing.fuserig import Answer
from resmgr.testing.memfs import Fault
from resmgr.testing.virtual import NodeView
from tests.resmgr.fuse.far import AWAY, ND, Far
from tests.resmgr.fuse.test_delegated import Delegating

READ, WRITE, UNLOCK = 0, 1, 2
LAST = (1 << 63) - 1


class Locking(Delegating):
    """An open file, `one`, of d/f, of which nothing is locked yet."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.open(self.node, os.O_RDWR).fh
        self.messages()

    def second(self) -> int:
        """Another program opens it."""
        answer = self.open(self.node, os.O_RDWR)
        assert answer.error == 0
        return answer.fh

    def begin(
        self, kind: int, start: int = 0, last: int = LAST, *, owner: int = 1, fh: int = 0, wait: bool = False, whole: bool = False
    ) -> int:
        body = formats.LK_IN.pack(fh or self.one, owner, start, last, kind, 100 + owner, formats.LK_FLOCK if whole else 0)
        return self.start(Opcode.SETLKW if wait else Opcode.SETLK, self.node, body)

    def lock(self, kind: int, start: int = 0, last: int = LAST, *, owner: int = 1, fh: int = 0, whole: bool = False) -> int:
        """errno, negative; 0."""
        unique = self.begin(kind, start, last, owner=owner, fh=fh, whole=whole)
        if unique not in self.answers:
            self.run(0.05)
        return self.answers[unique].error

    def holder(self, kind: int, start: int, last: int, *, owner: int) -> tuple[int, int, int, int]:
        """Start, last, type and pid of what is in the way."""
        body = formats.LK_IN.pack(self.one, owner, start, last, kind, 0, 0)
        answer = self.ask(Opcode.GETLK, self.node, body)
        start, last, kind, pid = formats.LK_REPLY.parse(bytes(16) + answer.body)[3:]
        return start, last, kind, pid

    def write_at(self, data: bytes) -> int:
        """errno, negative, of a write and what comes of it; 0."""
        body = formats.WRITE_IN.pack(self.one, 0, len(data), 0, 0, 0) + data
        unique = self.start(Opcode.WRITE, self.node, body)
        self.run(0.1)
        return self.answers[unique].error or self.flush(self.one, 9).error

    def drops(self, name: str) -> int:
        return self.machine.drops[name]

    def flush(self, fh: int, owner: int) -> Answer:
        return self.ask(Opcode.FLUSH, self.node, formats.FLUSH_IN.pack(fh, owner))


@pytest.fixture
def rig() -> Iterator[Locking]:
    made = Locking()
    yield made
    made.machine.close()


def server_locks(rig: Locking) -> int:
    assert rig.fs.delegations is not None
    return rig.fs.delegations.locks.locks.held


def test_locks_cost_one_question_in_all(rig: Locking) -> None:
    assert rig.lock(WRITE) == 0
    assert {name: count for name, count in rig.messages().items() if name in ("lock", "delegation")} == {"delegation": 1}
    for _ in range(5):
        assert rig.lock(UNLOCK) == 0
        assert rig.lock(READ, 0, 9) == 0
        assert rig.lock(WRITE, 0, 9) == 0
    assert rig.lock(WRITE, owner=2) == -errno.EAGAIN
    assert rig.holder(READ, 5, 20, owner=2) == (0, 9, WRITE, 101)
    assert rig.holder(WRITE, 10, 20, owner=2)[2] == UNLOCK
    fh = rig.second()
    assert rig.messages() == {}
    # Another program, through the same open control block.
    assert rig.lock(WRITE, 10, 19, owner=2, fh=fh) == 0
    rig.flush(fh, 2)
    assert rig.lock(WRITE, 10, 19, owner=3) == 0
    assert rig.messages() == {}
    assert server_locks(rig) == 0


def test_who_waits_gets_it_in_turn_and_can_be_interrupted(rig: Locking) -> None:
    rig.lock(WRITE)
    first, second = rig.begin(WRITE, owner=2, wait=True), rig.begin(WRITE, owner=3, wait=True)
    rig.run(1)
    assert first not in rig.answers
    rig.raw(formats.IN_HEADER.pack(48, Opcode.INTERRUPT, 0, 0, 0, 0, 0, 0, 0) + formats.INTERRUPT_IN.pack(first))
    rig.run(0.1)
    assert rig.answers[first].error == -errno.EINTR
    assert rig.lock(UNLOCK) == 0
    assert rig.answers[second].error == 0
    # Nobody is waited for who was interrupted.
    assert rig.lock(UNLOCK, owner=3) == 0
    assert rig.lock(WRITE, owner=4) == 0


def test_a_ring_is_seen(rig: Locking) -> None:
    rig.lock(WRITE, 0, 9, owner=1)
    rig.lock(WRITE, 10, 19, owner=2)
    rig.begin(WRITE, 10, 19, owner=1, wait=True)
    assert rig.answers[rig.begin(WRITE, 0, 9, owner=2, wait=True)].error == -errno.EDEADLK


def test_flock_of_two_open_files(rig: Locking) -> None:
    rig.lock(READ, whole=True, owner=1)
    fh = rig.second()
    assert rig.lock(READ, whole=True, owner=2, fh=fh) == 0
    assert rig.lock(WRITE, whole=True, owner=1) == -errno.EAGAIN
    rig.release(rig.node, fh)
    assert rig.lock(WRITE, whole=True, owner=1) == 0
    assert server_locks(rig) == 0


@pytest.mark.parametrize("wait", [False, True])
def test_a_flock_that_was_given_up_for_another_kind_is_nobodys(rig: Locking, wait: bool) -> None:
    """The other is refused, or waits: the server is not told of the first either."""
    rig.lock(READ, whole=True, owner=1)
    fh = rig.second()
    rig.lock(READ, whole=True, owner=2, fh=fh)
    rig.begin(WRITE, whole=True, owner=1, wait=wait)
    # Alone now, so it may be anything.
    assert rig.lock(WRITE, whole=True, owner=2, fh=fh) == 0
    seen: list[int] = []
    assert rig.fs.delegations is not None
    rig.fs.delegations.locally(rig.fs.find(b"d/f"), lambda: seen.append(server_locks(rig)))
    rig.run(0.1)
    assert seen == [1]
    assert rig.drops("locks_lost") == 0


def test_a_local_program_finds_what_is_locked(rig: Locking) -> None:
    """It could not open the file before the server had the locks, and what was written under them."""
    rig.lock(WRITE, 0, 9, owner=1)
    rig.lock(READ, 10, 19, owner=1)
    rig.lock(READ, 10, 29, owner=2)
    waiting = rig.begin(WRITE, 0, 9, owner=2, wait=True)
    seen: list[int] = []
    assert rig.fs.delegations is not None
    rig.fs.delegations.locally(rig.fs.find(b"d/f"), lambda: seen.append(server_locks(rig)))
    rig.run(0.1)
    assert seen == [3]
    assert rig.lock(WRITE, 10, 19, owner=1) == -errno.EAGAIN
    assert rig.lock(UNLOCK, 10, 29, owner=2) == 0
    assert rig.lock(WRITE, 10, 19, owner=1) == 0
    assert waiting not in rig.answers
    rig.messages()
    assert rig.lock(UNLOCK, owner=1) == 0
    rig.run(0.1)
    assert rig.answers[waiting].error == 0
    assert rig.messages()["lock"] == 1
    # Not at once again.
    assert rig.lock(UNLOCK, owner=2) == 0
    assert rig.lock(WRITE, owner=2) == 0
    assert "delegation" not in rig.messages()
    assert rig.lock(UNLOCK, owner=2) == 0
    rig.run(NOT_AGAIN)
    assert rig.lock(WRITE, owner=2) == 0
    assert rig.messages()["delegation"] == 1


def test_a_file_that_is_locked_byte_by_byte(rig: Locking) -> None:
    """More locks than a message has room for, which are one in a table."""
    for number in range(DELEGATION_LOCKS_MAX + 10):
        assert rig.lock(WRITE, number, number) == 0
    assert rig.lock(READ, 50, 50) == 0
    seen: list[int] = []
    assert rig.fs.delegations is not None
    rig.fs.delegations.locally(rig.fs.find(b"d/f"), lambda: seen.append(server_locks(rig)))
    rig.run(0.1)
    assert seen == [3]
    assert rig.drops("locks_lost") == 0
    assert rig.lock(READ, 49, 49, owner=2) == -errno.EAGAIN
    assert rig.lock(READ, 50, 50, owner=2) == 0
    assert rig.lock(READ, DELEGATION_LOCKS_MAX + 9, LAST, owner=2) == -errno.EAGAIN
    assert rig.lock(READ, DELEGATION_LOCKS_MAX + 10, LAST, owner=2) == 0


def test_what_comes_while_it_is_asked_for_or_given_back_waits(rig: Locking) -> None:
    rig.fs.faults.append(Fault("delegation", delay=0.2))
    first, second = rig.begin(WRITE, 0, 9), rig.begin(WRITE, 0, 9, owner=2)
    rig.run(0.1)
    assert not {first, second} & rig.answers.keys()
    rig.run(0.2)
    assert rig.answers[first].error == 0
    assert rig.answers[second].error == -errno.EAGAIN
    assert rig.fs.delegations is not None
    rig.fs.delegations.locally(rig.fs.find(b"d/f"), lambda: None)
    rig.run(0.1)
    third, fourth = rig.begin(UNLOCK, 0, 9), rig.begin(WRITE, 0, 9, owner=2)
    rig.run(0.05)
    assert not {third, fourth} & rig.answers.keys()
    rig.run(0.3)
    assert rig.answers[third].error == 0
    assert rig.answers[fourth].error == 0
    assert server_locks(rig) == 1


def test_an_unlock_never_overtakes_what_it_unlocks(rig: Locking) -> None:
    """A program that ends while its locks are on their way to the server."""
    rig.lock(WRITE, 0, 9)
    fh = rig.second()
    rig.lock(WRITE, 10, 19, owner=2, fh=fh)
    rig.fs.faults.append(Fault("delegation", delay=0.2))
    assert rig.fs.delegations is not None
    rig.fs.delegations.locally(rig.fs.find(b"d/f"), lambda: None)
    rig.run(0.1)
    unique = rig.start(Opcode.FLUSH, rig.node, formats.FLUSH_IN.pack(fh, 2))
    rig.release(rig.node, fh)
    rig.run(1)
    assert rig.answers[unique].error == 0
    assert server_locks(rig) == 1


def kept_out(path: Path) -> bool:
    """Whether a local program does not get a lock of the first bytes."""
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 5)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("suspected", [False, True])
@pytest.mark.parametrize("fault", ["link", "restart"])
def test_locks_of_a_connection_that_is_lost_are_set_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, suspected: bool
) -> None:
    """At a server that reopens files; the delegation is given back, in vain, when its node falls silent, or dies."""
    # Virtual time has no descriptors, and nobody waits for a lease here.
    monkeypatch.setattr(NodeView, "attach_fd", lambda *_: None)
    monkeypatch.setattr(NodeView, "detach_fd", lambda *_: None)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"0123456789")
    rig = Far(tmp_path)
    # What is done in threads, as for a disk that is slow at the moment, is not delegated.
    rig.host.devices.root.kind = b"tmpfs"
    directory = rig.ask(Opcode.LOOKUP, 1, b"d\0").nodeid
    node = rig.ask(Opcode.LOOKUP, directory, b"f\0").nodeid
    fh = rig.ask(Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_RDWR, 0)).fh
    rig.run(1)
    assert rig.ask(Opcode.SETLK, node, formats.LK_IN.pack(fh, 1, 0, 9, WRITE, 101, 0)).error == 0
    assert rig.machine.drops["locks_here"] == 1
    if suspected:
        rig.machine.leases.silent(ND, True)
    # This one waits until it is given back.
    unique = rig.start(Opcode.SETLK, node, formats.LK_IN.pack(fh, 2, 20, 29, WRITE, 102, 0)) if suspected else 0
    rig.fail(fault)
    rig.machine.leases.silent(ND, False)
    rig.run(2 * AWAY)
    assert not unique or rig.answers[unique].error in (0, -errno.EHOSTDOWN)
    assert rig.machine.drops["locks_lost"] == 0
    assert rig.machine.drops["reopened"] == 1
    assert kept_out(tmp_path / "d/f")
    assert rig.ask(Opcode.SETLK, node, formats.LK_IN.pack(fh, 1, 0, 9, UNLOCK, 101, 0)).error == 0
    assert not kept_out(tmp_path / "d/f")
    rig.close()


def test_a_server_that_did_not_hear_in_time(rig: Locking) -> None:
    rig.lock(WRITE, 0, 9)
    rig.fs.faults.append(Fault("delegation", delay=5))
    assert rig.fs.delegations is not None
    done: list[int] = []
    rig.fs.delegations.locally(rig.fs.find(b"d/f"), lambda: done.append(1))
    rig.run(4)
    assert done
    assert rig.fs.manager.counters["delegations_timed_out"] == 1
    rig.run(3)
    assert rig.drops("locks_lost") == 1
    assert rig.write_at(b"x") == -errno.ESTALE


@pytest.mark.parametrize("arrived", [False, True])
def test_what_did_not_arrive_is_given_back_again(rig: Locking, arrived: bool) -> None:
    """The connection lives. Whether the first message was carried out, and only its answer lost, nobody knows."""
    rig.lock(WRITE, 0, 9)
    delegations = rig.fs.delegations
    assert delegations is not None
    handlers = rig.fs.manager._io
    message_of = handlers[Io.DELEGATION]

    def unheard(message: Message, client: Client, handle: Handle, flags: int) -> None:
        handlers[Io.DELEGATION] = message_of
        if arrived:
            assert delegations.locks.adopt(client, handle, rig.fs.inode_of(handle), parse_delegation(message.data)) == 0
            delegations.table.back(handle)
        message.error(errno.EHOSTUNREACH)

    handlers[Io.DELEGATION] = unheard
    delegations.locally(rig.fs.find(b"d/f"), lambda: None)
    rig.run(0.1)
    assert rig.drops("locks_returned") == 0
    rig.run(1)
    assert rig.drops("locks_returned") == 1
    assert rig.drops("locks_lost") == 0
    assert server_locks(rig) == 1
    assert rig.fs.manager.counters["delegations_timed_out"] == 0
    assert rig.write_at(b"x") == 0
    assert rig.lock(UNLOCK) == 0
    assert server_locks(rig) == 0


def test_when_it_is_not_asked_for(rig: Locking) -> None:
    appending = rig.open(rig.node, os.O_RDWR | os.O_APPEND).fh
    assert rig.lock(WRITE, fh=appending) == 0
    assert rig.lock(UNLOCK, fh=appending) == 0
    # Two open control blocks.
    assert rig.lock(WRITE) == 0
    assert "delegation" not in rig.messages()
    assert rig.lock(UNLOCK) == 0
    rig.release(rig.node, appending)
    rig.run(0.1)
    assert rig.lock(WRITE) == 0
    assert rig.messages()["delegation"] == 1


def test_it_is_asked_for_again_by_who_shares_an_open_control_block(rig: Locking) -> None:
    """The first that opened it is gone, and the one left could only read."""
    rig.lock(WRITE)
    reading = rig.open(rig.node, os.O_RDONLY).fh
    writing = rig.second()
    assert rig.lock(UNLOCK) == 0
    rig.release(rig.node, rig.one)
    assert rig.fs.delegations is not None
    rig.fs.delegations.locally(rig.fs.find(b"d/f"), lambda: None)
    rig.run(NOT_AGAIN + 1)
    assert not rig.given()
    assert rig.lock(READ, fh=reading, owner=2) == 0
    assert rig.lock(UNLOCK, fh=reading, owner=2) == 0
    assert not rig.given()
    assert rig.lock(WRITE, fh=writing, owner=3) == 0
    assert rig.given() == 1
    assert rig.lock(READ, fh=reading, owner=2) == -errno.EAGAIN
    rig.messages()
    again = rig.second()
    assert rig.messages() == {}
    for fh in (again, reading, writing):
        rig.release(rig.node, fh)
    rig.run(0.1)
    assert not rig.given()


@pytest.mark.parametrize("how", ["asleep", "silence"])
def test_nothing_is_granted_here_by_a_daemon_that_may_have_been_asked_in_vain(rig: Locking, how: str) -> None:
    rig.lock(WRITE, 0, 9)
    before = rig.drops("locks_here")
    if how == "asleep":
        rig.machine.awake.asleep = lambda: 5.0
    else:
        rig.machine.leases.silent(0, True)
    assert rig.lock(WRITE, 10, 19, owner=2) == 0
    assert rig.drops("locks_here") == before
    assert server_locks(rig) == 2


def test_who_is_refused_goes_to_the_server(rig: Locking) -> None:
    """A local program has it open, too."""
    assert rig.fs.delegations is not None
    rig.fs.delegations.opened.add(rig.fs.find(b"d/f"))
    assert rig.lock(WRITE, 0, 9) == 0
    assert rig.lock(WRITE, 0, 9, owner=2) == -errno.EAGAIN
    assert rig.messages()["delegation"] == 1
    assert server_locks(rig) == 1


def test_nothing_is_kept_after_the_last_close(rig: Locking) -> None:
    rig.lock(WRITE)
    assert rig.given() == 1
    rig.flush(rig.one, 1)
    rig.release(rig.node, rig.one)
    rig.run(0.1)
    assert not rig.given()
    assert not len(rig.machine.delegated)


def test_pages_are_dropped_for_the_first_lock_only(rig: Locking) -> None:
    rig.read(rig.node, rig.one, 0, 100)
    rig.notifications.clear()
    rig.lock(WRITE)
    first = len(rig.notifications)
    rig.lock(UNLOCK)
    rig.lock(WRITE)
    assert first
    assert len(rig.notifications) == first


def test_a_server_gets_no_more_locks_than_it_takes_at_once(rig: Locking) -> None:
    for number in range(DELEGATION_LOCKS_MAX + 10):
        assert rig.lock(WRITE, 2 * number, 2 * number, owner=number) == 0
    assert rig.drops("locks_returned") == 1
    assert rig.drops("locks_lost") == 0
    rig.run(0.1)
    assert server_locks(rig) == DELEGATION_LOCKS_MAX + 10
    assert rig.lock(WRITE, 0, 0, owner=1) == -errno.EAGAIN
