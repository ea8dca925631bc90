"""What carries frames: the seam below links. A bearer knows what an address on its kind of interface is; nobody above looks inside one.

A `Port` is an interface of ours together with its bearer. Frames from a port begin with a header of the bearer's, which ends where
`LinkMachine.receive` is told; frames to a port begin with what `prefix` gives. A second bearer is a class like `qnetpy.link.ethernet`, and
somebody who hands its frames over; one connection may use ports of several bearers at once.
"""

from __future__ import annotations

from typing import Protocol

import attrs

from qnetpy.link.wire import Address

NUMBERS_MAX = 255
"""Port numbers; 0 is none."""


class Bearer(Protocol):
    """Stations are bytes, at most MAX_STATION of them (qnetpy.link.transport.constants). Nothing here raises for what a frame holds."""

    def individual(self, station: bytes) -> bool:
        """Whether that can be the address of one node: not a group, not nobody."""
        ...

    def source(self, frame: memoryview) -> bytes:
        """The station that a frame says it comes from. The frame's header is whole."""
        ...

    def prefix(self, own: bytes, station: bytes) -> bytes:
        """What goes before a frame from our address *own* to *station*."""
        ...


@attrs.define
class Port:
    """An interface of ours. `mtu` is the longest frame it takes, without the bearer's header."""

    bearer: Bearer
    station: bytes
    """Our address on it."""
    mtu: int
    up: bool
    number: int
    """For the peers; never another's as long as the daemon runs. 0: there were too many."""


class Ports(dict[str, Port]):
    """Interfaces by name."""

    def __init__(self) -> None:
        super().__init__()
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
        port = self[address[0]]
        return port.bearer.prefix(port.station, address[1])

    def mtu(self, interface: str) -> int:
        port = self.get(interface)
        return 65535 if port is None else port.mtu
