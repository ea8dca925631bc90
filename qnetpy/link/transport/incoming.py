"""Messages on their way in: reassembly, order within a stream, exactly-once, and the credit given to the peer.

A message is delivered when it is complete and its stream's previous message was delivered. Ids of delivered messages are kept as a floor
(everything below was delivered) and a range set above it, so a fragment that comes again, on whatever path, is recognised for ever.

Every undelivered message is paid for by credit (its size plus MESSAGE_COST), so the credit bounds memory and all tables here; what
credit cannot see has a cap of its own in constants.py. All complaints are PeerError: the transport closes with its code.
"""

from __future__ import annotations

from typing import Final

from qnetpy.link.transport.constants import INITIAL_CREDIT, MAX_HOLES, MESSAGE_COST
from qnetpy.link.transport.events import CloseCode, Event, MessageReceived
from qnetpy.link.transport.items import check_fragment, check_start
from qnetpy.link.transport.ranges import RangeSet
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage


class PeerError(BadMessage):
    """The authenticated peer broke the protocol."""

    def __init__(self, code: CloseCode, text: str) -> None:
        super().__init__(text)
        self.code = code


_NOTHING: Final = memoryview(b"")


class InMessage:
    """One message that is not yet delivered. `buffer` is the only copy between the decrypted packet and the user."""

    __slots__ = ("behind", "buffer", "complete", "got", "got_bytes", "id", "priority", "route", "started", "stream", "total", "view")

    def __init__(self, ident: int, priority: int, total: int) -> None:
        self.id = ident
        self.priority = priority
        self.total = total
        self.buffer: Buffer = b""
        self.view = _NOTHING
        """To write into the buffer through: assigning bytes to a slice of a bytearray copies them twice."""
        self.got = RangeSet()
        self.got_bytes = 0
        self.started = False
        """The START fragment, which names the stream, has come."""
        self.stream = 0
        self.route = 0
        self.behind = 0
        self.complete = False


