"""Streams that the daemon carries for a program of its node: `qnet on` hands over its ends of pipes, and sleeps.

A program that pumps its own streams copies every byte twice more than it must: pipe, program, local socket, daemon. So it may send CARRY
with a descriptor on its connection to the process manager of the other node. That message goes no further than here: the daemon sends
the WRITEs of that stream, or the READs, on the same connection, until the stream ends. To the other node nothing is different.

    standard input    pipe --read--> WRITEs, at most WRITES under way; the pipe is not read while there are as many
    output            READs, at most READS under way or being written --> pipe; none is asked for anew before its bytes are in the pipe

So a program that does not read, or a reader that has stopped, stops its own stream and nothing else. CARRY is answered when the stream is
over: 0 at its end, EPIPE when nobody reads any more, EINTR when its client unblocked it, or the errno with which the other node ended it.
What is not carried is answered ENOTSUP, before anything was read: the program then pumps it itself.

Only pipes are carried. The descriptor is opened anew, without blocking: whoever else has the old one cannot make the daemon wait for it.
docs/protocol/spawn.md has the message.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Final

from resmgr.channel import CHID_PROCMGR, PID_SYSTEM, Answerer, Connection, Descriptors, Kernel, Pending
from resmgr.dispatch import Buffer, Dispatch, Timer
from resmgr.errors import BadMessage
from resmgr.procmgr import message
from resmgr.procmgr.message import READ_MAX, WRITE_UNASKED, Proc

WRITES: Final = 12
READS: Final = 8
READ_PART = min(256 * 1024, READ_MAX)
CARRIED_MAX: Final = 512
CARRIED_PER_PROCESS_MAX = 64
"""Streams carried at a time. Stop programs from using up descriptors and memory: a stream holds at most READS * READ_PART or
WRITES * WRITE_UNASKED bytes."""
READS_PER_TURN: Final = 4
"""Parts read from one pipe before others have their turn."""
RETRY: Final = 0.01
"""Seconds until what was refused with EAGAIN (the other node has too much to do for us) is sent again."""


class NotCarried(enum.Enum):
    """Why a stream was not taken."""

    BAD_MESSAGE = "bad_message"
    NOT_A_PIPE = "not_a_pipe"
    TOO_MANY = "too_many"
    NOT_OPENED = "not_opened"


class _Stream:
    """One stream that is carried; the `Pending` of its CARRY. All calls in dispatch context."""

    __slots__ = ("_dispatch", "_number", "_pending", "_retries", "answerer", "connection", "ended", "fd", "handle", "priority", "stream")

    def __init__(
        self, carriers: Carriers, connection: Connection, handle: int, stream: int, number: int, fd: int, priority: int, answerer: Answerer
    ) -> None:
        self.connection = connection
        self.priority = priority
        self.handle = handle
        self.stream = stream
        self.fd = fd
        self.answerer = answerer
        self.ended = carriers.ended
        self._dispatch = carriers.dispatch
        self._number = number
        """Of the next READ or WRITE."""
        self._pending: dict[int, Pending | None] = {}
        """READs and WRITEs under way, by number."""
        self._retries: dict[int, Timer] = {}

    def unblock(self) -> None:
        """The client wants it back, or has gone."""
        self.finish(errno.EINTR)

    def finish(self, code: int) -> None:
        """The stream is over: nothing of it is in use any more when its client hears so."""
        if self.fd < 0:
            return
        self._dispatch.detach_fd(self.fd)
        os.close(self.fd)
        self.fd = -1
        for timer in self._retries.values():
            timer.cancel()
        pending, self._pending = self._pending, {}
        for one in pending.values():
            if one is not None:
                one.unblock()
        self.ended(self)
        self.answerer.answer(-code, (), ())

    def _take_number(self) -> int:
        self._number += 1
        return self._number - 1

    def _submit(self, number: int, parts: tuple[Buffer, ...], reply_len: int, done: Callable[[int, int, Buffer], None]) -> None:
        """Send a READ or WRITE, again if it is refused for want of room. *done* is told number, status and data."""

        def answered(status: int, data: Buffer) -> None:
            self._pending.pop(number, None)
            if self.fd < 0:
                return
            if status == -errno.EAGAIN:
                self._retries[number] = self._dispatch.call_at(self._dispatch.now() + RETRY, again)
            else:
                done(number, status, data)

        def again() -> None:
            self._retries.pop(number, None)
            self._submit(number, parts, reply_len, done)

        self._pending[number] = None
        pending = self.connection.submit(parts, reply_len, answered, self.priority)
        if number in self._pending:
            self._pending[number] = pending

    def _under_way(self) -> int:
        return len(self._pending) + len(self._retries)


class Inward(_Stream):
    """Standard input of the program over there."""

    __slots__ = ("_at_end", "_reading")

    def start(self) -> None:
        self._at_end = False
        self._reading = True
        self._dispatch.attach_fd(self.fd, self._readable)

    def _readable(self) -> None:
        for _ in range(READS_PER_TURN):
            if self._under_way() >= WRITES or self._at_end or self.fd < 0:
                break
            try:
                data = os.read(self.fd, WRITE_UNASKED)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            number = self._take_number()
            self._at_end = not data
            self._submit(number, (message.pack_write(self.handle, number, self._at_end), data), 0, self._taken)
            if self._at_end or len(data) < WRITE_UNASKED:
                break
        self._watch()

    def _watch(self) -> None:
        wanted = not self._at_end and self._under_way() < WRITES
        if self.fd >= 0 and wanted != self._reading:
            self._reading = wanted
            self._dispatch.want_read(self.fd, wanted)

    def _taken(self, number: int, status: int, data: Buffer) -> None:
        if status < 0:
            self.finish(-status)
        elif self._at_end and not self._under_way():
            self.finish(0)
        else:
            self._watch()


class Outward(_Stream):
    """An output of the program over there."""

    __slots__ = ("_at_end", "_early", "_next", "_quiet", "_ready", "_waiting")

    def start(self) -> None:
        self._at_end = self._waiting = False
        self._quiet = True
        """It has said nothing yet: one READ is under way, so that programs without output cost few messages."""
        self._early: dict[int, Buffer] = {}
        self._next = self._number
        self._ready: deque[memoryview] = deque()
        self._dispatch.attach_fd(self.fd, self._hung_up)
        self._ask()

    def _ask(self) -> None:
        number = self._take_number()
        self._submit(number, (message.pack_read(self.handle, self.stream, number, READ_PART),), READ_PART, self._arrived)

    def _arrived(self, number: int, status: int, data: Buffer) -> None:
        if status < 0:
            if not self._at_end:
                self.finish(-status)
            return
        self._early[number] = data
        while self._next in self._early:
            part = memoryview(self._early.pop(self._next))
            self._next += 1
            if len(part):
                self._ready.append(part)
            else:
                self._at_end = True
        if self._quiet:
            self._quiet = False
            for _ in range(0 if self._at_end else READS - 1):
                self._ask()
        if not self._waiting:
            self._write()

    def _write(self) -> None:
        ready = self._ready
        while ready and self.fd >= 0:
            part = ready[0]
            try:
                count = os.write(self.fd, part)
            except BlockingIOError:
                break
            except OSError:
                self._hung_up()
                return
            if count < len(part):
                ready[0] = part[count:]
            else:
                ready.popleft()
                if not self._at_end:
                    self._ask()
        if self.fd < 0:
            return
        if not ready and self._at_end:
            self.finish(0)
        elif bool(ready) != self._waiting:
            self._waiting = bool(ready)
            self._dispatch.want_write(self.fd, self._write if ready else None)

    def _hung_up(self) -> None:
        """Nobody reads any more: who writes over there is to know."""
        if self.fd >= 0:
            self.connection.submit((message.pack_close(self.handle, self.stream),), 0, _heard)
            self.finish(errno.EPIPE)


class Carriers:
    """All streams that this node carries. `close` ends them with ESHUTDOWN."""

    def __init__(self, kernel: Kernel, dispatch: Dispatch) -> None:
        self.dispatch = dispatch
        self.refusals: dict[NotCarried, int] = dict.fromkeys(NotCarried, 0)
        self.carried = 0
        """Since the start."""
        self._streams: dict[_Stream, None] = {}
        self._by_process: Counter[int] = Counter()
        kernel.passing = self.take

    def __len__(self) -> int:
        return len(self._streams)

    def take(self, connection: Connection, data: Buffer, priority: int, answerer: Answerer, descriptors: Descriptors) -> Pending | None:
        """`Kernel.passing`: a message with descriptors for another node."""
        if (connection.pid, connection.chid) != (PID_SYSTEM, CHID_PROCMGR):
            answerer.answer(-errno.ENOTSUP, (), ())
            return None
        found = self._open(connection, data, descriptors)
        if isinstance(found, NotCarried):
            self.refusals[found] += 1
            answerer.answer(-errno.ENOTSUP, (), ())
            return None
        fd, handle, stream, number = found
        kind = Outward if stream else Inward
        carried = kind(self, connection, handle, stream, number, fd, priority, answerer)
        self.carried += 1
        self._streams[carried] = None
        self._by_process[connection.credentials.pid] += 1
        carried.start()
        return carried if carried.fd >= 0 else None

    def _open(self, connection: Connection, data: Buffer, descriptors: Descriptors) -> NotCarried | tuple[int, int, int, int]:
        """A descriptor of our own, handle, stream, number of the first READ or WRITE."""
        try:
            kind, stream, _, handle = message.parse_header(data)
            number, _ = message.parse_stream(data)
        except BadMessage:
            return NotCarried.BAD_MESSAGE
        if kind != Proc.CARRY or stream > 2 or len(descriptors) != 1:
            return NotCarried.BAD_MESSAGE
        if len(self._streams) >= CARRIED_MAX or self._by_process[connection.credentials.pid] >= CARRIED_PER_PROCESS_MAX:
            return NotCarried.TOO_MANY
        wanted = os.O_WRONLY if stream else os.O_RDONLY
        try:
            if not stat.S_ISFIFO(os.fstat(descriptors[0]).st_mode):
                return NotCarried.NOT_A_PIPE
            # What the program may not do with its descriptor, we do not do for it.
            if fcntl.fcntl(descriptors[0], fcntl.F_GETFL) & os.O_ACCMODE not in (wanted, os.O_RDWR):
                return NotCarried.NOT_A_PIPE
            return os.open(f"/proc/self/fd/{descriptors[0]}", wanted | os.O_NONBLOCK | os.O_CLOEXEC), handle, stream, number
        except OSError:
            return NotCarried.NOT_OPENED

    def ended(self, stream: _Stream) -> None:
        """A stream is over (called by it)."""
        del self._streams[stream]
        pid = stream.connection.credentials.pid
        self._by_process[pid] -= 1
        if not self._by_process[pid]:
            del self._by_process[pid]

    def figures(self) -> Iterator[tuple[str, int]]:
        """Counters by name, for statistics."""
        yield "streams_carried", self.carried
        yield "streams_carried_now", len(self._streams)
        for reason, count in self.refusals.items():
            yield f"stream_not_carried.{reason.value}", count

    def close(self) -> None:
        for stream in list(self._streams):
            stream.finish(errno.ESHUTDOWN)


def _heard(status: int, data: Buffer) -> None:
    """Whether it was there still does not matter."""
