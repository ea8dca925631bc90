"""A shaper around a driver: wrapper `rate` with `tx=10M,rx=50M,burst=64k,queue=256k`.

Each direction that has a rate is a token bucket of `burst` bytes that fills at that many bits per second. A frame that finds as many bytes
as it is long goes at once and is not copied; else it waits, in order, in a queue of `queue` bytes, and what finds the queue full is dropped
(`rate_tx_queue_full`, `rate_rx_queue_full`). Over any time t no more than rate * t + burst passes. Frames count as on the wire: with
preamble, gap and FCS, 24 bytes, and padded to 60.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import attrs

from resmgr.bucket import TokenBucket
from resmgr.dispatch import Dispatch, Timer
from stack.core.driver import BATCH_MAX
from stack.core.module import Context, Kind, Module
from stack.core.options import BitRate, Size
from stack.core.wrapper import Around
from stack.frame import Frame
from stack.wire.ethernet import SIZE_MIN

TICK = 1e-6
"""Seconds that a timer takes at least: at high rates a clock's rounding is worth more bytes than a bucket's."""
WIRE_OVERHEAD = 24
"""Bytes: preamble 8, FCS 4, gap 12."""


@attrs.frozen
class RateOptions:
    """Options of the wrapper `rate`. Rates are in bits per second."""

    tx: BitRate | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(BitRate(0.0))))
    rx: BitRate | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.gt(BitRate(0.0))))
    burst: Size = attrs.field(default=Size(64 << 10), validator=attrs.validators.ge(Size(1600)))
    """Bytes that may pass at once. A longer frame passes when the bucket is full."""
    queue: Size = Size(256 << 10)
    """Bytes that may wait."""


class _Shaper:
    """One direction. `out` takes a batch that passes now."""

    def __init__(
        self, dispatch: Dispatch, rate: float, options: RateOptions, out: Callable[[list[Frame]], None], lose: Callable[[int], None]
    ) -> None:
        self._dispatch = dispatch
        self._bucket = TokenBucket(rate / 8, float(options.burst))
        self._room = options.queue
        self._out = out
        self._lose = lose
        self._queue: deque[bytes] = deque()
        self._waiting = 0
        self._timer: Timer | None = None

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def put(self, frames: list[Frame]) -> None:
        passing = 0
        now = self._dispatch.now()
        if not self._queue:
            for frame in frames:
                if not self._bucket.take(now, self._cost(frame)):
                    break
                passing += 1
        if passing:
            self._out(frames if passing == len(frames) else frames[:passing])
        lost = 0
        for frame in frames[passing:]:
            if self._waiting + len(frame) > self._room:
                lost += 1
            else:
                self._queue.append(bytes(frame))
                self._waiting += len(frame)
        if lost:
            self._lose(lost)
        self._arm()

    def close(self) -> None:
        self._queue.clear()
        self._waiting = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cost(self, frame: Frame) -> float:
        return min(self._bucket.burst, max(len(frame), SIZE_MIN) + WIRE_OVERHEAD)

    def _arm(self) -> None:
        if self._queue and self._timer is None:
            when = max(self._bucket.ready_at(self._cost(self._queue[0])), self._dispatch.now() + TICK)
            self._timer = self._dispatch.call_at(when, self._timeout)

    def _timeout(self) -> None:
        self._timer = None
        now = self._dispatch.now()
        batch: list[Frame] = []
        while self._queue and len(batch) < BATCH_MAX and self._bucket.take(now, self._cost(self._queue[0])):
            frame = self._queue.popleft()
            self._waiting -= len(frame)
            batch.append(frame)
        if batch:
            self._out(batch)
        self._arm()


class RateDriver(Around):
    """See the head of this file."""

    def __init__(self, dispatch: Dispatch, options: RateOptions) -> None:
        super().__init__()
        self._options = options
        tx, rx = options.tx, options.rx
        self._tx = None if tx is None else _Shaper(dispatch, tx, options, self.send, lambda lost: self.count("rate_tx_queue_full", lost))
        self._rx = None if rx is None else _Shaper(dispatch, rx, options, self.hand_up, lambda lost: self.count("rate_rx_queue_full", lost))

    def to_wire(self, frames: list[Frame]) -> None:
        if self._tx is None:
            self.send(frames)
        else:
            self._tx.put(frames)

    def to_stack(self, frames: list[Frame]) -> None:
        if self._rx is None:
            self.hand_up(frames)
        else:
            self._rx.put(frames)

    def close(self) -> None:
        for shaper in (self._tx, self._rx):
            if shaper is not None:
                shaper.close()

    def info(self) -> Mapping[str, str | int]:
        lanes = (("transmit", self._options.tx, self._tx), ("receive", self._options.rx, self._rx))
        told = {f"rate {name}": f"{rate:g} bit/s, {shaper.waiting} frames waiting" for name, rate, shaper in lanes if shaper is not None}
        return {**self.inner.info(), **told}


def _attach(context: Context, options: RateOptions) -> RateDriver:
    return RateDriver(context.dispatch, options)


MODULE = Module("rate", Kind.WRAPPER, RateOptions, _attach)
