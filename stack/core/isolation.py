"""Isolation: what a module's callbacks may do to others, and how it is known which module did it.

Each module has a `Guard`. Its handlers, hooks and listeners run under it, and so does whatever it puts on the dispatch, because the
dispatch that a module is given (`Context.dispatch`) is its guard's; so do all calls of the stack to a driver (`Interface.ask`), and what
arrives on channels and connections that it made, because the guard is their shield (`resmgr.shield`). docs/stack/manager.md lists all ways
into a module. Under a guard

- an exception ends the callback and goes no further: it is counted by module and by callback, logged once per callback, and told to whoever
  restarts modules (`stack.core.restart`). On a bare dispatch it would end the node;
- a callback that takes longer than `slow_after` seconds is counted by name: while one runs, nothing else does. Time in callbacks of other
  modules that it called is theirs. It is time on the wall: on a machine that has too much to do, everything is slow. Loading and unloading
  are not measured: the kernel takes some 50 ms to give a packet ring back;
- what the callback registers in the stack is the module's, and so goes when the module goes;
- descriptors and timers on the dispatch are the module's, and so are the channels that it opened: those that `detach` forgot are taken
  away and complained about.

What belongs to nobody is of the program around the stack. Its callbacks are called, and what they raise is counted, by `Guards`; their time
within a callback of a module counts as that module's.

Calls that the module deferred to this turn, and results of its blocking work, still come after it was unloaded: they are how an ending
finishes.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

from resmgr.cancellation import is_cancelled
from resmgr.dispatch import Dispatch, Timer
from resmgr.errors import Misuse
from stack.core.errors import ModuleError
from stack.core.registry import Registration
from stack.core.statistics import Counters

if TYPE_CHECKING:
    from resmgr.channel import Channel
    from stack.core.ifnet import Interface
    from stack.frame import Frame

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

SLOW_DEFAULT: Final = 0.05
"""Seconds: a third of what a node's peers wait before they ask again."""
RAISED = (BaseException,)
"""What ends a callback and not the node: all of it. A module that asks for the end of the process, or raises what another event loop means
by cancelling, is one that failed. A task that is cancelled is none (`resmgr.cancellation`); SIGINT comes as a signal, and
so not as KeyboardInterrupt."""
REFUSALS = (ModuleError, OSError, Misuse)
"""Answers to who asked a module for something, and no failures of the module."""
NAMES_MAX: Final = 64
"""Callbacks told apart per module; the rest are counted as `other`. Stops a module that makes a new function each time."""


class Guards:
    """What the guards of one stack share. *clock*: monotonic seconds that go on within a turn; None: nothing is measured."""

    def __init__(self, name: str, clock: Callable[[], float] | None, slow_after: float = SLOW_DEFAULT) -> None:
        self.name = name
        self.clock = clock
        self.slow_after = slow_after
        self.current: Guard | None = None
        """Whose callback is running."""
        self.inside = 0.0
        """Seconds spent in callbacks so far, for who was called from within one."""
        self.failed: Callable[[Guard], None] = _nobody
        """Told after each exception."""
        self.failures = Counters()
        """Exceptions of what is nobody's, and of modules that are gone."""

    def run(
        self, guard: Guard | None, what: str, call: Callable[[Interface, list[Frame]], R], interface: Interface, frames: list[Frame]
    ) -> R:
        """A handler or hook, on the hot path. Its exception is the caller's."""
        outer, self.current = self.current, guard
        clock = self.clock
        if clock is None:
            try:
                return call(interface, frames)
            finally:
                self.current = outer
        inside, began = self.inside, clock()
        try:
            return call(interface, frames)
        finally:
            self.current = outer
            self.took(guard, what, clock() - began, inside)

    def send(self, guard: Guard | None, transmit: Callable[[list[Frame]], None], frames: list[Frame]) -> None:
        """A driver's `transmit`, on the hot path. Its exception is the caller's."""
        outer, self.current = self.current, guard
        clock = self.clock
        if clock is None:
            try:
                transmit(frames)
            finally:
                self.current = outer
            return
        inside, began = self.inside, clock()
        try:
            transmit(frames)
        finally:
            self.current = outer
            self.took(guard, "transmit", clock() - began, inside)

    def call(self, guard: Guard | None, what: str, call: Callable[[*Ts], None], *args: *Ts) -> None:
        """Any other callback that has no answer, of a module or of nobody. Returns when it raised, too."""
        if guard is not None:
            guard.run(what, call, *args)
            return
        outer, self.current = self.current, None
        try:
            call(*args)
        except RAISED:
            self.failure(what, call, None)
        finally:
            self.current = outer

    def failure(self, what: str, callback: Callable[..., object], guard: Guard | None) -> None:
        """Called while handling the exception of *callback*."""
        if guard is not None:
            guard.failure(what, callback)
            return
        self.failures.count(what)
        if self.failures[what] == 1:
            log.exception("%s: exception in %s (%r); further ones are only counted", self.name, what, callback)

    def registered(self, what: str, revoke: Callable[[], None]) -> Registration:
        """What was just put into the stack is the module's whose callback is running."""
        guard = self.current
        if guard is None:
            return Registration(what, revoke)
        owned = guard.registrations

        def gone() -> None:
            owned.pop(registration, None)
            revoke()

        registration = Registration(what, gone)
        owned[registration] = None
        return registration

    def took(self, guard: Guard | None, what: str, seconds: float, inside: float) -> None:
        """A callback took *seconds*; *inside* is what `inside` was when it began."""
        own = seconds - (self.inside - inside)
        self.inside = inside + seconds
        if own > self.slow_after and guard is not None:
            guard.was_slow(what, own)


