"""The receive ring of a port that a worker thread serves, and sending out of it.

As in `stack.drivers.af_packet.receiver`, but each slot has room for what Linux keeps beside a frame, in the place where it is sent from:

    slot: 0        32            52     66               76       + length
          +--------+-------------+------+----------------+--------+
          | header | sockaddr_ll |      | virtio_net_hdr | frame  |
          +--------+-------------+------+----------------+--------+
                                        ^ what is sent, on a socket that takes this header in front of frames

So an unfinished checksum leaves as it came. A VLAN tag that was taken out of the frame is put back: header and addresses move four bytes
to the front.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct

from stack.drivers.af_packet.constants import PACKET_IGNORE_OUTGOING, PACKET_RX_RING, PACKET_VERSION, SO_SNDBUFFORCE, SOL_PACKET, TPACKET_V2
from stack.filter.bpf.assembler import RET, WHOLE, Assembler, Code
from stack.filter.bpf.attach import attach
from stack.wire.ethernet import HEADER_SIZE, TAG_SIZE, TAGS_MAX

PACKET_VNET_HDR = 15
VNET_SIZE = 10
FRAME_AT = 76
"""tp_mac, with the header of virtio before it."""
SEND_AT = FRAME_AT - VNET_SIZE
TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID = 1 << 4, 1 << 6
BLOCK_SIZE = 1 << 16
SEND_BUFFER = 4 << 20
ETH_P_ALL = 3
_VLAN = struct.Struct("=24xHH")
_TAG = struct.Struct("!HH")
_CHECKSUM_START = struct.Struct("=6xH")
_TPID_DEFAULT = 0x8100


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
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        slot = (FRAME_AT + HEADER_SIZE + TAG_SIZE * TAGS_MAX + mtu + 15) // 16 * 16
        block = max(BLOCK_SIZE, 1 << (slot - 1).bit_length())
        per_block, blocks = block // slot, max(2, size // block)
        self.slots = blocks * per_block
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("IIII", block, blocks, slot, self.slots))
        self._memory = mmap.mmap(sock.fileno(), block * blocks, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        anchor = ctypes.c_char.from_buffer(self._memory)
        self.address = ctypes.addressof(anchor)
        del anchor
        self.view = memoryview(self._memory)
        self.words, self.longs = self.view.cast("I"), self.view.cast("Q")
        places = [number // per_block * block + number % per_block * slot for number in range(self.slots)]
        self.offsets = places * 2
        """Twice, so that a batch across the end is one slice."""
        sock.bind((name, ETH_P_ALL))
        self._out.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        try:
            self._out.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
        except PermissionError:
            self._out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._out.bind((name, 0))

    def listen(self, on: bool) -> None:
        """Take what arrives, or nothing more; what is in the ring stays there."""
        attach(self._sock, _returning(WHOLE if on else 0))

    def clear_error(self) -> None:
        """An error of the socket (its interface went down) makes it readable until somebody fetches it."""
        self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def lost(self) -> int:
        """Frames that found the ring full since the last call."""
        return int(struct.unpack("II", self._sock.getsockopt(SOL_PACKET, 6, 8))[1])

    def retag(self, offset: int) -> int:
        """Put the tag of the frame in that slot back into it. Where the frame begins now."""
        view, begin = self.view, offset + FRAME_AT
        tci, tpid = _VLAN.unpack_from(view, offset)
        if not self.words[offset >> 2] & TP_STATUS_VLAN_TPID_VALID:
            tpid = _TPID_DEFAULT
        head = bytes(view[begin - VNET_SIZE : begin + 12])
        begin -= TAG_SIZE
        view[begin - VNET_SIZE : begin + 12] = head
        _TAG.pack_into(view, begin + 12, tpid, tci)
        if head[0] & 1:
            (start,) = _CHECKSUM_START.unpack_from(head)
            _CHECKSUM_START_AT.pack_into(view, begin - VNET_SIZE + 6, start + TAG_SIZE)
        return begin

    def close(self) -> None:
        """By whoever reads the ring, or when nobody does any more."""
        self.longs.release()
        self.words.release()
        self.view.release()
        self._memory.close()
        self._sock.close()
        self._out.close()


_CHECKSUM_START_AT = struct.Struct("=H")
