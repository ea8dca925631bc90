"""`VirtualDispatch`: the dispatch under virtual time, for one node or for many.

Nothing sleeps: time jumps to the next timer. All randomness comes from one seed, so a failing seed replays exactly; with `trace=True` every
turn leaves a line, and two runs of one seed give equal traces.

A simulated cluster gives each node its own view (`node`). A view is a `Dispatch` with its own turns: what is due at one instant on several
nodes runs node by node, in an order that the seed picks; within one node, order is what `TrioDispatch` has. Virtual time does not
pass during a turn. A view can be stopped, as a machine that loses power: nothing that it had pending ever runs.

Descriptors and Trio tasks do not exist here and raise `Misuse`. `call_blocking` runs the work at once and reports in the node's next turn.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar, TypeVarTuple

from resmgr.errors import Misuse
from resmgr.turns import Call, PendingCall, TimerHeap, TurnQueue

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START = 1000.0
"""Where virtual monotonic time begins: not 0, so that a machine that takes 0 for "never" is found out."""
EPOCH = 1_750_000_000.0
"""Wall-clock time at START."""
LIMIT_DEFAULT = 3600.0
TURNS_PER_INSTANT = 100_000
"""Turns without time passing after which a run is taken to be caught in a circle."""


class NodeView:
    """One node's `Dispatch` inside a `VirtualDispatch`.

    *skew* is added to its wall clock, in seconds; whoever changes it sets the clock. *rate*: how fast its clocks run, 1.0 for as time does.
    """

    def __init__(self, world: VirtualDispatch, name: str, skew: float, rate: float = 1.0) -> None:
        self.name = name
        self.stopped = False
        self.skew = skew
        self._world = world
        self._rate = rate
        self._timers = TimerHeap()
        self._queue = TurnQueue()
        self._in_turn = False

    def now(self) -> float:
        time = self._world.time
        return time if self._rate == 1.0 else START + (time - START) * self._rate

    def wall(self) -> float:
        return EPOCH + (self.now() - START) + self.skew

    def _in_world(self, when: float) -> float:
        """The world's time at which this node's clock shows *when*, never too early."""
        if self._rate == 1.0:
            return when
        time = START + (when - START) / self._rate
        while START + (time - START) * self._rate < when:
            time = math.nextafter(time, math.inf)
        return time

    def attach_fd(self, fd: int, readable: Call) -> NoReturn:
        raise Misuse("there are no descriptors in virtual time")

    def want_write(self, fd: int, writable: Call | None) -> NoReturn:
        raise Misuse("there are no descriptors in virtual time")

    def want_read(self, fd: int, wanted: bool) -> NoReturn:
        raise Misuse("there are no descriptors in virtual time")

    def detach_fd(self, fd: int) -> None:
        """Unknown descriptors are ignored, and here all are unknown."""

    def call_at(self, when: float, call: Call) -> PendingCall:
        timer = self._timers.push(when, call)
        if self.stopped:
            timer.cancel()
        else:
            self._world.wake_at(max(self._in_world(when), self._world.time), self)
        return timer

    def call_soon(self, call: Call) -> None:
        if not self.stopped:
            self._queue.soon.append(call)
            if not self._in_turn:
                self._world.wake_at(self._world.time, self)

    def at_turn_end(self, call: Call) -> None:
        if not self.stopped:
            self._queue.ends.append(call)
            if not self._in_turn:
                self._world.wake_at(self._world.time, self)

    def call_blocking(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        result: T | BaseException
        try:
            result = work()
        except BaseException as error:
            result = error
        self.call_at(self.now(), lambda: done(result))

    def call_from_thread(self, call: Call) -> None:
        self.call_soon(call)

    def start_task(self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> NoReturn:
        raise Misuse("there are no tasks in virtual time")

    def stop(self) -> None:
        """Power off: drop everything pending; later calls are accepted and never run."""
        self.stopped = True
        self._timers.clear()
        self._queue.clear()

    def turn(self) -> str:
        """Run one turn (called by the world). Returns the trace line, empty if nothing was due."""
        if self.stopped:
            return ""
        self._in_turn = True
        try:
            soon = len(self._queue.soon)
            timers = self._timers.run_due(self.now())
            if not (timers or self._queue):
                return ""
            ends = len(self._queue.ends)
            self._queue.run()
        finally:
            self._in_turn = False
        if self._queue and not self.stopped:
            self._world.wake_at(self._world.time, self)
        return f"{self.name} timers={timers} soon={soon} ends={ends}"


class VirtualDispatch(NodeView):
    """The world, and at the same time the view of a first node named *name*, so that single-node tests need no second object."""

    def __init__(self, seed: int, *, name: str = "node", trace: bool = False) -> None:
        super().__init__(self, name, 0.0)
        self.seed = seed
        self.time = START
        self.turns = 0
        self.trace: list[str] | None = [] if trace else None
        self._order = self.random("order")
        self._wakes: list[tuple[float, int, NodeView]] = []
        self._next = 0

    def random(self, purpose: str) -> random.Random:
        """A generator of its own for *purpose*: drawing more in one place does not shift the draws of another."""
        return random.Random(f"{self.seed}/{purpose}")

    def node(self, name: str, *, skew: float = 0.0, rate: float = 1.0) -> NodeView:
        """A further node that shares this time; its clocks may differ from it."""
        return NodeView(self, name, skew, rate)

    def note(self, text: str) -> None:
        """Add a line to the trace, if there is one."""
        if self.trace is not None:
            self.trace.append(f"{self.time:.9f} {text}")

    def wake_at(self, when: float, view: NodeView) -> None:
        """A view has something to do at *when* (called by views)."""
        self._next += 1
        heapq.heappush(self._wakes, (when, self._next, view))

    def run_until(self, goal: float | Callable[[], bool], *, limit: float = LIMIT_DEFAULT) -> bool:
        """Run until virtual time *goal*, or until the predicate *goal* is true (asked after every turn).

        For a predicate: False when *limit* seconds passed or nothing is left to do, with the predicate still false. For a time: always
        True, and the clock then stands at that time, even if nothing happened there.
        """
        if not callable(goal):
            self._run(goal, None)
            self.time = max(self.time, goal)
            return True
        return goal() or self._run(self.time + limit, goal)

    def run_for(self, seconds: float) -> None:
        self.run_until(self.time + seconds)

    def _run(self, last: float, goal: Callable[[], bool] | None) -> bool:
        wakes = self._wakes
        circle = 0
        while wakes and wakes[0][0] <= last:
            when = wakes[0][0]
            if when > self.time:
                self.time = when
                circle = 0
            views: dict[NodeView, None] = {}
            while wakes and wakes[0][0] <= when:
                views[heapq.heappop(wakes)[2]] = None
            order = list(views)
            if len(order) > 1:
                self._order.shuffle(order)
            for position, view in enumerate(order):
                circle += 1
                if circle > TURNS_PER_INSTANT:
                    raise RuntimeError(f"{view.name}: time stands still at {self.time}")
                line = view.turn()
                if line:
                    self.turns += 1
                    self.note(line)
                    if goal is not None and goal():
                        for unserved in order[position + 1 :]:
                            self.wake_at(when, unserved)
                        return True
        return False
