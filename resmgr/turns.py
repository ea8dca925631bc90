"""The part of a dispatch that is the same in real and in virtual time: what happens inside one turn, and the timer queue.

Order inside a turn: descriptors, due timers, then `call_soon` calls, then turn-end calls; a turn-end call may ask for more of both, which
still run in this turn. A chain that never ends is cut after `ROUNDS_MAX` rounds and goes on in the next turn. What waits for the turn's end
runs before that in any case, since answers are sent there: descriptors, other tasks and clients get their share even from a badly written
callback.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Final

Call = Callable[[], None]

ROUNDS_MAX: Final = 100
"""Rounds of call_soon and turn-end calls that one turn runs before it gives way."""
COMPACT_FLOOR: Final = 64
"""Cancelled timers that may lie in the heap before it is rebuilt (then: when they are more than half of it)."""


class PendingCall:
    """A timer. Cancelled ones stay in the heap until their time or until they are the majority: cancel costs no heap operation."""

    __slots__ = ("_heap", "call", "when")

    def __init__(self, heap: TimerHeap, when: float, call: Call) -> None:
        self._heap = heap
        self.when = when
        self.call: Call | None = call

    def cancel(self) -> None:
        if self.call is not None:
            self.call = None
            self._heap.cancelled_one()


class TimerHeap:
    """Timers by time; equal times run in the order in which they were set."""

    __slots__ = ("_cancelled", "_heap", "_next")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, PendingCall]] = []
        self._next = 0
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def push(self, when: float, call: Call) -> PendingCall:
        timer = PendingCall(self, when, call)
        self._next += 1
        heapq.heappush(self._heap, (when, self._next, timer))
        return timer

    def first(self) -> float | None:
        """When the earliest live timer is due; None if there is none."""
        heap = self._heap
        while heap:
            if heap[0][2].call is not None:
                return heap[0][0]
            heapq.heappop(heap)
            self._cancelled -= 1
        return None

    def run_due(self, now: float) -> int:
        """Run every timer due at *now* that was set before this call. Returns how many ran."""
        heap = self._heap
        last = self._next
        later: list[tuple[float, int, PendingCall]] = []
        ran = 0
        while heap and heap[0][0] <= now:
            entry = heapq.heappop(heap)
            call = entry[2].call
            if call is None:
                self._cancelled -= 1
            elif entry[1] > last:
                later.append(entry)
            else:
                entry[2].call = None
                ran += 1
                call()
        for entry in later:
            heapq.heappush(heap, entry)
        return ran

    def cancelled_one(self) -> None:
        self._cancelled += 1
        if self._cancelled > COMPACT_FLOOR and self._cancelled * 2 > len(self._heap):
            self._heap[:] = [entry for entry in self._heap if entry[2].call is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def clear(self) -> None:
        for entry in self._heap:
            entry[2].call = None
        self._heap.clear()
        self._cancelled = 0


class TurnQueue:
    """Deferred calls of one turn."""

    __slots__ = ("ends", "soon")

    def __init__(self) -> None:
        self.soon: deque[Call] = deque()
        self.ends: list[Call] = []

    def __bool__(self) -> bool:
        return bool(self.soon or self.ends)

    def run(self) -> None:
        """Run what is queued until nothing is, or until it has gone on for too many rounds: then what waits for the turn's end, once, and
        the rest stays queued."""
        soon = self.soon
        for _ in range(ROUNDS_MAX):
            for _ in range(len(soon)):
                soon.popleft()()
            if soon:
                continue
            if not self.ends:
                return
            self._end()
        self._end()

    def _end(self) -> None:
        ends, self.ends = self.ends, []
        for call in ends:
            call()

    def clear(self) -> None:
        self.soon.clear()
        self.ends.clear()
