"""The receive ring of a packet socket (packet_mmap.rst of Linux), in version TPACKET_V2.

The kernel orders its writes (frame, then status) and so must we. Python cannot issue barriers: a ring in shared memory, this one as that of
AF_XDP, relies on total store order, which x86 has.
"""

from __future__ import annotations

import mmap
import platform
import socket
import struct

from stack.linux.buffers import widen
from stack.linux.constants import (
    PACKET_AUXDATA,
    PACKET_COPY_THRESH,
    PACKET_RESERVE,
    PACKET_RX_RING,
    PACKET_VERSION,
    PACKET_VNET_HDR,
    SOL_PACKET,
    TPACKET_V2,
)
from stack.wire.ethernet import HEADER_SIZE, TAG_SIZE, TAGS_MAX

BLOCK_SIZE = 1 << 16
"""Blocks must be contiguous memory: small enough to be found on a machine that is up for long."""
RUNS_MEMORY = 4 << 20
"""Bytes of merged runs that may wait beside a ring."""
_TOTAL_STORE_ORDER = frozenset(("x86_64", "i686", "i386", "AMD64"))


def ring_is_safe() -> bool:
    """The processor keeps the order of stores and loads that a ring needs."""
    return platform.machine() in _TOTAL_STORE_ORDER


class RingMemory:
    """A ring of *size* bytes on *sock*, with a virtio-net header in front of each frame. A slot takes a frame of *mtu* with its tags;
    *runs*: a longer one is queued whole in the socket besides, for recvmsg, with auxiliary data. *frame_at*: where the frame begins in its
    slot (tp_mac), with *reserve* bytes kept free. OSError (ENOMEM, EPERM) when the kernel has no memory to give."""

    def __init__(self, sock: socket.socket, frame_at: int, mtu: int, size: int, runs: bool = True, reserve: int = 0) -> None:
        self._sock = sock
        self.slot = slot = (frame_at + HEADER_SIZE + TAG_SIZE * TAGS_MAX + mtu + 15) // 16 * 16
        block = max(BLOCK_SIZE, 1 << (slot - 1).bit_length())
        per_block, blocks = block // slot, max(2, size // block)
        self.slots = blocks * per_block
        places = [number // per_block * block + number % per_block * slot for number in range(self.slots)]
        self.offsets = places * 2
        """Of the slots; twice, so that a batch across the end is one slice."""
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.setsockopt(SOL_PACKET, PACKET_RESERVE, reserve)
        sock.setsockopt(SOL_PACKET, PACKET_COPY_THRESH, int(runs))
        sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        if runs:
            widen(sock, socket.SO_RCVBUF, RUNS_MEMORY)
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("IIII", block, blocks, slot, self.slots))
        try:
            self.memory = mmap.mmap(sock.fileno(), block * blocks, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError:
            self.dissolve()
            raise

    def dissolve(self) -> None:
        """Take the ring off the socket. `memory` must have been closed."""
        self._sock.setsockopt(SOL_PACKET, PACKET_RX_RING, bytes(16))
