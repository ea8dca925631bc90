"""A line per frame that passes a driver: wrapper `tracer` with `direction=rx,rate=20,file=/tmp/trace.txt,hex=32`.

    en0 > 02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff ARP who has 10.0.0.2, tell 10.0.0.1 42 bytes
    en0 < ...
    en0 drops tx_queue_full 3

`>` is on the way out. Lines go to the log at level INFO (io-pkt -v), or to `file`, which is appended to. There are at most `rate` lines a
second and `burst` at once; the next one says how many frames passed untold. So a tracer may be left in place on a busy link.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Mapping
from typing import Literal

import attrs

from resmgr.bucket import TokenBucket
from resmgr.dispatch import Dispatch
from stack.core.errors import ModuleError
from stack.core.module import Context, Kind, Module
from stack.core.wrapper import Around
from stack.frame import BadFrame, Frame
from stack.wire.ethernet import ethertype_of
from stack.wire.summary import summary

log = logging.getLogger(__name__)

HEX_MAX = 1514


@attrs.frozen
class TracerOptions:
    """Options of the wrapper `tracer`."""

    direction: Literal["both", "tx", "rx"] = "both"
    rate: float = attrs.field(default=100.0, validator=attrs.validators.gt(0.0))
    """Lines per second."""
    burst: int = attrs.field(default=100, validator=attrs.validators.ge(1))
    file: str | None = None
    hex: int = attrs.field(default=0, validator=[attrs.validators.ge(0), attrs.validators.le(HEX_MAX)])
    """So many bytes of each frame in hexadecimal behind the line."""
    type: tuple[int, ...] = ()
    """Only frames of these ethertypes."""


class TracerDriver(Around):
    """See the head of this file. ModuleError when the file cannot be written."""

    def __init__(self, dispatch: Dispatch, options: TracerOptions) -> None:
        super().__init__()
        self._dispatch = dispatch
        self._options = options
        self._budget = TokenBucket(options.rate, options.burst)
        self._untold = 0
        self._lines = 0
        self._out: int | None = None
        self._failed = ""
        if options.file is not None:
            try:
                self._out = os.open(options.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
            except OSError as error:
                raise ModuleError(error.errno or errno.EIO, f"cannot write {options.file}: {error.strerror}") from error

    def to_wire(self, frames: list[Frame]) -> None:
        if self._options.direction != "rx":
            self._tell(frames, ">")
        self.send(frames)

    def to_stack(self, frames: list[Frame]) -> None:
        if self._options.direction != "tx":
            self._tell(frames, "<")
        self.hand_up(frames)

    def count(self, reason: str, number: int = 1) -> None:
        if self._budget.take(self._dispatch.now()):
            self._write([f"drops {reason} {number}"])
        super().count(reason, number)

    def close(self) -> None:
        if self._out is not None:
            os.close(self._out)
            self._out = None

    def info(self) -> Mapping[str, str | int]:
        told = {"traced lines": self._lines, "frames passed untold": self._untold}
        return {**self.inner.info(), **told, **({"trace ended": self._failed} if self._failed else {})}

    def _tell(self, frames: list[Frame], sign: str) -> None:
        if self._failed or (self._out is None and not log.isEnabledFor(logging.INFO)):
            return
        now, take = self._dispatch.now(), self._budget.take
        if self._options.type:
            frames = [frame for frame in frames if _is_of(frame, self._options.type)]
        lines = []
        for number, frame in enumerate(frames):
            if not take(now):
                self._untold += len(frames) - number
                break
            more = f" {bytes(frame[: self._options.hex]).hex()}" if self._options.hex else ""
            lines.append(f"{sign} {summary(frame)}{more}" + (f" ({self._untold} before it untold)" if self._untold else ""))
            self._untold = 0
        if lines:
            self._write(lines)

    def _write(self, lines: list[str]) -> None:
        self._lines += len(lines)
        if self._out is None:
            for line in lines:
                log.info("%s %s", self.name, line)
            return
        wall = self._dispatch.wall()
        stamp = time.strftime("%H:%M:%S", time.gmtime(wall)) + f"{wall % 1:.6f}"[1:]
        try:
            os.write(self._out, "".join(f"{stamp} {self.name} {line}\n" for line in lines).encode())
        except BlockingIOError:
            self._untold += len(lines)
        except OSError as error:
            self._failed = error.strerror or "it cannot be written"
            log.warning("tracer: %s is not written any further: %s", self._options.file, self._failed)


def _is_of(frame: Frame, types: tuple[int, ...]) -> bool:
    try:
        return ethertype_of(frame) in types
    except BadFrame:
        return True


def _attach(context: Context, options: TracerOptions) -> TracerDriver:
    return TracerDriver(context.dispatch, options)


MODULE = Module("tracer", Kind.WRAPPER, TracerOptions, _attach)
