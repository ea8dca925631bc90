"""Directories opened before a program asks for them: who lists a tree, directory after directory, is one step behind the messages.

A round trip for each directory is most of what find, ls -R, rm -r, du or a backup wait for. Once a program (a thread of it) opens a
directory whose parent it has just listed, the directories that will probably follow are opened at their server too, with their first
entries, as OPENDIR does it: the children of the one that is open, then what comes after it in its parent, then what comes after that one.
The order is the listing's or the alphabet's, whichever the program's last steps fit. Two are opened ahead at first; twice as many, up to
`WINDOW_MAX`, whenever the program had to wait for one that was still on the way, so a slow network gets more of them. For a program that
asks each entry for its attributes (`ls -l`) those are asked for as well (`bare`), as soon as the directory is open there.

An OPENDIR is answered from such a listing only if

- the same thread asks, and for one of those that were expected next: the first that is not throws all of them away, so a second `ls` or a
  second walk never sees what was asked for during the first;
- it was asked for at most `VALID` seconds ago, and nothing in that directory was changed since, as far as that is known (`changes`; then
  it is asked again);
- the server let this user open it, and its inode number is that of the node.

Otherwise the server is asked as ever. What was opened for nothing is closed within twice `VALID`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from os import O_DIRECTORY
from stat import S_IFDIR, S_IFMT
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer, Timer
from resmgr.errors import BadMessage
from resmgr.fuse.bare import Bare
from resmgr.fuse.inode import Node
from resmgr.fuse.walk import CONNECT, ENTRY_MAX
from resmgr.iomsg import OPEN, OPEN_WATCH, REQUEST, Connect

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.request import Request
    from resmgr.fuse.servers import User

CHUNK: Final = 32 * 1024
"""Bytes of first entries asked for with each."""
VALID: Final = 0.25
"""Seconds for which a listing that was asked for ahead may be handed out."""
WINDOW_FIRST: Final = 2
WINDOW_MAX: Final = 16
EARLY_MAX: Final = 64
"""Directories opened ahead in one mount, each with at most `CHUNK` bytes of entries."""
WALKS_MAX: Final = 16
"""Threads whose walks are remembered; the oldest go."""
LISTS_MAX: Final = 64
"""Directories of one walk whose subdirectories are remembered; the one used longest ago goes."""
NAMES_MAX: Final = 4096
"""Subdirectories of one directory that are remembered. Stops a server that lists without end."""

Place = tuple[Node, bytes]
"""A directory by its parent and name: it need not be a node yet."""


class Early:
    """A directory that was opened ahead: on the way until `reply`; `taken` is what waits for it then."""

    __slots__ = ("at", "bare", "connection", "dead", "place", "reply", "taken", "user", "walk")

    def __init__(self, walk: Walk, place: Place, connection: Connection, user: User, at: float) -> None:
        self.walk = walk
        self.place = place
        self.connection = connection
        self.user = user
        self.at = at
        self.reply: bytes | None = None
        self.bare: Bare | None = None
        self.dead = False
        """Thrown away: what comes is closed."""
        self.taken: Callable[[bytes | None], None] | None = None


class Listed:
    """Subdirectories of one directory, in both orders in which programs go through them."""

    __slots__ = ("names", "places", "sorted")

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.places: dict[bytes, int] = {}
        self.sorted: list[bytes] | None = None

    def add(self, name: bytes) -> None:
        if name not in self.places and len(self.names) < NAMES_MAX:
            self.places[name] = len(self.names)
            self.names.append(name)
            self.sorted = None

    def at(self, name: bytes, alphabetical: bool) -> int:
        """The position of a name that is there."""
        return bisect_left(self.order(True), name) if alphabetical else self.places[name]

    def order(self, alphabetical: bool) -> list[bytes]:
        if not alphabetical:
            return self.names
        if self.sorted is None:
            self.sorted = sorted(self.names)
        return self.sorted


class Walk:
    """One thread that lists directories."""

    __slots__ = ("alphabetical", "early", "last", "lists", "pid", "used", "window")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.lists: dict[Node, Listed] = {}
        self.last: dict[Node, bytes] = {}
        """Of a listed directory, the subdirectory that was opened last."""
        self.early: dict[Place, Early] = {}
        self.alphabetical = False
        self.window = WINDOW_FIRST
        self.used = 0.0


class WalkAhead:
    """All walks of one mount. Counts in `Core.drops`: `walk_asked`, `walk_hits`, `walk_unused`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._walks: dict[int, Walk] = {}
        """By thread, the one used last at the end."""
        self._places: dict[Place, Early] = {}
        """Everything that was opened ahead."""
        self._timer: Timer | None = None

    def __len__(self) -> int:
        """Directories that are opened ahead."""
        return len(self._places)

    # ---- asked by the operations

    def take(self, request: Request, then: Callable[[bytes | None], None]) -> bool:
        """Whether the OPENDIR *request* was expected: *then* is called with the server's reply, at once or when it comes, or with None if
        the server has to be asked after all. `request.at` becomes the time at which it was asked."""
        walk = self._walks.get(request.pid)
        node = request.node
        if walk is None or node.parent is None:
            return False
        early = walk.early.get((node.parent, node.name))
        if early is None or early.user != request.user:
            self._throw(walk)
            return False
        now = request.at
        if now - early.at > VALID:
            self._drop(early)
            walk.window = max(walk.window // 2, WINDOW_FIRST)
            return False
        if node.changed >= early.at or self._core.logs.since(node.parent, node.name, early.at):
            self._drop(early)
            return False
        self._core.drops["walk_hits"] += 1
        self._remove(early)
        request.at = early.at
        request.connection = early.connection
        bare = early.bare
        if early.reply is None or (bare is not None and bare.waiting is not None):
            walk.window = min(walk.window * 2, WINDOW_MAX)
        if bare is not None:
            self._core.bare.adopt(node, bare)
        if early.reply is not None:
            then(early.reply)
        else:
            early.taken = then
        return True

    def opened(self, request: Request, names: Iterator[bytes] | None) -> None:
        """A directory is opened by *request*'s thread; *names* are its subdirectories, once they are known. What will follow is opened."""
        if not request.pid or not self._valid():
            return
        node = request.node
        now = self._core.dispatch.now()
        walk = self._walks.pop(request.pid, None)
        if walk is None:
            walk = Walk(request.pid)
            if len(self._walks) >= WALKS_MAX:
                self._throw(self._walks.pop(next(iter(self._walks))))
        self._walks[request.pid] = walk
        walk.used = now
        self._wake(now)
        parent = node.parent
        siblings = None if parent is None else walk.lists.get(parent)
        expected = parent is not None and siblings is not None and node.name in siblings.places
        if expected and parent is not None and siblings is not None:
            # The one used last at the end.
            walk.lists[parent] = walk.lists.pop(parent)
            self._order(walk, parent, siblings, node.name)
        if names is not None:
            walk.lists.pop(node, None)
            walk.last.pop(node, None)
            self._listed(walk, node, names)
        if expected:
            self._ask(walk, request, now)

    def more(self, pid: int, node: Node, names: Iterator[bytes]) -> None:
        """Further entries of a directory that *pid* has open."""
        walk = self._walks.get(pid)
        if walk is not None:
            self._listed(walk, node, names)

    def forget_connection(self, connection: Connection) -> None:
        """The server behind *connection* is not there any more."""
        for early in [early for early in self._places.values() if early.connection is connection]:
            self._drop(early)

    def close(self) -> None:
        """The mount is gone. Idempotent."""
        for early in list(self._places.values()):
            self._drop(early)
        self._walks.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ---- what follows

    def _listed(self, walk: Walk, node: Node, names: Iterator[bytes]) -> None:
        """*node* has these subdirectories, too. One without any has no place in `lists`."""
        listed = walk.lists.get(node)
        for name in names:
            if listed is None:
                listed = walk.lists[node] = Listed()
                if len(walk.lists) > LISTS_MAX:
                    oldest = next(iter(walk.lists))
                    del walk.lists[oldest]
                    walk.last.pop(oldest, None)
            listed.add(name)

    def _valid(self) -> bool:
        options = self._core.options
        return min(options.attr_valid, options.entry_valid) >= VALID and options.attributes_ahead > 0

    def _order(self, walk: Walk, parent: Node, siblings: Listed, name: bytes) -> None:
        """Which way through *parent* fits the step to *name*."""
        before = walk.last.get(parent)
        walk.last[parent] = name
        fits = [
            (siblings.at(name, alphabetical) == (0 if before is None else siblings.at(before, alphabetical) + 1))
            for alphabetical in (False, True)
        ]
        if fits[0] != fits[1]:
            walk.alphabetical = fits[1]

    def _following(self, walk: Walk, node: Node) -> Iterator[Place]:
        """Directories that are probably opened after *node*, in that order."""
        below = walk.lists.get(node)
        if below is not None:
            for name in below.order(walk.alphabetical):
                yield node, name
        while (parent := node.parent) is not None and (siblings := walk.lists.get(parent)) is not None:
            if node.name not in siblings.places:
                return
            for name in islice(siblings.order(walk.alphabetical), siblings.at(node.name, walk.alphabetical) + 1, None):
                yield parent, name
            node = parent

    def _ask(self, walk: Walk, request: Request, now: float) -> None:
        expected = list(islice(self._following(walk, request.node), WINDOW_MAX + walk.window))
        for place in [place for place in walk.early if place not in expected]:
            self._drop(walk.early[place])
        for place in expected[: walk.window]:
            if place not in self._places and len(self._places) < EARLY_MAX:
                self._open(walk, place, request.user, now)

    def _open(self, walk: Walk, place: Place, user: User, now: float) -> None:
        core = self._core
        parent, name = place
        if parent.parent is None:
            # In the mount's root lie other managers.
            return
        connection = parent.server.connections.get(user)
        handle = None if connection is None else parent.handles.get(connection)
        known = parent.children.get(name)
        if connection is None or connection.closed or handle is None or (known is not None and known.server is not parent.server):
            return
        if known is not None and core.leases.lists(known, user):
            # It will be opened without its server.
            return
        flags = O_DIRECTORY
        if core.leases.wanted(known):
            flags |= OPEN_WATCH
            # As OPENDIR does it: what it brings belongs to the lease that it begins.
            now = math.nextafter(now, math.inf)
        early = Early(walk, place, connection, user, now)
        walk.early[place] = self._places[place] = early
        core.drops["walk_asked"] += 1
        message = REQUEST.pack(CONNECT, Connect.OPEN, flags, handle) + OPEN.pack(0, 0, CHUNK) + name
        connection.submit((message,), ENTRY_MAX + CHUNK, lambda status, reply: self._came(early, status, reply))

    def _came(self, early: Early, status: int, reply: Buffer) -> None:
        taken = early.taken
        if early.dead or status:
            if not early.dead and taken is None:
                self._remove(early)
            if not status:
                self.unwanted(early.connection, early.user, reply)
            if taken is not None:
                early.taken = None
                taken(None)
        elif taken is None:
            early.reply = bytes(reply)
            self._ask_bare(early, reply)
        else:
            taken(bytes(reply))

    def _ask_bare(self, early: Early, reply: Buffer) -> None:
        core = self._core
        try:
            found = core.parse_entry(early.connection, early.user, reply)
        except BadMessage:
            # Whoever takes it says so.
            return
        if found.handle and found.connection is early.connection:
            early.bare = core.bare.ahead(early.walk.pid, early.connection, found.handle)

    # ---- the end of it

    def _remove(self, early: Early) -> None:
        self._places.pop(early.place, None)
        early.walk.early.pop(early.place, None)

    def _drop(self, early: Early) -> None:
        """Nobody is to have it."""
        self._remove(early)
        if not early.dead:
            early.dead = True
            self._core.drops["walk_unused"] += 1
            if early.reply is not None:
                self.unwanted(early.connection, early.user, early.reply)

    def _throw(self, walk: Walk) -> None:
        for early in list(walk.early.values()):
            self._drop(early)

    def unwanted(self, connection: Connection, user: User, reply: Buffer) -> None:
        """Close what *reply* to an OPEN of a directory opened."""
        core = self._core
        try:
            found = core.parse_entry(connection, user, reply)
        except BadMessage:
            core.drops["bad_reply"] += 1
            return
        for number in {found.handle, found.ocb}:
            if number:
                core.handles.close_lazily(found.connection, number)
        if found.watched and found.attr is not None:
            core.leases.refused(found.connection, found.attr[0])

    def _wake(self, now: float) -> None:
        if self._timer is None:
            self._timer = self._core.dispatch.call_at(now + VALID, self._sweep)

    def _sweep(self) -> None:
        """What nobody came for is closed, and who does not walk any more is forgotten."""
        self._timer = None
        now = self._core.dispatch.now()
        for early in [early for early in self._places.values() if now - early.at > VALID]:
            self._drop(early)
        for pid in [pid for pid, walk in self._walks.items() if now - walk.used > VALID and not walk.early]:
            del self._walks[pid]
        if self._walks:
            self._wake(now)


def subdirectories(items: Sequence[tuple[bytes, int, int, object]]) -> Iterator[bytes]:
    """The names of directories among entries."""
    return (name for name, _, mode, _ in items if S_IFMT(mode) == S_IFDIR)
