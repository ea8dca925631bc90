"""The stack's own loopback: `io-pkt -d lo`. What is transmitted arrives again, as a real one does: in the next turn, in order.

A frame is copied once, unless it is `bytes`. At most WAITING_MAX bytes wait; more are dropped (`tx_queue_full`): who talks to himself
faster than he listens hears so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import attrs

from resmgr.dispatch import Dispatch, Timer
from stack.core.driver import BATCH_BYTES, BATCH_MAX, Port
from stack.core.fitting import fitting, is_wanted
from stack.core.module import Context, Kind, Module
from stack.core.silent import SILENT
from stack.core.statistics import Drop
from stack.frame import Frame
from stack.wire.ethernet import MAC_SIZE, MTU_MIN

MTU_LOOPBACK = 65536
"""Linux's."""
WAITING_MAX = 4 << 20
"""Bytes. Stops a module that answers its own frames from filling memory."""


@attrs.frozen
class LoOptions:
    """Options of `-d lo`."""

    name: str = "lo0"
    mtu: int = attrs.field(default=MTU_LOOPBACK, validator=[attrs.validators.ge(MTU_MIN), attrs.validators.le(MTU_LOOPBACK)])


class LoopbackDriver:
    """See the head of this file and `stack.core.driver.Driver`. Its address is all zeroes, as Linux's."""

    def __init__(self, dispatch: Dispatch, options: LoOptions) -> None:
        self.name, self.mtu, self.up = options.name, options.mtu, True
        self.mac = bytes(MAC_SIZE)
        self._dispatch = dispatch
        self._port: Port = SILENT
        self._accepted: frozenset[int] | None = frozenset()
        self._others = False
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._timer: Timer | None = None

    def start(self, port: Port) -> None:
        self._port = port

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        self._accepted = ethertypes

    def promiscuous(self, on: bool) -> None:
        self._others = on

    def info(self) -> Mapping[str, str | int]:
        return {"driver": "lo", "waiting": len(self._waiting)}

    def detach(self) -> None:
        self.up = False
        if self._waiting:
            self._port.count(Drop.LINK_DOWN, len(self._waiting))
        self._waiting.clear()
        self._size = 0
        if self._timer is not None:
            self._timer.cancel()

    def transmit(self, frames: list[Frame]) -> None:
        if not self.up:
            self._port.count(Drop.LINK_DOWN, len(frames))
            return
        for frame in fitting(frames, self.mtu, self._port.count):
            if not is_wanted(frame, self.mac, self._others, self._accepted):
                continue
            if self._size + len(frame) > WAITING_MAX:
                self._port.count("tx_queue_full")
            else:
                self._waiting.append(bytes(frame))
                self._size += len(frame)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and self._timer is None:
            # Not in this turn: a module that answers itself would never let it end.
            self._timer = self._dispatch.call_at(self._dispatch.now(), self._deliver)

    def _deliver(self) -> None:
        self._timer = None
        batch: list[Frame] = []
        size = 0
        while self._waiting and len(batch) < BATCH_MAX and size < BATCH_BYTES:
            frame = self._waiting.popleft()
            batch.append(frame)
            size += len(frame)
        self._size -= size
        if batch:
            self._port.deliver(batch)
        self._schedule()


def _attach(context: Context, options: LoOptions) -> LoopbackDriver:
    return LoopbackDriver(context.dispatch, options)


MODULE = Module("lo", Kind.DRIVER, LoOptions, _attach)
