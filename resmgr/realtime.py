"""`TrioDispatch`: a node's dispatch in real time, on one epoll descriptor and one Trio task.

The task runs turns. Between turns, while messages come and go, it waits in three ways, one after the other:

    look    epoll.poll(0) again and again for up to `spin` seconds, giving the processor away each time (`sched_yield`)
    nap     epoll.poll(): the task itself sleeps in our epoll
    sleep   Trio's own wait, on our epoll descriptor; an idle node sleeps here

Looking: waking a sleeping process on another core costs 25 to 100 µs on the machines we measured, a failed look 1 µs. Looks that found
nothing use up credit; looks that found something, and naps and sleeps shorter than `spin` and WAKE_UP, earn it; without credit
there is no look. A yield that took long (`YIELD_MAX`) let somebody else run on this core. That may have been whom we wait for; if not, the
looking only takes his time, and all credit is gone (`SPIN_PAUSE`). So a stream of timers, or one message a second, costs no polling.

Napping: a sleep through Trio costs 13 µs of work, and three times that with the cold caches of a process that has just been woken; a nap
costs 1 µs. Trio and its other tasks stand still meanwhile, as they do in a turn, so a nap happens only while nothing else waits in Trio but
for a thread or a signal (`_Company`), and the task gives way at latest after `STRETCH_ALONE`; after STRETCH_MAX if others do wait.

Timers live in one heap. For waiting, the earliest one is put into a timerfd in the same epoll set: a Trio cancel scope per sleep costs 6
to 10 µs and rounds to milliseconds, `timerfd_settime` costs below 1 µs and does not. It is only moved when it would be too late; a timer
that was cancelled meanwhile costs one empty turn.

Other Trio tasks run at every checkpoint: after `TURNS_MAX` turns or the stretch, at once after `task_woken` and `start_task`, and in every
sleep. A Trio task that wants to act on the machines outside a turn uses `enter`, which runs a turn of its own, right there: the
dispatch task need not wake.
"""

from __future__ import annotations

import ctypes
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import attrs
import trio

from resmgr.errors import Misuse
from resmgr.turns import Call, PendingCall, TimerHeap, TurnQueue

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SPIN_DEFAULT = 200e-6
"""Seconds of looking for more work before sleeping; 0 switches it off."""
SPIN_CREDIT_MAX = 8
"""Looks in a row that may find nothing before the dispatch sleeps at once."""
SPIN_PAUSE = -16
"""Credit after looking on a core that somebody else wanted, in vain: so many short waits until the next look."""
YIELD_MAX = 20e-6
"""Seconds that `sched_yield` takes at most when nobody else wants the core, an interrupt included."""
WAKE_UP = 100e-6
"""Seconds that being woken takes at most: a wait that looking would have ended sooner was so much longer for it."""
NAP = 1e-3
"""Seconds after the last traffic for which the task naps rather than sleeps."""
EVENTS_MAX = 64
TURNS_MAX = 16
"""Turns in a row without a checkpoint, and seconds, while others wait in Trio."""
STRETCH_MAX = 1e-3
STRETCH_ALONE = 5e-3
"""Seconds without a checkpoint while nobody does: what a signal, or the return of a Trio thread, may wait."""
THREADS_DEFAULT = 64
"""Cap for `call_blocking`. A thread is started when more jobs are under way than there are threads; who has many limits them himself."""

_LOOK, _NAP, _SLEEP = range(3)
_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_NEVER = float("inf")


@attrs.frozen
class DispatchStatistics:
    """Counters since start. `spins` are looks that found nothing yet, `spin_hits` naps that looking saved."""

    turns: int
    naps: int
    sleeps: int
    spins: int
    spin_hits: int
    wakeups_from_threads: int
    blocking_calls: int
    threads: int
    descriptors: int
    timers: int


