"""The dispatch: what every pure machine of a node is given instead of a clock, a socket or a task.

QNX resource managers run on a dispatch handle (`dispatch_create`, `dispatch_block`, `dispatch_handler`); so do ours. One dispatch
serves a whole node: descriptors that became readable, timers, deferred calls and the results of blocking work all arrive as plain
synchronous calls, one after another, in *turns*. A turn handles everything that is ready, then runs the turn-end calls (which flush
batches: frames to a driver, messages to a socket), then sleeps. Nothing on the message path is a task.

`resmgr.realtime.TrioDispatch` implements this on one epoll descriptor and one Trio task. `resmgr.testing.VirtualDispatch` implements it
under virtual time for the simulator. Code above this seam cannot tell which one it runs on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Buffer = bytes | bytearray | memoryview


class Timer(Protocol):
    """One pending call. `cancel` is idempotent and harmless after the call ran."""

    def cancel(self) -> None: ...


class Dispatch(Protocol):
    """Descriptors, timers and deferred calls of one node. Not thread-safe except `call_from_thread`.

    An exception that leaves a callback ends the node: callbacks handle their own expected failures.
    """

    def now(self) -> float:
        """Monotonic seconds. Read once per turn and cached, so it is cheap and equal for everything one turn does."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch, for certificates and logs; never for timers. Virtual under VirtualDispatch."""
        ...

    def attach_fd(self, fd: int, readable: Callable[[], None]) -> None:
        """Call *readable* in each turn in which *fd* is readable or hung up. The callback must drain or return soon; level-triggered."""
        ...

    def want_write(self, fd: int, writable: Callable[[], None] | None) -> None:
        """Also call *writable* while *fd* (already attached) can be written; None stops it."""
        ...

    def want_read(self, fd: int, wanted: bool) -> None:
        """Stop calling *readable* of an attached *fd* (back-pressure), or go on. A hang-up is told all the same."""
        ...

    def detach_fd(self, fd: int) -> None:
        """Stop watching *fd*. Call before closing it. Unknown descriptors are ignored."""
        ...

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Run *call* in the first turn at or after *when* (monotonic seconds)."""
        ...

    def call_soon(self, call: Callable[[], None]) -> None:
        """Run *call* later in this turn, before the turn-end calls."""
        ...

    def at_turn_end(self, call: Callable[[], None]) -> None:
        """Run *call* once at the end of this turn, after everything that was ready. For flushing what the turn collected."""
        ...

    def call_blocking(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        """Run *work* in a worker thread and *done* with its result or exception in a later turn. Bounded number of threads.

        VirtualDispatch runs *work* inline and *done* in the next turn, so simulated work must be deterministic.
        """
        ...

    def call_from_thread(self, call: Callable[[], None]) -> None:
        """Thread-safe `call_soon`: wakes the dispatch."""
        ...

    def start_task(self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        """Start an async function of a user's making as a Trio task of this node. Not available under VirtualDispatch."""
        ...
