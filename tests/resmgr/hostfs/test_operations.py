"""Every operation of the host file system, by messages, against a real directory."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable

import pytest

from resmgr.errors import ResmgrError
from resmgr.hostfs.syscalls import birth_ns
from resmgr.iomsg import (
    COOKIE_END,
    NOTIFY_ARM,
    OFFSET_APPEND,
    OPEN_DELEGATE,
    POLL_ALL,
    REQUEST,
    SET_ATIME,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_MTIME_NOW,
    SET_SIZE,
    SET_UID,
    SYNC_DATA_ONLY,
    UNLINK_DIRECTORY,
    WANT_HANDLE,
    Attr,
    Connect,
    Entry,
    Io,
    parse_dirents,
)
from resmgr.iorequest import ConnectRequest, SetAttr, pack_devctl, pack_notify, pack_write
from resmgr.testing.hostdir import HostDirectory

NOREPLACE, EXCHANGE = 1, 2


def fails(code: int) -> pytest.RaisesExc[ResmgrError]:
    return pytest.raises(ResmgrError, match=os.strerror(code).replace("(", r"\("))


def test_lookup_tells_attributes_and_keeps_directories(host: HostDirectory) -> None:
    (host.root / "d").mkdir()
    (host.root / "d" / "f").write_bytes(b"hello")
    client = host.client()
    entry = client.lookup(b"d")
    assert entry.handle
    assert entry.target == host.fs.target
    assert entry.attr is not None
    real = os.stat(host.root / "d")
    assert (entry.attr.ino, entry.attr.mode, entry.attr.mtime) == (real.st_ino, real.st_mode, real.st_mtime_ns)
    below = client.lookup(b"f", entry.handle)
    assert below.handle == 0
    assert below.attr is not None
    assert below.attr == Attr.of(os.stat(host.root / "d" / "f"))
    assert client.lookup(b"d/f").attr == below.attr
    kept = client.lookup(b"d/f", flags=WANT_HANDLE)
    assert client.stat(kept.target, kept.handle) == below.attr
    again = client.open(b"", handle=kept.handle, prefetch=100)
    assert bytes(again.data) == b"hello"


def test_errors_are_linux_own(host: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"")
    (host.root / "d").mkdir()
    (host.root / "loop").symlink_to("loop")
    client = host.client()
    cases: list[tuple[int, Callable[[], object]]] = [
        (errno.ENOENT, lambda: client.lookup(b"none")),
        (errno.ENOENT, lambda: client.lookup(b"none/x")),
        (errno.ENOTDIR, lambda: client.lookup(b"f/x")),
        (errno.ENOTDIR, lambda: client.open(b"f", os.O_DIRECTORY)),
        (errno.EISDIR, lambda: client.open(b"d", os.O_WRONLY)),
        (errno.ELOOP, lambda: client.open(b"loop")),
        (errno.EEXIST, lambda: client.open(b"f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
        (errno.ENAMETOOLONG, lambda: client.lookup(b"x" * 256)),
        (errno.ENAMETOOLONG, lambda: client.lookup(b"/".join([b"y" * 200] * 30))),
        (errno.EBADF, lambda: client.lookup(b"f", handle=12345)),
        (errno.EINVAL, lambda: client.open(b"f", os.O_ACCMODE)),
        (errno.EINVAL, lambda: client.name(Connect.READLINK, b"f")),
        (errno.EBUSY, lambda: client.name(Connect.RMDIR, b"")),
    ]
    for code, call in cases:
        with pytest.raises(ResmgrError) as caught:
            call()
        assert caught.value.errno == code, os.strerror(code)


def test_hostile_paths_are_refused(host: HostDirectory) -> None:
    client = host.client()
    for path in (b"..", b".", b"a/../b", b"/etc", b"a//b", b"a/", b"a\0b", b"a/./b"):
        with fails(errno.EBADMSG):
            client.lookup(path)
    assert host.fs.counters["bad_message"] == 8


def test_garbage_is_answered_and_counted(host: HostDirectory) -> None:
    client = host.client()
    rng = random.Random(3)
    good = ConnectRequest(Connect.RENAME, 0, 0, b"abc", handle2=0, path2=b"def").pack()
    for length in range(len(good) - 3):
        with pytest.raises(ResmgrError):
            client.send(host.fs.target, (good[:length],))
    for _ in range(500):
        junk = rng.randbytes(rng.randrange(80))
        head = REQUEST.pack(rng.choice([*Io, 0, 0xFFFF]), rng.randrange(16), rng.getrandbits(32), rng.choice([0, 1, 1 << 63]))
        try:
            client.send(host.fs.target, (head + junk,))
        except ResmgrError:
            pass
    assert host.fs.counters["failed"] == 0
    assert client.lookup(b"").attr is not None


def test_names_are_bytes(host: HostDirectory) -> None:
    client = host.client()
    names = {b"\xff\xfe", b"x" * 255, b" ", b"new\nline", b"-rf", b"\x01", "ü".encode("latin-1")}
    for name in names:
        made = client.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        client.write(made.target, made.ocb, 0, name)
    assert client.names() == names == set(os.listdir(os.fsencode(host.root)))
    for name in names:
        assert client.get(name) == name


def test_create_mode_umask_and_flags(host: HostDirectory) -> None:
    client = host.client()
    for mode, umask in ((0o666, 0o022), (0o777, 0), (0o600, 0o077), (0o666, 0o002)):
        name = b"%o-%o" % (mode, umask)
        made = client.open(name, os.O_CREAT | os.O_RDWR, mode, umask=umask)
        assert made.attr is not None
        assert stat.S_IMODE(made.attr.mode) == mode & ~umask == stat.S_IMODE(os.stat(os.fsencode(host.root) + b"/" + name).st_mode)
    made = client.open(b"t", os.O_CREAT | os.O_RDWR)
    client.write(made.target, made.ocb, 0, b"0123456789")
    assert client.open(b"t", os.O_RDWR | os.O_TRUNC).attr is not None
    assert (host.root / "t").read_bytes() == b""
    first = client.open(b"t", os.O_WRONLY | os.O_APPEND)
    client.write(first.target, first.ocb, 0, b"ab")
    client.write(first.target, first.ocb, 0, b"cd")
    second = client.open(b"t", os.O_WRONLY)
    client.write(second.target, second.ocb, OFFSET_APPEND, b"ef")
    client.write(second.target, second.ocb, 1, b"X")
    assert client.get(b"t") == b"aXcdef"
    with fails(errno.EBADF):
        client.read(second.target, second.ocb, 0, 10)
    with fails(errno.EBADF):
        reader = client.open(b"t")
        client.write(reader.target, reader.ocb, 0, b"x")


def test_prefetch_makes_open_and_read_one_message(host: HostDirectory) -> None:
    data = random.Random(1).randbytes(200_000)
    (host.root / "f").write_bytes(data)
    client = host.client()
    assert bytes(client.open(b"f", prefetch=4096).data) == data[:4096]
    assert len(client.open(b"f", prefetch=1 << 30).data) == 128 * 1024
    assert bytes(client.open(b"f", os.O_RDWR, prefetch=4096).data) == b""
    request = ConnectRequest(Connect.OPEN, 0, 0, b"f", prefetch=4096)
    assert len(Entry.parse(client.connect(request, reply_len=1000)).data) < 1000


def test_read_at_every_edge(host: HostDirectory) -> None:
    data = random.Random(2).randbytes(3_000_001)
    (host.root / "f").write_bytes(data)
    client = host.client()
    entry = client.open(b"f")
    for offset, size in ((0, 1), (0, 0), (0, 1 << 20), (2_999_999, 4096), (3_000_001, 10), (1 << 40, 5), (777, 2_000_000)):
        assert client.read(entry.target, entry.ocb, offset, size) == data[offset : offset + size]
    with fails(errno.EINVAL):
        client.read(entry.target, entry.ocb, (1 << 64) - 2, 10)
    with fails(errno.EISDIR):
        directory = client.open(b"", os.O_DIRECTORY)
        client.read(directory.target, directory.ocb, 0, 10)


def test_write_beyond_its_first_part_is_pulled(host: HostDirectory) -> None:
    """A remote client's message arrives with its first part only; pieces come as the server asks for them."""
    data = random.Random(4).randbytes(3_500_000)
    client = host.client()
    for append in (False, True):
        entry = client.open(b"f%d" % append, os.O_CREAT | os.O_RDWR | (os.O_APPEND if append else 0))
        whole = pack_write(entry.ocb, 0, len(data)) + data
        answers: list[int] = []
        pulls: list[tuple[int, int]] = []

        class Far:
            def answer(self, status: int, parts: object, descriptors: object = ()) -> None:
                answers.append(status)  # noqa: B023

            def pull(self, offset: int, length: int, done: object) -> None:
                assert callable(done)
                pulls.append((offset, length))  # noqa: B023
                piece = whole[offset : offset + min(length, 300_000)]  # noqa: B023
                host.dispatch.call_soon(lambda: done(len(piece), piece))

            def push(self, offset: int, data: object) -> None:
                raise AssertionError

        info = client.connection(host.fs.target).info
        host.kernel.deliver(host.fs.channel, info, whole[: 128 * 1024], len(whole), 0, 10, Far())
        host.dispatch.run_until(lambda: bool(answers))  # noqa: B023
        assert answers == [len(data)]
        assert len(pulls) > 10
        assert (host.root / f"f{int(append)}").read_bytes() == data
    with fails(errno.EBADMSG):
        client.send(host.fs.target, (pack_write(entry.ocb, 0, 100), b"short"))


