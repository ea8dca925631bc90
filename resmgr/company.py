"""Who else could run: whether one task of a Trio program is alone with its dispatch, and for how long.

A task that is alone may wait in a system call, and go on without a checkpoint, since there is nobody whom that keeps from running. Alone
means: no other task is scheduled, none waits for I/O in Trio, and no deadline is due before `until`. What the kernel brings for Trio itself
(a signal, the return of a Trio thread) is not foreseen, so `until` is never further off than STRETCH_ALONE.

Trio takes all that can run as one batch, in any order, and its statistics show only what waits for the next. So the scheduled tasks are
counted here, as a Trio instrument; the moment another is scheduled, nobody is alone any more. Deadlines and waits for I/O are asked for
(3 µs, and more if many wait) only when a task has run since the last answer. What the running task itself does to other scopes' deadlines
in between is seen STRETCH_ALONE later at most. Deadlines are taken for real seconds: not for clocks that run at another rate.
"""

from __future__ import annotations

import time
from typing import Final

import trio

STRETCH_MAX: Final = 1e-3
"""Seconds in a row without a checkpoint while others wait in Trio."""
STRETCH_ALONE: Final = 5e-3
"""Seconds without a checkpoint while nobody does: what a signal, or the return of a Trio thread, may wait."""


class Company(trio.abc.Instrument):
    """See the head of this file. A context of the dispatch's own task, which is the only one to call `give_way` and `sleep`.

    *guest*: Trio runs as the guest of another loop, which stands still whenever we do: then nobody is ever alone.
    """

    def __init__(self, guest: bool = False) -> None:
        self._guest = guest
        self.alone = False
        self.until = 0.0
        """When whoever runs turns has to give way again (monotonic)."""
        self._ready: set[trio.lowlevel.Task] = set()
        """Other tasks that were scheduled and have not run since."""
        self._woken: set[trio.lowlevel.Task] = set()
        """Those of them that did not schedule themselves, in a checkpoint: they have waited for something, and it is there."""
        self._running: trio.lowlevel.Task | None = None
        self._changes = 0
        self._asked_at = -1
        """`_changes` when `alone` and `until` were found out."""
        self._busy_until = 0.0
        """Somebody waited for I/O: not asked again before that."""
        self._task: trio.lowlevel.Task | None = None
        """The dispatch's own."""
        self._scheduled = False
        """It is scheduled."""
        self._asleep = False
        """It is in `sleep`."""
        self._complete = False
        """`_ready` has every task that is scheduled."""

    def __enter__(self) -> None:
        self._task = trio.lowlevel.current_task()
        trio.lowlevel.add_instrument(self)

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)
        self.alone = self._complete = False
        self.until = 0.0

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self._changes += 1
        if task is self._task:
            self._scheduled = True
        else:
            self._ready.add(task)
            self.alone = False
            if task is not self._running:
                self._woken.add(task)
                self.until = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._changes += 1
        self._running = task
        if task is self._task:
            self._scheduled = False
        else:
            self._ready.discard(task)
            self._woken.discard(task)

    async def meet(self) -> None:
        """Call first. What was scheduled before we began to count has run after two checkpoints."""
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        self._complete = True
        self._look()

    async def give_way(self) -> None:
        """Let every other task run that can."""
        await trio.lowlevel.checkpoint()
        for _ in range(2):
            # Behind us in this batch, or scheduled in it and put behind us in the next.
            if self._woken:
                await trio.lowlevel.checkpoint()
        self._look()

    async def sleep(self, fd: int) -> None:
        """Until *fd* is readable."""
        self._asleep = True
        try:
            await trio.lowlevel.wait_readable(fd)
        finally:
            self._asleep = False
        self._look()

    def leaves_alone(self, now: float) -> bool:
        """For another task than the dispatch's, which runs now: whether it is alone with the dispatch. Sets `alone` and `until`."""
        if self._changes != self._asked_at and now >= self._busy_until:
            self._look()
        return self.alone and now < self.until

    def _look(self) -> None:
        now = time.monotonic()
        self.alone = False
        # Who is still to run after that waits for one turn more.
        self.until = 0.0 if self._woken else now + STRETCH_MAX
        self._asked_at = self._changes
        if self._complete and not self._ready and not self._guest:
            statistics = trio.lowlevel.current_statistics()
            waiting = statistics.io_statistics
            # One reader is Trio itself: that is how threads and signals reach it. Another is the dispatch, asleep.
            readers = 2 if self._asleep and not self._scheduled else 1
            if waiting.tasks_waiting_read > readers or waiting.tasks_waiting_write:
                self._busy_until = self.until
                return
            until = min(now + STRETCH_ALONE, now + statistics.seconds_to_next_deadline)
            if now < until:
                self.alone = True
                self.until = until
