"""What was open when its node went away is open again when the node is back, with its locks, or is an error; and how long requests wait."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from resmgr.channel import PID_SYSTEM, Message
from resmgr.fuse import formats
from resmgr.fuse.forgotten import AFTER_DEATH
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import Failure
from resmgr.fuse.stuck import abort
from resmgr.hostfs.objects import HostClient
from resmgr.iofunc.handle import Handle
from resmgr.iomsg import XATTR_INLINE_MAX, Io
from tests.resmgr.fuse.far import AWAY, CHID, ND
from tests.resmgr.fuse.reopened import LOCK, Make, fail, far, flush, open_there, opened, read, write

__all__ = ["far"]


@pytest.mark.parametrize("fault", ["link", "restart"])
def test_an_open_file_goes_on(far: Make, fault: str) -> None:
    rig = far()
    node, fh = opened(rig)
    fail(rig, fault)
    assert read(rig, node, fh).body == b"0123456789"
    assert write(rig, node, fh, b"abc") == 0
    assert flush(rig, node, fh) == 0
    assert (rig.root / "f").read_bytes() == b"abc3456789"
    assert rig.machine.drops["reopened"] == 1


def test_what_was_lost_a_while_ago_is_opened_again_at_once(far: Make) -> None:
    """Not after the time in which other connections to its node may still die."""
    rig = far()
    node, fh = opened(rig)
    fail(rig, "restart")
    rig.run(1)
    unique = rig.start(Opcode.READ, node, formats.READ_IN.pack(fh, 0, 100, 0, 0, 0))
    rig.run(AFTER_DEATH / 2)
    assert rig.answers[unique].body == b"0123456789"


def test_while_the_node_is_down_a_soft_mount_says_so_and_tries_again_later(far: Make) -> None:
    rig = far()
    node, fh = opened(rig)
    rig.fail("restart")
    assert read(rig, node, fh).error == -errno.EHOSTDOWN
    assert read(rig, node, fh).error == -errno.EHOSTDOWN
    rig.run(AWAY)
    assert read(rig, node, fh).body == b"0123456789"


def test_pages_that_the_kernel_has_are_not_believed(far: Make) -> None:
    rig = far()
    node, fh = opened(rig)
    assert read(rig, node, fh).error == 0
    rig.cut()
    (rig.root / "f").write_bytes(b"9876543210")
    rig.connect()
    rig.notifications.clear()
    assert read(rig, node, fh).body == b"9876543210"
    assert any(one.error == formats.NOTIFY_INVAL_INODE for one in rig.notifications)


def test_a_renamed_file_is_found_and_a_removed_one_is_stale(far: Make) -> None:
    rig = far()
    node, fh = opened(rig)
    other, other_fh = opened(rig, name=b"other")
    rig.cut()
    (rig.root / "f").rename(rig.root / "g")
    (rig.root / "f").write_bytes(b"not it")
    (rig.root / "other").unlink()
    rig.connect()
    assert read(rig, node, fh).body == b"0123456789"
    assert write(rig, node, fh, b"it") == 0
    assert flush(rig, node, fh) == 0
    assert (rig.root / "g").read_bytes() == b"it23456789"
    assert read(rig, other, other_fh).error == -errno.ESTALE
    assert read(rig, other, other_fh).error == -errno.ESTALE
    assert flush(rig, other, other_fh) == 0, "nothing was written"


@pytest.mark.parametrize("fault", ["link", "restart"])
def test_a_file_below_a_renamed_directory_is_found(far: Make, fault: str) -> None:
    rig = far()
    (rig.root / "d/e").mkdir(parents=True)
    (rig.root / "d/e/f").write_bytes(b"0123456789")
    node = 1
    for name in b"d", b"e", b"f":
        node = rig.ask(Opcode.LOOKUP, node, name + b"\0").nodeid
    fh = rig.ask(Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_RDWR, 0)).fh
    rig.run(1)
    rig.fail(fault)
    (rig.root / "d").rename(rig.root / "elsewhere")
    rig.run(AWAY + 0.1)
    assert read(rig, node, fh).body == b"0123456789"
    assert write(rig, node, fh, b"abc") == 0
    assert flush(rig, node, fh) == 0
    assert (rig.root / "elsewhere/e/f").read_bytes() == b"abc3456789"
    # Nor is another one taken for it.
    rig.fail(fault)
    (rig.root / "elsewhere/e/f").unlink()
    (rig.root / "d/e").mkdir(parents=True)
    (rig.root / "d/e/f").write_bytes(b"another")
    rig.run(AWAY + 0.1)
    assert read(rig, node, fh).error == -errno.ESTALE


def moved_over(root: Path) -> None:
    (root / "new").write_bytes(b"another")
    (root / "new").rename(root / "f")


def exchanged(root: Path) -> None:
    (root / "f").rename(root / "aside")
    (root / "new").write_bytes(b"another")
    (root / "new").rename(root / "f")


def removed_and_linked(root: Path) -> None:
    os.link(root / "f", root / "second")
    (root / "f").unlink()
    (root / "f").write_bytes(b"another")


def into_a_directory(root: Path) -> None:
    (root / "deep/er").mkdir(parents=True)
    (root / "f").rename(root / "deep/er/g")


def a_directory_instead(root: Path) -> None:
    (root / "f").unlink()
    (root / "f").mkdir()


def a_link_instead(root: Path) -> None:
    (root / "f").rename(root / "aside")
    (root / "f").symlink_to("aside")


WHILE_DOWN: dict[Callable[[Path], None], bool] = {
    moved_over: False,
    exchanged: True,
    removed_and_linked: True,
    into_a_directory: True,
    a_directory_instead: False,
    a_link_instead: True,
}
"""What is done to an open file while nobody serves it, and whether it is the same file afterwards; else it is ESTALE."""


@pytest.mark.parametrize("change", WHILE_DOWN)
def test_what_is_done_while_the_daemon_is_down(far: Make, change: Callable[[Path], None]) -> None:
    rig = far()
    node, fh = opened(rig)
    rig.fail("restart")
    change(rig.root)
    rig.run(AWAY + 0.1)
    answer = read(rig, node, fh)
    if WHILE_DOWN[change]:
        assert answer.body == b"0123456789"
        assert write(rig, node, fh, b"abc") == 0
        assert flush(rig, node, fh) == 0
    else:
        assert answer.error == -errno.ESTALE
        assert flush(rig, node, fh) == 0  # nothing was written


def test_a_name_of_several_lines_is_one_line_of_the_log(far: Make, caplog: pytest.LogCaptureFixture) -> None:
    rig = far()
    node, fh = opened(rig, name=b"f\nforged")
    rig.cut()
    (rig.root / "f\nforged").unlink()
    rig.connect()
    assert read(rig, node, fh).error == -errno.ESTALE
    (said,) = [record.getMessage() for record in caplog.records if "cannot be opened again" in record.getMessage()]
    assert said.startswith(r"'/f\nforged' was open")


def test_rights_that_were_taken_away(far: Make) -> None:
    rig = far()
    rig.uid = 4001
    (rig.root / "f").touch()
    (rig.root / "f").chmod(0o666)
    node, fh = opened(rig)
    rig.cut()
    (rig.root / "f").chmod(0o600)
    rig.connect()
    assert read(rig, node, fh).error == -errno.ESTALE


def test_after_another_boot_what_was_written_is_an_error(far: Make) -> None:
    rig = far()
    node, fh = opened(rig)
    reader, reading = opened(rig, os.O_RDONLY, b"r")
    assert write(rig, node, fh, b"abc") == 0
    rig.run(1)
    rig.on_disk[rig.root / "r"] = b"0123456789"
    fail(rig, "boot")
    assert flush(rig, node, fh) == -errno.ESTALE
    assert rig.ask(Opcode.FSYNC, node, formats.FSYNC_IN.pack(fh, 0)).error == -errno.ESTALE
    assert read(rig, reader, reading).body == b"0123456789"


def test_what_was_written_while_an_fsync_waited_is_not_synced_by_it(far: Make) -> None:
    rig = far()
    node, fh = opened(rig)
    first = rig.start(Opcode.WRITE, node, formats.WRITE_IN.pack(fh, 0, 3, 0, 0, 0) + b"abc")
    fsync = rig.start(Opcode.FSYNC, node, formats.FSYNC_IN.pack(fh, 0))
    second = rig.start(Opcode.WRITE, node, formats.WRITE_IN.pack(fh, 3, 3, 0, 0, 0) + b"def")
    rig.run(1)
    assert [rig.answers[one].error for one in (first, fsync, second)] == [0, 0, 0]
    fail(rig, "boot")
    assert flush(rig, node, fh) == -errno.ESTALE


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDWR | os.O_DSYNC])
def test_a_write_that_waited_for_another_goes_to_what_its_file_is_open_as_then(far: Make, flags: int) -> None:
    """A server that was started anew gives its numbers anew, too: that of before is another file's."""
    rig = far(Failure.HARD)
    open_files = [opened(rig, name=b"%d" % number) for number in range(8)]
    node, fh = open_files[4]
    rig.dispatch.call_at(rig.dispatch.now() + 0.001, lambda: rig.fail("restart"))
    first = rig.start(Opcode.WRITE, node, formats.WRITE_IN.pack(fh, 0, 4, 0, 0, os.O_RDWR) + b"abcd")
    second = rig.start(Opcode.WRITE, node, formats.WRITE_IN.pack(fh, 2, 4, 0, 0, flags) + b"efgh")
    for other, number in open_files[:4] + open_files[5:]:
        rig.start(Opcode.READ, other, formats.READ_IN.pack(number, 0, 10, 0, 0, 0))
    rig.run(5)
    assert (rig.answers[first].error, rig.answers[second].error) == (0, 0)
    assert flush(rig, node, fh) == 0
    assert [(rig.root / str(number)).read_bytes() for number in range(8)] == [b"0123456789"] * 4 + [b"abefgh6789"] + [b"0123456789"] * 3


