"""The share of a dispatch that those who only ask may take, however many ask and whatever their answers cost.

Time is what is shared, not bytes or rows: what a row costs is up to the module that makes it. Work is done in turns of at most `TURN`,
between which frames go on; who has had `SHARE` of the time waits until the time has made up for it. `BURST` may be had ahead, so that one
answer now and then comes at once.
"""

from __future__ import annotations

from collections.abc import Callable

TURN = 0.0005
"""Seconds: what a frame that comes meanwhile waits, and the rest of the row that was begun."""
SHARE = 0.2
"""Of all time."""
BURST = 0.01
"""Seconds of work without a pause."""


class Share:
    """See the head of this file. *clock*: monotonic seconds that go on within a turn; None, as under virtual time: nothing is measured.
    *part*: of all time."""

    def __init__(self, clock: Callable[[], float] | None = None, part: float = SHARE) -> None:
        self._clock = clock
        self._part = part
        self._paid = 0.0
        """When the time so far will have made up for what was had."""
        self._began = 0.0

    def beside(self, part: float) -> Share:
        """Another one by the same clock."""
        return Share(self._clock, part)

    def wait(self) -> float:
        """Seconds until more may be had; 0.0: now."""
        return 0.0 if self._clock is None else max(0.0, self._paid - self._clock() - BURST / self._part)

    def begin(self) -> None:
        """A turn of work."""
        if self._clock is not None:
            self._began = self._clock()

    def over(self) -> bool:
        """The turn has been long enough."""
        return self._clock is not None and self._clock() - self._began >= TURN

    def end(self) -> float:
        """It ends. Seconds that it took."""
        if self._clock is None:
            return 0.0
        now = self._clock()
        took = now - self._began
        self._paid = max(self._paid, now) + took / self._part
        return took
