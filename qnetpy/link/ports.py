"""Ports: interfaces of ours, as links see them. The seam below links.

Frames from a port begin with an Ethernet header, which ends where `LinkMachine.receive` is told; frames to a port begin with what `prefix`
gives. What carries them is a driver of the stack: on a port of the UDP driver a MAC address stands for an IP endpoint
(docs/decisions/udp-driver.md). One connection may use ports of several drivers at once.
"""

from __future__ import annotations

from typing import Final

from qnetpy.link.ethernet import header
from qnetpy.link.wire import Address

NUMBERS_MAX: Final = 255
"""Port numbers; 0 is none."""


class Port:
    """An interface of ours. `mtu` is the longest frame it takes, without the Ethernet header."""

    __slots__ = ("mtu", "number", "shared", "station", "up")

    def __init__(self, station: bytes, mtu: int, up: bool, number: int, shared: bool) -> None:
        self.station = station
        """Our address on it."""
        self.mtu = mtu
        self.up = up
        self.number = number
        """For the peers; never another's as long as the daemon runs. 0: there were too many."""
        self.shared = shared
        """Peers know us by `station`, as on an Ethernet. Where each end numbers the stations for itself, as over UDP, a peer knows
        another."""


class Ports(dict[str, Port]):
    """Interfaces by name."""

    def __init__(self, ethertype: int) -> None:
        super().__init__()
        self._ethertype = ethertype
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        """The number of the interface of that name, given at first sight; 0 when there are no more."""
        number = self._numbers.get(name, 0)
        if not number and len(self._numbers) < NUMBERS_MAX:
            number = self._numbers[name] = len(self._numbers) + 1
        return number

    def usable(self, address: Address) -> bool:
        """Whether the interface of *address* is there and up."""
        port = self.get(address[0])
        return port is not None and port.up

    def prefix(self, address: Address) -> bytes:
        """What goes before frames to *address*. Its interface exists."""
        return header(address[1], self[address[0]].station, self._ethertype)

    def mtu(self, interface: str) -> int:
        port = self.get(interface)
        return 65535 if port is None else port.mtu
