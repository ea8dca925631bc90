"""What every congestion controller is to a path, and the slow start they share.

A controller owns one number, `window`: bytes that may be in flight. The path calls it once per acknowledgement and once per detection of
loss, not per packet. There is no clock here; `now` comes in the sample.

Slow start ends at the first loss or, before the queue overflows, when round trips get longer: HyStart++ (RFC 9406), with a threshold of
0.5 ms instead of 4, because on a LAN 4 ms of queue at full rate is a megabyte.
"""

from __future__ import annotations

from typing import Final

MIN_PACKETS: Final = 2
INITIAL_PACKETS: Final = 32
"""RFC 9002 section 7.2 has 10, for the Internet; between machines of one LAN 32 packets of 1200 bytes fit any switch port's buffer."""

HYSTART_SAMPLES: Final = 3
"""ACKs of a round. The RFC has 8, but there an ACK covers two packets and here a batch."""
HYSTART_MIN: Final = 0.0005
HYSTART_MAX: Final = 0.016
CSS_DIVISOR: Final = 4
CSS_ROUNDS: Final = 3
"""The RFC has 5, which triples the window once more."""


class AckSample:
    """What one ACK told. The path reuses one object: keep nothing of it. Bytes and seconds.

    Not of attrs, and so a struct where it is compiled: it is read some 20 times for each ACK.
    """

    __slots__ = ("acked", "in_flight", "limited", "minimum", "new_round", "now", "rate", "rtt", "sent", "smoothed")

    def __init__(
        self,
        now: float = 0.0,
        acked: int = 0,
        sent: float = 0.0,
        in_flight: int = 0,
        limited: bool = False,
        new_round: bool = False,
        rate: float = 0.0,
        rtt: float = 0.0,
        smoothed: float = 0.0,
        minimum: float = 0.0,
    ) -> None:
        self.now = now
        self.acked = acked
        """Newly acknowledged bytes."""
        self.sent = sent
        """When the newest of them was sent."""
        self.in_flight = in_flight
        """Before this ACK."""
        self.limited = limited
        """The window, not a lack of data, stopped the last transmission."""
        self.new_round = new_round
        """Everything in flight at the last new round has been acknowledged or lost."""
        self.rate = rate
        """Delivery rate over the acknowledged flight, bytes per second; 0 when unknown."""
        self.rtt = rtt
        """Latest sample."""
        self.smoothed = smoothed
        self.minimum = minimum


class Controller:
    """Base of all. Subclasses implement `avoidance` and `reduce`."""

    name = ""

    def __init__(self, mss: int, max_window: int) -> None:
        self.mss = mss
        """Largest packet of the path; changes when a larger one is found to pass."""
        self.max_window = max_window
        self.window = max(INITIAL_PACKETS * mss, MIN_PACKETS * mss)
        self.threshold = max_window
        """Slow start threshold."""
        self.recovery_start = -1.0
        """Losses of packets sent before this belong to a reduction already made."""
        self.reductions = 0
        self.undone = 0
        self._saved: tuple[int, int] | None = None
        self._round_min = 1e9
        self._last_round_min = 1e9
        self._round_samples = 0
        self._css_baseline = 0.0
        self._css_rounds = 0

    def set_mss(self, mss: int) -> None:
        """The path's packet size changed. The window stays, but never below its minimum."""
        self.mss = mss
        self.window = max(self.window, MIN_PACKETS * mss)

    def on_ack(self, ack: AckSample) -> None:
        """New data was acknowledged."""
        if ack.sent <= self.recovery_start:
            return
        if self.window < self.threshold:
            if ack.limited or ack.in_flight * 2 >= self.window:
                self._slow_start(ack)
        elif ack.limited:
            self.avoidance(ack)
        else:
            self.idle(ack)
        if self.window > self.max_window:
            self.window = self.max_window

    def on_loss(self, lost: int, sent: float, now: float) -> None:
        """*lost* bytes are taken for lost, the newest of them sent at *sent*."""
        if sent <= self.recovery_start:
            return
        self._saved = (self.window, self.threshold)
        self.recovery_start = now
        self.reductions += 1
        self._css_rounds = 0
        self.reduce(now)
        floor = MIN_PACKETS * self.mss
        if self.window < floor:
            self.window = floor
        self.threshold = max(self.threshold, floor)

    def on_spurious(self) -> None:
        """Everything that caused the last reduction has arrived after all (RFC 9438 section 4.9.1 asks for this undo)."""
        if self._saved is not None:
            window, threshold = self._saved
            self._saved = None
            self.undone += 1
            self.window = max(self.window, window)
            self.threshold = max(self.threshold, threshold)
            self.recovery_start = -1.0
            self.restored()

    def on_persistent_congestion(self) -> None:
        """Nothing arrived for several probe timeouts (RFC 9002 section 7.6): begin again."""
        self.window = MIN_PACKETS * self.mss
        self.recovery_start = -1.0
        self._saved = None

    def pacing_rate(self) -> float | None:
        """Bytes per second to spread packets at; None sends bursts as large as the caller's limit. The seam for a rate-based controller."""
        return None

    def seen_rate(self) -> float:
        """Bytes per second that the path has delivered lately, at most; 0 when the controller does not measure it."""
        return 0.0

    def avoidance(self, ack: AckSample) -> None:
        raise NotImplementedError

    def reduce(self, now: float) -> None:
        """Lower window and threshold after a loss."""
        raise NotImplementedError

    def restored(self) -> None:
        """The last `reduce` has been taken back."""

    def idle(self, ack: AckSample) -> None:
        """An ACK that may not grow the window for want of data."""

    def _slow_start(self, ack: AckSample) -> None:
        acked = ack.acked
        if ack.new_round:
            if self._css_rounds:
                self._css_rounds += 1
                if self._css_rounds > CSS_ROUNDS:
                    self.threshold = self.window
                    self._css_rounds = 0
                    return
            self._last_round_min = self._round_min
            self._round_min = 1e9
            self._round_samples = 0
        if ack.rtt < self._round_min:
            self._round_min = ack.rtt
        self._round_samples += 1
        if self._round_samples >= HYSTART_SAMPLES and self._last_round_min < 1e9:
            if self._css_rounds:
                if self._round_min < self._css_baseline:
                    self._css_rounds = 0
            elif self._round_min >= self._last_round_min + min(max(self._last_round_min / 8, HYSTART_MIN), HYSTART_MAX):
                self._css_baseline = self._round_min
                self._css_rounds = 1
        self.window += acked // CSS_DIVISOR if self._css_rounds else acked
