"""What cannot be answered yet: reads and writes of a node that has nothing or no room now, and clients that want to know when it has.

A node's `read` or `write` that returns None says "not now". Then the message is parked here, and asked for again each time the node says
`notify`; so a device needs no task and no queue of its own. NOTIFY (QNX ionotify) is parked the same way, with the node's `poll` as the
question. Everything parked goes when its client gives up (EINTR), when its handle is closed (EBADF), or with its client.

`Later` is for a node that gets its answer from somewhere else and will say so itself.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

from resmgr.channel import Message
from resmgr.iofunc.handle import Handle

PARKED_PER_CLIENT = 1024
"""Messages of one client that wait for nodes; more is EAGAIN. Stops a client from filling the server with waiting."""

BYTES_PER_CLIENT = 16 * 1024 * 1024
"""Data of one client that wait with its messages; more is EAGAIN."""

T = TypeVar("T")


class Later(Generic[T]):
    """An answer to come: return it from `read`, `write` or `devctl`, and call `answer` or `fail` once, in dispatch context. *gave_up* is
    called when nobody wants it any more; calling `answer` all the same does nothing."""

    __slots__ = ("_code", "_gave_up", "_told", "_value", "over")

    def __init__(self, gave_up: Callable[[], None] | None = None) -> None:
        self.over = False
        """Answered, failed or given up."""
        self._gave_up = gave_up
        self._told: tuple[Callable[[T], None], Callable[[int], None]] | None = None
        self._value: tuple[T] | None = None
        self._code = 0

    def answer(self, value: T) -> None:
        if self.over:
            return
        self._value = (value,)
        self.over = True
        if self._told is not None:
            self._told[0](value)

    def fail(self, code: int) -> None:
        """With errno *code*."""
        if self.over:
            return
        self._code = code
        self.over = True
        if self._told is not None:
            self._told[1](code)

    def tell(self, answered: Callable[[T], None], failed: Callable[[int], None]) -> None:
        """Where to send the answer (the manager's)."""
        if not self.over:
            self._told = answered, failed
        elif self._value is not None:
            answered(*self._value)
        else:
            failed(self._code)

    def give_up(self) -> None:
        """Nobody waits any more (the manager's)."""
        if not self.over:
            self.over = True
            if self._gave_up is not None:
                self._gave_up()


class _Parked:
    """A message and how to try again. `attempt` answers it and says True, or says False. *parking*: that of its manager."""

    __slots__ = ("attempt", "data", "handle", "message", "parking", "waiters")

    def __init__(
        self, parking: Parking, waiters: Waiters, message: Message, handle: Handle, attempt: Callable[[], bool], data: int
    ) -> None:
        self.parking = parking
        self.data = data
        self.waiters = waiters
        self.message = message
        self.handle = handle
        self.attempt = attempt


class Waiters:
    """What is parked at one node, in order of arrival, by whichever managers serve it."""

    __slots__ = ("_again", "_looking", "queue")

    def __init__(self) -> None:
        self.queue: dict[_Parked, None] = {}
        self._looking = False
        self._again = False

    def look(self) -> None:
        """The node has changed: try all of them again. May be called from within an attempt."""
        self._again = True
        if self._looking:
            return
        self._looking = True
        try:
            while self._again:
                self._again = False
                for parked in list(self.queue):
                    if parked in self.queue:
                        parked.parking.attempt(parked)
        finally:
            self._looking = False


class Parking:
    """All that is parked in one manager. *failed* answers a message with what an exception means."""

    def __init__(self, failed: Callable[[Message, BaseException], None]) -> None:
        self._failed = failed
        self._counters = {"parked": 0, "parked_full": 0}
        self._of_handle: dict[Handle, dict[_Parked, None]] = {}
        self._of_client: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()

    def count_in(self, counters: dict[str, int]) -> None:
        """Count in *counters* from now on: those of the manager."""
        counters.update(self._counters)
        self._counters = counters

    def park(
        self,
        waiters: Waiters,
        message: Message,
        handle: Handle,
        attempt: Callable[[], bool],
        gave_up: Callable[[], None] | None = None,
        data: int = 0,
    ) -> None:
        """Keep *message*, which has so many bytes of *data*, until *attempt* has answered it. OSError EAGAIN when the client has enough
        parked. *gave_up* is called when the client gives up, and may answer what was done so far; else it is EINTR."""
        client = message.info.scoid
        if self._of_client[client] >= PARKED_PER_CLIENT or (data and self._bytes[client] + data > BYTES_PER_CLIENT):
            self._counters["parked_full"] += 1
            raise OSError(errno.EAGAIN, "too much waits")
        self._of_client[client] += 1
        self._bytes[client] += data
        self._counters["parked"] += 1
        parked = _Parked(self, waiters, message, handle, attempt, data)
        waiters.queue[parked] = None
        self._of_handle.setdefault(handle, {})[parked] = None
        if handle.at_close is None:
            handle.at_close = {}
        handle.at_close[self] = self._closed

        def give_up() -> None:
            self._leave(parked)
            if gave_up is not None:
                gave_up()
            if not message.answered:
                message.error(errno.EINTR)

        message.on_unblock = give_up

    def attempt(self, parked: _Parked) -> None:
        """Try one again (called by its node's `Waiters`)."""
        if parked.message.answered:
            self._leave(parked)
            return
        try:
            if not parked.attempt():
                return
        except Exception as error:
            if not parked.message.answered:
                self._failed(parked.message, error)
        self._leave(parked)

    def _leave(self, parked: _Parked) -> None:
        if parked.waiters.queue.pop(parked, parked) is not None:
            return
        client = parked.message.info.scoid
        self._of_client[client] -= 1
        self._bytes[client] -= parked.data
        if not self._of_client[client]:
            del self._of_client[client], self._bytes[client]
        ours = self._of_handle.get(parked.handle)
        if ours is not None:
            ours.pop(parked, None)
            if not ours:
                del self._of_handle[parked.handle]
                if parked.handle.at_close is not None:
                    parked.handle.at_close.pop(self, None)

    def _closed(self, handle: Handle) -> None:
        for parked in list(self._of_handle.pop(handle, ())):
            self._leave(parked)
            if not parked.message.answered:
                parked.message.error(errno.EBADF)
