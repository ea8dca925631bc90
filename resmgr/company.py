"""Who else could run: whether one task of a Trio program is alone with its dispatch, and for how long.

A task that is alone may wait in a system call, and go on without a checkpoint, since there is nobody whom that keeps from running. Alone
means: no other task is scheduled, none waits for I/O in Trio, and no deadline is due before `until`. What the kernel brings for Trio itself
(a signal, the return of a Trio thread) is not foreseen, so `until` is never further off than STRETCH_ALONE.

Trio takes all that can run as one batch, in any order, and its statistics show only what waits for the next. So the scheduled tasks are
counted here, as a Trio instrument. Deadlines and waits for I/O are asked for (3 µs) only when a task has run since the last answer: nobody
else can have made one.
"""

from __future__ import annotations

import time

import trio

STRETCH_MAX = 1e-3
"""Seconds in a row without a checkpoint while others wait in Trio."""
STRETCH_ALONE = 5e-3
"""Seconds without a checkpoint while nobody does: what a signal, or the return of a Trio thread, may wait."""


class Company(trio.abc.Instrument):
    """See the head of this file. A context of the dispatch's own task, which is the only one to call `give_way` and `sleep`."""

    def __init__(self) -> None:
        self.alone = False
        self.until = 0.0
        """When whoever runs turns has to give way again (monotonic)."""
        self._ready: set[trio.lowlevel.Task] = set()
        """Tasks that were scheduled and have not run since."""
        self._changes = 0
        self._asked_at = -1
        """`_changes` when `alone` and `until` were found out."""
        self._task: trio.lowlevel.Task | None = None
        """The dispatch's own."""
        self._complete = False
        """`_ready` has every task that is scheduled."""
        self._asleep = False
        """It is in `sleep`."""

    def __enter__(self) -> None:
        self._task = trio.lowlevel.current_task()
        trio.lowlevel.add_instrument(self)

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self._ready.add(task)
        self._changes += 1

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._ready.discard(task)
        self._changes += 1

    async def meet(self) -> None:
        """Call first. What was scheduled before we began to count has run after two checkpoints."""
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        self._complete = True
        self._look()

    async def give_way(self) -> None:
        """Let every other task run that can."""
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
        if self._changes != self._asked_at:
            self._look()
        return self.alone and now < self.until

    def _look(self) -> None:
        now = time.monotonic()
        self.alone = False
        self.until = now + STRETCH_MAX
        self._asked_at = self._changes
        scheduled = self._task in self._ready
        if self._complete and len(self._ready) == scheduled:
            statistics = trio.lowlevel.current_statistics()
            waiting = statistics.io_statistics
            # One reader is Trio itself: that is how threads and signals reach it. Another is the dispatch, asleep.
            readers = 2 if self._asleep and not scheduled else 1
            if waiting.tasks_waiting_read <= readers and not waiting.tasks_waiting_write:
                until = min(now + STRETCH_ALONE, now + statistics.seconds_to_next_deadline)
                if now < until:
                    self.alone = True
                    self.until = until
