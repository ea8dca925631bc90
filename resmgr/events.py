"""Events: pulses that a client lets a server send to it later (MsgRegisterEvent, MsgDeliverEvent).

A client registers an event on its connection to the server: a code, a value and a priority, at a channel of its own. It hands the number
that it gets to the server in a message, in whatever form the two agree on. The server delivers it when the time has come, as often as it
likes, without waiting; the client's kernel looks the number up at the connection on which it came, and the pulse that was registered
arrives, whose `info.scoid` is the number of that connection at the client.

So a server chooses nothing but the moment: not the code, the value, the priority nor the channel, and an event that was registered for
another server, or not at all, or taken back, does not exist. Events end with their connection (close, death of the server or of its
node) and with their channel.
"""

from __future__ import annotations

import errno
from typing import Generic, NamedTuple, TypeVar

from resmgr.errors import ResmgrError
from resmgr.ids import PRIORITY_MAX, PULSE_CODE_MAX, PULSE_VALUE_MAX, PULSE_VALUE_MIN

EVENTS_MAX = 1024
"""Events of one connection; more get EAGAIN. Finds a client that registers and never takes back."""
HANDLE_MAX = (1 << 64) - 1

C = TypeVar("C")


class Event(NamedTuple, Generic[C]):
    channel: C
    code: int
    value: int
    priority: int
    once: bool


class Events(Generic[C]):
    """Those of one connection. C: the kind of channel at which they arrive."""

    __slots__ = ("_events", "_next")

    def __init__(self) -> None:
        self._events: dict[int, Event[C]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._events)

    def register(self, channel: C, code: int, value: int, priority: int, once: bool) -> int:
        """The number to hand to the server, 1 or more, never used again on this connection. ResmgrError: EINVAL, EAGAIN."""
        if not 0 <= code <= PULSE_CODE_MAX or not PULSE_VALUE_MIN <= value <= PULSE_VALUE_MAX or not 0 <= priority <= PRIORITY_MAX:
            raise ResmgrError(errno.EINVAL)
        if len(self._events) >= EVENTS_MAX:
            raise ResmgrError(errno.EAGAIN, f"{EVENTS_MAX} events are registered on this connection")
        self._next += 1
        self._events[self._next] = Event(channel, code, value, priority, once)
        return self._next

    def unregister(self, handle: int) -> None:
        """Take an event back. One that is gone is ignored."""
        self._events.pop(handle, None)

    def delivered(self, handle: int) -> Event[C] | None:
        """The event that the server delivers, None if there is none of that number."""
        event = self._events.get(handle)
        if event is not None and event.once:
            del self._events[handle]
        return event

    def was_registered(self, handle: int) -> bool:
        """Whether there is or was an event of that number: its delivery may have crossed its end."""
        return 0 < handle <= self._next

    def clear(self) -> None:
        self._events.clear()
