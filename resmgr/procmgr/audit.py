"""The audit log: a JSON object on a line for each attempt to start or signal something, before it happens, and for what came of it.

Who can make us write can make us forget: files are rotated, and what is rotated out is gone. So what may push what out is separate:

    FILE            what clients of other nodes started and signalled, which rules allowed
    FILE-refused    what was refused, to whomever. No number of refused attempts moves a line of FILE
    FILE-local      what clients of this node started and signalled: as themselves, which they may without us

A line has at most LINE_MAX bytes, however long the message was: words are cut, and say so. Refusals have a rate in bytes of each node, and
of each user of this node: beyond it they are only counted, and the next line says how many.

A file is opened for appending, readable by its owner only, and looked at again at each line: a file that was moved away (logrotate) is
followed by a new one. One that has grown to its size is moved to FILE.1 by us, that to FILE.2, and so on.

If a line cannot be written, or not in PATIENCE, whoever asked is told, and starts nothing. Lines are made in the dispatch and written by
whoever is given as *put*, which in a daemon is a thread (`AuditThread`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping

from resmgr.bucket import TokenBucket
from resmgr.procmgr.auditthread import Written

log = logging.getLogger("resmgr.procmgr.audit")

SIZE_MAX = 16 << 20
KEPT = 9
"""Bytes of FILE, and how many older ones are kept."""
SIDE_SIZE_MAX = 8 << 20
SIDE_KEPT = 3
"""The same for each of the others."""
LINE_MAX = 8192
WORDS_MAX = 64
WORD_MAX = 512
COMMAND_MAX = 2048
NAMES_MAX = 1024
"""Arguments, bytes of one, bytes of all as they are written, and of the names of variables, that a line tells."""
REFUSALS_RATE, REFUSALS_BURST = 512.0, 65536.0
"""Bytes per second about refusals of one node or local user, and at once."""
ASKERS_MAX = 4096
"""Of whom that is known."""

PATIENCE = 10.0
"""Seconds that an attempt waits for its line to be written."""

Put = Callable[[Callable[[], None], Written], None]
"""Call the first, which may block and raise OSError, and tell the second what came of it."""

Fact = str | int | float | bool | None | list[str]


class AuditFile:
    """One file, and what was rotated out of it. Without a *path* lines go to the logger of this module."""

    def __init__(self, path: str, size: int, kept: int) -> None:
        self.path = path
        self._size = size
        self._kept = kept
        self._fd = -1
        self._file: tuple[int, int] = (0, 0)

    def append(self, line: str) -> None:
        """OSError when it cannot be written."""
        if not self.path:
            log.info("%s", line)
            return
        data = line.encode() + b"\n"
        self._open(len(data))
        if os.write(self._fd, data) != len(data):
            raise OSError(28, os.strerror(28), self.path)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self, more: int) -> None:
        try:
            there = os.stat(self.path)
            if there.st_size + more > self._size:
                self._rotate()
            elif self._fd >= 0 and (there.st_dev, there.st_ino) == self._file:
                return
        except FileNotFoundError:
            pass
        self.close()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        opened = os.fstat(self._fd)
        self._file = opened.st_dev, opened.st_ino

    def _rotate(self) -> None:
        for number in range(self._kept - 1, 0, -1):
            try:
                os.replace(f"{self.path}.{number}", f"{self.path}.{number + 1}")
            except FileNotFoundError:
                pass
        os.replace(self.path, f"{self.path}.1")


def put_here(write: Callable[[], None], written: Written) -> None:
    """`Put` for who may block."""
    try:
        write()
    except OSError as error:
        written(error)
    else:
        written(None)


class AuditLog:
    """*wall* is the time of day, *now* monotonic, in seconds. Without a *path* lines go to the logger of this module."""

    def __init__(self, path: str, wall: Callable[[], float], now: Callable[[], float], put: Put = put_here) -> None:
        self.path = path
        self._put = put if path else put_here
        self.dropped = 0
        """Refusals that were only counted."""
        self._wall = wall
        self._now = now
        self._allowed = AuditFile(path, SIZE_MAX, KEPT)
        self._refused = AuditFile(path and f"{path}-refused", SIDE_SIZE_MAX, SIDE_KEPT)
        self._local = AuditFile(path and f"{path}-local", SIDE_SIZE_MAX, SIDE_KEPT)
        self._buckets: dict[str, TokenBucket] = {}
        self._unwritten: dict[str, int] = {}

    def write(self, event: str, facts: Mapping[str, Fact], written: Written, *, local: bool = False) -> None:
        """*local*: a client of this node asked. *written* is told, perhaps in another thread, whether it is there."""
        file, line = self._local if local else self._allowed, self._line(event, facts)
        self._put(lambda: file.append(line), written)

    def refused(self, asker: str, facts: Mapping[str, Fact]) -> None:
        """A refusal: nothing depends on its being written. *asker*: whose rate it counts against."""
        line = self._line("refused", {**facts} | ({"unwritten": self._unwritten[asker]} if asker in self._unwritten else {}))
        if len(self._buckets) >= ASKERS_MAX and asker not in self._buckets:
            self._buckets.clear()
        bucket = self._buckets.setdefault(asker, TokenBucket(REFUSALS_RATE, REFUSALS_BURST))
        if not bucket.take(self._now(), len(line) + 1):
            self.dropped += 1
            if asker in self._unwritten or len(self._unwritten) < ASKERS_MAX:
                self._unwritten[asker] = self._unwritten.get(asker, 0) + 1
            return
        self._unwritten.pop(asker, None)
        self._try(self._refused, line)

    def told(self, event: str, facts: Mapping[str, Fact], *, local: bool = False) -> None:
        """Something that has happened already, so it cannot be prevented any more if it cannot be written."""
        self._try(self._local if local else self._allowed, self._line(event, facts))

    def close(self) -> None:
        """Not while a line is being written."""
        for file in (self._allowed, self._refused, self._local):
            file.close()

    def _line(self, event: str, facts: Mapping[str, Fact]) -> str:
        time = round(self._wall(), 6)
        line = json.dumps({"time": time, "event": event, **facts}, ensure_ascii=True)
        if len(line) >= LINE_MAX:
            # What a client says is cut by who tells it; what a certificate says could be long, too.
            kept = {name: told for name, told in facts.items() if name == "command" or not isinstance(told, list)}
            short = {name: told[:WORD_MAX] if isinstance(told, str) else told for name, told in kept.items()}
            line = json.dumps({"time": time, "event": event, **short, "cut": True}, ensure_ascii=True)[: LINE_MAX - 1]
        return line

    def _try(self, file: AuditFile, line: str) -> None:
        def written(failure: OSError | None) -> None:
            if failure is not None:
                log.error("%s: %s", file.path, failure.strerror)

        self._put(lambda: file.append(line), written)


def word(data: bytes) -> str:
    """For a line. What is cut off is said."""
    told = os.fsdecode(data[:WORD_MAX]).encode(errors="backslashreplace").decode()
    size = len(json.dumps(told))
    if size > 2 * WORD_MAX:
        # Bytes that are no text take up to seven times their room.
        told = told[: 2 * WORD_MAX * len(told) // size]
    elif len(data) <= WORD_MAX:
        return told
    return told + "..."


def words(arguments: tuple[bytes, ...], size_max: int = COMMAND_MAX) -> list[str]:
    """For a line: as many as fit. How many are left out is said."""
    told: list[str] = []
    size = 0
    for argument in arguments[:WORDS_MAX]:
        one = word(argument)
        size += len(json.dumps(one)) + 2
        if size > size_max and told:
            break
        told.append(one)
    left = len(arguments) - len(told)
    return [*told, f"({left} more)"] if left else told
