"""What the kernel knows by number, as one daemon hands it to the next (docs/decisions/fuse-hand-over.md).

The state is plain values that JSON can say: names are text with a character for each byte. Nothing in it is a right: whoever has it has
/dev/fuse, too. The next machine takes it as if every connection had just died: open files and directories are *lost* (`reopen`), no base
handle is known, nothing is believed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from resmgr.channel import Connection
from resmgr.fuse import formats
from resmgr.fuse.formats import ROOT_ID, AttrTuple, Opcode
from resmgr.fuse.inode import Node
from resmgr.fuse.listing import Directory
from resmgr.fuse.openfile import File
from resmgr.fuse.servers import Server
from resmgr.fuse.traits import LOCKING, NOT_TWICE
from resmgr.iomsg import LOCK_SET
from resmgr.iorequest import LockRequest

if TYPE_CHECKING:
    from resmgr.fuse.core import Core

VERSION = 1
ATTR_FIELDS = 13
State = Mapping[str, object]


class BadState(ValueError):
    """Not a state, or one of another version."""


def text(name: bytes) -> str:
    return name.decode("latin-1")


# ---- out


def state_of(core: Core, name_of: Callable[[int], str | None]) -> dict[str, object]:
    """All of a machine that is quiet. *name_of*: of the node with a number; None for this one's own."""
    servers: dict[Server, int] = {}

    def number(server: Server) -> int:
        return servers.setdefault(server, len(servers))

    nodes = [
        [
            node.nodeid,
            0 if node.parent is None else node.parent.nodeid,
            text(node.name),
            node.named,
            number(node.server),
            list(node.attr),
            node.lookups,
            [[holder.nodeid, text(name)] for holder, name in node.aliases or ()],
        ]
        for node in _parents_first(core.nodes.root, core.nodes)
    ]
    files = [
        [
            *(file.fh, file.node.nodeid, *_user(file.connection), file.flags, text(file.token), file.as_opened),
            *(file.written != file.synced, file.written, file.error, file.unseen),
            [[one.kind, one.start, one.end, one.owner, one.pid, one.whole] for one in file.held],
        ]
        for file in core.files.values()
    ]
    directories = [
        [one.fh, one.node.nodeid, *_user(one.connection), one.pid, list(one.cookies), one.home] for one in core.directories.values()
    ]
    return {
        "version": VERSION,
        "minor": core.minor,
        "expires": core.expires,
        "resends": core.resends,
        "next": [core.nodes.next, core.next_fh],
        "nodes": nodes,
        "files": files,
        "directories": directories,
        "servers": [[name_of(one.key[0]), *one.key, one.salt, one.gives_tokens] for one in servers],
    }


def _user(connection: Connection) -> tuple[int, int]:
    who = connection.credentials
    return (who.uid, who.gid)


def _parents_first(root: Node, nodes: Iterable[Node]) -> Iterator[Node]:
    told = {root}
    yield root
    for one in nodes:
        way = []
        node: Node | None = one
        while node is not None and node not in told:
            told.add(node)
            way.append(node)
            node = node.parent
        yield from reversed(way)


# ---- quiet


def restless(core: Core) -> bool:
    """Whether something read from the kernel is not answered, something that it was told is done has not arrived, or a token is asked
    for."""
    if core.outstanding or core.reopening.asking:
        return True
    return any(file.node.behind is not None and file.node.behind.outstanding for file in core.files.values())


def let_go(core: Core) -> None:
    """Answer what has the lock of a directory, or pages of a file."""
    for request in list(core.outstanding.values()):
        if request.opcode in LOCKING:
            core.error(request, errno.EHOSTDOWN)


def give_up(core: Core) -> None:
    """What is not done yet will not be: requests that may not be carried out again, or that the kernel cannot send again, are answered.
    Writes that are on the way are errors of their files."""
    for request in list(core.outstanding.values()):
        sent = request.pending is not None and request.opcode in NOT_TWICE
        if sent or request.opcode == Opcode.WRITE:
            core.error(request, errno.EHOSTDOWN)
        elif request.interrupted or not core.resends:
            # Of an interrupt the kernel tells once only.
            core.error(request, errno.EINTR)
    for file in core.files.values():
        if file.node.behind is not None and file.node.behind.outstanding and not file.error:
            file.error = errno.EIO
    for file in core.files.values():
        if file.armed is not None:
            core.emit(formats.poll_wakeup(file.armed.kh))


# ---- in


