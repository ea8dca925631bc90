"""Sets of integers kept as sorted half-open ranges: packet numbers received, bytes acknowledged, message ids delivered.

Almost always there is one range that grows at its end; that case costs one comparison.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class RangeSet:
    """Bounds are one flat sorted list [start0, stop0, start1, stop1, ...]; ranges neither touch nor overlap.

    An index that is even lies outside every range, an odd one inside: that is what bisect gives.
    """

    __slots__ = ("bounds",)

    def __init__(self) -> None:
        self.bounds: list[int] = []

    def __len__(self) -> int:
        """Number of ranges, not of integers."""
        return len(self.bounds) >> 1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        bounds = self.bounds
        return iter([(bounds[i], bounds[i + 1]) for i in range(0, len(bounds), 2)])

    def __contains__(self, value: int) -> bool:
        return bool(bisect_right(self.bounds, value) & 1)

    def total(self) -> int:
        return sum(self.bounds[1::2]) - sum(self.bounds[0::2])

    def add(self, start: int, stop: int) -> int:
        """Put in [start, stop), start < stop; returns how many integers are new."""
        bounds = self.bounds
        if not bounds:
            bounds.append(start)
            bounds.append(stop)
            return stop - start
        last = bounds[-1]
        if start == last:
            bounds[-1] = stop
            return stop - start
        if start > last:
            bounds.append(start)
            bounds.append(stop)
            return stop - start
        low = bisect_left(bounds, start)
        high = bisect_right(bounds, stop)
        swallowed = bounds[low:high]
        middle = []
        if not low & 1:
            middle.append(start)
        if not high & 1:
            middle.append(stop)
        bounds[low:high] = middle
        # New integers: the whole, less what the swallowed bounds enclosed.
        if low & 1:
            swallowed.insert(0, start)
        if high & 1:
            swallowed.append(stop)
        return stop - start - (sum(swallowed[1::2]) - sum(swallowed[0::2]))

    def remove(self, start: int, stop: int) -> None:
        """Take out [start, stop), start < stop."""
        bounds = self.bounds
        if not bounds or start >= bounds[-1] or stop <= bounds[0]:
            return
        low = bisect_left(bounds, start)
        high = bisect_right(bounds, stop)
        middle = []
        if low & 1:
            middle.append(start)
        if high & 1:
            middle.append(stop)
        bounds[low:high] = middle

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of [start, stop) that are not in the set, ascending."""
        bounds = self.bounds
        if not bounds or start >= bounds[-1] or stop <= bounds[0]:
            return [(start, stop)]
        low = bisect_right(bounds, start)
        high = bisect_left(bounds, stop)
        edges = bounds[low:high]
        if not low & 1:
            edges.insert(0, start)
        if not high & 1:
            edges.append(stop)
        return list(zip(edges[0::2], edges[1::2], strict=True))

    def drop_oldest(self, keep: int) -> None:
        """Forget all but the *keep* highest ranges."""
        excess = len(self.bounds) - 2 * keep
        if excess > 0:
            del self.bounds[:excess]
