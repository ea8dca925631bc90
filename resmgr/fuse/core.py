"""The life of one kernel request: the message that it becomes, its answer, and everything that can come between.

A request that acts on a name or a directory is sent with a base handle. The handle may not be there yet (another user, a handle closed to
save descriptors) or not be valid any more (the server came back after a restart): then the directory is looked up again by its path, from
the nearest ancestor that has a handle, at last from the root, whose handle 0 is always valid; and the request is sent again. So a node
that came back needs no remount. An *open file* is opened again only if it is the same one (`reopen`); else the program gets the error.

States of a request: read, (walking), sent, answered. The kernel never waits for ever for a request whose process wants out
(`interrupts`); what the server says after that is thrown away, and handles in it are closed.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer, Dispatch
from resmgr.errors import BadMessage
from resmgr.fuse import changing, entries, formats
from resmgr.fuse.ahead import ReadAhead
from resmgr.fuse.alone import Alone
from resmgr.fuse.answers import DEVICES, Answers, OutputItem
from resmgr.fuse.awake import Awake
from resmgr.fuse.bare import Bares
from resmgr.fuse.between import Pairs
from resmgr.fuse.caller import Callers
from resmgr.fuse.changes import Logs
from resmgr.fuse.delegated import Delegated
from resmgr.fuse.entries import Found
from resmgr.fuse.formats import AttrTuple
from resmgr.fuse.handles import Handles
from resmgr.fuse.identify import Identify
from resmgr.fuse.idle import Idle
from resmgr.fuse.inode import Node
from resmgr.fuse.interrupts import Interrupts
from resmgr.fuse.leases import Leases
from resmgr.fuse.nodes import NodeTable
from resmgr.fuse.onward import onward, third_node
from resmgr.fuse.openahead import OpenAhead
from resmgr.fuse.openfile import File
from resmgr.fuse.options import Failure, FuseOptions, Part
from resmgr.fuse.ownlocks import OwnLocks
from resmgr.fuse.patience import Patience
from resmgr.fuse.removals import Removals
from resmgr.fuse.reopen import Reopening, limit_of
from resmgr.fuse.replaced import Replaced
from resmgr.fuse.request import Outstanding, Request, Step, told
from resmgr.fuse.servers import Resolver, Server, Servers, User
from resmgr.fuse.stuck import waiting
from resmgr.fuse.telling import Telling
from resmgr.fuse.tokens import Tokens
from resmgr.fuse.walk import CONNECT, ENTRY_MAX, HOPS_MAX, RETRIES_MAX, walk
from resmgr.fuse.walking import WalkAhead
from resmgr.iomsg import (
    PATH_MAX,
    REQUEST,
    Connect,
    Target,
)

if TYPE_CHECKING:
    from resmgr.fuse.listing import Directory

_ENTRY_REPLIES: Final = frozenset(
    (Connect.LOOKUP, Connect.OPEN, Connect.MKDIR, Connect.MKNOD, Connect.LINK, Connect.SYMLINK, Connect.TMPFILE)
)
_message: Final = REQUEST.pack


class Core(Answers):
    """What the operations stand on; `Machine` adds their table and the entry point."""

    def __init__(self, dispatch: Dispatch, resolver: Resolver, root: Target, options: FuseOptions, mountpoint: bytes, part: Part) -> None:
        self.dispatch = dispatch
        super().__init__(options)
        self.mountpoint = mountpoint
        self.part = part
        self.requests: dict[int, int] = defaultdict(int)
        """Requests by opcode."""
        self.files: dict[int, File] = {}
        self.directories: dict[int, Directory] = {}
        self.opened: dict[Node, list[Directory]] = {}
        """Open directories by their nodes."""
        self.bare = Bares(self)
        self.unfinished: dict[Request, Callable[[], None]] = {}
        """Closes that wait for something else here, whether they are answered or not, and what carries each out at once."""
        self.held_bytes = 0
        """Bytes of WRITEs that wait for servers."""
        self.behind_cost = 0
        """Of these, what the kernel was told is done, as `Behind.cost` counts."""
        self.borrow: Callable[[], Callable[[], None]] = lambda: _nothing
        """Keeps the buffer of the request being received; what it returns gives it back. Set by the session."""
        self.tell_kernel: Callable[[list[bytes], Callable[[], None]], None] = self._tell_at_once
        """Tells the kernel what it may have to wait for, in order, and calls back when it has. Set by the session, for `telling`."""
        self.sitting: Callable[[Callable[[set[bytes]], None]], None] = _nobody
        """Calls back with the paths, from the mountpoint, of directories in which programs stand. Set by the session, for `idle`."""
        self.drop_pages: Callable[[int, Callable[[], None]], None] = self._drop_by_telling
        """Has it drop what it knows of a regular file, by nodeid; as `tell_kernel`."""
        self.name_of_node: Callable[[int], str] = _nameless
        """The name of the node with a number, as all of them call it; nothing if it is not known. Set by who mounts."""
        self.expires = False
        """The kernel can let an entry expire without dropping what is below it."""
        self.minor = 0
        """Negotiated; 0 before INIT."""
        self.resends = False
        """The kernel can send again what it waits for."""
        self.next_fh = 1
        self.callers = Callers(dispatch, self.drops)
        self.interrupts = Interrupts(self)
        self.servers = Servers(resolver, root, dispatch.now, self._servers_in_use)
        self.handles = Handles(dispatch, options.handles_max, self.drops)
        self.tokens = Tokens(self)
        self.idle = Idle(self)
        self.handles.on_keep = self.idle.kept
        self.logs = Logs()
        self.nodes = NodeTable(self.servers.root, self._node_leaves, self._name_gone)
        self.nodes.root.above = part.names
        self.walking = WalkAhead(self)
        self.ahead = ReadAhead(self)
        self.telling = Telling(self)
        self.leases = Leases(self)
        self.awake = Awake(dispatch, self.drops)
        self.delegated = Delegated(self)
        self.open_ahead = OpenAhead(self)
        self.own_locks = OwnLocks(self)
        self.pairs = Pairs(self)
        self.replaced = Replaced(self)
        self.alone = Alone(self)
        self.removals = Removals(self)
        limit = limit_of(options.failure is Failure.HARD, options.deadline)
        self.patience = Patience(self, limit)
        self.identify = Identify(self, limit > 0)
        self.reopening = Reopening(self, limit)
        self.servers.on_death = self._server_gone

    def _server_gone(self, connection: Connection) -> None:
        self.ahead.forget_connection(connection)
        self.walking.forget_connection(connection)
        self.open_ahead.forget_connection(connection)
        self.replaced.forget_connection(connection)
        self.leases.connection_lost(connection)
        self.reopening.gone(connection)

    def _servers_in_use(self) -> set[Server]:
        connections = [one.connection for one in self.files.values()]
        connections += [one.connection for one in self.directories.values()]
        connections += [one.connection for one in self.outstanding.values() if one.pending is not None]
        return {node.server for node in self.nodes} | {self.servers.of(one) for one in connections}

    def failed(self, request: Request, status: int) -> None:
        """Answer with the errno of a negative *status*, unless the request waits for its node to come back."""
        if status == -errno.EHOSTDOWN and self.patience.limit and not request.answered and self.patience.keep(request):
            return
        if request.unique:
            self.error(request, told(status))
        else:
            request.step(request, status, b"")

    def rerun(self, request: Request) -> None:
        """Carry out a request from its beginning again."""
        raise NotImplementedError

    def _tell_at_once(self, messages: list[bytes], done: Callable[[], None]) -> None:
        for message in messages:
            self.emit(message)
        done()

    def _drop_by_telling(self, nodeid: int, done: Callable[[], None]) -> None:
        self.tell_kernel([formats.inval_pages(nodeid)], done)

    def _name_gone(self, parent: Node, name: bytes) -> None:
        changing.found_changed(self, parent, name)
        self.telling.tell(parent, [formats.inval_entry(parent.nodeid, name, self.expires)])

    def _node_leaves(self, node: Node) -> None:
        self.leases.node_leaves(node)
        self.delegated.changed(node)
        self.handles.drop_all(node)
        self.tokens.forget(node)
        self.bare.forget(node)
        self.logs.forget(node)
        if node.ahead:
            self.ahead.forget_node(node)

    # ---- messages

    def on_base(
        self, request: Request, base: Node, kind: int, subtype: int, flags: int, fixed: bytes, path: bytes, reply_len: int, step: Step
    ) -> None:
        """Send a message whose handle is *base*'s, as the request's user: the common head, *fixed*, *path*. *step* takes the answer."""
        request.base = base
        request.kind = kind
        request.subtype = subtype
        request.flags = flags
        request.fixed = fixed
        request.path = path
        request.reply_len = reply_len
        request.step = step
        self.send(request)

    def send(self, request: Request) -> None:
        """Send the request's message, after a walk if the base handle is missing."""
        base = request.base
        assert base is not None
        if base.parent is None and request.kind == CONNECT and not base.above:
            # The root's names are resolved by the root's server, whoever serves the root directory itself.
            connection = self.servers.connect(self.servers.root, request.user)
            handle = 0
        else:
            connection = base.server.connections.get(request.user) or self.servers.connect(base.server, request.user)
            held = base.handles.get(connection)
            if held is None:
                walk(self, request, base)
                return
            handle = held
            base.used = request.at
        request.connection = connection
        message = _message(request.kind, request.subtype, request.flags, handle) + request.fixed + request.path
        pending = connection.submit((message,), request.reply_len, request.done)
        if pending is not None:
            request.pending = pending
            request.at_server = True

    def on_leaf(
        self, request: Request, node: Node, subtype: int, flags: int, fixed: bytes, reply_len: int, step: Step, tail: bytes = b""
    ) -> None:
        """Send a connect message about *node* by its name; *tail* follows the name."""
        parent = node.parent
        if node.via is not None:
            connection = self.servers.connect(node.server, request.user)
            way = node.way(connection)
            if way is not None:
                self.direct(request, connection, way, subtype, flags, fixed, tail, reply_len, step)
                return
        if parent is None:
            self.on_base(request, node, CONNECT, subtype, flags, fixed, tail, reply_len, step)
        elif not node.named:
            self.error(request, errno.ESTALE)
        else:
            if node.aliases:
                step = self._by_another_name(node, parent, node.name, subtype, flags, fixed, reply_len, step, tail)
            self.on_base(request, parent, CONNECT, subtype, flags, fixed, node.name + tail, reply_len, step)

    def _by_another_name(
        self, node: Node, parent: Node, name: bytes, subtype: int, flags: int, fixed: bytes, reply_len: int, step: Step, tail: bytes
    ) -> Step:
        """Takes the answer to a message about *node*, sent by *name* in *parent*: if that is gone, it goes by the next one that it has."""

        def answered(request: Request, status: int, reply: Buffer) -> None:
            if status == -errno.ENOENT and node.aliases:
                self.nodes.unname(node, parent, name)
                self.on_leaf(request, node, subtype, flags, fixed, reply_len, step, tail)
            else:
                step(request, status, reply)

        return answered

    def direct(
        self,
        request: Request,
        connection: Connection,
        via: tuple[int, bytes],
        subtype: int,
        flags: int,
        fixed: bytes,
        tail: bytes,
        reply_len: int,
        step: Step,
    ) -> None:
        """Send a connect message with a base handle and path that a redirect gave; *tail* follows the path."""
        request.base = None
        request.via = via
        request.kind = CONNECT
        request.subtype = subtype
        request.flags = flags
        request.fixed = fixed
        request.path = via[1] + tail
        request.reply_len = reply_len
        request.step = step
        request.connection = connection
        message = REQUEST.pack(CONNECT, subtype, flags, via[0]) + fixed + request.path
        pending = connection.submit((message,), reply_len, request.done)
        if pending is not None:
            request.pending = pending
            request.at_server = True

    def on_file(
        self, request: Request, file: File, message: tuple[Buffer, ...], reply_len: int, step: Step, other: File | None = None
    ) -> None:
        """Send an I/O message to an open file; *other*: one that it names besides."""
        request.step = step
        request.file = file
        request.other = other
        request.opened = file.opened if other is None else file.opened + other.opened
        pending = file.connection.submit(message, reply_len, request.file_done)
        if pending is not None:
            request.pending = pending
            request.at_server = True

    def with_handle(self, request: Request, node: Node, then: Callable[[Connection, int], None]) -> None:
        """Run *then* with a base handle of directory *node*, after a walk if there is none."""
        connection = self.servers.connect(node.server, request.user)
        handle = node.handles.get(connection)
        if handle is not None:
            node.used = request.at
            then(connection, handle)
        else:
            request.again = lambda: self.with_handle(request, node, then)
            walk(self, request, node)

    # ---- what an entry says

    def parse_entry(self, via: Connection, user: User, reply: Buffer) -> Found:
        """Read the entry that the server behind *via* replied. Raises `BadMessage`."""
        return entries.parse(self.servers, via, user, reply)

    def entry(self, request: Request, reply: Buffer) -> tuple[Found, AttrTuple]:
        """The entry that answers *request*'s message."""
        found = self.parse_entry(request.connection, request.user, reply)
        if found.attr is None:
            raise BadMessage("redirect without its status")
        return found, found.attr

    def redirected(self, request: Request, reply: Buffer) -> None:
        """The name belongs to another server: the same message goes there, with what of the path is left."""
        if third_node(request.connection, reply):
            onward(self, request)
        else:
            self.follow(request, self.parse_entry(request.connection, request.user, reply))

    def follow(self, request: Request, found: Found) -> None:
        """Send *request*'s message to where a redirect leads."""
        request.hops += 1
        if found.attr is not None:
            raise BadMessage("redirect with attributes")
        rest = bytes(found.data)
        if request.hops > HOPS_MAX or len(rest) > PATH_MAX:
            self.drops["redirect_loop"] += 1
            self.error(request, errno.ELOOP)
        elif request.subtype in (Connect.RENAME, Connect.LINK):
            # Two names that do not lie on one server.
            self.error(request, errno.EXDEV)
        else:
            fixed, tail = entries.readdressed(request, rest)
            self.direct(
                request,
                found.connection,
                (found.handle, rest),
                request.subtype,
                request.flags,
                fixed,
                tail,
                request.reply_len,
                request.step,
            )

    def enter(self, request: Request, parent: Node, name: bytes, found: Found, attr: AttrTuple) -> Node:
        """The node for a parsed entry. A directory keeps the base handle; any other is closed."""
        node = self.nodes.enter(parent, name, found.server, attr)
        node.attr_at = request.at
        if node.directory:
            if found.handle:
                self.handles.keep(node, found.connection, found.handle)
        else:
            if found.handle:
                self.handles.close_later(found.connection, found.handle)
            node.via = request.via
            node.via_on = request.connection
        self.leases.entered(parent, name, node, request.at, request.user, found.connection if found.watched else None)
        return node

    def late(self, request: Request, status: int, reply: Buffer) -> None:
        """The answer to a request that was given up: what it opened is closed."""
        self.drops["late_replies"] += 1
        if request.changes:
            changing.late(request)
        if status >= 0 and request.kind == CONNECT and request.subtype in _ENTRY_REPLIES:
            self.close_entry(request, reply)

    def close_entry(self, request: Request, reply: Buffer) -> None:
        """Nobody wants what the entry *reply*, an answer to *request*, has opened."""
        try:
            found = self.parse_entry(request.connection, request.user, reply)
        except BadMessage:
            self.drops["bad_reply"] += 1
            return
        if found.attr is not None:
            for number in {found.handle, found.ocb}:
                if number:
                    self.handles.close_later(found.connection, number)
            if found.watched:
                self.leases.refused(found.connection, found.attr[0])

    # ---- stale handles

    def walked(self, request: Request) -> None:
        """The handle that was missing is there: go on."""
        again = request.again
        if again is not None:
            request.again = None
            again()
        else:
            self.send(request)

    def stale(self, request: Request, status: int) -> None:
        """A base handle is not valid any more, or its server is not there: forget the handles on the way and look up again."""
        base = request.base
        assert base is not None
        request.retries += 1
        if request.retries > RETRIES_MAX or (base.parent is None and request.kind == CONNECT):
            self.failed(request, status)
            return
        self.drops["stale_handle"] += 1
        self.ahead.forget_node(base)
        self.forget_handles(base, request.connection)
        self.forget_handles(request.second, request.connection)
        self.walked(request)

    def forget_handles(self, node: Node | None, connection: Connection) -> None:
        """Drop the handles that *node* and its ancestors have on *connection*."""
        while node is not None:
            self.handles.drop(node, connection)
            node = node.parent

    # ---- open files

    def new_fh(self) -> int:
        fh = self.next_fh
        self.next_fh += 1
        return fh

    def add_file(self, node: Node, connection: Connection, ocb: int, flags: int) -> File:
        file = File(self.new_fh(), node, connection, ocb, flags)
        self.files[file.fh] = file
        node.files.append(file)
        self.nodes.number(node)
        self.identify.opened(file)
        return file

    def add_directory(self, directory: Directory) -> None:
        self.directories[directory.fh] = directory
        self.opened.setdefault(directory.node, []).append(directory)

    def remove_directory(self, fh: int) -> Directory | None:
        """The open directory that *fh* was; None: it was none."""
        directory = self.directories.pop(fh, None)
        if directory is not None:
            others = self.opened[directory.node]
            others.remove(directory)
            if not others:
                del self.opened[directory.node]
        return directory

    def note_outstanding(self, request: Request) -> None:
        """The request was not answered at once: it is listed, and an interrupt that came before it takes effect."""
        self.outstanding[request.unique] = request
        if self.patience.limit:
            self.patience.watch()
        self.interrupts.listed(request)

    # ---- the whole

    def status(self) -> list[Outstanding]:
        """Every request that the kernel waits for, oldest first."""
        return waiting(self)

    def close(self) -> None:
        """The mount is gone: nothing is answered any more, every connection is closed, and with them all handles. Idempotent."""
        for request in list(self.outstanding.values()):
            request.answered = True
        self.outstanding.clear()
        self.walking.close()
        self.replaced.close()
        self.ahead.close()
        self.leases.close()
        self.telling.close()
        self.awake.close()
        self.delegated.close()
        self.open_ahead.close()
        self.alone.close()
        self.own_locks.close()
        self.patience.close()
        self.identify.close()
        self.reopening.close()
        self.idle.close()
        self.removals.close(self._hang_up)
        self.files.clear()
        self.unfinished.clear()
        self.bare.clear()
        self.directories.clear()
        self.opened.clear()

    def _hang_up(self) -> None:
        self.handles.close()
        self.servers.close()


__all__ = ["CONNECT", "DEVICES", "ENTRY_MAX", "Core", "Found", "OutputItem", "alike"]


def _nothing() -> None:
    pass


def _nobody(then: Callable[[set[bytes]], None]) -> None:
    then(set())


def _nameless(nd: int) -> str:
    return ""


def alike(one: AttrTuple, other: AttrTuple) -> bool:
    """Whether a program cannot tell one from the other: mode, links, owner, group, device, size, mtime, ctime."""
    return (
        one[11] == other[11]
        and one[10] == other[10]
        and one[6] == other[6]
        and one[1] == other[1]
        and one[2] == other[2]
        and one[3] == other[3]
        and one[4] == other[4]
        and one[5] == other[5]
    )
