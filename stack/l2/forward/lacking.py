"""Stations that the carrier had no room for, or that gave their place to others: they are offered again while the bridge knows them.

Whoever came first would otherwise keep its place for ever, silent or not, and the frames of others would go by the stack for as long. It is
the clock algorithm: every OFFER_SECONDS, OFFERS_MAX of those that lack a place look for one of a station that was silent for as long, among
the CANDIDATES_MAX that have theirs longest; those of them that were not silent are looked at again when all others have been. So is who
just got a place: of two that speak to each other none is seen to speak before both have one. A station that finds no place waits at the end
of the line. While all are taken by stations that speak, all of them keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Generic, TypeVar

from stack.l2.engine import STATIONS_MAX

P = TypeVar("P")
"""A port."""

WAITING_MAX = STATIONS_MAX
"""Of one engine; the first in line gives up. A bridge knows some more stations than an engine has places, and not twice as many."""
OFFER_SECONDS = 5.0
OFFERS_MAX = 64
"""What a round may cost: some 20 µs each, with a carrier in the kernel."""
CANDIDATES_MAX = 8


class Lacking(Generic[P]):
    """Stations without a place, in order of waiting, by their ports."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, P] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, station: bytes, port: P) -> None:
        """At the end of the line."""
        self._waiting.pop(station, None)
        if len(self._waiting) >= WAITING_MAX:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[station] = port

    def remove(self, station: bytes) -> None:
        """Idempotent."""
        self._waiting.pop(station, None)

    def of(self, port: P) -> list[bytes]:
        return [station for station, other in self._waiting.items() if other is port]

    def next_ones(self) -> list[tuple[bytes, P]]:
        """Those whose turn it is."""
        return list(islice(self._waiting.items(), OFFERS_MAX))


def silent_one(stations: dict[bytes, P], idle: Callable[[bytes], float | None]) -> bytes | None:
    """One of *stations*, in order of their turns, that gives its place up; those that speak go to the end. None: all that were looked at
    speak. *idle*: seconds since the carrier had a frame from it; None: never."""
    for station in list(islice(stations, CANDIDATES_MAX)):
        seconds = idle(station)
        if seconds is None or seconds >= OFFER_SECONDS:
            return station
        stations[station] = stations.pop(station)
    return None
