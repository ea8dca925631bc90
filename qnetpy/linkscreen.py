"""Keeps the drivers' screens for Qnet's ethertype up to date: the runner of the guard.

    handshakes, sessions -> View -> programs -> Stack.screen        driver: pressed -> Guard        frames -> Guard

It costs nothing while there is no flood but a look at the sessions' counters every fifth of a second in which frames come, and a system
call for every 32 handshakes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from qnetpy.link.guard import Guard
from qnetpy.link.handshake import HandshakeMachine
from qnetpy.link.screen import SAMPLE_OF, programs
from qnetpy.link.session import Session
from resmgr.dispatch import Timer
from stack.core.screen import Screen
from stack.core.stack import Stack
from stack.frame import Frame
from stack.wire.ethernet import HEADER_SIZE

log = logging.getLogger(__name__)


class LinkScreen:
    """See the head of this file. All calls in dispatch context."""

    def __init__(self, stack: Stack, ethertype: int, handshake: HandshakeMachine, sessions: Callable[[], list[Session]]) -> None:
        self._stack = stack
        self._dispatch = stack.dispatch
        self._ethertype = ethertype
        self._handshake = handshake
        self._sessions = sessions
        self.guard = Guard(handshake.stamp_key)
        self._draws = -1
        self._timer: Timer | None = None
        self._closed = False

    def received(self, frames: Sequence[Frame], now: float) -> None:
        """Frames that came, before anybody looks at them."""
        guard = self.guard
        if guard.on:
            guard.saw([memoryview(frame) for frame in frames], HEADER_SIZE, now)
        if guard.due(now):
            self._review()

    def refresh(self) -> None:
        """Make sure that the screen knows the indices that are told to others from now on."""
        if self._draws != self._handshake.draws:
            self._push()

    def _push(self) -> None:
        self._draws = self._handshake.draws
        main, side = programs(self.guard.view(self._handshake.indices()))
        self._stack.screen(self._ethertype, Screen(main, side, SAMPLE_OF, self._pressed))

    def _pressed(self) -> None:
        if not self._closed and self.guard.sign(self._dispatch.now()):
            log.warning("a flood of frames that make no sense to us: screening them away while it lasts")
            self._push()
            self._arm()

    def _review(self) -> None:
        was_on = self.guard.on
        if self.guard.review(self._sessions(), self._stack.shed(), self._dispatch.now()):
            if self.guard.on != was_on:
                log.warning("copies of our packets flood in: screening them away" if self.guard.on else "the flood is over")
            self._push()
        if self.guard.on:
            self._arm()

    def _arm(self) -> None:
        when = self.guard.next_timeout()
        if self._timer is None and when is not None:
            self._timer = self._dispatch.call_at(when, self._due)

    def _due(self) -> None:
        self._timer = None
        if not self._closed:
            self._review()

    def facts(self) -> dict[str, object]:
        """For people."""
        return {"on": self.guard.on, "times": self.guard.times, "repeated": self.guard.hot, "shed": self._stack.shed()}

    def close(self) -> None:
        """Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
