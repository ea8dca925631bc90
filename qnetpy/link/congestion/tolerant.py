"""The default: CUBIC that random loss cannot starve and that does not fill deep queues. docs/decisions/congestion.md has the figures.

Three additions to RFC 9438:

- A floor. After a loss the window does not fall below what the path has just proved to carry: the highest delivery rate of the last
  ROUNDS round trips, times the minimum round trip plus SLACK, and a little more to make up for the share that is lost. With random
  loss the floor governs, and the window settles where the queue that we cause is about SLACK long.
- A guard. A queue shorter than SLACK would lose without end. When more than LOSS_CEILING of a sample of GUARD_PACKETS is lost, the floor
  is lowered step by step, at the end to nothing, which is plain CUBIC; it comes back by smaller steps.
- A ceiling for growth. While even the fastest packet of a round waits longer than a quarter of the minimum round trip plus SLACK, the
  window does not grow. It is not reduced for delay either, so a competitor that fills queues takes a share but not all.
"""

from __future__ import annotations

from qnetpy.link.congestion.base import AckSample
from qnetpy.link.congestion.cubic import Cubic

ROUNDS = 10
SLACK = 0.001
"""At 1 Gbit/s 125 kB: less than a switch port's share of buffer, and more than the two ends take to turn a batch of packets round."""
GROWTH_RTTS = 1.25
LOSS_CEILING = 0.12
"""Twice the loss that a link may have and still be called one. Above, loss is taken for our own doing."""
GUARD_PACKETS = 128
GUARD_DOWN = 0.8
GUARD_UP = 0.05
GUARD_LEAST = 0.1


class Tolerant(Cubic):
    name = "tolerant"

    def __init__(self, mss: int, max_window: int) -> None:
        super().__init__(mss, max_window)
        self._rates: list[float] = [0.0]
        """Highest delivery rate of each of the last rounds, newest last."""
        self._budget = SLACK
        self._scale = 1.0
        self._loss_share = 0.0
        self._acked_sample = 0
        self._lost_sample = 0
        self._delay_min = 1e9
        self._delayed = False

    def floor(self) -> int:
        """Bytes below which a loss does not push the window."""
        return int(min(max(self._rates) * self._budget * self._scale / (1 - self._loss_share), self.max_window))

    def on_ack(self, ack: AckSample) -> None:
        if ack.new_round:
            rates = self._rates
            rates.append(0.0)
            if len(rates) > ROUNDS:
                del rates[0]
            self._delayed = self._delay_min < 1e9 and self._delay_min > ack.minimum * GROWTH_RTTS + SLACK
            self._delay_min = 1e9
        if ack.rate > self._rates[-1]:
            self._rates[-1] = ack.rate
        if ack.rtt < self._delay_min:
            self._delay_min = ack.rtt
        self._budget = ack.minimum + SLACK
        super().on_ack(ack)
        if self._lost_sample:
            # Loss is about: follow the rate that the path delivers, also upward and within recovery.
            self._acked_sample += ack.acked
            self._guard()
            if ack.limited and self.window < self.floor():
                self.window = min(self.floor(), self.window + ack.acked)

    def avoidance(self, ack: AckSample) -> None:
        if not self._delayed:
            super().avoidance(ack)

    def on_loss(self, lost: int, sent: float, now: float) -> None:
        self._lost_sample += lost
        self._guard()
        super().on_loss(lost, sent, now)

    def reduce(self, now: float) -> None:
        before = self.window
        super().reduce(now)
        self.window = max(self.window, min(before, self.floor()))

    def on_persistent_congestion(self) -> None:
        super().on_persistent_congestion()
        self._rates = [0.0]

    def _guard(self) -> None:
        total = self._acked_sample + self._lost_sample
        if total < GUARD_PACKETS * self.mss:
            return
        share = self._lost_sample / total
        self._loss_share = min(share, LOSS_CEILING)
        if share > LOSS_CEILING:
            self._scale *= GUARD_DOWN
            if self._scale < GUARD_LEAST:
                self._scale = 0.0
        elif self._scale < 1.0:
            self._scale = min(1.0, self._scale + GUARD_UP)
        self._acked_sample >>= 1
        self._lost_sample >>= 1
