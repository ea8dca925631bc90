"""One AF_UNIX socket as what carries messages between two kernels: its output waits here, its input is handed on whole.

Back-pressure. What cannot be written waits in a queue. While it is longer than `OUTPUT_HIGH`, nothing more is read from the other end; an
end that makes the queue grow beyond `OUTPUT_MAX` all the same is disconnected.

Descriptors that wait to be written are copies, DESCRIPTORS_WAITING of them at most. Closing a descriptor of somebody else's making may take
as long as he likes (a socket that lingers, a file of a dead server), and so may closing a socket in which some were left unread. So the
thread that serves everybody closes none of them: they are the `Keeper`'s, which has a thread for that.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from resmgr.channel import Descriptors
from resmgr.dispatch import Buffer, Dispatch
from resmgr.errors import BadMessage, Misuse
from resmgr.transport.datagram import DATAGRAM_MAX, LENGTH, LENGTH_SIZE, Assembler, fragments
from resmgr.transport.descriptors import Keeper, OwnedDescriptors

OUTPUT_HIGH: Final = 1 << 20
OUTPUT_MAX = 64 << 20
"""Bytes queued for one process before it is disconnected. Stops a process that never reads from filling the daemon's memory."""
DESCRIPTORS_WAITING: Final = 256
"""Descriptors queued for one process; more are refused with EAGAIN. Stops one that never reads from using up the daemon's."""
READS_PER_TURN: Final = 16
DRAIN_MAX: Final = 64
"""Times READS_PER_TURN that a link is read before it is closed. Stops who goes on writing."""
JOIN_MAX: Final = 16384
"""Output up to this is joined into one buffer (a copy is cheaper than a vector); larger output is written as a vector."""
KEEPER_PAUSE: Final = 0.02
"""Seconds after which a link whose user's keeper was full is read again, if it is not."""
SCM_MAX: Final = 253
"""Descriptors that may come with one datagram (SCM_MAX_FD). All are taken, for those without room the kernel would close in our thread."""

_ANCILLARY = socket.CMSG_SPACE(SCM_MAX * 4)
# As plain numbers: arithmetic on the enumeration costs as much as the system call.
_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_CUT: Final = int(socket.MSG_TRUNC)


def _unset(view: Buffer, stream: int, priority: int, descriptors: Descriptors) -> None:
    raise Misuse("a carrier without a receiver")


