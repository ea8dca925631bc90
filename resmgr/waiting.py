"""What has arrived at a channel and waits until a server receives it: highest priority first, within one priority as it came (MsgReceive).

A client's pulses cost it nothing, so it may have PULSES_MAX of them waiting here and no more; others are dropped and counted. Messages are
bounded where they come in (`resmgr.serving`). The end of a connection comes behind the pulses that were sent on it, whatever their
priority, since a server forgets the client with it.
"""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar

from resmgr.ids import PULSE_DISCONNECT

PULSES_MAX = 1024
"""Pulses of one connection that wait at one channel. Stops a client from filling a server's memory."""


class Client(Protocol):
    @property
    def scoid(self) -> int: ...


class Item(Protocol):
    """A message or a pulse."""

    @property
    def priority(self) -> int: ...

    @property
    def info(self) -> Client: ...


class PulseItem(Item, Protocol):
    @property
    def code(self) -> int: ...


M = TypeVar("M", bound=Item)
P = TypeVar("P", bound=PulseItem)


class Waiting(Generic[M, P]):
    """See the head of this file. M: messages, P: pulses."""

    __slots__ = ("_heap", "_next", "_pulses", "dropped")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, bool, M | P]] = []
        self._next = 0
        self._pulses: dict[int, int] = {}
        """By scoid."""
        self.dropped = 0
        """Pulses of clients that had PULSES_MAX waiting."""

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, message: M) -> None:
        self._next += 1
        heapq.heappush(self._heap, (-message.priority, self._next, False, message))

    def add_pulse(self, pulse: P) -> None:
        scoid = pulse.info.scoid
        count = self._pulses.get(scoid, 0)
        priority = pulse.priority
        if pulse.code >= 0:
            if count >= PULSES_MAX:
                self.dropped += 1
                return
        elif pulse.code == PULSE_DISCONNECT and count:
            for before in self._heap:
                if before[2] and before[3].info.scoid == scoid:
                    priority = min(priority, -before[0])
        self._pulses[scoid] = count + 1
        self._next += 1
        heapq.heappush(self._heap, (-priority, self._next, True, pulse))

    def take(self) -> M | P:
        """The next one. IndexError if there is none."""
        _, _, is_pulse, item = heapq.heappop(self._heap)
        if is_pulse:
            left = self._pulses.pop(item.info.scoid) - 1
            if left:
                self._pulses[item.info.scoid] = left
        return item
