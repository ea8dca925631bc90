"""The audit log: a JSON object on a line for each attempt to start or signal something, before it happens, and for what came of it.

The file is opened for appending, readable by its owner only, and looked at again at each line: a file that was moved away (logrotate) is
followed by a new one. One that has grown to SIZE_MAX is moved to FILE.1 by us. A node that is refused again and again fills no disk: beyond
a rate its refusals are only counted, and the next line says how many.

If a line cannot be written, whoever asked is told, and starts nothing (`write` raises).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable

from resmgr.bucket import TokenBucket

log = logging.getLogger("resmgr.procmgr.audit")

SIZE_MAX = 16 << 20
REFUSALS_RATE, REFUSALS_BURST = 5.0, 100.0
"""Lines per second about refusals of one node, and at once."""
WORDS_MAX = 64
WORD_MAX = 512
"""Arguments, and bytes of one, that a line tells."""

Fact = str | int | float | bool | None | list[str]


class AuditLog:
    """*wall* is the time of day, *now* monotonic, in seconds. Without a *path* lines go to the logger of this module."""

    def __init__(self, path: str, wall: Callable[[], float], now: Callable[[], float]) -> None:
        self.path = path
        self.dropped = 0
        """Refusals that were only counted."""
        self._wall = wall
        self._now = now
        self._fd = -1
        self._file: tuple[int, int] = (0, 0)
        self._buckets: dict[str, TokenBucket] = {}
        """By node. Nodes are members of the cluster, so there are not more than that."""
        self._unwritten: dict[str, int] = {}

    def write(self, event: str, **facts: Fact) -> None:
        """OSError when it cannot be written."""
        line = json.dumps({"time": round(self._wall(), 6), "event": event, **facts}, ensure_ascii=True)
        if not self.path:
            log.info("%s", line)
            return
        data = line.encode() + b"\n"
        self._open(len(data))
        if os.write(self._fd, data) != len(data):
            raise OSError(28, os.strerror(28), self.path)

    def refused(self, node: str, **facts: Fact) -> None:
        """A refusal: nothing depends on its being written."""
        bucket = self._buckets.get(node)
        if bucket is None:
            bucket = self._buckets[node] = TokenBucket(REFUSALS_RATE, REFUSALS_BURST)
        if not bucket.take(self._now()):
            self.dropped += 1
            self._unwritten[node] = self._unwritten.get(node, 0) + 1
            return
        unwritten = self._unwritten.pop(node, 0)
        self.told("refused", node=node, **({"unwritten": unwritten} if unwritten else {}), **facts)

    def told(self, event: str, **facts: Fact) -> None:
        """Something that has happened already, so it cannot be prevented any more if it cannot be written."""
        try:
            self.write(event, **facts)
        except OSError as error:
            log.error("%s: %s", self.path, error.strerror)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self, more: int) -> None:
        try:
            there = os.stat(self.path)
            if there.st_size + more > SIZE_MAX:
                os.replace(self.path, f"{self.path}.1")
            elif self._fd >= 0 and (there.st_dev, there.st_ino) == self._file:
                return
        except FileNotFoundError:
            pass
        self.close()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        opened = os.fstat(self._fd)
        self._file = opened.st_dev, opened.st_ino


def words(arguments: tuple[bytes, ...]) -> list[str]:
    """For a line. What is cut off is said."""
    told = [
        os.fsdecode(word[:WORD_MAX]).encode(errors="backslashreplace").decode() + ("..." if len(word) > WORD_MAX else "")
        for word in arguments
    ]
    return told if len(told) <= WORDS_MAX else [*told[:WORDS_MAX], f"({len(told) - WORDS_MAX} more)"]
