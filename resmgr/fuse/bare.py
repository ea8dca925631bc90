"""Which entries of a directory have extended attributes, for programs that ask each file for those that it has not got (`ls -l`, `cp -a`).

After `NEED` questions in one directory its server is asked once which entries have any (XATTR *which*), and further questions wait for the
answer. A thread that was answered from it will ask in the next directory, too: there it is asked for when that is opened, by the thread or
ahead of it (`walking`). An entry that has none is answered so for `attr_valid` seconds, in a leased directory, if it has no other name, for
as long as leases last; not, if something of that name was told or changed from here since that was asked (`changes`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.fuse.formats import Opcode
from resmgr.fuse.lease import single
from resmgr.fuse.request import Request
from resmgr.iomsg import NAME_MAX, XATTR_SIZE_MAX, XATTR_WHICH
from resmgr.iorequest import XattrRequest

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.inode import Node
    from resmgr.fuse.servers import User

WAIT_MAX: Final = 0.25
"""Seconds for which questions wait for the answer about all of their directory."""
NEED: Final = 2
"""Questions in one directory that had to be sent before its server is asked about all of it."""
DIRECTORIES_MAX = 4096
"""Directories of which something is remembered; the oldest go."""
NAMES_MAX = 65536
"""Names of entries that have some, of all directories; a directory's that would be beyond are not kept."""
ASKERS_MAX = 64
ASKER_LASTS = 0.5
"""Seconds for which a thread that asked is taken for one that will ask in the next directory, too."""


class Bare:
    """What is known of a directory's entries, as one user was told. `names`: those that have extended attributes; None: not known."""

    __slots__ = ("at", "connection", "kept", "misses", "names", "since", "waiting")

    def __init__(self, connection: Connection, at: float) -> None:
        self.connection = connection
        self.at = at
        """When the server was asked."""
        self.misses = 0
        """Questions that were sent since `since`; -1: the server was asked, and did not say."""
        self.since = at
        self.names: frozenset[bytes] | None = None
        self.waiting: list[Callable[[], None]] | None = None
        """Called when the answer has come; None: nothing was asked."""
        self.kept = False
        """It stands among those of `Bares`."""


