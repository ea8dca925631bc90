"""Locks that were taken through one open file, as they are to be set again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from resmgr.iofunc.locks import UNLOCK
from resmgr.iomsg import LOCK_SET
from resmgr.lockrequest import LockRequest

_Range = tuple[int, int, int, int]
"""start, end, type, pid."""


class Held:
    """Of each owner, ranges in order that have nothing in common; neighbours that are alike are one. A change takes a bisection."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: dict[tuple[int, bool], list[_Range]] = {}

    def __bool__(self) -> bool:
        return bool(self._of)

    def __len__(self) -> int:
        """Ranges."""
        return sum(map(len, self._of.values()))

    def __iter__(self) -> Iterator[LockRequest]:
        """Of each owner in order."""
        for (owner, whole), ranges in self._of.items():
            for start, end, kind, pid in ranges:
                yield LockRequest(LOCK_SET, kind, start, end, owner, pid, whole)

    def within(self, asked: LockRequest) -> list[LockRequest]:
        """What of *asked*'s range its owner holds."""
        ranges = self._of.get((asked.owner, asked.whole), [])
        first = bisect_left(ranges, (asked.start,))
        if first and ranges[first - 1][1] > asked.start:
            first -= 1
        return [
            LockRequest(LOCK_SET, kind, max(start, asked.start), min(end, asked.end), asked.owner, pid, asked.whole)
            for start, end, kind, pid in ranges[first : bisect_left(ranges, (asked.end,), first)]
        ]

    def note(self, asked: LockRequest) -> None:
        """*asked* was granted, or given up."""
        key = asked.owner, asked.whole
        ranges = self._of.get(key)
        if ranges is None:
            if asked.kind != UNLOCK:
                self._of[key] = [(asked.start, asked.end, asked.kind, asked.pid)]
            return
        low, high = asked.start, asked.end
        first = bisect_left(ranges, (low,))
        if first and ranges[first - 1][1] >= low:
            # It reaches into the range, or up to it.
            first -= 1
        last = bisect_left(ranges, (high + 1,), first)
        new: list[_Range] = []
        after: list[_Range] = []
        for start, end, kind, pid in ranges[first:last]:
            if kind == asked.kind and pid == asked.pid:
                low, high = min(low, start), max(high, end)
                continue
            if start < asked.start:
                new.append((start, min(end, asked.start), kind, pid))
            if end > asked.end:
                after.append((max(start, asked.end), end, kind, pid))
        if asked.kind != UNLOCK:
            new.append((low, high, asked.kind, asked.pid))
        ranges[first:last] = new + after
        if not ranges:
            del self._of[key]

    def clear(self) -> None:
        """Nothing is locked any more."""
        self._of.clear()
