"""A start whose answer waits a moment for the program's end, so that a short program costs its client one round trip.

    SPAWN (brief) -> started -> ended within BRIEF_HOLD -> answer: the end, all output; freed
                        |
                        +-> BRIEF_HOLD over, or more output than fits -> answer: it runs, what it has said so far; goes on as any program

So the client of a detached program learns that it could not be executed. A program that has ended while another holds its streams is told
as ended, with streams that go on.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from resmgr.channel import Message
from resmgr.dispatch import Dispatch
from resmgr.procmgr import message
from resmgr.procmgr.message import BRIEF_OUTPUT, Brief
from resmgr.procmgr.process import Process, State

BRIEF_HOLD = 0.02
"""Seconds that an answer waits for the end. Longer than short programs take; what a program that goes on loses by it, its client spends on
getting ready for it."""


class BriefAnswer:
    """Owns the answer to *request* until it is given. All calls in dispatch context."""

    def __init__(self, dispatch: Dispatch, process: Process, request: Message, wanted: Callable[[], bool]) -> None:
        """*wanted*: whether somebody is still there to be told."""
        self._process = process
        self._request = request
        self._wanted = wanted
        self._timer = dispatch.call_at(dispatch.now() + BRIEF_HOLD, self._answer)
        process.on_settled = self._answer
        request.on_unblock = self._give_up

    def _give_up(self) -> None:
        """A client that does not wait for the answer does not know the program: it ends."""
        self._let_go()
        self._process.detached = False
        self._process.close()
        if not self._request.answered:
            self._request.error(errno.EINTR)

    def _let_go(self) -> None:
        self._timer.cancel()
        self._process.on_settled = None

    def _answer(self) -> None:
        request, process = self._request, self._process
        if request.answered or not self._wanted() or process.state not in (State.RUNNING, State.ENDED):
            self._give_up()
            return
        self._let_go()
        request.on_unblock = None
        room = min(BRIEF_OUTPUT, request.reply_len - message.BRIEF.size)
        parts: list[bytes] = []
        over: list[bool] = []
        for stream in (1, 2):
            outlet = process.outlets.get(stream)
            parts.append(b"" if outlet is None else outlet.drain(room))
            over.append(outlet is None or outlet.ended)
            room -= len(parts[-1])
        whole = process.ended is not None and all(over)
        told = Brief(0 if whole else process.handle, process.pid, process.ended, (parts[0], parts[1]), (over[0], over[1]))
        if whole:
            process.close()
        request.reply(0, message.pack_brief(told))
