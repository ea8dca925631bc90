"""Pauses in a stream of requests: what a program notices of a path that fails. Used by the clients of `qnet bench --only paths`."""

from __future__ import annotations

import time

from probe import say

LONG = 0.002
"""Seconds between two answers from which on it is told."""


class Gaps:
    """Told of every answer, for that many seconds. Times are monotonic, so all processes of the machine mean the same by them."""

    def __init__(self, seconds: float) -> None:
        self._last = time.monotonic()
        self._end = self._last + seconds
        self._count = 0
        self._long: list[tuple[float, float]] = []

    @property
    def over(self) -> bool:
        return self._last >= self._end

    def answered(self) -> None:
        now = time.monotonic()
        if now - self._last > LONG:
            self._long.append((now, now - self._last))
        self._last = now
        self._count += 1

    def say(self, **more: int) -> None:
        """`gaps`: when each long one ended, and its length."""
        say(count=self._count, gaps=self._long, **more)
