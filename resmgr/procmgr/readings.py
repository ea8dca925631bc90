"""Readings of /proc for clients, in worker threads that others need as well: a list of processes can take tens of milliseconds.

At most RUNNING_MAX are under way, one for each asker; what else an asker wants waits, and askers take turns. So a client that asks without
end keeps nobody else waiting longer than one reading of each other asker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable

from resmgr.dispatch import Dispatch
from resmgr.procmgr.listing import Rows

RUNNING_MAX = 2
WAITING_MAX = 32
"""Readings that wait, of one asker."""

Done = Callable[[Rows | BaseException], None]


class Readings:
    """All calls in dispatch context."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._waiting: dict[Hashable, deque[tuple[Callable[[], Rows], Done]]] = {}
        """By asker, in turn."""
        self._running: set[Hashable] = set()

    def submit(self, asker: Hashable, work: Callable[[], Rows], done: Done) -> bool:
        """Run *work* when it is its turn, and *done* with what it returned or raised. False: *asker* has too many waiting already."""
        waiting = self._waiting.setdefault(asker, deque())
        if len(waiting) >= WAITING_MAX:
            return False
        waiting.append((work, done))
        self._next()
        return True

    def _next(self) -> None:
        for asker in list(self._waiting):
            if len(self._running) >= RUNNING_MAX:
                return
            if asker not in self._running:
                # Behind all others for the next time.
                waiting = self._waiting.pop(asker)
                work, done = waiting.popleft()
                if waiting:
                    self._waiting[asker] = waiting
                self._begin(asker, work, done)

    def _begin(self, asker: Hashable, work: Callable[[], Rows], done: Done) -> None:
        def ended(result: Rows | BaseException) -> None:
            self._running.discard(asker)
            self._next()
            done(result)

        self._running.add(asker)
        self._dispatch.call_blocking(work, ended)
