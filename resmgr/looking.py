"""Whether a blocking program looks at its socket for a while before it sleeps (`resmgr.client`)."""

from __future__ import annotations


class Looking:
    """Chooses between looking and sleeping by what round trips took.

    Now and then a few waits of either kind are timed, and the kind with the shortest one is kept to: the shortest, since everything else
    that happens on the machine only makes waits longer. While the answer stays the same the question is asked less often.
    """

    SAMPLES = 4
    CYCLE_MIN = 64
    CYCLE_MAX = 1024

    __slots__ = ("_best", "_count", "_cycle", "_shortest", "timing")

    def __init__(self) -> None:
        self._best = True
        self._count = 0
        self._cycle = self.CYCLE_MIN
        self._shortest = [1e9, 1e9]
        self.timing = False
        """Whether `took` wants to know."""

    def look(self) -> bool:
        """Whether the next wait should look before it sleeps."""
        self._count += 1
        if self._count > 2 * self.SAMPLES:
            self.timing = False
            if self._count >= self._cycle:
                self._count = 0
            return self._best
        self.timing = True
        return self._best == (self._count > self.SAMPLES)

    def took(self, looked: bool, seconds: float) -> None:
        shortest = self._shortest
        shortest[looked] = min(shortest[looked], seconds)
        if self._count == 2 * self.SAMPLES:
            best = shortest[True] < shortest[False]
            self._cycle = min(2 * self._cycle, self.CYCLE_MAX) if best == self._best else self.CYCLE_MIN
            self._best = best
            self._shortest = [1e9, 1e9]
