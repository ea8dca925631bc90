"""Worker threads for the blocking calls of a dispatch."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from resmgr.ownthread import new_thread, no_room
from resmgr.turns import Call

T = TypeVar("T")

PATIENCE = 0.5
"""Seconds that an end waits for jobs that are under way."""


class Workers:
    """Threads started when needed and kept, *limit* at most. Daemon threads: one stuck in a dead file system delays an exit by PATIENCE.

    *post* (any thread) gets what is to be called in dispatch context. Where the system has no room for another thread, a job waits for
    those that are there; if there is none, its result is OSError (EAGAIN).
    """

    def __init__(self, post: Callable[[Call], None], limit: int) -> None:
        self._post = post
        self._limit = limit
        self._jobs: queue.SimpleQueue[Callable[[], Call] | None] = queue.SimpleQueue()
        self.busy = 0
        """Jobs under way, until `done` was called."""
        self.threads = 0
        self._started: list[threading.Thread] = []

    def run(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        def job() -> Call:
            result: T | BaseException
            try:
                result = work()
            except BaseException as error:
                result = error

            def finish() -> None:
                self.busy -= 1
                done(result)

            return finish

        def refused() -> None:
            self.busy -= 1
            done(no_room())

        self.busy += 1
        if self.busy > self.threads and self.threads < self._limit:
            thread = new_thread("dispatch-worker", self._work)
            if thread is not None:
                self.threads += 1
                self._started.append(thread)
        if self.threads:
            self._jobs.put(job)
        else:
            self._post(refused)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            self._post(job())
            # It refers to the data of its message, and the next job may be hours away.
            del job

    def close(self) -> None:
        """What is under way may end: closing a packet socket takes the kernel some 20 ms. Blocks for PATIENCE at most."""
        for _ in self._started:
            self._jobs.put(None)
        end = time.monotonic() + PATIENCE
        for thread in self._started:
            thread.join(max(0.0, end - time.monotonic()))
