"""Getting a directory's base handle by its path: a LOOKUP from the nearest ancestor that has a handle, at last from the mount's root.

Redirects on the way are followed. What is found must be the directory that the kernel means (same inode number), else the kernel is told
ESTALE and looks at its names again.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse.inode import Node, same_type
from resmgr.fuse.onward import ask_home, name_at_node, third_node
from resmgr.fuse.request import STALE, Request
from resmgr.iomsg import ATTR, ENTRY, PATH_MAX, REQUEST, STATUS_REDIRECT, Connect, Io

if TYPE_CHECKING:
    from resmgr.fuse.core import Core, Found

CONNECT: Final = int(Io.CONNECT)
ENTRY_MAX: Final = ENTRY.size + ATTR.size + PATH_MAX
"""Reply buffer for an entry without data; a redirect's rest is at most a path."""
RETRIES_MAX: Final = 4
"""How often one request looks its directory up again: a server that forgets handles at once cannot keep it going for ever."""
HOPS_MAX: Final = 8
"""Redirects that one message follows: servers that send it round in circles end with ELOOP."""


def walk(core: Core, request: Request, target: Node) -> None:
    """Get *target*'s base handle for the request's user, then go on with the request (`Core.walked`), or answer it with an error."""
    names: list[bytes] = []
    node = target
    user = request.user
    origin: Node | None = None
    while True:
        parent = node.parent
        if parent is None:
            connection = core.servers.connect(core.servers.root, user)
            handle = 0
            names.extend(reversed(node.above))
            break
        if not node.named:
            core.error(request, errno.ESTALE)
            return
        names.append(node.name)
        if parent.parent is not None or parent.above:
            connection = core.servers.connect(parent.server, user)
            held = parent.handles.get(connection)
            if held is not None:
                origin, handle = parent, held
                break
        node = parent
    names.reverse()
    while len(path := b"/".join(names)) > PATH_MAX:
        # In steps: a directory on the way gets its handle first.
        names.pop()
        if target.parent is None:
            core.error(request, errno.ENAMETOOLONG)
            return
        target = target.parent
    core.drops["walks"] += 1
    _Walk(core, request, target, origin).send(connection, handle, path)


class _Walk:
    """One LOOKUP, and the redirects that follow it."""

    __slots__ = ("connection", "core", "handle", "hops", "origin", "path", "request", "target")

    def __init__(self, core: Core, request: Request, target: Node, origin: Node | None) -> None:
        self.core = core
        self.request = request
        self.target = target
        self.origin = origin
        """The ancestor whose handle is used; None: the mount's root."""
        self.hops = 0
        self.connection: Connection
        self.handle = 0
        self.path = b""

    def send(self, connection: Connection, handle: int, path: bytes) -> None:
        self.connection, self.handle, self.path = connection, handle, path
        self.request.connection = connection
        message = REQUEST.pack(CONNECT, Connect.LOOKUP, 0, handle) + path
        pending = connection.submit((message,), ENTRY_MAX, self.done)
        if pending is not None:
            self.request.pending = pending

    def done(self, status: int, reply: Buffer) -> None:
        request, core = self.request, self.core
        request.pending = None
        if status < 0:
            if status in STALE and self.origin is not None and request.retries < RETRIES_MAX and not request.answered:
                request.retries += 1
                core.drops["stale_handle"] += 1
                core.forget_handles(self.origin, self.connection)
                core.walked(request)
            else:
                # A directory that is not there any more: the kernel looks at its names again, and finds how far they lead.
                core.failed(request, -errno.ESTALE if status in (-errno.ENOENT, -errno.ENOTDIR) else status)
            return
        try:
            if status == STATUS_REDIRECT and third_node(self.connection, reply):
                self._onward()
            else:
                self._found(core.parse_entry(self.connection, request.user, reply))
        except BadMessage:
            core.bad_reply(request)

    def _onward(self) -> None:
        """The walk goes on to a third node."""
        request, core = self.request, self.core
        where = name_at_node(self.connection, self.origin if self.handle else None, self.handle, self.path)
        if where is None:
            core.drops["third_node"] += 1
            core.error(request, errno.EREMOTE)
            return
        self.origin = None

        def found(there: Found) -> None:
            request.pending = None
            self._found(there)

        def failed(code: int) -> None:
            request.pending = None
            core.failed(request, -code)

        pending = ask_home(core, request.user, *where, found, failed)
        if pending is not None:
            request.pending = pending

    def _found(self, found: Found) -> None:
        request, core, target = self.request, self.core, self.target
        attr = found.attr
        if attr is None:
            self.hops += 1
            if self.hops > HOPS_MAX or len(found.data) > PATH_MAX:
                core.drops["redirect_loop"] += 1
                core.error(request, errno.ELOOP)
            else:
                self.send(found.connection, found.handle, bytes(found.data))
            return
        root = target.parent is None
        if not found.handle or not (root or (attr[0] == target.ino and same_type(target, attr))):
            if found.handle:
                core.handles.close_later(found.connection, found.handle)
            core.error(request, errno.ESTALE)
            return
        target.server = found.server
        if root:
            target.ino, target.mode, target.attr = attr[0], attr[1], attr
        core.handles.keep(target, found.connection, found.handle)
        if request.answered:
            core.drops["late_replies"] += 1
        else:
            core.walked(request)
