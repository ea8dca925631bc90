"""Deadlines of many things with one timer: asked for often, moved all the time, mostly to later.

A deadline that moves to later costs a dict entry; the heap is corrected only when its entry comes to the top. So a turn costs what was
touched in it, not what there is.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """When each key wants attention. Times are monotonic seconds."""

    __slots__ = ("_armed", "_heap", "_order", "_wanted")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._wanted: dict[K, float] = {}
        self._armed: dict[K, float] = {}
        """Time of the heap entry that counts for a key; its other entries are dead. Never later than the wanted time."""
        self._order = 0

    def __len__(self) -> int:
        return len(self._wanted)

    def __contains__(self, key: K) -> bool:
        return key in self._wanted

    def set(self, key: K, when: float) -> None:
        """Set or move the deadline of *key*."""
        self._wanted[key] = when
        armed = self._armed.get(key)
        if armed is None or when < armed:
            self._push(key, when)

    def discard(self, key: K) -> None:
        self._wanted.pop(key, None)
        self._armed.pop(key, None)

    def clear(self) -> None:
        self._heap.clear()
        self._wanted.clear()
        self._armed.clear()

    def bound(self) -> float | None:
        """A time that is not later than `first`, and was a deadline once: what a timer may be set for without looking further. After `due`
        it is later than that call's *now*."""
        heap = self._heap
        while heap:
            when, _, key = heap[0]
            if self._armed.get(key) == when:
                return when
            heapq.heappop(heap)
        return None

    def first(self) -> float | None:
        """The earliest deadline; None if there is none."""
        heap = self._heap
        while heap:
            when, _, key = heap[0]
            if self._armed.get(key) != when:
                heapq.heappop(heap)
                continue
            wanted = self._wanted[key]
            if wanted <= when:
                return when
            heapq.heappop(heap)
            self._push(key, wanted)
        return None

    def due(self, now: float) -> list[K]:
        """Take out everything whose time has come, earliest first. What is to go on is set again."""
        keys: list[K] = []
        while True:
            when = self.first()
            if when is None or when > now:
                return keys
            key = heapq.heappop(self._heap)[2]
            self.discard(key)
            keys.append(key)

    def _push(self, key: K, when: float) -> None:
        self._armed[key] = when
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, key))
