"""Promiscuous interfaces: those that receive what is for other stations too. Bridges, aggregates and taps ask for it,
with `Stack.promiscuous`; protocols above Ethernet never see what is not for this machine.

A driver that can has `promiscuous`, and is then a `Promiscuous`. One that cannot is refused to whoever asks.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeGuard

from stack.capability import capability
from stack.core.driver import Driver
from stack.core.errors import ModuleError, refusal
from stack.core.isolation import RAISED

if TYPE_CHECKING:
    from stack.core.ifnet import Interface


class Promiscuous(Driver, Protocol):
    """A driver that can deliver frames for other stations."""

    def promiscuous(self, on: bool) -> None:
        """From now on deliver what is for other stations too, or not any more; `accept` holds as before. OSError of the system."""
        ...


def promiscuous_driver(driver: Driver) -> Promiscuous | None:
    """*driver*, or the one that is wrapped in it, if it can."""
    return capability(driver, _can)


def _can(driver: object) -> TypeGuard[Promiscuous]:
    return hasattr(driver, "promiscuous")


def hear_everybody(interface: Interface, name: str) -> Callable[[], None]:
    """For the stack: one more who needs that of *interface*. Returns what ends it. ModuleError when the driver cannot or is refused."""
    driver = promiscuous_driver(interface.driver)
    if driver is None:
        raise ModuleError(errno.EOPNOTSUPP, f"{interface.name} cannot receive frames for other stations, which {name} needs")
    if not interface.promiscuous:
        try:
            interface.ask("promiscuous", driver.promiscuous, True)
        except RAISED as error:
            raise refusal(f"{interface.name} does not become promiscuous", error) from error
    interface.promiscuous += 1

    def end() -> None:
        interface.promiscuous -= 1
        if not interface.promiscuous and interface.attached:
            interface.let_go("promiscuous", driver.promiscuous, False)

    return end
