"""Kernel requests in, messages to a scripted server, replies out."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable
from stat import S_IFCHR, S_IFLNK, S_IFREG, S_ISDIR

import pytest

from resmgr.channel import Kernel, Message
from resmgr.fuse import formats
from resmgr.fuse.formats import FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, FOPEN_STREAM, Init, Opcode
from resmgr.fuse.machine import OPERATIONS
from resmgr.fuse.options import FuseOptions
from resmgr.fuse.servers import KernelResolver
from resmgr.fuse.session import Session
from resmgr.iomsg import STATUS_REDIRECT, Attr, Connect, Entry, Io, Target
from resmgr.iorequest import parse_connect
from resmgr.pathmgr import PathManager
from resmgr.testing.fuserig import PID, Rig
from resmgr.testing.memfs import Fault, MemFs
from resmgr.testing.memtree import Inode


def events(rig: Rig) -> dict[str, int]:
    return rig.machine.statistics().events


def getattr_(rig: Rig, node: int) -> tuple[int, ...]:
    answer = rig.ask(Opcode.GETATTR, node, bytes(16))
    assert answer.error == 0
    return answer.attr


def dirents(body: bytes, plus: bool) -> list[tuple[bytes, int, int]]:
    """(name, offset, nodeid or 0)."""
    found = []
    at = 0
    while at < len(body):
        nodeid = 0
        if plus:
            (nodeid,) = struct.unpack_from("=Q", body, at)
            at += 128
        _, offset, length, _ = formats.DIRENT.parse(body, at)
        found.append((body[at + 24 : at + 24 + length], offset, nodeid))
        at += 24 + (length + 7 & ~7)
    return found


def list_names(rig: Rig, node: int, fh: int, size: int = 4096, plus: bool = False) -> list[bytes]:
    names: list[bytes] = []
    offset = 0
    while True:
        opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
        answer = rig.ask(opcode, node, formats.READ_IN.pack(fh, offset, size, 0, 0, 0))
        assert answer.error == 0
        if not answer.body:
            return names
        assert len(answer.body) <= size
        for name, following, _ in dirents(answer.body, plus):
            names.append(name)
            offset = following


# ---- INIT


def init(rig: Rig, major: int, minor: int, flags: int = 0xFFFFFFFF) -> tuple[int, bytes]:
    answer = rig.ask(Opcode.INIT, 0, struct.pack("=IIIII", major, minor, 131072, flags, 0xFFFFFFFF) + bytes(44))
    return answer.error, answer.body


@pytest.mark.parametrize(("theirs", "agreed"), [(31, 31), (36, 36), (40, 40), (45, 40)])
def test_init_agrees_on_the_smaller_version(rig: Rig, theirs: int, agreed: int) -> None:
    error, body = init(rig, 7, theirs)

    fields = formats.INIT_OUT.parse(body)
    assert error == 0
    assert fields[:2] == (7, agreed)
    assert fields[6] == 1 << 20  # max_write
    assert fields[8] == 256  # pages
    assert fields[3] & Init.ASYNC_READ
    assert not fields[3] & Init.WRITEBACK_CACHE


def test_init_takes_no_flag_that_was_not_offered(rig: Rig) -> None:
    _, body = init(rig, 7, 40, int(Init.ASYNC_READ))

    assert formats.INIT_OUT.parse(body)[3] == Init.ASYNC_READ


def test_init_refuses_old_kernels_and_says_so(rig: Rig) -> None:
    reasons: list[str] = []
    rig.machine.on_end = reasons.append

    error, _ = init(rig, 7, 30)

    assert error == -errno.EPROTO
    assert "7.30" in reasons[0]


def test_init_of_a_later_major_version_is_asked_again(rig: Rig) -> None:
    error, body = init(rig, 8, 0)

    assert error == 0
    assert formats.INIT_OUT.parse(body)[0] == 7


# ---- names


def test_lookup_walks_by_handles(rig: Rig) -> None:
    rig.fs.add(b"a/b/f", b"12345")

    node = rig.walk(b"a/b/f")

    assert rig.messages() == {"lookup": 3}
    assert getattr_(rig, node)[1] == 5
    # The attributes of a leaf are asked by its parent's handle and its name.
    assert rig.messages() == {"lookup": 1}


def test_missing_name_is_a_negative_entry(rig: Rig) -> None:
    answer = rig.lookup(1, b"none")

    assert (answer.error, answer.nodeid) == (0, 0)
    assert struct.unpack_from("=QQI", answer.body, 16)[0] == 0
    assert formats.ENTRY_OUT.parse(answer.body)[4] == 100_000_000


def test_same_object_keeps_its_node_and_another_one_gets_its_own(rig: Rig) -> None:
    rig.fs.add(b"f", b"1")
    first = rig.lookup(1, b"f").nodeid
    assert rig.lookup(1, b"f").nodeid == first

    rig.fs.remove(b"f")
    rig.fs.add(b"f", b"2")

    assert rig.lookup(1, b"f").nodeid != first


def test_hard_links_share_a_node(rig: Rig) -> None:
    rig.fs.add(b"f", b"1")
    node = rig.lookup(1, b"f").nodeid

    answer = rig.ask(Opcode.LINK, 1, struct.pack("=Q", node) + b"g\0")

    assert answer.nodeid == node
    assert answer.entry[10] == 2
    assert rig.lookup(1, b"g").nodeid == node
    assert rig.ask(Opcode.UNLINK, 1, b"f\0").error == 0
    # It is still found, by the name that is left.
    assert getattr_(rig, node)[10] == 1


def test_rename_moves_the_node_and_what_is_below(rig: Rig) -> None:
    rig.fs.add(b"a/d/f", b"1")
    rig.fs.add(b"b/x", b"1")
    inner = rig.walk(b"a/d/f")
    a, b = rig.walk(b"a"), rig.walk(b"b")

    answer = rig.ask(Opcode.RENAME2, a, struct.pack("=QII", b, 0, 0) + b"d\0e\0")

    assert answer.error == 0
    assert rig.fs.find(b"b/e/f").data == b"1"
    assert rig.walk(b"b/e/f") == inner
    assert rig.machine.nodes.get(inner).path() == b"/b/e/f"  # type: ignore[union-attr]  # it is there


def test_rename_over_a_file_and_exchange(rig: Rig) -> None:
    rig.fs.add(b"x", b"new")
    rig.fs.add(b"y", b"old")
    x, y = rig.walk(b"x"), rig.walk(b"y")

    assert rig.ask(Opcode.RENAME2, 1, struct.pack("=QII", 1, 2, 0) + b"x\0y\0").error == 0
    assert (rig.walk(b"y"), rig.walk(b"x")) == (x, y)
    assert rig.ask(Opcode.RENAME, 1, struct.pack("=Q", 1) + b"y\0x\0").error == 0
    assert rig.walk(b"x") == x
    assert getattr_(rig, x)[1] == 3
    # The one that was replaced has no name any more.
    assert rig.ask(Opcode.GETATTR, y, bytes(16)).error == -errno.ESTALE


def test_make_and_remove(rig: Rig) -> None:
    assert rig.ask(Opcode.MKDIR, 1, struct.pack("=II", 0o755, 0o022) + b"d\0").error == 0
    assert rig.ask(Opcode.MKNOD, 1, struct.pack("=IIII", S_IFREG | 0o600, 0, 0, 0) + b"d2\0").entry[9] == S_IFREG | 0o600
    assert rig.ask(Opcode.SYMLINK, 1, b"s\0../x\0").entry[9] & S_IFLNK
    assert bytes(rig.ask(Opcode.READLINK, rig.walk(b"s")).body) == b"../x"
    assert rig.ask(Opcode.RMDIR, 1, b"d2\0").error == -errno.ENOTDIR
    assert rig.ask(Opcode.RMDIR, 1, b"d\0").error == 0
    assert rig.lookup(1, b"d").nodeid == 0


def test_link_that_became_something_else_is_looked_at_again(rig: Rig) -> None:
    rig.ask(Opcode.SYMLINK, 1, b"s\0../x\0")
    link = rig.walk(b"s")
    rig.fs.remove(b"s")
    rig.fs.add(b"s", b"a file")
    assert rig.ask(Opcode.READLINK, link).error == -errno.ESTALE


# ---- attributes


def test_setattr_reaches_the_server_with_every_field(rig: Rig) -> None:
    rig.fs.add(b"f", b"12345")
    node = rig.walk(b"f")
    valid = formats.FATTR_MODE | formats.FATTR_SIZE | formats.FATTR_MTIME | formats.FATTR_UID
    body = formats.SETATTR_IN.pack(valid, 0, 2, 0, 0, 12, 0, 0, 345, 0, 0o100640, 0, 7, 8, 0)

    answer = rig.ask(Opcode.SETATTR, node, body)

    inode = rig.fs.find(b"f")
    assert (inode.mode & 0o7777, inode.uid, inode.gid, bytes(inode.data), inode.mtime) == (0o640, 7, 0, b"12", 12_000_000_345)
    assert answer.attr[1] == 2


def test_open_file_is_asked_by_its_ocb_after_its_name_is_gone(rig: Rig) -> None:
    rig.fs.add(b"f", b"123")
    node = rig.walk(b"f")
    fh = rig.open(node, os.O_RDWR).fh
    assert rig.ask(Opcode.UNLINK, 1, b"f\0").error == 0

    assert getattr_(rig, node)[10] == 0
    assert rig.write(node, fh, 3, b"4").error == 0
    assert bytes(rig.read(node, fh, 0, 10).body) == b"1234"
    # Nobody has it open any more: it is gone.
    rig.release(node, fh)
    assert rig.ask(Opcode.GETATTR, node, bytes(16)).error == -errno.ESTALE


def test_devices_are_shown_as_files_or_not(rig: Rig) -> None:
    rig.fs.add(b"tty", mode=S_IFCHR | 0o620)
    assert rig.lookup(1, b"tty").entry[9] == S_IFREG | 0o620

    plain = Rig(FuseOptions(devices_as_files=False))
    plain.fs.add(b"tty", mode=S_IFCHR | 0o620)
    assert plain.lookup(1, b"tty").entry[9] == S_IFCHR | 0o620


def test_statfs_and_access(rig: Rig) -> None:
    rig.fs.add(b"f", mode=S_IFREG | 0o600)
    node = rig.walk(b"f")
    fields = struct.unpack_from("=QQQQQIII", rig.ask(Opcode.STATFS, 1).body)
    assert (fields[0], fields[5], fields[6]) == (1 << 20, 4096, 255)
    assert rig.ask(Opcode.STATFS, node).error == 0
    rig.uid = 5
    assert rig.ask(Opcode.ACCESS, node, struct.pack("=II", 4, 0)).error == -errno.EACCES


# ---- open files


def test_open_brings_the_first_bytes_and_they_are_used_once(rig: Rig) -> None:
    rig.fs.add(b"f", b"x" * 5000)
    node = rig.walk(b"f")
    answer = rig.open(node)
    rig.messages()

    assert rig.read(node, answer.fh, 0, 131072).body == b"x" * 5000
    assert rig.messages() == {}
    assert rig.read(node, answer.fh, 0, 131072).body == b"x" * 5000
    assert rig.messages() == {"read": 1}


def test_first_bytes_are_joined_with_the_rest(rig: Rig) -> None:
    data = random.Random(1).randbytes(200_000)
    rig.fs.add(b"f", data)
    node = rig.walk(b"f")
    fh = rig.open(node).fh

    assert rig.read(node, fh, 4096, 131072).body == data[4096 : 4096 + 131072]


def test_first_bytes_are_not_used_when_old_or_written_over(rig: Rig) -> None:
    rig.fs.add(b"f", b"old")
    node = rig.walk(b"f")
    fh = rig.open(node).fh
    rig.fs.add(b"f", b"new")
    rig.run(1.1)
    assert rig.read(node, fh, 0, 10).body == b"new"

    fh = rig.open(node, os.O_RDWR).fh
    rig.write(node, fh, 0, b"N")
    assert rig.read(node, fh, 0, 10).body == b"New"


def test_pages_are_kept_only_while_nothing_changed(rig: Rig) -> None:
    rig.fs.add(b"f", b"1")
    node = rig.walk(b"f")
    # The first time the answer brings the pages.
    assert rig.open(node).open_flags == FOPEN_NOFLUSH | FOPEN_KEEP_CACHE
    assert rig.open(node).open_flags == FOPEN_NOFLUSH | FOPEN_KEEP_CACHE

    rig.fs.add(b"f", b"2")
    assert rig.open(node).open_flags == FOPEN_NOFLUSH
    # Our own write is a change like any other: its version is not known.
    writer = rig.open(node, os.O_WRONLY)
    assert writer.open_flags == FOPEN_KEEP_CACHE
    rig.write(node, writer.fh, 0, b"3")
    assert rig.open(node).open_flags == FOPEN_NOFLUSH
    assert rig.open(node).open_flags == FOPEN_NOFLUSH | FOPEN_KEEP_CACHE


def test_an_open_waits_for_no_read_that_hangs(rig: Rig) -> None:
    """Clearing the cache, the kernel would wait for the pages that a READ fills, in the program that opens and deaf to signals."""
    rig.fs.add(b"f", b"1" * 100_000)
    node = rig.walk(b"f")
    # Nothing can be in the cache: two programs may open at once, and the slower must not wait for what the quicker one reads.
    first = rig.open(node)
    assert first.open_flags == FOPEN_NOFLUSH | FOPEN_KEEP_CACHE
    rig.fs.faults.append(Fault("read", hang=True, times=1))
    hung = rig.start(Opcode.READ, node, formats.READ_IN.pack(first.fh, 70_000, 4096, 0, 0, 0))
    rig.fs.add(b"f", b"2" * 100_000)

    assert rig.open(node).open_flags == FOPEN_NOFLUSH | FOPEN_KEEP_CACHE | FOPEN_DIRECT_IO
    assert rig.open(node).open_flags == FOPEN_NOFLUSH | FOPEN_KEEP_CACHE | FOPEN_DIRECT_IO
    rig.machine.interrupts.came(hung)
    rig.run(10.0)
    assert rig.answers[hung].error == -errno.EINTR
    assert rig.open(node).open_flags == FOPEN_NOFLUSH
    assert rig.open(node).open_flags == FOPEN_NOFLUSH | FOPEN_KEEP_CACHE


def test_chmod_of_ours_keeps_the_pages_and_truncate_does_not(rig: Rig) -> None:
    rig.fs.add(b"f", b"123")
    node = rig.walk(b"f")
    rig.open(node)
    rig.ask(Opcode.SETATTR, node, formats.SETATTR_IN.pack(formats.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o600, 0, 0, 0, 0))
    assert rig.open(node).open_flags & FOPEN_KEEP_CACHE

    rig.ask(Opcode.SETATTR, node, formats.SETATTR_IN.pack(formats.FATTR_SIZE, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
    assert not rig.open(node).open_flags & FOPEN_KEEP_CACHE


def test_change_by_others_is_told_before_open_is_answered(rig: Rig) -> None:
    rig.fs.add(b"f", b"1")
    node = rig.walk(b"f")
    rig.fs.add(b"f", b"longer")
    rig.messages()

    rig.open(node)

    (notification,) = rig.notifications
    assert notification.error == formats.NOTIFY_INVAL_INODE
    assert struct.unpack("=Qqq", notification.body) == (node, -1, 0)
    # The kernel's next question is answered from what came with OPEN.
    assert rig.messages() == {"open": 1}
    assert getattr_(rig, node)[1] == 6
    assert rig.messages() == {}
    assert getattr_(rig, node)[1] == 6
    assert sum(rig.messages().values()) == 1


def test_open_without_change_tells_nothing(rig: Rig) -> None:
    rig.fs.add(b"f", b"1")
    node = rig.walk(b"f")

    rig.open(node)
    rig.notifications.clear()
    rig.open(node)

    assert rig.notifications == []


def walk_tree(rig: Rig, node: int) -> int:
    """Do what find does below *node*: list with attributes, close, go into each directory. How many names that were."""
    fh = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).fh
    below = [
        nodeid
        for name, _, nodeid in dirents(rig.ask(Opcode.READDIRPLUS, node, formats.READ_IN.pack(fh, 0, 32768, 0, 0, 0)).body, True)
        if not name.startswith(b".")
    ]
    assert all(below)
    assert rig.ask(Opcode.RELEASEDIR, node, formats.RELEASE_IN.pack(fh, 0, 0, 0)).error == 0
    nodes = [rig.machine.nodes.get(nodeid) for nodeid in below]
    return len(below) + sum(walk_tree(rig, found.nodeid) for found in nodes if found is not None and found.directory)


def test_a_directory_is_opened_listed_and_closed_with_one_message(rig: Rig) -> None:
    """No CLOSE follows: the OCB stays as base handle."""
    rig.fs.tells_end = rig.fs.shares_handles = True
    for number in range(120):
        rig.fs.add(b"t/a%d/b%d/f%d" % (number % 3, number % 12, number), b"1")
    top = rig.walk(b"t")
    rig.messages()

    assert walk_tree(rig, top) == 3 + 12 + 120
    rig.run(0.1)

    assert rig.messages() == {"open": 16}
    assert "walks" not in events(rig)


def test_an_opened_directory_serves_as_base_handle_while_open_and_after(rig: Rig) -> None:
    rig.fs.tells_end = rig.fs.shares_handles = True
    rig.fs.add(b"t/d/f", b"1")
    top = rig.walk(b"t")
    fh = rig.ask(Opcode.OPENDIR, top, formats.OPEN_IN.pack(0, 0)).fh
    body = rig.ask(Opcode.READDIRPLUS, top, formats.READ_IN.pack(fh, 2, 4096, 0, 0, 0)).body
    below = dirents(body, True)[0][2]
    inner = rig.ask(Opcode.OPENDIR, below, formats.OPEN_IN.pack(0, 0)).fh
    assert rig.lookup(below, b"f").entry[1] == 1
    rig.ask(Opcode.RELEASEDIR, below, formats.RELEASE_IN.pack(inner, 0, 0, 0))
    rig.run(5.0)
    assert rig.lookup(below, b"f").entry[1] == 1

    assert "stale_handle" not in events(rig)
    assert "walks" not in events(rig)


def test_an_open_directory_outlives_the_eviction_of_its_base_handle() -> None:
    rig = Rig(FuseOptions(handles_max=4))
    rig.fs.tells_end = rig.fs.shares_handles = True
    for number in range(2000):
        rig.fs.add(b"t/d/f%04d" % number)
    for number in range(10):
        rig.fs.add(b"t/e%d/f" % number)
    top = rig.walk(b"t")
    body = rig.ask(Opcode.READDIRPLUS, top, formats.READ_IN.pack(rig.ask(Opcode.OPENDIR, top, bytes(8)).fh, 2, 4096, 0, 0, 0)).body
    below = {name: nodeid for name, _, nodeid in dirents(body, True)}
    fh = rig.ask(Opcode.OPENDIR, below[b"d"], formats.OPEN_IN.pack(0, 0)).fh
    for number in range(10):
        rig.ask(Opcode.OPENDIR, below[b"e%d" % number], formats.OPEN_IN.pack(0, 0))
    rig.run(5.0)

    assert len(list_names(rig, below[b"d"], fh)) == 2002
    assert events(rig)["handles_evicted"] > 3
    assert len(rig.machine.handles) == 4


def test_a_directory_that_another_took_the_place_of_is_not_opened(rig: Rig) -> None:
    rig.fs.shares_handles = True
    rig.fs.add(b"t/d/f", b"1")
    top = rig.walk(b"t")
    fh = rig.ask(Opcode.OPENDIR, top, formats.OPEN_IN.pack(0, 0)).fh
    below = dirents(rig.ask(Opcode.READDIRPLUS, top, formats.READ_IN.pack(fh, 2, 4096, 0, 0, 0)).body, True)[0][2]
    for replacement in (b"t/d/other", b"t/d", None):
        rig.fs.remove(b"t/d")
        if replacement:
            rig.fs.add(replacement)
        before = len(rig.fs.manager.table.handles)
        # The kernel looks at the name again.
        assert rig.ask(Opcode.OPENDIR, below, formats.OPEN_IN.pack(0, 0)).error == -errno.ESTALE
        rig.run(0.1)
        assert len(rig.fs.manager.table.handles) == before
        if not replacement:
            break


def stored(rig: Rig) -> list[tuple[int, int, bytes]]:
    """(nodeid, offset, data) of every page that was given to the kernel unasked."""
    found = []
    for notification in rig.notifications:
        if notification.error == formats.NOTIFY_STORE:
            nodeid, offset, size = struct.unpack_from("=QQI", notification.body)
            assert len(notification.body) == 24 + size
            found.append((nodeid, offset, notification.body[24:]))
    rig.notifications.clear()
    return found


def test_a_whole_small_file_is_given_to_the_kernel_before_the_answer_to_open(rig: Rig) -> None:
    rig.fs.add(b"f", b"contents")
    node = rig.walk(b"f")

    assert rig.open(node).open_flags & FOPEN_KEEP_CACHE
    assert stored(rig) == [(node, 0, b"contents")]
    # Once: what the kernel may hold pages of is its business, and a READ may hold their locks.
    rig.fs.add(b"f", b"changed!")
    assert not rig.open(node).open_flags & FOPEN_KEEP_CACHE
    assert stored(rig) == []


@pytest.mark.parametrize("how", ["larger", "longer than known", "empty", "for writing", "append", "truncate", "written before", "created"])
def test_pages_are_not_stored_when_they_are_not_the_whole_or_may_be_locked(how: str) -> None:
    rig = Rig(FuseOptions(prefetch=16))
    rig.fs.add(b"f", {"larger": b"x" * 17, "empty": b""}.get(how, b"short"))
    if how == "created":
        body = formats.CREATE_IN.pack(os.O_RDWR, 0o644, 0, 0) + b"f\0"
        node = rig.ask(Opcode.CREATE, 1, body).nodeid
    else:
        node = rig.walk(b"f")
    flags = {"for writing": os.O_RDWR, "append": os.O_RDONLY | os.O_APPEND, "truncate": os.O_RDONLY | os.O_TRUNC}.get(how, os.O_RDONLY)
    if how == "longer than known":
        rig.fs.add(b"f", b"longer")
    if how == "written before":
        writer = rig.open(node, os.O_WRONLY)
        rig.write(node, writer.fh, 0, b"other")
        rig.release(node, writer.fh)

    rig.open(node, flags)

    assert stored(rig) == []


def test_file_in_the_place_of_another(rig: Rig) -> None:
    rig.fs.add(b"f", b"old")
    node = rig.walk(b"f")
    old = rig.open(node)
    rig.fs.remove(b"f")
    rig.fs.add(b"f", b"new one")

    # Somebody has the old one open: the new one must not share its pages.
    assert rig.open(node).error == -errno.ESTALE
    assert rig.read(node, old.fh, 0, 10).body == b"old"
    # Who opens it by /proc/PID/fd gets what that descriptor has; who goes by the name, the new file.
    again = rig.open(node)
    assert rig.read(node, again.fh, 0, 10).body == b"old"
    new = rig.walk(b"f")
    assert new != node
    assert rig.read(new, rig.open(new).fh, 0, 10).body == b"new one"
    rig.release(node, old.fh)
    rig.release(node, again.fh)
    assert rig.open(node).error == -errno.ESTALE


def test_create_and_write_and_read_back(rig: Rig) -> None:
    answer = rig.ask(Opcode.CREATE, 1, formats.CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o644, 0o022, 0) + b"f\0")
    node = answer.nodeid
    (fh,) = struct.unpack_from("=Q", answer.body, 128)

    written = rig.write(node, fh, 2, b"hello")

    assert struct.unpack_from("=I", written.body)[0] == 5
    assert rig.fs.find(b"f").data == b"\0\0hello"
    assert rig.fs.find(b"f").mode == S_IFREG | 0o644
    assert rig.ask(Opcode.FSYNC, node, formats.FSYNC_IN.pack(fh, 1)).error == 0
    assert rig.ask(Opcode.FALLOCATE, node, formats.FALLOCATE_IN.pack(fh, 0, 100, 0)).error == 0
    assert len(rig.fs.find(b"f").data) == 100
    assert rig.ask(Opcode.FLUSH, node, formats.FLUSH_IN.pack(fh, 0)).error == 0


def test_append_goes_to_the_servers_end(rig: Rig) -> None:
    rig.fs.add(b"log", b"one\n")
    node = rig.walk(b"log")
    answer = rig.open(node, os.O_WRONLY | os.O_APPEND)
    assert answer.open_flags & FOPEN_DIRECT_IO
    rig.fs.add(b"log", b"one\ntwo\n")

    rig.ask(Opcode.WRITE, node, formats.WRITE_IN.pack(answer.fh, 4, 6, 0, 0, os.O_WRONLY | os.O_APPEND) + b"three\n")

    assert rig.fs.find(b"log").data == b"one\ntwo\nthree\n"


def test_file_of_size_zero_is_read_past_the_cache(rig: Rig) -> None:
    rig.fs.add(b"version", b"")
    node = rig.walk(b"version")

    assert rig.open(node).open_flags & FOPEN_DIRECT_IO
    assert not rig.open(node, os.O_RDWR).open_flags & FOPEN_DIRECT_IO


def test_a_program_that_was_written_is_closed_at_once_and_never_waited_for(rig: Rig) -> None:
    """While it is open for writing it cannot be run on the far side."""
    rig.fs.add(b"f", b"1")
    rig.fs.find(b"f").mode |= 0o111
    node = rig.walk(b"f")
    fh = rig.open(node, os.O_RDWR).fh
    before = len(rig.fs.manager.table.handles)

    assert rig.release(node, fh).error == 0
    rig.run(0)

    assert len(rig.fs.manager.table.handles) == before - 1


def open_and_release(rig: Rig, flags: int) -> int:
    """Five files; the handles that there were before. The last file's node is the last one made."""
    before = len(rig.fs.manager.table.handles)
    for number in range(5):
        rig.fs.add(b"f%d" % number, b"1")
        node = rig.walk(b"f%d" % number)
        assert rig.release(node, rig.open(node, flags).fh).error == 0
    rig.run(0.001)
    assert len(rig.fs.manager.table.handles) == before + 5
    return before


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_other_files_are_closed_together(rig: Rig, flags: int) -> None:
    before = open_and_release(rig, flags)

    rig.run(0.02)

    assert len(rig.fs.manager.table.handles) == before