def test_a_copy_that_waited_for_a_write_goes_to_no_other_file(far: Make) -> None:
    """The source is open again, what it was to be copied to is not, and a new file may have that one's number."""
    rig = far(Failure.HARD)
    source, reading = opened(rig, os.O_RDONLY, b"source", b"SOURCE")
    rig.on_disk[rig.root / "source"] = b"SOURCE"
    node, fh = opened(rig, name=b"there")
    rig.dispatch.call_at(rig.dispatch.now() + 0.001, lambda: rig.fail("boot"))
    rig.start(Opcode.WRITE, node, formats.WRITE_IN.pack(fh, 0, 4, 0, 0, os.O_RDWR) + b"abcd")
    copy = rig.start(Opcode.COPY_FILE_RANGE, source, formats.COPY_IN.pack(reading, 0, node, fh, 0, 6, 0))
    # It is tried every quarter of a second: first the new ones, then the source, then what it is copied to.
    rig.run(0.255)
    rig.start(Opcode.READ, source, formats.READ_IN.pack(reading, 0, 10, 0, 0, 0))
    rig.run(0.005)
    made = formats.CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o644, 0, 0)
    new = [rig.start(Opcode.CREATE, 1, made + b"n%d\0" % number) for number in range(9)]
    rig.run(8)
    assert rig.answers[copy].error == -errno.EXDEV
    assert [rig.answers[one].error for one in new] == [0] * 9
    assert {(rig.root / f"n{number}").read_bytes() for number in range(9)} == {b""}


