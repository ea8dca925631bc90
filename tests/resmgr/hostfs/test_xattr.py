"""Extended attributes, holes, copies and files without a name, by messages, with requests that no kernel sends among them."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from resmgr.access import Export, UserRule, Verb
from resmgr.errors import ResmgrError
from resmgr.hostfs.xattr import WHICH_MAX
from resmgr.iomsg import (
    BIRTH,
    COPY_MAX,
    LENGTH,
    OFFSET,
    SEEK_DATA,
    SEEK_HOLE,
    STAT_BIRTH,
    WANT_BIRTH,
    WANT_HANDLE,
    XATTR_GET,
    XATTR_LIST,
    XATTR_REMOVE,
    XATTR_SET,
    XATTR_WHICH,
    Connect,
    Entry,
    Io,
    request,
)
from resmgr.iorequest import ConnectRequest, XattrRequest, pack_copy, pack_seek
from resmgr.owners import NOBODY
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.ioclient import IoClient


def ask(client: IoClient, host: HostDirectory, message: bytes) -> tuple[int, bytes]:
    """Status and reply of a message to the served directory."""
    try:
        status, reply = client.send(host.fs.target, (message,), 1 << 17)
    except ResmgrError as error:
        return -(error.errno or 0), b""
    return status, bytes(reply)


def xattr(client: IoClient, host: HostDirectory, asked: XattrRequest, path: bytes | None = None, handle: int = 0) -> tuple[int, bytes]:
    return ask(client, host, asked.pack(handle, path))


def test_by_name_and_by_handle(host: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"x")
    client = host.client()
    assert xattr(client, host, XattrRequest(XATTR_SET, b"user.a", b"one", flags=os.XATTR_CREATE), b"f") == (0, b"")
    assert os.getxattr(host.root / "f", "user.a") == b"one"
    assert xattr(client, host, XattrRequest(XATTR_GET, b"user.a", size=3), b"f") == (0, b"one")
    assert xattr(client, host, XattrRequest(XATTR_GET, b"user.a", size=2), b"f") == (-errno.ERANGE, b"")
    assert xattr(client, host, XattrRequest(XATTR_GET, b"user.a"), b"f") == (0, LENGTH.pack(3))
    handle = client.lookup(b"f", flags=WANT_HANDLE).handle
    assert xattr(client, host, XattrRequest(XATTR_SET, b"user.long", b"v" * 3000), handle=handle) == (0, b"")
    status, listed = xattr(client, host, XattrRequest(XATTR_LIST, size=100), handle=handle)
    assert (status, sorted(listed.split(b"\0"))) == (0, [b"", b"user.a", b"user.long"])
    assert xattr(client, host, XattrRequest(XATTR_REMOVE, b"user.a"), handle=handle) == (0, b"")
    assert xattr(client, host, XattrRequest(XATTR_REMOVE, b"user.a"), b"f") == (-errno.ENODATA, b"")


def test_requests_that_make_no_sense(host: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"x")
    client = host.client()
    handle = client.lookup(b"f", flags=WANT_HANDLE).handle
    before = host.fs.counters["bad_message"]
    bad = [request(Io.XATTR, 0, 0, handle), XattrRequest(9, b"n").pack(handle), XattrRequest(XATTR_GET).pack(handle)]
    bad += [request(Io.SEEK, 0, 0, handle), pack_seek(handle, 0, 0), request(Io.COPY, 0, 0, handle) + bytes(20)]
    assert [ask(client, host, message)[0] for message in bad] == [-errno.EBADMSG] * len(bad)
    assert host.fs.counters["bad_message"] == before + len(bad)
    assert xattr(client, host, XattrRequest(XATTR_SET, b"user.a", bytes(65537)), handle=handle)[0] == -errno.E2BIG
    assert xattr(client, host, XattrRequest(XATTR_GET, b"user.a"), b"../f")[0] == -errno.EBADMSG


def test_exports_are_kept(host: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"x")
    os.setxattr(host.root / "f", "user.a", b"1")
    host.fs.set_policy(host.policy(exports=(Export("/", verbs={Verb.READ}),)))
    reader = host.remote("n2")
    assert xattr(reader, host, XattrRequest(XATTR_GET, b"user.a", size=9), b"f") == (0, b"1")
    for asked in (XattrRequest(XATTR_SET, b"user.a", b"2"), XattrRequest(XATTR_REMOVE, b"user.a")):
        assert xattr(reader, host, asked, b"f")[0] == -errno.EROFS
    with pytest.raises(ResmgrError, match=os.strerror(errno.EROFS)):
        reader.connect(ConnectRequest(Connect.TMPFILE, os.O_RDWR, 0, b"", 0o600))
    host.fs.set_policy(host.policy(exports=(Export("/", verbs={Verb.READ, Verb.WRITE}),)))
    writer = host.remote("n3")
    assert xattr(writer, host, XattrRequest(XATTR_SET, b"security.capability", b"\1\0\0\2" + bytes(16)), b"f")[0] == -errno.EPERM


def test_ids_in_acls_are_translated_as_owners_are(host: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"x")
    os.chown(host.root / "f", 1500, 1500)
    exports = (Export("/", verbs={Verb.READ, Verb.WRITE}),)
    host.fs.set_policy(host.policy(exports, users=(UserRule("all:1500"),)))
    client = host.remote("n2", 700, gid=700)

    def acl(number: int) -> bytes:
        entries = ((1, 6, 0xFFFFFFFF), (2, 4, number), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
        return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)

    assert xattr(client, host, XattrRequest(XATTR_SET, b"system.posix_acl_access", acl(700)), b"f") == (0, b"")
    assert os.getxattr(host.root / "f", "system.posix_acl_access") == acl(1500)
    assert xattr(client, host, XattrRequest(XATTR_GET, b"system.posix_acl_access", size=999), b"f") == (0, acl(700))
    assert xattr(client, host, XattrRequest(XATTR_SET, b"system.posix_acl_access", acl(31000)), b"f")[0] == -errno.EINVAL
    # What somebody whom the map does not know may do is not nobody's after it was read and written back.
    os.setxattr(host.root / "f", "system.posix_acl_access", acl(31000))
    status, told = xattr(client, host, XattrRequest(XATTR_GET, b"system.posix_acl_access", size=999), b"f")
    assert (status, told) == (0, acl(NOBODY))
    assert xattr(client, host, XattrRequest(XATTR_SET, b"system.posix_acl_access", told), b"f")[0] == -errno.EINVAL
    assert os.getxattr(host.root / "f", "system.posix_acl_access") == acl(31000)


def test_which_entries_have_any(host: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (host.root / name).write_bytes(b"")
    os.setxattr(host.root / "b", "user.x", b"")
    client = host.client()
    which = XattrRequest(XATTR_WHICH, size=65536)
    before = host.fs.counters["threaded"]
    assert xattr(client, host, which, b"") == (0, b"b\0")
    assert host.fs.counters["threaded"] == before + 1, "a directory may have thousands of entries"
    assert xattr(client, host, which, b"a")[0] == -errno.ENOTDIR
    monkeypatch.setattr(os, "listdir", lambda path: [b"%d" % n for n in range(WHICH_MAX + 1)])
    assert xattr(client, host, which, b"")[0] == -errno.EFBIG


def test_holes_and_copies(host: HostDirectory) -> None:
    with open(host.root / "f", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"data")
    (host.root / "g").write_bytes(b"")
    client = host.client()
    source = client.open(b"f", os.O_RDONLY).ocb
    target = client.open(b"g", os.O_WRONLY).ocb
    assert ask(client, host, pack_seek(source, SEEK_DATA, 0)) == (0, OFFSET.pack(1 << 19))
    assert ask(client, host, pack_seek(source, SEEK_HOLE, 0)) == (0, OFFSET.pack(0))
    assert ask(client, host, pack_seek(source, SEEK_DATA, 1 << 20))[0] == -errno.ENXIO
    assert ask(client, host, pack_seek(source, SEEK_DATA, 1 << 63))[0] == -errno.ENXIO
    assert ask(client, host, pack_copy(source, target, 1 << 19, 2, COPY_MAX * 2)) == (1 << 19, b"")
    assert (host.root / "g").read_bytes()[:6] == b"\0\0data"
    for handles in ((source, source), (target, target), (target, source), (source, 12345)):
        assert ask(client, host, pack_copy(*handles, 0, 0, 5))[0] == -errno.EBADF
    assert ask(client, host, pack_copy(source, target, 0, (1 << 63) - 2, 5))[0] == -errno.EFBIG
    other = host.client(1234)
    assert ask(other, host, pack_copy(source, target, 0, 0, 5))[0] == -errno.EBADF, "handles of somebody else"


def test_a_file_without_a_name(host: HostDirectory) -> None:
    client = host.client()
    entry = Entry.parse(client.connect(ConnectRequest(Connect.TMPFILE, os.O_RDWR, 0, b"", 0o640, 0o022)))
    assert entry.attr is not None
    assert (entry.attr.nlink, entry.attr.mode) == (0, 0o100640)
    client.write(host.fs.target, entry.ocb, 0, b"now")
    client.connect(ConnectRequest(Connect.LINK, 0, entry.ocb, b"", handle2=0, path2=b"named"))
    assert (host.root / "named").read_bytes() == b"now"
    for flags, code in ((os.O_RDONLY, errno.EINVAL), (os.O_RDWR | os.O_DIRECTORY, 0)):
        status, _ = ask(client, host, ConnectRequest(Connect.TMPFILE, flags, 0, b"", 0o640).pack())
        assert status == -code
    status, _ = ask(client, host, ConnectRequest(Connect.TMPFILE, os.O_RDWR, 0, b"named", 0o640).pack())
    assert status == -errno.ENOTDIR


def test_birth_time_is_told_to_who_asks(host: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"x")
    client = host.client()
    plain, asked = client.lookup(b"f"), client.lookup(b"f", flags=WANT_BIRTH)
    assert plain.data == b""
    (born,) = BIRTH.unpack(asked.data)
    assert abs(born - os.stat(host.root / "f").st_mtime_ns) < 10**10
    ocb = client.open(b"f", os.O_RDONLY).ocb
    status, reply = ask(client, host, request(Io.STAT, 0, STAT_BIRTH, ocb))
    assert (status, reply[-8:]) == (0, asked.data)