def test_what_becomes_a_program_is_closed_before_that(rig: Rig) -> None:
    before = open_and_release(rig, os.O_WRONLY)
    node = rig.walk(b"f4")
    body = formats.SETATTR_IN.pack(formats.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o755, 0, 0, 0, 0)

    assert rig.ask(Opcode.SETATTR, node, body).error == 0

    assert len(rig.fs.manager.table.handles) == before


def test_flush_waits_for_writes_and_tells_their_error(rig: Rig) -> None:
    rig.fs.add(b"f", b"1")
    node = rig.walk(b"f")
    fh = rig.open(node, os.O_RDWR).fh
    rig.fs.faults.append(Fault("write", delay=0.2, code=errno.ENOSPC, times=1))
    write = rig.start(Opcode.WRITE, node, formats.WRITE_IN.pack(fh, 0, 1, formats.WRITE_CACHE, 0, 0) + b"2")
    flush = rig.start(Opcode.FLUSH, node, formats.FLUSH_IN.pack(fh, 0))
    assert flush not in rig.answers

    rig.run(0.3)

    assert rig.answers[write].error == -errno.ENOSPC
    assert rig.answers[flush].error == -errno.ENOSPC
    # Told once, but to each process that closes.
    assert rig.ask(Opcode.FSYNC, node, formats.FSYNC_IN.pack(fh, 0)).error == -errno.ENOSPC
    assert rig.ask(Opcode.FLUSH, node, formats.FLUSH_IN.pack(fh, 0)).error == 0