class TrioDispatch:
    """See the head of this file; made by `resmgr.runner.open_dispatch`. The contract of the methods is `resmgr.dispatch.Dispatch`'s."""

    def __init__(self, nursery: trio.Nursery, spin: float, threads: int) -> None:
        self._nursery = nursery
        self._spin = spin
        self._epoll = select.epoll()
        self._readable: dict[int, Callable[[], None]] = {}
        self._writable: dict[int, Callable[[], None]] = {}
        self._paused: set[int] = set()
        self._timers = TimerHeap()
        self._queue = TurnQueue()
        self._in_turn = False
        self._asleep = False
        self._woken = False
        self._failure: BaseException | None = None
        self._now = time.monotonic()
        self._wake = _WakeUp()
        self._alarm = _Alarm()
        self._pool = _Pool(self, threads)
        self._turns = self._naps = self._sleeps = self._spins = self._spin_hits = self._blocking = 0
        self.attach_fd(self._wake.fd, self._wake.drained_into(self._queue.soon.append))
        self.attach_fd(self._alarm.fd, self._alarm.rang)

    def now(self) -> float:
        return self._now if self._in_turn else time.monotonic()

    def wall(self) -> float:
        return time.time()

    def attach_fd(self, fd: int, readable: Callable[[], None]) -> None:
        if fd in self._readable:
            raise Misuse(f"descriptor {fd} is attached already")
        self._epoll.register(fd, select.EPOLLIN)
        self._readable[fd] = readable

    def want_write(self, fd: int, writable: Callable[[], None] | None) -> None:
        self._check_attached(fd)
        if writable is None:
            if self._writable.pop(fd, None) is not None:
                self._watch(fd)
        else:
            news = fd not in self._writable
            self._writable[fd] = writable
            if news:
                self._watch(fd)

    def want_read(self, fd: int, wanted: bool) -> None:
        self._check_attached(fd)
        if wanted == (fd in self._paused):
            if wanted:
                self._paused.discard(fd)
            else:
                self._paused.add(fd)
            self._watch(fd)

    def _check_attached(self, fd: int) -> None:
        if fd not in self._readable:
            raise Misuse(f"descriptor {fd} is not attached")

    def _watch(self, fd: int) -> None:
        self._epoll.modify(fd, (0 if fd in self._paused else select.EPOLLIN) | (select.EPOLLOUT if fd in self._writable else 0))

    def detach_fd(self, fd: int) -> None:
        if self._readable.pop(fd, None) is not None:
            self._writable.pop(fd, None)
            self._paused.discard(fd)
            self._epoll.unregister(fd)

    def call_at(self, when: float, call: Call) -> PendingCall:
        timer = self._timers.push(when, call)
        if self._asleep and when < self._alarm.armed:
            self._alarm.set(when)
        return timer

    def call_soon(self, call: Call) -> None:
        self._queue.soon.append(call)
        if self._asleep and not self._in_turn:
            self._wake.signal()

    def at_turn_end(self, call: Call) -> None:
        self._queue.ends.append(call)
        if self._asleep and not self._in_turn:
            self._wake.signal()

    def call_blocking(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        self._blocking += 1
        self._pool.run(work, done)

    def call_from_thread(self, call: Call) -> None:
        self._wake.post(call)

    def start_task(self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        self._nursery.start_soon(function, *args)
        self._woken = True

    def task_woken(self) -> None:
        """Tell that a callback rescheduled a Trio task: it gets its checkpoint at the end of this turn."""
        self._woken = True

    def enter(self, call: Call) -> None:
        """From a Trio task, outside any turn: run *call* and whatever it defers as a turn, now. Inside a turn: just run it."""
        if self._in_turn:
            call()
            return
        self._queue.soon.appendleft(call)
        try:
            self._turn(())
        except Exception as error:
            # The node fails, not the task that happened to be here.
            self._failure = error
            self._wake.signal()
        if self._queue:
            self._wake.signal()

    def statistics(self) -> DispatchStatistics:
        return DispatchStatistics(
            self._turns,
            self._naps,
            self._sleeps,
            self._spins,
            self._spin_hits,
            self._wake.posts,
            self._blocking,
            self._pool.threads,
            len(self._readable) - 2,
            len(self._timers),
        )

    def _turn(self, events: list[tuple[int, int]] | tuple[()]) -> None:
        self._turns += 1
        self._now = time.monotonic()
        self._in_turn = True
        try:
            for fd, mask in events:
                if mask & select.EPOLLOUT:
                    writable = self._writable.get(fd)
                    if writable is not None:
                        writable()
                if mask & ~select.EPOLLOUT:
                    readable = self._readable.get(fd)
                    if readable is not None:
                        readable()
            self._timers.run_due(self._now)
            self._queue.run()
        finally:
            self._in_turn = False

    async def run(self) -> None:
        """The dispatch task. Ends only by cancellation or with the exception that left a callback."""
        poll = self._epoll.poll
        monotonic = time.monotonic
        alarm = self._alarm.fd
        pending = self._queue
        company = _Company()
        turns = 0
        credit = SPIN_CREDIT_MAX
        wait = _SLEEP
        shared = False
        look_until = nap_until = waited_from = 0.0
        with company:
            await company.give_way()
            while True:
                due = self._timers.first()
                # Whatever other tasks queued during a checkpoint is seen here or by the poll.
                ready = bool(pending.soon or pending.ends) or (due is not None and due <= monotonic())
                napping = wait == _NAP and company.alone and not ready
                if napping:
                    # The alarm ends the nap when we must give way; a time limit of epoll's would cost setting a timer for every nap.
                    self._arm(company.until if due is None else min(due, company.until))
                    self._naps += 1
                    waited_from = monotonic()
                events = poll(None if napping else 0, EVENTS_MAX)
                if events or ready:
                    self._turn(events)
                    turns += 1
                    if events and (len(events) > 1 or events[0][0] != alarm):
                        if wait == _LOOK:
                            self._spin_hits += 1
                        # A wait that was as short as looking is, but for the waking, could have been a look.
                        if self._now - waited_from < self._spin + WAKE_UP and credit < SPIN_CREDIT_MAX:
                            credit += 1
                        wait = _LOOK if credit > 0 and self._spin else _NAP
                        look_until = 0.0
                        shared = False
                        nap_until = self._now + NAP
                    elif wait == _NAP and self._now >= nap_until:
                        wait = _SLEEP
                    if self._woken or self._now >= company.until or (turns >= TURNS_MAX and not company.alone):
                        # Trio may put this task before the woken one: then one turn more, and the next checkpoint is its.
                        turns = TURNS_MAX - 1 if self._woken else 0
                        self._woken = False
                        await company.give_way()
                    continue
                if self._failure is not None:
                    raise self._failure
                turns = 0
                if wait == _LOOK:
                    now = monotonic()
                    if not look_until:
                        waited_from = now
                        look_until = now + self._spin
                    if now >= look_until:
                        credit = SPIN_PAUSE if shared else credit - 1
                        shared = False
                        wait = _NAP
                        continue
                    self._spins += 1
                    os.sched_yield()
                    after = monotonic()
                    if after - now > YIELD_MAX:
                        # Somebody else ran on this core: one look more at what came of it.
                        shared = True
                        look_until = after
                    if not company.alone or after >= company.until:
                        await company.give_way()
                    continue
                if due is not None:
                    self._arm(due)
                waited_from = monotonic()
                wait = _SLEEP
                self._sleeps += 1
                self._asleep = True
                try:
                    await company.sleep(self._epoll.fileno())
                finally:
                    self._asleep = False

    def _arm(self, due: float) -> None:
        """Before a wait: have the alarm ring at *due* at latest."""
        if due < self._alarm.armed:
            self._alarm.set(due)

    def close(self) -> None:
        """Let go of every descriptor. Descriptors attached by others stay open: they are theirs."""
        self._pool.close()
        self._readable.clear()
        self._writable.clear()
        self._timers.clear()
        self._queue.clear()
        self._epoll.close()
        self._wake.close()
        self._alarm.close()


class _Company(trio.abc.Instrument):
    """Tells whether the dispatch task is alone: nothing else waits in Trio, but for threads and signals. A context, of one task.

    Trio takes all that can run as one batch, in any order, and shows only what waits for the next. So we are alone when nothing was ready
    or could become so by itself when we gave way, and nothing else ran until we were back.
    """

    def __init__(self) -> None:
        self.alone = False
        self.until = 0.0
        """When the task has to give way again (monotonic)."""
        self._steps = 0
        """Steps of any task."""

    def __enter__(self) -> None:
        trio.lowlevel.add_instrument(self)

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps += 1

    async def give_way(self) -> None:
        """Let every other task run that can."""
        deadline = self._quiet_until()
        steps = self._steps
        await trio.lowlevel.checkpoint()
        self._back(deadline, steps)

    async def sleep(self, fd: int) -> None:
        """Until *fd* is readable."""
        deadline = self._quiet_until()
        steps = self._steps
        await trio.lowlevel.wait_readable(fd)
        self._back(deadline, steps)

    def _quiet_until(self) -> float:
        """When Trio has something to do by itself (monotonic); 0 if it has now, or may have at any time. Costs 3 µs."""
        statistics = trio.lowlevel.current_statistics()
        waiting = statistics.io_statistics
        # One reader is Trio itself: that is how threads and signals reach it.
        if statistics.tasks_runnable or waiting.tasks_waiting_read > 1 or waiting.tasks_waiting_write:
            return 0.0
        return time.monotonic() + statistics.seconds_to_next_deadline

    def _back(self, deadline: float, steps: int) -> None:
        now = time.monotonic()
        self.until = min(now + STRETCH_ALONE, deadline)
        self.alone = self._steps == steps + 1 and now < self.until
        if not self.alone:
            self.until = now + STRETCH_MAX


class _WakeUp:
    """An eventfd, and the calls that other threads posted."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.posts = 0
        self._posted: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._signalled = False
        self._lock = threading.Lock()

    def post(self, call: Call) -> None:
        """Any thread. After close the call is dropped: there is nobody left to run it."""
        self._posted.put(call)
        self.posts += 1
        self.signal()

    def signal(self) -> None:
        if not self._signalled:
            with self._lock:
                self._signalled = True
                if self.fd >= 0:
                    os.eventfd_write(self.fd, 1)

    def drained_into(self, sink: Callable[[Call], None]) -> Call:
        def drain() -> None:
            try:
                os.eventfd_read(self.fd)
            except BlockingIOError:
                pass
            # Lowered before draining: a post after this signals again.
            self._signalled = False
            posted = self._posted
            while True:
                try:
                    sink(posted.get_nowait())
                except queue.Empty:
                    return

        return drain

    def close(self) -> None:
        with self._lock:
            os.close(self.fd)
            self.fd = -1


class _Alarm:
    """A timerfd on CLOCK_MONOTONIC, which is `time.monotonic`'s clock. Python has it from 3.13 on; before, glibc is called directly."""

    def __init__(self) -> None:
        self.armed = _NEVER
        if sys.version_info >= (3, 13):
            self.fd = os.timerfd_create(time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC)
        else:
            libc = ctypes.PyDLL(None, use_errno=True)
            self.fd = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
            if self.fd < 0:
                raise OSError(ctypes.get_errno(), "timerfd_create")
            self._value = (ctypes.c_long * 4)()
            self._settime = libc.timerfd_settime
            self._settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
            self._address = ctypes.addressof(self._value)

    def set(self, when: float) -> None:
        self.armed = when
        when = max(when, 1e-9)  # zero would disarm it
        if sys.version_info >= (3, 13):
            os.timerfd_settime(self.fd, flags=os.TFD_TIMER_ABSTIME, initial=when)
        else:
            seconds = int(when)
            self._value[2] = seconds
            self._value[3] = int((when - seconds) * 1e9) or (seconds == 0)
            if self._settime(self.fd, _TFD_TIMER_ABSTIME, self._address, None) < 0:
                raise OSError(ctypes.get_errno(), "timerfd_settime")

    def rang(self) -> None:
        self.armed = _NEVER
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass

    def close(self) -> None:
        os.close(self.fd)


class _Pool:
    """Worker threads for blocking calls, started when needed and kept. Daemon threads: one stuck in a dead file system delays no exit."""

    def __init__(self, dispatch: TrioDispatch, limit: int) -> None:
        self._dispatch = dispatch
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
            self._dispatch.call_from_thread(job())
            # It refers to the data of its message, and the next job may be hours away.
            del job

    def close(self) -> None:
        for _ in range(self.threads):
            self._jobs.put(None)