def resume(core: Core, state: State, numbers: Callable[[str], int | None], gone: Callable[[int, int], Connection]) -> list[File]:
    """Fill *core*, which is new, with *state*. *numbers*: of the node of a name; *gone*: a closed connection of a user. The files through
    which something is locked. `BadState`."""
    try:
        if state["version"] != VERSION:
            raise BadState("a state of another version")
        return _Resumed(core, state, numbers, gone).locked
    except BadState:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadState(f"not a state: {error!r}") from None


class _Resumed:
    def __init__(self, core: Core, state: State, numbers: Callable[[str], int | None], gone: Callable[[int, int], Connection]) -> None:
        self.core = core
        self.gone = gone
        self.locked: list[File] = []
        self.lost: list[File | Directory] = []
        told: dict[str, Any] = dict(state)
        core.minor, core.expires, core.resends = int(told["minor"]), bool(told["expires"]), bool(told["resends"])
        self.servers = [self._server(numbers, *one) for one in told["servers"]]
        for one in told["nodes"]:
            self._node(*one)
        for one in told["nodes"]:
            self._aliases(one[0], one[7])
        core.nodes.next, core.next_fh = map(int, told["next"])
        for one in told["files"]:
            self._file(*one)
        for one in told["directories"]:
            self._directory(*one)
        for thing in self.lost:
            core.reopening.lose(thing)

    def _server(
        self, numbers: Callable[[str], int | None], name: str | None, nd: int, pid: int, chid: int, salt: int, gives: bool
    ) -> Server:
        servers = self.core.servers
        found = None if name is None else numbers(name)
        if name is None:
            # Ours went with the earlier daemon, but for those whose place is well known.
            key = (nd, pid, chid)
        else:
            if found is None:
                raise BadState(f"no room for {name}")
            key = (found, pid, chid)
        server = servers.at(key, salt)
        server.gives_tokens = gives
        return server

    def _node(
        self, nodeid: int, parent: int, name: str, named: bool, server: int, attr: list[int], lookups: int, aliases: list[object]
    ) -> None:
        nodes = self.core.nodes
        fields: AttrTuple = tuple(map(int, attr))  # type: ignore[assignment]  # looked at below
        if len(fields) != ATTR_FIELDS:
            raise BadState("attributes of another length")
        if nodeid == ROOT_ID:
            nodes.root.attr, nodes.root.ino, nodes.root.mode = fields, fields[0], fields[1]
            return
        above = nodes.get(parent)
        if above is None or nodes.get(nodeid) is not None:
            raise BadState("a node that is in none, or there twice")
        node = Node(nodeid, above, name.encode("latin-1"), self.servers[server], fields)
        node.named = named
        node.lookups = lookups
        # Whatever the kernel believes of it, it was told by another daemon.
        node.cached = True
        nodes.put(node, above)

    def _aliases(self, nodeid: int, aliases: list[list[Any]]) -> None:
        nodes = self.core.nodes
        node = nodes.get(nodeid)
        for parent, name in aliases:
            above = nodes.get(parent)
            if node is None or above is None:
                raise BadState("a name in no directory")
            if node.aliases is None:
                node.aliases = []
            node.aliases.append((above, name.encode("latin-1")))
            above.children[name.encode("latin-1")] = node

    def _file(
        self,
        fh: int,
        nodeid: int,
        uid: int,
        gid: int,
        flags: int,
        token: str,
        as_opened: list[int] | None,
        dirty: bool,
        written: int,
        error: int,
        unseen: bool,
        held: list[list[Any]],
    ) -> None:
        core = self.core
        node = core.nodes.get(nodeid)
        if node is None or fh in core.files:
            raise BadState("a file of no node, or there twice")
        file = core.files[fh] = File(fh, node, self.gone(uid, gid), 0, flags)
        node.files.append(file)
        file.token = token.encode("latin-1")
        if as_opened is not None:
            ino, change, mtime, size = as_opened
            file.as_opened = (ino, change, mtime, size)
        file.written, file.synced = written, written - dirty
        file.error, file.unseen = error, unseen
        file.held = [LockRequest(LOCK_SET, *one) for one in held]
        if file.held:
            file.locked = True
            self.locked.append(file)
            for one in file.held:
                if not one.whole:
                    if node.locks is None:
                        node.locks = {}
                    node.locks[one.owner] = file
        self.lost.append(file)

    def _directory(self, fh: int, nodeid: int, uid: int, gid: int, pid: int, cookies: list[int], home: bool) -> None:
        core = self.core
        node = core.nodes.get(nodeid)
        if node is None or fh in core.directories:
            raise BadState("a directory of no node, or there twice")
        connection = self.gone(uid, gid)
        directory = Directory(fh, node, connection, 0, core.ahead.record(node, connection, (uid, gid)), pid)
        directory.cookies.extend(cookies)
        directory.home = home
        core.add_directory(directory)
        self.lost.append(directory)
