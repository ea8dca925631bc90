"""What gets ready in threads for one stack (`stack.core.preparation`), and who closes it when the stack ends meanwhile.

What a thread made is handed over once: to who asked for it, in a turn of the dispatch; or, after `UnderWay.close`, to whoever comes first
of `close`, for what was ready, and the thread. So nothing is kept by nobody if the dispatch ends before it could tell that it is ready.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from resmgr.dispatch import Dispatch
from resmgr.errors import Misuse
from stack.core.isolation import RAISED

log = logging.getLogger(__name__)


class Closable(Protocol):
    """What a thread made."""

    def close(self) -> None:
        """In any thread."""
        ...


P = TypeVar("P", bound=Closable)


class _Job(Generic[P]):
    """One thread's *work*, and who has what it made: whoever takes it first, the thread itself when nobody will."""

    def __init__(self, work: Callable[[], P]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._made: P | None = None
        self._over = False

    def run(self) -> None:
        """In the thread. Misuse when nobody wants it any more."""
        made = self._work()
        with self._lock:
            if not self._over:
                self._made = made
                return
        _close_late(made)
        raise Misuse("the stack is closed")

    def take(self) -> P | None:
        """What was made, if it is ready and was not taken; what gets ready from now on is the thread's."""
        with self._lock:
            made, self._made, self._over = self._made, None, True
        return made


class UnderWay:
    """See the head of this file. Dispatch context."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._takers: set[Callable[[], Closable | None]] = set()
        """Of what is under way."""
        self._closed = False

    def begin(self, work: Callable[[], P], done: Callable[[P | BaseException], None]) -> None:
        """Run *work* in a thread and *done* with what it made, which is the caller's then, or with what it raised; Misuse after `close`."""
        one = _Job(work)
        if self._closed:
            one.take()
        else:
            self._takers.add(one.take)

        def ready(result: BaseException | None) -> None:
            self._takers.discard(one.take)
            made = one.take()
            if made is not None:
                done(made)
            else:
                done(Misuse("the stack is closed") if result is None else result)

        self._dispatch.call_blocking(one.run, ready)

    def close(self) -> None:
        """What is ready is closed, and what is not, as soon as it is. Idempotent."""
        self._closed = True
        while self._takers:
            made = self._takers.pop()()
            if made is not None:
                _close_late(made)


def _close_late(made: Closable) -> None:
    try:
        made.close()
    except RAISED:
        log.exception("closing what a module got ready after its stack was closed (%r)", made)
