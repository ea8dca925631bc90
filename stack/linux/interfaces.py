"""This machine's network interfaces and their IP addresses, asked of the kernel: rtnetlink(7). Linux only.

A question is one dump, which the kernel answers at once. Notifications say only that something changed; whoever hears one asks for
everything anew, which no lost notification can make wrong. Every socket belongs to the network namespace in which it was made.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import Self

import attrs

from resmgr.errors import BadMessage
from stack.linux.rtnetlink import RECEIVE_MAX
from stack.wire.rtnetlink import (
    RTM_GETADDR,
    RTM_GETLINK,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_LINK,
    Link,
    dump,
    is_last,
    parse_addresses,
    parse_messages,
)

log = logging.getLogger(__name__)

_KIND = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


@attrs.frozen
class LocalAddress:
    """An address of this machine that can be bound. `up`: its interface is switched on and has carrier."""

    address: str
    interface: str
    index: int
    mtu: int
    up: bool
    loopback: bool

    @property
    def link_local(self) -> bool:
        return ipaddress.ip_address(self.address).is_link_local

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.address


class Rtnetlink:
    """A socket to ask the kernel by; close it, or use it in `with`. OSError when there is no rtnetlink."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, _KIND, socket.NETLINK_ROUTE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        self._sock.close()

    def links(self) -> list[Link]:
        """All interfaces, in the kernel's order: oldest first."""
        return [link for data in self._ask(RTM_GETLINK) for link in parse_messages(data) if isinstance(link, Link)]

    def addresses(self) -> list[LocalAddress]:
        """All addresses that can be bound, in the kernel's order: an interface's primary IPv4 address comes before its others."""
        links = {link.index: link for link in self.links()}
        found = []
        for data in self._ask(RTM_GETADDR):
            for one in parse_addresses(data):
                link = links.get(one.index)
                if link is not None and one.usable:
                    text = str(ipaddress.ip_address(one.address))
                    found.append(LocalAddress(text, link.name, link.index, link.mtu, link.up, link.loopback))
        return found

    def _ask(self, kind: int) -> list[bytes]:
        answer: list[bytes] = []
        try:
            self._sock.send(dump(kind))
            while not answer or not is_last(answer[-1]):
                answer.append(self._sock.recv(RECEIVE_MAX))
        except (BlockingIOError, BadMessage) as error:
            log.warning("the kernel's list of links and addresses ends early: %s", error)
        return answer


def notices() -> socket.socket:
    """Readable when links or addresses may have changed. What is read says no more than that, ENOBUFS included. OSError when there is no
    rtnetlink."""
    sock = socket.socket(socket.AF_NETLINK, _KIND, socket.NETLINK_ROUTE)
    try:
        sock.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
    except OSError:
        sock.close()
        raise
    return sock
