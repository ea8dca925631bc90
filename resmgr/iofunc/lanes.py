"""Whose turn it is at the worker threads: one lane for each thing that may keep a thread for ever.

A thread that looks at a dead NFS or FUSE mount comes back when the mount does, perhaps never, and cannot be killed. So what may not answer
has a lane with a few threads at a time, further jobs wait in the lane, and whatever is on other lanes goes on. Lanes whose owner says that
they may never answer (`patient`) also share a limit, so that any number of dead mounts leaves threads to the rest.

Jobs of one lane begin in the order in which they came; lanes that wait for the shared limit take turns. A waiting job can be cancelled, one
that runs cannot. How many jobs wait is bounded by how many messages are under way. Dispatch context only, `Lane()` itself excepted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from resmgr.dispatch import Dispatch

log = logging.getLogger(__name__)
T = TypeVar("T")

LANE_MAX = 8
"""Jobs of one lane in threads at a time: what a disk can do in parallel."""
PATIENT_MAX = 4
"""The same for what may never answer."""
PATIENT_SUM = 32
"""Jobs of all patient lanes together; half of the dispatch's threads."""
SILENT = 5.0
"""Seconds that the first of a lane's running jobs has taken when one that has to wait makes us say so."""


class Job:
    """Work that was handed in. Made by `Lane.submit`."""

    __slots__ = ("begin", "lane")

    def __init__(self, lane: Lane, begin: Callable[[], None]) -> None:
        self.lane = lane
        self.begin = begin

    def cancel(self) -> bool:
        """Whether it was still waiting: then neither work nor done is ever called."""
        return self.lane.forget(self)


class Lane:
    """*name* is for people. See the head of this file."""

    __slots__ = ("_lanes", "_limit", "_running", "_told", "_waiting", "begun", "name", "patient")

    def __init__(self, lanes: Lanes, name: str, patient: bool) -> None:
        self.name = name
        self.patient = patient
        self.begun = 0
        """Jobs so far that have had their turn."""
        self._lanes = lanes
        self._limit = PATIENT_MAX if patient else LANE_MAX
        self._running: dict[Job, float] = {}
        self._waiting: dict[Job, None] = {}
        self._told = False

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> Job:
        """Run *work* in a worker thread when it is its turn, and *done* with its result or exception in dispatch context."""

        def ended(result: T | BaseException) -> None:
            self._ended(job)
            done(result)

        job = Job(self, lambda: self._lanes.dispatch.call_blocking(work, ended))
        self._waiting[job] = None
        self._lanes.next(self)
        if job in self._waiting:
            self._lanes.waited += 1
            self._complain()
        return job

    def forget(self, job: Job) -> bool:
        return self._waiting.pop(job, job) is None

    def ready(self) -> bool:
        return bool(self._waiting) and len(self._running) < self._limit

    def begin(self) -> None:
        """Start the job that has waited longest."""
        job = next(iter(self._waiting))
        del self._waiting[job]
        self._running[job] = self._lanes.dispatch.now()
        self.begun += 1
        job.begin()

    def _ended(self, job: Job) -> None:
        del self._running[job]
        if self._told:
            self._told = False
            log.warning("%s answers again", self.name)
        self._lanes.ended(self)

    def _complain(self) -> None:
        if self._told or not self._running:
            return
        seconds = self._lanes.dispatch.now() - next(iter(self._running.values()))
        if seconds >= self._lanes.silent:
            self._told = True
            log.warning("%s has not answered for %.0f s: what needs it waits, the rest goes on", self.name, seconds)


class Lanes:
    """All lanes of one manager. `waited` counts jobs that did not begin at once; *silent*: see SILENT."""

    def __init__(self, dispatch: Dispatch, silent: float = SILENT) -> None:
        self.dispatch = dispatch
        self.silent = silent
        self.waited = 0
        self._patient = 0
        self._queue: dict[Lane, None] = {}
        """Patient lanes with jobs that wait, in turn."""

    def next(self, lane: Lane) -> None:
        """Begin what may begin now that *lane* has a new job or one less that runs."""
        if not lane.patient:
            while lane.ready():
                lane.begin()
            return
        if lane.waiting:
            self._queue.setdefault(lane)
        for other in list(self._queue):
            if self._patient >= PATIENT_SUM:
                return
            if not other.ready():
                if not other.waiting:
                    del self._queue[other]
                continue
            del self._queue[other]
            self._patient += 1
            other.begin()
            if other.waiting:
                self._queue[other] = None

    def ended(self, lane: Lane) -> None:
        if lane.patient:
            self._patient -= 1
        self.next(lane)