def test_data_of_a_slow_write_is_not_lost_when_the_buffer_is_reused(rig: Rig) -> None:
    rig.fs.add(b"f", b"")
    node = rig.walk(b"f")
    fh = rig.open(node, os.O_RDWR).fh
    borrowed: list[int] = []

    def borrow() -> Callable[[], None]:
        borrowed.append(1)
        return lambda: borrowed.append(-1)

    rig.machine.borrow = borrow
    rig.fs.faults.append(Fault("write", delay=0.1, times=2))
    large = bytes(range(256)) * 1024
    request = rig.write(node, fh, 0, large)
    assert request.error == 0
    assert borrowed == [1]
    # A small one is copied: a buffer is a megabyte.
    assert rig.write(node, fh, len(large), b"data").error == 0
    assert borrowed == [1]
    assert rig.machine.held_bytes == len(large) + 4

    rig.run(0.2)

    assert borrowed == [1, -1]
    assert rig.machine.held_bytes == 0
    assert rig.fs.find(b"f").data == large + b"data"


def test_reads_overtake_each_other(rig: Rig) -> None:
    rig.fs.add(b"f", b"ab" * 100_000)
    node = rig.walk(b"f")
    fh = rig.open(node, os.O_RDWR).fh
    rig.fs.faults.append(Fault("read", delay=0.1, times=1))
    slow = rig.start(Opcode.READ, node, formats.READ_IN.pack(fh, 0, 4096, 0, 0, 0))

    assert len(rig.read(node, fh, 4096, 4096).body) == 4096
    assert slow not in rig.answers
    assert len(rig.machine.status()) == 1
    rig.run(0.2)
    assert len(rig.answers[slow].body) == 4096
    assert rig.machine.status() == []


