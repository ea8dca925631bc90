"""Moves a far program's streams between its messages and descriptors of this process, in a thread of its own: the engine of `Popen`.

One thread does all of it and never blocks on a stream, so a reader that stopped holds up only that stream. Of each output one read is
under way until something was said, then READS; a stream is asked for more when what came was written. Input is read when an earlier part
was taken. So each stream holds at most READS * READ_PART or WRITES * WRITE_UNASKED bytes here.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from resmgr.client import Client
from resmgr.dispatch import Buffer
from resmgr.errors import ResmgrError
from resmgr.procmgr.client import Process
from resmgr.procmgr.message import WRITE_UNASKED, Ended

READS = 4
READ_PART = 256 * 1024
WRITES = 8
ATOMIC = 4096
"""Bytes that a pipe of somebody else's takes without blocking once it is writable. One of ours never blocks."""


class Output:
    """One output stream, on its way to `fd`. *ours*: the descriptor does not block, and is closed at the end."""

    def __init__(self, fd: int, ours: bool) -> None:
        self.fd = fd
        self.ours = ours
        self.plain = stat.S_ISREG(os.fstat(fd).st_mode)
        self.parts: deque[memoryview] = deque()
        self.asked = 0
        """Reads under way."""
        self.quiet = True
        self.ended = False
        """Nothing more comes from there."""

    @property
    def done(self) -> bool:
        return self.fd < 0

    def write(self) -> bool:
        """Write what is there, as far as it goes without waiting. False when nobody reads it any more."""
        try:
            while self.parts:
                part = self.parts[0]
                count = os.write(self.fd, part if self.ours or self.plain else part[:ATOMIC])
                if count < len(part):
                    self.parts[0] = part[count:]
                    if not self.plain:
                        return True
                else:
                    self.parts.popleft()
                    if not (self.ours or self.plain):
                        return True
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def close(self) -> None:
        self.parts.clear()
        fd, self.fd = self.fd, -1
        if self.ours and fd >= 0:
            os.close(fd)


class Mover:
    """Runs until the program has ended and everything it said is written. The client and the descriptors that are ours are its own."""

    def __init__(self, client: Client, process: Process, stdin: int, outputs: dict[int, Output]) -> None:
        self._client = client
        self._process = process
        self._stdin = stdin
        self._outputs = outputs
        self._writing = 0
        self._orders: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._stopped = False
        self._leave = False
        self.ended: Ended | None = None
        self.failure = 0
        """An errno, if how it ended cannot be known any more."""
        self.known = threading.Event()
        """Set when either is so, and what it said to descriptors of the caller's is written there."""
        self._thread = threading.Thread(target=self._run, name="qnet-process", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def signal(self, number: int) -> None:
        """To the program's process group, if it has not ended. From any thread."""
        self._order(partial(self._process.signal, number))

    def winsize(self, rows: int, columns: int) -> None:
        self._order(partial(self._process.winsize, rows, columns))

    def close(self) -> None:
        """Let go of the program: it is hung up if it still runs. From any thread."""
        self._order(self._let_go)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _order(self, what: Callable[[], None]) -> None:
        with self._lock:
            if not self._stopped:
                self._orders.append(what)
                os.eventfd_write(self._wake, 1)

    def _let_go(self) -> None:
        self._leave = True

    def _run(self) -> None:
        try:
            self._loop()
        except ResmgrError as error:
            self.failure = self.failure or error.errno or errno.EIO
        finally:
            if self.ended is None and not self.failure:
                self.failure = errno.ECANCELED
            self._client.close()
            for output in self._outputs.values():
                output.close()
            self._end_input()
            with self._lock:
                self._stopped = True
                os.close(self._wake)
            self.known.set()

    def _loop(self) -> None:
        self._process.wait(self._on_end)
        for number, output in self._outputs.items():
            if not output.ended:
                self._ask(number, output)
        poll = select.poll()
        poll.register(self._client.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        watched: dict[int, int] = {}
        while True:
            while self._client.pump(0):
                pass
            while self._orders:
                self._orders.popleft()()
            for number, output in self._outputs.items():
                self._move(number, output)
            if self.ended is not None and all(output.done for output in self._outputs.values() if not output.ours):
                self.known.set()
            if self._leave or self.failure or (self.ended is not None and all(output.done for output in self._outputs.values())):
                return
            wanted = {output.fd: select.POLLOUT for output in self._outputs.values() if output.parts}
            if self._stdin >= 0 and self._writing < WRITES:
                wanted[self._stdin] = select.POLLIN
            for fd in watched.keys() - wanted.keys():
                poll.unregister(fd)
            for fd, events in wanted.items():
                if watched.get(fd) != events:
                    poll.register(fd, events)
            watched = wanted
            for fd, _ in poll.poll():
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                elif fd == self._stdin:
                    self._read_input()

    def _on_end(self, ended: Ended | int) -> None:
        if isinstance(ended, Ended):
            self.ended = ended
            self._end_input()
        else:
            self.failure = self.failure or -ended

    def _ask(self, number: int, output: Output) -> None:
        output.asked += 1
        self._process.read(number, READ_PART, partial(self._arrived, number, output))

    def _arrived(self, number: int, output: Output, status: int, data: Buffer) -> None:
        output.asked -= 1
        if status > 0 and not output.done:
            output.quiet = False
            # The message that brought the data is gone when this returns.
            output.parts.append(memoryview(bytes(data)))
        elif status == 0:
            output.ended = True
        elif not output.done:
            self.failure = self.failure or -status

    def _move(self, number: int, output: Output) -> None:
        if output.done:
            return
        if output.parts and not output.write():
            # Nobody reads it: as a local program would, it gets SIGPIPE at its next write.
            output.close()
            self._process.close_stream(number)
        elif output.ended and not output.parts:
            output.close()
        else:
            # A read on a connection that is gone fails before this returns.
            while not output.ended and not self.failure and output.asked + len(output.parts) < (1 if output.quiet else READS):
                self._ask(number, output)

    def _read_input(self) -> None:
        try:
            data = os.read(self._stdin, WRITE_UNASKED)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._writing += 1
        self._process.write(data, self._taken, not data)
        if not data:
            self._end_input()

    def _taken(self, status: int) -> None:
        self._writing -= 1
        if status < 0:
            self._end_input()

    def _end_input(self) -> None:
        fd, self._stdin = self._stdin, -1
        if fd >= 0:
            os.close(fd)
