"""The interfaces of this node, as the link machine sees them."""

from __future__ import annotations

import attrs

from qnetpy.link.wire import Address


@attrs.define
class Port:
    """An interface of ours. `mtu` is its longest Ethernet payload."""

    mac: bytes
    mtu: int
    up: bool


class Ports(dict[str, Port]):
    """Interfaces by name."""

    def __init__(self, ethertype: int) -> None:
        super().__init__()
        self._type = ethertype.to_bytes(2, "big")

    def usable(self, address: Address) -> bool:
        """Whether the interface of *address* is there and up."""
        port = self.get(address[0])
        return port is not None and port.up

    def prefix(self, address: Address) -> bytes:
        """The Ethernet header of frames to *address*."""
        port = self.get(address[0])
        return address[1] + (port.mac if port is not None else bytes(6)) + self._type

    def mtu(self, interface: str) -> int:
        port = self.get(interface)
        return 65535 if port is None else port.mtu
