"""CUBIC that does not fill deep queues: it stops to grow when packets wait, and takes away the queue that it has made itself.

- A ceiling for growth. While even the fastest packet of a round waits longer than a quarter of the minimum round trip plus GROWTH_SLACK,
  the window does not grow.
- A drain. When that goes on for some rounds the queue may be ours (slow start leaves one, and nothing else would take it away): the window
  becomes what the path delivers in the minimum round trip and a little more. If the delay then falls, it was. If it does not, somebody
  else fills the queue, or the path is another: the window is what it was, the delay is measured from there, and the next try waits, longer
  each time. So a competitor that fills queues takes a share but not all. The same if the delay falls but less is delivered: then an end
  that shares its processor needs the queue, to have work whenever it has its turn.

What a path delivers is the highest delivery rate of the last ROUNDS round trips. No controller by itself: `tolerant` is made of it.
docs/decisions/congestion.md has the figures.
"""

from __future__ import annotations

from typing import Final

from qnetpy.link.congestion.base import MIN_PACKETS, AckSample
from qnetpy.link.congestion.cubic import Cubic

ROUNDS: Final = 10
GROWTH_RTTS: Final = 1.25
GROWTH_SLACK: Final = 0.0005
"""At 1 Gbit/s 62 kB, which two ends that turn batches of packets round cause by themselves."""
DRAIN_AFTER: Final = 3
"""Rounds in a row with too much delay."""
DRAIN_SLACK: Final = GROWTH_SLACK / 2
"""Beyond the minimum round trip: both ends handle packets in batches, and run dry with less."""
DRAIN_ROUNDS: Final = 6
"""In which the delay must fall."""
SPAN: Final = 0.03
"""Seconds over which it is measured what is delivered."""
SPANS: Final = 4
"""Of these before and after a drain are compared."""
HARMED, HARMED_AT_ONCE = 0.9, 0.7
"""Share of what was delivered before below which a drain is undone: after SPANS, after two of them."""
DRAIN_PAUSE, DRAIN_PAUSE_MAX = 1.0, 16.0
"""Seconds until the next try."""
MINIMUM_LIFE: Final = 5.0
"""Seconds for which the minimum round trip is believed without a sample that is near it; then the queue is emptied wholly."""


