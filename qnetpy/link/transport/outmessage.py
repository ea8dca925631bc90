"""One message on its way out: what of it was sent, acknowledged, or lost. Lost bytes are byte ranges of the message, not packets: they are
cut again, at whatever size the path then has.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from qnetpy.link.transport.constants import KIND_DATA, SMALL_MESSAGE
from qnetpy.link.transport.items import DATA_HEAD
from qnetpy.link.transport.ranges import RangeSet
from resmgr.dispatch import Buffer

if TYPE_CHECKING:
    from qnetpy.link.transport.lane import Lane

_pack_data: Final = DATA_HEAD.pack


class OutMessage:
    """One message. `data` and `segments` refer to the user's buffers until every byte is acknowledged."""

    __slots__ = (
        "done",
        "got",
        "id",
        "lane",
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

    def __init__(self, lane: Lane, stream: int, priority: int, parts: Sequence[Buffer]) -> None:
        self.id = 0
        """Number on the wire; 0 until opened."""
        self.lane = lane
        """Where it queues."""
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
        view = self.view
        base = 0
        if self.segments is not None:
            starts, views = self.segments
            index = bisect_right(starts, start) - 1
            base = starts[index]
            view = views[index]
            if start + count * size > base + len(view):
                # It goes on in the next part.
                return [
                    _pack_data(KIND_DATA, priority, size, ident, offset, total) + self.piece(offset, offset + size)
                    for offset in range(start, start + count * size, size)
                ]
        return [
            _pack_data(KIND_DATA, priority, size, ident, offset, total) + view[offset - base : offset - base + size]
            for offset in range(start, start + count * size, size)
        ]
