"""Replay window of one path and direction: which packet numbers may still come in. Does what RFC 6479 does, without its bitmap.

Kept are the highest number seen and the *holes* below it, as sorted ranges: a number is acceptable when it is above the highest, or lies in
a hole not older than the window. In order, which is nearly always, there are no holes and a packet costs one comparison; a whole batch in
order costs the same. A bitmap of 8192 numbers would cost two 1 KiB shifts per packet as a Python int, or a loop over bytes.

Order of use: `fresh` before decryption (cheap, refuses copies), `accept` after it. A forged frame therefore changes nothing.
"""

from __future__ import annotations

from bisect import bisect_left

from qnetpy.link.constants import REPLAY_WINDOW


class ReplayWindow:
    """Memory: 64 bytes per hole, at most one hole per two numbers of the window, so 256 KiB if a peer sends every second number."""

    __slots__ = ("_first", "_last", "highest", "size")

    def __init__(self, size: int = REPLAY_WINDOW) -> None:
        self.size = size
        self.highest = -1
        """Highest number accepted, -1 before the first."""
        self._first: list[int] = []
        self._last: list[int] = []
        """The holes, ascending, both ends included."""

    @property
    def holes(self) -> int:
        return len(self._first)

    @property
    def oldest_fresh(self) -> int:
        """The smallest number that is fresh."""
        return self._first[0] if self._first else self.highest + 1

    def fresh(self, number: int) -> bool:
        """Whether *number* was not accepted before and is not older than the window."""
        if number > self.highest:
            return True
        if number <= self.highest - self.size:
            return False
        index = bisect_left(self._last, number)
        return index < len(self._last) and self._first[index] <= number

    def accept(self, number: int) -> bool:
        """Take *number* as received; False (and no change) when it is not fresh."""
        highest = self.highest
        if number > highest:
            self.highest = number
            if number != highest + 1:
                self._first.append(max(highest + 1, number - self.size + 1))
                self._last.append(number - 1)
            if self._last and self._last[0] <= number - self.size:
                self._forget()
            return True
        if number <= highest - self.size:
            return False
        index = bisect_left(self._last, number)
        if index == len(self._last) or self._first[index] > number:
            return False
        first, last = self._first[index], self._last[index]
        if first == last:
            del self._first[index], self._last[index]
        elif number == first:
            self._first[index] = number + 1
        elif number == last:
            self._last[index] = number - 1
        else:
            self._last[index] = number - 1
            self._first.insert(index + 1, number + 1)
            self._last.insert(index + 1, last)
        return True

    def accept_run(self, first: int, count: int) -> None:
        """Take *count* consecutive numbers from *first* on, all above `highest`."""
        self.accept(first)
        self.highest = first + count - 1
        if self._last and self._last[0] <= self.highest - self.size:
            self._forget()

    def _forget(self) -> None:
        """Drop holes that are wholly older than the window."""
        index = bisect_left(self._last, self.highest - self.size + 1)
        del self._first[:index], self._last[:index]
