"""Worker threads for the blocking calls of a dispatch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from resmgr.turns import Call

T = TypeVar("T")


class Workers:
    """Threads started when needed and kept, *limit* at most. Daemon threads: one stuck in a dead file system delays no exit.

    *post* (any thread) gets what is to be called in dispatch context.
    """

    def __init__(self, post: Callable[[Call], None], limit: int) -> None:
        self._post = post
        self._limit = limit
        self._jobs: queue.SimpleQueue[Callable[[], Call] | None] = queue.SimpleQueue()
        self._busy = 0
        self.threads = 0

    def run(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        def job() -> Call:
            result: T | BaseException
            try:
                result = work()
            except BaseException as error:
                result = error

            def finish() -> None:
                self._busy -= 1
                done(result)

            return finish

        self._busy += 1
        if self._busy > self.threads and self.threads < self._limit:
            self.threads += 1
            threading.Thread(target=self._work, name="dispatch-worker", daemon=True).start()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            self._post(job())
            # It refers to the data of its message, and the next job may be hours away.
            del job

    def close(self) -> None:
        for _ in range(self.threads):
            self._jobs.put(None)
