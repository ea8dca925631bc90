"""Leases: directories whose changes their server tells, and what may be believed of them for long (docs/protocol/coherence.md).

A lease belongs to a directory's node and to the connection on which the server said *watched*. What is sure about a node, its name and its
attributes, is written on the node (`name_sure`, `attr_sure`: when it was asked for; 0: not sure). Who is told new attributes of a
node (`Node.tell`), or what a name leads to, takes that away; `entered` and `took` give it again if the rules hold:

1. the question was sent after the lease began, or is the one that began it;
2. it was sent after the last event about that name, and after the last change of it from here ended.

What the kernel has to be told of an event goes out at once where that cannot wait (attributes), else from a thread (`telling`).
"""

from __future__ import annotations

from errno import ENOENT
from typing import TYPE_CHECKING

from resmgr.channel import Connection
from resmgr.fuse import formats
from resmgr.fuse.above import Above
from resmgr.fuse.again import DUE_MAX, Again
from resmgr.fuse.audience import Audience
from resmgr.fuse.changes import NEVER
from resmgr.fuse.early import EARLY_MAX, Early
from resmgr.fuse.inode import STREAMS
from resmgr.fuse.known import Known
from resmgr.fuse.lease import ABSENT_MAX, Lease, single
from resmgr.fuse.moves import Moves
from resmgr.fuse.news import News
from resmgr.fuse.storms import Resting
from resmgr.fuse.unwanted import Unwanted
from resmgr.ids import node_of
from resmgr.iomsg import (
    NAME_MAX,
    WATCH_ATTRIB,
    WATCH_CONTENT,
    WATCH_IGNORED,
    WATCH_NAMES,
    WATCH_OVERFLOW,
    WATCH_RECALL,
    WATCH_REPEATED,
    WatchEvent,
)

if TYPE_CHECKING:
    from array import array

    from resmgr.fuse.answers import Valid
    from resmgr.fuse.core import Core
    from resmgr.fuse.inode import Node
    from resmgr.fuse.request import Request
    from resmgr.fuse.servers import User

WAITING_MAX = 4096
"""Messages about one directory that wait to be told to the kernel. Beyond, it is not leased."""


