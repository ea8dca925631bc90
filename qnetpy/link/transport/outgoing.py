"""Messages on their way out: who is next, what of each was sent, acknowledged or lost, and the peer's credit.

Order. The highest priority goes first, byte by byte: a fragment of a higher one overtakes a lower message between any two packets. Lower
priorities together keep a share of 1 in LOWER_SHARE, in turn, so the lowest always moves. Within one priority, messages up to
SMALL_MESSAGE go ahead of larger ones (these keep the same share), and larger ones take turns of QUANTUM bytes.

Streams. The messages of one stream are *opened* (given an id, charged to credit, put on the wire) in order; each names its predecessor
as long as one is not known to be delivered. Opening in order means that every message the receiver waits for can be sent without
further credit, so credit cannot deadlock.

Lost bytes are byte ranges of the message, not packets: they are cut again, at whatever size the path then has.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from qnetpy.link.transport.constants import (
    INITIAL_CREDIT,
    KIND_DATA,
    LOWER_SHARE,
    MAX_ACTIVE,
    MESSAGE_COST,
    QUANTUM,
    SMALL_MESSAGE,
    SMALL_RESERVE,
)
from qnetpy.link.transport.items import DATA_HEAD
from qnetpy.link.transport.ranges import RangeSet
from resmgr.dispatch import Buffer

_pack_data = DATA_HEAD.pack


class OutMessage:
    """One message. `data` and `segments` refer to the user's buffers until every byte is acknowledged."""

    __slots__ = (
        "done",
        "got",
        "id",
        "lost",
        "next",
        "predecessor",
        "priority",
        "queued",
        "segments",
        "sent_start",
        "stream",
        "successor",
        "total",
        "view",
    )

    def __init__(self, stream: int, priority: int, parts: Sequence[Buffer]) -> None:
        self.id = 0
        """Number on the wire; 0 until opened."""
        self.stream = stream
        self.priority = priority
        self.next = 0
        """First byte that was never sent."""
        self.sent_start = False
        """An empty message has no byte whose sending could be remembered."""
        self.lost: RangeSet | None = None
        self.got: RangeSet | None = None
        """Bytes acknowledged, once there are some but not all."""
        self.done = False
        self.queued = False
        self.predecessor: OutMessage | None = None
        self.successor: OutMessage | None = None
        self.segments: tuple[list[int], list[memoryview]] | None = None
        """Start offsets and views, when there is more than one part."""
        if len(parts) == 1:
            view = memoryview(parts[0])
            if view.format != "B" or view.ndim != 1:
                view = view.cast("B")
            self.view = view
            self.total = view.nbytes
        else:
            total = 0
            for part in parts:
                total += len(part) if type(part) is bytes else memoryview(part).nbytes
            self.total = total
            if self.total <= SMALL_MESSAGE:
                self.view = memoryview(b"".join(parts))
            else:
                self._segment(parts)

    def _segment(self, parts: Sequence[Buffer]) -> None:
        starts: list[int] = []
        views: list[memoryview] = []
        offset = 0
        for part in parts:
            view = memoryview(part)
            if not view.nbytes:
                continue
            starts.append(offset)
            views.append(view.cast("B") if view.format != "B" or view.ndim != 1 else view)
            offset += view.nbytes
        self.view = views[0]
        if len(views) > 1:
            self.segments = (starts, views)

    def span(self) -> tuple[int, int] | None:
        """The byte range to send next, lost ones first; None when there is nothing."""
        lost = self.lost
        if lost is not None:
            bounds = lost.bounds
            if bounds:
                return bounds[0], bounds[1]
            self.lost = None
        if self.next < self.total:
            return self.next, self.total
        if not self.total and not self.sent_start:
            return 0, 0
        return None

    def took(self, start: int, stop: int) -> None:
        """[start, stop), the beginning of `span`, has been put into packets."""
        if self.lost is not None:
            self.lost.remove(start, stop)
        else:
            self.next = stop
            self.sent_start = True

    def piece(self, start: int, stop: int) -> Buffer:
        """The bytes of [start, stop)."""
        if self.segments is None:
            return self.view[start:stop]
        starts, views = self.segments
        pieces: list[memoryview] = []
        index = bisect_right(starts, start) - 1
        while start < stop:
            base = starts[index]
            view = views[index]
            end = min(stop, base + len(view))
            pieces.append(view[start - base : end - base])
            start = end
            index += 1
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def cut(self, start: int, count: int, size: int) -> list[bytes]:
        """*count* packets, each one DATA item with *size* bytes, from *start* (> 0) on."""
        priority = self.priority
        ident = self.id
        total = self.total
        if self.segments is None:
            view = self.view
            return [
                _pack_data(KIND_DATA, priority, size, ident, offset, total) + view[offset : offset + size]
                for offset in range(start, start + count * size, size)
            ]
        return [
            _pack_data(KIND_DATA, priority, size, ident, offset, total) + self.piece(offset, offset + size)
            for offset in range(start, start + count * size, size)
        ]


