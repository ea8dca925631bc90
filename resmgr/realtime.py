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
for a thread or a signal (`resmgr.company`), and the task gives way at latest after `STRETCH_ALONE`; after STRETCH_MAX if others do wait.

A task that waits for an answer and is alone with the dispatch does all this itself (`drive`): an answer that comes soon costs no change of
tasks, which is 13 µs each way. When it has to wait for longer it waits as Trio's tasks do, and the dispatch task goes on.

Timers live in one heap. For waiting, the earliest one is put into a timerfd in the same epoll set: a Trio cancel scope per sleep costs 6
to 10 µs and rounds to milliseconds, `timerfd_settime` costs below 1 µs and does not. It is only moved when it would be too late; a timer
that was cancelled meanwhile costs one empty turn.

Other Trio tasks run at every checkpoint: after `TURNS_MAX` turns or the stretch, after a turn that scheduled one, and in every sleep. A
Trio task that wants to act on the machines outside a turn uses `enter`, which runs a turn of its own: the dispatch need not wake.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, TypeVarTuple

import attrs
import trio

from resmgr.company import Company
from resmgr.errors import Misuse
from resmgr.turns import Call, PendingCall, TimerHeap, TurnQueue
from resmgr.wakeup import NEVER, Alarm, WakeUp
from resmgr.workers import Workers

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SPIN_DEFAULT: Final = 200e-6
"""Seconds of looking for more work before sleeping; 0 switches it off."""
SPIN_CREDIT_MAX: Final = 8
"""Looks in a row that may find nothing before the dispatch sleeps at once."""
SPIN_PAUSE: Final = -16
"""Credit after looking on a core that somebody else wanted, in vain: so many short waits until the next look."""
YIELD_MAX: Final = 20e-6
"""Seconds that `sched_yield` takes at most when nobody else wants the core, an interrupt included."""
WAKE_UP: Final = 100e-6
"""Seconds that being woken takes at most: a wait that looking would have ended sooner was so much longer for it."""
NAP: Final = 1e-3
"""Seconds after the last traffic for which the task naps rather than sleeps."""
EVENTS_MAX: Final = 64
TURNS_MAX: Final = 16
"""Turns in a row without a checkpoint while others wait in Trio."""
THREADS_DEFAULT: Final = 64
"""Cap for `call_blocking`. A thread is started when more jobs are under way than there are threads; who has many limits them himself."""

_LOOK: Final = 0
_NAP: Final = 1
_SLEEP: Final = 2

_GO_ON: Final = 0
_GIVE_WAY: Final = 1
_TO_SLEEP: Final = 2


class Wanted:
    """What a task waits for in `TrioDispatch.drive`: somebody sets `come` in a turn."""

    __slots__ = ("come",)

    def __init__(self) -> None:
        self.come = False


@attrs.frozen
class DispatchStatistics:
    """Counters since start. `spins` are looks that found nothing yet, `spin_hits` naps that looking saved. `blocking_now`: of the blocking
    calls, those that are under way."""

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
    blocking_now: int


