"""Events that are told once more: an answer given shortly before one may still be on its way into the kernel's caches.

The kernel is told of an event at once. An answer that it was just given may be put into its caches only after that, and stay there. So for
each name that an event was about while that was possible, the same is done again `SETTLE` later (docs/protocol/coherence.md).
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from resmgr.dispatch import Dispatch, Timer

if TYPE_CHECKING:
    from resmgr.fuse.lease import Lease

SETTLE: Final = 0.05
"""Seconds after which the kernel has put an answer where it belongs."""
DUE_MAX: Final = 1024
"""Names of one directory that wait for that. Beyond, it is not leased."""


class Again:
    """Those of one mount, on one timer. *tell* is given lease, name, kinds of the events, and the time; of leases that ended it is not
    called."""

    def __init__(self, dispatch: Dispatch, tell: Callable[[Lease, bytes, int, float], None]) -> None:
        self._dispatch = dispatch
        self._tell = tell
        self._due: list[tuple[float, int, Lease, bytes, float]] = []
        """When, in which order, of what, and of which time the last event was when that was said."""
        self._count = 0
        self._timer: Timer | None = None

    def heard(self, lease: Lease, name: bytes, kind: int, now: float) -> None:
        """An event of *kind* about *name* was told to the kernel: once more for each name, `SETTLE` after the last event about it, at the
        latest `SETTLE` after that was due. Not, if there was no answer lately."""
        if lease.answered <= now - SETTLE:
            return
        known = lease.again.get(name)
        if known is not None:
            lease.again[name] = (known[0] | kind, now)
            return
        lease.again[name] = (kind, now)
        self._at(now + SETTLE, lease, name, now)

    def _at(self, due: float, lease: Lease, name: bytes, last: float) -> None:
        self._count += 1
        heappush(self._due, (due, self._count, lease, name, last))
        self._arm()

    def _arm(self) -> None:
        if self._due and self._timer is None:
            self._timer = self._dispatch.call_at(self._due[0][0], self._ring)

    def _ring(self) -> None:
        self._timer = None
        while self._due and self._due[0][0] <= self._dispatch.now():
            _, _, lease, name, last = heappop(self._due)
            self._once_more(lease, name, last)
        self._arm()

    def _once_more(self, lease: Lease, name: bytes, before: float) -> None:
        kind, last = lease.again.pop(name)
        if lease.node.lease is not lease:
            return
        self._tell(lease, name, kind, self._dispatch.now())
        if last > before:
            lease.again[name] = (kind, last)
            self._at(last + SETTLE, lease, name, last)

    def close(self) -> None:
        """Nothing is told any more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due.clear()
