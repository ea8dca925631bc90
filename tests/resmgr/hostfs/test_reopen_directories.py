"""IDENTIFY and REOPEN of directories: as what is listed, and as the base of names."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from resmgr.access import Export
from resmgr.errors import BadMessage
from resmgr.handlelist import pack_identify, pack_tokens, parse_identify, parse_tokens
from resmgr.hostfs.anchors import anchors, points, related
from resmgr.hostfs.syscalls import name_to_handle
from resmgr.iomsg import IDENTIFY_BATCH, IDENTIFY_MAX, Connect, Entry, Io
from resmgr.iorequest import ConnectRequest
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.ioclient import IoClient, fails

BASE = os.O_PATH | os.O_DIRECTORY


def token_of(client: IoClient, path: bytes) -> bytes:
    entry = client.lookup(path)
    return bytes(client.io(entry.target, Io.IDENTIFY, entry.handle))


def reopen(client: IoClient, token: bytes, path: bytes = b"", flags: int = BASE, handle: int = 0) -> Entry:
    return Entry.parse(client.connect(ConnectRequest(Connect.REOPEN, flags, handle, path, path2=token)))


def test_one_that_was_moved_is_a_base_again_and_can_be_listed(host: HostDirectory, again: HostDirectory) -> None:
    (host.root / "a/b").mkdir(parents=True)
    (host.root / "a/b/f").write_bytes(b"it")
    token = token_of(host.client(), b"a/b")
    (host.root / "a").rename(host.root / "c")
    (host.root / "c/b").rename(host.root / "d")
    client = again.client()
    entry = reopen(client, token)
    assert entry.handle
    assert not entry.ocb
    found = client.lookup(b"f", entry.handle).attr
    assert found is not None
    assert found.size == 2
    listed = reopen(client, token, flags=os.O_RDONLY | os.O_DIRECTORY)
    assert listed.ocb == listed.handle != 0
    assert reopen(client, token, b"a/b").attr == reopen(client, token, b"d").attr == entry.attr


def test_another_one_by_the_old_name_is_not_it(host: HostDirectory, again: HostDirectory) -> None:
    (host.root / "d").mkdir()
    token = token_of(host.client(), b"d")
    for _ in range(50):
        # Most file systems use the inode number again.
        (host.root / "d").rmdir()
        (host.root / "d").mkdir()
        for path in b"", b"d":
            with fails(errno.ESTALE):
                reopen(again.client(), token, path)
        with fails(errno.ESTALE):
            reopen(again.client(), token, b"", handle=again.client().lookup(b"d").handle)
    (host.root / "d").rmdir()
    (host.root / "d").write_bytes(b"a file")
    with fails(errno.ESTALE):
        reopen(again.client(), token, b"d")


def test_one_that_was_moved_out_is_refused(host: HostDirectory, again: HostDirectory, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in "open", "closed":
        (host.root / name).mkdir()
    (host.root / "open/d").mkdir()
    policy = host.policy((Export("/open", ["read"], nodes=["b"]),))
    host.fs.set_policy(policy)
    again.fs.set_policy(policy)
    token = token_of(host.remote("b"), b"open/d")
    assert reopen(again.remote("b"), token).handle
    for place in (host.root / "closed/d", host.root.parent / "outside"):
        (host.root / "open/d").rename(place)
        for flags in BASE, os.O_RDONLY | os.O_DIRECTORY:
            for path in b"", b"open/d":
                with fails(errno.ESTALE):
                    reopen(again.remote("b"), token, path, flags)
        place.rename(host.root / "open/d")
    assert reopen(again.remote("b"), token).handle


def test_rights_are_those_of_now(host: HostDirectory, again: HostDirectory) -> None:
    (host.root / "way/d").mkdir(parents=True)
    (host.root / "way/d").chmod(0o711)
    token = token_of(host.client(4001), b"way/d")
    assert reopen(again.client(4001), token).handle, "a base needs no right to list it"
    with fails(errno.ESTALE):
        reopen(again.client(4001), token, b"", os.O_RDONLY | os.O_DIRECTORY)
    (host.root / "way").chmod(0o700)
    with fails(errno.ESTALE):
        reopen(again.client(4001), token)


def test_a_file_is_no_base(host: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"it")
    client = host.client()
    entry = client.open(b"f", os.O_RDONLY)
    token = bytes(client.io(entry.target, Io.IDENTIFY, entry.ocb))
    for path in b"", b"f":
        with fails(errno.ESTALE):
            reopen(client, token, path)


def test_forged_tokens_and_those_of_others(host: HostDirectory) -> None:
    (host.root / "d").mkdir()
    (host.root / "e").mkdir()
    host.fs.set_policy(host.policy((Export("/", ["read"]),)))
    token, other = token_of(host.remote("b"), b"d"), token_of(host.remote("b"), b"e")
    forged = (b"", b"x", token[:-1], token + b"\0", other[:-16] + token[-16:], bytes([token[0] ^ 1]) + token[1:])
    for one in forged:
        with fails(errno.ESTALE):
            reopen(host.remote("b"), one)
    with fails(errno.ESTALE):
        reopen(host.remote("c"), token)
    assert host.fs.counters["reopen_forged"] == len(forged) + 1


def test_the_root_of_another_file_system_is_not_it(host: HostDirectory, again: HostDirectory) -> None:
    """It has the same handle, and after another boot perhaps the same device number."""
    (host.root / "d").mkdir()
    token = token_of(host.client(), b"d")
    content = token[:-16]
    of = host.fs.reopening
    before = of._seal(b"\1" + content[1:29] + content[37:], "")
    other = of._seal(content[:29] + struct.pack("!Q", struct.unpack_from("!Q", content, 29)[0] ^ 1) + content[37:], "")
    again.fs.reopening._boot = bytes(16)
    for path in b"", b"d":
        assert reopen(again.client(), token, path).handle
        assert reopen(again.client(), before, path).handle, "of a daemon of before"
        with fails(errno.ESTALE):
            reopen(again.client(), other, path)


def test_several_are_asked_for_at_once(host: HostDirectory) -> None:
    (host.root / "d").mkdir()
    (host.root / "f").write_bytes(b"it")
    client = host.client()
    d, f = client.lookup(b"d"), client.lookup(b"f", flags=1)
    host.fs.set_policy(host.policy((Export("/", ["read"]),)))
    stranger = host.remote("b").lookup(b"d").handle
    asked = (d.handle, 999999, f.handle, stranger, d.handle)
    status, reply = client.send(d.target, [pack_identify(*asked)])
    assert status == 0
    first, *others, last = parse_tokens(reply, len(asked))
    assert others == [b"", b"", b""]
    assert first == last == token_of(client, b"d")


def test_the_messages_at_every_length() -> None:
    packed = pack_identify(1, 2, 3)
    assert parse_identify(packed) == [1, 2, 3]
    assert parse_identify(pack_identify(7)) == [7]
    assert parse_identify(pack_identify(*range(IDENTIFY_MAX))) == list(range(IDENTIFY_MAX))
    for length in set(range(len(packed))) - {16, 24, 32}:
        with pytest.raises(BadMessage):
            parse_identify(packed[:length])
    with pytest.raises(BadMessage):
        parse_identify(pack_identify(*range(IDENTIFY_MAX + 1)))
    assert struct.unpack_from("!HHI", packed)[2] == IDENTIFY_BATCH
    reply = pack_tokens([b"abc", b"", b"d"])
    assert parse_tokens(reply, 3) == [b"abc", b"", b"d"]
    for wrong, count in ((reply[:-1], 3), (reply, 2), (reply, 4), (b"", 1), (b"\xffabc", 1)):
        with pytest.raises(BadMessage):
            parse_tokens(wrong, count)


def test_where_a_file_system_is_mounted() -> None:
    device = os.makedev(8, 1)
    lines = (
        b"1 0 8:1 / / rw - ext4 a rw\n2 1 8:1 /sub /bind rw - ext4 a rw\n3 1 8:2 / /x rw - ext4 b rw\nbad\n"
        b"4 1 8:1 / /a\\040b rw - ext4 a rw\n"
    )
    assert points(lines, device) == [b"/", b"/a\\040b", b"/bind"]
    assert related(b"/", b"/srv/")
    assert related(b"/srv/x", b"/srv/")
    assert related(b"/srv", b"/srv/")
    assert not related(b"/srvx", b"/srv/")
    device = os.stat("/proc").st_dev
    found = [(os.fstat(fd).st_dev, os.stat(point).st_dev) for fd, point in anchors(device, b"/proc/")]
    assert found
    assert set(found) == {(device, device)}
    assert not list(anchors(os.makedev(4095, 9), b"/"))


def test_what_is_mounted_there_is_found_with_its_root(host: HostDirectory) -> None:
    (host.root / "m/d").mkdir(parents=True)
    top = os.fsencode(host.root) + b"/"
    anchor = os.open(host.root / "m", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for path in b"m", b"m/d":
            fd = os.open(top + path, os.O_PATH)
            handle = name_to_handle(fd)
            os.close(fd)
            assert host.fs.reopening._whereabouts(iter([(anchor, top + b"m/")]), *handle, top) == path
    finally:
        os.close(anchor)


def test_a_server_that_could_not_find_them_gives_none(host: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(anchor: int, kind: int, data: bytes) -> int:
        raise PermissionError(errno.EPERM, "CAP_DAC_READ_SEARCH")

    monkeypatch.setattr("resmgr.hostfs.syscalls.open_by_handle", refused)
    (host.root / "d").mkdir()
    with fails(errno.EOPNOTSUPP):
        token_of(host.client(), b"d")
