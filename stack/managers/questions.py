"""Questions to a manager, answered while frames go on: users take turns, and a turn of the dispatch is bounded in time and in bytes. All
questions together have a share of the dispatch's time (`stack.managers.share`); who asks in a loop waits for it, and frames do not.

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
from stack.managers.protocol import REPLY_MAX, refuse
from stack.managers.requestline import RequestLine, user_of
from stack.managers.share import Share

log = logging.getLogger(__name__)

SLICE = 16384
"""Bytes that are written in a turn, however fast."""
PIECE = 256
"""Bytes that beginning an answer counts for."""


@attrs.define(eq=False)
class _Answer:
    message: Message
    pieces: Iterator[str]
    done: list[str]
    size: int = 0
    """Bytes in `done`: the text is ASCII."""


def _nothing() -> None:
    pass


class Questions:
    """See the head of this file. *each*, *others*: as for `RequestLine`. *share*: of the time, with whoever else only asks. *after*: called
    after each turn, when somebody may have been answered."""

    def __init__(self, dispatch: Dispatch, each: int, others: int, share: Share, after: Callable[[], None] = _nothing) -> None:
        self._dispatch = dispatch
        self._after = after
        self._share = share
        self._line: RequestLine[tuple[Message, Callable[[], Iterator[str]]]] = RequestLine(each, others)
        self._current: _Answer | None = None
        self._timer: Timer | None = None
        self._in_turn = False
        """Who is answered may ask again within the call."""

    def ask(self, message: Message, make: Callable[[], Iterator[str]]) -> None:
        """Answer *message* with what *make* gives, in some later turns. EAGAIN when its user has no place. *make* and what it gives may
        raise ModuleError, which is told; anything else that is raised is logged and told as EIO."""
        if not self._line.add(user_of(message.info), (message, make)):
            refuse(message, errno.EAGAIN, "too many questions wait: ask again when one is answered")
        elif self._timer is None and not self._in_turn:
            self._timer = self._dispatch.call_at(self._dispatch.now() + self._share.wait(), self._go_on)

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
        self._in_turn = True
        self._share.begin()
        try:
            self._turn()
        finally:
            self._share.end()
            self._in_turn = False
        if self._current is not None or len(self._line):
            self._timer = self._dispatch.call_at(self._dispatch.now() + self._share.wait(), self._go_on)
        self._after()

    def _turn(self) -> None:
        room = SLICE
        while room > 0 and not self._share.over():
            if self._current is None:
                taken = self._line.take()
                if taken is None:
                    return
                message, make = taken
                room -= PIECE
                self._write(message, make)
            else:
                room -= self._more(self._current, room)

    def _write(self, message: Message, make: Callable[[], Iterator[str]]) -> None:
        if not message.client_waits:
            let_go(message)
            return
        try:
            self._current = _Answer(message, make(), [])
        except ModuleError as error:
            refuse(message, error.errno or errno.EIO, str(error))
        except RAISED as error:
            self._failed(message, error)

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
                answer.size += len(piece)
                if answer.size > REPLY_MAX:
                    self._current = None
                    refuse(
                        answer.message, errno.EMSGSIZE, f"the answer has more than {REPLY_MAX} bytes; a change that was asked for is done"
                    )
                    return written
                if written >= room or self._share.over():
                    return written
        except RAISED as error:
            self._current = None
            self._failed(answer.message, error)
            return written
        self._current = None
        answer.message.reply(0, "".join(answer.done).encode())
        return written

    @staticmethod
    def _failed(message: Message, error: BaseException) -> None:
        log.exception("a question could not be answered")
        refuse(message, errno.EIO, f"the answer could not be made ({type(error).__name__}), as the log says")


def let_go(message: Message) -> None:
    """End a message whose client does not wait any more: its channel was closed, or it gave up, before anything was done."""
    if not message.answered:
        message.error(errno.ESRCH)
