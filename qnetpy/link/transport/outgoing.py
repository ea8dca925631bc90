"""Messages on their way out: the peer's credit, the order within streams, what is acknowledged. Who is next is `Lane`'s business.

Streams. The messages of one stream are *opened* (given an id, charged to credit, put on the wire) in order; each names its predecessor
as long as one is not known to be delivered. Opening in order means that every message the receiver waits for can be sent without
further credit, so credit cannot deadlock.
"""

from __future__ import annotations

from typing import Final

from qnetpy.link.transport.constants import INITIAL_CREDIT, MESSAGE_COST, SMALL_MESSAGE, SMALL_RESERVE
from qnetpy.link.transport.lane import Lane
from qnetpy.link.transport.outmessage import OutMessage
from qnetpy.link.transport.ranges import RangeSet

LANES_KEPT: Final = 64
"""Lanes from which on those with nothing to send are forgotten: stops a peer that asks for ever other routes from filling memory."""


class Outbox:
    """All messages of one direction."""

    def __init__(self) -> None:
        self.backlog = 0
        """Bytes not yet acknowledged."""
        self.messages = 0
        """Messages not yet acknowledged."""
        self.opened = 0
        """Credit used since the beginning."""
        self.credit = INITIAL_CREDIT
        self.next_id = 1
        self.credit_blocked = 0
        """Times a message could not be opened for want of credit."""
        self.resent_bytes = 0
        self.plain = Lane(0, self._open)
        """Messages that take any path."""
        self.routed: dict[int, Lane] = {}
        """Those that do not, by route."""
        self._streams: dict[int, OutMessage] = {}

    def streams(self) -> int:
        return len(self._streams)

    def lane(self, route: int) -> Lane:
        """The lane of that route, made if there is none."""
        if not route:
            return self.plain
        lane = self.routed.get(route)
        if lane is None:
            if len(self.routed) >= LANES_KEPT:
                self.routed = {number: kept for number, kept in self.routed.items() if kept.mask}
            lane = self.routed[route] = Lane(route, self._open)
        return lane

    def push(self, message: OutMessage) -> None:
        """A new message from the user."""
        self.backlog += message.total
        self.messages += 1
        stream = message.stream
        last = self._streams.get(stream)
        self._streams[stream] = message
        if last is not None:
            message.predecessor = last
            last.successor = message
            if not last.id:
                return
        message.lane.enqueue(message)

    def _open(self, message: OutMessage) -> bool:
        """Give the message its id if credit allows."""
        cost = message.total + MESSAGE_COST
        left = self.credit - self.opened - cost
        if left < 0 or (left < SMALL_RESERVE and message.total > SMALL_MESSAGE and self.credit > INITIAL_CREDIT):
            self.credit_blocked += 1
            return False
        self.opened += cost
        message.id = self.next_id
        self.next_id += 1
        successor = message.successor
        if successor is not None:
            if successor.lane.route:
                successor.lane = self.lane(successor.lane.route)
            successor.lane.enqueue(successor)
        return True

    def acked(self, message: OutMessage, start: int, stop: int) -> None:
        """[start, stop) arrived."""
        if message.done:
            return
        total = message.total
        if stop - start < total:
            got = message.got
            if got is None:
                got = message.got = RangeSet()
            got.add(start, stop)
            if message.lost is not None:
                message.lost.remove(start, stop)
            bounds = got.bounds
            if len(bounds) != 2 or bounds[1] - bounds[0] < total:
                return
        message.done = True
        message.lost = None
        message.next = total
        message.sent_start = True
        message.view = _NOTHING
        message.segments = None
        message.got = None
        self.backlog -= total
        self.messages -= 1
        if message.predecessor is None:
            self._settle(message)

    def _settle(self, message: OutMessage) -> None:
        """*message* is delivered at the far end: its successors need not name it."""
        while True:
            successor = message.successor
            if successor is None:
                if self._streams.get(message.stream) is message:
                    del self._streams[message.stream]
                return
            message.successor = None
            successor.predecessor = None
            if not successor.done:
                return
            message = successor

    def lost(self, message: OutMessage, start: int, stop: int) -> None:
        """[start, stop) may not have arrived: send again what is not known to have."""
        if message.done:
            return
        if start == stop:
            message.sent_start = False
        else:
            lost = message.lost
            if lost is None:
                lost = message.lost = RangeSet()
            if message.got is None:
                lost.add(start, stop)
            else:
                for low, high in message.got.missing(start, stop):
                    lost.add(low, high)
            self.resent_bytes += stop - start
        if not message.queued:
            if message.lane.route:
                message.lane = self.lane(message.lane.route)
            message.lane.again(message)


_NOTHING: Final = memoryview(b"")
