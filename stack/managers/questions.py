"""Questions to a manager, answered while frames go on: users take turns, and in a turn of the dispatch only some bytes are written.

One answer is made at a time, so what is not sent yet is never more than one answer.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator

import attrs

from resmgr.channel import Message
from resmgr.dispatch import Dispatch, Timer
from stack.core.errors import ModuleError
from stack.core.isolation import RAISED
from stack.managers.protocol import pack_reply
from stack.managers.requestline import RequestLine, user_of

log = logging.getLogger(__name__)

SLICE = 16384
"""Bytes that are written in a turn: about half a millisecond of work."""
PIECE = 256
"""Bytes that beginning an answer counts for."""


@attrs.define(eq=False)
class _Answer:
    message: Message
    pieces: Iterator[str]
    done: list[str]


class Questions:
    """See the head of this file. *each*, *others*: as for `RequestLine`."""

    def __init__(self, dispatch: Dispatch, each: int, others: int) -> None:
        self._dispatch = dispatch
        self._line: RequestLine[tuple[Message, Callable[[], Iterator[str]]]] = RequestLine(each, others)
        self._current: _Answer | None = None
        self._timer: Timer | None = None

    def ask(self, message: Message, make: Callable[[], Iterator[str]]) -> None:
        """Answer *message* with what *make* gives, now or in some turns. EAGAIN when its user has no place. *make* and what it gives may
        raise ModuleError, which is told; anything else that is raised is logged and told as EIO."""
        if not self._line.add(user_of(message.info), (message, make)):
            message.error(errno.EAGAIN)
        elif self._timer is None:
            self._go_on()

    @property
    def refused(self) -> int:
        """Those that had no place."""
        return self._line.refused

    def close(self) -> None:
        """Nothing more is answered. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._current = None

    def _go_on(self) -> None:
        self._timer = None
        room = SLICE
        while room > 0:
            if self._current is None:
                if not len(self._line):
                    return
                message, make = self._line.take()
                room -= PIECE
                self._write(message, make)
            else:
                room -= self._more(self._current, room)
        self._timer = self._dispatch.call_at(self._dispatch.now(), self._go_on)

    def _write(self, message: Message, make: Callable[[], Iterator[str]]) -> None:
        if not message.client_waits:
            let_go(message)
            return
        try:
            self._current = _Answer(message, make(), [])
        except ModuleError as error:
            message.reply(0, pack_reply({"error": str(error), "errno": error.errno}))
        except RAISED:
            self._failed(message)

    def _more(self, answer: _Answer, room: int) -> int:
        """Bytes that were written."""
        written = 0
        if not answer.message.client_waits:
            self._current = None
            let_go(answer.message)
            return 0
        try:
            for piece in answer.pieces:
                answer.done.append(piece)
                written += len(piece)
                if written >= room:
                    return written
        except RAISED:
            self._current = None
            self._failed(answer.message)
            return written
        self._current = None
        answer.message.reply(0, "".join(answer.done).encode())
        return written

    @staticmethod
    def _failed(message: Message) -> None:
        log.exception("a question could not be answered")
        message.error(errno.EIO)


def let_go(message: Message) -> None:
    """End a message whose client does not wait any more: its channel was closed, or it gave up, before anything was done."""
    if not message.answered:
        message.error(errno.ESRCH)