def test_remove_takes_the_file_that_was_meant(host: HostDirectory) -> None:
    client = host.client()
    (host.root / "d").mkdir()
    (host.root / "d" / "f").write_bytes(b"one")
    base = client.lookup(b"d")
    known = client.lookup(b"f", base.handle).attr
    assert known is not None
    (host.root / "other").write_bytes(b"two")
    (host.root / "other").rename(host.root / "d" / "f")

    def remove(name: bytes, ino: int, ctime: int, handle: int = base.handle) -> bytes:
        return bytes(client.connect(ConnectRequest(Connect.REMOVE, 0, handle, name, ino=ino, ctime=ctime)))

    for missing in b"f", b"g":
        with fails(errno.ENOENT):
            remove(missing, known.ino, known.ctime)
    assert (host.root / "d" / "f").read_bytes() == b"two"
    with fails(errno.EISDIR):
        remove(b"d", os.stat(host.root / "d").st_ino, known.ctime, 0)
    now = os.stat(host.root / "d" / "f")
    assert remove(b"f", now.st_ino, now.st_ctime_ns) == b""
    assert not list((host.root / "d").iterdir())


def test_remove_takes_no_file_that_was_made_since_under_the_same_number(host: HostDirectory) -> None:
    client = host.client()
    path = host.root / "f"
    path.write_bytes(b"")
    fd = os.open(path, os.O_PATH)
    born = birth_ns(fd)
    os.close(fd)
    if born is None:
        pytest.skip("this file system does not tell when files were made")
    before = os.stat(path)

    def remove(ctime: int) -> None:
        client.connect(ConnectRequest(Connect.REMOVE, 0, 0, b"f", ino=before.st_ino, ctime=ctime))

    while os.stat(path).st_ctime_ns == before.st_ctime_ns:
        # The clock of the file system's times goes in steps.
        path.chmod(0o600)
    with fails(errno.ENOENT):
        remove(born - 1)
    assert path.exists()
    remove(before.st_ctime_ns)
    assert not path.exists()


