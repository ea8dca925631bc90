"""What a driver offers besides `Driver` when its stations are IP endpoints: non-broadcast multiple access.

Such a link looks like an Ethernet without broadcast. The driver gives each remote endpoint a station address, a locally administered MAC
address that means something on this interface of this node only; who wants to send to an endpoint asks for its station, and frames that
arrive name the station of the endpoint that they came from. So protocols above need no word about IP: an address stays an interface and a
MAC address.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard

from stack.wire.endpoint import Endpoint


class Endpoints(Protocol):
    """Calls in dispatch context; none blocks."""

    @property
    def port(self) -> int:
        """Our UDP port."""
        ...

    def station(self, endpoint: Endpoint) -> bytes | None:
        """The station of *endpoint*, kept until `release`, however much arrives from elsewhere. None when it cannot be sent to from here

        (no socket of that family, our own endpoint, a group) or too many are kept. Each call needs a `release` of its own.
        """
        ...

    def release(self, endpoint: Endpoint) -> None:
        """*endpoint* is not needed any more on behalf of one `station` call. Frames to and from it still pass while there is room."""
        ...

    def endpoint(self, station: bytes) -> Endpoint | None:
        """Which endpoint has that station; None when it has been forgotten or never was."""
        ...

    def local(self) -> tuple[Endpoint, ...]:
        """Our own endpoints on this machine's addresses, without loopback unless that is all there is. At most LOCAL_MAX."""
        ...

    def local_interfaces(self) -> tuple[str, ...]:
        """The machine's interfaces at whose addresses we can be reached."""
        ...


LOCAL_MAX = 64
"""Own endpoints told: machines with hundreds of addresses are not announced at each."""


def has_endpoints(driver: object) -> TypeGuard[Endpoints]:
    """Whether *driver* is one of these."""
    return all(hasattr(driver, name) for name in ("station", "release", "endpoint", "local", "local_interfaces"))
