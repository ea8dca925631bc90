"""Runs one program on several nodes at once: each line of output behind its node's name. The engine of `qnet on a,b` and `--all`.

Standard input, if it is to be passed on, goes to every program: what is read is read once, and the next part when every program that still
reads has taken this one, so the slowest sets the pace. Lines of different nodes are mixed as they come, never within a line. A reader that
is slow slows all of them down, since nothing is asked for before what came has been written; signals are heard all the same, for a
thread writes.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from qnetpy.cli.caught import ENDING, PASSED_ON, Caught
from qnetpy.cli.output import CommandError
from qnetpy.cli.pump import WRITE_PART, Writer
from qnetpy.cli.selection import Place
from resmgr.client import Client
from resmgr.dispatch import Buffer
from resmgr.procmgr.client import Process
from resmgr.procmgr.message import Ended

READ_PART = 64 * 1024
LINE_MAX = 64 * 1024
"""Bytes of a line that are kept until its end comes; a longer one is broken."""
FAILED = 255


class _Lines:
    """One output of one program, each line behind its node's name."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._rest = b""

    def take(self, data: Buffer) -> bytes:
        """What is to be written of it now."""
        *lines, rest = (self._rest + bytes(data)).split(b"\n")
        if len(rest) > LINE_MAX:
            lines.append(rest)
            rest = b""
        self._rest = rest
        return b"".join(self._prefix + line + b"\n" for line in lines)

    def end(self) -> bytes:
        """A last line without an end."""
        return self._prefix + self._rest + b"\n" if self._rest else b""


class Fan:
    """One program on each of some nodes. `run` once."""

    def __init__(self, client: Client, processes: Sequence[tuple[Place, Process]], *, no_input: bool) -> None:
        self._client = client
        self._processes = processes
        self._open = 0
        self._ends: dict[str, int] = {}
        width = max((len(place.name) for place, _ in processes), default=0)
        self._prefixes = {place.name: f"{place.name}:{' ' * (width - len(place.name))} ".encode() for place, _ in processes}
        self._leave = False
        self.left: frozenset[str] = frozenset()
        """Nodes whose program had not ended when the user left."""
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._writers = {number: Writer(number, lambda: os.eventfd_write(self._wake, 1)) for number in (1, 2)}
        self._then: dict[int, deque[Callable[[], None]]] = {1: deque(), 2: deque()}
        """What to do when the next part is written, in the order of the parts."""
        self._readers = [] if no_input else [process for _, process in processes]
        """Programs that still read their input."""
        self._giving = 0
        """Of these, how many have not taken the part that was read last."""

    def run(self) -> dict[str, int]:
        """The exit status on each node, as a shell says it; 255 where it is not known."""
        with Caught(PASSED_ON) as caught:
            for place, process in self._processes:
                self._begin(place, process)
            self._loop(caught)
        for number, writer in self._writers.items():
            if writer.error is not None and writer.error.errno != errno.EPIPE:
                name = ("", "standard output", "standard error")[number]
                raise CommandError(f"{name}: {(writer.error.strerror or '').lower()}", "", FAILED)
        self.left = frozenset(place.name for place, _ in self._processes) - frozenset(self._ends)
        return {place.name: self._ends.get(place.name, FAILED) for place, _ in self._processes}

    def _loop(self, caught: Caught) -> None:
        poll = select.poll()
        for fd in (self._client.fileno(), self._wake, caught.fileno()):
            poll.register(fd, select.POLLIN)
        endings = 0
        reading = False
        while not self._leave:
            while self._client.pump(0):
                pass
            self._written()
            if not self._open and len(self._ends) == len(self._processes):
                return
            wants = bool(self._readers) and not self._giving
            if wants != reading:
                reading = wants
                if wants:
                    poll.register(0, select.POLLIN)
                else:
                    poll.unregister(0)
            for fd, _ in poll.poll():
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                elif fd == 0:
                    self._read_input()
            for number in caught.take():
                endings += number in ENDING
                self._leave = endings > 1
                self._signal(number, caught)

    def _signal(self, number: int, caught: Caught) -> None:
        for _, process in self._processes:
            process.signal(number)
        if number == signal.SIGTSTP:
            caught.stop()
            for _, process in self._processes:
                process.signal(signal.SIGCONT)

    def _begin(self, place: Place, process: Process) -> None:
        process.wait(partial(self._ended, place.name))
        for number in (1, 2):
            self._open += 1
            self._ask(process, number, _Lines(self._prefixes[place.name]))

    def _ask(self, process: Process, number: int, lines: _Lines) -> None:
        if self._writers[number].broken:
            # As a local program would: its next write gets SIGPIPE.
            self._open -= 1
            process.close_stream(number)
        else:
            process.read(number, READ_PART, partial(self._arrived, process, number, lines))

    def _arrived(self, process: Process, number: int, lines: _Lines, status: int, data: Buffer) -> None:
        if status > 0:
            self._put(number, lines.take(data), partial(self._ask, process, number, lines))
        else:
            self._put(number, lines.end(), self._over)

    def _put(self, number: int, data: bytes, then: Callable[[], None]) -> None:
        if data:
            self._then[number].append(then)
            self._writers[number].put(data)
        else:
            then()

    def _written(self) -> None:
        for number, writer in self._writers.items():
            for _ in range(writer.taken()):
                self._then[number].popleft()()

    def _over(self) -> None:
        self._open -= 1

    def _read_input(self) -> None:
        try:
            data = os.read(0, WRITE_PART)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        readers, last = list(self._readers), not data
        if last:
            self._readers = []
        self._giving = len(readers)
        for process in readers:
            process.write(data, partial(self._taken, process), last)

    def _taken(self, process: Process, status: int) -> None:
        self._giving -= 1
        if status < 0 and process in self._readers:
            self._readers.remove(process)
            if not self._readers:
                # Nobody reads any more, so whoever writes to us shall know.
                null = os.open(os.devnull, os.O_RDONLY)
                os.dup2(null, 0)
                os.close(null)

    def _ended(self, name: str, ended: Ended | int) -> None:
        if isinstance(ended, Ended):
            self._ends[name] = ended.shell_status
        elif not self._leave:
            self._ends[name] = FAILED
            print(f"qnet on: {name}: {os.strerror(-ended).lower()}", file=sys.stderr)
