"""Storm control: how many frames per second one port may make a bridge flood. Pure.

A flooded frame costs a frame on every port. Without a bound, a loop that no spanning tree sees, or somebody who sends to made-up
addresses, takes the whole network down. Broadcast and multicast have one bound, unicast to unknown stations has another, so that the one
does not shut the other out.
"""

from __future__ import annotations

from resmgr.bucket import TokenBucket
from stack.frame import Frame

STORM_RATE = 5_000
"""Frames per second and port. A loop of broadcasts that nobody breaks goes round some 18,000 times a second and takes a core: this is
less."""
STORM_BURST = 0.1
"""Seconds of the rate that may come at once."""


class StormControl:
    """The bounds of one port. *rate* 0: none."""

    __slots__ = ("_group", "_unknown", "rate")

    def __init__(self, rate: int = STORM_RATE) -> None:
        self.rate = rate
        self._group = TokenBucket(rate, max(1.0, rate * STORM_BURST))
        self._unknown = TokenBucket(rate, max(1.0, rate * STORM_BURST))

    def group(self, frames: list[Frame], now: float) -> list[Frame]:
        """Those broadcasts and multicasts that may be flooded: the first ones."""
        return self._taken(self._group, frames, now)

    def unknown(self, frames: list[Frame], now: float) -> list[Frame]:
        """Those frames to unknown stations that may be flooded."""
        return self._taken(self._unknown, frames, now)

    def _taken(self, bucket: TokenBucket, frames: list[Frame], now: float) -> list[Frame]:
        if not self.rate:
            return frames
        for index in range(len(frames)):
            if not bucket.take(now):
                return frames[:index]
        return frames
