"""Runs one program on many nodes at once: each line of output behind its node's name. The engine of `qnet on --all`.

Programs have no standard input. Lines of different nodes are mixed as they come, never within a line. A reader that is slow slows all of
them down, since nothing is asked for before what came has been written.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Sequence
from functools import partial

from qnetpy.cli.caught import ENDING, PASSED_ON, Caught
from qnetpy.cli.selection import Place
from resmgr.client import Client
from resmgr.dispatch import Buffer
from resmgr.procmgr.client import Process
from resmgr.procmgr.message import Ended

READ_PART = 64 * 1024
LINE_MAX = 64 * 1024
"""Bytes of a line that are kept until its end comes; a longer one is broken."""
FAILED = 255


class _Stream:
    """One output of one program."""

    def __init__(self, prefix: bytes, fd: int) -> None:
        self._prefix = prefix
        self._fd = fd
        self._rest = b""

    def put(self, data: Buffer) -> None:
        *lines, rest = (self._rest + bytes(data)).split(b"\n")
        if len(rest) > LINE_MAX:
            lines.append(rest)
            rest = b""
        self._rest = rest
        _write(self._fd, b"".join(self._prefix + line + b"\n" for line in lines))

    def end(self) -> None:
        if self._rest:
            _write(self._fd, self._prefix + self._rest + b"\n")
            self._rest = b""


class Fan:
    """One program on each of some nodes. `run` once."""

    def __init__(self, client: Client, processes: Sequence[tuple[Place, Process]]) -> None:
        self._client = client
        self._processes = processes
        self._open = 0
        self._ends: dict[str, int] = {}
        width = max((len(place.name) for place, _ in processes), default=0)
        self._prefixes = {place.name: f"{place.name}:{' ' * (width - len(place.name))} ".encode() for place, _ in processes}
        self._leave = False

    def run(self) -> dict[str, int]:
        """The exit status on each node, as a shell says it; 255 where it is not known."""
        endings = 0
        with Caught(PASSED_ON) as caught:
            for place, process in self._processes:
                self._begin(place, process)
            poll = select.poll()
            poll.register(self._client.fileno(), select.POLLIN)
            poll.register(caught, select.POLLIN)
            while (self._open or len(self._ends) < len(self._processes)) and not self._leave:
                while self._client.pump(0):
                    pass
                if not self._open and len(self._ends) == len(self._processes):
                    break
                poll.poll()
                for number in caught.take():
                    endings += number in ENDING
                    self._leave = endings > 1
                    for _, process in self._processes:
                        process.signal(number)
                    if number == signal.SIGTSTP:
                        caught.stop()
                        for _, process in self._processes:
                            process.signal(signal.SIGCONT)
        return {place.name: self._ends.get(place.name, FAILED) for place, _ in self._processes}

    def _begin(self, place: Place, process: Process) -> None:
        process.wait(partial(self._ended, place.name))
        for number in (1, 2):
            self._open += 1
            self._ask(process, number, _Stream(self._prefixes[place.name], number))

    def _ask(self, process: Process, number: int, stream: _Stream) -> None:
        process.read(number, READ_PART, partial(self._arrived, process, number, stream))

    def _arrived(self, process: Process, number: int, stream: _Stream, status: int, data: Buffer) -> None:
        if status > 0:
            stream.put(data)
            self._ask(process, number, stream)
        else:
            stream.end()
            self._open -= 1

    def _ended(self, name: str, ended: Ended | int) -> None:
        if isinstance(ended, Ended):
            self._ends[name] = ended.shell_status
        else:
            self._ends[name] = FAILED
            print(f"qnet on: {name}: {os.strerror(-ended).lower()}", file=sys.stderr)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
