"""Servers that are there, and do not know what they have opened before: it is opened again, once, and not for ever."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from resmgr.channel import Message
from resmgr.fuse import formats
from resmgr.fuse.forgotten import MOST, PAUSE_MAX
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import Failure
from resmgr.fuse.writing import COPY_MAX
from resmgr.hostfs.objects import HostClient
from resmgr.iofunc.handle import Handle
from resmgr.iomsg import LOCK_RECLAIM, Io
from resmgr.testing.virtual import NodeView
from tests.resmgr.fuse.far import Far
from tests.resmgr.fuse.reopened import LOCK, Make, far, flush, open_there, opened, read, write

__all__ = ["far"]

Handler = Callable[[Message, HostClient, Handle, int], None]


def instead(rig: Far, kind: Io, handler: Callable[[Handler, Message, HostClient, Handle, int], None]) -> None:
    """Have *handler* answer messages, given the one that would."""
    known = rig.host.manager._io[kind]
    rig.host.manager._io[kind] = lambda message, client, handle, flags: handler(known, message, client, handle, flags)


def write_at(fh: int, offset: int, data: bytes, flags: int = os.O_RDWR) -> bytes:
    return formats.WRITE_IN.pack(fh, offset, len(data), 0, 0, flags) + data


@pytest.mark.parametrize("failure", [Failure.SOFT, Failure.HARD])
def test_an_open_file_goes_on(far: Make, failure: Failure) -> None:
    rig = far(failure)
    node, fh = opened(rig)
    rig.forget()
    if failure is Failure.SOFT:
        assert read(rig, node, fh).error == -errno.EHOSTDOWN
    assert read(rig, node, fh).body == b"0123456789"
    rig.forget()
    assert write(rig, node, fh, b"abc") == 0
    assert flush(rig, node, fh) == 0
    assert (rig.root / "f").read_bytes() == b"abc3456789"
    assert open_there(rig) == 1
    assert rig.machine.drops["forgotten"] == rig.machine.drops["reopened"] == 2


@pytest.mark.parametrize("failure", [Failure.SOFT, Failure.HARD])
def test_rights_that_were_taken_away_meanwhile(far: Make, failure: Failure) -> None:
    rig = far(failure)
    rig.uid = 4001
    (rig.root / "f").touch()
    (rig.root / "f").chmod(0o666)
    node, fh = opened(rig)
    (rig.root / "f").chmod(0o600)
    rig.forget()
    assert [read(rig, node, fh).error for _ in range(3)][-2:] == [-errno.ESTALE] * 2


def test_what_was_appended_is_appended_once(far: Make) -> None:
    rig = far(Failure.HARD)
    node, fh = opened(rig, os.O_RDWR | os.O_APPEND)
    rig.forget()
    assert rig.ask(Opcode.WRITE, node, write_at(fh, 0, b"abc", os.O_RDWR | os.O_APPEND)).error == 0
    assert (rig.root / "f").read_bytes() == b"0123456789abc"


@pytest.mark.parametrize("failure", [Failure.SOFT, Failure.HARD])
@pytest.mark.parametrize("locked", [False, True])
def test_a_write_that_is_answered_after_its_file_was_opened_again_does_not_lose_that_once_more(
    far: Make, failure: Failure, locked: bool
) -> None:
    rig = far(failure, delegations=False)
    node, fh = opened(rig)
    if locked:
        assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, 0, 9, fcntl.F_WRLCK, 5, 0)).error == 0
        # So that they can be set again.
        status = os.stat(rig.root / "f")
        rig.host.locks._claims.lost_ranges(
            (status.st_dev, status.st_ino), (True, True, False), "here", [(0, 10, fcntl.F_WRLCK)], rig.dispatch.now()
        )
    seen: list[Handle] = []

    def unknown(write: Handler, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        seen.append(handle)
        if handle is not seen[0]:
            write(message, client, handle, flags)
        else:
            rig.there.call_at(rig.there.now() + (0.5 if len(seen) == 2 else 0.0), lambda: message.error(errno.EBADF))
            if len(seen) == 2:
                rig.host.manager.table.close(handle)

    instead(rig, Io.WRITE, unknown)
    # Large enough not to wait for each other.
    size = COPY_MAX + 1
    for offset, data in (0, b"a"), (size, b"b"):
        assert rig.ask(Opcode.WRITE, node, write_at(fh, offset, data * size)).error == 0
    rig.run(2)
    assert flush(rig, node, fh, owner=8) == 0
    assert (rig.root / "f").read_bytes() == b"a" * size + b"b" * size
    assert rig.machine.drops["reopened"] == 1
    assert open_there(rig) == 1
    assert len(rig.host.locks._files._through) == locked
    assert rig.machine.drops["locks_lost"] == 0


def test_nor_does_a_read(far: Make) -> None:
    rig = far(Failure.HARD, delegations=False)
    node, fh = opened(rig)
    seen: list[Handle] = []

    def unknown(read: Handler, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        seen.append(handle)
        if handle is not seen[0]:
            read(message, client, handle, flags)
        else:
            rig.there.call_at(rig.there.now() + (0.5 if len(seen) == 1 else 0.0), lambda: message.error(errno.EBADF))

    instead(rig, Io.READ, unknown)
    late = rig.start(Opcode.READ, node, formats.READ_IN.pack(fh, 0, 4, 0, 0, 0))
    rig.run(0.01)
    assert read(rig, node, fh).body == b"0123456789"
    assert late not in rig.answers
    rig.run(1)
    assert rig.answers[late].body == b"0123"
    assert rig.machine.drops["reopened"] == 1
    assert open_there(rig) == 1


def test_a_copy_whose_destination_is_not_known(far: Make) -> None:
    rig = far(Failure.HARD)
    source, reading = opened(rig, os.O_RDONLY, b"source", b"SOURCE")
    node, fh = opened(rig)
    rig.forget()
    copied = rig.ask(Opcode.COPY_FILE_RANGE, source, formats.COPY_IN.pack(reading, 0, node, fh, 0, 6, 0))
    assert copied.error == 0
    assert (rig.root / "f").read_bytes() == b"SOURCE6789"
    assert rig.machine.drops["reopen_tried"] == 2


@pytest.mark.parametrize("failure", [Failure.SOFT, Failure.HARD])
def test_a_lock_that_was_granted_to_what_is_not_known_any_more(far: Make, failure: Failure) -> None:
    """That is heard when the file is open again."""
    rig = far(failure, delegations=False)
    node, fh = opened(rig)
    known = rig.host.manager._io[Io.LOCK]

    def granted(lock: Handler, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        rig.there.call_at(rig.there.now() + 0.5, lambda: message.reply(0))

    instead(rig, Io.LOCK, granted)
    locked = rig.start(Opcode.SETLK, node, LOCK(fh, 7, 0, 9, fcntl.F_WRLCK, 5, 0))
    rig.run(0.1)
    rig.forget()
    assert [read(rig, node, fh).error for _ in range(2)][-1] == 0
    rig.host.manager._io[Io.LOCK] = known
    rig.run(1)
    assert rig.answers[locked].error == (-errno.EHOSTDOWN if failure is Failure.SOFT else 0)
    _, other = opened(rig)
    taken = rig.ask(Opcode.SETLK, node, LOCK(other, 8, 4, 4, fcntl.F_WRLCK, 6, 0)).error
    assert taken == (0 if failure is Failure.SOFT else -errno.EAGAIN)


@pytest.mark.parametrize("failure", [Failure.SOFT, Failure.HARD])
def test_an_open_directory_goes_on(far: Make, failure: Failure) -> None:
    rig = far(failure)
    names = {b"name%04d" % number for number in range(600)}
    for name in names:
        (rig.root / os.fsdecode(name)).touch()
    fh = rig.ask(Opcode.OPENDIR, 1, bytes(8)).fh
    seen: list[bytes] = []
    offset = 0
    for turn in range(1000):
        if turn == 3:
            rig.forget()
        answer = rig.ask(Opcode.READDIR, 1, formats.READ_IN.pack(fh, offset, 4096, 0, 0, 0))
        if answer.error == -errno.EHOSTDOWN and failure is Failure.SOFT:
            continue
        assert answer.error == 0
        if not answer.body:
            break
        at = 0
        while at < len(answer.body):
            _, offset, length, _ = struct.unpack_from("=QQII", answer.body, at)
            seen.append(bytes(answer.body[at + 24 : at + 24 + length]))
            at += 24 + (length + 7 & ~7)
    assert sorted(seen) == sorted({*names, b".", b".."})
    assert rig.machine.drops["forgotten"] == 1
    rig.forget()
    synced = [rig.ask(Opcode.FSYNCDIR, 1, formats.FSYNC_IN.pack(fh, 0)).error for _ in range(2)]
    assert synced == [-errno.EHOSTDOWN if failure is Failure.SOFT else 0, 0]
    assert rig.ask(Opcode.RELEASEDIR, 1, formats.RELEASE_IN.pack(fh, 0, 0, 0)).error == 0
    assert not rig.machine.handles._shared


# ---- a server that knows nothing of what it has just opened


def refuse(rig: Far, kind: Io) -> None:
    instead(rig, kind, lambda known, message, client, handle, flags: message.error(errno.EBADF))


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDWR | os.O_DSYNC])
def test_a_hard_mount_tries_less_and_less_often(far: Make, flags: int) -> None:
    rig = far(Failure.HARD)
    node, fh = opened(rig)
    refuse(rig, Io.WRITE)
    written = rig.start(Opcode.WRITE, node, write_at(fh, 0, b"abc", flags))
    rig.run(1)
    tried = rig.machine.drops["reopen_tried"]
    assert 4 <= tried <= 6
    rig.run(100)
    assert (100 - 20) / PAUSE_MAX <= rig.machine.drops["reopen_tried"] - tried <= 100 / PAUSE_MAX + 4
    assert rig.machine.drops["forgotten"] - rig.machine.drops["reopen_tried"] in (0, 1)
    assert open_there(rig) == 1
    rig.host.manager._io[Io.WRITE] = lambda message, client, handle, flags: message.error(errno.EIO)
    rig.run(PAUSE_MAX + 1)
    assert rig.answers[written].error == (0 if flags == os.O_RDWR else -errno.EIO)
    assert flush(rig, node, fh) == (-errno.EIO if flags == os.O_RDWR else 0)


@pytest.mark.parametrize("deadline", [0.0, 4.0])
def test_other_mounts_give_up(far: Make, deadline: float) -> None:
    rig = far(deadline=deadline)
    node, fh = opened(rig)
    refuse(rig, Io.WRITE)
    began = rig.dispatch.now()
    assert write(rig, node, fh, b"abc") == 0, "behind"
    assert flush(rig, node, fh) in (-errno.ESTALE, -errno.EHOSTDOWN)
    assert rig.dispatch.now() - began < 7
    assert rig.machine.drops["reopen_tried"] <= MOST
    assert read(rig, node, fh).body == b"0123456789", "it is open"


@pytest.mark.parametrize("failure", [Failure.SOFT, Failure.HARD])
def test_what_loses_nothing_ends_on_each_mount(far: Make, failure: Failure) -> None:
    """A server may say so of one operation only."""
    rig = far(failure)
    node, fh = opened(rig)
    refuse(rig, Io.SPACE)
    space = formats.FALLOCATE_IN.pack(fh, 0, 6, 0)
    errors = [rig.ask(Opcode.FALLOCATE, node, space).error for _ in range(MOST + 2)]
    assert errors[-1] == -errno.ESTALE
    assert set(errors) <= {-errno.ESTALE, -errno.EHOSTDOWN}
    assert rig.machine.drops["reopen_tried"] <= MOST
    assert read(rig, node, fh).body == b"0123456789"


# ---- while locks are set again


def test_who_comes_while_locks_are_set_again_does_not_have_the_file_opened_twice(far: Make) -> None:
    rig = far(Failure.HARD, delegations=False)
    node, fh = opened(rig)
    assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, 0, 9, fcntl.F_WRLCK, 5, 0)).error == 0
    rig.cut()
    rig.connect()

    def slow(lock: Handler, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        rig.there.call_at(rig.there.now() + 0.2, lambda: lock(message, client, handle, flags))

    instead(rig, Io.LOCK, slow)
    rig.run(0.05)
    assert rig.machine.reopening.lost[fh].locking
    assert read(rig, node, fh).body == b"0123456789"
    rig.run(1)
    assert rig.machine.drops["reopen_tried"] == rig.machine.drops["reopened"] == 1
    assert open_there(rig) == 1


@pytest.mark.parametrize("what", ["write", "read", "copy"])
def test_what_waits_for_a_write_is_not_sent_before_locks_are_set_again(far: Make, what: str) -> None:
    """Somebody else may have them. It waits for a write by another open file of another user, which arrives meanwhile."""
    rig = far(Failure.HARD, delegations=False)
    node, fh = opened(rig)
    (rig.root / "f").chmod(0o666)
    assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, 0, 9, fcntl.F_WRLCK, 5, 0)).error == 0
    rig.uid = 4001
    other = rig.ask(Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_WRONLY, 0)).fh
    rig.uid = 0

    def slow(write: Handler, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        after = 1.2 if client.info.credentials.uid else 0.0
        rig.there.call_at(rig.there.now() + after, lambda: write(message, client, handle, flags))

    def refused(lock: Handler, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        rig.there.call_at(rig.there.now() + 1.5, lambda: message.error(errno.EAGAIN))

    instead(rig, Io.WRITE, slow)
    instead(rig, Io.LOCK, refused)
    assert rig.ask(Opcode.WRITE, node, write_at(other, 20, b"b")).error == 0
    if what == "write":
        # Behind, and not sent yet.
        waiting = rig.start(Opcode.WRITE, node, write_at(fh, 0, b"a"))
    elif what == "read":
        waiting = rig.start(Opcode.READ, node, formats.READ_IN.pack(fh, 0, 10, 0, 0, 0))
    else:
        source, reading = opened(rig, os.O_RDONLY, b"source", b"SOURCE")
        waiting = rig.start(Opcode.COPY_FILE_RANGE, source, formats.COPY_IN.pack(reading, 0, node, fh, 0, 6, 0))
    (handle,) = [one for one in rig.host.manager.table.handles.values() if one.number == rig.machine.files[fh].ocb]
    rig.host.manager.table.close(handle)
    # This waits for no write.
    asked = rig.start(Opcode.GETLK, node, LOCK(fh, 7, 50, 60, fcntl.F_WRLCK, 5, 0))
    rig.run(3)
    assert (rig.root / "f").read_bytes() == b"0123456789" + bytes(10) + b"b"
    assert -errno.EIO in (rig.answers[asked].error, rig.answers[waiting].error)
    if what == "write":
        assert flush(rig, node, fh, 8) != 0
    else:
        assert rig.answers[waiting].error < 0


@pytest.mark.parametrize("release", [False, True])
def test_what_was_opened_is_closed_if_its_locks_cannot_be_set_now(far: Make, release: bool) -> None:
    """And its connection lives."""
    rig = far(Failure.HARD, delegations=False)
    node, fh = opened(rig)
    for start in (0, 4):
        assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, start, start + 1, fcntl.F_WRLCK, 5, 0)).error == 0
    rig.cut()
    rig.connect()
    asked = []

    def away(lock: Handler, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        asked.append(flags)
        if len(asked) == 2:
            message.error(errno.EHOSTDOWN)
        else:
            lock(message, client, handle, flags)

    instead(rig, Io.LOCK, away)
    rig.world.run_until(lambda: len(asked) == 2, limit=5)
    if release:
        rig.ask(Opcode.RELEASE, node, formats.RELEASE_IN.pack(fh, 0, 0, 7))
    rig.run(2)
    assert open_there(rig) == (0 if release else 1)
    if not release:
        assert asked == [LOCK_RECLAIM] * 4
        assert rig.machine.drops["locks_lost"] == 0
        _, other = opened(rig)
        assert rig.ask(Opcode.SETLK, node, LOCK(other, 8, 4, 4, fcntl.F_WRLCK, 6, 0)).error == -errno.EAGAIN


def test_locks_that_were_this_nodes_own_affair_are_lost_and_their_program_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeView, "attach_fd", lambda *_: None)
    monkeypatch.setattr(NodeView, "detach_fd", lambda *_: None)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"0123456789")
    rig = Far(tmp_path)
    rig.host.devices.root.kind = b"tmpfs"
    directory = rig.ask(Opcode.LOOKUP, 1, b"d\0").nodeid
    node = rig.ask(Opcode.LOOKUP, directory, b"f\0").nodeid
    fh = rig.ask(Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_RDWR, 0)).fh
    rig.run(1)
    assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, 0, 9, fcntl.F_WRLCK, 5, 0)).error == 0
    assert rig.machine.drops["locks_here"] == 1
    rig.forget()
    told = [read(rig, node, fh).error for _ in range(4)]
    assert set(told[:2]) <= {-errno.EHOSTDOWN, -errno.EIO}
    assert -errno.EIO in told
    assert told[2:] == [-errno.ESTALE] * 2
    assert rig.machine.drops["locks_lost"] == 1
    assert open_there(rig) == 0
    rig.close()