def test_directories(host: HostDirectory) -> None:
    client = host.client()
    made = Entry.parse(client.name(Connect.MKDIR, b"d", mode=0o777, umask=0o027))
    assert made.handle
    assert made.attr is not None
    assert made.attr.mode == stat.S_IFDIR | 0o750
    client.name(Connect.MKDIR, b"e", made.handle, mode=0o700)
    assert client.names(b"d") == {b"e"}
    with fails(errno.EEXIST):
        client.name(Connect.MKDIR, b"d", mode=0o700)
    with fails(errno.ENOTEMPTY):
        client.name(Connect.RMDIR, b"d")
    with fails(errno.EISDIR):
        client.name(Connect.UNLINK, b"d/e")
    client.name(Connect.UNLINK, b"d/e", flags=UNLINK_DIRECTORY)
    client.name(Connect.RMDIR, b"d")
    assert client.names() == set()


def test_links_and_rename(host: HostDirectory) -> None:
    client = host.client()
    made = client.symlink(b"l", b"target \xff")
    assert made.attr is not None
    assert stat.S_ISLNK(made.attr.mode)
    assert bytes(client.name(Connect.READLINK, b"l")) == b"target \xff"
    assert os.readlink(os.fsencode(host.root) + b"/l") == b"target \xff"
    (host.root / "a").write_bytes(b"A")
    (host.root / "b").write_bytes(b"B")
    linked = Entry.parse(client.two(Connect.LINK, b"a", b"a2"))
    assert linked.attr is not None
    assert linked.attr.nlink == 2
    kept = client.lookup(b"a", flags=WANT_HANDLE)
    client.two(Connect.LINK, b"", b"a3", handle=kept.handle)
    assert os.stat(host.root / "a3").st_nlink == 3
    with fails(errno.EEXIST):
        client.two(Connect.RENAME, b"a", b"b", flags=NOREPLACE)
    client.two(Connect.RENAME, b"a", b"b", flags=EXCHANGE)
    assert client.get(b"a") == b"B"
    client.two(Connect.RENAME, b"a", b"b")
    assert client.get(b"b") == b"B"
    (host.root / "d").mkdir()
    directory = client.lookup(b"d")
    client.two(Connect.RENAME, b"b", b"c", handle2=directory.handle)
    assert client.get(b"d/c") == b"B"
    with fails(errno.EINVAL):
        client.two(Connect.RENAME, b"a2", b"x", flags=8)
    client.name(Connect.UNLINK, b"a2")
    assert b"a2" not in client.names()