class TrioDispatch:
    """See the head of this file; made by `resmgr.runner.open_dispatch`. The contract of the methods is `resmgr.dispatch.Dispatch`'s."""

    def __init__(self, nursery: trio.Nursery, spin: float, threads: int, guest: bool = False) -> None:
        self._nursery = nursery
        self._spin = spin
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        self._readable: dict[int, Callable[[], None]] = {}
        self._writable: dict[int, Callable[[], None]] = {}
        self._paused: set[int] = set()
        self._timers = TimerHeap()
        self._queue = TurnQueue()
        self._in_turn = False
        self._asleep = False
        self._failure: BaseException | None = None
        self._now = time.monotonic()
        self._wake = WakeUp()
        self._alarm = Alarm()
        self._workers = Workers(self._wake.post, threads)
        self._company = Company(guest)
        self._wait = _SLEEP
        """How to wait next: _LOOK, _NAP, _SLEEP."""
        self._credit = SPIN_CREDIT_MAX
        self._shared = False
        """While looking: somebody else ran on this core."""
        self._look_until = self._nap_until = self._waited_from = 0.0
        self._stretch = 0
        """Turns in a row."""
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
        self._workers.run(work, done)

    def call_from_thread(self, call: Call) -> None:
        self._wake.post(call)

    def start_task(self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        self._nursery.start_soon(function, *args)

    def enter(self, call: Call) -> None:
        """From a Trio task, outside any turn: run *call* and whatever it defers as a turn, now. Inside a turn: just run it.

        Timers wait for the dispatch task: the caller is not to pay for what others have put off.
        """
        if self._in_turn:
            call()
            return
        self._queue.soon.appendleft(call)
        try:
            self._turn(None)
        except Exception as error:
            self._fail(error)
        if self._queue:
            self._wake.signal()

    def _fail(self, error: Exception) -> None:
        """The node fails, not the task that happened to be here."""
        if self._failure is None:
            self._failure = error
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
            self._workers.threads,
            len(self._readable) - 2,
            len(self._timers),
            self._workers.busy,
        )

    def _turn(self, events: list[tuple[int, int]] | None) -> None:
        """*events* of the epoll; None: timers are not run either."""
        self._turns += 1
        self._now = time.monotonic()
        self._in_turn = True
        try:
            for fd, mask in events or ():
                if mask & select.EPOLLOUT:
                    writable = self._writable.get(fd)
                    if writable is not None:
                        writable()
                if mask & ~select.EPOLLOUT:
                    readable = self._readable.get(fd)
                    if readable is not None:
                        readable()
            if events is not None:
                self._timers.run_due(self._now)
            self._queue.run()
        finally:
            self._in_turn = False

    async def run(self) -> None:
        """The dispatch task. Ends only by cancellation or with the exception that left a callback."""
        company = self._company
        with company:
            await company.meet()
            while True:
                if self._failure is not None:
                    raise self._failure
                after = self._step(NEVER)
                if after == _GO_ON:
                    continue
                if after == _GIVE_WAY:
                    self._stretch = 0
                    await company.give_way()
                    continue
                due = self._timers.first()
                if due is not None:
                    self._arm(due)
                self._waited_from = time.monotonic()
                self._sleeps += 1
                self._asleep = True
                try:
                    await company.sleep(self._epoll.fileno())
                finally:
                    self._asleep = False
                # Whoever drove meanwhile may have left it looking: not for an alarm of his, only for what comes.
                self._wait = _SLEEP

    def drive(self, wanted: Wanted, until: float, *, soon: bool) -> None:
        """From a Trio task, outside any turn: run turns right here, looking and napping between them, until *wanted* has come.

        Returns early when the task has to wait as others do: it is not alone, *until* (monotonic) or `Company.until` is over, another task
        was scheduled, or it would be time to sleep. *soon*: what is wanted is an answer, so worth looking for even if nothing came lately.
        """
        now = time.monotonic()
        if self._in_turn or now >= until or not self._company.leaves_alone(now):
            return
        if soon and self._wait == _SLEEP:
            self._expect(now)
        asleep, self._asleep = self._asleep, False
        try:
            while not wanted.come and self._failure is None and self._step(until) == _GO_ON and self._now < until:
                pass
        except Exception as error:
            self._fail(error)
        finally:
            self._asleep = asleep
            due = self._timers.first()
            if asleep and due is not None:
                self._arm(due)
            if self._queue:
                self._wake.signal()

    def may_go_on(self) -> bool:
        """From a Trio task, outside any turn: whether a checkpoint would let nobody run, neither another task nor the dispatch."""
        now = time.monotonic()
        due = self._timers.first()
        return (
            self._company.leaves_alone(now)
            and not self._queue
            and (due is None or now < due)
            and self._failure is None
            and not self._poll(0, 1)
        )

    def _expect(self, now: float) -> None:
        """Something came, or will soon: what to do until the next."""
        self._wait = _LOOK if self._credit > 0 and self._spin else _NAP
        self._look_until = 0.0
        self._shared = False
        self._nap_until = now + NAP

    def _step(self, until: float) -> int:
        """Look, or nap until *until* at latest, and run a turn for what was there. Returns what the caller has to do."""
        pending = self._queue
        company = self._company
        due = self._timers.first()
        # Whatever other tasks queued during a checkpoint is seen here or by the poll.
        ready = bool(pending.soon or pending.ends) or (due is not None and due <= time.monotonic())
        napping = self._wait == _NAP and company.alone and not ready
        if napping:
            # The alarm ends the nap when we must give way; a time limit of epoll's would cost setting a timer for every nap.
            until = min(until, company.until)
            self._arm(until if due is None else min(due, until))
            self._naps += 1
            self._waited_from = time.monotonic()
        events = self._poll(None if napping else 0, EVENTS_MAX)
        if events or ready:
            self._turn(events)
            self._stretch += 1
            if events and (len(events) > 1 or events[0][0] != self._alarm.fd):
                if self._wait == _LOOK:
                    self._spin_hits += 1
                # A wait that was as short as looking is, but for the waking, could have been a look.
                if self._now - self._waited_from < self._spin + WAKE_UP and self._credit < SPIN_CREDIT_MAX:
                    self._credit += 1
                self._expect(self._now)
            elif self._wait == _NAP and self._now >= self._nap_until:
                self._wait = _SLEEP
            if self._now >= company.until or (self._stretch >= TURNS_MAX and not company.alone):
                return _GIVE_WAY
            return _GO_ON
        self._stretch = 0
        if self._wait == _LOOK:
            now = time.monotonic()
            if not self._look_until:
                self._waited_from = now
                self._look_until = now + self._spin
            if now >= self._look_until:
                self._credit = SPIN_PAUSE if self._shared else self._credit - 1
                self._shared = False
                self._wait = _NAP
                return _GO_ON
            self._spins += 1
            os.sched_yield()
            after = time.monotonic()
            if after - now > YIELD_MAX:
                # Somebody else ran on this core: one look more at what came of it.
                self._shared = True
                self._look_until = after
            return _GO_ON if company.alone and after < min(until, company.until) else _GIVE_WAY
        self._wait = _SLEEP
        return _TO_SLEEP

    def _arm(self, due: float) -> None:
        """Before a wait: have the alarm ring at *due* at latest."""
        if due < self._alarm.armed:
            self._alarm.set(due)

    def close(self) -> None:
        """Let go of every descriptor. Descriptors attached by others stay open: they are theirs."""
        self._workers.close()
        self._readable.clear()
        self._writable.clear()
        self._timers.clear()
        self._queue.clear()
        self._epoll.close()
        self._wake.close()
        self._alarm.close()
