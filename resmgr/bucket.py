"""A token bucket: the bound of what somebody else may make us do. Pure."""

from __future__ import annotations

_ROUNDING = 1e-6
"""Of a take: so much may be missing, or who comes at `ready_at` to the bit finds nothing."""


class TokenBucket:
    """*rate* takes per second on average, *burst* at once; full at first. `now` is in seconds, and never less than the time before."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = 0.0

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Take *amount*, at most `burst`. False when there is less, which costs nothing."""
        self._fill(now)
        if self._tokens < amount - _ROUNDING:
            return False
        self._tokens -= amount
        return True

    def full(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        self._fill(now)
        return self._tokens >= self.burst

    def ready_at(self, amount: float = 1.0) -> float:
        """The earliest time at which there is so much to take."""
        return self._at + max(0.0, amount - self._tokens) / self.rate

    def _fill(self, now: float) -> None:
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