# ---- directories


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("size", [400, 4096, 131072])
def test_directory_is_listed_whole_and_once(rig: Rig, plus: bool, size: int) -> None:
    expected = {b"f%04d" % number for number in range(1000)}
    for name in expected:
        rig.fs.add(b"d/" + name)
    node = rig.walk(b"d")
    fh = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).fh

    names = list_names(rig, node, fh, size, plus)

    assert names[:2] == [b".", b".."]
    assert len(names) == 1002
    assert set(names[2:]) == expected
    assert rig.ask(Opcode.RELEASEDIR, node, formats.RELEASE_IN.pack(fh, 0, 0, 0)).error == 0
    rig.run(0)
    assert rig.machine.statistics().open_files == 0


def test_small_directory_is_listed_with_two_messages(rig: Rig) -> None:
    rig.fs.add(b"d/f")
    node = rig.walk(b"d")
    rig.messages()

    fh = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).fh
    assert rig.messages() == {"open": 1}
    rig.ask(Opcode.READDIRPLUS, node, formats.READ_IN.pack(fh, 0, 4096, 0, 0, 0))
    # The end is asked for before the kernel does.
    assert rig.messages() == {"readdir": 1}
    list_names(rig, node, fh, plus=True)


def test_end_that_the_server_tells_is_not_asked_for(rig: Rig) -> None:
    rig.fs.tells_end = True
    names = {b"n%d" % number for number in range(1000)}
    for name in names:
        rig.fs.add(b"d/" + name)
    node = rig.walk(b"d")
    rig.messages()

    fh = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).fh
    listed = list_names(rig, node, fh, plus=True)

    assert set(listed) == names | {b".", b".."}
    assert len(listed) == 1002
    # 32 KiB came with OPEN, the rest of it is one message.
    assert rig.messages() == {"open": 1, "readdir": 1}


