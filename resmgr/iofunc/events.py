"""Changes told to clients: a queue of events for each client that watches directories, and the one parked message that fetches them.

What a directory is, and who makes the events, is the manager's affair: this is the part of WATCH that all have
(docs/protocol/coherence.md).
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from typing import Generic, TypeVar

from resmgr.channel import Message
from resmgr.dispatch import Dispatch, Timer
from resmgr.iofunc.handle import Client
from resmgr.iomsg import EVENT, WATCH_IGNORED, WATCH_OVERFLOW, WATCH_REPEATED

QUEUE_MAX = 4096
"""Events of one client that wait to be fetched; more of them become one OVERFLOW. Stops a client that does not ask from filling memory."""
BYTES_MAX = 1024 * 1024
"""Memory for the queued events of one client. Stops long names."""
NODE_BYTES_MAX = 16 * 1024 * 1024
"""The same for all clients of a node. Stops one that has many connections."""
EVENT_COST = 128
"""What a queued event takes beside its bytes."""
ANSWER_MAX = 64 * 1024
"""Bytes of events in one answer."""
PACE = 0.002
"""Seconds between two answers to one client: a storm is told in a few large messages, a single change at once."""

C = TypeVar("C", bound=Client)


class Listener(Generic[C]):
    """One client's events. *of_node* counts the memory that is taken for the clients of each node."""

    __slots__ = (
        "_bytes",
        "_dispatch",
        "_ended",
        "_events",
        "_last",
        "_of_node",
        "_parked",
        "_repeated",
        "_timer",
        "client",
        "lost",
        "watched",
    )

    def __init__(self, client: C, dispatch: Dispatch, of_node: Counter[int]) -> None:
        self.client = client
        self.watched: dict[int, int] = {}
        """What it watches: inode number -> the manager's number for that."""
        self.lost = 0
        """Times its queue was full."""
        self._dispatch = dispatch
        self._events: deque[bytes] = deque()
        self._repeated: dict[tuple[int, bytes], int] = {}
        """Kinds of queued events that say nothing new when they come again, by what they are about."""
        self._bytes = 0
        self._of_node = of_node
        self._ended = False
        """The queue says, or said, that something is not watched any more."""
        self._parked: Message | None = None
        self._last = float("-inf")
        self._timer: Timer | None = None

    def tell(self, ino: int, kind: int, name: bytes = b"", cookie: int = 0) -> None:
        """Queue one event."""
        key = (ino, name)
        if kind & WATCH_REPEATED:
            queued = self._repeated.get(key, 0)
            if not kind & WATCH_REPEATED & ~queued:
                return
            self._repeated[key] = queued | kind
        else:
            # Something else became of the name: what comes of it after this is told again.
            self._repeated.pop(key, None)
        self._ended = self._ended or bool(kind & WATCH_IGNORED)
        event = EVENT.pack(ino, kind, cookie, len(name)) + name
        cost = len(event) + EVENT_COST
        taken = self._of_node[self.client.info.nd]
        if len(self._events) >= QUEUE_MAX or self._bytes + cost > BYTES_MAX or taken + cost > NODE_BYTES_MAX:
            self.lost += 1
            self._clear()
            # It stands for this event, too. Who has not heard what ended must not go on with what it has.
            event = EVENT.pack(0, WATCH_IGNORED if self._ended else WATCH_OVERFLOW, 0, 0)
        self._events.append(event)
        self._account(len(event) + EVENT_COST)
        if self._parked is not None and self._timer is None:
            self._answer_at(self._last + PACE)

    def _account(self, size: int) -> None:
        nd = self.client.info.nd
        self._bytes += size
        self._of_node[nd] += size
        if not self._of_node[nd]:
            del self._of_node[nd]

    def _clear(self) -> None:
        self._events.clear()
        self._repeated.clear()
        self._account(-self._bytes)

    def next(self, message: Message) -> None:
        """A client asks: answered when there is something."""
        before, self._parked = self._parked, message
        if before is not None and not before.answered:
            before.error(errno.EAGAIN)

        def gave_up() -> None:
            if self._parked is message:
                self._parked = None
            message.error(errno.EINTR)

        message.on_unblock = gave_up
        if self._events:
            self._answer_at(self._last + PACE)

    def _answer_at(self, when: float) -> None:
        if self._timer is not None:
            return
        if when <= self._dispatch.now():
            # What else happens in this turn goes with it.
            self._timer = self._dispatch.call_at(self._dispatch.now(), self._answer)
        else:
            self._timer = self._dispatch.call_at(when, self._answer)

    def _answer(self) -> None:
        self._timer = None
        message, events = self._parked, self._events
        if message is None or message.answered or not events:
            return
        self._parked = None
        room = min(ANSWER_MAX, message.reply_len)
        parts: list[bytes] = []
        while events and len(events[0]) <= room:
            part = events.popleft()
            room -= len(part)
            parts.append(part)
        if events and not parts:
            message.error(errno.EINVAL)
            return
        self._account(-sum(len(part) + EVENT_COST for part in parts))
        self._repeated.clear()
        self._ended = self._ended and bool(events)
        self._last = self._dispatch.now()
        message.reply(0, b"".join(parts))

    def end(self) -> None:
        """The client is gone, or is to watch nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._clear()
        message, self._parked = self._parked, None
        if message is not None and not message.answered:
            message.error(errno.EBADF)

    def unwatched(self) -> None:
        """Nothing is watched any more, but the client stays: it is told so."""
        self.watched.clear()
        self._clear()
        self.tell(0, WATCH_IGNORED)
