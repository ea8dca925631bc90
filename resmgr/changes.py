"""Changes of a directory of any node, as they happen: `async for change in changes`. docs/howto/changes.md.

The directory is opened with OPEN_WATCH, and its events fetched with WATCH_NEXT (docs/protocol/coherence.md). What happened from then on is
told in order; what is beyond the server's queue becomes one OVERFLOW. A connection of its own is used, so nothing else is told on it.
"""

from __future__ import annotations

import enum
import errno
import os
from collections import deque
from types import TracebackType

import attrs

from resmgr.aio import enter, send
from resmgr.channel import Connection, Credentials, Kernel, Nd
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError
from resmgr.handlelist import pack_close
from resmgr.iomsg import OPEN, OPEN_WATCH, REQUEST, WATCH_ISDIR, WATCH_NEXT, Connect, Entry, Io, parse_events
from resmgr.walk import REPLY_LEN, Address, walk

ANSWER_MAX = 64 * 1024


class Change(enum.Flag):
    """What happened. Values are Linux's inotify masks."""

    MODIFIED = 0x2
    """Contents were written or cut."""
    ATTRIBUTES = 0x4
    WRITTEN = 0x8
    """Closed, by one who had it open for writing."""
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATED = 0x100
    DELETED = 0x200
    GONE = 0x400
    """The directory itself was removed, and nobody has it open any more."""
    MOVED = 0x800
    """The directory itself was renamed."""
    OVERFLOW = 0x4000
    """Events were lost: look at everything again."""
    ENDED = 0x8000
    """Nothing more will be told: the directory is gone, its rights were changed, or the server has no room. The last one."""


KNOWN = sum(change.value for change in Change)


@attrs.frozen
class Event:
    """One change. Without a name: of the directory itself. The halves of a rename have the same cookie."""

    change: Change
    name: bytes
    directory: bool
    """What the name leads to is a directory."""
    cookie: int


class Changes:
    """An asynchronous iterator of the changes of one directory. Made by `watch_directory`; use it with `with`, or `close` it. For one task.

    It ends after an event with ENDED. ResmgrError: EHOSTDOWN, ESRCH, EBADF when the node or the server is not there any more.
    """

    def __init__(self, connection: Connection, ino: int) -> None:
        self._connection = connection
        self._ino = ino
        self._ready: deque[Event] = deque()
        self._ended = False

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> Event:
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            reply = await send(self._connection, (REQUEST.pack(Io.WATCH, WATCH_NEXT, 0, 0),), ANSWER_MAX)
            self._take(reply.data)
        event = self._ready.popleft()
        self._ended = self._ended or bool(event.change & Change.ENDED)
        return event

    def _take(self, data: Buffer) -> None:
        try:
            told = parse_events(data)
        except BadMessage as error:
            raise ResmgrError(errno.EBADMSG, str(error)) from None
        for event in told:
            kind = event.kind & KNOWN
            if kind and event.ino in (0, self._ino):
                self._ready.append(Event(Change(kind), event.name, bool(event.kind & WATCH_ISDIR), event.cookie))

    def close(self) -> None:
        enter(self._connection.kernel, self._connection.close)

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


async def watch_directory(kernel: Kernel, credentials: Credentials, path: bytes) -> Changes:
    """Begin to hear of changes of the directory *path* (`/net/B/...` for another node's). What happens after this returns is told.

    ResmgrError: what opening it gives; EOPNOTSUPP if its server cannot tell (network and FUSE file systems, /proc, most managers), or has
    no room for one more watch.
    """
    steps = walk(path)
    connections: dict[Address, Connection] = {}

    def connect(address: Address) -> Connection:
        if address not in connections:
            connections[address] = kernel.connect(Nd(address[0]), address[1], address[2], credentials)
        return connections[address]

    try:
        answer: tuple[int, Buffer] | None = None
        while True:
            try:
                question = next(steps) if answer is None else steps.send(answer)
            except StopIteration as end:
                found = end.value
                break
            try:
                reply = await send(connect(question.address), (question.message,), question.reply_len)
                answer = (reply.status, reply.data)
            except ResmgrError as error:
                answer = (-(error.errno or errno.EIO), b"")
        if not found.entry.handle:
            raise ResmgrError(errno.ENOTDIR, os.fsdecode(path))
        # Opened on the server's own connection, by the handle that the walk got: events come on the connection that asks for them.
        kept = connect(found.address)
        message = REQUEST.pack(Io.CONNECT, Connect.OPEN, os.O_DIRECTORY | OPEN_WATCH, found.entry.handle) + OPEN.pack(0, 0, 0)
        reply = await send(kept, (message,), REPLY_LEN)
        try:
            entry = Entry.parse(reply.data)
        except BadMessage as error:
            raise ResmgrError(errno.EBADMSG, str(error)) from None
        # Not kept open: Linux tells that a directory is gone when nobody has it open any more.
        await send(kept, (pack_close(*{found.entry.handle, entry.ocb}),))
        if not entry.watched or entry.attr is None:
            raise ResmgrError(errno.EOPNOTSUPP, f"{os.fsdecode(path)}: its changes cannot be told")
        del connections[found.address]
        return Changes(kept, entry.attr.ino)
    finally:
        for connection in connections.values():
            enter(kernel, connection.close)