def test_entries_with_attributes_count_as_lookups(rig: Rig) -> None:
    rig.fs.add(b"d/f", b"123")
    node = rig.walk(b"d")
    fh = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).fh
    answer = rig.ask(Opcode.READDIRPLUS, node, formats.READ_IN.pack(fh, 0, 4096, 0, 0, 0))

    ((_, _, dot), (_, _, dotdot), (name, _, child)) = dirents(answer.body, True)

    assert (dot, dotdot, name) == (0, 0, b"f")
    assert getattr_(rig, child)[1] == 3
    rig.raw(formats.IN_HEADER.pack(48, Opcode.FORGET, 2, child, 0, 0, 0, 0, 0) + struct.pack("=Q", 1))
    assert rig.machine.nodes.get(child) is None


def test_seek_in_a_directory(rig: Rig) -> None:
    for number in range(1000):
        rig.fs.add(b"d/%d" % number)
    node = rig.walk(b"d")
    fh = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).fh
    whole = list_names(rig, node, fh)

    for place in (0, 1, 2, 3, 500, 999):
        answer = rig.ask(Opcode.READDIR, node, formats.READ_IN.pack(fh, place, 200, 0, 0, 0))
        assert dirents(answer.body, False)[0][0] == whole[place]
    assert rig.ask(Opcode.READDIR, node, formats.READ_IN.pack(fh, 5000, 200, 0, 0, 0)).body == b""


# ---- FORGET and handles


def test_forget_lets_nodes_and_handles_go_in_batches(rig: Rig) -> None:
    for number in range(20):
        rig.fs.add(b"d%d/f" % number)
    nodes = [rig.lookup(1, b"d%d" % number).nodeid for number in range(20)]
    inner = [rig.lookup(node, b"f").nodeid for node in nodes]
    assert len(rig.fs.manager.table.handles) == 20
    items = b"".join(struct.pack("=QQ", node, 1) for node in nodes)
    rig.raw(formats.IN_HEADER.pack(48 + len(items), Opcode.BATCH_FORGET, 2, 0, 0, 0, 0, 0, 0) + struct.pack("=II", 20, 0) + items)
    # Their children are still known to the kernel.
    assert len(rig.machine.nodes) == 41

    for node in inner:
        rig.raw(formats.IN_HEADER.pack(48, Opcode.FORGET, 2, node, 0, 0, 0, 0, 0) + struct.pack("=Q", 1))

    assert len(rig.machine.nodes) == 1
    rig.run(3)
    assert len(rig.fs.manager.table.handles) == 0


def test_looking_up_a_directory_again_does_not_pile_up_handles(rig: Rig) -> None:
    rig.fs.add(b"d/f")
    for _ in range(50):
        rig.lookup(1, b"d")
        rig.run(0)
    assert len(rig.fs.manager.table.handles) == 1
    rig.run(3)

    assert len(rig.fs.manager.table.handles) == 1
    assert rig.walk(b"d/f")


