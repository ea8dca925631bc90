"""What leased directories lie in: whether everybody may go through it is not certain unless its server tells that, too.

A path is met from its top, and watches are asked for by the way (`leases`). Two kinds of directories are not watched then: those that
the path manager of another node found for us, since a watch belongs to a connection to whoever watches, and those that are the path
manager's own, as a node's `/`. Both are asked for when something in them is leased: the first by its handle, the second of the server that
has what was leased, by the path from its root. If that is the same directory there, by its inode number, the path manager shows the rights
that it has there; of what names are in it, it may show more, so only its rights are believed (`Lease.whole`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resmgr.channel import CHID_PATHMGR, PID_SYSTEM, Connection
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse.servers import Server
from resmgr.fuse.walk import CONNECT, ENTRY_MAX
from resmgr.iomsg import LOOKUP_WATCH, PATH_MAX, REQUEST, Connect

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.inode import Node
    from resmgr.fuse.leases import Leases
    from resmgr.fuse.servers import User

EVERY = 10.0
"""Seconds after which a directory is asked for again that was not watched."""
ASKED_MAX = 1024
"""Directories of which that is remembered; the oldest go."""


class Above:
    """Asks for the watches of one mount. Counts in `Core.drops`: `lease_above` (questions)."""

    def __init__(self, core: Core, leases: Leases) -> None:
        self._core = core
        self._leases = leases
        self._asked: dict[Node, float] = {}

    def ask(self, node: Node, child: Node, connection: Connection) -> None:
        """*node* is not leased; *child* in it is, on *connection*."""
        core = self._core
        now = core.dispatch.now()
        if connection.closed or now - self._asked.get(node, -EVERY) < EVERY:
            return
        user = next((user for user, known in child.server.connections.items() if known is connection), None)
        if user is None:
            return
        whole = node.server is child.server
        handle, path = (node.handles.get(connection), b"") if whole else (0, _path_at(node, child.server))
        if handle is None or path is None:
            return
        self._asked.pop(node, None)
        self._asked[node] = now
        if len(self._asked) > ASKED_MAX:
            del self._asked[next(iter(self._asked))]
        core.drops["lease_above"] += 1
        message = REQUEST.pack(CONNECT, Connect.LOOKUP, LOOKUP_WATCH, handle) + path
        connection.submit((message,), ENTRY_MAX, lambda status, reply: self._came(node, connection, user, whole, now, status, reply))

    def _came(self, node: Node, connection: Connection, user: User, whole: bool, at: float, status: int, reply: Buffer) -> None:
        core = self._core
        if status:
            return
        try:
            found = core.parse_entry(connection, user, reply)
        except BadMessage:
            core.drops["bad_reply"] += 1
            return
        attr = found.attr
        if found.handle:
            core.handles.close_later(found.connection, found.handle)
        if not found.watched or attr is None:
            return
        known = core.nodes.get(node.nodeid) is node and node.named and node.lease is None
        if found.connection is not connection or not known or attr[0] != node.ino:
            self._leases.refused(found.connection, attr[0])
            return
        # Of before the watch it is not known whether it was still so.
        if node.attr_at <= at:
            node.tell(attr, at)
        node.attr_sure = node.name_sure = 0.0
        self._asked.pop(node, None)
        self._leases.began(node, connection, at, False, whole)

    def forget(self, node: Node) -> None:
        """The kernel has forgotten *node*."""
        self._asked.pop(node, None)


def _path_at(node: Node, server: Server) -> bytes | None:
    """The path from the root of *server*'s node to *node*, if that is the path manager's there."""
    if node.server.key != (server.key[0], PID_SYSTEM, CHID_PATHMGR):
        return None
    names: list[bytes] = []
    while node.parent is not None and node.parent.server is node.server:
        names.append(node.name)
        node = node.parent
    if node.parent is None:
        # Of a part of a tree the names above are not the path manager's own for certain.
        return None
    path = b"/".join(reversed(names))
    return path if len(path) <= PATH_MAX else None
