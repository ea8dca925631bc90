"""IDENTIFY and REOPEN: the same file, wherever it is now, with the rights and exports of now; and nothing else."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from resmgr.access import Export
from resmgr.errors import BadMessage
from resmgr.hostfs.reopen import Reopening
from resmgr.iomsg import TOKEN_MAX, WANT_HANDLE, Connect, Entry, Io
from resmgr.iorequest import ConnectRequest, parse_connect
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.ioclient import IoClient, fails

IN_OPEN = 0x20


def token_of(client: IoClient, path: bytes, flags: int = os.O_RDONLY) -> bytes:
    entry = client.open(path, flags)
    return bytes(client.io(entry.target, Io.IDENTIFY, entry.ocb))


def reopen(client: IoClient, token: bytes, path: bytes, flags: int = os.O_RDONLY, handle: int = 0) -> Entry:
    return Entry.parse(client.connect(ConnectRequest(Connect.REOPEN, flags, handle, path, path2=token)))


def test_the_same_file_by_its_name(host: HostDirectory, again: HostDirectory) -> None:
    (host.root / "d").mkdir()
    (host.root / "d/f").write_bytes(b"abc")
    token = token_of(host.client(), b"d/f", os.O_RDWR)
    client = again.client()
    base = client.lookup(b"d")
    entry = reopen(client, token, b"f", os.O_RDWR, base.handle)
    assert client.read(entry.target, entry.ocb, 0, 10) == b"abc"
    assert client.write(entry.target, entry.ocb, 3, b"d") == 1
    assert (host.root / "d/f").read_bytes() == b"abcd"


def test_numbers_of_before_are_nobodys(host: HostDirectory, again: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"abc")
    (host.root / "g").write_bytes(b"abc")
    old = host.client().open(b"f", os.O_RDWR)
    client = again.client()
    new = client.open(b"g", os.O_RDWR)
    assert new.target == old.target
    for number in range(old.ocb - 3, old.ocb + 4):
        with fails(errno.EBADF):
            client.write(new.target, number, 0, b"x")


def test_nothing_is_made_or_cut(host: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"abc")
    token = token_of(host.client(), b"f")
    reopen(host.client(), token, b"f", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_EXCL)
    assert (host.root / "f").read_bytes() == b"abc"
    (host.root / "f").unlink()
    with fails(errno.ESTALE):
        reopen(host.client(), token, b"f", os.O_RDWR | os.O_CREAT)
    assert not (host.root / "f").exists()


def test_another_file_by_the_old_name_is_not_it(host: HostDirectory, again: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"old")
    token = token_of(host.client(), b"f")
    for _ in range(50):
        # Most file systems use the inode number again.
        (host.root / "f").unlink()
        (host.root / "f").write_bytes(b"new")
        with fails(errno.ESTALE):
            reopen(again.client(), token, b"f")
    assert again.fs.counters["failed"] == 0


def test_one_that_was_moved_is_found(host: HostDirectory, again: HostDirectory) -> None:
    (host.root / "d/e").mkdir(parents=True)
    (host.root / "f").write_bytes(b"it")
    token = token_of(host.client(), b"f")
    (host.root / "f").rename(host.root / "d/e/g")
    (host.root / "f").write_bytes(b"not it")
    client = again.client()
    entry = reopen(client, token, b"f")
    assert client.read(entry.target, entry.ocb, 0, 10) == b"it"

    (host.root / "d/e/g").rename(host.root.parent / "outside")
    with fails(errno.ESTALE):
        reopen(client, token, b"f")


def test_rights_are_those_of_now(host: HostDirectory, again: HostDirectory) -> None:
    (host.root / "d").mkdir(0o755)
    (host.root / "f").write_bytes(b"it")
    (host.root / "f").chmod(0o666)
    token = token_of(host.client(4001), b"f", os.O_RDWR)
    (host.root / "f").chmod(0o444)
    with fails(errno.ESTALE):
        reopen(again.client(4001), token, b"f", os.O_RDWR)
    reopen(again.client(4001), token, b"f")
    (host.root / "f").rename(host.root / "d/f")
    reopen(again.client(4001), token, b"f")
    (host.root / "d").chmod(0o700)
    with fails(errno.ESTALE):
        reopen(again.client(4001), token, b"f")


def test_exports_are_those_of_now(host: HostDirectory, again: HostDirectory) -> None:
    (host.root / "open").mkdir()
    (host.root / "closed").mkdir()
    (host.root / "open/f").write_bytes(b"it")
    both = ["read", "write"]
    policy = host.policy((Export("/open", both, nodes=["b"]),))
    host.fs.set_policy(policy)
    again.fs.set_policy(policy)
    token = token_of(host.remote("b"), b"open/f")
    assert reopen(again.remote("b"), token, b"open/f").ocb
    (host.root / "open/f").rename(host.root / "closed/f")
    with fails(errno.ESTALE):
        reopen(again.remote("b"), token, b"open/f")
    (host.root / "closed/f").rename(host.root / "open/f")
    again.fs.set_policy(host.policy((Export("/closed", both, nodes=["b"]),)))
    with fails(errno.ESTALE):
        reopen(again.remote("b"), token, b"open/f")
    again.fs.set_policy(host.policy((Export("/open", ["read"], nodes=["b"]),)))
    assert reopen(again.remote("b"), token, b"open/f").ocb
    with fails(errno.EROFS):
        reopen(again.remote("b"), token, b"open/f", os.O_RDWR)


@pytest.mark.parametrize("base", ["fifo", "closed"])
def test_a_base_is_opened_as_the_user_and_only_if_it_is_a_directory(host: HostDirectory, base: str) -> None:
    (host.root / "f").write_bytes(b"it")
    (host.root / "f").chmod(0o644)
    os.mkfifo(host.root / "fifo", 0o600)
    (host.root / "closed").mkdir(0o700)
    host.fs.set_policy(host.policy((Export("/", ["read"], devices=[]),)))
    client = host.remote("b", 4001, gid=4001)
    token = token_of(client, b"f")
    handle = client.lookup(base.encode(), flags=WANT_HANDLE).handle
    libc = ctypes.CDLL(None, use_errno=True)
    opens = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        assert libc.inotify_add_watch(opens, bytes(host.root / base), IN_OPEN) > 0
        with fails(errno.ESTALE):
            reopen(client, token, b"x", handle=handle)
        with pytest.raises(BlockingIOError):
            os.read(opens, 4096)
    finally:
        os.close(opens)


def test_tokens_of_others_and_forged_ones(host: HostDirectory, again: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"it")
    (host.root / "g").write_bytes(b"other")
    host.fs.set_policy(host.policy((Export("/", ["read"]),)))
    token = token_of(host.remote("b"), b"f")
    other = token_of(host.remote("b"), b"g")
    for forged in (b"", b"x", token[:-1], token + b"\0", other[:-16] + token[-16:], bytes([token[0] ^ 1]) + token[1:]):
        with fails(errno.ESTALE):
            reopen(host.remote("b"), forged, b"f")
    with fails(errno.ESTALE):
        reopen(host.remote("c"), token, b"f")
    assert host.fs.counters["reopen_forged"] == 7
    again.fs.reopening.key = os.urandom(32)
    with fails(errno.ESTALE):
        reopen(again.remote("b"), token, b"f")


def test_after_the_machine_was_booted_only_readers_go_on(host: HostDirectory, again: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"it")
    token = token_of(host.client(), b"f", os.O_RDWR)
    again.fs.reopening = Reopening(again.fs, host.fs.reopening.key, os.urandom(16))
    again.fs.manager._connect[Connect.REOPEN] = again.fs.reopening.reopen
    assert reopen(again.client(), token, b"f").ocb
    with fails(errno.ESTALE):
        reopen(again.client(), token, b"f", os.O_RDWR)
    assert again.fs.counters["reopen_other_boot"] == 1


def test_what_has_no_token(host: HostDirectory) -> None:
    os.mkfifo(host.root / "fifo")
    with fails(errno.EOPNOTSUPP):
        token_of(host.client(), b"fifo", os.O_RDWR | os.O_NONBLOCK)


def test_the_message_at_every_length(host: HostDirectory) -> None:
    request = ConnectRequest(Connect.REOPEN, os.O_RDWR, 7, b"d/f", path2=b"token")
    packed = request.pack()
    parsed = parse_connect(packed)
    assert (parsed.subtype, parsed.flags, parsed.path, parsed.path2) == (request.subtype, request.flags, request.path, request.path2)
    for length in range(16, 25):
        with pytest.raises(BadMessage):
            parse_connect(packed[:length])
    with pytest.raises(BadMessage):
        parse_connect(ConnectRequest(Connect.REOPEN, 0, 0, b"f", path2=bytes(TOKEN_MAX + 1)).pack())
    with pytest.raises(BadMessage):
        parse_connect(ConnectRequest(Connect.REOPEN, 0, 0, b"../f", path2=b"token").pack())
