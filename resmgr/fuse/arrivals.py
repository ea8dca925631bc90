"""Who waits for what is on the way: messages whose effect the kernel was told is there, in the order in which they were sent.

Who waits does so for what is on the way when he comes, not for later ones: a program that sends without a pause delays nobody for longer
than what may be under way at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Arrivals:
    """Numbers what is sent. Who says that something has arrived knows the oldest that has not."""

    __slots__ = ("_last", "_waiting")

    def __init__(self) -> None:
        self._last = 0
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()

    def number(self) -> int:
        """Of one more that is sent; larger than all before."""
        self._last += 1
        return self._last

    def wait(self, call: Callable[[], None]) -> None:
        """Run *call* when all that were numbered until now have arrived. Something is on the way."""
        self._waiting.append((self._last, call))

    def arrived(self, oldest: int) -> None:
        """*oldest* is the first that is still on the way, 0: none is. Runs what waits for none of these."""
        waiting, before = self._waiting, oldest or self._last + 1
        while waiting and waiting[0][0] < before:
            waiting.popleft()[1]()
