"""The kernel's addresses of interfaces, as mDNS needs them, and sockets that hear one interface only. Linux only."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable

import attrs

from stack.interfaces import LocalAddress, Rtnetlink

# Linux: <linux/in.h>, <linux/in6.h>.
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29


@attrs.frozen
class Addresses:
    """The kernel's addresses of one interface that is up and has carrier."""

    index: int
    ipv4: str | None
    ipv6: str | None
    """Link-local."""

    def families(self) -> list[str | int | tuple[tuple[str, int, int], int]]:
        """The interface as python-zeroconf wants to be told of it: by IPv4 address and, for IPv6, by index."""
        return [*([] if self.ipv4 is None else [self.ipv4]), *([] if self.ipv6 is None else [self.index])]

    def texts(self) -> list[str]:
        return [address for address in (self.ipv4, self.ipv6) if address is not None]


def confine(sock: socket.socket, interface: str) -> None:
    """Hear only *interface*: Linux gives every socket of the port the groups that any other socket joined, unless told not to."""
    levels = [(socket.IPPROTO_IP, _IP_MULTICAST_ALL)] if sock.family == socket.AF_INET else [(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL)]
    if sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        levels.append((socket.IPPROTO_IP, _IP_MULTICAST_ALL))
    for level, option in levels:
        sock.setsockopt(level, option, 0)
    # Refused to an ordinary user on old kernels; then a unicast answer may arrive through another interface, which does no harm.
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())


def usable_addresses(names: Iterable[str]) -> dict[str, Addresses]:
    """Of those interfaces in *names* that are up, have carrier and have an address that mDNS can use now. OSError when there is no
    rtnetlink."""
    with Rtnetlink() as kernel:
        local = kernel.addresses()
    found: dict[str, Addresses] = {}
    for name in names:
        own = [one for one in local if one.interface == name and one.up]
        ipv4 = _first(one for one in own if not one.is_ipv6)
        ipv6 = _first(one for one in own if one.is_ipv6 and one.link_local)
        if ipv4 is not None or ipv6 is not None:
            found[name] = Addresses(own[0].index, ipv4, ipv6)
    return found


def _first(addresses: Iterable[LocalAddress]) -> str | None:
    return next((one.address for one in addresses), None)