def _nobody(guard: Guard) -> None:
    pass


class Guard:
    """One module's, and a `resmgr.shield.Shield`. `failures` and `slow` count callbacks by name; `longest` is the slowest, in seconds."""

    def __init__(self, module: str, guards: Guards) -> None:
        self.module = module
        self.failures = Counters()
        self.slow = Counters()
        self.longest = 0.0
        self.guards = guards
        self.registrations: dict[Registration, None] = {}
        self.channels: dict[Channel, None] = {}

    def failure(self, what: str, callback: object) -> None:
        """Called while handling the exception of *callback*."""
        name = within(self.failures, what)
        self.failures.count(name)
        if self.failures[name] == 1:
            log.exception(
                "%s: module %s: exception in %s (%r); further ones are only counted", self.guards.name, self.module, what, callback
            )
        self.guards.failed(self)

    def was_slow(self, what: str, seconds: float) -> None:
        name = within(self.slow, what)
        self.slow.count(name)
        if seconds > self.longest:
            self.longest = seconds
            log.info("%s: module %s: %s took %.0f ms, and nothing else ran", self.guards.name, self.module, what, seconds * 1000)

    def run(self, what: str, call: Callable[[*Ts], object], *args: *Ts) -> bool:
        """A callback of the module, whatever it is. Returns when it raised, too: whether it did not."""
        guards = self.guards
        outer, guards.current = guards.current, self
        clock, inside = guards.clock, guards.inside
        began = 0.0 if clock is None else clock()
        try:
            call(*args)
        except RAISED:
            self.failure(what, call)
            return False
        finally:
            guards.current = outer
            if clock is not None:
                guards.took(self, what, clock() - began, inside)
        return True

    def ask(self, what: str, call: Callable[[*Ts], R], *args: *Ts) -> R:
        """A callback that has an answer. What it raises is the caller's; unless that refuses (REFUSALS), it is counted before."""
        guards = self.guards
        outer, guards.current = guards.current, self
        clock, inside = guards.clock, guards.inside
        began = 0.0 if clock is None else clock()
        try:
            return call(*args)
        except REFUSALS:
            raise
        except RAISED:
            self.failure(what, call)
            raise
        finally:
            guards.current = outer
            if clock is not None:
                guards.took(self, what, clock() - began, inside)

    def opened(self, channel: Channel) -> None:
        self.channels[channel] = None

    def closed(self, channel: Channel) -> None:
        self.channels.pop(channel, None)

    def take_back(self) -> list[str]:
        """After the module was detached: the names of registrations and channels that it left, which are gone now."""
        left = [registration.what for registration in self.registrations] + [f"channel {one.pid}/{one.chid}" for one in self.channels]
        for registration in reversed(list(self.registrations)):
            registration.revoke()
        for channel in list(self.channels):
            channel.destroy()
        return left


def within(counters: Counters, name: str) -> str:
    """What to count *name* as."""
    return name if name in counters or len(counters) < NAMES_MAX else "other"


