"""Receiving from a UDP socket, with datagrams that the kernel coalesced (UDP_GRO) cut apart where they lie.

Frames above need an Ethernet header in front of each datagram, and a coalesced receive yields datagrams of one size without room between
them. So each receive scatters into slots that have this room: as many slots of the size that came last, behind them one long rest.

    slots of S bytes:  [ head | S bytes ][ head | S bytes ] ... [ rest, 64 KiB ]
                       datagram 0        datagram 1              what did not fit

While the size stays the same, which is so under load, nothing is copied: the views of the slots are made once. When it changes, that one
receive is put together by copying, and the slots are cut anew. While datagrams come singly (a device that does not coalesce), many are
taken with one call (`recvmmsg`). Frames are valid until `give_back`.
"""

from __future__ import annotations

import socket
import sys

from stack.drivers.udp_socket.constants import SEGMENTS_MAX, SOL_UDP
from stack.drivers.udp_socket.recvmmsg import REST, Cells, local_address
from stack.wire.endpoint import DATAGRAM_MAX, SockAddr
from stack.wire.ethernet import HEADER_SIZE

BLOCKS = 4
SINGLES = 4
"""So many datagrams that come singly end the time of slots."""
PROBE = 4
"""While datagrams come alone, only every fourth receive asks for more than one: that costs more than the datagram."""
_ANCILLARY = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(20)

Views = list["memoryview | bytearray"]


class Arrival:
    """One receive. `source`: our address to which it came, b"" on a socket that has one only, None: to a group or to everybody."""

    __slots__ = ("frames", "sockaddr", "source")

    def __init__(self, sockaddr: SockAddr, source: bytes | None, frames: Views) -> None:
        self.sockaddr = sockaddr
        self.source = source
        self.frames = frames
        """Writable; HEADER_SIZE bytes in front of each datagram are the caller's to fill."""


