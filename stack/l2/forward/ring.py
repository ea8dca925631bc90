"""The receive ring of a port that a worker thread serves, and sending out of it.

As in `stack.drivers.af_packet.receiver`, but each slot has room for what Linux keeps beside a frame, in the place where it is sent from:

    slot: 0        32            52     66               76       + length
          +--------+-------------+------+----------------+--------+
          | header | sockaddr_ll |      | virtio_net_hdr | frame  |
          +--------+-------------+------+----------------+--------+
                                        ^ what is sent, on a socket that takes this header in front of frames

So an unfinished checksum leaves as it came, and so does a run of segments that a local sender has not cut: it is longer than a slot, comes
by recvmsg, and its slot keeps its place in the order. A VLAN tag that was taken out of the frame is put back: header and addresses move
four bytes to the front.
"""

from __future__ import annotations

import socket
import struct

from stack.filter.bpf.assembler import RET, WHOLE, Assembler, Code
from stack.filter.bpf.attach import attach
from stack.linux import mmsg
from stack.linux.buffers import widen
from stack.linux.constants import (
    AUXDATA,
    ETH_P_ALL,
    PACKET_IGNORE_OUTGOING,
    PACKET_STATISTICS,
    PACKET_VNET_HDR,
    SOL_PACKET,
    TP_STATUS_COPY,
    TP_STATUS_VLAN_TPID_VALID,
    TP_STATUS_VLAN_VALID,
)
from stack.linux.packetring import RingMemory
from stack.linux.unfinished import CONTROL_SIZE, RUN_MAX, Restorer
from stack.wire import virtio_net
from stack.wire.ethernet import TAG_SIZE, TPID_8021Q

VNET_SIZE = virtio_net.SIZE
FRAME_AT = 76
"""tp_mac, with the header of virtio before it."""
SPECIAL = TP_STATUS_COPY | TP_STATUS_VLAN_VALID
"""Bits of the status for which a slot needs a closer look."""
SEND_BUFFER = 4 << 20
_VLAN = struct.Struct("=24xHH")
_TAG = struct.Struct("!HH")


def _returning(value: int) -> Code:
    assembler = Assembler()
    assembler.op(RET, value)
    return assembler.assemble()


class PortRing:
    """Sockets and ring on the interface *name* of the thread's network namespace. Hears nothing before `listen`. OSError."""

    def __init__(self, name: str, mtu: int, size: int) -> None:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self._out = self._sock
        try:
            self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            self._open(name, mtu, size)
        except OSError:
            self._sock.close()
            self._out.close()
            raise
        self.fd = self._sock.fileno()
        self.out_fd = self._out.fileno()

    def _open(self, name: str, mtu: int, size: int) -> None:
        sock = self._sock
        attach(sock, _returning(0))
        sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.restorer = Restorer(mtu)
        ring = RingMemory(sock, FRAME_AT, mtu, size)
        self._memory, self.slots, self.offsets = ring.memory, ring.slots, ring.offsets
        self.view = memoryview(self._memory)
        self.address = mmsg.address(self.view)
        self.words, self.longs = self.view.cast("I"), self.view.cast("Q")
        sock.bind((name, ETH_P_ALL))
        self._out.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        widen(self._out, socket.SO_SNDBUF, SEND_BUFFER)
        self._out.bind((name, 0))

    def listen(self, on: bool) -> None:
        """Take what arrives, or nothing more; what is in the ring stays there."""
        attach(self._sock, _returning(WHOLE if on else 0))

    def clear_error(self) -> None:
        """An error of the socket (its interface went down) makes it readable until somebody fetches it."""
        self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def lost(self) -> int:
        """Frames that found the ring full since the last call."""
        return int(struct.unpack("II", self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1])

    def retag(self, offset: int) -> int:
        """Put the tag of the frame in that slot back into it. Where the frame begins now."""
        tci, tpid = _VLAN.unpack_from(self.view, offset)
        known = self.words[offset >> 2] & TP_STATUS_VLAN_TPID_VALID
        return _retag(self.view, offset + FRAME_AT, tci, tpid if known else TPID_8021Q)

    def message(self) -> tuple[memoryview, int, int]:
        """A run, which is longer than its slot: its memory, and where in it the frame lies, behind the header. Length 0: it is lost."""
        memory = memoryview(bytearray(TAG_SIZE + RUN_MAX))
        try:
            size, control, _, _ = self._sock.recvmsg_into((memory[TAG_SIZE:],), CONTROL_SIZE)
        except BlockingIOError:
            return memory, 0, 0
        begin, length = TAG_SIZE + VNET_SIZE, size - VNET_SIZE
        for level, _, data in control:
            if level == SOL_PACKET:
                status, _, _, tci, tpid = AUXDATA.unpack_from(data)
                if status & TP_STATUS_VLAN_VALID:
                    begin = _retag(memory, begin, tci, tpid if status & TP_STATUS_VLAN_TPID_VALID else TPID_8021Q)
                    length += TAG_SIZE
        return memory, begin, max(0, length)

    def close(self) -> None:
        """By whoever reads the ring, or when nobody does any more."""
        self.longs.release()
        self.words.release()
        self.view.release()
        self._memory.close()
        self._sock.close()
        self._out.close()


def _retag(memory: memoryview, begin: int, tci: int, tpid: int) -> int:
    head = bytes(memory[begin - VNET_SIZE : begin + 12])
    begin -= TAG_SIZE
    memory[begin - VNET_SIZE : begin + 12] = head
    _TAG.pack_into(memory, begin + 12, tpid, tci)
    flags, kind, length, size, start, offset = virtio_net.HEADER.unpack_from(head)
    if flags & virtio_net.NEEDS_CSUM:
        virtio_net.HEADER.pack_into(
            memory, begin - VNET_SIZE, flags, kind, length + TAG_SIZE if length else 0, size, start + TAG_SIZE, offset
        )
    return begin
