"""Promiscuous interfaces: those that receive what is for other stations too. Bridges, aggregates and taps ask for it,
with `Stack.promiscuous`; protocols above Ethernet never see what is not for this machine.

A driver that can has `promiscuous`, and is then a `Promiscuous`. One that cannot is refused to whoever asks.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard

from stack.capability import capability
from stack.core.driver import Driver


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
