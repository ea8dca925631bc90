"""Frames that are held back until some others have passed, or until a time. What passes, and what the time comes of, costs the logarithm of
how many are held.
"""

from __future__ import annotations

import heapq

SPARE = 64
"""Entries of frames that are gone, which a heap may have beside as many as there are frames."""


class HeldBack:
    """See the head of this file. A *place* is a number of frames that have passed; times are in seconds."""

    def __init__(self) -> None:
        self._frames: dict[int, bytes] = {}
        """By order, in which they came."""
        self._places: list[tuple[int, int]] = []
        self._times: list[tuple[float, int]] = []
        self._order = 0

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: bytes, place: int, latest: float) -> None:
        self._order += 1
        self._frames[self._order] = frame
        heapq.heappush(self._places, (place, self._order))
        heapq.heappush(self._times, (latest, self._order))

    def passed(self, place: int) -> list[bytes]:
        """Take those out whose place it is, in the order in which they came."""
        ready = []
        while self._places and self._places[0][0] <= place:
            ready.append(heapq.heappop(self._places)[1])
        return self._take(ready)

    def expired(self, now: float) -> list[bytes]:
        """Take those out whose time has come, likewise."""
        ready = []
        while self._times and self._times[0][0] <= now:
            ready.append(heapq.heappop(self._times)[1])
        return self._take(ready)

    def next_time(self) -> float | None:
        while self._times and self._times[0][1] not in self._frames:
            heapq.heappop(self._times)
        return self._times[0][0] if self._times else None

    def clear(self) -> None:
        self._frames.clear()
        self._places.clear()
        self._times.clear()

    def _take(self, orders: list[int]) -> list[bytes]:
        taken = [self._frames.pop(order) for order in sorted(orders) if order in self._frames]
        most = 2 * len(self._frames) + SPARE
        if len(self._places) > most:
            self._places = [one for one in self._places if one[1] in self._frames]
            heapq.heapify(self._places)
        if len(self._times) > most:
            self._times = [one for one in self._times if one[1] in self._frames]
            heapq.heapify(self._times)
        return taken