def test_handles_beyond_the_limit_are_got_again() -> None:
    rig = Rig(FuseOptions(handles_max=3))
    for number in range(10):
        rig.fs.add(b"d%d/f" % number, b"1")
    nodes = [rig.lookup(1, b"d%d" % number).nodeid for number in range(10)]
    rig.run(3)
    assert len(rig.fs.manager.table.handles) == 3

    for node in nodes:
        assert rig.lookup(node, b"f").error == 0
    assert events(rig)["handles_evicted"] > 7


def test_another_user_walks_with_its_own_rights(rig: Rig) -> None:
    rig.fs.add(b"open/f", b"1")
    rig.fs.add(b"closed/f", b"1")
    rig.fs.find(b"closed").mode = 0o040700
    opened, closed = rig.walk(b"open"), rig.walk(b"closed")
    rig.walk(b"open/f")
    rig.uid = 1000

    assert rig.lookup(opened, b"f").error == 0
    assert rig.lookup(closed, b"f").error == -errno.EACCES
    assert rig.open(rig.walk(b"open/f"), os.O_WRONLY).error == -errno.EACCES


# ---- servers that come back, go away, hang


def test_directory_is_looked_up_again_after_the_server_forgot_its_handle(rig: Rig) -> None:
    rig.fs.add(b"a/b/c/f", b"1")
    node = rig.walk(b"a/b/c")
    fh = rig.open(rig.walk(b"a/b/c/f")).fh
    rig.fs.manager.table.close_all()
    rig.messages()

    assert rig.lookup(node, b"f").error == 0

    assert rig.messages() == {"lookup": 3 - 1}
    assert events(rig)["stale_handle"] == 1
    # The open file is gone: its data could be another file's.
    rig.run(2)
    assert rig.read(rig.walk(b"a/b/c/f"), fh, 0, 1).error == -errno.ESTALE


def test_server_that_came_back_needs_no_remount(rig: Rig) -> None:
    rig.fs.add(b"a/b/f", b"1")
    node = rig.walk(b"a/b")
    chid = rig.fs.manager.channel.chid
    rig.fs.destroy()
    assert rig.lookup(node, b"f").error in (-errno.ESTALE, -errno.EIO)

    root = rig.fs.root
    rig.fs = MemFs(rig.kernel, chid=chid)
    rig.fs.root = root

    assert rig.lookup(node, b"f").error == 0
    assert rig.ask(Opcode.MKDIR, node, struct.pack("=II", 0o755, 0) + b"new\0").error == 0


def test_rename_after_a_restart_gets_both_directories_again(rig: Rig) -> None:
    rig.fs.add(b"a/f", b"1")
    rig.fs.add(b"b/g", b"1")
    a, b = rig.walk(b"a"), rig.walk(b"b")
    rig.fs.manager.table.close_all()

    answer = rig.ask(Opcode.RENAME2, a, struct.pack("=QII", b, 0, 0) + b"f\0f\0")

    assert answer.error == 0
    assert rig.fs.find(b"b/f").data == b"1"


def test_directory_that_became_another_one_is_stale(rig: Rig) -> None:
    rig.fs.add(b"d/f", b"1")
    node = rig.walk(b"d")
    rig.fs.remove(b"d")
    rig.fs.add(b"d/f", b"1")
    rig.fs.manager.table.close_all()

    assert rig.lookup(node, b"f").error == -errno.ESTALE


def test_status_of_a_down_node_is_passed_on_at_once(rig: Rig) -> None:
    rig.fs.add(b"f", b"1")
    node = rig.walk(b"f")
    fh = rig.open(node, os.O_RDWR).fh
    rig.fs.faults.append(Fault("*", code=errno.EHOSTDOWN))

    assert rig.lookup(1, b"f").error == -errno.EHOSTDOWN
    assert rig.read(node, fh, 0, 1).error == -errno.EHOSTDOWN
    assert rig.open(node).error == -errno.EHOSTDOWN


def test_server_dying_ends_what_waits(rig: Rig) -> None:
    rig.fs.add(b"f", b"1")
    node = rig.walk(b"f")
    fh = rig.open(node, os.O_RDWR).fh
    rig.fs.faults.append(Fault("*", hang=True))
    read = rig.start(Opcode.READ, node, formats.READ_IN.pack(fh, 0, 1, 0, 0, 0))
    look = rig.start(Opcode.LOOKUP, 1, b"f\0")

    rig.fs.destroy()

    assert rig.answers[read].error == -errno.EIO
    assert rig.answers[look].error < 0
    assert rig.machine.status() == []


def test_long_paths_are_walked_in_steps(rig: Rig) -> None:
    names = [b"n%03d" % number + b"x" * 200 for number in range(30)]
    rig.fs.add(b"/".join(names) + b"/f")
    node = rig.walk(b"/".join(names))
    rig.fs.manager.table.close_all()

    assert rig.lookup(node, b"f").error == 0


# ---- interrupts


def interrupt(rig: Rig, unique: int) -> None:
    rig.raw(formats.IN_HEADER.pack(48, Opcode.INTERRUPT, unique | 1, 0, 0, 0, 0, 0, 0) + struct.pack("=Q", unique))


def test_interrupt_unblocks_the_server(rig: Rig) -> None:
    rig.fs.add(b"f", b"1")
    node = rig.walk(b"f")
    rig.fs.faults.append(Fault("open", hang=True))
    unique = rig.start(Opcode.OPEN, node, formats.OPEN_IN.pack(0, 0))
    interrupt(rig, unique)
    interrupt(rig, unique)

    rig.run(0.1)

    assert rig.answers[unique].error == -errno.EINTR
    assert rig.machine.status() == []


def test_interrupt_of_a_quick_operation_changes_nothing(rig: Rig) -> None:
    rig.fs.add(b"f", b"1")
    rig.fs.faults.append(Fault("lookup", delay=0.02, times=1))
    unique = rig.start(Opcode.LOOKUP, 1, b"f\0")
    interrupt(rig, unique)

    rig.run(0.1)

    assert rig.answers[unique].error == 0


def test_interrupt_that_comes_before_its_request(rig: Rig) -> None:
    rig.fs.add(b"f", b"1")
    rig.fs.faults.append(Fault("lookup", hang=True))
    unique = 1000
    interrupt(rig, unique)

    rig.raw(formats.IN_HEADER.pack(42, Opcode.LOOKUP, unique, 1, 0, 0, 0, 0, 0) + b"f\0")
    rig.run(0.1)

    assert rig.answers[unique].error == -errno.EINTR


def test_interrupts_that_come_after_their_request_are_bounded(rig: Rig) -> None:
    for unique in range(2, 1000, 2):
        interrupt(rig, unique)

    assert len(rig.machine.interrupts) <= 64
    assert rig.answers == {}


