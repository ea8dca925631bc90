"""Asking servers for news of what they watch (docs/protocol/coherence.md): one parked question for each connection.

A server may say as much as it likes. It is asked again no sooner than `PACE` after the question before, and when all that it said was
handled, of which others have their turn after each `EVENTS_TURN` events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.iomsg import REQUEST, WATCH_NEXT, Io, WatchEvent, parse_events

if TYPE_CHECKING:
    from resmgr.fuse.core import Core

ANSWER_MAX: Final = 64 * 1024
PACE: Final = 0.005
EVENTS_TURN: Final = 256
_NEXT = REQUEST.pack(Io.WATCH, WATCH_NEXT, 0, 0)


class News:
    """The questions of one mount. *event* is given each event, *lost* the connection whose question failed."""

    def __init__(self, core: Core, event: Callable[[Connection, WatchEvent], None], lost: Callable[[Connection], None]) -> None:
        self._core = core
        self._event = event
        self._lost = lost
        self._asked: set[Connection] = set()
        self._closed = False

    def ask(self, connection: Connection) -> None:
        """From now on the server behind *connection* is asked, until that fails. Idempotent."""
        if connection not in self._asked:
            self._asked.add(connection)
            self._send(connection)

    def _send(self, connection: Connection) -> None:
        asked = self._core.dispatch.now()

        def came(status: int, reply: Buffer) -> None:
            if self._closed:
                return
            if status >= 0:
                try:
                    self._handle(connection, parse_events(reply), asked)
                    return
                except BadMessage:
                    self._core.drops["bad_reply"] += 1
            self._asked.discard(connection)
            self._lost(connection)

        connection.submit((_NEXT,), ANSWER_MAX, came)

    def _handle(self, connection: Connection, events: list[WatchEvent], asked: float) -> None:
        """Take what was answered to the question of the time *asked*."""
        if self._closed:
            return
        for event in events[:EVENTS_TURN]:
            self._event(connection, event)
        dispatch = self._core.dispatch
        if len(events) > EVENTS_TURN:
            dispatch.call_soon(lambda: self._handle(connection, events[EVENTS_TURN:], asked))
        elif asked + PACE <= dispatch.now():
            self._again(connection)
        else:
            dispatch.call_at(asked + PACE, lambda: self._again(connection))

    def _again(self, connection: Connection) -> None:
        if connection.closed or self._closed:
            self._asked.discard(connection)
        else:
            self._send(connection)

    def close(self) -> None:
        self._closed = True
        self._asked.clear()
