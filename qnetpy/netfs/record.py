"""Which mounts this node's daemon has, written down in its run directory: RUN_DIR/mounts, a line of JSON each.

What was written by a process that is gone was left by a daemon that was killed: the next one aborts and removes it, and does not look at it
before, because a look may hang. The kernel does not always end the connection of a process that it has killed: one of its threads may be
in the kernel, waiting for a lock that a program has, which waits for an answer of the process. Such a process is a zombie, and keeps the
lock of the run directory until its mounts are aborted (`abort_left`).
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import count

import attrs

from resmgr.fuse.mount import Device, MountError, abort_mount

log = logging.getLogger(__name__)
FILE = "mounts"
RECORD_MAX = 64 * 1024
"""Bytes of the file that are read."""


@attrs.frozen
class Left:
    """A mount that was made by a daemon of this run directory, since the machine was booted."""

    point: str
    device: Device


def left(run_dir: str) -> list[Left]:
    """What is written down, but for what a process has that works; nothing if that cannot be read, or is of another boot."""
    return [one for one, pid, began in _written(run_dir) if not _works(pid, began)]


def made(run_dir: str) -> list[Left]:
    """As `left`, but all that is written down."""
    return [one for one, _, _ in _written(run_dir)]


def _written(run_dir: str) -> Iterator[tuple[Left, int, object]]:
    """Each mount, the process that made it, and when that began."""
    try:
        with open(os.path.join(run_dir, FILE), "rb") as file:
            lines = file.read(RECORD_MAX).splitlines()
    except OSError:
        return
    boot = _boot()
    for line in lines:
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            continue
        match told:
            case {"boot": at, "pid": int(pid), "began": began, "point": str(point), "major": int(major), "minor": int(minor)}:
                if at == boot:
                    yield Left(point, (major, minor)), pid, began


class Record:
    """The file of one process. `write` blocks; it may be called from several threads, and the later call wins."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._written = 0

    def writing(self, mounts: Iterable[Left]) -> Callable[[], None]:
        """What writes down, when it is called, that these are all mounts now."""
        number, told = next(self._numbers), list(mounts)

        def write() -> None:
            with self._lock:
                if number < self._written:
                    return
                self._written = number
                try:
                    write_down(self._run_dir, told)
                except OSError as error:
                    log.warning("what is mounted could not be written down in %s: %s", self._run_dir, error.strerror)

        return write


def write_down(run_dir: str, mounts: Iterable[Left]) -> None:
    """These are all that this process has now. OSError if it cannot be written; without any the file is removed."""
    path = os.path.join(run_dir, FILE)
    own = {"boot": _boot(), "pid": os.getpid(), "began": _state(os.getpid())[1]}
    lines = [json.dumps({**own, "major": one.device[0], "minor": one.device[1], "point": one.point}).encode() + b"\n" for one in mounts]
    if not lines:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        return
    try:
        with open(path + ".new", "wb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, 0o600)) as file:
            file.writelines(lines)
        os.replace(path + ".new", path)
    except OSError:
        with suppress(OSError):
            os.unlink(path + ".new")
        raise


def abort_left(run_dir: str) -> int:
    """Abort and remove all that `left` finds, in the caller's mount namespace. How many there were. `MountError`."""
    count = 0
    for one in left(run_dir):
        try:
            count += abort_mount(os.fsencode(one.point), one.device)
        except MountError:
            raise
        except OSError as error:
            raise MountError(error.errno, f"cannot remove the dead mount {one.point}: {error.strerror}") from None
    return count


def abort_mounts(mounts: Iterable[tuple[str, int, int]]) -> None:
    """End mounts that nobody serves any more, given as path, major, minor."""
    for point, major, minor in mounts:
        abort_mount(os.fsencode(point), (major, minor))


def _state(pid: int) -> tuple[str, str]:
    """Of a process: the letter of its state, and when it began. FileNotFoundError or ProcessLookupError."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return fields[0], fields[19]


def _works(pid: int, began: object) -> bool:
    """Whether that process is there, and not at its end."""
    try:
        state, since = _state(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return since == began and state not in "ZX"


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