def test_attributes_by_path_and_by_handle(host: HostDirectory) -> None:
    client = host.client()
    (host.root / "f").write_bytes(b"0123456789")
    when = 1_600_000_000_123_456_789
    change = SetAttr(SET_MODE | SET_UID | SET_GID | SET_SIZE | SET_ATIME | SET_MTIME, 0o4640, 12, 34, 4, when, when + 1)
    attr = client.setattr_path(b"f", change)
    real = os.stat(host.root / "f")
    assert attr == Attr.of(real)
    assert (real.st_mode & 0o7777, real.st_uid, real.st_gid, real.st_size) == (0o4640, 12, 34, 4)
    assert (real.st_atime_ns, real.st_mtime_ns) == (when, when + 1)
    entry = client.open(b"f", os.O_RDWR)
    assert client.setattr(entry.target, entry.ocb, SetAttr(SET_SIZE, size=100)).size == 100
    now = client.setattr(entry.target, entry.ocb, SetAttr(SET_MTIME_NOW))
    assert now.mtime > when + 10
    assert now.atime == when
    assert client.stat(entry.target, entry.ocb) == Attr.of(os.stat(host.root / "f"))
    directory = client.lookup(b"")
    assert client.setattr(directory.target, directory.handle, SetAttr(SET_MODE, 0o711)).mode & 0o7777 == 0o711
    (host.root / "l").symlink_to("f")
    client.setattr_path(b"l", SetAttr(SET_UID | SET_MTIME, uid=5, mtime=when))
    assert os.lstat(host.root / "l").st_uid == 5
    assert os.lstat(host.root / "l").st_mtime_ns == when
    assert os.stat(host.root / "f").st_uid == 12
    with fails(errno.EOPNOTSUPP):
        client.setattr_path(b"l", SetAttr(SET_MODE, 0o600))
    with fails(errno.EISDIR):
        client.setattr_path(b"", SetAttr(SET_SIZE))
    with fails(errno.EFBIG):
        client.setattr_path(b"f", SetAttr(SET_SIZE, size=1 << 63))


def test_statfs_sync_space_and_access(host: HostDirectory) -> None:
    client = host.client()
    real = os.statvfs(host.root)
    found = client.statfs(b"")
    assert (found.blocks, found.bsize, found.namelen) == (real.f_blocks, real.f_bsize, real.f_namemax)
    entry = client.open(b"f", os.O_CREAT | os.O_RDWR)
    client.space(entry.target, entry.ocb, 0, 0, 5000)
    assert client.stat(entry.target, entry.ocb).size == 5000
    before = host.fs.counters["threaded"]
    client.io(entry.target, Io.SYNC, entry.ocb)
    client.io(entry.target, Io.SYNC, entry.ocb, SYNC_DATA_ONLY)
    assert host.fs.counters["threaded"] == before + 2
    client.name(Connect.ACCESS, b"f", mode=os.R_OK)
    with fails(errno.EACCES):
        client.name(Connect.ACCESS, b"f", mode=os.X_OK)
    with fails(errno.ENOSYS):
        client.send(entry.target, (pack_notify(entry.ocb, NOTIFY_ARM, POLL_ALL),))
    with fails(errno.ENOSYS):
        client.send(entry.target, (pack_devctl(entry.ocb, 0x5401),))


