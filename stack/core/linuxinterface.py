"""Drivers that sit on an interface of Linux.

One says by `linux_index` which one it is, or what it is wrapped around does: then that one's IP addresses are this link's
(`stack.core.addresses`). What works on the interface itself, beside the driver and with nothing between (a forwarding engine), asks for
more: a driver that lends it has `linux_interface` and `stand_aside`, and is then an `OnLinux`. The first takes no right, the second does.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard

import attrs

from stack.capability import capability
from stack.core.driver import Driver


def linux_index(driver: object) -> int:
    """The index of the Linux interface that *driver*, or the one that it is wrapped around, works on; 0 for none."""
    found = capability(driver, _has_index)
    return 0 if found is None else found.linux_index


class _Indexed(Protocol):
    linux_index: int


def _has_index(driver: object) -> TypeGuard[_Indexed]:
    return isinstance(getattr(driver, "linux_index", None), int)


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
