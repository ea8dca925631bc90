"""Watches that nobody wants: given back to their servers many at a time, a moment later (docs/protocol/coherence.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer, Timer
from resmgr.handlelist import DROP_MAX, pack_drop

if TYPE_CHECKING:
    from resmgr.fuse.core import Core

DROP_AFTER: Final = 1.0


class Unwanted:
    """Those of one mount. *dropped* is called when the server behind a connection has taken some back: an answer that was on the way
    meanwhile may have said *watched* before that."""

    def __init__(self, core: Core, dropped: Callable[[Connection], None]) -> None:
        self._core = core
        self._dropped = dropped
        self._waiting: dict[Connection, dict[int, None]] = {}
        self._dropping: dict[Connection, dict[int, None]] = {}
        self._timer: Timer | None = None
        self._closed = False

    def add(self, connection: Connection, ino: int) -> None:
        """Nobody wants the watch of directory *ino*."""
        if connection.closed or self._closed:
            return
        self._waiting.setdefault(connection, {})[ino] = None
        if self._timer is None:
            self._timer = self._core.dispatch.call_at(self._core.dispatch.now() + DROP_AFTER, self._drop)

    def keep(self, connection: Connection, ino: int) -> bool:
        """Somebody wants it again. False: too late, it is being given back."""
        if ino in self._dropping.get(connection, ()):
            return False
        self._waiting.get(connection, {}).pop(ino, None)
        return True

    def count(self, connection: Connection) -> int:
        """How many wait to be given back, or for the server to say that it has them back."""
        return len(self._waiting.get(connection, ())) + len(self._dropping.get(connection, ()))

    def lost(self, connection: Connection) -> None:
        """The server behind *connection* is not there any more."""
        self._waiting.pop(connection, None)

    def _drop(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, {}
        for connection, numbers in waiting.items():
            inos = list(numbers)
            for start in range(0, len(inos), DROP_MAX):
                self._send(connection, inos[start : start + DROP_MAX])

    def _send(self, connection: Connection, inos: list[int]) -> None:
        if connection.closed:
            return
        dropping = self._dropping.setdefault(connection, {})
        dropping.update(dict.fromkeys(inos))

        def done(status: int, reply: Buffer) -> None:
            for ino in inos:
                dropping.pop(ino, None)
            if not dropping and self._dropping.get(connection) is dropping:
                del self._dropping[connection]
            self._dropped(connection)

        connection.submit((pack_drop(inos),), 0, done)

    def close(self) -> None:
        """The mount is gone. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