def test_one_that_was_open_too_briefly_is_not_closed_without_an_error(far: Make) -> None:
    rig = far()
    (rig.root / "f").touch()
    node = rig.ask(Opcode.LOOKUP, 1, b"f\0").nodeid
    fh = rig.ask(Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_RDWR, 0)).fh
    assert write(rig, node, fh, b"abc") == 0
    rig.run(0.05)
    fail(rig, "restart")
    assert flush(rig, node, fh) == -errno.ESTALE
    assert read(rig, node, fh).error == -errno.ESTALE


@pytest.mark.parametrize("failure", [Failure.SOFT, Failure.HARD])
@pytest.mark.parametrize("change", ["nothing", "contents", "another"])
def test_one_that_was_open_too_briefly_and_is_still_what_it_was(far: Make, failure: Failure, change: str) -> None:
    """The question for its token is on the way, or not asked yet."""
    rig = far(failure)
    opened(rig, name=b"other")  # its server gives tokens
    path = rig.root / "f"
    path.write_bytes(b"0123456789")
    node = rig.ask(Opcode.LOOKUP, 1, b"f\0").nodeid
    fh = rig.ask(Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_RDWR, 0)).fh
    rig.fail("restart")
    if change == "contents":
        path.write_bytes(b"9876543210")
    elif change == "another":
        path.unlink()
        path.write_bytes(b"0123456789")
    rig.run(AWAY + 0.1)
    answer = read(rig, node, fh)
    if change == "nothing":
        assert answer.body == b"0123456789"
        assert write(rig, node, fh, b"abc") == 0
        rig.run(0.5)
        # It has a token now.
        fail(rig, "restart")
        assert flush(rig, node, fh) == 0
        assert path.read_bytes() == b"abc3456789"
    else:
        assert answer.error == -errno.ESTALE
        assert read(rig, node, fh).error == -errno.ESTALE


