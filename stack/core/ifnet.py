"""The interface (BSD's and QNX's `ifnet`): a name, an address, a link that is up or not, and its counters.

An interface is the driver's port: what arrives goes up through here. Modules read it and name it in `Stack.output`; they change nothing.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from stack.core.driver import Driver
from stack.core.endpoints import Endpoints
from stack.core.statistics import Counters, InterfaceStatistics
from stack.frame import Frame
from stack.wire.ethernet import mac_text

if TYPE_CHECKING:
    from stack.core.stack import Stack


class InterfaceEvent(enum.Enum):
    """What a module that listens is told. ATTACHED and DETACHED imply no UP or DOWN; `up` of the interface tells."""

    ATTACHED = "attached"
    DETACHED = "detached"
    UP = "up"
    DOWN = "down"
    CHANGED = "changed"
    """MAC address or MTU."""


class Interface:
    """One link of a stack. `index` is never used twice in a stack's life. `up` is carrier: False also after the link went away.

    `promiscuous` counts those who asked for frames of other stations: `Stack.promiscuous`; `groups` has the number of members of each
    group: `Stack.join`.
    `endpoints` is there when the link's stations are IP endpoints; it is the innermost driver, whatever is wrapped around that.
    """

    __slots__ = (
        "_stack",
        "attached",
        "driver",
        "drops",
        "endpoints",
        "groups",
        "index",
        "mac",
        "mtu",
        "name",
        "promiscuous",
        "rx_bytes",
        "rx_frames",
        "tx_bytes",
        "tx_frames",
        "up",
    )

    def __init__(self, stack: Stack, name: str, index: int, driver: Driver, endpoints: Endpoints | None = None) -> None:
        self._stack = stack
        self.name = name
        self.index = index
        self.driver = driver
        self.endpoints = endpoints
        self.mac = driver.mac
        self.mtu = driver.mtu
        self.up = driver.up
        self.attached = True
        self.promiscuous = 0
        self.groups: dict[bytes, int] = {}
        self.rx_frames = self.rx_bytes = self.tx_frames = self.tx_bytes = 0
        self.drops = Counters()

    @property
    def statistics(self) -> InterfaceStatistics:
        """A frozen copy."""
        return InterfaceStatistics(
            self.name,
            self.mac,
            self.mtu,
            self.up,
            self.rx_frames,
            self.rx_bytes,
            self.tx_frames,
            self.tx_bytes,
            self.drops.copy_frozen(),
            dict(self.driver.info()),
        )

    def deliver(self, frames: list[Frame]) -> None:
        """For the driver: see `stack.core.driver.Port`."""
        if self.attached:
            self._stack.received(self, frames)

    def changed(self) -> None:
        """For the driver: take over `mac`, `mtu` and `up` and tell the modules what is new."""
        if not self.attached:
            return
        driver = self.driver
        if (self.mac, self.mtu) != (driver.mac, driver.mtu):
            self.mac, self.mtu = driver.mac, driver.mtu
            self._stack.tell(InterfaceEvent.CHANGED, self)
        up = driver.up
        if self.up != up and self in self._stack.interfaces:
            self.up = up
            self._stack.tell(InterfaceEvent.UP if self.up else InterfaceEvent.DOWN, self)

    def count(self, reason: str, number: int = 1) -> None:
        """For the driver: count dropped frames."""
        self.drops.count(reason, number)

    def __repr__(self) -> str:
        return f"<Interface {self.name} {mac_text(self.mac)} mtu {self.mtu} {'up' if self.up else 'down'}>"
