"""The UDP socket of a VXLAN tunnel endpoint, which all networks of a stack with one address and port share: the identifier in each datagram
says whose it is.

The socket is watched on the dispatch of one of the networks, since what a module puts on a dispatch goes with the module; when that one
leaves, another takes over.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Protocol

from resmgr.dispatch import Dispatch
from stack.core.errors import ModuleError
from stack.drivers.udp_socket.recvmmsg import Cells
from stack.frame import BadFrame, Frame
from stack.linux.buffers import widen
from stack.wire import vxlan
from stack.wire.endpoint import Endpoint, SockAddr
from stack.wire.ethernet import HEADER_SIZE

ROUNDS_MAX = 4
"""Calls of recvmmsg per turn, of 64 datagrams each."""
ROOM = 65535

Place = tuple[bool, str, int, str]
"""Where an endpoint is: IPv6 or not, address ("": all), port, interface of groups ("": none)."""


class Network(Protocol):
    """A driver, to its tunnel endpoint."""

    def arrived(self, frames: list[tuple[SockAddr, Frame]]) -> None:
        """Frames of this network and who sent them, until this returns."""
        ...

    def count(self, reason: str, number: int = 1) -> None: ...


class Tunnel:
    """See the head of this file. ModuleError when the address or port cannot be had. Closed when its last network has left."""

    def __init__(self, place: Place, ttl: int, buffer: int) -> None:
        self.place = place
        self.sock = _open(place, ttl, buffer)
        self._ttl = ttl
        self._cells = Cells(self.sock, ROOM)
        self._networks: dict[int, Network] = {}
        self._dispatches: dict[int, Dispatch] = {}
        """Of the networks that listen; the socket is on the first one's."""

    @property
    def networks(self) -> int:
        return len(self._networks)

    @property
    def open(self) -> bool:
        return self.sock.fileno() >= 0

    def enter(self, vni: int, network: Network) -> None:
        """From now on *network* has that identifier. ModuleError when another one of this endpoint has it."""
        if vni in self._networks:
            raise ModuleError(errno.EEXIST, f"vxlan: network {vni} is there already on UDP port {self.place[2]}")
        self._networks[vni] = network

    def listen(self, vni: int, dispatch: Dispatch) -> None:
        """The network with that identifier has started; *dispatch* is its own."""
        self._dispatches[vni] = dispatch
        if len(self._dispatches) == 1:
            dispatch.attach_fd(self.sock.fileno(), self._readable)

    def leave(self, vni: int) -> None:
        """Idempotent."""
        if self._networks.pop(vni, None) is None:
            return
        watched = next(iter(self._dispatches), None) == vni
        dispatch = self._dispatches.pop(vni, None)
        if watched and dispatch is not None:
            dispatch.detach_fd(self.sock.fileno())
            for other in self._dispatches.values():
                other.attach_fd(self.sock.fileno(), self._readable)
                break
        if not self._networks:
            self.sock.close()

    def join(self, group: Endpoint, index: int) -> None:
        """A group of the underlay. What we send there does not come back to us. OSError."""
        if self.place[0]:
            level = socket.IPPROTO_IPV6
            self.sock.setsockopt(level, socket.IPV6_MULTICAST_IF, index)
            self.sock.setsockopt(level, socket.IPV6_MULTICAST_HOPS, self._ttl)
            self.sock.setsockopt(level, socket.IPV6_MULTICAST_LOOP, 0)
            request = level, socket.IPV6_JOIN_GROUP, group.packed + struct.pack("@I", index)
        else:
            self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes(8) + struct.pack("@i", index))
            self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, self._ttl)
            self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            request = socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group.packed + bytes(4) + struct.pack("@i", index)
        try:
            self.sock.setsockopt(*request)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # another network of ours has joined it
                raise

    def _readable(self) -> None:
        for _ in range(ROUNDS_MAX):
            if not self._networks:
                return
            try:
                told, lengths = self._cells.receive()
            except OSError:
                return  # an ICMP message about what we sent: it changes nothing
            found: dict[int, list[tuple[SockAddr, Frame]]] = {}
            for source, _, first, count, _ in told:
                for number in range(first, first + count):
                    self._sort(source, self._cells.cells[number][HEADER_SIZE : HEADER_SIZE + lengths[number]], found)
            for vni, frames in found.items():
                network = self._networks.get(vni)
                if network is not None:
                    network.arrived(frames)
            if len(lengths) < len(self._cells.cells):
                return

    def _sort(self, source: SockAddr, datagram: memoryview, found: dict[int, list[tuple[SockAddr, Frame]]]) -> None:
        reason = "rx_malformed"
        try:
            vni = vxlan.parse(datagram)
            if vni in self._networks:
                found.setdefault(vni, []).append((source, datagram[vxlan.SIZE :]))
                return
            reason = "rx_other_network"
        except BadFrame:
            pass
        # Nobody's: told by the network that was first.
        next(iter(self._networks.values())).count(reason)


def _open(place: Place, ttl: int, buffer: int) -> socket.socket:
    six, address, port, _ = place
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        widen(sock, socket.SO_RCVBUF, buffer)
        sock.bind((address or ("::" if six else "0.0.0.0"), port))
    except OSError as error:
        sock.close()
        where = f"{address or 'all addresses'}, UDP port {port}"
        raise ModuleError(error.errno or errno.EIO, f"vxlan: cannot use {where}: {error.strerror}") from error
    return sock
