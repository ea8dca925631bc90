"""What changes a file and was given up while its message was at the server: nothing that has to do with it overtakes it.

A program that has a signal is told EINTR though its server says nothing (`interrupts`). What comes next to the same bytes waits until the
server has answered or its connection is gone; what asks for the size, if that may change; what gives up a lock, closes, syncs, or changes
attributes, always. Everything else goes on: a server that is stuck with one message may be well otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from os import O_TRUNC
from stat import S_IFREG
from typing import TYPE_CHECKING, Final, NamedTuple

from resmgr.fuse import formats
from resmgr.fuse.behind import OVERHEAD, Behind
from resmgr.fuse.formats import BODY, Opcode
from resmgr.iofunc.locks import WRITE

if TYPE_CHECKING:
    from resmgr.fuse.inode import Node
    from resmgr.fuse.request import Request

FAR: Final = 1 << 64
"""Beyond every file's end."""
_KEEP_SIZE: Final = 0x01
_IN_PLACE: Final = _KEEP_SIZE | 0x02 | 0x10 | 0x40
"""FALLOC_FL_KEEP_SIZE; and PUNCH_HOLE, ZERO_RANGE, UNSHARE_RANGE. The others move what is behind."""
_READ: Final = int(Opcode.READ)
_LSEEK: Final = int(Opcode.LSEEK)
_FALLOCATE: Final = int(Opcode.FALLOCATE)
_COPY: Final = int(Opcode.COPY_FILE_RANGE)
_OPEN: Final = int(Opcode.OPEN)
_ASK: Final = frozenset(map(int, (Opcode.GETATTR, Opcode.STATX)))
_LOCK: Final = frozenset(map(int, (Opcode.SETLK, Opcode.SETLKW)))


class Span(NamedTuple):
    """What a request changes of a file: bytes from *start* to *end*, and perhaps the size."""

    start: int
    end: int
    resizes: bool


def whole() -> Span:
    """It is not known, or everything."""
    return Span(0, FAR, True)


class Overdue:
    """Those of one file that are not answered yet, and what waits for them."""

    __slots__ = ("_last", "_waiting", "spans")

    def __init__(self) -> None:
        self._last = 0
        self.spans: dict[int, Span] = {}
        self._waiting: list[tuple[set[int], Callable[[], None]]] = []

    def begin(self, span: Span) -> int:
        """One more; its number."""
        self._last += 1
        self.spans[self._last] = span
        return self._last

    def finish(self, number: int) -> list[Callable[[], None]]:
        """One is answered. What waits for none any more, in the order in which it came."""
        del self.spans[number]
        for numbers, _ in self._waiting:
            numbers.discard(number)
        ready = [call for numbers, call in self._waiting if not numbers]
        self._waiting = [one for one in self._waiting if one[0]]
        return ready

    def over(self, start: int, end: int) -> set[int]:
        """Those that change something of these bytes."""
        return {number for number, span in self.spans.items() if start < span.end and span.start < end}

    def before(self, opcode: int, view: memoryview) -> set[int]:
        """Those for which a request, one of `traits.AFTER_WRITES` with the kernel's bytes *view*, has to wait."""
        if opcode == _READ:
            _, offset, size, _, _, _ = formats.READ_IN.parse(view, BODY)
            return self.over(offset, offset + size)
        if opcode == _LSEEK:
            return self.over(formats.LSEEK_IN.parse(view, BODY)[1], FAR)
        if opcode == _FALLOCATE:
            _, offset, length, mode = formats.FALLOCATE_IN.parse(view, BODY)
            span = of_space(mode, offset, length, FAR)
            return self.over(span.start, span.end)
        if opcode == _COPY:
            # Its source; where it is copied to, `ranges` looks.
            _, start, _, _, _, length, _ = formats.COPY_IN.parse(view, BODY)
            return self.over(start, start + length)
        if opcode in _ASK or (opcode == _OPEN and not formats.OPEN_IN.parse(view, BODY)[0] & O_TRUNC):
            return {number for number, span in self.spans.items() if span.resizes}
        if opcode in _LOCK and formats.LK_IN.parse(view, BODY)[4] == WRITE:
            # It lets nobody in.
            return set()
        return set(self.spans)

    def wait(self, numbers: set[int], call: Callable[[], None]) -> None:
        """Run *call* when these, which are not none, are answered."""
        self._waiting.append((numbers, call))


def of_space(mode: int, offset: int, length: int, size: int) -> Span:
    """What FALLOCATE changes of a file of *size* bytes."""
    if mode & ~_IN_PLACE:
        return Span(offset, FAR, True)
    return Span(offset, offset + length, not mode & _KEEP_SIZE and offset + length > size)


def after(node: Node, start: int, end: int, call: Callable[[], None]) -> bool:
    """Run *call* when nothing overdue changes these bytes of *node*. False: nothing does, and *call* is not run."""
    overdue = None if node.behind is None else node.behind.overdue
    numbers = overdue.over(start, end) if overdue is not None else None
    if overdue is None or not numbers:
        return False
    overdue.wait(numbers, call)
    return True


def given_up(request: Request) -> None:
    """The request is being answered while its message is at the server."""
    opcode, node, core, span = request.opcode, request.node, request.core, request.span
    if opcode == _COPY:
        # The request's own node is what is copied.
        node = next((change.node for change in request.changes if change.node is not None), node)
    if span is None or node.mode & 0o170000 != S_IFREG:
        return
    if node.behind is None:
        node.behind = Behind()
    behind = node.behind
    overdue = behind.overdue
    if overdue is None:
        overdue = behind.overdue = Overdue()
    number = overdue.begin(span)
    core.behind_cost += OVERHEAD
    core.drops["given_up_at_server"] += 1

    def arrived() -> None:
        core.behind_cost -= OVERHEAD
        ready = overdue.finish(number)
        if not overdue.spans and behind.overdue is overdue:
            behind.overdue = None
        behind.quiet_at = max(behind.quiet_at, core.dispatch.now())
        # What the kernel has heard and read meanwhile may be of before.
        core.take_back(node)
        for call in ready:
            call()

    request.overdue = arrived
