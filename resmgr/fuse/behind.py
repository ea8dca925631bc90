"""Write-behind: WRITEs that the kernel was told are done while their messages are still on the way (docs/decisions/fuse-write-behind.md).

`Behind` is the account of one node: which ranges are on the way, what waits for them, and how far the file reaches once they have arrived.
Requests that must see the writes, or must not overtake them (`traits.AFTER_WRITES`), wait for those that are on the way when they come,
not for later ones (`arrivals`).

Writes that overlap are never on the way together, because messages overtake each other. An entry or attributes that a server told while
writes were on the way may be older than they are: `adjusted` makes the size at least what the kernel was told, and the kernel is not
allowed to remember such attributes.

While something of a node is on the way, a small write is kept until something of it arrives, somebody waits, or another write comes that
does not continue it: those that do continue it go in the same message (`Gathered`). So a program that writes little by little sends one or
two messages in a round trip, and nothing is later than the answer to what was sent before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from resmgr.dispatch import Buffer
from resmgr.fuse.arrivals import Arrivals
from resmgr.fuse.formats import AttrTuple

if TYPE_CHECKING:
    from resmgr.fuse.overdue import Overdue

OVERHEAD: Final = 16 * 1024
"""What a write on the way costs beside its bytes, so that tiny writes do not make a server refuse messages (EAGAIN at thousands)."""
GATHERED_MAX: Final = 256 * 1024
"""Bytes of small writes that go in one message."""
TOTAL_MAX = 32 * 1024 * 1024
"""Bytes on the way in one mount; below what a server's node takes of one peer. Stops many files from filling memory together."""


class Gathered:
    """A write that is not sent yet, and what continues it."""

    __slots__ = ("by", "more", "number", "send", "size")

    def __init__(self, by: object, number: int, size: int, send: Callable[[bytearray], None]) -> None:
        self.by = by
        """The open file it comes through."""
        self.number = number
        self.size = size
        self.more = bytearray()
        """Data of those that continue it."""
        self.send = send
        """Sends it with them."""


class Behind(Arrivals):
    """Writes on the way of one node, by number, in the order in which they were sent."""

    __slots__ = ("cost", "end", "gathered", "outstanding", "overdue", "quiet_at", "throttled")

    def __init__(self) -> None:
        super().__init__()
        self.outstanding: dict[int, tuple[int, int]] = {}
        """number -> (start, end)"""
        self.overdue: Overdue | None = None
        """What changes the file, too, and nobody was told that it is done; None: nothing."""
        self.gathered: Gathered | None = None
        """The last of them, if it is not sent yet; there are others then."""
        self.cost = 0
        """Bytes on the way, with OVERHEAD for each."""
        self.end = 0
        """The farthest end of any of them, and of those that have arrived since `truncated`, or since it was long quiet."""
        self.quiet_at = float("-inf")
        """When the last one arrived."""
        self.throttled: deque[Callable[[], None]] = deque()
        """Answers that are held back until less is on the way."""

    def overlaps(self, start: int, end: int) -> bool:
        """Whether a write of [start, end) has to wait."""
        if start >= self.end:
            return False
        return any(start < other_end and other_start < end for other_start, other_end in self.outstanding.values())

    def begin(self, start: int, end: int, quiet_since: float) -> int:
        """A write of [start, end) is sent; its number. *quiet_since*: attributes asked before that are not on the way any more."""
        if not self.outstanding and self.quiet_at < quiet_since:
            self.end = 0
        number = self.number()
        self.outstanding[number] = (start, end)
        self.cost += end - start + OVERHEAD
        if end > self.end:
            self.end = end
        return number

    def continues(self, by: object, start: int, size: int) -> bool:
        """Whether a write through *by* of *size* bytes at *start* goes with the one that is not sent yet."""
        gathered = self.gathered
        return (
            gathered is not None
            and gathered.by is by
            and gathered.size + size <= GATHERED_MAX
            and self.outstanding[gathered.number][1] == start
            and not self.overlaps(start, start + size)
            and not (self.overdue is not None and self.overdue.over(start, start + size))
        )

    def gather(self, data: Buffer) -> None:
        """It does, and these are its bytes."""
        gathered = self.gathered
        assert gathered is not None
        size = len(data)
        gathered.more += data
        gathered.size += size
        start, end = self.outstanding[gathered.number]
        self.outstanding[gathered.number] = (start, end + size)
        self.cost += size
        if end + size > self.end:
            self.end = end + size

    def send_gathered(self) -> None:
        """What is not sent yet goes now."""
        gathered, self.gathered = self.gathered, None
        if gathered is not None:
            gathered.send(gathered.more)

    def finish(self, number: int, now: float) -> None:
        """That write arrived or failed: runs what waited for it."""
        start, end = self.outstanding.pop(number)
        self.cost -= end - start + OVERHEAD
        self.send_gathered()
        if not self.outstanding:
            self.quiet_at = now
        self.arrived(next(iter(self.outstanding), 0))

    def wait(self, call: Callable[[], None]) -> None:
        super().wait(call)
        self.send_gathered()

    def after(self, call: Callable[[], None]) -> None:
        """Run *call* when all that is on the way now has arrived; now, if nothing is."""
        if self.outstanding:
            self.wait(call)
        else:
            call()

    def truncated(self) -> None:
        """The file ends where the server says, not where writes ended that have arrived. Others may have begun meanwhile."""
        self.end = max((end for _, end in self.outstanding.values()), default=0)

    def outdates(self, attr_at: float) -> bool:
        """Whether attributes asked for at *attr_at* may be older than a write that was said to be done, or given up."""
        return bool(self.outstanding) or self.overdue is not None or attr_at < self.quiet_at

    def adjusted(self, attr: AttrTuple) -> AttrTuple:
        """*attr* with a size that covers the writes."""
        if attr[6] >= self.end:
            return attr
        return (*attr[:6], self.end, *attr[7:])
