"""Transmit policy of a packet socket: what is sent, what waits, what is dropped and under which name.

Frames that the kernel cannot take at once (EAGAIN: the socket's buffer is full, the device is slower than we) wait in a short queue until
the descriptor is writable: BSD's `if_snd`. While anything waits, new frames go behind it, so order is kept. What does not fit is dropped:
whoever sends measures the path by its losses.

Runs of segments leave by a socket of their own, behind a virtio-net header each. Both sockets put frames into the device at once, so the
order is that of the calls; when one is full, both wait. In the queue a run counts as its segments. One that the kernel does not take as it
is (EINVAL) is cut.
"""

from __future__ import annotations

import errno
import itertools
import socket
from collections import deque
from collections.abc import Callable, Sequence

from resmgr.dispatch import Dispatch
from stack.core.statistics import Drop
from stack.drivers.af_packet.sender import Sender
from stack.frame import Frame
from stack.linux.constants import LINK_ERRORS
from stack.wire.ethernet import HEADER_SIZE, TAG_SIZE, TAGS_MAX, TPIDS, unpack_type
from stack.wire.run import Run


class Output:
    """Sends on *sock*, runs on *run_sock*, which takes a virtio-net header (PACKET_VNET_HDR). Both are attached to *dispatch* before the
    first frame waits. *count(reason, number)* is told of dropped frames."""

    def __init__(
        self,
        dispatch: Dispatch,
        sock: socket.socket,
        run_sock: socket.socket,
        mtu: int,
        limit: int,
        count: Callable[[str, int], None],
    ) -> None:
        self._dispatch = dispatch
        self._sock = sock
        self._run_sock = run_sock
        self._limit = limit
        self._count = count
        self._queue: deque[bytes | Run] = deque()
        self._waiting = 0
        """Frames that the queue holds, or becomes."""
        self._runs = 0
        self._full = sock
        """The one for which the queue waits."""
        self.set_mtu(mtu)

    def set_mtu(self, mtu: int) -> None:
        self._mtu = mtu
        self._sender = Sender(self._sock, HEADER_SIZE + TAG_SIZE * TAGS_MAX + mtu)

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def runs(self) -> int:
        """Sent in one piece."""
        return self._runs

    @property
    def copied(self) -> int:
        """Frames that were copied to be sent, since the last change of MTU."""
        return self._sender.copied

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
            self._begin_to_wait(left)

    def transmit_runs(self, frames: list[Frame]) -> None:
        """See `stack.core.runs.RunDriver.transmit_runs`."""
        frames = self._without_long(frames)
        if self._queue:
            self._wait(frames)
            return
        left = self._send_mixed(frames)
        if left:
            self._begin_to_wait(left)

    def clear(self) -> None:
        """Forget what waits: the link is gone."""
        if self._queue:
            self._count(Drop.LINK_DOWN, self._waiting)
            self._queue.clear()
            self._waiting = 0
            self._dispatch.want_write(self._full.fileno(), None)

    def _send_mixed(self, frames: list[Frame]) -> list[Frame]:
        """As `_send`, runs among others."""
        done = 0
        for runs, group in itertools.groupby(frames, _is_run):
            stretch = list(group)
            left = self._send_runs(stretch) if runs else self._send(stretch)
            if left:
                return [*left, *frames[done + len(stretch) :]]  # a run may have become segments by now
            done += len(stretch)
        return []

    def _send_runs(self, runs: list[Frame]) -> list[Frame]:
        for place, run in enumerate(runs):
            assert isinstance(run, Run)
            try:
                self._run_sock.sendmsg((run.header.pack(), run))
                self._runs += 1
            except OSError as error:
                code = error.errno or errno.EIO
                if code in (errno.EAGAIN, errno.EINTR):
                    self._full = self._run_sock
                    return runs[place:]
                if code in LINK_ERRORS:
                    self._count(Drop.LINK_DOWN, _weight(runs[place:]))
                    return []
                if code != errno.EINVAL:
                    self._count(_reason(code, run), run.pieces)
                    continue
                segments = self._send(run.segments())
                if segments:
                    return [*segments, *runs[place + 1 :]]
        return []

    def _send(self, frames: list[Frame]) -> list[Frame]:
        """Send or drop; returns those that must wait."""
        start, count = 0, len(frames)
        while start < count:
            sent, code = self._sender.send(frames, start)
            start += sent
            if code == 0:
                continue
            if code in (errno.EAGAIN, errno.EINTR):
                self._full = self._sock
                return frames[start:]
            if code in LINK_ERRORS:
                self._count(Drop.LINK_DOWN, count - start)
                return []
            self._count(_reason(code, frames[start]), 1)
            start += 1
        return []

    def _begin_to_wait(self, frames: list[Frame]) -> None:
        self._wait(frames)
        if self._queue:
            self._dispatch.want_write(self._full.fileno(), self._writable)

    def _wait(self, frames: list[Frame]) -> None:
        """Behind what waits, as far as there is room. A run has room while there is any: the queue may become one run longer."""
        refused = 0
        for frame in frames:
            if refused or self._waiting >= self._limit:
                refused += _weight((frame,))
            elif isinstance(frame, Run):
                self._queue.append(frame.copied())
                self._waiting += frame.pieces
            else:
                self._queue.append(bytes(frame))
                self._waiting += 1
        if refused:
            self._count("tx_queue_full", refused)

    def _writable(self) -> None:
        waiting: list[Frame] = list(self._queue)
        self._queue.clear()
        full = self._full
        left = self._send_mixed(waiting)
        self._queue.extend(frame if isinstance(frame, (bytes, Run)) else bytes(frame) for frame in left)
        self._waiting = _weight(left)
        if not left or self._full is not full:
            self._dispatch.want_write(full.fileno(), None)
        if left and self._full is not full:
            self._dispatch.want_write(self._full.fileno(), self._writable)

    def _without_long(self, frames: list[Frame]) -> list[Frame]:
        fitting = [frame for frame in frames if (frame.fits(self._mtu) if isinstance(frame, Run) else len(frame) <= self._size_max(frame))]
        if len(fitting) < len(frames):
            self._count(Drop.TOO_LONG, _weight(frames) - _weight(fitting))
        return fitting

    def _size_max(self, frame: Frame) -> int:
        """As the kernel has it: one 802.1Q tag does not count."""
        tagged = len(frame) >= HEADER_SIZE and unpack_type(frame)[0] in TPIDS
        return self._mtu + HEADER_SIZE + (TAG_SIZE if tagged else 0)


def _is_run(frame: Frame) -> bool:
    return isinstance(frame, Run)


def _weight(frames: Sequence[Frame]) -> int:
    """Frames that these are on a wire."""
    return sum(frame.pieces if isinstance(frame, Run) else 1 for frame in frames)


def _reason(code: int, frame: Frame) -> str:
    if code == errno.ENOBUFS:
        return "tx_no_buffers"
    if code == errno.EMSGSIZE:
        return Drop.TOO_LONG
    if code == errno.EINVAL and len(frame) < HEADER_SIZE:
        return Drop.TOO_SHORT
    return "tx_refused"
