"""What a server said of an object before the answer that it is about has come: messages overtake each other."""

from __future__ import annotations

from typing import Final

from resmgr.channel import Connection
from resmgr.fuse.changes import NEVER

EARLY_MAX: Final = 1024
"""Objects of which that is remembered. What was asked before the oldest that is not counts as overtaken."""


class Early:
    """When something last came of each inode number of a connection; of the others not after `_floor`."""

    def __init__(self) -> None:
        self._came: dict[tuple[Connection, int], float] = {}
        self._floor = NEVER

    def came(self, connection: Connection, ino: int, now: float) -> None:
        came = self._came
        came.pop((connection, ino), None)
        came[connection, ino] = now
        if len(came) > EARLY_MAX:
            self._floor = max(self._floor, came.pop(next(iter(came))))

    def anything(self, now: float) -> None:
        """Something may have come of each of them."""
        self._came.clear()
        self._floor = now

    def since(self, connection: Connection, ino: int, at: float) -> bool:
        """Whether something has come since *at*."""
        return at <= self._came.get((connection, ino), self._floor)
