"""Round trip time of one path: RFC 9002 section 5, with a minimum that forgets after ten to twenty seconds."""

from __future__ import annotations

from typing import Final

from qnetpy.link.transport.constants import GRANULARITY, MAX_ACK_DELAY

MIN_WINDOW: Final = 10.0


class RttEstimator:
    __slots__ = ("_current_min", "_since", "latest", "minimum", "sampled", "smoothed", "variation")

    def __init__(self, initial: float, now: float) -> None:
        self.sampled = False
        self.latest = initial
        self.smoothed = initial
        self.variation = initial / 2
        self.minimum = initial
        """Lowest sample of this window of MIN_WINDOW seconds and the one before."""
        self._current_min = initial
        self._since = now

    def update(self, sample: float, ack_delay: float, now: float) -> None:
        """*sample* is from sending the largest newly acknowledged packet to now; *ack_delay* what the peer says it held back."""
        self.latest = sample
        if not self.sampled:
            self.sampled = True
            self.minimum = self._current_min = self.smoothed = sample
            self.variation = sample / 2
            self._since = now
            return
        if now - self._since > MIN_WINDOW:
            self.minimum = min(self._current_min, sample)
            self._current_min = sample
            self._since = now
        elif sample < self._current_min:
            self._current_min = sample
            if sample < self.minimum:
                self.minimum = sample
        if ack_delay > MAX_ACK_DELAY:
            ack_delay = MAX_ACK_DELAY
        adjusted = sample - ack_delay
        if adjusted < self.minimum:
            adjusted = sample
        difference = self.smoothed - adjusted
        self.smoothed -= difference / 8
        self.variation += ((difference if difference >= 0 else -difference) - self.variation) / 4

    def pto(self) -> float:
        """Probe timeout before back-off (RFC 9002 section 6.2.1)."""
        spread = 4 * self.variation
        return self.smoothed + (spread if spread > GRANULARITY else GRANULARITY) + MAX_ACK_DELAY
