"""What the manager writes to its log, and not more often than a disk can bear.

Many lines answer what somebody else does: a refused request, a program that was started. Whoever can cause them can cause a million, and
the log of a daemon commonly lies in memory (/run). So lines of one kind, those made from the same text of the program, have a budget; the
next one that is written says how many were not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

BURST = 100
"""Lines of one kind that are written at once."""
RATE = 5.0
"""Lines of one kind per second after that: some 50 MB a day at worst."""
KINDS_MAX = 256
"""Kinds told apart; the rest share one budget. Stops a program's part that makes its texts of what it hears."""


class Budget(logging.Filter):
    """Lets lines of one kind pass within their budget. *now*: monotonic seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now
        self._kinds: dict[object, tuple[float, float, int]] = {}
        """Lines left, when that was so, lines not written since the last one that was."""

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._now()
        kind: object = (record.name, record.msg)
        if kind not in self._kinds and len(self._kinds) >= KINDS_MAX:
            kind = None
        left, then, lost = self._kinds.get(kind, (float(BURST), now, 0))
        left = min(float(BURST), left + (now - then) * RATE)
        if left < 1:
            self._kinds[kind] = left, now, lost + 1
            return False
        self._kinds[kind] = left - 1, now, 0
        if lost:
            record.msg = f"{record.getMessage()} ({lost} more like it before)"
            record.args = ()
        return True


def start(verbose: bool, now: Callable[[], float]) -> None:
    """Set the program's log up: lines on standard error. *now*: monotonic seconds."""
    logging.basicConfig(format="io-pkt: %(levelname)s: %(message)s", level=logging.INFO if verbose else logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(Budget(now))
