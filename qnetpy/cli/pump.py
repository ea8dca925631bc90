"""Moves a remote program's streams, signals and end between its messages and this process. The engine of `qnet on`."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from qnetpy.cli.caught import ENDING, PASSED_ON, Caught
from qnetpy.cli.output import CommandError
from qnetpy.cli.terminal import HELP, Escape, Raw, foreground, size
from resmgr.client import Client, Send
from resmgr.dispatch import Buffer
from resmgr.errors import ResmgrError
from resmgr.ids import ND_LOCAL
from resmgr.procmgr.client import Process
from resmgr.procmgr.message import WRITE_UNASKED, Ended

if TYPE_CHECKING:
    from queue import SimpleQueue

READS = 4
"""Reads of one stream under way."""
READ_PART = 512 * 1024
PIPE_SIZE = 1 << 20
WRITES = 8
WRITE_PART = WRITE_UNASKED
FAILED = 255
LOOK = 0.2
"""Seconds between looks whether this process is in the foreground again: a shell tells only a program that was stopped."""
IN_VAIN = 3
"""After so many Ctrl-C somebody may want to know how to leave a program that ignores them."""


class Writer:
    """Writes one output stream, in a thread where writing may block. `written` is called in the pump's thread, after each part."""

    def __init__(self, fd: int, wake: Callable[[], None]) -> None:
        self._fd = fd
        self._wake = wake
        self._direct = stat.S_ISREG(os.fstat(fd).st_mode)
        self._written: deque[None] = deque()
        """One for each part, since both threads may change it without a lock."""
        self._parts: SimpleQueue[bytes] | None = None
        self.broken = False
        """The reader has gone, or the disk is full: nothing more can be written."""
        self.error: OSError | None = None

    def put(self, data: Buffer) -> None:
        if self._direct:
            self._write(data)
            self._wrote()
            return
        if self._parts is None:
            # Loaded here: programs that say nothing start sooner.
            import queue
            import threading

            self._parts = queue.SimpleQueue()
            threading.Thread(target=self._run, args=(self._parts,), daemon=True).start()
        # The message that brought the data is gone when this returns.
        self._parts.put(bytes(data))

    def taken(self) -> int:
        """Parts written since the last call."""
        count = len(self._written)
        for _ in range(count):
            self._written.popleft()
        return count

    def _run(self, parts: SimpleQueue[bytes]) -> None:
        while True:
            self._write(parts.get())
            self._wrote()

    def _wrote(self) -> None:
        self._written.append(None)
        self._wake()

    def _write(self, data: Buffer) -> None:
        view = memoryview(data)
        try:
            while view and not self.broken:
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:
                    # Somebody who shares this descriptor made it non-blocking.
                    select.select([], [self._fd], [])
        except OSError as error:
            self.error = error
            self.broken = True


