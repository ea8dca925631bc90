"""Writes that come while the file is emptied, or after a program has given something up that its server is still busy with."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from resmgr.fuse import formats
from resmgr.fuse.formats import FATTR_SIZE, Opcode
from resmgr.testing.fuserig import Rig
from resmgr.testing.memfs import Fault
from tests.resmgr.fuse.written import FLUSH, FSYNC, later, opened, slow, write_in

EMPTIED = formats.SETATTR_IN.pack(FATTR_SIZE, *(0,) * 14)


def interrupt(rig: Rig, unique: int) -> None:
    rig.raw(formats.IN_HEADER.pack(48, Opcode.INTERRUPT, 1001, 0, 0, 0, 0, 0, 0) + formats.INTERRUPT_IN.pack(unique))


def test_writes_that_overlap_keep_their_order_though_the_file_is_emptied_meanwhile(rig: Rig) -> None:
    """The kernel holds no lock of the file while another program opens it so."""
    node, fh = opened(rig)
    rig.write(node, fh, 0, b"before")
    rig.run(0.1)
    rig.fs.faults.append(Fault("open", delay=0.2, times=1))
    later(rig, Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_WRONLY | os.O_TRUNC, 0))
    rig.run(0.1)
    slow(rig, 0.5, times=1)
    assert rig.write(node, fh, 0, b"first").error == 0
    rig.run(0.2)
    assert rig.fs.find(b"f").data == b"", "it is emptied"
    second = later(rig, Opcode.WRITE, node, write_in(fh, 0, b"second"))
    flush = later(rig, Opcode.FLUSH, node, FLUSH(fh, 0))
    rig.run(1)
    assert (rig.answers[second].error, rig.answers[flush].error) == (0, 0)
    assert rig.fs.find(b"f").data == b"second"


@pytest.mark.parametrize("what", ["write", "truncate", "space"])
def test_what_was_given_up_at_the_server_is_not_overtaken(rig: Rig, what: str) -> None:
    node, fh = opened(rig)
    rig.write(node, fh, 0, b"before")
    rig.run(0.1)
    operation = {"write": "write", "truncate": "setattr", "space": "space"}[what]
    rig.fs.faults.append(Fault(operation, delay=2.5, times=1, deaf=True))
    if what == "write":
        given_up = later(rig, Opcode.WRITE, node, write_in(fh, 0, b"stale", flags=os.O_RDWR | os.O_DSYNC))
    elif what == "truncate":
        given_up = later(rig, Opcode.SETATTR, node, EMPTIED)
    else:
        given_up = later(rig, Opcode.FALLOCATE, node, formats.FALLOCATE_IN.pack(fh, 0, 6, 3))
    interrupt(rig, given_up)
    rig.run(2)
    assert rig.answers[given_up].error == -errno.EINTR
    next_one = rig.start(Opcode.WRITE, node, write_in(fh, 0, b"fresh"))
    flush = rig.start(Opcode.FLUSH, node, FLUSH(fh, 0))
    rig.run(2)
    assert (rig.answers[next_one].error, rig.answers[flush].error) == (0, 0)
    assert rig.fs.find(b"f").data[:5] == b"fresh"
    assert rig.machine.held_bytes == rig.machine.behind_cost == 0


AT = {"write": 4096, "append": 0, "truncate": 4096, "space": 4096, "open": 0}
"""From which byte of a file of 12288 each of these changes it; 100 bytes from there, or to the end."""
TO_THE_END = {"append", "truncate", "open"}


def give_up(rig: Rig, what: str, seconds: float) -> tuple[int, int]:
    """A program is told that it was interrupted, and the server does it *seconds* later. The file, and one open file."""
    rig.fs.add(b"f", bytes(12288))
    node, fh = opened(rig)
    rig.run(0.1)
    operation = {"append": "write", "truncate": "setattr"}.get(what, what)
    rig.fs.faults.append(Fault(operation, delay=seconds + 1.1, times=1, deaf=True))
    if what == "write":
        unique = later(rig, Opcode.WRITE, node, write_in(fh, 4096, b"x" * 100, flags=os.O_RDWR | os.O_DSYNC))
    elif what == "append":
        unique = later(rig, Opcode.WRITE, node, write_in(fh, 0, b"x" * 100, flags=os.O_RDWR | os.O_APPEND))
    elif what == "truncate":
        unique = later(rig, Opcode.SETATTR, node, formats.SETATTR_IN.pack(FATTR_SIZE, 0, 4096, *(0,) * 12))
    elif what == "space":
        unique = later(rig, Opcode.FALLOCATE, node, formats.FALLOCATE_IN.pack(fh, 4096, 100, 3))
    else:
        unique = later(rig, Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_WRONLY | os.O_TRUNC, 0))
    interrupt(rig, unique)
    rig.run(1.1)
    assert rig.answers[unique].error == -errno.EINTR
    assert rig.machine.drops["given_up_at_server"] == 1
    return node, fh


@pytest.mark.parametrize("what", AT)
def test_only_what_has_to_do_with_it_waits(rig: Rig, what: str) -> None:
    node, fh = give_up(rig, what, 2)
    at, far = AT[what], what in TO_THE_END

    def waits(opcode: Opcode, body: bytes) -> bool:
        return rig.start(opcode, node, body) not in rig.answers

    for offset in range(0, 12288, 2048):
        touched = offset + 2048 > at and (far or offset < at + 100)
        assert waits(Opcode.READ, formats.READ_IN.pack(fh, offset, 2048, 0, 0, 0)) == touched, offset
        assert waits(Opcode.LSEEK, formats.LSEEK_IN.pack(fh, offset, os.SEEK_DATA)) == (far or offset < at + 100)
        assert waits(Opcode.FALLOCATE, formats.FALLOCATE_IN.pack(fh, offset, 2048, 3)) == touched, offset
        assert waits(Opcode.WRITE, write_in(fh, offset, b"y" * 2048)) == touched, offset
    resizes = far
    assert waits(Opcode.GETATTR, formats.GETATTR_IN.pack(0, 0)) == resizes
    assert waits(Opcode.OPEN, formats.OPEN_IN.pack(os.O_RDWR, 0)) == resizes
    assert not waits(Opcode.SETLK, formats.LK_IN.pack(fh, 7, 0, 9, 1, 70, 0))
    for opcode, body in (
        (Opcode.OPEN, formats.OPEN_IN.pack(os.O_RDWR | os.O_TRUNC, 0)),
        (Opcode.SETATTR, formats.SETATTR_IN.pack(formats.FATTR_MODE, *(0,) * 9, 0o600, *(0,) * 4)),
        (Opcode.SETLK, formats.LK_IN.pack(fh, 7, 0, 9, 2, 70, 0)),
        (Opcode.FSYNC, FSYNC(fh, 0)),
        (Opcode.FLUSH, FLUSH(fh, 7)),
    ):
        assert waits(opcode, body), opcode
    rig.run(5)
    assert not rig.machine.outstanding
    assert rig.machine.held_bytes == rig.machine.behind_cost == 0


def test_a_write_that_would_go_with_one_before_it_waits(rig: Rig) -> None:
    node, fh = give_up(rig, "write", 2)
    slow(rig, 0.5, times=1)
    for offset, data in (0, b"a"), (3996, b"b"), (4096, b"c"):
        rig.start(Opcode.WRITE, node, write_in(fh, offset, data * 100))
    rig.run(5)
    assert rig.fs.find(b"f").data[3996:4196] == b"b" * 100 + b"c" * 100


def test_attributes_of_meanwhile_are_not_believed(rig: Rig) -> None:
    """It may change the time of the file after any answer."""
    node, _ = give_up(rig, "write", 2)

    def valid() -> tuple[int, int]:
        """Seconds and nanoseconds for which the kernel is to believe them."""
        seconds, nanoseconds = struct.unpack_from("=QI", rig.ask(Opcode.GETATTR, node, formats.GETATTR_IN.pack(0, 0)).body)
        return seconds, nanoseconds

    assert valid() == (0, 0)
    rig.run(3)
    assert valid() != (0, 0)


def test_who_waits_for_one_does_not_wait_for_another(rig: Rig) -> None:
    node, fh = give_up(rig, "write", 1)
    rig.fs.faults.append(Fault("write", delay=9, times=1, deaf=True))
    second = later(rig, Opcode.WRITE, node, write_in(fh, 8192, b"z" * 100, flags=os.O_RDWR | os.O_DSYNC))
    interrupt(rig, second)
    read = later(rig, Opcode.READ, node, formats.READ_IN.pack(fh, 4096, 100, 0, 0, 0))
    rig.run(1.1)
    assert rig.answers[second].error == -errno.EINTR
    last = later(rig, Opcode.READ, node, formats.READ_IN.pack(fh, 8192, 100, 0, 0, 0))
    rig.run(0.5)
    assert rig.answers[read].body == b"x" * 100
    assert last not in rig.answers
    rig.run(9)
    assert rig.answers[last].body == b"z" * 100


def test_what_was_emptied_after_all_is_seen(rig: Rig) -> None:
    """The kernel has pages and attributes of before."""
    node, _ = give_up(rig, "open", 2)
    rig.notifications.clear()
    size = later(rig, Opcode.GETATTR, node, formats.GETATTR_IN.pack(0, 0))
    rig.run(3)
    assert rig.answers[size].attr[1] == 0
    assert any(one.error == formats.NOTIFY_INVAL_INODE for one in rig.notifications)


@pytest.mark.parametrize("what", ["write", "space"])
def test_the_open_file_of_what_was_given_up_is_closed_when_it_is_over(rig: Rig, what: str) -> None:
    """With it go locks."""
    node, fh = give_up(rig, what, 2)
    file = rig.machine.files[fh]
    assert rig.release(node, fh).error == 0
    rig.run(1)
    assert file.ocb in rig.fs.manager.table.handles
    rig.run(2)
    assert file.ocb not in rig.fs.manager.table.handles


def test_what_was_given_up_before_it_was_sent_holds_nothing_up(rig: Rig) -> None:
    """While the way to its directory was looked for."""
    rig.fs.add(b"d/f", b"before")
    directory = rig.walk(b"d")
    node = rig.lookup(directory, b"f").nodeid
    rig.run(0.1)
    known = rig.machine.nodes.get(directory)
    assert known is not None
    rig.machine.handles.drop_all(known)
    rig.fs.faults.append(Fault("lookup", delay=2.5, times=1, deaf=True))
    given_up = later(rig, Opcode.SETATTR, node, EMPTIED)
    interrupt(rig, given_up)
    rig.run(2)
    assert rig.answers[given_up].error == -errno.EINTR
    rig.run(1)
    assert rig.machine.drops["given_up_at_server"] == 0
    fh = rig.open(node, os.O_RDWR).fh
    assert rig.write(node, fh, 0, b"fresh").error == 0
    assert rig.ask(Opcode.FLUSH, node, FLUSH(fh, 0)).error == 0
    assert rig.fs.find(b"d/f").data == b"freshe"


def test_bytes_that_came_with_open_are_not_older_than_a_write_that_was_answered_before(rig: Rig) -> None:
    """The answer to OPEN comes after that to the write, which the server had later."""
    node, fh = opened(rig)
    assert rig.write(node, fh, 0, b"before").error == 0
    rig.run(2)
    rig.fs.faults.append(Fault("open", late=0.1, times=1))
    reading = later(rig, Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_RDONLY, 0))
    rig.run(0.01)
    assert rig.write(node, fh, 0, b"after!").error == 0
    rig.run(0.2)
    new = rig.answers[reading].fh
    assert rig.read(node, new, 0, 10).body == b"after!"
