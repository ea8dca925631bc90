"""Locks of files that were open when their node went away: set again when it is back, or an error; given up, and not set again."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from resmgr.channel import Message
from resmgr.errors import BadMessage
from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import Failure
from resmgr.fuse.stuck import abort
from resmgr.hostfs.objects import HostClient
from resmgr.iofunc import locks
from resmgr.iofunc.handle import Handle
from resmgr.iomsg import LOCK_RECLAIM, Io
from tests.resmgr.fuse.far import AWAY
from tests.resmgr.fuse.reopened import LOCK, Make, fail, far, flush, opened, read

__all__ = ["far"]


def test_locks_are_taken_again(far: Make) -> None:
    rig = far()
    node, fh = opened(rig)
    for start, last, kind in ((0, 99, 1), (10, 19, 2), (200, 299, 0)):
        assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, start, last, kind, 5, 0)).error == 0
    fail(rig, "restart")
    assert read(rig, node, fh).error == 0
    other, other_fh = opened(rig)
    assert other == node
    for start, last, free in ((0, 9, False), (10, 19, True), (20, 99, False), (100, 199, True), (250, 260, False)):
        error = rig.ask(Opcode.SETLK, node, LOCK(other_fh, 8, start, last, 1, 6, 0)).error
        assert error == (0 if free else -errno.EAGAIN), (start, last)
    assert flush(rig, node, fh) == 0
    assert rig.ask(Opcode.SETLK, node, LOCK(other_fh, 8, 0, 999, 1, 6, 0)).error == 0


def test_locks_are_set_again_at_a_server_that_knows_only_one_kind(far: Make) -> None:
    rig = far()
    node, fh = opened(rig)
    assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, 0, 99, 1, 5, 0)).error == 0
    rig.cut()
    flags_seen = []
    lock = rig.host.manager._io[Io.LOCK]

    def old(message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        flags_seen.append(flags)
        if flags & LOCK_RECLAIM:
            raise BadMessage("lock of an unknown kind")
        lock(message, client, handle, flags)

    rig.host.manager._io[Io.LOCK] = old
    rig.connect()
    assert read(rig, node, fh).error == 0
    assert flags_seen == [LOCK_RECLAIM, 0]
    with pytest.raises(OSError, match="unavailable"):
        kernel_lock(rig.root / "f")


def test_a_lock_that_another_node_had_meanwhile_is_lost(far: Make) -> None:
    rig = far()
    node, fh = opened(rig)
    assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, 50, 60, 1, 5, 0)).error == 0
    rig.cut()
    # And has given it up again.
    status = os.stat(rig.root / "f")
    rig.host.locks._claims.granted((status.st_dev, status.st_ino), (True, True, False), 1, 55, 56)
    rig.connect()
    assert read(rig, node, fh).error == -errno.EIO
    assert read(rig, node, fh).error == -errno.ESTALE
    assert rig.machine.drops["locks_lost"] == 1


def kernel_lock(path: Path) -> int:
    """A program of the server's machine locks a file; its descriptor."""
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, 37, struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 50, 10, 0))  # F_OFD_SETLK: it is this process that serves
    return fd


@pytest.mark.parametrize("failure", [Failure.SOFT, Failure.HARD])
def test_locks_are_taken_again_though_nobody_asks(far: Make, failure: Failure) -> None:
    rig = far(failure)
    node, fh = opened(rig)
    assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, 50, 60, 1, 5, 0)).error == 0
    rig.fail("restart", 20.0)
    rig.run(20.3)
    with pytest.raises(OSError, match="unavailable"):
        kernel_lock(rig.root / "f")
    assert rig.machine.drops["reopened"] == 1


@pytest.mark.parametrize("fault", ["link", "restart"])
def test_who_waits_here_does_not_come_before_who_had_the_lock(far: Make, fault: str) -> None:
    """Programs of one node, with descriptors of their own: after its server was started anew each has what it had."""
    rig = far()
    node, fh = opened(rig)
    _, other = opened(rig)
    assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, 50, 60, 1, 5, 0)).error == 0
    rig.fail(fault)
    told = []
    for _ in range(200):
        told.append(rig.ask(Opcode.SETLK, node, LOCK(other, 8, 0, 99, 1, 6, 0)).error)
        rig.run(0.01)
    assert set(told) <= {-errno.EAGAIN, -errno.EHOSTDOWN}
    assert told[-1] == -errno.EAGAIN
    assert read(rig, node, fh).error == 0
    assert rig.machine.drops["locks_lost"] == 0
    assert rig.ask(Opcode.SETLK, node, LOCK(other, 8, 0, 49, 1, 6, 0)).error == 0


@pytest.mark.parametrize("failure", [Failure.SOFT, Failure.HARD])
@pytest.mark.parametrize("taken", [False, True])
def test_an_unlock_whose_answer_was_lost_is_one(far: Make, failure: Failure, taken: bool) -> None:
    """What the program gives up, and somebody else may have had since, is not set again."""
    rig = far(failure, delegations=False)
    node, fh = opened(rig)
    for start, last in ((50, 60), (70, 80)):
        assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, start, last, 1, 5, 0)).error == 0
    rig.cut_at = rig.messages_seen + 1
    rig.on_cut = lambda: rig.fail("link")
    unlocked = rig.start(Opcode.SETLK, node, LOCK(fh, 7, 50, 60, 2, 5, 0))
    rig.run(AWAY / 2)
    fd = kernel_lock(rig.root / "f") if taken else -1
    rig.run(AWAY)
    assert rig.answers[unlocked].error == (0 if failure is Failure.HARD else -errno.EHOSTDOWN)
    assert read(rig, node, fh).error == 0
    if taken:
        os.close(fd)
    os.close(kernel_lock(rig.root / "f"))
    _, other = opened(rig)
    assert rig.ask(Opcode.SETLK, node, LOCK(other, 8, 79, 99, 1, 6, 0)).error == -errno.EAGAIN, "the other one is held"