def test_server_that_ignores_the_unblock_is_not_waited_for(rig: Rig) -> None:
    rig.fs.add(b"d/f", b"1")
    rig.fs.faults.append(Fault("lookup", name=b"d", hang=True, deaf=True, times=1))
    unique = rig.start(Opcode.LOOKUP, 1, b"d\0")
    interrupt(rig, unique)
    rig.run(0.5)
    assert unique not in rig.answers
    rig.run(1)
    assert rig.answers[unique].error == -errno.EINTR

    # The answer that comes in the end is thrown away, and the handle in it is closed.
    fs = rig.fs
    fs._lookup(fs.hanging[0], next(iter(fs.manager.table.clients.values())), parse_connect(fs.hanging[0].data), None)
    rig.run(3)
    assert events(rig)["late_replies"] == 1
    assert len(fs.manager.table.handles) == 0


def test_status_lists_what_waits(rig: Rig) -> None:
    rig.fs.add(b"d/f", b"1")
    node = rig.walk(b"d")
    rig.fs.faults.append(Fault("lookup", hang=True))
    rig.start(Opcode.LOOKUP, node, b"f\0")
    rig.run(2)

    (waiting,) = rig.machine.status()

    assert (waiting.operation, waiting.path, waiting.pid, waiting.age) == ("LOOKUP", "/d/f", PID, 2.0)


# ---- redirects


class Names:
    """A manager with one name, that redirects to another server: what /net is."""

    def __init__(self, kernel: Kernel, name: bytes, target: Target) -> None:
        self.name = name
        self.target = target
        self.seen: list[bytes] = []
        self.channel = kernel.channel(self.receive)

    def receive(self, message: Message) -> None:
        here = Target(0, self.channel.pid, self.channel.chid)
        attr = Attr(1, 0o040555, 2, 0, 0, 0, 0, 0, 4096, 0, 0, 0, 1)
        if message.data[:2] != struct.pack("!H", Io.CONNECT):
            message.reply(0, attr.pack())
            return
        request = parse_connect(message.data)
        self.seen.append(request.path)
        first, _, rest = request.path.partition(b"/")
        if not first:
            message.reply(0, Entry(here, 7, 0, attr).pack())
        elif first == self.name and request.subtype != Connect.RENAME:
            message.reply(STATUS_REDIRECT, Entry(self.target, 0, 0, None, rest=rest).pack())
        else:
            message.error(errno.ENOENT)


def net_rig() -> tuple[Rig, Names]:
    rig = Rig()
    names = Names(rig.kernel, b"B", rig.fs.target)
    target = Target(0, names.channel.pid, names.channel.chid)
    rig.machine = type(rig.machine)(rig.dispatch, rig.machine.servers._resolver, target, FuseOptions(), b"/net")
    rig.machine.on_output = rig._collect
    return rig, names


def test_redirect_is_followed_and_then_the_server_is_talked_to_directly() -> None:
    rig, names = net_rig()
    rig.fs.add(b"etc/hostname", b"b\n")

    node = rig.walk(b"B/etc/hostname")

    assert names.seen == [b"B"]
    fh = rig.open(node).fh
    assert rig.read(node, fh, 0, 10).body == b"b\n"
    assert names.seen == [b"B"]
    # Inode numbers of different servers are told apart.
    assert rig.lookup(1, b"B").entry[0] != rig.fs.root.ino


def test_walk_after_a_restart_goes_through_the_redirect_again() -> None:
    rig, names = net_rig()
    rig.fs.add(b"etc/f", b"1")
    node = rig.walk(b"B/etc")
    rig.fs.manager.table.close_all()

    assert rig.lookup(node, b"f").error == 0
    assert names.seen == [b"B", b"B/etc"]


def test_nothing_is_moved_between_servers() -> None:
    rig, _ = net_rig()
    rig.fs.add(b"d/f", b"1")
    directory = rig.walk(b"B/d")

    answer = rig.ask(Opcode.RENAME2, directory, struct.pack("=QII", 1, 0, 0) + b"f\0f\0")

    assert answer.error == -errno.EXDEV


def test_redirects_in_a_circle_end() -> None:
    rig, names = net_rig()
    names.target = Target(0, names.channel.pid, names.channel.chid)
    names.receive = lambda message: message.reply(STATUS_REDIRECT, Entry(names.target, 0, 0, None, rest=b"B/x").pack())  # type: ignore[method-assign]  # scripted
    names.channel.handler = names.receive

    assert rig.lookup(1, b"B").error == -errno.ELOOP


def test_manager_that_is_a_leaf_is_reached_by_its_redirect() -> None:
    rig, names = net_rig()
    rig.fs.add(b"ser1", b"data")
    names.receive = lambda message: message.reply(STATUS_REDIRECT, Entry(rig.fs.target, 0, 0, None, rest=b"ser1").pack())  # type: ignore[method-assign]  # scripted
    names.channel.handler = names.receive

    node = rig.lookup(1, b"port").nodeid

    assert getattr_(rig, node)[1] == 4
    assert (
        rig.ask(Opcode.SETATTR, node, formats.SETATTR_IN.pack(formats.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o600, 0, 0, 0, 0)).error == 0
    )
    assert rig.fs.find(b"ser1").mode & 0o777 == 0o600
    assert rig.read(node, rig.open(node).fh, 0, 10).body == b"data"


def test_absolute_links_of_another_node_stay_there() -> None:
    rig, _ = net_rig()
    rig.fs.add(b"etc/link", b"/usr/x", mode=S_IFLNK | 0o777)
    rig.fs.add(b"etc/relative", b"../y", mode=S_IFLNK | 0o777)
    link = rig.walk(b"B/etc/link")
    # A local server's links are what they are.
    assert rig.ask(Opcode.READLINK, link).body == b"/usr/x"

    for node in rig.machine.nodes:
        if node.parent is not None:
            node.server.key = (5, *node.server.key[1:])
    assert rig.ask(Opcode.READLINK, link).body == b"/net/B/usr/x"
    assert rig.ask(Opcode.READLINK, rig.walk(b"B/etc/relative")).body == b"../y"
    rig.fs.find(b"etc/link").data[:] = b"/" + b"x" * 4089
    assert rig.ask(Opcode.READLINK, link).error == -errno.ENAMETOOLONG, "with /net/B in front"


