"""A name that was given to another file between the kernel's LOOKUP and its OPEN.

What was opened is not what the kernel means. It is told ESTALE, and the same thread looks the name up once more and opens what it finds;
by then that may have been replaced, too, and the kernel does not try a third time. So what was opened stays open: both are answered with
it. That is what the name led to while the program was in its open(2), and the kernel gets an inode of its own for it, with its size.
In its second try the kernel asks about each name of the path again, so a walk takes as long as the servers and the scheduler let it: what
ends the waiting is that nothing more comes of it, not how long it takes.

So with stat(2), whose GETATTR asks about what has lost its name since the LOOKUP: in its second try it gets what the LOOKUP said.
"""

from __future__ import annotations

from stat import S_IFREG
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Timer
from resmgr.fuse.formats import AttrTuple
from resmgr.fuse.inode import Node, same_type
from resmgr.fuse.request import Request

if TYPE_CHECKING:
    from resmgr.fuse.core import Core, Found

VALID: Final = 1.0
"""Seconds in which the kernel takes the next step of its walk: it does at once, in the same call of the program. Where six programs for
each processor never sleep, steps took up to 0.4 s, and a walk of two of them 0.8 s."""
WALK_MAX: Final = 10.0
"""Seconds in which it is there again, step by step. A program that was interrupted may go other ways by the same directories."""
KEPT_MAX: Final = 64
"""Threads that are between their two tries. Beyond, the oldest has to take what it finds."""


class Kept:
    """What *instead* was opened as: name in *directory*, as *found* with *attr*, asked for at *at* by the flags of its OPEN. The thread was
    last *seen* on its way there."""

    __slots__ = ("at", "attr", "directory", "flags", "found", "instead", "name", "over", "seen", "user")

    def __init__(self, request: Request, directory: Node, found: Found, attr: AttrTuple, now: float) -> None:
        self.instead = request.node
        self.directory = directory
        self.name = request.node.name if request.base is None else request.path
        self.found = found
        self.attr = attr
        self.at = request.at
        self.seen = now
        self.flags = request.extra
        self.user = request.user
        self.over = False
        """The thread has opened something else since: what it looks up now is another matter."""

    def is_over(self, now: float) -> bool:
        """Nobody comes for it any more."""
        return self.over or now - self.seen >= VALID or now - self.at >= WALK_MAX

    def is_below(self, node: Node) -> bool:
        """Whether *node* is on the way to it."""
        above: Node | None = self.directory
        while above is not None and above is not node:
            above = above.parent
        return above is not None


class Replaced:
    """All that is kept so, by the thread that is to come back."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.kept: dict[int, Kept] = {}
        self._stale: dict[int, tuple[Node, float]] = {}
        """By thread, of which node it was told that it is not there, and when."""
        self._timer: Timer | None = None

    def keep(self, request: Request, found: Found, attr: AttrTuple) -> None:
        """The OPEN of the request's node has opened another file; it is closed if nobody is to have it."""
        node = request.node
        directory = node.parent
        before = self.kept.pop(request.pid, None)
        if before is not None:
            self._close(before)
        again = before is not None and before.instead is node
        if again or request.answered or directory is None or found.server is not node.server or attr[1] & 0o170000 != S_IFREG:
            # Tried again without a look at the name: it came by something else than a path, and means that one file.
            self._core.handles.close_now(found.connection, found.ocb)
            return
        if len(self.kept) >= KEPT_MAX:
            self._close(self.kept.pop(next(iter(self.kept))))
        now = self._core.dispatch.now()
        self.kept[request.pid] = Kept(request, directory, found, attr, now)
        if self._timer is None:
            self._timer = self._core.dispatch.call_at(now + VALID, self._sweep)

    def find(self, request: Request) -> Kept | None:
        """What to answer the request's LOOKUP with."""
        kept = self.kept.get(request.pid)
        if kept is None or kept.user != request.user or kept.is_over(request.at):
            return None
        if kept.directory is request.node and kept.name == request.name:
            kept.seen = request.at
            return kept
        step = request.node.children.get(request.name)
        if step is not None and kept.is_below(step):
            kept.seen = request.at
        return None

    def take(self, request: Request) -> Kept | None:
        """What the request's OPEN is to have; it is not kept any more."""
        kept = self.kept.get(request.pid)
        node = request.node
        if kept is None:
            return None
        if kept.instead is node or kept.flags != request.extra or kept.user != request.user:
            kept.over = True
            return None
        if kept.found.server is not node.server or kept.attr[0] != node.ino or not same_type(node, kept.attr):
            kept.over = True
            return None
        del self.kept[request.pid]
        return kept

    def looked(self, request: Request) -> bool:
        """Whether the request, about what has no name and nobody can be asked about, is the second try of a thread that was told so of
        another node, and has looked its name up since."""
        node, at = request.node, request.at
        before, then = self._stale.pop(request.pid, (node, at))
        if before is not node and at - then < WALK_MAX and at - node.attr_at < VALID:
            return True
        if len(self._stale) >= KEPT_MAX:
            del self._stale[next(iter(self._stale))]
        self._stale[request.pid] = (node, at)
        return False

    def forget_connection(self, connection: Connection) -> None:
        for pid in [pid for pid, kept in self.kept.items() if kept.found.connection is connection]:
            del self.kept[pid]

    def close(self) -> None:
        self.kept.clear()
        self._stale.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self, kept: Kept) -> None:
        self._core.handles.close_now(kept.found.connection, kept.found.ocb)

    def _sweep(self) -> None:
        self._timer = None
        now = self._core.dispatch.now()
        for pid, kept in list(self.kept.items()):
            if kept.is_over(now):
                del self.kept[pid]
                self._close(kept)
        if self.kept:
            self._timer = self._core.dispatch.call_at(now + VALID, self._sweep)