class Bares:
    """All that is known on one mount. Counts in `Core.drops`: `xattr_asked`, `xattr_known`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._known: dict[Node, Bare] = {}
        self._names = 0
        self._askers: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._known)

    def lacks(self, node: Node, user: User, pid: int, now: float) -> bool:
        """Whether it is known that *node* has no extended attributes; *user* asks, in thread *pid*."""
        directory = node.parent
        if directory is None:
            return False
        known = self._known.get(directory)
        if (
            known is None
            or known.names is None
            or node.name in known.names
            or not node.named
            or node.aliases
            or node.server is not directory.server
            or directory.server.connections.get(user) is not known.connection
            or not self._holds(known, directory, node, now)
        ):
            return False
        self._asks(pid, now)
        self._core.drops["xattr_known"] += 1
        return True

    def without(self, request: Request, bare: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """Call *bare* if the request's node has no extended attributes, *otherwise* if it may have some: now, or when that is known."""
        node = request.node
        directory = node.parent
        if directory is None or directory.parent is None or not node.named or node.aliases or node.server is not directory.server:
            otherwise()
            return
        connection = directory.server.connections.get(request.user)
        if connection is None:
            otherwise()
            return
        now = self._core.dispatch.now()
        if self.lacks(node, request.user, request.pid, now):
            bare()
            return
        known = self._of(directory, connection, now)
        if known.names is not None and self._holds(known, directory, node, now):
            self._asks(request.pid, now)
            otherwise()
            return
        asked = known.waiting is not None
        if not asked and known.misses >= 0 and not self._core.logs.since(directory, node.name, known.since):
            # Who asks of each file after he has changed it is not to have all of them asked each time.
            known.misses += 1
            if self._expects(request.pid, now):
                asked = self._ask(directory, known)
            elif known.misses >= NEED:
                otherwise()
                self._ask(directory, known)
                return
        if not asked:
            otherwise()
            return

        def come() -> None:
            if request.answered:
                return
            if self._known.get(directory) is known and self.lacks(node, request.user, request.pid, self._core.dispatch.now()):
                bare()
            else:
                otherwise()

        if known.waiting is None:
            come()
        else:
            known.waiting.append(come)

    def opened(self, request: Request, connection: Connection) -> bool:
        """The request's thread has opened the request's node, a directory: if it has just asked elsewhere, it will here. Whether the server
        is asked now."""
        node = request.node
        now = self._core.dispatch.now()
        if node.parent is None or not self._expects(request.pid, now):
            return False
        known = self._of(node, connection, now)
        fresh = known.names is not None and self._holds(known, node, None, now)
        return known.waiting is None and known.misses >= 0 and not fresh and self._ask(node, known)

    def ahead(self, pid: int, connection: Connection, handle: int) -> Bare | None:
        """Thread *pid* will probably open the directory behind *handle*: what is asked about it for `adopt`, if it will ask there, too."""
        now = self._core.dispatch.now()
        if not self._expects(pid, now):
            return None
        known = Bare(connection, now)
        self._send(known, handle)
        return known

    def adopt(self, directory: Node, known: Bare) -> None:
        """*known*, which was asked ahead, is about *directory*."""
        if known.connection.closed or (known.names is not None and self._names + len(known.names) > NAMES_MAX):
            return
        self._keep(directory, known)
        if known.names is not None:
            self._names += len(known.names)

    def forget(self, directory: Node) -> None:
        """Nothing is known of *directory*."""
        known = self._known.pop(directory, None)
        if known is None:
            return
        known.kept = False
        if known.names is not None:
            self._names -= len(known.names)

    def clear(self) -> None:
        for known in self._known.values():
            known.kept = False
        self._known.clear()
        self._askers.clear()
        self._names = 0

    def _expects(self, pid: int, now: float) -> bool:
        """Whether thread *pid* will ask in the next directory, too."""
        return now - self._askers.get(pid, -ASKER_LASTS) < ASKER_LASTS

    def _asks(self, pid: int, now: float) -> None:
        self._askers.pop(pid, None)
        self._askers[pid] = now
        if len(self._askers) > ASKERS_MAX:
            del self._askers[next(iter(self._askers))]

    def _holds(self, known: Bare, directory: Node, node: Node | None, now: float) -> bool:
        """Whether what is known is still so of *node* in it; None: of what nobody has looked at."""
        core, lease, at = self._core, directory.lease, known.at
        name = b"" if node is None else node.name
        if lease is not None and lease.covers(name, at) and (node is None or (lease.has(node) and single(node))):
            return now - at < core.leases.seconds
        return now - at <= core.options.attr_valid and not core.logs.since(directory, name, at)

    def _of(self, directory: Node, connection: Connection, now: float) -> Bare:
        """The record for questions on *connection*, made anew if there is none."""
        known = self._known.get(directory)
        if known is None or known.connection is not connection:
            known = Bare(connection, now)
            self._keep(directory, known)
        elif now - known.since > self._core.options.attr_valid:
            known.misses = 0
            known.since = now
        return known

    def _keep(self, directory: Node, known: Bare) -> None:
        self.forget(directory)
        self._known[directory] = known
        known.kept = True
        if len(self._known) > DIRECTORIES_MAX:
            self.forget(next(iter(self._known)))

    def _ask(self, directory: Node, known: Bare) -> bool:
        """Ask the server, if that is possible."""
        handle = directory.handles.get(known.connection)
        if known.connection.closed or (handle is None and not self._core.tokens.of(directory)):
            return False
        self._send(known, handle, directory)
        return True

    def _send(self, known: Bare, handle: int | None, directory: Node | None = None) -> None:
        """By *handle*; None: by that of *directory*, which was let go, so it is one message more for all of its entries."""
        core = self._core
        at = core.dispatch.now()
        waiting: list[Callable[[], None]] = []
        known.waiting = waiting
        core.drops["xattr_asked"] += 1

        def late() -> None:
            if known.waiting is waiting:
                # Others are not kept waiting for the slowest of its entries.
                known.waiting = None
                known.misses = -1
                for go_on in waiting:
                    go_on()

        core.dispatch.call_at(at + WAIT_MAX, late)

        def came(status: int, reply: Buffer) -> None:
            waiting, known.waiting = known.waiting or [], None
            names = bytes(reply).split(b"\0")
            if known.names is not None and known.kept:
                self._names -= len(known.names)
            known.names = None
            # Not asked again before `_of` begins to count anew.
            known.misses = -1
            if status >= 0 and (names.pop() or (names and max(map(len, names)) > NAME_MAX)):
                core.drops["bad_reply"] += 1
            elif status >= 0 and self._names + len(names) <= NAMES_MAX:
                known.names = frozenset(names)
                known.at = at
                known.misses = 0
                if known.kept:
                    self._names += len(known.names)
            for go_on in waiting:
                go_on()

        def ask(connection: Connection, handle: int) -> None:
            connection.submit((XattrRequest(XATTR_WHICH, size=XATTR_SIZE_MAX).pack(handle),), XATTR_SIZE_MAX, came)

        if handle is not None:
            ask(known.connection, handle)
        elif directory is not None:
            who = known.connection.credentials
            request = Request(core, 0, Opcode.GETXATTR, directory, (who.uid, who.gid), 0, at)
            request.step = lambda request, status, reply: came(min(status, -1), b"")
            core.with_handle(request, directory, ask)
