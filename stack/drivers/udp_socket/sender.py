"""Sending through a UDP socket: one call for a run of datagrams of equal size to one endpoint (UDP_SEGMENT), one per datagram otherwise.

The kernel cuts what it is given into datagrams of the size that it is told, the last of which may be shorter. The DF bit is set and what
the kernel believes of the path is ignored (IP_PMTUDISC_PROBE): the transport above finds by probes what passes. Where a kernel or a
device refuses segmentation, the run is sent one by one; if the kernel will never do it, it is not asked again.

Datagrams that the socket's buffer has no room for wait in a short queue, behind which later ones go, so that order is kept.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from resmgr.dispatch import Buffer, Dispatch
from stack.core.statistics import Drop
from stack.drivers.udp_socket.constants import IP_PKTINFO, SEGMENTS_MAX, SOL_UDP, UDP_SEGMENT
from stack.frame import Frame
from stack.wire.endpoint import DATAGRAM_MAX
from stack.wire.ethernet import HEADER_SIZE

if TYPE_CHECKING:
    from stack.drivers.udp_socket.table import Entry

Ancillary = Sequence[tuple[int, int, bytes]]
SOURCES_MAX = 64
"""Addresses of ours whose ancillary data is kept ready."""

UNREACHABLE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL))
GONE = UNREACHABLE | {errno.EINVAL}
"""What is said, among other reasons, when the address to send from is not ours."""
LINK_DOWN = frozenset((errno.ENETDOWN, errno.ENODEV, errno.ENXIO))
REFUSED_SEGMENTS = frozenset((errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP, errno.ENOPROTOOPT))
NEVER_SEGMENTS = frozenset((errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT))
"""Among those: what will be so next time too. EIO is a device that cannot compute checksums (before Linux 6.11)."""


class Socket:
    """A bound UDP socket as a way out. *limit*: datagrams that wait. *count(reason, number)* is told of dropped ones."""

    def __init__(self, sock: socket.socket, dispatch: Dispatch, limit: int, segments: bool, count: Callable[[str, int], None]) -> None:
        self.sock = sock
        self.is_ipv6 = sock.family == socket.AF_INET6
        self.segments = segments
        """UDP_SEGMENT is in use."""
        self.segmented = self.segmented_calls = 0
        """Datagrams that were sent in runs, and the calls for them."""
        self._dispatch = dispatch
        self._limit = limit
        self._count = count
        self._queue: deque[tuple[Entry[Socket], bytes]] = deque()
        self._segment_ancillary: dict[int, tuple[int, int, bytes]] = {}
        self._source_ancillary: dict[bytes, Ancillary] = {}
        """By address of ours, as they are sent from."""

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def clear(self) -> None:
        """Forget what waits."""
        if self._queue:
            self._count(Drop.LINK_DOWN, len(self._queue))
            self._queue.clear()
            self._dispatch.want_write(self.sock.fileno(), None)

    def send_one(self, entry: Entry[Socket], frame: Frame) -> None:
        """One frame, its Ethernet header not included."""
        if not self._queue:
            try:
                self.sock.sendmsg((memoryview(frame)[HEADER_SIZE:],), self._ancillary(entry), 0, entry.sockaddr)
            except OSError:
                pass  # nothing went out: the long way tries again, and knows what to do
            else:
                return
        self.send(entry, (frame,), (len(frame),))

    def send(self, entry: Entry[Socket], frames: Sequence[Frame], sizes: Sequence[int]) -> None:
        """Send frames, whose lengths are *sizes*, without their Ethernet headers, or keep, or drop and count them."""
        payloads: list[Buffer] = [memoryview(frame)[HEADER_SIZE:] for frame in frames]
        if self._queue:
            self._wait(entry, payloads)
            return
        left = self._send(entry, payloads, [size - HEADER_SIZE for size in sizes])
        if left:
            self._wait(entry, payloads[-left:])
            if self._queue:
                self._dispatch.want_write(self.sock.fileno(), self._writable)

    def _send(self, entry: Entry[Socket], payloads: list[Buffer], sizes: list[int]) -> int:
        """Send or drop; returns how many, from the end, must wait."""
        start, end = 0, len(payloads)
        while start < end:
            stop = self._run(sizes, start) if self.segments else start + 1
            code = self._call(entry, payloads[start:stop], sizes[start])
            if code == 0:
                start = stop
            elif code in (errno.EAGAIN, errno.EINTR):
                return end - start
            elif stop - start > 1 and code in REFUSED_SEGMENTS:
                if code in NEVER_SEGMENTS:
                    self.segments = False
                for place in range(start, stop):
                    code = self._call(entry, payloads[place : place + 1], 0)
                    if code in (errno.EAGAIN, errno.EINTR):
                        return end - place
                    if code:
                        self._count(reason(code), 1)
                start = stop
            else:
                self._count(reason(code), stop - start)
                start = stop
        return 0

    @staticmethod
    def _run(sizes: list[int], start: int) -> int:
        """Where the run that begins at *start* ends: equal sizes, and at most one shorter one behind them."""
        size = sizes[start]
        most = min(SEGMENTS_MAX, DATAGRAM_MAX // size) if size else 1
        stop = start + 1
        limit = min(len(sizes), start + most)
        while stop < limit and sizes[stop] == size:
            stop += 1
        if stop < limit and 0 < sizes[stop] < size:
            stop += 1
        return stop

    def _call(self, entry: Entry[Socket], payloads: list[Buffer], size: int) -> int:
        """One sendmsg; 0 or the errno."""
        ancillary = self._ancillary(entry)
        if len(payloads) > 1:
            segment = self._segment_ancillary.get(size)
            if segment is None:
                if len(self._segment_ancillary) > SEGMENTS_MAX:
                    self._segment_ancillary.clear()
                segment = self._segment_ancillary[size] = (SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))
            ancillary = [*ancillary, segment]
        for again in (True, False):
            try:
                self.sock.sendmsg(payloads, ancillary, 0, entry.sockaddr)
            except OSError as error:
                if again and entry.source and error.errno in GONE:
                    # Our address that the other end wrote to may be gone: from any of ours, then.
                    entry.source = b""
                    ancillary = ancillary[1:]
                    continue
                return error.errno or errno.EIO
            break
        if len(payloads) > 1:
            self.segmented += len(payloads)
            self.segmented_calls += 1
        return 0

    def _ancillary(self, entry: Entry[Socket]) -> Ancillary:
        source = entry.source
        found = self._source_ancillary.get(source)
        if found is None:
            if len(self._source_ancillary) >= SOURCES_MAX:
                self._source_ancillary.clear()
            found = self._source_ancillary[source] = _from_address(source)
        return found

    def _wait(self, entry: Entry[Socket], payloads: list[Buffer]) -> None:
        room = max(0, self._limit - len(self._queue))
        self._queue.extend((entry, bytes(payload)) for payload in payloads[:room])
        if len(payloads) > room:
            self._count("tx_queue_full", len(payloads) - room)

    def _writable(self) -> None:
        queue = self._queue
        while queue:
            entry, payload = queue[0]
            if self._send(entry, [payload], [len(payload)]):
                return
            queue.popleft()
        self._dispatch.want_write(self.sock.fileno(), None)


def _from_address(source: bytes) -> Ancillary:
    if not source:
        return []
    if len(source) == 4:
        return [(socket.IPPROTO_IP, IP_PKTINFO, b"\0\0\0\0" + source + b"\0\0\0\0")]
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, source + b"\0\0\0\0")]


def reason(code: int) -> str:
    """The name under which a datagram that was not sent is counted."""
    if code == errno.EMSGSIZE:
        return Drop.TOO_LONG
    if code in UNREACHABLE:
        return "tx_unreachable"
    if code in LINK_DOWN:
        return Drop.LINK_DOWN
    if code in (errno.ENOBUFS, errno.ENOMEM):
        return "tx_no_buffers"
    return "tx_refused"