def test_an_unlock_that_is_refused_is_none(far: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = far(delegations=False)
    node, fh = opened(rig)
    assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, 0, 99, 1, 5, 0)).error == 0
    with monkeypatch.context() as full:
        full.setattr(locks, "RANGES_PER_OBJECT", 1)
        assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, 50, 60, 2, 5, 0)).error == -errno.ENOLCK
    fail(rig, "link")
    _, other = opened(rig)
    assert rig.ask(Opcode.SETLK, node, LOCK(other, 8, 50, 60, 1, 6, 0)).error == -errno.EAGAIN


def test_whose_lock_is_lost_is_told_so_and_not_who_waited_for_it(far: Make) -> None:
    rig = far()
    node, fh = opened(rig)
    _, other = opened(rig)
    assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, 50, 60, 1, 5, 0)).error == 0
    rig.fail("restart", 20.0)
    fd = kernel_lock(rig.root / "f")
    rig.run(19.8)
    told = []
    for _ in range(200):
        told.append(rig.ask(Opcode.SETLK, node, LOCK(other, 8, 0, 9, 1, 6, 0)).error)
        rig.run(0.01)
    assert set(told) <= {0, -errno.EHOSTDOWN}
    assert told[-1] == 0
    assert rig.machine.drops["locks_lost"] == 1
    assert read(rig, node, fh).error == -errno.EIO
    assert read(rig, node, fh).error == -errno.ESTALE
    os.close(fd)


def test_for_how_long_locks_are_taken_again_though_nobody_asks(far: Make) -> None:
    rig = far()
    node, fh = opened(rig)
    assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, 50, 60, 1, 5, 0)).error == 0
    rig.fail("restart", 100.0)
    rig.run(70)
    tried = rig.machine.drops["reopen_tried"]
    rig.run(31)
    assert rig.machine.drops["reopen_tried"] == tried < 60 / 0.25 + 2
    assert read(rig, node, fh).error == 0
    with pytest.raises(OSError, match="unavailable"):
        kernel_lock(rig.root / "f")


@pytest.mark.parametrize("asked", [False, True])
def test_locks_that_somebody_took_are_an_error(far: Make, asked: bool) -> None:
    """Told once, whether somebody waits for it or asks later."""
    rig = far(Failure.HARD)
    node, fh = opened(rig)
    assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, 0, 99, 1, 5, 0)).error == 0
    rig.fail("restart")
    fd = kernel_lock(rig.root / "f")
    if not asked:
        rig.run(AWAY + 0.5)
    assert read(rig, node, fh).error == -errno.EIO
    assert read(rig, node, fh).error == -errno.ESTALE
    assert rig.machine.drops["locks_lost"] == 1
    os.close(fd)
    assert read(rig, *opened(rig, name=b"g")).error == 0


def test_a_process_that_closes_the_file_while_its_locks_are_set_again_has_none(far: Make) -> None:
    """It closes another open file of it, which is there already."""
    rig = far(Failure.HARD)
    node, fh = opened(rig)
    for start in (0, 4, 8):
        assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, start, start + 1, fcntl.F_WRLCK, 70, 0)).error == 0
    rig.fail("restart")
    rig.run(AWAY)
    other = rig.ask(Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_RDWR, 0)).fh
    before = rig.machine.files[fh].ocb, rig.machine.files[fh].connection
    rig.world.run_until(lambda: (rig.machine.files[fh].ocb, rig.machine.files[fh].connection) != before, limit=5)
    assert rig.machine.files[fh].dead, "its locks are being set again"
    assert flush(rig, node, other) == 0
    for start in (0, 4, 8):
        assert rig.ask(Opcode.SETLK, node, LOCK(other, 8, start, start + 1, fcntl.F_WRLCK, 80, 0)).error == 0
    assert read(rig, node, fh).body == b"0123456789"


@pytest.mark.parametrize("given_up", [False, True])
def test_a_lock_is_kept_though_its_server_goes_away_before_the_program_hears_that_it_has_it(far: Make, given_up: bool) -> None:
    """It hears it when the kernel has dropped the pages."""
    rig = far()
    node, fh = opened(rig)
    dropped: list[Callable[[], None]] = []
    rig.machine.drop_pages = lambda nodeid, done: dropped.append(done)
    locked = rig.start(Opcode.SETLK, node, LOCK(fh, 7, 0, 9, fcntl.F_WRLCK, 70, 0))
    rig.run(0.1)
    assert dropped
    assert locked not in rig.answers
    if given_up:
        abort(rig.machine, locked, errno.EINTR)
    rig.fail("restart")
    rig.run(AWAY + 1)
    assert read(rig, node, fh).body == b"0123456789"
    dropped[0]()
    assert rig.answers[locked].error == (-errno.EINTR if given_up else 0)
    other = rig.ask(Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_RDWR, 0)).fh
    found = rig.ask(Opcode.GETLK, node, LOCK(other, 8, 0, 9, fcntl.F_WRLCK, 80, 0))
    assert struct.unpack("=QQII", found.body)[-2] == (fcntl.F_UNLCK if given_up else fcntl.F_WRLCK)
    fail(rig, "restart")
    assert bool(rig.machine.files[fh].held) is not given_up
