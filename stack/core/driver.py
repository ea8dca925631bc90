"""The seam between the stack and a driver, and the seam that lets a driver be put around a driver.

    Stack  <- Port ---------- Driver            Stack <- Port - Wrapper (a Driver and a Port) <- Port - Driver
           -- transmit ->                             - transmit ->                         - transmit ->

A driver is attached to one link. It owns its descriptors and timers on the node's dispatch, sends what it is told, and hands up whatever
arrives for this machine. It knows no protocol: the stack tells it which ethertypes anybody wants, so that other frames wake nobody.

All calls happen in dispatch context. None blocks. See docs/howto/driver.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from stack.frame import Frame

BATCH_MAX: Final = 256
"""Frames that a driver hands up per call: bounds how long one link keeps the others waiting."""
BATCH_BYTES: Final = 256 << 10
"""Bytes after which it hands them up although there are more: what is handled batch by batch stays in the processor's cache, and an answer
to the first of many long frames does not wait for all of them."""


class Port(Protocol):
    """What a driver sees above it: the stack's interface, or a wrapper."""

    def deliver(self, frames: list[Frame]) -> None:
        """Hand up received frames, at most BATCH_MAX, in order of arrival. Never raises. They are valid until this returns.

        The stack may call `transmit`, `accept` and `detach` of the driver from within.
        """
        ...

    def changed(self) -> None:
        """The driver's `mac`, `mtu` or `up` has another value now."""
        ...

    def count(self, reason: str, number: int = 1) -> None:
        """Count frames that the driver dropped. *reason*: a `stack.core.statistics.Drop` or the driver's own name."""
        ...


class Driver(Protocol):
    """One link. Made by a module's `attach`, silent until `start`."""

    @property
    def name(self) -> str:
        """The name that the interface gets unless the user chose one."""
        ...

    @property
    def mac(self) -> bytes: ...

    @property
    def mtu(self) -> int:
        """Largest payload of a frame, without the Ethernet header, as everywhere."""
        ...

    @property
    def up(self) -> bool:
        """The link carries frames as far as this end can tell (carrier)."""
        ...

    def start(self, port: Port) -> None:
        """Begin to deliver to *port*. Called once. Nothing is accepted before the first `accept`."""
        ...

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        """From now on deliver these ethertypes (None: all), for our address, broadcast and multicast; others must not wake the node.

        VLAN-tagged frames count by the type behind the tags. Delivering more than this is a waste, not an error.
        """
        ...

    def transmit(self, frames: list[Frame]) -> None:
        """Send in order, or drop and count. Never raises for what the world does. Frames are borrowed until this returns."""
        ...

    def detach(self) -> None:
        """Let go of everything, synchronously; also during `deliver`. Idempotent. Nothing is delivered afterwards."""
        ...

    def info(self) -> Mapping[str, str | int]:
        """How the driver works just now, for people: label to value."""
        ...


class Wrapper(Driver, Protocol):
    """A driver around a driver; it is its inner driver's port."""

    def around(self, driver: Driver) -> None:
        """Take *driver* as the inner one. Called once, before `start`."""
        ...


def in_batches(frames: list[Frame]) -> Iterator[list[Frame]]:
    """*frames* in parts that may be delivered; the list itself if it is not too long."""
    if len(frames) <= BATCH_MAX:
        if frames:
            yield frames
        return
    for start in range(0, len(frames), BATCH_MAX):
        yield frames[start : start + BATCH_MAX]
