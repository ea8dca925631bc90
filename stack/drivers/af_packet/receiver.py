"""Receiving from a packet socket: a TPACKET_V2 ring in shared memory, or plain recv.

The ring (packet_mmap.rst of Linux): the kernel copies each frame into the next slot, sets its status word to USER and wakes the poller at
once; we hand out memoryviews of the slots and set the words back to KERNEL when the batch is done. No system call and no copy per frame,
and the ring's size does not depend on rmem_max. V3 would pack frames into blocks and wake by block or timeout: its latency rules it out.

    slot: 0       4     8         12     14                 tp_mac (66)
          +-------+-----+---------+------+------+----------+-----------------
          | status| len | snaplen | mac  | net  | ...      | frame
          +-------+-----+---------+------+------+----------+-----------------

The kernel orders its writes (frame, then status) and so must we. Python cannot issue barriers: the ring relies on total store order, which
x86 has. Elsewhere `recv` is the default.
"""

from __future__ import annotations

import mmap
import platform
import socket
import struct
from typing import Protocol

from stack.drivers.af_packet.constants import (
    PACKET_RX_RING,
    PACKET_VERSION,
    SO_RCVBUFFORCE,
    SOL_PACKET,
    TP_STATUS_LOSING,
    TP_STATUS_USER,
    TPACKET_V2,
)
from stack.frame import Frame
from stack.wire.ethernet import HEADER_SIZE, TAG_SIZE, TAGS_MAX

FRAME_OFFSET = 66
"""tp_mac: header 32, sockaddr_ll 20, link header, each aligned to 16 as tpacket_rcv does it for Ethernet."""
BLOCK_SIZE = 1 << 16
"""Blocks must be contiguous memory: small enough to be found on a machine that is up for long."""
FEW = 4
"""Slots that are looked at first: nearly always there is one frame, or there are many."""
UNBOUNDED = 1 << 62
"""Bytes, of a batch that is bounded by its frames alone."""
_TOTAL_STORE_ORDER = frozenset(("x86_64", "i686", "i386", "AMD64"))


def ring_is_safe() -> bool:
    """The processor keeps the order of stores and loads that the ring needs."""
    return platform.machine() in _TOTAL_STORE_ORDER


class Receiver(Protocol):
    """`take` a batch, use it, `give_back`. `losing` is set when frames were lost; `truncated` counts frames that did not fit."""

    losing: bool
    truncated: int

    def take(self, limit: int, room: int = UNBOUNDED) -> list[Frame]:
        """At most *limit* frames that are there, and none after the one that reaches *room* bytes, in order; valid until `give_back`.

        OSError as recv raises it, never EAGAIN.
        """
        ...

    def give_back(self) -> None: ...

    def close(self) -> None:
        """Let go of memory; the socket is the driver's. Frames that somebody still holds stay readable until he lets go."""
        ...

    def describe(self) -> str: ...


class Ring:
    """See the head of this file. *size* is the memory in bytes. OSError (ENOMEM, EPERM) when the kernel has none to give."""

    def __init__(self, sock: socket.socket, mtu: int, size: int) -> None:
        slot = (FRAME_OFFSET + HEADER_SIZE + TAG_SIZE * TAGS_MAX + mtu + 15) // 16 * 16
        block = max(BLOCK_SIZE, 1 << (slot - 1).bit_length())
        per_block = block // slot
        blocks = max(2, size // block)
        self.losing = False
        self.truncated = 0
        self.slots = blocks * per_block
        self._sock = sock
        self._slot = slot
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("IIII", block, blocks, slot, self.slots))
        try:
            self._memory = mmap.mmap(sock.fileno(), block * blocks, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError:
            sock.setsockopt(SOL_PACKET, PACKET_RX_RING, bytes(16))
            raise
        self._map()
        offsets = [number // per_block * block + number % per_block * slot for number in range(self.slots)]
        # Twice, so that a batch across the end is one slice.
        self._offsets = offsets * 2
        self._next = 0
        self._taken = self._offsets[:0]

    def _map(self) -> None:
        self._view = memoryview(self._memory)
        self._words = self._view.cast("I")
        self._longs = self._view.cast("Q")

    def take(self, limit: int, room: int = UNBOUNDED) -> list[Frame]:
        frames: list[Frame] = []
        limit = min(limit, self.slots)
        few = min(limit, FEW)
        done = self._look_at(0, few, frames, room)
        if done == few < limit:
            done += self._look_at(few, limit, frames, room - sum(map(len, frames)))
        if done:
            first = self._next
            self._taken = self._offsets[first : first + done]
            self._next = (first + done) % self.slots
            # The kernel sets it on every frame from the first loss on until its counters are read.
            if self._longs[self._taken[0] >> 3] & TP_STATUS_LOSING:
                self.losing = True
        return frames

    def _look_at(self, start: int, stop: int, frames: list[Frame], room: int) -> int:
        """Collect frames from the slots *start* to *stop*, counted from the next one, up to the first that is empty or the one that fills
        *room*. How many were full."""
        longs, view, first = self._longs, self._view, self._next
        append = frames.append
        done = 0
        for offset in self._offsets[first + start : first + stop]:
            place = offset >> 3
            status = longs[place]
            if not status & TP_STATUS_USER:
                break
            done += 1
            sizes = longs[place + 1]
            length = sizes & 0xFFFFFFFF
            if status >> 32 != length:
                self.truncated += 1
                continue
            begin = offset + (sizes >> 32 & 0xFFFF)
            append(view[begin : begin + length])
            room -= length
            if room <= 0:
                break
        return done

    def give_back(self) -> None:
        words = self._words
        for offset in self._taken:
            words[offset >> 2] = 0
        self._taken = self._offsets[:0]

    def close(self) -> None:
        self._unmap()  # if somebody kept a frame, the memory goes with it

    def dissolve(self) -> bool:
        """Take the ring off the socket, to make another. False, and all is as before, while somebody holds a frame of it."""
        if not self._unmap():
            self._map()
            return False
        self._sock.setsockopt(SOL_PACKET, PACKET_RX_RING, bytes(16))
        return True

    def _unmap(self) -> bool:
        self._taken = self._offsets[:0]
        self._longs.release()
        self._words.release()
        self._view.release()
        try:
            self._memory.close()
        except BufferError:
            return False
        return True

    def describe(self) -> str:
        return f"ring of {self.slots} slots of {self._slot} bytes"


class Recv:
    """Plain non-blocking recv until there is no more. *size* is the socket's buffer in bytes."""

    def __init__(self, sock: socket.socket, mtu: int, size: int) -> None:
        self.losing = False
        self.truncated = 0
        self._sock = sock
        self._room = HEADER_SIZE + TAG_SIZE * TAGS_MAX + mtu
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def take(self, limit: int, room: int = UNBOUNDED) -> list[Frame]:
        frames: list[Frame] = []
        recv, longest = self._sock.recv, self._room + 1
        while len(frames) < limit and room > 0:
            try:
                frame = recv(longest)
            except BlockingIOError:
                break
            except OSError:
                if frames:
                    break  # the next take meets it again
                raise
            room -= len(frame)
            if len(frame) == longest:
                self.truncated += 1
            else:
                frames.append(frame)
        return frames

    def give_back(self) -> None:
        """recv does not tell of losses: the driver asks the kernel when its counters are wanted."""

    def close(self) -> None:
        pass

    def describe(self) -> str:
        return f"recv, buffer of {self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)} bytes"
