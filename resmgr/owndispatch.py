"""The dispatch of what is the node's own: whatever a timer, a deferred call, a descriptor or the result of a thread leads to is called
through the node's shield (`resmgr.shield.OwnShield`), as messages are. The rest is the dispatch below.

A descriptor whose callback raised is watched no more: it would be ready again at once, and raise again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

from resmgr.dispatch import Dispatch, Timer
from resmgr.shield import Shield

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class OwnDispatch:
    """See the head of this file. The contract of the methods is `resmgr.dispatch.Dispatch`'s."""

    def __init__(self, dispatch: Dispatch, shield: Shield) -> None:
        self._dispatch = dispatch
        self._run = shield.run
        self.now = dispatch.now
        self.wall = dispatch.wall
        self.want_read = dispatch.want_read
        self.detach_fd = dispatch.detach_fd

    def attach_fd(self, fd: int, readable: Callable[[], None]) -> None:
        self._dispatch.attach_fd(fd, self._watched(fd, readable))

    def want_write(self, fd: int, writable: Callable[[], None] | None) -> None:
        self._dispatch.want_write(fd, None if writable is None else self._watched(fd, writable))

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        return self._dispatch.call_at(when, lambda: self._shielded("timer", call))

    def call_soon(self, call: Callable[[], None]) -> None:
        self._dispatch.call_soon(lambda: self._shielded("call", call))

    def at_turn_end(self, call: Callable[[], None]) -> None:
        self._dispatch.at_turn_end(lambda: self._shielded("end of a turn", call))

    def call_blocking(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        def shielded(result: T | BaseException) -> None:
            self._run("result of a thread", done, result)

        self._dispatch.call_blocking(work, shielded)

    def call_from_thread(self, call: Callable[[], None]) -> None:
        self._dispatch.call_from_thread(lambda: self._shielded("call of a thread", call))

    def start_task(self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        self._dispatch.start_task(function, *args)

    def _shielded(self, what: str, call: Callable[[], None]) -> None:
        self._run(what, call)

    def _watched(self, fd: int, call: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            if not self._run("descriptor", call):
                self._dispatch.detach_fd(fd)

        return run
