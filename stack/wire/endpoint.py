"""Endpoints: an IP address, a UDP port and, for IPv6 link-local addresses, the interface through which it is meant. As values and as text.

    10.1.0.2:34997        [2001:db8::2]:34997        [fe80::1%3]:34997

Addresses are kept in the one spelling that the kernel uses, so that equal endpoints are equal values; IPv4 addresses that come mapped into
IPv6 are IPv4. `sockaddr` is what Python's socket calls take and give.
"""

from __future__ import annotations

import ipaddress
import re

import attrs

SockAddr = tuple[str, int] | tuple[str, int, int, int]
"""(host, port) of IPv4; (host, port, 0, scope) of IPv6."""
PORT_DEFAULT = 34997
"""Of Qnet over UDP: 0x88b5, as the ethertype; not assigned to anybody."""
PORT_MAX = 65535
MTU_MIN = 1200
"""Of datagrams: what IPv6 promises (1280), less headers, rounded down."""
DATAGRAM_MAX = 65507
"""Payload of the largest datagram, and of what is cut into segments (IPv4; IPv6 takes 20 bytes more)."""

_WITH_PORT = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^\[\]:]+))(?::(?P<port>[0-9]{1,5}))?\Z")
_HOST = re.compile(r"(?=.{1,253}\.?\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_-]{1,63})*\.?\Z", re.ASCII)


@attrs.frozen
class Endpoint:
    """Where datagrams go. Make it with `endpoint` or `from_sockaddr`. `scope` is an interface index, 0 for all but link-local addresses."""

    address: str
    port: int
    scope: int = 0

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.address

    @property
    def is_link_local(self) -> bool:
        """Whether it is an IPv6 address that means a machine only together with a scope."""
        return self.is_ipv6 and ipaddress.ip_address(self.address).is_link_local

    @property
    def sockaddr(self) -> SockAddr:
        return (self.address, self.port, 0, self.scope) if self.is_ipv6 else (self.address, self.port)

    @property
    def packed(self) -> bytes:
        """The address, 4 or 16 bytes."""
        return ipaddress.ip_address(self.address).packed

    def is_callable(self) -> bool:
        """Whether one machine can be there: not a group, not everybody, not nobody, and with a scope where it needs one."""
        address = ipaddress.ip_address(self.address)
        if not 0 < self.port <= PORT_MAX or address.is_multicast or address.is_unspecified or self.address == "255.255.255.255":
            return False
        return not self.is_link_local or self.scope > 0

    def is_routable(self) -> bool:
        """Whether it means the same machine on other machines: not loopback, not link-local."""
        address = ipaddress.ip_address(self.address)
        return self.is_callable() and not (address.is_loopback or address.is_link_local or address.is_reserved)

    def __str__(self) -> str:
        if not self.is_ipv6:
            return f"{self.address}:{self.port}"
        return f"[{self.address}{f'%{self.scope}' if self.scope else ''}]:{self.port}"


def endpoint(address: str | bytes, port: int, scope: int = 0) -> Endpoint:
    """From an address as text or as 4 or 16 bytes. ValueError when it is none. *scope* is dropped where it has no meaning."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif found.scope_id is not None:
            raise ValueError("the interface of a link-local address is given apart")
    return Endpoint(str(found), port, scope if found.version == 6 and found.is_link_local else 0)


def from_sockaddr(address: SockAddr) -> Endpoint:
    """The endpoint of what a socket call gave."""
    return endpoint(address[0], address[1], address[3] if len(address) == 4 else 0)


def split_host(text: str, port: int) -> tuple[str, int]:
    """`host`, `host:port`, `10.0.0.1:port`, `[2001:db8::1]:port` or `[fe80::1%eth0]:port` as host and port; *port* when none is given,
    and for an IPv6 address without brackets.

    ValueError, one sentence, for anything else. Looks nothing up: the host may be a name, an address, or an address with `%interface`.
    """
    match = _WITH_PORT.match(f"[{text}]" if _is_ipv6(text) else text)
    if match is None:
        raise ValueError(f"{text!r} is not host, host:port or [IPv6 address]:port")
    if match["port"] is not None:
        port = int(match["port"])
    if not 0 < port <= PORT_MAX:
        raise ValueError(f"{text!r}: a port is 1 to {PORT_MAX}")
    if match["six"] is not None:
        if not _is_ipv6(match["six"]):
            raise ValueError(f"{text!r}: {match['six']} is not an IPv6 address")
        return match["six"], port
    if not _HOST.match(match["host"]):
        raise ValueError(f"{text!r}: {match['host']!r} is not a host name")
    return match["host"], port


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
