"""The interface (BSD's and QNX's `ifnet`): a name, an address, a link that is up or not, and its counters.

An interface is the driver's port: what arrives goes up through here. Modules read it and name it in `Stack.output`; they change nothing.
"""

from __future__ import annotations

import enum
import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from stack.core.driver import Driver
from stack.core.endpoints import Endpoints
from stack.core.errors import ModuleError
from stack.core.isolation import RAISED
from stack.core.layers import stands_on
from stack.core.linuxinterface import linux_index
from stack.core.statistics import Counters, Drop, InterfaceStatistics
from stack.core.told import bounded, labels, link_of
from stack.frame import Frame
from stack.wire.ethernet import MTU_MIN, mac_text

if TYPE_CHECKING:
    from stack.core.isolation import Guard
    from stack.core.stack import Stack

log = logging.getLogger(__name__)

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class InterfaceEvent(enum.Enum):
    """What a module that listens is told. ATTACHED and DETACHED imply no UP or DOWN; `up` of the interface tells."""

    ATTACHED = "attached"
    DETACHED = "detached"
    UP = "up"
    DOWN = "down"
    CHANGED = "changed"
    """MAC address or MTU."""
    ADDRESSES = "addresses"
    """The IP addresses that this machine's kernel has on the link (`Interface.addresses`)."""


