"""Transmit policy of a packet socket: what is sent, what waits, what is dropped and under which name.

Frames that the kernel cannot take at once (EAGAIN: the socket's buffer is full, the device is slower than we) wait in a short queue until
the descriptor is writable: BSD's `if_snd`. While anything waits, new frames go behind it, so order is kept. What does not fit is dropped:
whoever sends measures the path by its losses.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable

from resmgr.dispatch import Dispatch
from stack.core.statistics import Drop
from stack.drivers.af_packet.sender import Sender
from stack.frame import Frame
from stack.wire.ethernet import HEADER_SIZE, TAG_SIZE, TAGS_MAX, TPIDS, unpack_type

LINK_ERRORS = frozenset((errno.ENETDOWN, errno.ENXIO, errno.ENODEV))


class Output:
    """Sends on *sock*, which is attached to *dispatch* before the first frame waits. *count(reason, number)* is told of dropped frames."""

    def __init__(self, dispatch: Dispatch, sock: socket.socket, mtu: int, limit: int, count: Callable[[str, int], None]) -> None:
        self._dispatch = dispatch
        self._sock = sock
        self._limit = limit
        self._count = count
        self._queue: deque[bytes] = deque()
        self.set_mtu(mtu)

    def set_mtu(self, mtu: int) -> None:
        self._mtu = mtu
        self._sender = Sender(self._sock, HEADER_SIZE + TAG_SIZE * TAGS_MAX + mtu)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def describe(self) -> str:
        return "send, sendmmsg for batches" + (", copying" if self._sender.copies else "")

    def transmit(self, frames: list[Frame]) -> None:
        """See `stack.core.driver.Driver.transmit`."""
        if len(frames) == 1 and not self._queue and len(frames[0]) <= self._mtu + HEADER_SIZE:
            try:
                self._sock.send(frames[0])
            except OSError:
                pass  # nothing went out: the long way tries again, and knows what to do
            else:
                return
        if max(map(len, frames), default=0) > self._mtu + HEADER_SIZE:
            frames = self._without_long(frames)
        if self._queue:
            self._wait(frames)
            return
        left = self._send(frames)
        if left:
            self._wait(left)
            if self._queue:
                self._dispatch.want_write(self._sock.fileno(), self._writable)

    def clear(self) -> None:
        """Forget what waits: the link is gone."""
        if self._queue:
            self._count(Drop.LINK_DOWN, len(self._queue))
            self._queue.clear()
            self._dispatch.want_write(self._sock.fileno(), None)

    def _send(self, frames: list[Frame]) -> list[Frame]:
        """Send or drop; returns those that must wait."""
        start, count = 0, len(frames)
        while start < count:
            sent, code = self._sender.send(frames, start)
            start += sent
            if code == 0:
                continue
            if code in (errno.EAGAIN, errno.EINTR):
                return frames[start:]
            if code in LINK_ERRORS:
                self._count(Drop.LINK_DOWN, count - start)
                return []
            self._count(_reason(code, frames[start]), 1)
            start += 1
        return []

    def _wait(self, frames: list[Frame]) -> None:
        room = self._limit - len(self._queue)
        self._queue.extend(map(bytes, frames[:room]))
        if len(frames) > room:
            self._count("tx_queue_full", len(frames) - room)

    def _writable(self) -> None:
        waiting: list[Frame] = list(self._queue)
        self._queue.clear()
        left = self._send(waiting)
        if left:
            self._queue.extend(map(bytes, left))
        else:
            self._dispatch.want_write(self._sock.fileno(), None)

    def _without_long(self, frames: list[Frame]) -> list[Frame]:
        fitting = [frame for frame in frames if len(frame) <= self._size_max(frame)]
        if len(fitting) < len(frames):
            self._count(Drop.TOO_LONG, len(frames) - len(fitting))
        return fitting

    def _size_max(self, frame: Frame) -> int:
        """As the kernel has it: one 802.1Q tag does not count."""
        tagged = len(frame) >= HEADER_SIZE and unpack_type(frame)[0] in TPIDS
        return self._mtu + HEADER_SIZE + (TAG_SIZE if tagged else 0)


def _reason(code: int, frame: Frame) -> str:
    if code == errno.ENOBUFS:
        return "tx_no_buffers"
    if code == errno.EMSGSIZE:
        return Drop.TOO_LONG
    if code == errno.EINVAL and len(frame) < HEADER_SIZE:
        return Drop.TOO_SHORT
    return "tx_refused"
