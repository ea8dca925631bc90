"""Subscriptions on Trio: `async for event in ...`. See `resmgr.subscription`."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from resmgr.aio import enter, send
from resmgr.channel import Connection
from resmgr.errors import BadMessage, ResmgrError
from resmgr.subscription import READ, READ_MAX, REQUEST, WATCH, split

T = TypeVar("T")


class AsyncEvents(Generic[T]):
    """An asynchronous iterator of events, over a connection that it closes. Use it with `with`, or `close` it. For one task.

    Nothing is sent before the first event is asked for; what happens from then on is not lost. ResmgrError: from the daemon's refusals;
    ENOTCONN when the daemon is gone.
    """

    def __init__(self, connection: Connection, what: bytes, parse: Callable[[bytes], T]) -> None:
        self._connection = connection
        self._what = what
        self._parse = parse
        self._watching = False
        self._ready: deque[T] = deque()

    def __aiter__(self) -> AsyncEvents[T]:
        return self

    async def __anext__(self) -> T:
        if not self._watching:
            await send(self._connection, (REQUEST.pack(WATCH, 0, 0), self._what))
            self._watching = True
        while not self._ready:
            reply = await send(self._connection, (REQUEST.pack(READ, 0, 0),), READ_MAX)
            try:
                self._ready.extend(self._parse(event) for event in split(reply.data))
            except BadMessage as error:
                raise ResmgrError(errno.EBADMSG, str(error)) from None
        return self._ready.popleft()

    def close(self) -> None:
        enter(self._connection.kernel, self._connection.close)

    def __enter__(self) -> AsyncEvents[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
