"""This machine's addresses, and when they change: rtnetlink.

Notifications say only that something changed; a short while later everything is asked for anew, which no lost notification can make wrong.
Both sockets belong to the network namespace in which they were made.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Callable

import attrs

from resmgr.dispatch import Dispatch, Timer
from resmgr.errors import BadMessage
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

RECEIVE_MAX = 1 << 16
DRAIN_MAX = 64
SETTLE = 0.02
"""Seconds between a notification and the look: they come in bursts, and thousands of other interfaces may come and go."""


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


class NetworkMonitor:
    """*changed* is called when links or addresses may have changed. Silent before `start`. OSError when there is no rtnetlink."""

    def __init__(self, dispatch: Dispatch, changed: Callable[[], None]) -> None:
        self._dispatch = dispatch
        self._changed = changed
        self._timer: Timer | None = None
        self._started = False
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._asking = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._notices = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        try:
            self._notices.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
        except OSError:
            self.close()
            raise

    def look(self) -> tuple[LocalAddress, ...]:
        """All addresses that can be bound, sorted. The kernel answers at once."""
        links = {link.index: link for data in self._ask(RTM_GETLINK) for link in parse_messages(data) if isinstance(link, Link)}
        found = []
        for data in self._ask(RTM_GETADDR):
            for one in parse_addresses(data):
                link = links.get(one.index)
                if link is not None and one.usable:
                    text = str(ipaddress.ip_address(one.address))
                    found.append(LocalAddress(text, link.name, link.index, link.mtu, link.up, link.loopback))
        return tuple(sorted(found, key=lambda one: (one.index, one.is_ipv6, one.address)))

    def interfaces(self) -> dict[str, int]:
        """Names and indices of all interfaces."""
        return {link.name: link.index for data in self._ask(RTM_GETLINK) for link in parse_messages(data) if isinstance(link, Link)}

    def _ask(self, kind: int) -> list[bytes]:
        answer: list[bytes] = []
        try:
            self._asking.send(dump(kind))
            while not answer or not is_last(answer[-1]):
                answer.append(self._asking.recv(RECEIVE_MAX))
        except (BlockingIOError, BadMessage) as error:
            log.warning("udp: the kernel's list of links and addresses ends early: %s", error)
        return answer

    def start(self) -> None:
        self._started = True
        self._dispatch.attach_fd(self._notices.fileno(), self._readable)

    def close(self) -> None:
        """Idempotent."""
        if self._started:
            self._started = False
            self._dispatch.detach_fd(self._notices.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._notices.close()
        self._asking.close()

    def _readable(self) -> None:
        for _ in range(DRAIN_MAX):
            try:
                self._notices.recv(RECEIVE_MAX)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
        if self._timer is None:
            self._timer = self._dispatch.call_at(self._dispatch.now() + SETTLE, self._settled)

    def _settled(self) -> None:
        self._timer = None
        self._changed()
