"""A name that leads from one far node on to a third: `/net/B/net/C/x`, where B's path manager says "that is another node's".

What B calls C is B's own number and means nothing here, and B's word must not decide where this node's users go: a request that B may send
anywhere is carried out there with their rights, not B's. So B's answer says only *that* the name goes on. Where to, this node asks its
own path manager, by the same name: what is `net/C/x` at B must be `net/C/x` here, and here lead to another node than this one and than
those that the path has been through (ELOOP: no loops, and no path longer than there are nodes). A name that does not leave this node at
home is EREMOTE. Nothing but the question whether the name exists (ACCESS) is ever sent home on B's word.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from resmgr.channel import CHID_PATHMGR, ND_LOCAL, PID_SYSTEM, Connection, Pending
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse.inode import Node
from resmgr.ids import node_of
from resmgr.iomsg import ENTRY, PATH_MAX, REQUEST, STATUS_REDIRECT, Connect, Io

if TYPE_CHECKING:
    from resmgr.fuse.core import Core, Found
    from resmgr.fuse.request import Request

_EXISTS = struct.pack("!I", 0)
_NUMBER: Final = struct.Struct("!I")


def third_node(via: Connection, reply: Buffer) -> bool:
    """Whether an entry from another node names a node other than that one."""
    return via.nd != ND_LOCAL and len(reply) >= ENTRY.size and _NUMBER.unpack_from(reply)[0] != 0


def name_at_node(connection: Connection, base: Node | None, handle: int, path: bytes) -> tuple[bytes, set[int]] | None:
    """What a message to another node is about, as a path from that node's root, and the nodes that lie on the way there from here.

    *base* is the directory whose *handle* the message carries. None when the name cannot be told: a handle of no known directory.
    """
    nd = int(connection.nd)
    visited = {int(ND_LOCAL), node_of(nd)}
    if base is None:
        whole = not handle and (connection.pid, connection.chid) == (PID_SYSTEM, CHID_PATHMGR)
        return (path, visited) if whole else None
    names = [path] if path else []
    node = base
    while node.parent is not None and node.server.key[0] == nd == node.parent.server.key[0]:
        if not node.named:
            return None
        names.append(node.name)
        node = node.parent
    names.extend(reversed(node.above[1:]))
    ancestor: Node | None = node
    while ancestor is not None:
        visited.add(node_of(ancestor.server.key[0]))
        ancestor = ancestor.parent
    return b"/".join(reversed(names)), visited


def ask_home(
    core: Core, user: tuple[int, int], name: bytes, visited: set[int], found: Callable[[Found], None], failed: Callable[[int], None]
) -> Pending | None:
    """Where *name* leads from this node: *found* gets the redirect, *failed* an errno."""
    connection = core.servers.connect(core.servers.home, user)

    def done(status: int, reply: Buffer) -> None:
        if status < 0:
            failed(-status)
            return
        if status != STATUS_REDIRECT:
            core.drops["third_node"] += 1
            failed(errno.EREMOTE)
            return
        (nd,) = _NUMBER.unpack_from(reply)
        if node_of(nd) in visited:
            core.drops["redirect_loop"] += 1
            failed(errno.ELOOP)
            return
        try:
            there = core.parse_entry(connection, user, reply)
        except BadMessage:
            core.drops["bad_reply"] += 1
            failed(errno.EIO)
            return
        found(there)

    if len(name) > PATH_MAX:
        failed(errno.ENAMETOOLONG)
        return None
    return connection.submit((REQUEST.pack(Io.CONNECT, Connect.ACCESS, 0, 0) + _EXISTS + name,), ENTRY.size + PATH_MAX, done)


def onward(core: Core, request: Request) -> None:
    """The server that *request* was sent to says that its name is a third node's: carry it out there, or answer it with an error."""
    path = request.name if request.subtype == Connect.SYMLINK else request.path
    handle = 0 if request.via is None else request.via[0]
    where = name_at_node(request.connection, request.base, handle, path)
    if where is None or request.subtype in (Connect.RENAME, Connect.LINK):
        core.drops["third_node"] += 1
        core.error(request, errno.EXDEV if where is not None else errno.EREMOTE)
        return

    def found(there: Found) -> None:
        request.pending = None
        if not request.answered:
            core.follow(request, there)

    def failed(code: int) -> None:
        request.pending = None
        if not request.answered:
            core.failed(request, -code)

    pending = ask_home(core, request.user, *where, found, failed)
    if pending is not None:
        request.pending = pending
