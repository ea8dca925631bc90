"""recvmmsg(2): many datagrams with one call, each into its own cell, with room for an Ethernet header in front of it.

Python's own recvmsg costs 4 us per datagram here, three of them for the call; most of a batch comes from one endpoint to one address of
ours, so its addresses and ancillary data are compared as a whole and looked at once. Each cell has a rest behind it that a coalesced
run may fill; it takes memory only then.
"""

from __future__ import annotations

import socket
import struct
import sys

from stack.drivers.udp_socket.constants import IP_PKTINFO, SOL_UDP
from stack.linux import mmsg
from stack.wire.endpoint import SockAddr
from stack.wire.ethernet import HEADER_SIZE

CELLS = 64
REST = 1 << 16
NAME_SIZE = 32
"""Bytes kept for an address: sockaddr_in has 16, sockaddr_in6 28."""
CONTROL_SIZE = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(20)
SEEN_MAX = 1024
"""Senders whose addresses are not parsed again. Stops a flood of invented ones from filling memory."""
CONTROL_HEADER = struct.Struct("@Nii")

Received = tuple[SockAddr, "bytes | None", int, int, int]
"""Sender; our address it came to (b"": not told, None: more than us); first cell; how many cells; 0, or size of the datagrams in it."""


class Cells:
    """See the head of this file. *room*: longest datagram that a cell takes without its rest."""

    def __init__(self, sock: socket.socket, room: int) -> None:
        stride = HEADER_SIZE + room
        memory = bytearray(CELLS * stride)
        rests = bytearray(CELLS * REST)
        names = bytearray(CELLS * NAME_SIZE)
        controls = bytearray(CELLS * CONTROL_SIZE)
        iovecs = bytearray(2 * CELLS * mmsg.IOVEC.size)
        cells_at, rests_at = mmsg.address(memory) + HEADER_SIZE, mmsg.address(rests)
        for number in range(CELLS):
            mmsg.IOVEC.pack_into(iovecs, 2 * number * mmsg.IOVEC.size, cells_at + number * stride, room)
            mmsg.IOVEC.pack_into(iovecs, (2 * number + 1) * mmsg.IOVEC.size, rests_at + number * REST, REST)
        rooms = (mmsg.address(names), NAME_SIZE), (mmsg.address(controls), CONTROL_SIZE)
        headers = mmsg.headers(CELLS, mmsg.address(iovecs), 2, *rooms)
        view, rest = memoryview(memory), memoryview(rests)
        self.cells = [view[number * stride : (number + 1) * stride] for number in range(CELLS)]
        self.rests = [rest[number * REST : (number + 1) * REST] for number in range(CELLS)]
        self._names, self._controls, self._iovecs = names, controls, iovecs
        self._receiver = mmsg.Receiver(sock, headers)
        self._seen: dict[bytes, SockAddr] = {}

    def receive(self) -> tuple[list[Received], list[int]]:
        """What is there, at most CELLS, and the length of each. If all are of one sender they are told as one. OSError, never EAGAIN."""
        lengths = self._receiver.receive(CELLS)
        count = len(lengths)
        if count == 0:
            return [], lengths
        if count == 1:
            source, size = self._control(0)
            return [(self._name(0), source, 0, 1, size)], lengths
        names = bytes(self._names[: count * NAME_SIZE])
        controls = bytes(self._controls[: count * CONTROL_SIZE])
        name, control = names[:NAME_SIZE], controls[:CONTROL_SIZE]
        if names == name * count and controls == control * count:
            source, size = self._control(0)
            if not size:
                return [(self._name(0), source, 0, count, 0)], lengths
        received = []
        for number in range(count):
            source, size = self._control(number)
            received.append((self._name(number), source, number, 1, size))
        return received, lengths

    def _name(self, number: int) -> SockAddr:
        raw = bytes(self._names[number * NAME_SIZE : (number + 1) * NAME_SIZE])
        known = self._seen.get(raw)
        if known is None:
            if len(self._seen) >= SEEN_MAX:
                self._seen.clear()
            known = self._seen[raw] = self._parsed_name(number * NAME_SIZE)
        return known

    def _parsed_name(self, place: int) -> SockAddr:
        family, port = struct.unpack_from("=H", self._names, place)[0], struct.unpack_from("!H", self._names, place + 2)[0]
        if family == socket.AF_INET:
            return socket.inet_ntop(family, self._names[place + 4 : place + 8]), port
        (scope,) = struct.unpack_from("=I", self._names, place + 24)
        return socket.inet_ntop(socket.AF_INET6, self._names[place + 8 : place + 24]), port, 0, scope

    def _control(self, number: int) -> tuple[bytes | None, int]:
        """Our address, and the size of coalesced datagrams."""
        used = self._receiver.control_length(number)
        place = number * CONTROL_SIZE
        end = place + used
        source: bytes | None = b""
        size = 0
        while place + CONTROL_HEADER.size <= end:
            length, level, kind = CONTROL_HEADER.unpack_from(self._controls, place)
            data = bytes(self._controls[place + socket.CMSG_LEN(0) : place + length])
            if level == SOL_UDP:
                size = int.from_bytes(data[:4], sys.byteorder)
            else:
                source = local_address(kind, data)
            place += socket.CMSG_SPACE(length - socket.CMSG_LEN(0))
        return source, size


def local_address(kind: int, data: bytes) -> bytes | None:
    """Our address out of IP_PKTINFO or IPV6_PKTINFO; None when the datagram was sent to more than us."""
    if kind == IP_PKTINFO:
        ours = data[4:8]
        return ours if ours == data[8:12] else None
    return None if data[0] == 0xFF else data[:16]
