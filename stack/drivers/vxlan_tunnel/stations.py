"""Behind which tunnel endpoint a station is: learned from what it sends, forgotten after a while. Pure.

Whoever can send into the tunnel can invent stations. The table has a cap; when it is full, a new station is learned only in the place of
one that is stale, so that a flood of invented ones pushes out nobody who speaks. What is not learned is sent to all endpoints, which is
what would have happened without a table.
"""

from __future__ import annotations

from typing import Generic, TypeVar

E = TypeVar("E")

STATIONS_MAX = 8192
AGE = 300.0
"""Seconds after which a silent station is stale: that of bridges (802.1D), and of Linux."""
REFRESH = 1.0
"""Seconds within which a station that is heard again is not looked after again."""


class Stations(Generic[E]):
    """See the head of this file. *limit* stations; times in seconds."""

    def __init__(self, limit: int = STATIONS_MAX, age: float = AGE) -> None:
        self._limit = limit
        self._age = age
        self._known: dict[bytes, tuple[E, float]] = {}
        """In the order in which they were heard last, but for REFRESH."""
        self.refused = 0

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, station: bytes, there: E, now: float) -> None:
        """*station* was heard from *there*."""
        known = self._known.get(station)
        if known is not None:
            if known[0] == there and now - known[1] < REFRESH:
                return
            del self._known[station]
        elif len(self._known) >= self._limit:
            oldest = next(iter(self._known))
            if now - self._known[oldest][1] < self._age:
                self.refused += 1
                return
            del self._known[oldest]
        self._known[station] = there, now

    def find(self, station: bytes, now: float) -> E | None:
        """Where *station* is; None when it is not known, or stale."""
        known = self._known.get(station)
        if known is None:
            return None
        if now - known[1] >= self._age:
            del self._known[station]
            return None
        return known[0]

    def forget(self) -> None:
        self._known.clear()