def test_a_listing_goes_on(far: Make) -> None:
    rig = far()
    names = {b"name%04d" % number for number in range(600)}
    for name in names:
        (rig.root / os.fsdecode(name)).touch()
    fh = rig.ask(Opcode.OPENDIR, 1, bytes(8)).fh
    seen: list[bytes] = []
    offset = 0
    for turn in range(1000):
        if turn == 3:
            fail(rig, "restart")
        body = rig.ask(Opcode.READDIR, 1, formats.READ_IN.pack(fh, offset, 4096, 0, 0, 0)).body
        if not body:
            break
        at = 0
        while at < len(body):
            _, offset, length, _ = struct.unpack_from("=QQII", body, at)
            seen.append(bytes(body[at + 24 : at + 24 + length]))
            at += 24 + (length + 7 & ~7)
    assert sorted(seen) == sorted({*names, b".", b".."})


@pytest.mark.parametrize("failure", [Failure.SOFT, Failure.HARD])
@pytest.mark.parametrize("opcode", [Opcode.GETATTR, Opcode.SETATTR, Opcode.STATX])
def test_attributes_by_each_of_two_descriptors(far: Make, failure: Failure, opcode: Opcode) -> None:
    rig = far(failure)
    node, first = opened(rig)
    _, second = opened(rig)
    fail(rig, "restart")
    for fh in (second, first):
        if opcode == Opcode.SETATTR:
            body = formats.SETATTR_IN.pack(formats.FATTR_SIZE | formats.FATTR_FH, fh, 5, *bytes(12))
        else:
            body = formats.GETATTR_IN.pack(formats.GETATTR_FH, fh) + bytes(8 if opcode == Opcode.STATX else 0)
        assert rig.ask(opcode, node, body).error == 0
    assert rig.machine.drops["reopened"] == 2


@pytest.mark.parametrize("opcode", [Opcode.GETATTR, Opcode.SETATTR, Opcode.STATX])
def test_one_of_many_descriptors_is_enough_for_attributes(far: Make, opcode: Opcode) -> None:
    rig = far(Failure.SOFT)
    node, _ = opened(rig)
    for _ in range(20):
        opened(rig)
    fail(rig, "restart")
    body = {
        Opcode.GETATTR: formats.GETATTR_IN.pack(0, 0),
        Opcode.SETATTR: formats.SETATTR_IN.pack(formats.FATTR_MODE, *bytes(9), 0o600, *bytes(4)),
        Opcode.STATX: formats.GETATTR_IN.pack(0, 0) + bytes(8),
    }[opcode]
    for _ in range(2):
        assert rig.ask(opcode, node, body).error == 0
    assert rig.machine.drops["reopen_tried"] == 1