class Interface:
    """One link of a stack. `index` is never used twice in a stack's life. `up` is carrier: False also after the link went away, and while
    the interface is switched off (`enabled`). `carrier` and `driver_mtu` are the driver's own, as it last told. `addresses`: IP addresses
    of this machine on the link, as the kernel has them; empty for links that the kernel does not know.

    `promiscuous` counts those who asked for frames of other stations: `Stack.promiscuous`; `groups` has the number of members of each
    group: `Stack.join`.
    `owner` is the interface that alone takes what this one receives (`Stack.own`): a bridge or an aggregate, empty for none. `engine` is
    the kind of the forwarding engine that alone carries its frames (`Stack.carry`), empty for none.
    `endpoints` is there when the link's stations are IP endpoints; it is the innermost driver, whatever is wrapped around that.
    """

    __slots__ = (
        "_stack",
        "addresses",
        "attached",
        "carrier",
        "driver",
        "driver_drops",
        "driver_mtu",
        "drops",
        "enabled",
        "endpoints",
        "engine",
        "groups",
        "guard",
        "index",
        "mac",
        "mtu",
        "mtu_limit",
        "name",
        "owner",
        "promiscuous",
        "rx_bytes",
        "rx_frames",
        "tx_bytes",
        "tx_frames",
        "up",
    )

    def __init__(
        self, stack: Stack, name: str, index: int, driver: Driver, endpoints: Endpoints | None = None, guard: Guard | None = None
    ) -> None:
        self._stack = stack
        self.guard = guard
        """Of the driver's module."""
        self.name = name
        self.index = index
        self.driver = driver
        self.endpoints = endpoints
        self.mac = driver.mac
        self.mtu = self.driver_mtu = driver.mtu
        self.up = self.carrier = driver.up
        self.attached = True
        self.enabled = True
        self.mtu_limit: int | None = None
        """An MTU below the driver's that somebody chose."""
        self.addresses: tuple[str, ...] = ()
        self.promiscuous = 0
        self.owner = ""
        self.engine = ""
        self.groups: dict[bytes, int] = {}
        self.rx_frames = self.rx_bytes = self.tx_frames = self.tx_bytes = 0
        self.drops = Counters()
        self.driver_drops = 0
        """Of these, what its driver counted."""

    @property
    def statistics(self) -> InterfaceStatistics:
        """A frozen copy."""
        info = self._info()  # first: a driver that asks the kernel for its losses counts them now
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
            info,
        )

    def _info(self) -> dict[str, str | int]:
        """What the driver tells people. One that cannot must not keep everybody from the rest."""
        try:
            return self.ask("info", lambda: dict(bounded(labels(self.driver.info()))))
        except RAISED as error:
            return {"does not say": f"{self._whose()}: {type(error).__name__}: {error}"}

    def _whose(self) -> str:
        return f"driver of {self.name}" if self.guard is None else f"module {self.guard.module}"

    @property
    def below(self) -> tuple[str, ...]:
        """Names of what it stands on (`stack.core.layers`); none where its driver does not say, which is counted."""
        try:
            return self.ask("below", stands_on, self.driver)
        except RAISED as error:
            log.debug("%s: %s", self.name, error)
            return ()

    @property
    def linux_index(self) -> int:
        """Of the Linux interface that its driver is on (`stack.core.linuxinterface`); 0 for none, and where it does not say."""
        try:
            return self.ask("linux_index", linux_index, self.driver)
        except RAISED as error:
            log.debug("%s: %s", self.name, error)
            return 0

    def ask(self, what: str, call: Callable[[*Ts], R], *args: *Ts) -> R:
        """Call something of the driver, or of what is around it, as its module (`stack.core.isolation.Guard.ask`)."""
        return call(*args) if self.guard is None else self.guard.ask(what, call, *args)

    def let_go(self, what: str, call: Callable[[*Ts], object], *args: *Ts) -> None:
        """Tell the driver that something is not needed any more. If it fails, that is written down: whoever lets go has done its part."""
        try:
            self.ask(what, call, *args)
        except RAISED as error:
            log.warning("%s: %s: %s", self.name, what, error)

    def deliver(self, frames: list[Frame]) -> None:
        """For the driver: see `stack.core.driver.Port`."""
        if not self.attached:
            self.drops.count(Drop.LINK_DOWN, len(frames))
        elif self.enabled:
            self._stack.received(self, frames)
        else:
            self.drops.count(Drop.SWITCHED_OFF, len(frames))

    def changed(self) -> None:
        """For the driver: take over `mac`, `mtu` and `up` and tell the modules what is new."""
        if not self.attached:
            return
        mac, self.driver_mtu, self.carrier = link_of(self.driver, self._whose())
        mtu = self.driver_mtu if self.mtu_limit is None else min(self.driver_mtu, self.mtu_limit)
        up = self.carrier and self.enabled
        if self._stack.interface(self.name) is not self:
            # It begins: nobody knows of it yet, and what it is when it is attached is told then.
            self.mac, self.mtu, self.up = mac, mtu, up
            return
        if self.mac != mac or self.mtu != mtu:
            self.mac, self.mtu = mac, mtu
            self._stack.tell(InterfaceEvent.CHANGED, self)
        if self.up != up and self.attached:
            self.up = up
            self._stack.tell(InterfaceEvent.UP if self.up else InterfaceEvent.DOWN, self)

    def switch(self, on: bool) -> None:
        """`ifconfig IF up`, `down`: off is without carrier for modules, and what still arrives is dropped and counted."""
        self._choose(on, self.mtu_limit)

    def limit_mtu(self, mtu: int) -> None:
        """Let modules send frames up to *mtu* only; the driver's own again when it is that. ModuleError (EINVAL) for one out of range."""
        if not MTU_MIN <= mtu <= self.driver_mtu:
            raise ModuleError(
                errno.EINVAL,
                f"{self.name}: an MTU of {mtu} is not between {MTU_MIN} and {self.driver_mtu}, which is what its driver carries",
            )
        self._choose(self.enabled, None if mtu == self.driver_mtu else mtu)

    def _choose(self, enabled: bool, mtu_limit: int | None) -> None:
        """What its driver raises is the caller's; then the interface is as it was."""
        before = self.enabled, self.mtu_limit
        self.enabled, self.mtu_limit = enabled, mtu_limit
        try:
            self.ask("link", self.changed)
        except RAISED:
            self.enabled, self.mtu_limit = before
            raise

    def set_addresses(self, addresses: tuple[str, ...]) -> None:
        """For whoever follows the kernel's addresses."""
        if self.attached and self.addresses != addresses:
            self.addresses = addresses
            self._stack.tell(InterfaceEvent.ADDRESSES, self)

    def count(self, reason: str, number: int = 1) -> None:
        """For the driver: count dropped frames. Those that it drops within `transmit` are not among the sent."""
        self.drops.count(reason, number)
        self.driver_drops += number

    def __repr__(self) -> str:
        return f"<Interface {self.name} {mac_text(self.mac)} mtu {self.mtu} {'up' if self.up else 'down'}>"
