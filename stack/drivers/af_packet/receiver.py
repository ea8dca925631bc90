"""Receiving from a packet socket: a TPACKET_V2 ring in shared memory, or recvmmsg.

The ring (packet_mmap.rst of Linux): the kernel copies each frame into the next slot, sets its status word to USER and wakes the poller at
once; we hand out memoryviews of the slots and set the words back to KERNEL when the batch is done. No system call and no copy per frame,
and the ring's size does not depend on rmem_max. V3 would pack frames into blocks and wake by block or timeout: its latency rules it out.

    slot: 0       4     8         12     14          24    26           72         82 (tp_mac)
          +-------+-----+---------+------+------+----+-----+------+-----+----------+-----------------
          | status| len | snaplen | mac  | net  |    | tci | tpid |     |virtio-net| frame
          +-------+-----+---------+------+------+----+-----+------+-----+----------+-----------------

Slots are as long as the MTU asks for. A run of segments that the kernel has merged is longer: it comes by recvmsg, and its slot keeps its
place in the order. What is not a frame as on a wire is put right (`stack.linux.unfinished`).

Where a ring is not safe (`stack.linux.packetring`), `recv` is the default.
"""

from __future__ import annotations

import socket
from typing import Final, Protocol

from stack.drivers.af_packet.recvmmsg import Cells
from stack.frame import Frame
from stack.linux.buffers import widen
from stack.linux.constants import (
    PACKET_AUXDATA,
    PACKET_VNET_HDR,
    SOL_PACKET,
    TP_STATUS_COPY,
    TP_STATUS_LOSING,
    TP_STATUS_USER,
    TP_STATUS_VLAN_VALID,
)
from stack.linux.packetring import RingMemory
from stack.linux.unfinished import UNFINISHED, Messages, Restorer
from stack.wire import virtio_net
from stack.wire.ethernet import HEADER_SIZE, TAG_SIZE, TAGS_MAX

RESERVE: Final = 6
"""PACKET_RESERVE: with the virtio-net header 16 bytes, so that what is behind the Ethernet header stays aligned."""
FRAME_OFFSET: Final = 82
"""tp_mac: header 32, sockaddr_ll 20, link header, aligned to 16 as tpacket_rcv does it for Ethernet; RESERVE, virtio-net header."""
USUAL_PLACE: Final = (FRAME_OFFSET | FRAME_OFFSET + HEADER_SIZE << 16) << 32
"""tp_mac and tp_net, as they stand beside tp_snaplen."""
UNFINISHED_WORD: Final = (FRAME_OFFSET - virtio_net.SIZE) // 8
SPECIAL: Final = TP_STATUS_COPY | TP_STATUS_VLAN_VALID
FEW: Final = 4
"""Slots that are looked at first: nearly always there is one frame, or there are many."""
UNBOUNDED: Final = 1 << 62
"""Bytes, of a batch that is bounded by its frames alone."""


class Receiver(Protocol):
    """`take` a batch, use it, `give_back`. `losing` is set when frames were lost; `restorer` counts those that were no good."""

    losing: bool
    restorer: Restorer

    def take(self, limit: int, room: int = UNBOUNDED) -> list[Frame]:
        """At most *limit* frames that are there, and none after the one that reaches *room* bytes, in order; valid until `give_back`.

        More when the last was a run of segments. OSError as recv raises it, never EAGAIN.
        """
        ...

    def give_back(self) -> None: ...

    def close(self) -> None:
        """Let go of memory; the socket is the driver's. Frames that somebody still holds stay readable until he lets go."""
        ...

    def describe(self) -> str: ...


class Ring:
    """See the head of this file. *size* is the memory in bytes. *runs*: receive what is longer than a slot, too. OSError (ENOMEM, EPERM)
    when the kernel has no memory to give."""

    def __init__(self, sock: socket.socket, mtu: int, size: int, runs: bool = True) -> None:
        self.losing = False
        self.restorer = Restorer(mtu)
        self._messages = Messages(sock, self.restorer) if runs else None
        self._ring = RingMemory(sock, FRAME_OFFSET, mtu, size, runs, RESERVE)
        self._memory = self._ring.memory
        self.slots = self._ring.slots
        self._map()
        self._offsets = self._ring.offsets
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
        if done == few < limit and (room := room - sum(map(len, frames))) > 0:
            done += self._look_at(few, limit, frames, room)
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
            length = status >> 32
            if status & SPECIAL or longs[place + 1] != USUAL_PLACE | length or longs[place + UNFINISHED_WORD] & UNFINISHED:
                found = self._unusual(offset, status)
                frames += found
                length = sum(map(len, found))
            else:
                begin = offset + FRAME_OFFSET
                append(view[begin : begin + length])
            room -= length
            if room <= 0:
                break
        return done

    def _unusual(self, offset: int, status: int) -> list[Frame]:
        """What the slot at *offset* holds, or stands for."""
        if status & TP_STATUS_COPY and self._messages is not None:
            try:
                return self._messages.take()
            except OSError:
                # No room in the socket's queue after all.
                self.restorer.truncated += 1
                return []
        sizes = self._longs[(offset >> 3) + 1]
        length = sizes & 0xFFFFFFFF
        if status >> 32 != length:
            self.restorer.truncated += 1
            return []
        tag = self._longs[(offset >> 3) + 3]
        begin = offset + (sizes >> 32 & 0xFFFF)
        return self.restorer.put_right(self._view, begin, length, status, tag & 0xFFFF, tag >> 16 & 0xFFFF)

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
        self._ring.dissolve()
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
        return f"ring of {self.slots} slots of {self._ring.slot} bytes"


class Recv:
    """Non-blocking recvmmsg. *size* is the socket's buffer in bytes."""

    def __init__(self, sock: socket.socket, mtu: int, size: int) -> None:
        self.losing = False
        self.restorer = Restorer(mtu)
        self._sock = sock
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._cells = Cells(sock, HEADER_SIZE + TAG_SIZE * TAGS_MAX + mtu, self.restorer)
        widen(sock, socket.SO_RCVBUF, size)

    def take(self, limit: int, room: int = UNBOUNDED) -> list[Frame]:
        return self._cells.take(limit if room == UNBOUNDED else min(limit, max(1, room // self._cells.stride)))

    def give_back(self) -> None:
        """recv does not tell of losses: the driver asks the kernel when its counters are wanted."""

    def close(self) -> None:
        pass

    def describe(self) -> str:
        return f"recvmmsg, buffer of {self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)} bytes"