class Level:
    """One priority."""

    __slots__ = ("active", "large", "small", "small_debt")

    def __init__(self) -> None:
        self.small: deque[OutMessage] = deque()
        """Not opened yet, small."""
        self.large: deque[OutMessage] = deque()
        """Not opened yet, large."""
        self.active: deque[OutMessage] = deque()
        """Opened, with bytes to send; the first one is served."""
        self.small_debt = 0


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
        self.mask = 0
        """Bit per priority that has something to send, credit or not."""
        self.credit_blocked = 0
        """Times a message could not be opened for want of credit."""
        self.resent_bytes = 0
        self._levels: dict[int, Level] = {}
        self._streams: dict[int, OutMessage] = {}
        self._debt = 0
        self._turn = 0
        self._served = 0
        self._left_in_turn = QUANTUM

    def streams(self) -> int:
        return len(self._streams)

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
        self._enqueue(message)

    def _enqueue(self, message: OutMessage) -> None:
        priority = message.priority
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = Level()
        (level.small if message.total <= SMALL_MESSAGE else level.large).append(message)
        message.queued = True
        self.mask |= 1 << priority

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
        if message.successor is not None:
            self._enqueue(message.successor)
        return True

    def pick(self) -> OutMessage | None:
        """The message to serve now; stays queued until `served`. None: nothing to send, or no credit."""
        mask = self.mask
        while mask:
            index = mask.bit_length() - 1
            if self._debt >= LOWER_SHARE * QUANTUM:
                lower = mask ^ (1 << index)
                if lower:
                    index = (lower & ((1 << self._turn) - 1) or lower).bit_length() - 1
                else:
                    self._debt = 0
            message = self._pick_level(self._levels[index], index)
            if message is not None:
                self._served = index
                return message
            mask &= ~(1 << index)
        return None

    def take_lone(self, space: int) -> OutMessage | None:
        """The message to serve now, if nothing else waits and all of it goes into *space* bytes: `pick`, `took` and `served` in one."""
        mask = self.mask
        if mask & (mask - 1) or self._debt >= LOWER_SHARE * QUANTUM:
            return None
        level = self._levels[mask.bit_length() - 1]
        small = level.small
        if len(small) != 1 or level.active or level.large:
            return None
        message = small[0]
        total = message.total
        if message.id or total > space or total + MESSAGE_COST > self.credit - self.opened or not self._open(message):
            return None
        small.popleft()
        message.queued = False
        message.next = total
        message.sent_start = True
        # Its successor in the stream may have come to this level.
        if not small and not level.large:
            self.mask &= ~mask
        return message

    def _pick_level(self, level: Level, index: int) -> OutMessage | None:
        active = level.active
        while active and active[0].span() is None:
            active.popleft().queued = False
        if level.small and (not active or level.small_debt < LOWER_SHARE * QUANTUM):
            message = level.small[0]
            if message.id or self._open(message):
                return message
        if level.large and len(active) < MAX_ACTIVE:
            message = level.large[0]
            if self._open(message):
                level.large.popleft()
                active.append(message)
        if active:
            return active[0]
        if not level.small and not level.large:
            self.mask &= ~(1 << index)
        return None

    def served(self, message: OutMessage, count: int) -> None:
        """*count* bytes of the picked message have been taken."""
        index = self._served
        level = self._levels[index]
        rest = message.span() is not None
        active = level.active
        if level.small and level.small[0] is message:
            level.small.popleft()
            if active:
                level.small_debt += count
            if rest:
                active.appendleft(message)
            else:
                message.queued = False
        else:
            level.small_debt = 0
            self._left_in_turn -= count
            if not rest:
                active.popleft()
                message.queued = False
                self._left_in_turn = QUANTUM
            elif self._left_in_turn <= 0:
                active.rotate(-1)
                self._left_in_turn = QUANTUM
        mask = self.mask
        if mask >> (index + 1):
            self._debt = max(0, self._debt - count * LOWER_SHARE)
            self._turn = index
        elif mask & ((1 << index) - 1):
            self._debt += count
        if not (active or level.small or level.large):
            self.mask = mask & ~(1 << index)

    def turn_room(self) -> int:
        """Bytes the picked message may take before somebody else should be asked."""
        return self._left_in_turn

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
            message.queued = True
            level = self._levels[message.priority]
            level.active.appendleft(message)
            self.mask |= 1 << message.priority


_NOTHING = memoryview(b"")
