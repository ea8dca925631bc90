"""The default: CUBIC that random loss cannot starve and that does not fill deep queues (`drain.py`). docs/decisions/congestion.md has the
figures.

Two additions to `Draining`:

- A floor. After a loss the window does not fall below what the path has just proved to carry: the highest delivery rate of the last
  ROUNDS round trips, times the minimum round trip plus a slack, and a little more to make up for the share that is lost.
- Whose loss. With the slack at LEAST_SLACK the floor causes hardly any queue. If more than SHARE is lost all the same, sample after
  sample, the loss is the path's, and the slack becomes SLACK: the window then settles where the queue that we cause is about that long.
  If the loss then grows much, the queue is too short for that: back, and the next try waits, longer each time. Loss above CEILING takes
  the floor away, which leaves plain CUBIC.
"""

from __future__ import annotations

from typing import Final

from qnetpy.link.congestion.base import MIN_PACKETS, AckSample
from qnetpy.link.congestion.drain import GROWTH_SLACK, Draining

SLACK: Final = 2 * GROWTH_SLACK
"""At 1 Gbit/s 125 kB: less than a switch port's share of buffer, and more than the two ends take to turn a batch of packets round."""
LEAST_SLACK: Final = SLACK / 10
SAMPLE_PACKETS: Final = 128
SHARE: Final = 0.03
"""Loss that CUBIC and the least slack can live with."""
CEILING: Final = 0.2
"""Four times the loss that a link may have and still be called one."""
OWN_SPREAD: Final = 1.3
"""With the slack, the loss may be this many times what it was without, plus SHARE, before the queue is held to be too short."""
SAMPLES: Final = 4
"""Samples in a row on which a judgement rests."""
PAUSE: Final = 32
MAX_PAUSE: Final = 1024
"""Samples until the slack is tried again on a path whose queue was too short: at first, at most."""


class Tolerant(Draining):
    name = "tolerant"

    def __init__(self, mss: int, max_window: int) -> None:
        super().__init__(mss, max_window)
        self._minimum_rtt = 0.0
        self._slack = LEAST_SLACK
        self._floored = True
        self._share = 0.0
        """Share that is lost, smoothed over samples."""
        self._own_share = 0.0
        """Share that was lost with the least slack."""
        self._count = 0
        """Samples in a row that speak for a change of slack."""
        self._pause = 0
        self._next_pause = PAUSE
        self._acked_sample = 0
        self._lost_sample = 0

    def floor(self) -> int:
        """Bytes below which a loss does not push the window."""
        if not self._floored:
            return 0
        share = self._share if self._share < CEILING else CEILING
        return int(min(max(self._rates) * (self._minimum_rtt + self._slack) / (1 - share), self.max_window))

    def on_ack(self, ack: AckSample) -> None:
        self._minimum_rtt = ack.minimum
        super().on_ack(ack)
        self._acked_sample += ack.acked
        self._judge()
        if ack.limited and (self._share > 0.0 or self._lost_sample) and self.window < self.floor():
            # Loss is about: follow the rate that the path delivers, also upward and within recovery.
            self.window = min(self.floor(), self.window + ack.acked)

    def on_loss(self, lost: int, sent: float, now: float) -> None:
        self._lost_sample += lost
        self._judge()
        super().on_loss(lost, sent, now)

    def reduce(self, now: float) -> None:
        before = self.window
        super().reduce(now)
        self.window = max(self.window, min(before, self.floor()))

    def _judge(self) -> None:
        """At the end of a sample: whose fault is the loss?"""
        total = self._acked_sample + self._lost_sample
        if total < SAMPLE_PACKETS * self.mss:
            return
        share = self._lost_sample / total
        self._acked_sample = self._lost_sample = 0
        self._share = (self._share + share) / 2
        if self._share < 0.001:
            self._share = 0.0
        self._floored = self._share <= CEILING
        if self._pause:
            self._pause -= 1
            return
        if self._slack == LEAST_SLACK:
            self._count = self._count + 1 if SHARE < share < CEILING and self._share > SHARE else 0
            if self._count >= SAMPLES:
                self._own_share = self._share
                self._set_slack(SLACK)
            return
        self._count = self._count + 1 if self._share > OWN_SPREAD * self._own_share + SHARE or self._share < SHARE / 2 else 0
        if self._count >= SAMPLES:
            if self._share > SHARE:
                self._pause = self._next_pause
                self._next_pause = min(2 * self._next_pause, MAX_PAUSE)
            self._set_slack(LEAST_SLACK)
            self.window = max(min(self.window, self.floor()), MIN_PACKETS * self.mss)
            self.threshold = min(self.threshold, self.window)

    def _set_slack(self, slack: float) -> None:
        self._slack = slack
        self._count = 0
