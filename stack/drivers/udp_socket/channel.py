"""A UDP socket of the driver: both ways, and which addresses of this machine it serves."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable, Mapping

from resmgr.dispatch import Dispatch
from stack.core.errors import ModuleError
from stack.drivers.udp_socket.constants import (
    IP_FREEBIND,
    IP_MTU_DISCOVER,
    IP_PKTINFO,
    IPV6_FREEBIND,
    IPV6_MTU_DISCOVER,
    PMTUDISC_PROBE,
    SK_MEMINFO_DROPS,
    SO_MEMINFO,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
)
from stack.drivers.udp_socket.receiver import Receiver
from stack.drivers.udp_socket.sender import Socket
from stack.filter.bpf.assembler import RET, WHOLE
from stack.filter.bpf.attach import attach
from stack.linux.buffers import widen
from stack.linux.interfaces import LocalAddress

SEND_BUFFER = 4 << 20
"""Bytes, if we have the right; wmem_max otherwise."""


class Channel:
    """See the head of this file."""

    def __init__(self, out: Socket, receiver: Receiver, bound: str, index: int, coalesces: bool) -> None:
        self.out = out
        self.receiver = receiver
        self.bound = bound
        """"": all addresses of its family."""
        self.index = index
        """Of the interface of a link-local address."""
        self.coalesces = coalesces
        self.overruns = 0
        self._drops = 0
        self._listening = False

    def serves(self, local: LocalAddress) -> bool:
        if self.out.is_ipv6 != local.is_ipv6:
            return False
        return local.address == self.bound and self.index in (0, local.index) if self.bound else True

    def listen(self, wanted: bool) -> None:
        """Let datagrams wake the node, or have the kernel drop them."""
        self.overrun()
        self._listening = wanted
        attach(self.out.sock, ((RET, 0, 0, WHOLE if wanted else 0),))

    def overrun(self) -> int:
        """How many datagrams the kernel dropped since the last call; those that nobody wanted are not counted."""
        told = self.out.sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * (SK_MEMINFO_DROPS + 1))
        (drops,) = struct.unpack_from("=I", told, 4 * SK_MEMINFO_DROPS)
        fresh = int(drops - self._drops) & 0xFFFFFFFF
        self._drops = drops
        if not self._listening:
            return 0
        self.overruns += fresh
        return fresh


def parse_bind(text: str, interfaces: Mapping[str, int]) -> tuple[str, socket.AddressFamily, int]:
    """`bind=` as what `open_channel` takes: address ("": all), family, index of the interface. ModuleError when it is no address."""
    address, _, interface = text.partition("%")
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        raise ModuleError(errno.EINVAL, f"udp: bind={text}: {address!r} is not an IP address of this machine") from None
    index = 0
    if found.version == 6 and found.is_link_local:
        index = interfaces.get(interface, 0)
        if not index:
            raise ModuleError(errno.EADDRNOTAVAIL, f"udp: bind={text}: a link-local address needs its interface, like {address}%eth0")
    return "" if found.is_unspecified else str(found), socket.AF_INET6 if found.version == 6 else socket.AF_INET, index


def open_channel(
    bound: str,
    port: int,
    family: socket.AddressFamily,
    index: int,
    *,
    dispatch: Dispatch,
    buffer: int,
    queue: int,
    room: int,
    offload: bool,
    count: Callable[[str, int], None],
) -> Channel:
    """A socket on *bound* ("": all addresses) and *port* (0: any), deaf until `listen`. ModuleError when that cannot be had."""
    ipv6 = family == socket.AF_INET6
    host = bound or ("::" if ipv6 else "0.0.0.0")
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise ModuleError(error.errno or errno.EIO, f"this kernel opens no UDP socket for {host}: {error.strerror}") from error
    coalesces = offload and _has(sock, UDP_GRO, 1)
    out = Socket(sock, dispatch, queue, offload and _has(sock, UDP_SEGMENT, 0), count)
    channel = Channel(out, Receiver(sock, room), bound, index, coalesces)
    try:
        if ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _set(sock, (IP_MTU_DISCOVER, IPV6_MTU_DISCOVER), PMTUDISC_PROBE)
        _set(sock, (IP_FREEBIND, IPV6_FREEBIND) if bound else (IP_PKTINFO, socket.IPV6_RECVPKTINFO), 1)
        widen(sock, socket.SO_RCVBUF, buffer)
        widen(sock, socket.SO_SNDBUF, SEND_BUFFER)
        channel.listen(False)
        sock.bind((host, port, 0, index) if ipv6 else (host, port))
    except OSError as error:
        sock.close()
        hint = "; another program, or another driver of this one, has it: choose another port=" if error.errno == errno.EADDRINUSE else ""
        why = (error.strerror or "").lower()
        raise ModuleError(error.errno or errno.EIO, f"udp: cannot use {host} port {port}: {why}{hint}") from error
    return channel


def _set(sock: socket.socket, numbers: tuple[int, int], value: int) -> None:
    """An option that IPv4 and IPv6 number differently."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, numbers[1], value)
    else:
        sock.setsockopt(socket.IPPROTO_IP, numbers[0], value)


def _has(sock: socket.socket, option: int, value: int) -> bool:
    """Whether the kernel has that option of UDP."""
    try:
        sock.setsockopt(SOL_UDP, option, value)
    except OSError:
        return False
    return True
