"""Packet sockets as the driver makes them, and what it says when it cannot."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from stack.core.errors import ModuleError
from stack.drivers.af_packet.filter import program
from stack.filter.bpf.attach import attach
from stack.linux.buffers import widen
from stack.linux.constants import ARPHRD_ETHER, ARPHRD_LOOPBACK, PACKET_IGNORE_OUTGOING, SOL_PACKET
from stack.linux.linkmonitor import LinkMonitor
from stack.wire.ethernet import MAC_SIZE
from stack.wire.rtnetlink import Link

SEND_BUFFER = 4 << 20
"""Bytes, if we have the right; wmem_max otherwise."""
INTERFACES_TOLD = 8
"""Names of interfaces in a message about one that is not there."""


def find_ethernet(monitor: LinkMonitor, ifname: str) -> Link:
    """The interface, which *monitor* then watches. ModuleError when there is none, or it is no Ethernet."""
    link = monitor.find(ifname)
    if link is None:
        raise ModuleError(errno.ENODEV, _no_interface(ifname))
    if not is_ethernet(link):
        raise ModuleError(errno.EINVAL, f"{ifname} is no Ethernet interface (device type {link.kind})")
    return link


def is_ethernet(link: Link) -> bool:
    return link.kind in (ARPHRD_ETHER, ARPHRD_LOOPBACK) and len(link.mac) == MAC_SIZE


def open_socket(ifname: str) -> socket.socket:
    """A packet socket that hears nothing yet. ModuleError without the right."""
    try:
        # Protocol 0: nothing is received until bind, when the filter is in place.
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except PermissionError as refused:
        raise ModuleError(
            errno.EPERM, f"no right to send and receive frames on {ifname}: this needs root or the capability CAP_NET_RAW"
        ) from refused
    except OSError as error:
        raise ModuleError(error.errno or errno.EIO, f"this kernel opens no packet socket: {error.strerror}") from error
    try:
        attach(sock, program(frozenset()))
        # The filter drops them as well; this way they do not even get there.
        sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        widen(sock, socket.SO_SNDBUF, SEND_BUFFER)
    except BaseException:
        sock.close()
        raise
    return sock


def fetch_error(sock: socket.socket) -> None:
    """An error of a socket makes it readable until somebody fetches it."""
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def close_all(sockets: Iterable[socket.socket]) -> None:
    for one in sockets:
        one.close()


def _no_interface(name: str) -> str:
    """The sentence about an interface that is not there, with those that are."""
    there = sorted(other for _, other in socket.if_nameindex())
    few = ", ".join(there[:INTERFACES_TOLD]) + (", ..." if len(there) > INTERFACES_TOLD else "")
    return f"there is no network interface {name} in this network namespace; there is: {few or 'none'}"
