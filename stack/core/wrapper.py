"""What all wrappers share: a driver around a driver that changes nothing. A wrapper is a subclass that overrides what it is about.

    to_wire(frames)     on the way down; calls `send` for those that go on
    to_stack(frames)    on the way up; calls `hand_up` for those that go on

Both are called only between `start` and `detach`, and frames are borrowed in both: what is kept beyond the call is a copy.
"""

from __future__ import annotations

from collections.abc import Mapping

from resmgr.errors import Misuse
from stack.core.driver import Driver, Port
from stack.core.screen import Screen, can_screen
from stack.frame import Frame


class Around:
    """See the head of this file, and `stack.core.driver.Wrapper` and `Port`, which it is. Capabilities of the innermost driver are found
    along `inner`, through any number of wrappers."""

    def __init__(self) -> None:
        self._inner: Driver | None = None
        self._port: Port | None = None
        self._detached = False

    # For subclasses

    def to_wire(self, frames: list[Frame]) -> None:
        self.send(frames)

    def to_stack(self, frames: list[Frame]) -> None:
        self.hand_up(frames)

    def send(self, frames: list[Frame]) -> None:
        """Give *frames* to the inner driver."""
        self.inner.transmit(frames)

    def hand_up(self, frames: list[Frame]) -> None:
        """Give at most BATCH_MAX frames to whoever is above."""
        if self._port is not None and not self._detached:
            self._port.deliver(frames)

    def close(self) -> None:
        """Called once, when the wrapper is detached, before the inner driver is."""

    # A driver

    def around(self, driver: Driver) -> None:
        if self._inner is not None:
            raise Misuse("the wrapper has a driver already")
        self._inner = driver

    @property
    def inner(self) -> Driver:
        if self._inner is None:
            raise Misuse("the wrapper has no driver yet")
        return self._inner

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def mac(self) -> bytes:
        return self.inner.mac

    @property
    def mtu(self) -> int:
        return self.inner.mtu

    @property
    def up(self) -> bool:
        return self.inner.up

    def start(self, port: Port) -> None:
        self._port = port
        self.inner.start(self)

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        self.inner.accept(ethertypes)

    def screen(self, screens: Mapping[int, Screen]) -> None:
        """Passed on to a driver that screens; others deliver everything."""
        if can_screen(self.inner):
            self.inner.screen(screens)

    @property
    def shed(self) -> int:
        return self.inner.shed if can_screen(self.inner) else 0

    def transmit(self, frames: list[Frame]) -> None:
        if not self._detached:
            self.to_wire(frames)

    def detach(self) -> None:
        if self._detached:
            return
        self._detached = True
        self.close()
        if self._inner is not None:
            self._inner.detach()

    def info(self) -> Mapping[str, str | int]:
        return self.inner.info()

    # A port

    def deliver(self, frames: list[Frame]) -> None:
        if not self._detached:
            self.to_stack(frames)

    def changed(self) -> None:
        if self._port is not None:
            self._port.changed()

    def count(self, reason: str, number: int = 1) -> None:
        if self._port is not None:
            self._port.count(reason, number)