def test_whole_pathname_space_is_mounted() -> None:
    """The path manager's own directories, names of one manager and names of another below them."""
    rig = Rig()
    other = MemFs(rig.kernel)
    paths = PathManager(rig.kernel)
    paths.attach(b"/", rig.fs.target)
    paths.attach(b"/dev/mem", other.target)
    rig.machine = type(rig.machine)(rig.dispatch, KernelResolver(rig.kernel), paths.target)
    rig.machine.on_output = rig._collect
    rig.fs.add(b"etc/f", b"123")
    rig.fs.add(b"dev/null", b"")
    other.add(b"d/g", b"4567")

    for path, size in ((b"etc/f", 3), (b"dev/mem/d/g", 4)):
        node = rig.walk(path)
        assert getattr_(rig, node)[1] == size
        assert len(rig.read(node, rig.open(node).fh, 0, 100).body) == size
    dev = rig.walk(b"dev")
    fh = rig.ask(Opcode.OPENDIR, dev, bytes(8)).fh
    assert set(list_names(rig, dev, fh, plus=True)) == {b".", b"..", b"mem", b"null"}
    assert rig.ask(Opcode.MKDIR, rig.walk(b"dev/mem"), struct.pack("=II", 0o755, 0) + b"new\0").error == 0
    assert S_ISDIR(other.find(b"new").mode)
    assert rig.ask(Opcode.MKDIR, 1, struct.pack("=II", 0o755, 0) + b"top\0").error == 0
    assert S_ISDIR(rig.fs.find(b"top").mode)
    # From a directory of one manager to the root, which the path manager shows: the same server below, or not.
    etc, mem = rig.walk(b"etc"), rig.walk(b"dev/mem/d")
    assert rig.ask(Opcode.RENAME2, mem, struct.pack("=QII", etc, 0, 0) + b"g\0g\0").error == -errno.EXDEV
    chmod = formats.SETATTR_IN.pack(formats.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o700, 0, 0, 0, 0)
    assert rig.ask(Opcode.SETATTR, etc, chmod).error == 0
    assert rig.ask(Opcode.STATFS, 1).error == 0
    assert rig.ask(Opcode.GETATTR, 1, bytes(16)).error == 0
    # Everything is still found after all handles were lost.
    for manager in (rig.fs.manager, other.manager, paths.manager):
        manager.table.close_all()
    assert rig.lookup(mem, b"g").error == 0
    assert rig.lookup(etc, b"f").error == 0


# ---- hostile and unknown bytes


def test_nothing_that_is_read_leaves_as_an_exception(rig: Rig) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    source = random.Random(seed)
    rig.fs.add(b"d/f", b"123")
    rig.walk(b"d/f")
    opcodes = [*range(60), 4096, 0xFFFFFFFF]
    for _ in range(4000):
        body = source.randbytes(source.choice((0, 1, 7, 8, 16, 24, 40, 41, 64, 88, 100)))
        header = formats.IN_HEADER.pack(
            40 + len(body), source.choice(opcodes), source.randrange(10**6, 1 << 63), source.randrange(5), 0, 0, 0, 0, 0
        )
        request = header + body
        if source.random() < 0.1:
            request = request[: source.randrange(len(request))]
        rig.raw(request)


def test_every_operation_cut_short_is_answered(rig: Rig) -> None:
    for opcode in OPERATIONS:
        if opcode in (Opcode.READLINK, Opcode.STATFS, Opcode.GETATTR):
            continue
        answer = rig.ask(opcode, 1)
        assert answer.error == -errno.EIO, Opcode(opcode).name
    assert events(rig)["bad_request"] == len(OPERATIONS) - 3


def test_times_that_64_bits_do_not_hold_are_cut(rig: Rig) -> None:
    rig.fs.add(b"f")
    node = rig.walk(b"f")

    answer = rig.ask(Opcode.SETATTR, node, formats.SETATTR_IN.pack(formats.FATTR_MTIME, 0, 0, 0, 0, 10**12, 0, 0, 999, 0, 0, 0, 0, 0, 0))

    assert answer.error == 0
    assert rig.fs.find(b"f").mtime == (1 << 63) - 1


@pytest.mark.parametrize("opcode", [Opcode.BMAP, Opcode.SETUPMAPPING, Opcode.SYNCFS, 9999])
def test_what_is_not_served_is_enosys(rig: Rig, opcode: int) -> None:
    assert rig.ask(opcode, 1, bytes(64)).error == -errno.ENOSYS


@pytest.mark.parametrize("text", [b"x" * 4096, b"x" * 65536, b"a\0b"])
def test_text_that_no_link_has_is_not_told_to_the_kernel(rig: Rig, text: bytes) -> None:
    rig.fs.add(b"s", text, mode=S_IFLNK | 0o777)

    assert rig.ask(Opcode.READLINK, rig.walk(b"s")).error == -errno.EIO
    assert events(rig)["bad_reply"] == 1


def test_bad_replies_of_servers_are_eio_and_counted(rig: Rig) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    source = random.Random(seed)
    rig.fs.add(b"d/f", b"123")
    node, leaf = rig.walk(b"d"), rig.walk(b"d/f")
    rig.fs.manager.channel.handler = lambda message: message.reply(0, source.randbytes(source.randrange(1, 50)))
    for opcode, where, body in [
        (Opcode.LOOKUP, node, b"x\0"),
        (Opcode.GETATTR, node, bytes(16)),
        (Opcode.OPEN, leaf, bytes(8)),
        (Opcode.OPENDIR, node, bytes(8)),
        (Opcode.STATFS, node, b""),
        (Opcode.CREATE, node, bytes(16) + b"x\0"),
    ]:
        assert rig.ask(opcode, where, body).error == -errno.EIO, opcode
    assert events(rig)["bad_reply"] == 6


def test_stream_device_is_opened_past_the_cache(rig: Rig) -> None:
    inode = rig.fs.add(b"tty", b"abc", mode=S_IFREG | 0o600)
    fs = rig.fs
    real = fs.attr

    def as_device(which: Inode) -> Attr:
        attr = real(which)
        attr.mode = S_IFCHR | 0o600 if attr.ino == inode.ino else attr.mode
        return attr

    fs.attr = as_device  # type: ignore[method-assign,assignment]  # scripted
    node = rig.walk(b"tty")

    flags = rig.open(node).open_flags

    assert flags & FOPEN_DIRECT_IO
    assert flags & FOPEN_STREAM


def test_statistics_name_operations_and_errors(rig: Rig) -> None:
    rig.ask(Opcode.RMDIR, 1, b"none\0")

    statistics = rig.machine.statistics()

    assert statistics.requests == {"RMDIR": 1}
    assert statistics.errors == {"RMDIR ENOENT": 1}


def test_an_answer_that_the_kernel_refuses_is_told_with_whose_it_was(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()
    session = Session(rig.dispatch, reading, rig.machine)  # cannot be written to

    for unique, name in ((2, b"none"), (4, b"no\x1bne")):
        lookup = formats.IN_HEADER.pack(41 + len(name), Opcode.LOOKUP, unique, 1, 0, 0, PID, 0, 0) + name + b"\0"
        rig.machine.receive(memoryview(lookup), 0.0)
    session._flush()
    rig.machine.emit(formats.inval_inode(1))

    os.close(reading)
    os.close(writing)
    server = f"server {rig.fs.target.pid}/{rig.fs.target.chid} of this node"
    assert [record.getMessage() for record in caplog.records] == [
        f"kernel refused the reply to LOOKUP of '/net/none', from {server}: Bad file descriptor",
        f"kernel refused the reply to LOOKUP of '/net/no\\x1bne', from {server}: Bad file descriptor",
        "kernel refused a notification: Bad file descriptor",
    ]
    assert not rig.machine.just_answered
