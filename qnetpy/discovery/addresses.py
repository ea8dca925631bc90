"""The kernel's addresses of interfaces, as mDNS needs them: which can be used now, and news of changes. Linux only."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
from collections.abc import Iterable

import attrs

log = logging.getLogger(__name__)

# Linux: <linux/in.h>, <linux/in6.h>, <linux/rtnetlink.h>, <linux/if.h>, <linux/sockios.h>.
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29
_RTMGRP_LINK = 0x1
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100
_SIOCGIFFLAGS = 0x8913
_SIOCGIFADDR = 0x8915
_IPV6_ADDR_LINKLOCAL = 0x20
_IFA_F_DADFAILED = 0x08
_IFA_F_TENTATIVE = 0x40
_IFF_UP_AND_RUNNING = 0x1 | 0x40


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


def notices_socket() -> socket.socket | None:
    """The kernel's notifications of links and addresses."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        sock.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
    except OSError as error:
        log.info("discovery: no notifications of address changes: %s", error)
        return None
    return sock


def usable_addresses(names: Iterable[str]) -> dict[str, Addresses]:
    """Of those interfaces in *names* that are up, have carrier and have an address that mDNS can use now."""
    import fcntl

    linklocal = _linklocal()
    found: dict[str, Addresses] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        for name in names:
            try:
                index = socket.if_nametoindex(name)
                flags = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16s24x", name.encode()))
            except OSError:
                continue  # The interface is gone; the stack will say so.
            if struct.unpack_from("H", flags, 16)[0] & _IFF_UP_AND_RUNNING != _IFF_UP_AND_RUNNING:
                continue
            try:
                ipv4 = socket.inet_ntoa(fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("16s24x", name.encode()))[20:24])
            except OSError:
                ipv4 = None
            ipv6 = linklocal.get(index)
            if ipv4 is not None or ipv6 is not None:
                found[name] = Addresses(index, ipv4, ipv6)
    return found


def _linklocal() -> dict[int, str]:
    """Usable link-local addresses by interface index. Ones still checked for duplicates cannot be bound, and are left out."""
    found: dict[int, str] = {}
    try:
        with open("/proc/self/net/if_inet6", encoding="ascii") as file:
            lines = file.readlines()
    except OSError:
        return found  # A kernel without IPv6.
    for line in lines:
        address, index, _, scope, flags, _ = line.split()
        if int(scope, 16) == _IPV6_ADDR_LINKLOCAL and not int(flags, 16) & (_IFA_F_DADFAILED | _IFA_F_TENTATIVE):
            found.setdefault(int(index, 16), socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address)))
    return found
