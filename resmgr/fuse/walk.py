"""Getting a directory's base handle: by its token, or by its path, which is a LOOKUP from the nearest ancestor that has a handle, at last
from the mount's root.

A token (`tokens`) finds the directory wherever it is by now, in one message to its server. If it does not, the path is tried, and what it
leads to must be the token's directory. Without a token it must have the same inode number. If a path leads nowhere or elsewhere, a
directory above may have another name: the nearest one that has a token and no handle is found by that first. Redirects on the way are
followed. At last the kernel is told ESTALE and looks at its names again."""

from __future__ import annotations

import errno
from collections.abc import Callable
from os import O_DIRECTORY, O_PATH
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse.inode import Node, same_type
from resmgr.fuse.onward import ask_home, name_at_node, third_node
from resmgr.fuse.request import STALE, Request
from resmgr.iomsg import ATTR, ENTRY, PATH_MAX, REOPEN, REQUEST, STATUS_REDIRECT, Connect, Io

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
    token = core.tokens.of(target)
    if token and target.parent is not None:
        core.drops["walks"] += 1
        _ByToken(core, request, target, token).send()
    else:
        by_path(core, request, target)


def by_path(core: Core, request: Request, target: Node) -> None:
    """`walk`, but what *target*'s token says is only asked for what is found."""
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


class _ByToken:
    """One REOPEN at the directory's server."""

    __slots__ = ("connection", "core", "request", "target", "token")

    def __init__(self, core: Core, request: Request, target: Node, token: bytes) -> None:
        self.core = core
        self.request = request
        self.target = target
        self.token = token
        self.connection = core.servers.connect(target.server, request.user)

    def send(self) -> None:
        """Have it found by the token alone."""
        self._submit(self.connection, 0, self._done)

    def verify(self, found: Found) -> None:
        """Have it taken if *found*, which a path led to, is the token's directory."""
        self._submit(found.connection, found.handle, lambda status, reply: self._verified(found, status, reply))

    def _submit(self, connection: Connection, handle: int, done: Callable[[int, Buffer], None]) -> None:
        self.connection = self.request.connection = connection
        head = REQUEST.pack(CONNECT, Connect.REOPEN, O_PATH | O_DIRECTORY, handle)
        pending = connection.submit((head, REOPEN.pack(len(self.token)), self.token), ENTRY_MAX, done)
        if pending is not None:
            self.request.pending = pending

    def _done(self, status: int, reply: Buffer) -> None:
        request, core = self.request, self.core
        request.pending = None
        if status:
            if status == -errno.EHOSTDOWN or status == -errno.EINTR or request.answered:
                core.failed(request, min(status, -1))
            else:
                by_path(core, request, self.target)
            return
        try:
            found = core.parse_entry(self.connection, request.user, reply)
        except BadMessage:
            core.bad_reply(request)
            return
        if take(core, request, self.target, found):
            core.drops["found_by_token"] += 1
            on_again(core, request)

    def _verified(self, found: Found, status: int, reply: Buffer) -> None:
        request, core = self.request, self.core
        request.pending = None
        try:
            other = core.parse_entry(self.connection, request.user, reply) if not status else None
        except BadMessage:
            other = None
        if other is not None:
            # The same directory, which needs only one.
            core.handles.close_later(other.connection, other.handle)
            if take(core, request, self.target, found):
                on_again(core, request)
            return
        core.handles.close_later(found.connection, found.handle)
        core.failed(request, status if status < 0 and status != -errno.ENOSYS else -errno.ESTALE)


class _Walk:
    """One LOOKUP, and the redirects that follow it."""

    __slots__ = ("asked", "connection", "core", "handle", "hops", "origin", "path", "request", "target")

    def __init__(self, core: Core, request: Request, target: Node, origin: Node | None) -> None:
        self.core = core
        self.request = request
        self.target = target
        self.origin = origin
        """The ancestor whose handle is used; None: the mount's root."""
        self.asked = target.path()
        """Where it was when this began."""
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
                self._astray(-errno.ESTALE if status in (-errno.ENOENT, -errno.ENOTDIR) else status)
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
        if target.parent is not None and not is_it(target, found):
            if found.handle:
                core.handles.close_later(found.connection, found.handle)
            self._astray(-errno.ESTALE)
            return
        token = core.tokens.of(target)
        if token and found.handle and not request.answered:
            _ByToken(core, request, target, token).verify(found)
        elif take(core, request, target, found):
            on_again(core, request)

    def _astray(self, status: int) -> None:
        """The path does not lead there any more."""
        request, core = self.request, self.core
        if status == -errno.ESTALE and self.target.path() != self.asked and request.retries < RETRIES_MAX and not request.answered:
            # A program of this mount has renamed it, or a directory above it, meanwhile.
            request.retries += 1
            by_path(core, request, self.target)
            return
        node = None if core.tokens.of(self.target) else self.target.parent
        while status == -errno.ESTALE and node is not None and node.parent is not None and not request.answered:
            if request.retries >= RETRIES_MAX or node is self.origin:
                break
            if core.tokens.of(node) and core.servers.connect(node.server, request.user) not in node.handles:
                request.retries += 1
                walk(core, request, node)
                return
            node = node.parent
        # The kernel looks at its names again, and finds how far they lead.
        core.failed(request, status)


def is_it(target: Node, found: Found) -> bool:
    """Whether *found* can be the directory that the kernel means."""
    attr = found.attr
    return bool(found.handle) and attr is not None and attr[0] == target.ino and same_type(target, attr)


def take(core: Core, request: Request, target: Node, found: Found) -> bool:
    """Keep what was *found* as *target*'s base handle, or answer the request with ESTALE. Whether it is *target*."""
    attr = found.attr
    root = target.parent is None
    if not found.handle or attr is None or not (root or is_it(target, found)):
        if found.handle:
            core.handles.close_later(found.connection, found.handle)
        core.error(request, errno.ESTALE)
        return False
    target.server = found.server
    if root:
        target.ino, target.mode, target.attr = attr[0], attr[1], attr
    core.handles.keep(target, found.connection, found.handle)
    return True


def on_again(core: Core, request: Request) -> None:
    """The handle is there."""
    if request.answered:
        core.drops["late_replies"] += 1
    else:
        core.walked(request)
