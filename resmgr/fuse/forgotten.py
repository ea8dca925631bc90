"""Servers that are there and answer EBADF: they do not know what a file is open as, or say so of everything.

What such a server forgot is opened again as if its daemon had been started anew. It may be a server that takes each REOPEN and refuses
each message after that, so the pauses grow, and there is an end: for what loses no data after MOST times, for writes that were said to be
done when the mount would not wait for a node that is down any more.
"""

from __future__ import annotations

from typing import Final

AFTER_DEATH: Final = 0.02
"""A connection may die while others to the same node have not yet: the first try to open a file again comes this much later."""
PAUSE_MAX: Final = 5.0
MOST: Final = 8
"""Times in a row that a file is opened again. The last pause before that is 2.6 seconds."""
CALM: Final = 30.0
"""Seconds without it after which it counts as the first time."""


class Forgotten:
    """Of one open file."""

    __slots__ = ("at", "since", "times")

    def __init__(self) -> None:
        self.times = 0
        """In a row."""
        self.since = 0.0
        """When the first of them was."""
        self.at = 0.0

    def once_more(self, now: float, limit: float) -> float | None:
        """Seconds after which it should be opened again; None: not any more. *limit*: seconds of trying, 0: MOST times."""
        if not self.times or now - self.at > CALM:
            self.times = 0
            self.since = now
        self.at = now
        if (now - self.since >= limit) if limit else (self.times >= MOST):
            return None
        self.times += 1
        pause: float = AFTER_DEATH * 2 ** min(self.times - 1, MOST)
        return min(pause, PAUSE_MAX)
