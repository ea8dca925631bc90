"""Asking servers for news of what they watch (docs/protocol/coherence.md): one parked question for each connection.

A server may say as much as it likes. It is asked once each `PACE`, and up to `BURST` times at once after as many that were left out: what
happens now and then is told at once. It is asked when all that it said before was handled, of which others have their turn after each
`EVENTS_TURN` events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer, Timer
from resmgr.errors import BadMessage
from resmgr.iomsg import REQUEST, WATCH_NEXT, Io, WatchEvent, parse_events

if TYPE_CHECKING:
    from resmgr.fuse.core import Core

ANSWER_MAX: Final = 64 * 1024
PACE: Final = 0.005
BURST: Final = 8
EVENTS_TURN: Final = 256
_NEXT = REQUEST.pack(Io.WATCH, WATCH_NEXT, 0, 0)


class News:
    """The questions of one mount. *event* is given each event, *lost* the connection whose question failed."""

    def __init__(self, core: Core, event: Callable[[Connection, WatchEvent], None], lost: Callable[[Connection], None]) -> None:
        self._core = core
        self._event = event
        self._lost = lost
        self._asked: dict[Connection, float] = {}
        """And when the next question is due, if all were asked in time."""
        self._timers: dict[Connection, Timer] = {}
        """Of those who are asked when that time has come."""
        self._closed = False

    def ask(self, connection: Connection) -> None:
        """From now on the server behind *connection* is asked, until that fails. Idempotent."""
        if connection not in self._asked:
            self._asked[connection] = 0.0
            self._send(connection)

    def _send(self, connection: Connection) -> None:
        self._asked[connection] = max(self._asked.get(connection, 0.0), self._core.dispatch.now() - BURST * PACE) + PACE

        def came(status: int, reply: Buffer) -> None:
            if self._closed:
                return
            if status >= 0:
                try:
                    self._handle(connection, parse_events(reply))
                    return
                except BadMessage:
                    self._core.drops["bad_reply"] += 1
            self._asked.pop(connection, None)
            self._lost(connection)

        connection.submit((_NEXT,), ANSWER_MAX, came)

    def _handle(self, connection: Connection, events: list[WatchEvent]) -> None:
        """Take what was answered."""
        if self._closed:
            return
        for event in events[:EVENTS_TURN]:
            self._event(connection, event)
        dispatch = self._core.dispatch
        due = self._asked.get(connection, 0.0)
        if len(events) > EVENTS_TURN:
            dispatch.call_soon(lambda: self._handle(connection, events[EVENTS_TURN:]))
        elif due <= dispatch.now():
            self._again(connection)
        else:
            self._timers[connection] = dispatch.call_at(due, lambda: self._again(connection))

    def _again(self, connection: Connection) -> None:
        self._timers.pop(connection, None)
        if connection.closed or self._closed:
            self._asked.pop(connection, None)
        else:
            self._send(connection)

    def close(self) -> None:
        self._closed = True
        self._asked.clear()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
