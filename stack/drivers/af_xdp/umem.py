"""One queue of an interface as an AF_XDP socket (Linux: Documentation/networking/af_xdp.rst).

The memory (UMEM) is cut into chunks. A chunk is at any time with one of: the fill ring (free for the kernel to receive into), the receive
ring, whoever reads the batch; or our list of free chunks, the transmit ring, the completion ring (sent).

    fill  -> kernel -> rx -> take ... give_back -> fill            free -> send -> tx -> kernel -> completion -> free

A ring is an array of descriptors and two counters of 32 bits that only grow: the producer's and the consumer's. Frames longer than a chunk
come and go in several descriptors; received, they are joined, which is the one copy on that way.

The kernel orders its writes, descriptor before counter, and so must we. Python cannot issue barriers: this relies on total store order,
which x86 has.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct

from stack.drivers.af_xdp.constants import (
    AF_XDP,
    OPTIONS_ZEROCOPY,
    PGOFF_COMPLETION,
    PGOFF_FILL,
    PGOFF_RX,
    PGOFF_TX,
    PKT_CONTD,
    RING_NEED_WAKEUP,
    RING_OFFSETS,
    SOCKADDR,
    SOL_XDP,
    STATISTICS,
    UMEM_REG,
    XDP_MMAP_OFFSETS,
    XDP_OPTIONS,
    XDP_RX_RING,
    XDP_STATISTICS,
    XDP_TX_RING,
    XDP_UMEM_COMPLETION_RING,
    XDP_UMEM_FILL_RING,
    XDP_UMEM_REG,
    XDP_USE_NEED_WAKEUP,
    XDP_USE_SG,
)
from stack.frame import Frame

CHUNK_SMALL, CHUNK_LARGE = 2048, 4096
KERNEL_HEADROOM = 256
"""What the kernel keeps in front of a received frame."""
KICKS_MAX = 64
"""Calls of send per batch: the kernel takes 32 frames at a time."""
_MASK = 0xFFFFFFFF


class _Ring:
    """Memory of one ring. `entries` are words of 64 bits, *words* per descriptor."""

    def __init__(self, sock: socket.socket, size: int, words: int, page: int, offsets: tuple[int, ...]) -> None:
        producer, consumer, descriptors, flags = offsets
        self._memory = mmap.mmap(
            sock.fileno(), descriptors + size * words * 8, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=page
        )
        self._view = memoryview(self._memory)
        self.counters = self._view.cast("I") if len(self._view) % 4 == 0 else self._view[: len(self._view) // 4 * 4].cast("I")
        self.entries = self._view[descriptors : descriptors + size * words * 8].cast("Q")
        self.producer, self.consumer, self._flags = producer >> 2, consumer >> 2, flags >> 2
        self.mask = size - 1

    @property
    def needs_wakeup(self) -> bool:
        return bool(self.counters[self._flags] & RING_NEED_WAKEUP)

    def close(self) -> None:
        self.entries.release()
        self.counters.release()
        self._view.release()
        self._memory.close()


class Queue:
    """Socket, memory and rings of queue *queue* of the interface *index*, in the thread's network namespace. OSError."""

    def __init__(self, index: int, queue: int, longest: int, frames: int, flags: int) -> None:
        """*longest*: frame. *flags*: XDP_COPY, XDP_ZEROCOPY or 0 for what the driver does best."""
        self.chunk = CHUNK_SMALL if longest <= CHUNK_SMALL - KERNEL_HEADROOM else CHUNK_LARGE
        self.piece = self.chunk - KERNEL_HEADROOM
        """Longest part of a frame in one chunk."""
        self.frames = frames
        self._rings: list[_Ring] = []
        size = self.chunk * frames * 2
        self._memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.sock = socket.socket(AF_XDP, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            anchor = ctypes.c_char.from_buffer(self._memory)
            address = ctypes.addressof(anchor)
            del anchor
            setsockopt = self.sock.setsockopt
            setsockopt(SOL_XDP, XDP_UMEM_REG, UMEM_REG.pack(address, size, self.chunk, 0, 0, 0))
            for option in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING):
                setsockopt(SOL_XDP, option, struct.pack("=I", frames))
            offsets = RING_OFFSETS.unpack(self.sock.getsockopt(SOL_XDP, XDP_MMAP_OFFSETS, RING_OFFSETS.size))
            self._rx = self._ring(frames, 2, PGOFF_RX, offsets[0:4])
            self._tx = self._ring(frames, 2, PGOFF_TX, offsets[4:8])
            self._fill = self._ring(frames, 1, PGOFF_FILL, offsets[8:12])
            self._completion = self._ring(frames, 1, PGOFF_COMPLETION, offsets[12:16])
            self._view = memoryview(self._memory)
            self._taken = [number * self.chunk for number in range(frames)]
            self._received = 0
            self._filled = 0
            self.give_back()
            self._free = [(frames + number) * self.chunk for number in range(frames)]
            self._sent = self._completed = 0
            wanted = flags | XDP_USE_NEED_WAKEUP | (XDP_USE_SG if longest > self.piece else 0)
            _bind(self.sock, SOCKADDR.pack(AF_XDP, wanted, index, queue, 0))
        except BaseException:
            self.sock.close()
            for ring in self._rings:
                ring.close()
            raise

    def _ring(self, size: int, words: int, page: int, offsets: tuple[int, ...]) -> _Ring:
        ring = _Ring(self.sock, size, words, page, offsets)
        self._rings.append(ring)
        return ring

    @property
    def zero_copy(self) -> bool:
        return bool(struct.unpack("=I", self.sock.getsockopt(SOL_XDP, XDP_OPTIONS, 4))[0] & OPTIONS_ZEROCOPY)

    # Receiving

    def take(self, limit: int, room: int) -> list[Frame]:
        """At most *limit* frames that are there, and none after the one that reaches *room* bytes; valid until `give_back`."""
        rx = self._rx
        entries, mask, view = rx.entries, rx.mask, self._view
        at = self._received
        there = (rx.counters[rx.producer] - at) & _MASK
        frames: list[Frame] = []
        taken = self._taken
        pieces: list[memoryview] = []
        whole = at
        for number in range(at, at + there):
            place = (number & mask) * 2
            address = entries[place]
            sizes = entries[place + 1]
            length = sizes & _MASK
            taken.append(address)
            room -= length
            if pieces or sizes >> 32 & PKT_CONTD:
                pieces.append(view[address : address + length])
                if sizes >> 32 & PKT_CONTD:
                    continue
                frames.append(b"".join(pieces))
                pieces = []
            else:
                frames.append(view[address : address + length])
            whole = number + 1
            if len(frames) >= limit or room <= 0:
                break
        if pieces:
            # The rest of it is not there yet: it is taken with the next batch.
            del taken[len(taken) - len(pieces) :]
        self._received = whole & _MASK
        rx.counters[rx.consumer] = self._received
        return frames

    def give_back(self) -> None:
        """The batch is done: its chunks go to the fill ring."""
        taken = self._taken
        if not taken:
            return
        fill = self._fill
        entries, mask, at = fill.entries, fill.mask, self._filled
        for address in taken:
            entries[at & mask] = address
            at += 1
        taken.clear()
        self._filled = at & _MASK
        fill.counters[fill.producer] = self._filled
        if fill.needs_wakeup and self._received:
            self.wake()

    def wake(self) -> None:
        """The driver sleeps until it is told that there is room to receive into."""
        try:
            self.sock.recv(0, socket.MSG_DONTWAIT)
        except OSError:
            pass  # it is awake; what there is to say about the link the monitor says

    # Sending

    def send(self, frames: list[Frame], start: int) -> int:
        """Copy `frames[start:]` into chunks, as far as there are any, and tell the kernel. How many were taken. OSError: link errors."""
        self._reclaim()
        tx, view, free = self._tx, self._view, self._free
        entries, mask, at = tx.entries, tx.mask, self._sent
        room = min(len(free), self.frames - ((at - tx.counters[tx.consumer]) & _MASK))
        taken = 0
        for frame in frames[start:]:
            size = len(frame)
            pieces = (size - 1) // self.piece + 1
            if pieces > room:
                break
            room -= pieces
            for piece in range(pieces):
                address = free.pop()
                begin = piece * self.piece
                part = frame if pieces == 1 else memoryview(frame)[begin : begin + self.piece]
                view[address : address + len(part)] = part
                place = (at & mask) * 2
                entries[place] = address
                entries[place + 1] = len(part) | (PKT_CONTD << 32 if piece < pieces - 1 else 0)
                at += 1
            taken += 1
        self._sent = at & _MASK
        tx.counters[tx.producer] = self._sent
        return taken

    @property
    def unsent(self) -> int:
        """Descriptors that the kernel has not looked at yet."""
        return (self._sent - self._tx.counters[self._tx.consumer]) & _MASK

    def kick(self) -> bool:
        """Make the kernel send. False when it wants to be asked again later. OSError: the link is down or gone."""
        for _ in range(KICKS_MAX):
            if not self.unsent:
                return True
            if not self._tx.needs_wakeup:
                return True
            try:
                self.sock.send(b"", socket.MSG_DONTWAIT)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EBUSY, errno.ENOBUFS):
                    raise
                self._reclaim()
        return not self.unsent

    def _reclaim(self) -> None:
        completion = self._completion
        entries, mask, at = completion.entries, completion.mask, self._completed
        done = (completion.counters[completion.producer] - at) & _MASK
        if done:
            self._free.extend(entries[number & mask] for number in range(at, at + done))
            self._completed = (at + done) & _MASK
            completion.counters[completion.consumer] = self._completed

    # The rest

    def lost(self) -> int:
        """Frames for us that found no room, since the socket was made."""
        dropped, _, _, full, _, _ = STATISTICS.unpack(self.sock.getsockopt(SOL_XDP, XDP_STATISTICS, STATISTICS.size))
        return int(dropped + full)

    def close(self) -> None:
        """Sockets at once; the memory when nobody holds a frame of it."""
        self.sock.close()
        for ring in self._rings:
            ring.close()
        self._view.release()
        try:
            self._memory.close()
        except BufferError:
            pass  # somebody kept a frame: the memory goes with it


def _bind(sock: socket.socket, address: bytes) -> None:
    """Python's bind does not know this family."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.bind(sock.fileno(), address, len(address)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