class Pump:
    """Runs until the program has ended and everything it said is written."""

    def __init__(
        self,
        client: Client,
        process: Process,
        *,
        terminal: bool,
        no_input: bool,
        ended: Ended | None = None,
        over: tuple[bool, bool] = (False, False),
    ) -> None:
        """*ended*, *over*: what is known already of a program that was started briefly, its end and which of its streams have."""
        self._client = client
        self._process = process
        self._terminal = terminal
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._outputs = {stream: Writer(stream, lambda: os.eventfd_write(self._wake, 1)) for stream in ((1,) if terminal else (1, 2))}
        self._pending = dict.fromkeys(self._outputs, 0)
        """Parts asked for or being written."""
        self._open = {stream for stream in self._outputs if not over[stream - 1]}
        self._quiet = set(self._outputs)
        """Those that have said nothing yet: one read is under way, so that programs without output start and end with fewer messages."""
        self._input = not no_input and ended is None
        self._input_parts = 0
        self._carried: dict[int, Send] = {}
        """Streams that the daemon carries, this process's pipe being the daemon's as well."""
        self._ended: Ended | int | None = ended
        self._failure = 0
        self._endings = 0
        self._leave = False
        self._stops = False
        """The program was stopped, or somebody wants that: stop too."""
        self._escape = Escape() if terminal and os.isatty(0) else None
        self._typed = os.isatty(0)
        self._told = False

    def run(self, node: str) -> int:
        """The exit status. CommandError (status 255) when the connection is lost."""
        caught = Caught((*PASSED_ON, signal.SIGWINCH) if self._terminal else PASSED_ON)
        try:
            with caught, Raw(0 if self._escape is not None else -1) as raw:
                self._loop(caught, raw)
        except ResmgrError as error:
            if error.errno != errno.ENOTCONN:
                raise
            raise CommandError("the daemon of this node went away", "qnet status", FAILED) from error
        for stream, writer in self._outputs.items():
            if writer.error is not None and writer.error.errno != errno.EPIPE:
                name = ("", "standard output", "standard error")[stream]
                raise CommandError(f"{name}: {(writer.error.strerror or '').lower()}", "", FAILED)
        if self._leave:
            raise CommandError(f"left {node}: the program there gets SIGHUP", "", FAILED)
        failure = self._failure or (-self._ended if isinstance(self._ended, int) else 0)
        if failure:
            raise CommandError(f"{node}: {os.strerror(failure).lower()}", "qnet ls", FAILED)
        assert isinstance(self._ended, Ended)
        return self._ended.shell_status

    def _loop(self, caught: Caught, raw: Raw) -> None:
        if self._ended is None:
            self._process.wait(self._on_end, self._terminal)
        self._widen()
        for stream in sorted(self._open):
            if not self._carry(stream):
                self._ask(stream)
        if self._input and self._carry(0):
            self._input = False
        poll = select.poll()
        poll.register(self._client.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        poll.register(caught, select.POLLIN)
        reading = False
        while not self._done():
            while self._client.pump(0):
                pass
            self._written()
            if self._done():
                break
            if self._stops:
                self._stop(caught, raw)
            # A terminal is only read, and made raw, by who is in its foreground: others would be stopped.
            ours = not self._typed or foreground(0)
            if ours and not raw.held:
                raw.again()
            wants = self._input and ours and self._input_parts < WRITES
            if wants != reading:
                reading = wants
                if wants:
                    poll.register(0, select.POLLIN)
                else:
                    poll.unregister(0)
            for fd, _ in poll.poll(None if ours else LOOK * 1e3):
                if fd == caught.fileno():
                    self._signals(caught.take(), raw)
                elif fd == self._wake:
                    os.eventfd_read(self._wake)
                elif fd == 0:
                    self._read_input()
        for send in list(self._carried.values()):
            # What is left in the pipe belongs to whoever reads it next.
            send.unblock()
        while self._carried:
            self._client.pump(None)

    def _carry(self, stream: int) -> bool:
        """Have the daemon read this pipe, or write into it: then this process sleeps. False: it is none, or the program is on this node."""
        if self._terminal or self._process.connection.nd == ND_LOCAL or not stat.S_ISFIFO(os.fstat(stream).st_mode):
            return False
        self._carried[stream] = self._process.carry(stream, stream, partial(self._was_carried, stream))
        return True

    def _was_carried(self, stream: int, status: int) -> None:
        del self._carried[stream]
        if status == -errno.ENOTSUP:
            # The daemon does not, for it carries too much already.
            if stream:
                self._ask(stream)
            else:
                self._input = self._ended is None
        elif not stream:
            if status < 0:
                self._unread()
        else:
            self._open.discard(stream)
            if status not in (0, -errno.EPIPE, -errno.EINTR):
                self._failure = self._failure or -status

    def _widen(self) -> None:
        """More at a time from a pipe, and into one: fewer messages for the same bytes. The kernel may refuse."""
        for fd in (0, 1):
            try:
                if stat.S_ISFIFO(os.fstat(fd).st_mode) and fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < PIPE_SIZE:
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            except OSError:
                pass

    def _done(self) -> bool:
        if self._leave or self._failure:
            return True
        return self._ended is not None and not self._open and not any(self._pending.values())

    def _on_end(self, ended: Ended | int) -> None:
        if isinstance(ended, Ended) and ended.stopped:
            self._stops = True
            self._process.wait(self._on_end, self._terminal)
            return
        self._ended = ended
        if isinstance(ended, int):
            self._failure = -ended
        self._input = False

    def _ask(self, stream: int) -> None:
        self._pending[stream] += 1
        self._process.read(stream, READ_PART, partial(self._arrived, stream))

    def _arrived(self, stream: int, status: int, data: Buffer) -> None:
        if status > 0 and not self._outputs[stream].broken:
            self._outputs[stream].put(data)
            if stream in self._quiet:
                self._quiet.discard(stream)
                for _ in range(READS - 1):
                    self._ask(stream)
            return
        self._pending[stream] -= 1
        if status == 0:
            self._open.discard(stream)
        elif status < 0 and stream in self._open:
            self._failure = self._failure or -status

    def _written(self) -> None:
        for stream, writer in self._outputs.items():
            for _ in range(writer.taken()):
                self._pending[stream] -= 1
                if stream in self._open and not writer.broken:
                    self._ask(stream)
            if writer.broken and stream in self._open:
                # As a local program would: its next write gets SIGPIPE.
                self._open.discard(stream)
                self._process.close_stream(stream)

    def _read_input(self) -> None:
        try:
            data = os.read(0, WRITE_PART)
        except BlockingIOError:
            return
        except OSError:
            # EIO: a terminal that hung up.
            data = b""
        last = not data
        if self._escape is not None:
            data, self._leave = self._escape.feed(data)
            if self._escape.stops:
                self._escape.stops = 0
                self._process.signal(signal.SIGTSTP)
                self._stops = True
            if self._escape.questions:
                self._escape.questions = 0
                self._say(*HELP)
            if self._escape.interrupts >= IN_VAIN and not self._told:
                self._told = True
                self._say("(Enter, then ~. leaves, whatever the program does)")
            if not data and not last:
                return
        if last:
            self._input = False
        self._input_parts += 1
        self._process.write(data, self._taken, last)

    def _say(self, *lines: str) -> None:
        """To the user, on a terminal that is raw."""
        os.write(2, "".join(f"\r\n{line}" for line in lines).encode() + b"\r\n")

    def _taken(self, status: int) -> None:
        self._input_parts -= 1
        if status < 0 and self._input:
            # The program reads no more (EPIPE), so whoever writes to us shall know.
            self._input = False
            if not self._terminal:
                self._unread()

    def _unread(self) -> None:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)

    def _signals(self, numbers: bytes, raw: Raw) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self._process.winsize(*size(0))
                continue
            if number == signal.SIGTSTP:
                self._stops = True
            if number == signal.SIGCONT:
                # Somebody stopped us by a signal that cannot be caught; a shell had the terminal meanwhile.
                raw.again()
            if number in ENDING:
                self._endings += 1
                if self._endings > 1:
                    self._leave = True
                    return
            self._process.signal(number)

    def _stop(self, caught: Caught, raw: Raw) -> None:
        """Stop here as the program is stopped there. Whoever continues this process (`fg`) continues both."""
        self._stops = False
        raw.restore()
        caught.stop()
        raw.again()
        if self._terminal:
            self._process.winsize(*size(0))
        self._process.signal(signal.SIGCONT)
