"""CUBIC, RFC 9438, with the section numbers beside the formulas. Windows are bytes here and packets in the RFC.

On a LAN the Reno-friendly region (4.3) decides almost always, because the cubic counts seconds and round trips last microseconds.
"""

from __future__ import annotations

from typing import Final

from qnetpy.link.congestion.base import AckSample, Controller

C: Final = 0.4
BETA: Final = 0.7
ALPHA: Final = 3 * (1 - BETA) / (1 + BETA)


class Cubic(Controller):
    name = "cubic"

    def __init__(self, mss: int, max_window: int) -> None:
        super().__init__(mss, max_window)
        self._w_max = 0.0
        """Packets at the last reduction, less fast convergence (4.7)."""
        self._epoch: float | None = None
        self._k = 0.0
        self._start = 0.0
        self._friendly = 0.0
        self._idle_since: float | None = None
        self._undo = (0.0, 0.0, 0.0, None)  # type: tuple[float, float, float, float | None]

    def avoidance(self, ack: AckSample) -> None:
        packets = self.window / self.mss
        acked = ack.acked / self.mss
        now = ack.now
        if self._idle_since is not None:
            if self._epoch is not None:
                self._epoch += now - self._idle_since
            self._idle_since = None
        if self._epoch is None:
            self._epoch = now
            self._start = packets
            self._friendly = packets
            if self._w_max > packets:
                self._k = ((self._w_max - packets) / C) ** (1 / 3)  # 4.2, figure 2
            else:
                self._k = 0.0
                self._w_max = packets
        ahead = now - self._epoch + ack.smoothed - self._k
        target = self._w_max + C * ahead * ahead * ahead  # 4.2, figure 1
        target = min(max(target, packets), 1.5 * packets)
        # 4.3, figure 4: alpha is 1 once the former maximum is reached again.
        self._friendly += (ALPHA if self._friendly < self._w_max else 1.0) * acked / packets
        packets += (target - packets) * min(1.0, acked / packets)
        self.window = int(max(packets, self._friendly) * self.mss)

    def reduce(self, now: float) -> None:
        packets = self.window / self.mss
        self._undo = (self._w_max, self._k, self._friendly, self._epoch)
        self._w_max = packets * (1 + BETA) / 2 if packets < self._w_max else packets  # 4.7
        self._epoch = None
        self._idle_since = None
        self.window = int(self.window * BETA)
        self.threshold = self.window

    def _begin(self, packets: float) -> None:
        """Grow from that window on, as one that was never higher."""
        self._w_max = packets
        self._epoch = None
        self._idle_since = None

    def restored(self) -> None:
        self._w_max, self._k, self._friendly, self._epoch = self._undo

    def on_persistent_congestion(self) -> None:
        super().on_persistent_congestion()
        self._epoch = None
        self._w_max = 0.0

    def idle(self, ack: AckSample) -> None:
        """Time without data does not count (4.2, application-limited)."""
        if self._idle_since is None:
            self._idle_since = ack.now
