"""What clients of other nodes asked for and no export covers: remembered for people, one line in the log for each new one.

A row is a node, a user of it and the outermost name that is not exported, so whoever walks a tree makes one. The table is bounded, the
oldest goes; log lines are bounded in rate, and what is not logged is counted. Dispatch context.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import attrs

from resmgr.bucket import TokenBucket
from resmgr.channel import ClientInfo

log = logging.getLogger(__name__)
ROWS_MAX = 256
LINES_PER_SECOND = 1.0
LINES_AT_ONCE = 10


@attrs.define
class Refusal:
    """One row. `at`: monotonic seconds of the last time."""

    node: str
    uid: int
    path: bytes
    why: str
    count: int
    at: float


class Refusals:
    """*now* is monotonic seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._rows: dict[tuple[str, int, bytes], Refusal] = {}
        self._bucket = TokenBucket(LINES_PER_SECOND, LINES_AT_ONCE)
        self.count = 0
        self.not_logged = 0

    def note(self, info: ClientInfo, path: bytes, why: Callable[[], str]) -> None:
        """*info* was refused *path*. *why* is asked for a new row only."""
        key = (info.node, info.credentials.uid, path)
        now = self._now()
        self.count += 1
        row = self._rows.pop(key, None)
        if row is None:
            row = Refusal(*key, why(), 0, now)
            if len(self._rows) >= ROWS_MAX:
                del self._rows[next(iter(self._rows))]
            if self._bucket.take(now):
                log.warning("refused to user %d of node %s: %r: %s", row.uid, row.node, path.decode("utf-8", "backslashreplace"), row.why)
            else:
                self.not_logged += 1
        row.count += 1
        row.at = now
        self._rows[key] = row

    def facts(self) -> dict[str, object]:
        """As JSON can say it, the latest first."""
        now = self._now()
        rows = [
            {
                "node": row.node,
                "uid": row.uid,
                "path": row.path.decode("utf-8", "backslashreplace"),
                "why": row.why,
                "count": row.count,
                "seconds": round(now - row.at, 1),
            }
            for row in reversed(self._rows.values())
        ]
        return {"count": self.count, "not_logged": self.not_logged, "rows": rows}
