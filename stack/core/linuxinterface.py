"""Drivers that sit on an interface of Linux. What works on the interface itself, beside the driver (a forwarding engine), asks for it.

Such a driver has `linux_interface` and `stand_aside`, and is then an `OnLinux`.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard

import attrs

from stack.core.driver import Driver


@attrs.frozen
class LinuxInterface:
    """`namespace`: a descriptor of the network namespace in which name and index hold; the caller's, to be closed."""

    name: str
    index: int
    namespace: int


class OnLinux(Driver, Protocol):
    """A driver on an interface of Linux."""

    def linux_interface(self) -> LinuxInterface | None:
        """The interface just now; None while it is gone. OSError when the right to ask is missing (CAP_NET_ADMIN)."""
        ...

    def stand_aside(self, aside: bool) -> None:
        """True: receive nothing from now on, since somebody else receives for this port and calls its `deliver`. False: as before.

        Sending, the link and promiscuity are not touched; `accept` and `screen` are remembered.
        """
        ...


def on_linux(driver: Driver) -> TypeGuard[OnLinux]:
    return hasattr(driver, "linux_interface") and hasattr(driver, "stand_aside")