class GuardedDispatch:
    """A `resmgr.dispatch.Dispatch` for one module: calls of *dispatch* with callbacks that run under *guard*."""

    def __init__(self, dispatch: Dispatch, guard: Guard) -> None:
        self._dispatch = dispatch
        self._guard = guard
        self._descriptors: set[int] = set()
        self._timers: set[_GuardedTimer] = set()
        self._tasks = 0
        self.now = dispatch.now
        self.wall = dispatch.wall

    def _guarded(self, call: Callable[[], None], what: str = "") -> Callable[[], None]:
        run, name = self._guard.run, what or _name(call)

        def guarded() -> None:
            run(name, call)

        return guarded

    def attach_fd(self, fd: int, readable: Callable[[], None]) -> None:
        self._dispatch.attach_fd(fd, self._guarded(readable))
        self._descriptors.add(fd)

    def want_write(self, fd: int, writable: Callable[[], None] | None) -> None:
        self._dispatch.want_write(fd, None if writable is None else self._guarded(writable))

    def want_read(self, fd: int, wanted: bool) -> None:
        self._dispatch.want_read(fd, wanted)

    def detach_fd(self, fd: int) -> None:
        self._descriptors.discard(fd)
        self._dispatch.detach_fd(fd)

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        timer = _GuardedTimer(self._timers)
        guard, name = self._guard, _name(call)

        def ring() -> None:
            timer.timer = None
            self._timers.discard(timer)
            guard.run(name, call)

        timer.timer = self._dispatch.call_at(when, ring)
        self._timers.add(timer)
        return timer

    def call_soon(self, call: Callable[[], None]) -> None:
        self._dispatch.call_soon(self._guarded(call))

    def at_turn_end(self, call: Callable[[], None]) -> None:
        self._dispatch.at_turn_end(self._guarded(call))

    def call_blocking(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        run, name = self._guard.run, _name(done)

        def guarded(result: T | BaseException) -> None:
            run(name, done, result)

        self._dispatch.call_blocking(work, guarded)

    def call_from_thread(self, call: Callable[[], None]) -> None:
        self._dispatch.call_from_thread(self._guarded(call))

    def start_task(self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        self._tasks += 1

        async def run() -> None:
            try:
                await _steps(function(*args), self._guard, _name(function))
            except RAISED as error:
                if not isinstance(error, Exception) and is_cancelled(error):
                    raise
                self._guard.failure(_name(function), function)
            finally:
                self._tasks -= 1

        self._dispatch.start_task(run)

    def sizes(self) -> dict[str, int]:
        """What the module has on the dispatch just now."""
        return {"descriptors": len(self._descriptors), "timers": len(self._timers), "tasks": self._tasks}

    def take_back(self) -> list[str]:
        """After the module was detached: what it left, taken away. Tasks are told and go on: they are ended by whoever started them."""
        left = [f"descriptor {fd}" for fd in sorted(self._descriptors)]
        left += ["a timer"] * len(self._timers)
        left += ["a task"] * self._tasks
        for fd in list(self._descriptors):
            self.detach_fd(fd)
        for timer in list(self._timers):
            timer.cancel()
        return left


@types.coroutine
def _steps(task: Awaitable[object], guard: Guard, what: str) -> Generator[object, object, None]:
    """*task*, each step of which runs under *guard* as a callback does. Tasks that it starts in a nursery of its own do not."""
    steps, guards = task.__await__(), guard.guards
    given: object = None
    thrown: BaseException | None = None
    while True:
        outer, guards.current = guards.current, guard
        clock, inside = guards.clock, guards.inside
        began = 0.0 if clock is None else clock()
        try:
            asked = steps.send(given) if thrown is None else steps.throw(thrown)
        except StopIteration:
            return
        finally:
            guards.current = outer
            if clock is not None:
                guards.took(guard, what, clock() - began, inside)
        given = thrown = None
        try:
            given = yield asked
        except BaseException as error:
            thrown = error


class _GuardedTimer:
    """A timer that its module's dispatch knows of."""

    __slots__ = ("_pending", "timer")

    def __init__(self, pending: set[_GuardedTimer]) -> None:
        self._pending = pending
        self.timer: Timer | None = None

    def cancel(self) -> None:
        self._pending.discard(self)
        if self.timer is not None:
            self.timer.cancel()


def _name(call: object) -> str:
    """A callback for people: `PacketDriver._readable`."""
    return getattr(call, "__qualname__", "") or type(call).__qualname__
