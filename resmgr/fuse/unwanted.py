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
    """Those of one mount. *dropped* is called when a server has taken some back: an answer that was on the way meanwhile may have said
    *watched* before that."""

    def __init__(self, core: Core, dropped: Callable[[], None]) -> None:
        self._core = core
        self._dropped = dropped
        self._waiting: dict[Connection, dict[int, None]] = {}
        self._dropping: set[tuple[Connection, int]] = set()
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
        if (connection, ino) in self._dropping:
            return False
        self._waiting.get(connection, {}).pop(ino, None)
        return True

    def count(self, connection: Connection) -> int:
        """How many wait to be given back."""
        return len(self._waiting.get(connection, ()))

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
        keys = [(connection, ino) for ino in inos]
        self._dropping.update(keys)

        def done(status: int, reply: Buffer) -> None:
            self._dropping.difference_update(keys)
            self._dropped()

        connection.submit((pack_drop(inos),), 0, done)

    def close(self) -> None:
        """The mount is gone. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