@pytest.mark.parametrize("messages", range(6))
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_closed_while_it_is_opened_again_stays_closed(far: Make, kind: str, messages: int) -> None:
    rig = far(Failure.HARD)
    if kind == "file":
        node, fh = opened(rig)
        assert rig.ask(Opcode.SETLK, node, LOCK(fh, 7, 0, 99, 1, 5, 0)).error == 0
    else:
        (rig.root / "d").mkdir()
        node = rig.ask(Opcode.LOOKUP, 1, b"d\0").nodeid
        fh = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).fh
        assert rig.ask(Opcode.READDIR, node, formats.READ_IN.pack(fh, 0, 4096, 0, 0, 0)).error == 0
    rig.fail("restart")
    reading = Opcode.READDIR if kind == "directory" else Opcode.READ
    waiting = rig.start(reading, node, formats.READ_IN.pack(fh, 0, 4096, 0, 0, 0))
    before = rig.messages_seen
    if messages:
        rig.world.run_until(lambda: rig.messages_seen >= before + messages or waiting in rig.answers)
    abort(rig.machine, waiting, errno.EINTR)
    rig.ask(Opcode.RELEASEDIR if kind == "directory" else Opcode.RELEASE, node, formats.RELEASE_IN.pack(fh, 0, 0, 7))
    rig.run(20.0)
    assert not rig.machine.reopening.lost
    assert open_there(rig) == 0
    if kind == "file":
        _, other = opened(rig)
        assert rig.ask(Opcode.SETLK, node, LOCK(other, 8, 0, 99, 1, 6, 0)).error == 0


def test_a_hard_mount_waits_and_loses_nothing(far: Make) -> None:
    rig = far(Failure.HARD, entry_valid=0.0)
    node, fh = opened(rig)
    assert write(rig, node, fh, b"abc") == 0, "behind"
    rig.fail("restart", away=100.0)
    waiting = {
        "read": rig.start(Opcode.READ, node, formats.READ_IN.pack(fh, 0, 10, 0, 0, 0)),
        "stat": rig.start(Opcode.LOOKUP, 1, b"f\0"),
        "mkdir": rig.start(Opcode.MKDIR, 1, formats.MKDIR_IN.pack(0o755, 0) + b"d\0"),
        "fsync": rig.start(Opcode.FSYNC, node, formats.FSYNC_IN.pack(fh, 0)),
    }
    rig.run(99.0)
    assert not set(waiting.values()) & set(rig.answers)
    assert len(rig.machine.status()) == 4
    rig.run(3.0)
    assert {what: rig.answers[unique].error for what, unique in waiting.items()} == dict.fromkeys(waiting, 0)
    assert rig.answers[waiting["read"]].body == b"abc3456789"
    assert (rig.root / "d").is_dir()
    assert (rig.root / "f").read_bytes() == b"abc3456789"


def test_a_signal_ends_what_waits(far: Make) -> None:
    rig = far(Failure.HARD)
    node, fh = opened(rig)
    rig.fail("link", away=1000.0)
    waiting = [rig.start(Opcode.LOOKUP, 1, b"x\0"), rig.start(Opcode.READ, node, formats.READ_IN.pack(fh, 0, 10, 0, 0, 0))]
    rig.run(5)
    for unique in waiting:
        rig.raw(formats.IN_HEADER.pack(48, Opcode.INTERRUPT, 3, 0, 0, 0, 0, 0, 0) + formats.INTERRUPT_IN.pack(unique))
    rig.run(1.1)
    assert [rig.answers[unique].error for unique in waiting] == [-errno.EINTR] * 2

    other = rig.start(Opcode.LOOKUP, 1, b"x\0")
    assert abort(rig.machine, other, errno.EHOSTDOWN)
    assert rig.answers[other].error == -errno.EHOSTDOWN


