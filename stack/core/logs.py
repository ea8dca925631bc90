"""What the manager writes to its log, and not more often than a disk can bear.

Many lines answer what somebody else does: a refused request, a program that was started. Whoever can cause them can cause a million, and
the log of a daemon commonly lies in memory (/run). So lines of one kind, those made from the same text of the program, have a budget; the
next one that is written says how many were not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs

from resmgr.bucket import TokenBucket

BURST = 100
"""Lines of one kind that are written at once."""
RATE = 5.0
"""Lines of one kind per second after that: some 50 MB a day at worst."""
KINDS_MAX = 256
"""Kinds told apart; the rest share one budget. Stops a program's part that makes its texts of what it hears."""


@attrs.define(eq=False)
class _Kind:
    lines: TokenBucket = attrs.Factory(lambda: TokenBucket(RATE, BURST))
    lost: int = 0
    """Lines not written since the last one that was."""


class Budget(logging.Filter):
    """Lets lines of one kind pass within their budget. *now*: monotonic seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now
        self._kinds: dict[object, _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key: object = (record.name, record.msg)
        if key not in self._kinds and len(self._kinds) >= KINDS_MAX:
            key = None
        kind = self._kinds.setdefault(key, _Kind())
        if not kind.lines.take(self._now()):
            kind.lost += 1
            return False
        if kind.lost:
            record.msg = f"{record.getMessage()} ({kind.lost} more like it before)"
            record.args = ()
            kind.lost = 0
        return True


@contextmanager
def written(verbose: bool, now: Callable[[], float]) -> Iterator[None]:
    """The program's log, for the length of the block: lines on standard error. *now*: monotonic seconds. Where a program around has a log
    already, that is left as it is."""
    root = logging.getLogger()
    if root.handlers:
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("io-pkt: %(levelname)s: %(message)s"))
    handler.addFilter(Budget(now))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
