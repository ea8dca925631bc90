"""A synchronous client of resource managers, for tests: every call is a message on a connection, run until it is answered.

It follows targets and redirects as a real client does: a connection per server, made on first use.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from resmgr.channel import CHID_PATHMGR, ND_LOCAL, PID_SYSTEM, Connection, Credentials, Kernel, Nd
from resmgr.dispatch import Buffer
from resmgr.errors import ResmgrError
from resmgr.handlelist import pack_close
from resmgr.iomsg import (
    LOCK_FOUND,
    READDIR_ATTRS,
    REQUEST,
    STATUS_REDIRECT,
    Attr,
    Connect,
    DirEntry,
    Entry,
    Io,
    StatFs,
    Target,
    parse_dirents,
)
from resmgr.iorequest import ConnectRequest, SetAttr, pack_read, pack_readdir, pack_setattr, pack_space, pack_write
from resmgr.lockrequest import LockRequest, pack_lock

REPLY = 2 * 1024 * 1024
HOPS_MAX = 8


@contextmanager
def fails(code: int) -> Iterator[None]:
    """The body must raise ResmgrError with this errno."""
    try:
        yield
    except ResmgrError as error:
        if error.errno != code:
            raise AssertionError(f"failed with {error}, not with {errno.errorcode[code]}") from error
    else:
        raise AssertionError(f"did not fail with {errno.errorcode[code]}")


class IoClient:
    """A client with one identity. *run* makes the dispatch go on until its argument says enough (default: nothing is ever pending)."""

    def __init__(
        self,
        kernel: Kernel,
        credentials: Credentials,
        *,
        target: Target | None = None,
        run: Callable[[Callable[[], bool]], None] | None = None,
    ) -> None:
        self.kernel = kernel
        self.credentials = credentials
        self.root = target or Target(0, PID_SYSTEM, CHID_PATHMGR)
        self._run = run
        self._connections: dict[Target, Connection] = {}

    def connection(self, target: Target) -> Connection:
        """The connection to *target*, made if need be."""
        connection = self._connections.get(target)
        if connection is None:
            connection = self.kernel.connect(Nd(target.nd) if target.nd else ND_LOCAL, target.pid, target.chid, self.credentials)
            self._connections[target] = connection
        return connection

    def close_all(self) -> None:
        """Detach every connection, as a program that ends."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def send(self, target: Target, parts: Sequence[Buffer], reply_len: int = REPLY) -> tuple[int, Buffer]:
        """One message and its answer: (status, bytes). Raises ResmgrError for a negative status."""
        answers: list[tuple[int, Buffer]] = []
        self.connection(target).submit(parts, reply_len, lambda status, reply: answers.append((status, reply)))
        if not answers and self._run is not None:
            self._run(lambda: bool(answers))
        if not answers:
            raise AssertionError("message not answered")
        status, reply = answers[0]
        if status < 0:
            raise ResmgrError(-status)
        return status, reply

    def connect(self, request: ConnectRequest, target: Target | None = None, reply_len: int = REPLY) -> Buffer:
        """A connect message; redirects are followed. The reply's bytes."""
        where = target or self.root
        for _ in range(HOPS_MAX):
            status, reply = self.send(where, (request.pack(),), reply_len)
            if status != STATUS_REDIRECT:
                return reply
            entry = Entry.parse(reply)
            where = entry.target
            request.handle = entry.handle
            request.path = entry.rest or b""
        raise ResmgrError(errno.ELOOP)

    def lookup(self, path: bytes, handle: int = 0, target: Target | None = None, flags: int = 0) -> Entry:
        return Entry.parse(self.connect(ConnectRequest(Connect.LOOKUP, flags, handle, path), target))

    def open(
        self,
        path: bytes,
        flags: int = os.O_RDONLY,
        mode: int = 0o666,
        *,
        handle: int = 0,
        target: Target | None = None,
        umask: int = 0,
        prefetch: int = 0,
    ) -> Entry:
        request = ConnectRequest(Connect.OPEN, flags, handle, path, mode, umask, 0, prefetch)
        return Entry.parse(self.connect(request, target))

    def name(
        self, kind: Connect, path: bytes, handle: int = 0, target: Target | None = None, *, flags: int = 0, mode: int = 0, umask: int = 0
    ) -> Buffer:
        """Any other connect message with one name. The reply's bytes."""
        return self.connect(ConnectRequest(kind, flags, handle, path, mode, umask), target)

    def symlink(self, path: bytes, text: bytes, handle: int = 0, target: Target | None = None) -> Entry:
        return Entry.parse(self.connect(ConnectRequest(Connect.SYMLINK, 0, handle, path, path2=text), target))

    def two(
        self, kind: Connect, old: bytes, new: bytes, *, handle: int = 0, handle2: int = 0, flags: int = 0, target: Target | None = None
    ) -> Buffer:
        """RENAME or LINK."""
        return self.connect(ConnectRequest(kind, flags, handle, old, handle2=handle2, path2=new), target)

    def setattr_path(self, path: bytes, change: SetAttr, handle: int = 0, target: Target | None = None) -> Attr:
        return Attr.parse(self.connect(ConnectRequest(Connect.SETATTR, 0, handle, path, change=change), target))

    def read(self, target: Target, ocb: int, offset: int, size: int) -> bytes:
        status, data = self.send(target, (pack_read(ocb, offset, size),), size)
        assert status == len(data)
        return bytes(data)

    def write(self, target: Target, ocb: int, offset: int, data: Buffer) -> int:
        status, _ = self.send(target, (pack_write(ocb, offset, len(data)), data), 0)
        return status

    def stat(self, target: Target, handle: int) -> Attr:
        return Attr.parse(self.io(target, Io.STAT, handle))

    def setattr(self, target: Target, handle: int, change: SetAttr) -> Attr:
        return Attr.parse(self.send(target, (pack_setattr(handle, change),))[1])

    def statfs(self, path: bytes, target: Target | None = None) -> StatFs:
        return StatFs.parse(self.name(Connect.STATFS, path, 0, target))

    def io(self, target: Target, kind: Io, handle: int, flags: int = 0) -> Buffer:
        """An I/O message without a fixed part of its own. The reply's bytes."""
        return self.send(target, (REQUEST.pack(kind, 0, flags, handle),))[1]

    def space(self, target: Target, ocb: int, mode: int, offset: int, length: int) -> None:
        self.send(target, (pack_space(ocb, mode, offset, length),))

    def readdir(self, target: Target, ocb: int, cookie: int = 0, size: int = 65536, attrs: bool = False) -> list[DirEntry]:
        """One READDIR."""
        return parse_dirents(self.send(target, (pack_readdir(ocb, cookie, size, READDIR_ATTRS if attrs else 0),), size)[1], attrs)

    def list(self, path: bytes = b"", *, size: int = 65536, attrs: bool = False, target: Target | None = None) -> list[DirEntry]:
        """The whole directory."""
        entry = self.open(path, os.O_RDONLY | os.O_DIRECTORY, target=target)
        found: list[DirEntry] = []
        cookie = 0
        while True:
            entries = self.readdir(entry.target, entry.ocb, cookie, size, attrs)
            if not entries:
                break
            found += entries
            cookie = entries[-1].cookie
        self.close(entry.target, entry.ocb)
        return found

    def names(self, path: bytes = b"", target: Target | None = None) -> set[bytes]:
        return {entry.name for entry in self.list(path, target=target)}

    def get(self, path: bytes, target: Target | None = None) -> bytes:
        """The contents of a small file."""
        entry = self.open(path, target=target)
        data = self.read(entry.target, entry.ocb, 0, 65536)
        self.close(entry.target, entry.ocb)
        return data

    def close(self, target: Target, *handles: int) -> None:
        self.send(target, (pack_close(*handles),))

    def lock(self, target: Target, ocb: int, request: LockRequest) -> None:
        """Set or wait for a lock; ResmgrError EAGAIN if another has it."""
        self.send(target, (pack_lock(ocb, request),), 0)

    def locked_by(self, target: Target, ocb: int, request: LockRequest) -> tuple[int, int, int, int]:
        """LOCK_TEST: type, pid, start, length."""
        kind, pid, start, length = LOCK_FOUND.unpack(self.send(target, (pack_lock(ocb, request),))[1])
        return kind, pid, start, length

    def begin(self, target: Target, message: bytes, reply_len: int = REPLY) -> Begun:
        """Send and do not wait."""
        return Begun(self.connection(target), message, reply_len)


class Begun:
    """A message that may be answered later: `status` is None until then."""

    def __init__(self, connection: Connection, message: bytes, reply_len: int) -> None:
        self.status: int | None = None
        self.data = b""
        self._pending = connection.submit((message,), reply_len, self._done)

    def _done(self, status: int, reply: Buffer) -> None:
        self.status = status
        self.data = bytes(reply)

    def unblock(self) -> None:
        assert self._pending is not None
        self._pending.unblock()