class Inbox:
    """All messages of one direction. `out` collects MessageReceived events."""

    def __init__(self, window: int, out: list[Event]) -> None:
        self.window = window
        self.out = out
        self.open: dict[int, InMessage] = {}
        self.floor = 1
        self.done = RangeSet()
        """Delivered ids above the floor."""
        self.highest = 0
        self.opened = 0
        """Sizes and costs of all messages seen."""
        self.consumed = 0
        """Of those delivered."""
        self.granted = INITIAL_CREDIT
        """What the peer has been told, or will be in the next packet."""
        self.duplicates = 0
        """Fragments of messages already complete."""
        self.delivered = 0
        self._delivered_above = 0
        self._waiting: dict[int, InMessage] = {}
        """Complete, by the id of the message that must be delivered first."""
        self._holes = 0
        self._max_undelivered = window // MESSAGE_COST

    def held(self) -> int:
        """Credit in use: bounds the memory that the peer makes us hold."""
        return self.opened - self.consumed

    def waiting(self) -> int:
        return len(self._waiting)

    def wants_grant(self) -> bool:
        """Enough was consumed (a quarter of the window) that the peer should be told."""
        return self.consumed + self.window - self.granted >= self.window >> 2

    def grant(self) -> int:
        """The total to tell the peer; remembered as told."""
        total = self.consumed + self.window
        if total > self.granted:
            self.granted = total
        return self.granted

    def is_delivered(self, ident: int) -> bool:
        return ident < self.floor or ident in self.done

    def fragment(self, ident: int, priority: int, offset: int, total: int, chunk: Buffer) -> InMessage | None:
        """A DATA item. Returns the message while it is incomplete, so that the caller can go on filling it."""
        check_fragment(priority, ident, offset, total, len(chunk))
        if not offset:
            raise BadMessage("DATA at 0")
        message = self.open.get(ident)
        if message is None:
            if self.is_delivered(ident):
                self.duplicates += 1
                return None
            message = self._new(ident, priority, total)
        return self._fill(message, offset, total, chunk)

    def start(self, ident: int, priority: int, total: int, stream: int, behind: int, chunk: Buffer, route: int = 0) -> InMessage | None:
        """A START item. A message that is whole in it is delivered without a buffer. Result as of `fragment`."""
        check_fragment(priority, ident, 0, total, len(chunk))
        check_start(0, ident, behind)
        if ident == self.floor and len(chunk) == total and not self.open and not self._waiting and not self.done.bounds:
            # Nothing is missing before it and nothing came ahead of it: what it costs is consumed as it is opened.
            self._charge(ident, total)
            self.delivered += 1
            self.consumed += total + MESSAGE_COST
            self.floor = ident + 1
            self.out.append(MessageReceived(stream, priority, chunk, route))
            return None
        message = self.open.get(ident)
        if message is None:
            if self.is_delivered(ident):
                self.duplicates += 1
                return None
            if len(chunk) == total and (not behind or self.is_delivered(ident - behind)) and ident not in self._waiting:
                self._charge(ident, total)
                self._mark(ident, total)
                self.out.append(MessageReceived(stream, priority, chunk, route))
                return None
            message = self._new(ident, priority, total)
        if not message.started:
            message.started = True
            message.stream = stream
            message.behind = behind
            message.route = route
        elif message.stream != stream:
            raise BadMessage("START changed its stream")
        return self._fill(message, 0, total, chunk)

    def _charge(self, ident: int, total: int) -> None:
        self.opened += total + MESSAGE_COST
        if self.opened > self.granted:
            raise PeerError(CloseCode.CREDIT_EXCEEDED, f"credit exceeded by {self.opened - self.granted} bytes")
        if ident > self.highest:
            if ident + 1 - self.floor - self._delivered_above > self._max_undelivered:
                raise PeerError(CloseCode.TOO_MANY_MESSAGES, "more undelivered messages than credit can pay for")
            self.highest = ident

    def _new(self, ident: int, priority: int, total: int) -> InMessage:
        self._charge(ident, total)
        message = InMessage(ident, priority, total)
        self.open[ident] = message
        return message

    def _fill(self, message: InMessage, offset: int, total: int, chunk: Buffer) -> InMessage | None:
        if total != message.total:
            raise BadMessage("message changed its size")
        length = len(chunk)
        if message.complete:
            self.duplicates += 1
            return None
        if length == total:
            message.buffer = chunk
            message.got_bytes = total
            self._holes -= len(message.got)
            message.got = RangeSet()
            self._completed(message)
            return None
        if not message.buffer:
            message.buffer = bytearray(total)
            message.view = memoryview(message.buffer)
        message.view[offset : offset + length] = chunk
        return self.filled(message, offset, offset + length)

    def filled(self, message: InMessage, start: int, stop: int) -> InMessage | None:
        """[start, stop) of the buffer has been written. Result as of `fragment`."""
        got = message.got
        before = len(got.bounds)
        fresh = got.add(start, stop)
        if not fresh:
            self.duplicates += 1
        message.got_bytes += fresh
        after = len(got.bounds)
        if after != before:
            self._holes += (after - before) >> 1
            if self._holes > MAX_HOLES:
                raise PeerError(CloseCode.TOO_MANY_HOLES, "too many gaps in messages")
        if message.got_bytes < message.total or not message.started:
            return message
        self._holes -= len(got)
        self._completed(message)
        return None

    def _completed(self, message: InMessage) -> None:
        message.complete = True
        if message.behind:
            before = message.id - message.behind
            if not self.is_delivered(before):
                if before in self._waiting:
                    raise BadMessage("two messages behind one")
                self._waiting[before] = message
                return
        self._deliver(message)

    def _deliver(self, message: InMessage) -> None:
        following: InMessage | None = message
        while following is not None:
            ident = following.id
            del self.open[ident]
            self.out.append(MessageReceived(following.stream, following.priority, following.buffer, following.route))
            self._mark(ident, following.total)
            following = self._waiting.pop(ident, None)

    def _mark(self, ident: int, total: int) -> None:
        self.delivered += 1
        self.consumed += total + MESSAGE_COST
        if ident == self.floor:
            ident += 1
            bounds = self.done.bounds
            if bounds and bounds[0] == ident:
                ident = bounds[1]
                self._delivered_above -= bounds[1] - bounds[0]
                del bounds[:2]
            self.floor = ident
        else:
            self._delivered_above += 1
            self.done.add(ident, ident + 1)