def discard(sock: socket.socket, keeper: Keeper) -> None:
    """Close a link's socket. The other end sees the end at once; the kernel lets go of what is unread when the keeper's thread is there."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other end is gone
    keeper.take((sock.detach(),))


class UnixCarrier:
    """One connected socket as a `DescriptorCarrier`. Owns it. `on_message`, to be set, is like `Peer.receive`; `on_down` comes once.

    *on_failure* gets what the handling of a message raised, and the link ends; without, that leaves the dispatch. *keeper*: of the
    descriptors of whoever is at the other end; several links may share it.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        sock: socket.socket,
        on_down: Callable[[str], None],
        on_failure: Callable[[Exception], None] | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self.on_message: Callable[[Buffer, int, int, Descriptors], None] = _unset
        self.queued = 0
        """Bytes taken by `send` and not yet by the kernel."""
        self.reads = self.writes = 0
        self._dispatch = dispatch
        self._socket = sock
        self._fd = sock.fileno()
        self._on_down = on_down
        self._on_failure = on_failure
        self._keeper = Keeper() if keeper is None else keeper
        self._descriptors_waiting = 0
        self._waits_for_keeper = False
        self._assembler = Assembler()
        self._descriptors: Descriptors = ()
        self._inbox: deque[tuple[memoryview, Descriptors]] = deque()
        self._ready: deque[tuple[list[Buffer], int, OwnedDescriptors | None]] = deque()
        self._open: list[Buffer] = []
        self._open_size = 0
        self._scheduled = False
        self._blocked = False
        self._paused = False
        self._closed = False
        self._more_likely = False
        sock.setblocking(False)
        dispatch.attach_fd(self._fd, self._readable)

    def congested(self) -> bool:
        return self.queued > OUTPUT_HIGH

    def send(self, stream: int, parts: Sequence[Buffer], priority: int, route: int = 0) -> None:
        """`Carrier.send`. The stream does not matter: one socket keeps the order of everything."""
        if self._closed:
            return
        size = LENGTH_SIZE
        for part in parts:
            size += len(part)
        if size > DATAGRAM_MAX:
            self._end_datagram()
            for datagram in fragments(parts, size - LENGTH_SIZE):
                self._queue(datagram, None)
        else:
            self.queued += size
            if self._open_size + size > DATAGRAM_MAX:
                self._end_datagram()
            self._open.append(LENGTH.pack(size - LENGTH_SIZE))
            self._open.extend(parts)
            self._open_size += size
        self._schedule()

    def send_descriptors(self, stream: int, parts: Sequence[Buffer], priority: int, descriptors: Descriptors) -> None:
        """`DescriptorCarrier.send_descriptors`: the message gets a datagram of its own, the descriptors are copied.

        OSError, and nothing is sent: EAGAIN when too many wait for this process or its user, or what the copying fails with.
        """
        if self._closed:
            return
        if self._descriptors_waiting + len(descriptors) > DESCRIPTORS_WAITING or not self._keeper.has_room(len(descriptors)):
            raise BlockingIOError(errno.EAGAIN, "too many descriptors wait to be read")
        copies: list[int] = []
        try:
            for fd in descriptors:
                copies.append(os.dup(fd))
        finally:
            owned = self._keeper.take(copies)
        self._end_datagram()
        self._descriptors_waiting += len(copies)
        for number, datagram in enumerate(fragments(parts, sum(map(len, parts)))):
            self._queue(datagram, owned if number == 0 else None)
        self._schedule()

    def drain(self) -> None:
        """Read what has arrived, before a `close` that the other end did not ask for. `on_down` may come."""
        for _ in range(DRAIN_MAX):
            before = self.reads
            if not self._closed:
                self._more_likely = True
                self._readable()
            if self.reads == before or self._paused:
                return

    def send_last(self, message: bytes) -> None:
        """Send a small message right before `close`, if it can go now."""
        if not self._closed:
            self._flush()
        if not self._closed and not self._ready:
            try:
                self._socket.send(LENGTH.pack(len(message)) + message)
            except OSError:
                pass

    def close(self) -> None:
        """Close the socket; nothing more is delivered and `on_down` does not come."""
        if self._closed:
            return
        self._closed = True
        self._dispatch.detach_fd(self._fd)
        discard(self._socket, self._keeper)
        self._ready.clear()
        self._open.clear()
        self._inbox.clear()
        self._descriptors = ()

    def _schedule(self) -> None:
        if not self._scheduled and not self._blocked:
            self._scheduled = True
            self._dispatch.at_turn_end(self._flush)
        if self.queued > OUTPUT_HIGH:
            if not self._paused:
                self._paused = True
                self._dispatch.want_read(self._fd, False)
            if self.queued > OUTPUT_MAX:
                # Not from here: whoever sends is in the middle of something.
                self._dispatch.call_soon(self._overflow)

    def _queue(self, datagram: list[Buffer], descriptors: OwnedDescriptors | None) -> None:
        size = sum(map(len, datagram))
        self.queued += size
        self._ready.append((datagram, size, descriptors))

    def _end_datagram(self) -> None:
        if self._open:
            self._ready.append((self._open, self._open_size, None))
            self._open = []
            self._open_size = 0

    def _failed(self, error: Exception) -> None:
        """A mistake of ours in the handling of this link costs this link, not the node."""
        if self._on_failure is None:
            raise error
        self._on_failure(error)
        self._down("failed")

    def _flush(self) -> None:
        """Write what is queued, until the socket is full."""
        try:
            self._write()
        except Exception as error:
            self._failed(error)

    def _write(self) -> None:
        self._scheduled = False
        if self._closed:
            return
        self._end_datagram()
        ready = self._ready
        while ready:
            parts, size, descriptors = ready[0]
            try:
                if descriptors is not None:
                    self._socket.sendmsg(parts, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
                elif size <= JOIN_MAX or len(parts) > 64:
                    self._socket.send(b"".join(parts))
                else:
                    self._socket.sendmsg(parts)
            except BlockingIOError:
                break
            except OSError as error:
                self._down(error.strerror or "write failed")
                return
            ready.popleft()
            self.queued -= size
            if descriptors is not None:
                self._descriptors_waiting -= len(descriptors)
            self.writes += 1
        if bool(ready) != self._blocked:
            self._blocked = bool(ready)
            self._dispatch.want_write(self._fd, self._flush if ready else None)
        if self._paused and self.queued <= OUTPUT_HIGH:
            self._paused = False
            self._dispatch.want_read(self._fd, not self._waits_for_keeper)
            self._dispatch.call_soon(self._deliver)

    def _overflow(self) -> None:
        if self.queued > OUTPUT_MAX:
            self._down("reads too little")

    def _readable(self) -> None:
        try:
            self._read()
        except Exception as error:
            self._failed(error)

    def _read(self) -> None:
        reset = False
        for _ in range(READS_PER_TURN):
            if self._keeper.is_full:
                if self._waits_for_keeper:
                    self._down("closed")  # called all the same: the other end hung up
                else:
                    self._waits_for_keeper = True
                    self._dispatch.want_read(self._fd, False)
                    self._dispatch.call_at(self._dispatch.now() + KEEPER_PAUSE, self._look_at_keeper)
                return
            try:
                datagram, ancillary, flags, _ = self._socket.recvmsg(DATAGRAM_MAX, _ANCILLARY, _CLOEXEC)
            except BlockingIOError:
                self._more_likely = False
                return
            except OSError as error:
                if error.errno == errno.ECONNRESET and not reset:
                    reset = True  # the other end closed with something unread; what it wrote before is still here
                    continue
                self._down(error.strerror or "read failed")
                return
            if ancillary:
                self._take(ancillary)
            if not datagram:
                self._down("closed")
                return
            self.reads += 1
            if flags & _CUT:
                self._down("datagram too large")
                return
            try:
                messages = self._assembler.feed(datagram)
            except BadMessage as bad:
                self._down(str(bad))
                return
            if len(messages) == 1 and not self._inbox and not self._paused:
                descriptors, self._descriptors = self._descriptors, ()
                self.on_message(messages[0], 0, 0, descriptors)
                # A sender of one small message waits for the answer: looking for another would cost a call for nothing.
                if not self._more_likely and len(datagram) < DATAGRAM_MAX // 2:
                    return
            else:
                for message in messages:
                    self._inbox.append((message, self._descriptors))
                    self._descriptors = ()
                self._deliver()
            if self._closed or self._paused:
                return
            self._more_likely = True

    def _look_at_keeper(self) -> None:
        if self._closed:
            return
        if self._keeper.is_full:
            self._dispatch.call_at(self._dispatch.now() + KEEPER_PAUSE, self._look_at_keeper)
        else:
            self._waits_for_keeper = False
            self._dispatch.want_read(self._fd, not self._paused)

    def _deliver(self) -> None:
        """Hand on what has arrived, until what it caused to be sent is enough for now."""
        inbox = self._inbox
        try:
            while inbox and not self._paused:
                message, descriptors = inbox.popleft()
                self.on_message(message, 0, 0, descriptors)
        except Exception as error:
            self._failed(error)

    def _take(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
                room = self._keeper.has_room(len(received))
                owned = self._keeper.take(received)
                # Without them the message is refused with EMFILE.
                self._descriptors = owned if room else ()

    def _down(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_down(reason)
