"""Subscriptions, the program's side: WATCH once, then READ events. Without Trio here; `resmgr.subscriptionaio` is the same for Trio.

A subscription is a connection to the channel that tells of something (names, nodes); docs/protocol/names.md has the two messages. It
begins with what there is, so nothing is lost between asking and listening, and is bounded on the daemon's side: who does not read for
long is told to forget all, and gets everything anew.
"""

from __future__ import annotations

import errno
import struct
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError

if TYPE_CHECKING:
    from resmgr.client import Connection
    from resmgr.server import Channel

T = TypeVar("T")

REQUEST = struct.Struct("!HHI")
"""operation, argument, chid; then bytes."""
WATCH = 16
READ = 17
NOWAIT = 1
"""READ: EAGAIN in place of waiting."""
LENGTH = struct.Struct("!H")
READ_MAX = 64 * 1024
"""Reply buffer of a READ."""


def split(data: Buffer) -> Iterator[bytes]:
    """The events of an answer to READ. BadMessage for anything else."""
    data = bytes(data)
    place = 0
    while place < len(data):
        if place + LENGTH.size > len(data):
            raise BadMessage("events: cut short")
        (length,) = LENGTH.unpack_from(data, place)
        place += LENGTH.size
        if place + length > len(data):
            raise BadMessage("events: cut short")
        yield data[place : place + length]
        place += length


class Events(Generic[T]):
    """An iterator of events that blocks, over a connection of `resmgr.client`, which it closes. Use it with `with`, or `close` it.

    *channel* and *code*: the daemon sends that pulse to the channel when there is something to `read`. ResmgrError from the daemon's
    refusals at once; ENOTCONN when the daemon is gone.
    """

    def __init__(
        self, connection: Connection, what: bytes, parse: Callable[[bytes], T], channel: Channel | None = None, code: int = 0
    ) -> None:
        self._connection = connection
        self._parse = parse
        self._ready: deque[T] = deque()
        try:
            connection.send(REQUEST.pack(WATCH, code, 0 if channel is None else channel.chid), what)
        except BaseException:
            connection.close()
            raise

    def read(self, timeout: float | None = None) -> list[T]:
        """What has happened since the last call. Waits for something for up to *timeout* seconds (None: for ever; 0: not at all)."""
        ready = list(self._ready)
        self._ready.clear()
        return ready or self._fetch(timeout)

    def _fetch(self, timeout: float | None) -> list[T]:
        flags = NOWAIT if timeout == 0 else 0
        try:
            reply = self._connection.send(REQUEST.pack(READ, flags, 0), reply_len=READ_MAX, timeout=timeout or None)
            return [self._parse(event) for event in split(reply.data)]
        except BadMessage as error:
            raise ResmgrError(errno.EBADMSG, str(error)) from None
        except ResmgrError as error:
            if error.errno in (errno.ETIMEDOUT, errno.EAGAIN) and timeout is not None:
                return []
            raise

    def __iter__(self) -> Events[T]:
        return self

    def __next__(self) -> T:
        while not self._ready:
            self._ready.extend(self._fetch(None))
        return self._ready.popleft()

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Events[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