def test_a_first_message_may_ask_for_a_delegation(host: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"it")
    entry = Entry.parse(host.client().connect(ConnectRequest(Connect.OPEN, OPEN_DELEGATE, 0, b"f")))
    assert entry.ocb


def test_special_files_are_listed_and_sockets_never_opened(host: HostDirectory) -> None:
    os.mkfifo(host.root / "fifo")
    os.mknod(host.root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    client = host.client()
    socket = Entry.parse(client.name(Connect.MKNOD, b"sock", mode=stat.S_IFSOCK | 0o600))
    assert socket.attr is not None
    assert stat.S_ISSOCK(socket.attr.mode)
    listed = {entry.name: entry for entry in client.list(attrs=True)}
    assert stat.S_ISFIFO(listed[b"fifo"].mode)
    null = listed[b"null"].attr
    assert null is not None
    assert null.rdev == os.makedev(1, 3)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_CREAT):
        with fails(errno.ENXIO):
            client.open(b"sock", flags)
    kept = client.lookup(b"sock", flags=WANT_HANDLE)
    with fails(errno.ENXIO):
        client.open(b"", handle=kept.handle)
    with fails(errno.EEXIST):
        client.open(b"fifo", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    with fails(errno.ENOTDIR):
        client.open(b"fifo", os.O_DIRECTORY)


def test_listing_goes_on_where_it_was_under_concurrent_change(host: HostDirectory) -> None:
    names = {b"name-%05d" % number for number in range(3000)}
    for name in names:
        (host.root / name.decode()).touch()
    client = host.client()
    entry = client.open(b"", os.O_DIRECTORY)
    seen: list[bytes] = []
    cookie = 0
    turn = 0
    while True:
        found = client.readdir(entry.target, entry.ocb, cookie, 4096)
        if not found:
            break
        seen += [item.name for item in found]
        cookie = found[-1].cookie
        turn += 1
        victim = b"name-%05d" % (turn * 17)
        if victim in names:
            (host.root / victim.decode()).unlink()
            names.discard(victim)
        (host.root / f"new-{turn}").touch()
    assert names <= set(seen)
    assert len(seen) == len(set(seen))
    again = client.readdir(entry.target, entry.ocb, 0, 4096)
    assert again
    resumed = client.readdir(entry.target, entry.ocb, again[9].cookie, 4096)
    assert resumed[0].name == again[10].name
    with fails(errno.EINVAL):
        client.readdir(entry.target, entry.ocb, 0, 8)


def test_open_brings_the_first_entries_and_says_where_the_end_is(host: HostDirectory) -> None:
    for number in range(300):
        (host.root / f"f{number}").write_bytes(b"x" * number)
    client = host.client()
    names: set[bytes] = set()

    entry = client.open(b"", os.O_DIRECTORY, prefetch=32 * 1024)
    found = parse_dirents(entry.data, True)
    assert 100 < len(found) < 300
    while True:
        for item in found:
            assert item.attr is not None
            assert item.attr.size == int(item.name[1:])
            names.add(item.name)
        if found[-1].cookie == COOKIE_END:
            break
        found = client.readdir(entry.target, entry.ocb, found[-1].cookie, 8192, attrs=True)

    assert len(names) == 300
    assert client.readdir(entry.target, entry.ocb, COOKIE_END, 8192) == []
    # Without attributes too, and again from the start.
    assert client.readdir(entry.target, entry.ocb, 0, 1 << 20)[-1].cookie == COOKIE_END
    (host.root / "empty").mkdir()
    assert client.open(b"empty", os.O_DIRECTORY, prefetch=4096).data == b""
    assert client.open(b"", os.O_DIRECTORY).data == b""
    assert client.open(b"", os.O_DIRECTORY, prefetch=8).data == b"", "no room for one is no reason not to open"


def test_listing_of_many_keeps_little_in_memory(host: HostDirectory) -> None:
    for number in range(20_000):
        os.mknod(host.root / f"{number}")
    client = host.client()
    entry = client.open(b"", os.O_DIRECTORY)
    handle = host.fs.manager.table.handles[entry.ocb]
    count, cookie = 0, 0
    while found := client.readdir(entry.target, entry.ocb, cookie, 65536, attrs=True):
        count += len(found)
        cookie = found[-1].cookie
        assert all(item.attr is not None and item.attr.ino == item.ino for item in found)
        stream = getattr(handle, "stream")  # noqa: B009
        assert len(stream._records) < 1000
    assert count == 20_000
