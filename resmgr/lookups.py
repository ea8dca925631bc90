"""Threads for look-ups that may never answer: accounts (a directory service), the way to a listed program (a dead mount). Each user may
keep a few of them, so that one whose look-ups hang holds up nobody else's.

Threads are made as they are needed and stay. For programs to be started each begins in the mount namespace that they will see: what is
checked is what will run.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable

from resmgr.ownthread import new_thread

THREADS_MAX = 8
THREADS_PER_USER = 2

Work = Callable[[OSError | None], None]
"""Is told why the thread could not be made as it should be, if so; raises nothing."""


def _as_it_is() -> None:
    """Threads for look-ups that are the same everywhere."""


class Lookups:
    """*enter* is called in each thread first. `submit` and `close` may be called from any thread."""

    def __init__(self, name: str, enter: Callable[[], None] = _as_it_is) -> None:
        self._name = name
        self._enter = enter
        self._waiting: deque[tuple[Hashable, Work]] = deque()
        self._busy: Counter[Hashable] = Counter()
        self._threads = 0
        self._idle = 0
        self._closed = False
        self._changed = threading.Condition()

    def submit(self, user: Hashable, work: Work) -> bool:
        """Run *work* in a thread when it is its turn; where the system has no room for one, after a later `submit`. False when closed."""
        with self._changed:
            if self._closed:
                return False
            self._waiting.append((user, work))
            if self._idle:
                self._changed.notify()
            elif self._threads < THREADS_MAX and new_thread(self._name, self._run) is not None:
                self._threads += 1
        return True

    def close(self) -> None:
        """Nothing further begins; threads that wait end. One that hangs ends when it can."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        failure: OSError | None = None
        try:
            self._enter()
        except OSError as error:
            failure = error
        while (job := self._next()) is not None:
            user, work = job
            try:
                work(failure)
            finally:
                with self._changed:
                    self._busy[user] -= 1
                    if not self._busy[user]:
                        del self._busy[user]
                    self._changed.notify()

    def _next(self) -> tuple[Hashable, Work] | None:
        with self._changed:
            while not self._closed:
                for job in self._waiting:
                    if self._busy.get(job[0], 0) < THREADS_PER_USER:
                        self._waiting.remove(job)
                        self._busy[job[0]] += 1
                        return job
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            return None