class Draining(Cubic):
    def __init__(self, mss: int, max_window: int) -> None:
        super().__init__(mss, max_window)
        self._rates: list[float] = [0.0]
        """Highest delivery rate of each of the last rounds, newest last."""
        self._delay_min = 1e9
        self._delayed = False
        self._delayed_rounds = 0
        self._base = 0.0
        """Delay of a round in which no queue was ours although it was delayed; 0: there was none."""
        self._minimum_at = 0.0
        """When a round trip was near the minimum last."""
        self._drained_from = 0
        """The window before the drain that is under way; 0: none."""
        self._drain_rounds = 0
        self._drain_not_before = 0.0
        self._drain_pause = DRAIN_PAUSE
        self.drains = 0
        """Queues that were ours."""
        self.drains_undone = 0
        self._span_began = 0.0
        self._span_acked = 0
        self._span_busy = True
        self._spans: list[float] = []
        """Bytes per second of the last spans that had always something to send."""
        self._proof: list[float] = []
        """Those since the drain whose effect is being watched."""
        self._proof_from = 0
        """The window before that drain; 0: none is watched."""
        self._proof_rate = 0.0

    def seen_rate(self) -> float:
        return max(self._rates)

    def on_ack(self, ack: AckSample) -> None:
        if ack.new_round:
            rates = self._rates
            rates.append(0.0)
            if len(rates) > ROUNDS:
                del rates[0]
            delay, base = self._delay_min, self._base
            if delay < base:
                self._base = base = delay
            self._delayed = delay < 1e9 and delay > (base if base > ack.minimum else ack.minimum) * GROWTH_RTTS + GROWTH_SLACK
            if self._delayed or self._drained_from:
                self._drain(ack)
            else:
                self._delayed_rounds = 0
            self._delay_min = 1e9
        if ack.rtt <= GROWTH_RTTS * ack.minimum:
            self._minimum_at = ack.now
        if ack.rate > self._rates[-1]:
            self._rates[-1] = ack.rate
        if ack.rtt < self._delay_min:
            self._delay_min = ack.rtt
        if self._span_began:
            self._span_acked += ack.acked
        else:
            self._new_span(ack.now)
        if self._span_busy and not ack.limited and ack.in_flight < max(self._rates) * ack.minimum:
            self._span_busy = False
        if ack.now - self._span_began >= SPAN:
            self._end_span(ack.now)
        super().on_ack(ack)

    def avoidance(self, ack: AckSample) -> None:
        if not self._delayed:
            super().avoidance(ack)

    def _drain(self, ack: AckSample) -> None:
        """At the beginning of a round."""
        if self._drained_from:
            self._drain_rounds += 1
            if not self._delayed:
                self._drained_from = self._delayed_rounds = 0
                self.drains += 1
            elif self._drain_rounds > DRAIN_ROUNDS:
                self._base = self._delay_min
                self._delayed = False
                self._undo_drain(self._drained_from, ack.now)
            return
        self._delayed_rounds += 1
        if self._delayed_rounds < DRAIN_AFTER or ack.now < self._drain_not_before:
            return
        slack = DRAIN_SLACK if ack.now - self._minimum_at < MINIMUM_LIFE else 0.0
        rate = max(self._rates)
        window = max(int(rate * (max(ack.minimum, self._base) + slack)), MIN_PACKETS * self.mss)
        if rate and self._spans and window < min(self.window, ack.in_flight):
            self._drained_from = self.window
            self._drain_rounds = 0
            if not self._proof_from:
                self._proof_from = self.window
                self._proof_rate = _usual(self._spans)
                self._proof.clear()
                self._new_span(ack.now)
            self.window = self.threshold = window
            self._begin(window / self.mss)

    def _undo_drain(self, window: int, now: float) -> None:
        self.window = max(self.window, window)
        self.threshold = min(self.threshold, self.window)
        self.drains_undone += 1
        self._drained_from = self._delayed_rounds = self._proof_from = 0
        self._drain_not_before = now + self._drain_pause
        self._drain_pause = min(2 * self._drain_pause, DRAIN_PAUSE_MAX)

    def _new_span(self, now: float) -> None:
        self._span_began = now
        self._span_acked = 0
        self._span_busy = True

    def _end_span(self, now: float) -> None:
        rate = self._span_acked / (now - self._span_began)
        busy = self._span_busy
        self._new_span(now)
        if not busy:
            # What was delivered is what there was. Whether the drain did harm will not be known, and does not matter now.
            self._proof_from = 0
            self._spans.clear()
            return
        self._spans.append(rate)
        del self._spans[:-SPANS]
        if self._proof_from and not self._drained_from:
            proof = self._proof
            proof.append(rate)
            if len(proof) == 2 and max(proof) < HARMED_AT_ONCE * self._proof_rate:
                self._undo_drain(self._proof_from, now)
            elif len(proof) == SPANS:
                if _usual(proof) < HARMED * self._proof_rate:
                    self._undo_drain(self._proof_from, now)
                else:
                    self._proof_from = 0
                    self._drain_pause = DRAIN_PAUSE

    def on_loss(self, lost: int, sent: float, now: float) -> None:
        self._drained_from = self._delayed_rounds = self._proof_from = 0
        super().on_loss(lost, sent, now)

    def on_persistent_congestion(self) -> None:
        super().on_persistent_congestion()
        self._rates = [0.0]


def _usual(rates: list[float]) -> float:
    """The median: a pause of an end in one span says nothing."""
    ordered = sorted(rates)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[-1 - middle]) / 2
