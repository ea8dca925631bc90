"""NewReno as in RFC 9002 section 7: one packet more per round trip, half the window at a loss. The yardstick."""

from __future__ import annotations

from typing import Final

from qnetpy.link.congestion.base import AckSample, Controller

LOSS_FACTOR: Final = 0.5


class NewReno(Controller):
    name = "newreno"

    def __init__(self, mss: int, max_window: int) -> None:
        super().__init__(mss, max_window)
        self._acked = 0

    def avoidance(self, ack: AckSample) -> None:
        self._acked += ack.acked
        while self._acked >= self.window:
            self._acked -= self.window
            self.window += self.mss

    def reduce(self, now: float) -> None:
        self.window = int(self.window * LOSS_FACTOR)
        self.threshold = self.window
        self._acked = 0