class Leases:
    """All leases of one mount. Counts in `Core.drops`: `leases`, `lease_events`, `lease_lost`, `lease_hits` (answered from here)."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.seconds = core.options.lease
        self.on = self.seconds > 0
        self._leases: dict[tuple[Connection, int], Lease] = {}
        self._news = News(core, self._event, self.connection_lost)
        self._early = Early()
        """Events of directories that are not leased (yet)."""
        self._silent: set[int] = set()
        self._unwanted = Unwanted(core, self._dropped)
        self._above = Above(core, self)
        self.audience = Audience(core.options, self._above, self._anew)
        self._known = Known()
        self._again = Again(core.dispatch, self._changed)
        self._moves = Moves()
        self._resting = Resting()
        self._closed = False

    def __len__(self) -> int:
        return len(self._leases)

    # ---- what is asked

    def wanted(self, node: Node | None) -> bool:
        """Whether a message that brings directory *node* (None: not known yet) should ask for a watch."""
        if node is None or not self.on:
            return self.on
        return node.lease is None and node.directory and not self._resting.rests(node, self._core.dispatch.now())

    def ask(self, node: Node, child: Node, connection: Connection) -> None:
        """Have directory *node* watched, although no message is about to meet it; *child* is in it."""
        self._above.ask(node, child, connection)

    def began(self, node: Node, connection: Connection, at: float, opened: bool, whole: bool = True) -> bool:
        """The server says on *connection* that *node* is watched; asked for at *at*. *opened*: the answer has a listing. *whole*: as
        `Lease` has it. Whether that began a lease."""
        key = (connection, node.ino)
        lease = node.lease
        if lease is not None:
            if lease.connection is not connection and key not in self._leases:
                # One is enough.
                self._unwanted.add(connection, node.ino)
            return False
        if not self.on or self._closed or connection.closed or self._early.since(connection, node.ino, at):
            return False
        if self._core.telling.queued(node) > WAITING_MAX or self._resting.rests(node, self._core.dispatch.now()):
            self._unwanted.add(connection, node.ino)
            return False
        if not self._unwanted.keep(connection, node.ino):
            return False
        other = self._leases.get(key)
        if other is not None:
            self._end(other)
        core = self._core
        lease = Lease(node, connection, core.logs, core.dispatch.now(), at if opened else NEVER, whole)
        lease.live = node_of(node.server.key[0]) not in self._silent
        node.lease = lease
        self._leases[key] = lease
        core.drops["leases"] += 1
        self.audience.judge(lease)
        self._news.ask(connection)
        return node.lease is lease

    def refused(self, connection: Connection, ino: int) -> None:
        """The server watches what nobody wants any more."""
        if (connection, ino) not in self._leases:
            self._unwanted.add(connection, ino)

    # ---- what is sure

    def entered(self, parent: Node, name: bytes, node: Node, at: float, user: User, watched_by: Connection | None = None) -> None:
        """An answer asked for by *user* at *at* said that *name* in *parent* is *node*."""
        began = watched_by is not None and node.directory and self.began(node, watched_by, at, False)
        lease = parent.lease
        if lease is not None:
            lease.entered(node, name, at, user)
        own = node.lease
        if own is not None:
            self.audience.judge(own)
            if lease is None:
                own.knows(node, user)
        if own is not None and own.whole and own.live and (began or at >= own.since) and at > node.changed:
            node.attr_sure = at

    def took(self, node: Node, at: float, user: User, by_name: bool) -> None:
        """*user* was told that the attributes of *node* are those asked for at *at*, by its name, or as it is open: what is open may have
        lost its name, by which alone its changes are told."""
        node.attr_sure = 0.0
        above = None if node.parent is None else node.parent.lease
        if node.directory:
            own = node.lease
            if own is not None:
                self.audience.judge(own)
                (above or own).knows(node, user)
            if own is not None and own.whole and own.holds(at):
                node.attr_sure = at
            return
        parent = node.parent
        if parent is None or not node.named or parent.lease is None:
            return
        parent.lease.knows(node, user)
        sure = (by_name or node.name_sure) and single(node) and at > node.changed
        if sure and parent.lease.has(node) and parent.lease.covers(node.name, at):
            node.attr_sure = at

    def absent(self, request: Request) -> float:
        """The server said that the request's name does not exist; for how many seconds the kernel may believe it, 0: nothing is known,
        below 0: it is not to be believed."""
        lease = request.node.lease
        if lease is not None and lease.overtaken(request.name, request.at):
            return -1.0
        if lease is None or request.base is not request.node or not lease.covers(request.name, request.at):
            return 0.0
        lease.users.add(request.user)
        if len(lease.absent) >= ABSENT_MAX or len(lease.told_absent) >= ABSENT_MAX:
            return 0.0
        lease.absent[request.name] = (request.at, request.user)
        return self._absent_for(lease, request.name, request.at)

    def _absent_for(self, lease: Lease, name: bytes, at: float) -> float:
        now = self._core.dispatch.now()
        lease.answered = now
        if not lease.kernel:
            return 0.0
        lease.told_absent.add(name)
        return max(0.0, at + self.seconds - now)

    def valid(self, node: Node, valid: Valid) -> Valid:
        """How long the kernel may believe what is sure of *node*; at least *valid*."""
        entry_s, attr_s, entry_ns, attr_ns = valid
        now = self._core.dispatch.now()
        parent = node.parent
        above = None if parent is None else parent.lease
        if above is not None:
            above.answered = now
            if node.name_sure and above.kernel:
                left = node.name_sure + self.seconds - now
                if left > entry_s + 1:
                    entry_s, entry_ns = int(left), 0
            elif above.overtaken(node.name, node.attr_at):
                entry_s = entry_ns = 0
        if node.attr_sure:
            own = node.lease if node.directory else above
            if own is not None:
                own.answered = now
                left = node.attr_sure + self.seconds - now
                if own.kernel and left > attr_s + 1:
                    attr_s, attr_ns = int(left), 0
        return (entry_s, attr_s, entry_ns, attr_ns)

    def lookup(self, request: Request) -> bool:
        """Answer a LOOKUP from what is sure, if that is enough."""
        node = request.node
        lease = node.lease
        if lease is None or not lease.live or not lease.whole or request.user not in lease.users:
            return False
        name, oldest = request.name, request.at - self.seconds
        child = node.children.get(name)
        core = self._core
        if child is None:
            at, user = lease.absent.get(name, (0.0, request.user))
            names = lease.names
            if not at and names is not None and name not in names.names and len(name) <= NAME_MAX:
                # Of a longer one its server says that it is too long.
                at, user = names.at, names.user
            if not at or at <= oldest or not (lease.kernel or user == request.user):
                return False
            if len(lease.told_absent) >= ABSENT_MAX:
                # Told, and not to be believed.
                core.error(request, ENOENT)
            else:
                core.answer_absent(request, self._absent_for(lease, name, at))
        elif (
            child.name_sure <= oldest
            or child.attr_sure <= oldest
            or not child.name_sure
            or not child.attr_sure
            or not (child.sure_for is None or child.sure_for == request.user)
            or child.mode & 0o170000 in STREAMS
            or (child.behind is not None and child.behind.outdates(child.attr_at))
        ):
            return False
        else:
            core.answer_entry(request, child)
        core.drops["lease_hits"] += 1
        core.at_home = True
        return True

    def attributes(self, request: Request) -> bool:
        """Whether the attributes of the request's node may be answered from here."""
        node = request.node
        sure = node.attr_sure
        if not sure or sure <= request.at - self.seconds or not (node.sure_for is None or node.sure_for == request.user):
            return False
        if node.behind is not None and node.behind.outdates(node.attr_at):
            return False
        self._core.drops["lease_hits"] += 1
        self._core.at_home = True
        return True

    def lists(self, node: Node, user: User) -> bool:
        """Whether the kernel has what *node* holds, and *user* may see it."""
        lease = node.lease
        return lease is not None and lease.live and lease.listed_at > node.changed and user in lease.readers

    def opens(self, node: Node, user: User) -> bool:
        """Whether *user*, who may list *node*, is likely to open it for something else."""
        lease = node.lease
        return lease is not None and lease.live and lease.unlisted and user in lease.readers

    def opened(self, request: Request) -> bool:
        """The request's user could open the request's directory. Whether the kernel may keep what it reads there."""
        lease = request.node.lease
        if lease is None or not lease.live or not lease.whole or (not lease.kernel and lease.readers - {request.user}):
            # The kernel has one listing for all: another user's may be another.
            return False
        lease.readers.add(request.user)
        return True

    def listed(self, node: Node, began: float, cookies: array[int]) -> None:
        """The kernel has read *node* from its beginning, asked for at *began*, to its end, and keeps it. *cookies*: what the
        positions in it mean."""
        lease = node.lease
        if lease is not None and lease.holds(began):
            lease.listed_at = began
            lease.cookies = cookies

    def empty(self, node: Node, request: Request) -> None:
        """The request made directory *node*, which has been watched since nothing was in it, and its user may search it."""
        lease = node.lease
        if lease is not None and lease.live:
            self.audience.judge(lease)
            lease.users.add(request.user)
            self._known.keep(lease, request.user, request.at)

    def outdates(self, node: Node, at: float) -> bool:
        """Whether a listing asked for at *at* is older than a change that is known."""
        return node.lease is not None and at < node.changed

    def searched(self, request: Request) -> None:
        """The server let the request's user look a name up in the request's directory."""
        lease = request.node.lease
        if lease is not None and request.base is request.node:
            lease.users.add(request.user)

    # ---- events

    def _event(self, connection: Connection, event: WatchEvent) -> None:
        core = self._core
        kind = event.kind
        if kind & WATCH_RECALL:
            core.delegated.recalled(connection, event.ino)
            core.alone.recalled(connection, event.ino)
            return
        core.drops["lease_events"] += 1
        now = core.dispatch.now()
        if not event.ino:
            for lease in [lease for lease in self._leases.values() if lease.connection is connection]:
                if kind & WATCH_OVERFLOW:
                    self._anew(lease)
                else:
                    self._end(lease)
            self._early.anything(connection, now)
            return
        found = self._leases.get((connection, event.ino))
        if found is None:
            self._early.came(connection, event.ino, now)
            if not kind & WATCH_IGNORED and self._unwanted.count(connection) < EARLY_MAX:
                # Unless its answer is still on the way, nobody knows of this watch.
                self._unwanted.add(connection, event.ino)
            return
        if kind & WATCH_IGNORED:
            self._early.came(connection, event.ino, now)
            self._end(found)
        elif not event.name:
            found.node.changed = now
            self.audience.doubt(found)
            self._stale(found.node, False)
        else:
            self._changed(found, event.name, kind, now)
            core.alone.unleased(found)
            if kind & WATCH_NAMES:
                # Not only from here.
                self._known.drop(found)
            storm = kind & WATCH_NAMES and found.storm.event(event.name, now)
            if storm or self._core.telling.queued(found.node) > WAITING_MAX or len(found.again) > DUE_MAX:
                core.drops["lease_flood"] += 1
                if storm:
                    self._resting.rest(found.node, now)
                self._end(found)
                self._unwanted.add(connection, event.ino)
            else:
                self._again.heard(found, event.name, kind, now)

    def happened(self, directory: Node, name: bytes, leads: bool) -> None:
        """What an event would say: that *name* in *directory*, or (not *leads*) what it leads to, may just have been changed."""
        lease = directory.lease
        if lease is not None and not self._closed:
            now, kind = self._core.dispatch.now(), WATCH_NAMES if leads else WATCH_REPEATED
            self._changed(lease, name, kind, now)
            self._again.heard(lease, name, kind, now)

    def moved(self, directory: Node, name: bytes, node: Node) -> None:
        """A program of this mount has moved *node* away from *name* in *directory*: what others did to it before is told by that name."""
        if directory.lease is not None:
            self._moves.note(directory, name, node, self._core.dispatch.now())

    def _changed(self, lease: Lease, name: bytes, kind: int, now: float) -> None:
        node = lease.node
        self._core.logs.heard(node, name, now)
        lease.doubt(name)
        child = node.children.get(name)
        if child is not None and kind & (WATCH_NAMES | WATCH_ATTRIB):
            self._core.delegated.changed(child)
        if kind & WATCH_NAMES or name in lease.told_absent:
            node.changed = now
            self._stale(node, False)
            if child is not None:
                child.name_sure = 0.0
                self._stale(child, False)
                if child.aliases:
                    # Until it is looked up again the others are better.
                    self._core.nodes.unname(child, node, name)
            lease.told_absent.discard(name)
            self._core.telling.tell(node, [formats.inval_entry(node.nodeid, name, self._core.expires)])
        elif kind & WATCH_REPEATED and child is not None:
            self._stale(child, bool(kind & WATCH_CONTENT))
        moved = self._moves.of(node, name, now)
        if moved is not None and kind & WATCH_REPEATED:
            self._changed_before(moved, kind, now)

    def _changed_before(self, node: Node, kind: int, now: float) -> None:
        """The event may be about *node*, which a program of this mount has moved since."""
        directory = node.parent
        if directory is not None:
            self._core.logs.heard(directory, node.name, now)
            if directory.lease is not None:
                directory.lease.doubt(node.name)
        if kind & WATCH_ATTRIB:
            self._core.delegated.changed(node)
        self._stale(node, bool(kind & WATCH_CONTENT))

    def _stale(self, node: Node, content: bool) -> None:
        """The attributes of *node* are not what the kernel was told, nor, perhaps, its contents."""
        node.attr_sure = 0.0
        if not node.directory:
            # It may be looked at by another name, of which nothing is told.
            node.changed = self._core.dispatch.now()
        self._core.take_back(node)
        if not content:
            return
        node.doubt_data()
        if node.cached and node.files:
            self._core.telling.tell(node, [formats.inval_pages(node.nodeid)])

    def forget(self, node: Node, name: bytes) -> None:
        """What the kernel believes of *name* in *node* is not to be believed any more, nor what is below it."""
        self._core.telling.tell(node, [formats.inval_entry(node.nodeid, name)], anew=True)

    def resumed(self) -> None:
        """What the kernel believes of names it was told by an earlier daemon."""
        for node in self._core.nodes:
            entries = [formats.inval_entry(node.nodeid, name, self._core.expires) for name in node.children]
            if entries:
                self._core.telling.tell(node, entries, anew=True)

    # ---- the end of leases

    def _anew(self, lease: Lease) -> None:
        """Whatever was asked for until now is not covered any more."""
        now = self._core.dispatch.now()
        lease.since = now
        lease.opened = NEVER
        lease.changers.clear()
        lease.node.changed = now
        self._core.logs.all(lease.node, now)
        self._known.drop(lease)
        self._unsure(lease)

    def _end(self, lease: Lease) -> None:
        node = lease.node
        self._leases.pop((lease.connection, lease.ino), None)
        if node.lease is lease:
            node.lease = None
        lease.live = False
        self._known.drop(lease)
        self._core.drops["lease_lost"] += 1
        self._unsure(lease)
        self.audience.ended(node)

    def _unsure(self, lease: Lease) -> None:
        """Nothing in it is sure. The kernel is told so of all that it has of it: a name that was moved from here it believes as long as the
        old one, though that is not sure here."""
        node = lease.node
        core = self._core
        core.ahead.forget_node(node)
        core.delegated.unleased(lease)
        core.alone.unleased(lease)
        self._stale(node, False)
        attributes: list[bytes] = []
        entries: list[bytes] = []
        for name, child in node.children.items():
            child.name_sure = 0.0
            entries.append(formats.inval_entry(node.nodeid, name, core.expires))
            if not child.directory:
                child.attr_sure = 0.0
                child.doubt_attr()
                attributes.append(formats.inval_inode(child.nodeid))
        entries += [formats.inval_entry(node.nodeid, name, core.expires) for name in lease.told_absent]
        lease.absent.clear()
        lease.told_absent.clear()
        if attributes:
            self._core.telling.tell(node, attributes, blocking=False)
        if entries:
            self._core.telling.tell(node, entries, anew=True)

    def connection_lost(self, connection: Connection) -> None:
        """The server behind *connection* is not there any more, or tells nothing."""
        self._unwanted.lost(connection)
        for lease in [lease for lease in self._leases.values() if lease.connection is connection]:
            self._end(lease)

    def silent(self, nd: int, silent: bool) -> None:
        """Node *nd* is suspect, or was heard again."""
        number = node_of(nd)
        if silent:
            self._silent.add(number)
        else:
            self._silent.discard(number)
        for lease in list(self._leases.values()):
            if node_of(lease.node.server.key[0]) == number:
                lease.live = not silent
                self._anew(lease)

    def node_leaves(self, node: Node) -> None:
        """The kernel has forgotten directory *node*."""
        self._above.forget(node)
        lease = node.lease
        if lease is not None:
            self._core.alone.left(lease)
            node.lease = None
            lease.live = False
            self._known.drop(lease)
            self.audience.ended(node)
            if self._leases.get((lease.connection, lease.ino)) is lease:
                del self._leases[lease.connection, lease.ino]
                self._unwanted.add(lease.connection, lease.ino)

    def ended(self, node: Node) -> None:
        """Directory *node* is not what its path leads to."""
        lease = node.lease
        if lease is not None:
            self._end(lease)
            self._unwanted.add(lease.connection, lease.ino)

    def _dropped(self, connection: Connection) -> None:
        self._early.anything(connection, self._core.dispatch.now())

    def close(self) -> None:
        """The mount is gone; its connections are closed by others. Idempotent."""
        self._closed = True
        self._again.close()
        self._moves.clear()
        self._news.close()
        self._leases.clear()
        self._unwanted.close()