def test_what_may_have_been_done_is_not_done_twice(far: Make) -> None:
    rig = far(Failure.HARD)
    rig.ask(Opcode.GETATTR, 1, bytes(16))
    rig.cut_at = rig.messages_seen + 1
    rig.on_cut = lambda: rig.fail("link")
    answer = rig.ask(Opcode.MKDIR, 1, formats.MKDIR_IN.pack(0o755, 0) + b"d\0")
    assert (answer.error, (rig.root / "d").is_dir()) == (-errno.EHOSTDOWN, True)
    rig.run(AWAY)
    rig.cut_at = rig.messages_seen + 1
    assert rig.ask(Opcode.STATFS, 1).error == 0, "asked again"


@pytest.mark.parametrize("what", ["create", "replace", "remove"])
def test_an_attribute_is_not_set_or_removed_twice(far: Make, what: str) -> None:
    rig = far(Failure.HARD)
    path = rig.root / "f"
    path.write_bytes(b"")
    if what in ("replace", "remove"):
        os.setxattr(path, "user.a", b"before")
    node = rig.ask(Opcode.LOOKUP, 1, b"f\0").nodeid
    if what == "remove":
        changing = rig.start(Opcode.REMOVEXATTR, node, b"user.a\0")
    else:
        head = formats.SETXATTR_IN.pack(5, os.XATTR_REPLACE if what == "replace" else os.XATTR_CREATE)
        changing = rig.start(Opcode.SETXATTR, node, head + b"user.a\0value")

    def there() -> bytes | None:
        return os.getxattr(path, "user.a") if "user.a" in os.listxattr(path) else None

    after = None if what == "remove" else b"value"
    rig.world.run_until(lambda: there() == after)
    assert changing not in rig.answers
    rig.fail("link")
    rig.run(AWAY / 2)
    if what == "remove":
        os.setxattr(path, "user.a", b"somebody's")
    else:
        os.removexattr(path, "user.a")
    rig.run(AWAY + 1)
    assert rig.answers[changing].error == -errno.EHOSTDOWN
    assert there() == (b"somebody's" if what == "remove" else None)


def test_a_long_attribute_is_not_set_twice(far: Make) -> None:
    rig = far(Failure.HARD)
    (rig.root / "f").write_bytes(b"")
    node = rig.ask(Opcode.LOOKUP, 1, b"f\0").nodeid
    asked: list[int] = []

    def taken(message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        asked.append(flags)
        rig.there.call_soon(lambda: rig.fail("link"))

    rig.host.manager._io[Io.XATTR] = taken
    head = formats.SETXATTR_IN.pack(XATTR_INLINE_MAX + 1, os.XATTR_CREATE)
    assert rig.ask(Opcode.SETXATTR, node, head + b"user.a\0" + bytes(XATTR_INLINE_MAX + 1)).error == -errno.EHOSTDOWN
    rig.run(AWAY + 1)
    assert asked == [os.XATTR_CREATE]


@pytest.mark.parametrize("down", [False, True])
def test_a_deadline_ends_what_waits(far: Make, down: bool) -> None:
    rig = far(deadline=4.0, entry_valid=0.0)
    node, fh = opened(rig)
    assert write(rig, node, fh, b"abc") == 0
    if down:
        rig.fail("link", away=1000.0)
    else:
        rig.link.down = True
    began = rig.dispatch.now()
    waiting = [rig.start(Opcode.LOOKUP, 1, b"x\0"), rig.start(Opcode.FSYNC, node, formats.FSYNC_IN.pack(fh, 0))]
    rig.world.run_until(lambda: len(set(waiting) & set(rig.answers)) == 2, limit=60.0)
    assert 3.9 <= rig.dispatch.now() - began <= 5.0
    errors = [rig.answers[unique].error for unique in waiting]
    assert errors == ([-errno.EHOSTDOWN] * 2 if down else [-errno.ETIMEDOUT, -errno.EHOSTDOWN])


def test_a_server_without_tokens_is_asked_once(far: Make) -> None:
    rig = far()
    del rig.host.manager._io[0x147]
    for name in (b"f", b"g"):
        opened(rig, name=name)
    assert rig.host.manager.counters["unsupported"] == 1
    assert rig.machine.servers.of(next(iter(rig.machine.files.values())).connection).key == (ND, int(PID_SYSTEM), CHID)
