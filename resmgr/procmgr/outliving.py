"""Detached programs that outlive the daemon that started them: so that the audit log tells their end all the same.

They are in a file beside the audit log: a JSON object with the boot of the machine, and for each its line's `id`, pid, when it began (of
/proc, by which it is known that the number is still its own) and was started. The next daemon watches those that still run. How they end it
cannot know, since they are not its children: `unseen`.

The file is read and written where the log is (`audit.Put`); it is no record of what happened, so nothing depends on its being written.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable

import attrs

from resmgr.dispatch import Dispatch
from resmgr.procmgr import listing
from resmgr.procmgr.audit import Fact, Put

log = logging.getLogger("resmgr.procmgr.audit")

PROGRAMS_MAX = 1024
"""In the file; of more the end is told only by the daemon that started them."""
BOOT_ID = "/proc/sys/kernel/random/boot_id"

Ended = Callable[[dict[str, Fact], bool], None]
"""Facts of a line, and whether the program was of a client of this node."""


@attrs.frozen
class Program:
    """One of them. `started`: seconds since 1970."""

    id: int
    pid: int
    began: int
    started: float
    local: bool


class Outliving:
    """All calls in dispatch context. Without a *path* nothing is kept."""

    def __init__(self, path: str, dispatch: Dispatch, put: Put, ended: Ended) -> None:
        self._path = path
        self._dispatch = dispatch
        self._put = put
        self._ended = ended
        self._programs: dict[tuple[int, float], Program] = {}
        self._watched: dict[int, Program] = {}
        """By pidfd: those of an earlier daemon."""
        if path:
            put(self._read, lambda failure: None)

    def add(self, number: int, pid: int, local: bool) -> None:
        """A detached program runs."""
        row = listing.read(pid) if self._path else None
        if row is not None and len(self._programs) < PROGRAMS_MAX:
            self._keep(Program(number, pid, row.began, round(self._dispatch.wall(), 6), local))
            self._write_later()

    def remove(self, pid: int) -> None:
        """It has ended, and that is told."""
        for key in [key for key in self._programs if key[0] == pid]:
            del self._programs[key]
            self._write_later()

    def close(self) -> None:
        """Watch no more."""
        for fd in self._watched:
            self._dispatch.detach_fd(fd)
            os.close(fd)
        self._watched.clear()

    def _keep(self, program: Program) -> None:
        self._programs[program.pid, program.started] = program

    def _write_later(self) -> None:
        programs = list(self._programs.values())

        def failed(failure: OSError | None) -> None:
            if failure is not None:
                log.error("%s: %s", self._path, failure.strerror)

        self._put(lambda: _write(self._path, programs), failed)

    def _read(self) -> None:
        """In the log's thread."""
        try:
            with open(self._path, "rb") as file:
                programs, same_boot = parse(file.read(PROGRAMS_MAX * 256), _boot())
        except (OSError, ValueError):
            return
        self._dispatch.call_from_thread(lambda: self._resume(programs, same_boot))

    def _resume(self, programs: list[Program], same_boot: bool) -> None:
        for program in programs:
            fd = _open(program) if same_boot else -1
            if fd < 0:
                self._over(program)
                continue
            self._keep(program)
            self._watched[fd] = program
            self._dispatch.attach_fd(fd, lambda fd=fd: self._died(fd))  # type: ignore[misc]  # a lambda with its own descriptor
        self._write_later()

    def _died(self, fd: int) -> None:
        program = self._watched.pop(fd)
        self._dispatch.detach_fd(fd)
        os.close(fd)
        self._over(program)
        self._programs.pop((program.pid, program.started), None)
        self._write_later()

    def _over(self, program: Program) -> None:
        facts: dict[str, Fact] = {"id": program.id, "pid": program.pid, "started": program.started, "unseen": True}
        self._ended(facts, program.local)


def parse(data: bytes, boot: str) -> tuple[list[Program], bool]:
    """The programs, and whether the machine has run since. ValueError for what is no such file."""
    try:
        told = json.loads(data)
        programs = [Program(**row) for row in told["programs"][:PROGRAMS_MAX]]
        same = told["boot"] == boot
    except (KeyError, TypeError, RecursionError):
        raise ValueError("not a list of programs") from None
    if any([type(value) for value in attrs.astuple(one)] != [int, int, int, float, bool] for one in programs):
        raise ValueError("not a list of programs")
    return programs, same


def _write(path: str, programs: list[Program]) -> None:
    data = json.dumps({"boot": _boot(), "programs": [attrs.asdict(program) for program in programs]}).encode()
    new = f"{path}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        os.close(fd)
    os.replace(new, path)


def _boot() -> str:
    try:
        with open(BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _open(program: Program) -> int:
    """A pidfd, or -1 if it does not run any more."""
    try:
        fd = os.pidfd_open(program.pid)
    except (OSError, OverflowError):
        return -1
    row = listing.read(program.pid)
    if row is None or row.began != program.began or row.state in "ZX":
        os.close(fd)
        return -1
    return fd