class _Block:
    """Memory cut into slots of one size."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(REST + SEGMENTS_MAX * (HEADER_SIZE + 1)))
        self._rest = memoryview(bytearray(REST))
        self.slots: list[memoryview] = []
        self.buffers: list[memoryview] = []

    def cut(self, size: int) -> None:
        stride = HEADER_SIZE + size
        count = min(SEGMENTS_MAX, -(-DATAGRAM_MAX // size), len(self._memory) // stride)
        self.slots = [self._memory[number * stride : (number + 1) * stride] for number in range(count)]
        self.buffers = [*(slot[HEADER_SIZE:] for slot in self.slots), self._rest]


class Receiver:
    """See the head of this file. *room*: longest datagram wanted; longer ones are counted in `too_long`."""

    def __init__(self, sock: socket.socket, room: int) -> None:
        self.too_long = 0
        self.errors = 0
        """Receives that failed: an error that the kernel keeps for a socket is told once."""
        self.coalesced = 0
        """Datagrams that came in runs, and the receives that gave them."""
        self.copied = 0
        """Those of them that had to be copied."""
        self._sock = sock
        self._cells_used = False
        self._alone = 0
        """Not 0: the last receive gave one datagram, and since so many one was asked for."""
        self._blocks: list[_Block] = []
        self._block = 0
        self._size = 0
        """Size of the slots in use; 0: cells."""
        self._singles = 0
        self.room = room
        self._make_cells()

    def _make_cells(self) -> None:
        self._cells = Cells(self._sock, self.room)
        self._first = [self._cells.cells[0][HEADER_SIZE:], self._cells.rests[0]]

    def set_room(self, room: int) -> None:
        """Another longest datagram. Nothing may be lent out."""
        if room != self.room:
            self.room = room
            self._make_cells()

    @property
    def full(self) -> bool:
        """Nothing more can be taken before `give_back`."""
        return self._cells_used or self._block == BLOCKS

    def give_back(self) -> None:
        self._block = 0
        self._cells_used = False

    def take(self) -> list[Arrival]:
        """What one call gives; empty when there is nothing more."""
        if self._size:
            buffers = self._blocks[self._block].buffers
        elif self._alone % PROBE:
            buffers = self._first
            self._cells_used = True
            self._alone += 1
        else:
            return self._take_many()
        try:
            got, ancillary, _, sockaddr = self._sock.recvmsg_into(buffers, _ANCILLARY)
        except BlockingIOError:
            return []
        except OSError:
            self.errors += 1
            return []
        segment = 0
        source: bytes | None = b""
        for level, kind, data in ancillary:
            if level == SOL_UDP:
                segment = int.from_bytes(data[:4], sys.byteorder)
            else:
                source = local_address(kind, data)
        if not 0 < segment < got:
            frames = self._one(got)
        elif self._size:
            frames = self._run(got, segment)
        else:
            frames = self._copied(b"".join(buffers)[:got], segment)
        return [Arrival(sockaddr, source, frames)]

    def _take_many(self) -> list[Arrival]:
        try:
            received, lengths = self._cells.receive()
        except OSError:
            self.errors += 1
            return []
        if not received:
            return []
        self._cells_used = True
        self._alone = 1 if len(lengths) == 1 else 0
        cells, room = self._cells.cells, self.room
        arrivals = []
        for sockaddr, source, first, count, segment in received:
            sizes = lengths[first : first + count]
            if 0 < segment < sizes[0]:
                frames = self._copied(b"".join((cells[first][HEADER_SIZE:], self._cells.rests[first]))[: sizes[0]], segment)
            else:
                frames = [cell[: HEADER_SIZE + size] for cell, size in zip(cells[first:], sizes, strict=False) if size <= room]
                self.too_long += count - len(frames)
            arrivals.append(Arrival(sockaddr, source, frames))
        return arrivals

    def _one(self, got: int) -> Views:
        """A single datagram."""
        size = self._size
        if not size:
            if got <= self.room:
                return [self._cells.cells[0][: HEADER_SIZE + got]]
            self.too_long += 1
            return []
        self._singles += 1
        block = self._blocks[self._block]
        if self._singles >= SINGLES:
            self._size = 0
        if got > self.room:
            self.too_long += 1
            return []
        self._block += 1
        if got <= size:
            return [block.slots[0][: HEADER_SIZE + got]]
        return [bytearray(HEADER_SIZE) + b"".join(block.buffers)[:got]]

    def _run(self, got: int, segment: int) -> Views:
        """Coalesced datagrams in slots."""
        block = self._blocks[self._block]
        if segment != self._size:
            return self._copied(b"".join(block.buffers)[:got], segment)
        count = -(-got // segment)
        self.coalesced += count
        self._singles = 0
        self._block += 1
        slots = block.slots
        whole, last = divmod(got, segment)
        if count <= len(slots):
            frames: Views = list(slots[:whole])
            if last:
                frames.append(slots[whole][: HEADER_SIZE + last])
            return frames
        self.copied += count - len(slots)
        return [*slots, *_pieces(bytes(block.buffers[-1][: got - len(slots) * segment]), segment)]

    def _copied(self, data: bytes, segment: int) -> Views:
        """Coalesced datagrams of a size that the slots do not have."""
        count = -(-len(data) // segment)
        if segment > self.room:
            self.too_long += count
            return []
        self.coalesced += count
        self.copied += count
        self._singles = 0
        if self._block == 0:
            # Blocks that are lent out must not be cut anew.
            self._cut(segment)
        return _pieces(data, segment)

    def _cut(self, size: int) -> None:
        if not self._blocks:
            self._blocks = [_Block() for _ in range(BLOCKS)]
        for block in self._blocks:
            block.cut(size)
        self._size = size


def _pieces(data: bytes, size: int) -> Views:
    """*data* cut into frames with room for the header, copied."""
    return [bytearray(HEADER_SIZE) + data[start : start + size] for start in range(0, len(data), size)]
