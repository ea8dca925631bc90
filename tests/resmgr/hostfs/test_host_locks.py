"""Locks of host files, between clients and with programs of this machine."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

import pytest

from resmgr.access import Export
from resmgr.hostfs.locks import AGAIN, F_OFD_SETLK
from resmgr.iofunc.locks import READ, UNLOCK, WRITE
from resmgr.iomsg import LOCK_SET, LOCK_WAIT, Entry
from resmgr.lockrequest import LOCK_END, LockRequest, pack_lock
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.ioclient import IoClient, fails


def asks(kind: int, start: int = 0, end: int = LOCK_END, *, operation: int = LOCK_SET, whole: bool = False) -> LockRequest:
    return LockRequest(operation, kind, start, end, 1, 0, whole)


def opened(client: IoClient, name: bytes, flags: int = os.O_RDWR) -> Entry:
    return client.open(name, flags)


def here(fd: int, kind: int) -> None:
    """Lock the bytes 0 to 9 as a program of this machine, in whose place this is. OSError if somebody has them."""
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("@hhqqi4x", kind, 0, 0, 10, 0))


def test_programs_of_this_machine_and_clients_exclude_each_other(host: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"")
    client = host.client()
    entry = opened(client, b"f")
    fd = os.open(host.root / "f", os.O_RDWR)
    client.lock(entry.target, entry.ocb, asks(WRITE, 5, 6))
    with pytest.raises(BlockingIOError):
        here(fd, fcntl.F_WRLCK)
    client.lock(entry.target, entry.ocb, asks(UNLOCK))
    here(fd, fcntl.F_WRLCK)
    with fails(errno.EAGAIN):
        client.lock(entry.target, entry.ocb, asks(READ))
    begun = client.begin(entry.target, pack_lock(entry.ocb, asks(READ, operation=LOCK_WAIT)))
    host.dispatch.run_for(3 * AGAIN)
    assert begun.status is None
    here(fd, fcntl.F_UNLCK)
    host.dispatch.run_for(2 * AGAIN)
    assert begun.status == 0
    with pytest.raises(BlockingIOError):
        here(fd, fcntl.F_WRLCK)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with fails(errno.EAGAIN):
        client.lock(entry.target, entry.ocb, asks(READ, whole=True))
    client.close_all()
    here(fd, fcntl.F_WRLCK)
    os.close(fd)


def test_an_owner_with_two_open_files_of_one_file(host: HostDirectory) -> None:
    """He reads through one and then writes through another: his locks are one set, and stay so in the kernel."""
    (host.root / "f").write_bytes(b"")
    client, other = host.client(), host.client()
    reading, writing = opened(client, b"f", os.O_RDONLY), opened(client, b"f", os.O_WRONLY)
    client.lock(reading.target, reading.ocb, asks(READ, 0, 10))
    client.lock(writing.target, writing.ocb, asks(WRITE, 5, 6))
    fd = os.open(host.root / "f", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        here(fd, fcntl.F_RDLCK)
    client.close(writing.target, writing.ocb)
    here(fd, fcntl.F_WRLCK)
    os.close(fd)
    again = opened(other, b"f")
    other.lock(again.target, again.ocb, asks(WRITE))


def test_who_may_only_read_holds_up_nobody_who_may_write(host: HostDirectory) -> None:
    (host.root / "f").write_bytes(b"")
    (host.root / "f").chmod(0o666)
    host.fs.set_policy(host.policy((Export("/", ["read"], nodes=["b", "c"]), Export("/", ["read", "write"], nodes=["d"]))))
    readers = [host.remote("b"), host.remote("c")]
    entries = [opened(reader, b"f", os.O_RDONLY) for reader in readers]
    readers[0].lock(entries[0].target, entries[0].ocb, asks(WRITE, whole=True))
    with fails(errno.EAGAIN):
        readers[1].lock(entries[1].target, entries[1].ocb, asks(READ, whole=True))
    writer = host.remote("d")
    entry = opened(writer, b"f")
    writer.lock(entry.target, entry.ocb, asks(WRITE, whole=True))
    fd = os.open(host.root / "f", os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    writer.close_all()
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_what_is_only_a_base_cannot_be_locked(host: HostDirectory) -> None:
    (host.root / "d").mkdir()
    client = host.client()
    entry = client.lookup(b"d")
    with fails(errno.EBADF):
        client.lock(entry.target, entry.handle, asks(READ, whole=True))
