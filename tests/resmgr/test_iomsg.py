"""Formats of connect and I/O messages: both ways, and cut at every length."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable

import pytest

from resmgr import handlelist, iorequest
from resmgr.errors import BadMessage, ResmgrError
from resmgr.iomsg import ATTR, ENTRY, Attr, Connect, DirEntry, Entry, Io, StatFs, Target, pack_dirent, parse_dirents, request
from resmgr.iorequest import ConnectRequest, SetAttr, XattrRequest, check_path, parse_connect

SEED = 5


def attr(rng: random.Random) -> Attr:
    bits = (64, 32, 32, 32, 32, 64, 64, 64, 32, 63, 63, 63, 63)
    return Attr(*(rng.getrandbits(count) for count in bits))


def name(rng: random.Random) -> bytes:
    return bytes(rng.choice([*range(1, 46), *range(48, 256)]) for _ in range(rng.randrange(3, 40)))


def connect(rng: random.Random, kind: Connect) -> ConnectRequest:
    path = b"/".join(name(rng) for _ in range(rng.randrange(1, 4)))
    made = ConnectRequest(kind, rng.getrandbits(32), rng.getrandbits(64), path)
    if kind in (Connect.OPEN, Connect.TMPFILE):
        made.mode, made.umask, made.prefetch = (rng.getrandbits(32) for _ in range(3))
    elif kind in (Connect.MKDIR, Connect.MKNOD):
        made.mode, made.umask, made.rdev = rng.getrandbits(32), rng.getrandbits(32), rng.getrandbits(64)
    elif kind in (Connect.RENAME, Connect.LINK):
        made.handle2, made.path2 = rng.getrandbits(64), name(rng)
    elif kind == Connect.SYMLINK:
        made.path2 = b"../" + name(rng)
    elif kind == Connect.SETATTR:
        made.change = SetAttr(rng.getrandbits(8), *(rng.getrandbits(bits) for bits in (32, 32, 32, 64, 63, 63)))
    elif kind == Connect.REMOVE:
        made.ino, made.ctime = rng.getrandbits(64), rng.getrandbits(63)
    elif kind == Connect.ACCESS:
        made.mode = rng.getrandbits(3)
    elif kind == Connect.XATTR:
        made.flags = rng.randrange(3)
        made.xattr = XattrRequest(2, name(rng), rng.randbytes(rng.randrange(40)), 0, made.flags)
    return made


def fields(request: ConnectRequest) -> tuple[object, ...]:
    one, two = (request.subtype, request.flags, request.handle, request.path, request.mode), (request.umask, request.rdev, request.prefetch)
    return (
        *one,
        *two,
        request.handle2,
        request.path2,
        request.ino,
        request.ctime,
        request.change,
        request.xattr,
        request.watch,
        request.after,
    )


@pytest.mark.parametrize("kind", list(Connect))
def test_connect_round_trip_and_truncation(kind: Connect) -> None:
    rng = random.Random(f"{SEED}/{kind}")
    for _ in range(200):
        made = connect(rng, kind)
        whole = made.pack()
        assert fields(parse_connect(whole)) == fields(made)
        assert fields(parse_connect(memoryview(whole))) == fields(made)
        for length in range(len(whole)):
            try:
                parse_connect(whole[:length])
            except BadMessage:
                pass


def test_connect_bytes() -> None:
    made = ConnectRequest(Connect.OPEN, os.O_RDWR, 0x1122, b"a/b", 0o644, 0o22, 0, 4096)
    assert made.pack().hex(" ", -4) == "01000002 00000002 00000000 00001122 000001a4 00000012 00001000 612f62"
    made = ConnectRequest(Connect.RENAME, 1, 2, b"old", handle2=3, path2=b"new")
    assert made.pack().hex() == "0100000500000001" + "0000000000000002" + "0000000000000003" + "00000003" + "0000" + b"oldnew".hex()


def test_random_bytes_raise_only_what_is_said() -> None:
    rng = random.Random(SEED)
    head = [request(Io.CONNECT, kind) for kind in range(20)]
    parsers: list[Callable[[bytes], object]] = [
        parse_connect,
        iorequest.parse_read,
        iorequest.parse_write,
        iorequest.parse_readdir,
        iorequest.parse_space,
        iorequest.parse_devctl,
        iorequest.parse_copy,
        iorequest.parse_seek,
        iorequest.parse_xattr,
        handlelist.parse_close,
        Attr.parse,
        Entry.parse,
        StatFs.parse,
        lambda data: parse_dirents(data, True),
        lambda data: parse_dirents(data, False),
    ]
    for _ in range(3000):
        data = rng.choice(head) + rng.randbytes(rng.randrange(120))
        for parse in parsers:
            try:
                parse(data)
            except BadMessage:
                pass
            except ResmgrError as error:
                if error.errno not in (errno.ENAMETOOLONG, errno.ERANGE, errno.E2BIG, errno.EINVAL):
                    raise


def test_paths() -> None:
    for good in (b"", b"a", b"a/b", b"...", b"..a", b"\xff", b"x" * 255, b"/".join([b"x" * 255] * 16)):
        assert check_path(good) == good
    for bad in (b"/", b"/a", b"a/", b"a//b", b".", b"..", b"a/..", b"../a", b"a/./b", b"a\0b"):
        with pytest.raises(BadMessage):
            check_path(bad)
    for long in (b"x" * 256, b"a/" + b"x" * 256, b"/".join([b"y" * 255] * 17)):
        with pytest.raises(ResmgrError) as caught:
            check_path(long)
        assert caught.value.errno == errno.ENAMETOOLONG
    with pytest.raises(BadMessage):
        parse_connect(request(Io.CONNECT, Connect.SYMLINK) + b"\0" * 20000)


def test_io_requests() -> None:
    assert iorequest.parse_read(iorequest.pack_read(1, 2, 3)) == (2, 3)
    assert iorequest.parse_write(iorequest.pack_write(1, 1 << 63, 3) + b"abc") == (1 << 63, 3)
    assert iorequest.parse_readdir(iorequest.pack_readdir(1, 2, 3, 1)) == (2, 3)
    assert iorequest.parse_space(iorequest.pack_space(1, 2, 3, 4)) == (2, 3, 4)
    command, data = iorequest.parse_devctl(iorequest.pack_devctl(1, 2, b"xyz"))
    assert (command, bytes(data)) == (2, b"xyz")
    assert iorequest.parse_copy(iorequest.pack_copy(1, 2, 3, 4, 5)) == (2, 3, 4, 5)
    assert iorequest.parse_seek(iorequest.pack_seek(1, 4, 9)) == (4, 9)
    assert handlelist.parse_close(handlelist.pack_close(7)) == [7]
    assert handlelist.parse_close(handlelist.pack_close(7, 8, 9)) == [7, 8, 9]
    for whole, parse in (
        (iorequest.pack_read(1, 2, 3), iorequest.parse_read),
        (iorequest.pack_write(1, 2, 3), iorequest.parse_write),
        (iorequest.pack_readdir(1, 2, 3), iorequest.parse_readdir),
        (iorequest.pack_space(1, 2, 3, 4), iorequest.parse_space),
        (iorequest.pack_devctl(1, 2, b"xyz"), iorequest.parse_devctl),
        (iorequest.pack_copy(1, 2, 3, 4, 5), iorequest.parse_copy),
        (iorequest.pack_seek(1, 3, 4), iorequest.parse_seek),
        (XattrRequest(1, b"user.a").pack(1), iorequest.parse_xattr),
    ):
        check: Callable[[bytes], object] = parse
        for length in range(len(whole)):
            with pytest.raises(BadMessage):
                check(whole[:length])
    batch = handlelist.pack_close(7, 8)
    for length in [*range(16), *range(17, len(batch))]:
        with pytest.raises(BadMessage):
            handlelist.parse_close(batch[:length])
    with pytest.raises(BadMessage):
        handlelist.parse_close(request(Io.CLOSE, 0, 1, 1) + bytes(8 * (handlelist.CLOSE_MAX + 1)))


def test_entries_round_trip_and_truncation() -> None:
    rng = random.Random(SEED)
    for _ in range(100):
        entry = Entry(
            Target(*(rng.getrandbits(32) for _ in range(3))), rng.getrandbits(64), rng.getrandbits(64), attr(rng), rng.randbytes(9)
        )
        whole = entry.pack()
        parsed = Entry.parse(whole)
        assert (parsed.target, parsed.handle, parsed.ocb, parsed.attr, bytes(parsed.data)) == (
            entry.target,
            entry.handle,
            entry.ocb,
            entry.attr,
            entry.data,
        )
        for length in range(len(whole)):
            with pytest.raises(BadMessage):
                Entry.parse(whole[:length])
    redirect = Entry(Target(1, 2, 3), 4, 0, None, rest=b"a/b")
    assert Entry.parse(redirect.pack()) == redirect
    assert redirect.redirect
    assert len(Entry(Target(0, 0, 0), 0, 0, attr(rng)).pack()) == ENTRY.size + ATTR.size


@pytest.mark.parametrize("attrs_too", [False, True])
def test_directory_entries(attrs_too: bool) -> None:
    rng = random.Random(SEED)
    entries = [
        DirEntry(name(rng), rng.getrandbits(64), rng.getrandbits(64), rng.getrandbits(16), attr(rng) if attrs_too else None)
        for _ in range(50)
    ]
    packed = [pack_dirent(entry) for entry in entries]
    whole = b"".join(packed)
    assert parse_dirents(whole, attrs_too) == entries
    ends = {sum(map(len, packed[:count])) for count in range(len(packed))}
    for length in range(len(whole)):
        if length in ends:
            assert parse_dirents(whole[:length], attrs_too) == entries[: sorted(ends).index(length)]
        else:
            with pytest.raises(BadMessage):
                parse_dirents(whole[:length], attrs_too)


def test_attributes_of_a_real_file() -> None:
    status = os.stat(__file__)
    made = Attr.of(status)
    assert Attr.parse(made.pack()) == made
    assert (made.size, made.mtime, made.change) == (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    space = StatFs(1, 2, 3, 4, 5, 6, 7, 8)
    assert StatFs.parse(space.pack()) == space
    with pytest.raises(BadMessage):
        SetAttr.parse(SetAttr(1 << 20).pack(), 0)


def test_extended_attribute_requests() -> None:
    asked = XattrRequest(2, b"user.a", b"value", 0, 1)
    assert iorequest.parse_xattr(asked.pack(7)) == (b"", asked)
    assert iorequest.parse_xattr(asked.pack(7, b"d/f")) == (b"d/f", asked)
    bad = [
        XattrRequest(0, b"n"),
        XattrRequest(6),
        XattrRequest(1),
        XattrRequest(3, b"n"),
        XattrRequest(1, b"n", b"v"),
        XattrRequest(2, b"n\0"),
    ]
    for request_ in [*bad, XattrRequest(2, b"n", flags=8)]:
        with pytest.raises(BadMessage):
            iorequest.parse_xattr(request_.pack(7))
    for request_, code in (
        (XattrRequest(1, b"n" * 256), errno.ERANGE),
        (XattrRequest(2, b"n", bytes(65537)), errno.E2BIG),
        (XattrRequest(2, b"n", flags=3), errno.EINVAL),
        (XattrRequest(4, b"n", flags=1), errno.EINVAL),
    ):
        with pytest.raises(ResmgrError) as caught:
            iorequest.parse_xattr(request_.pack(7))
        assert caught.value.errno == code
    assert iorequest.parse_xattr(XattrRequest(1, b"n", size=1 << 31).pack(7))[1].size == 65536
    with pytest.raises(BadMessage):
        iorequest.parse_xattr(XattrRequest(1, b"n").pack(7, b"../up"))
