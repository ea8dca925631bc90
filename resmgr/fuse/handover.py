"""What the kernel knows by number, as one daemon hands it to the next (docs/decisions/fuse-hand-over.md).

Nothing in what is told (`state`) is a right: whoever has it has /dev/fuse, too. The next machine takes it as if every connection had just
died: open files and directories are *lost* (`reopen`), no base handle is known, nothing is believed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from resmgr.channel import Connection
from resmgr.fuse import formats
from resmgr.fuse.formats import ROOT_ID, Opcode
from resmgr.fuse.inode import Node
from resmgr.fuse.listing import Directory
from resmgr.fuse.openfile import File
from resmgr.fuse.servers import Server
from resmgr.fuse.state import AliasRecord, BadState, DirectoryRecord, FileRecord, LockRecord, NodeRecord, ServerRecord, State, TokenRecord
from resmgr.fuse.traits import LOCKING, NOT_TWICE
from resmgr.iomsg import LOCK_SET, TOKEN_MAX
from resmgr.lockrequest import LockRequest

if TYPE_CHECKING:
    from resmgr.fuse.core import Core

# ---- out


def state_of(core: Core, name_of: Callable[[int], str | None]) -> State:
    """All of a machine that is quiet. *name_of*: of the node with a number; None for this one's own."""
    servers: dict[Server, int] = {}
    nodes = [
        NodeRecord(
            node.nodeid,
            0 if node.parent is None else node.parent.nodeid,
            node.name,
            node.named,
            servers.setdefault(node.server, len(servers)),
            node.attr,
            node.lookups,
            [AliasRecord(holder.nodeid, name) for holder, name in node.aliases or ()],
        )
        for node in _parents_first(core.nodes.root, core.nodes)
    ]
    files = [
        FileRecord(
            file.fh,
            file.node.nodeid,
            *_user(file.connection),
            file.flags,
            file.token,
            file.as_opened,
            file.written != file.synced,
            file.written,
            file.error,
            file.unseen,
            [LockRecord(one.kind, one.start, one.end, one.owner, one.pid, one.whole) for one in file.held],
        )
        for file in core.files.values()
    ]
    directories = [
        DirectoryRecord(one.fh, one.node.nodeid, *_user(one.connection), one.pid, tuple(one.cookies), one.home)
        for one in core.directories.values()
    ]
    found = [ServerRecord(name_of(one.key[0]), *one.key, one.salt, one.gives_tokens) for one in servers]
    tokens = [TokenRecord(node.nodeid, token) for node in core.nodes if (token := core.tokens.of(node))]
    return State(core.minor, core.expires, core.resends, (core.nodes.next, core.next_fh), nodes, files, directories, found, tokens)


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
    return bool(core.outstanding or core.identify.asking or core.removals.count or core.behind_cost)


def let_go(core: Core) -> None:
    """Answer what has the lock of a directory, or pages of a file."""
    for request in list(core.outstanding.values()):
        if request.opcode in LOCKING:
            core.error(request, errno.EHOSTDOWN)


def give_up(core: Core) -> None:
    """What is not done yet will not be: requests that may not be carried out again, or that the kernel cannot send again, are answered.
    Writes that are on the way are errors of their files, removals are logged."""
    core.removals.give_up()
    for request, close in list(core.unfinished.items()):
        if request.answered or not core.resends:
            # The kernel does not say it to the next daemon.
            del core.unfinished[request]
            close()
    for request in list(core.outstanding.values()):
        sent = request.pending is not None and request.opcode in NOT_TWICE
        if sent or request.opcode == Opcode.WRITE:
            core.error(request, errno.EHOSTDOWN)
        elif request.interrupted or not core.resends:
            # Of an interrupt the kernel tells once only.
            core.error(request, errno.EINTR)
    for file in core.files.values():
        behind = file.node.behind
        if behind is not None and behind.outstanding and not file.error:
            file.error = errno.EIO
            file.unseen = file.written != file.synced
    for file in core.files.values():
        if file.armed is not None:
            core.emit(formats.poll_wakeup(file.armed.kh))


# ---- in


def resume(core: Core, state: State, numbers: Callable[[str], int | None], gone: Callable[[int, int], Connection]) -> list[File]:
    """Fill *core*, which is new, with *state*. *numbers*: of the node of a name; *gone*: a closed connection of a user. The files through
    which something is locked. `BadState` if the records do not fit together."""
    core.minor, core.expires, core.resends = state.minor, state.expires, state.resends
    servers = [_server(core, one, numbers) for one in state.servers]
    for node in state.nodes:
        _node(core, node, servers)
    for node in state.nodes:
        _aliases(core, node)
    for one in state.tokens:
        directory = core.nodes.get(one.nodeid)
        if directory is not None and directory.directory and 0 < len(one.token) <= TOKEN_MAX:
            core.tokens.set(directory, one.token, 0.0)
    core.nodes.next, core.next_fh = state.next
    things: list[File | Directory] = [_file(core, one, gone(one.uid, one.gid)) for one in state.files]
    things += [_directory(core, one, gone(one.uid, one.gid)) for one in state.directories]
    for thing in things:
        core.reopening.lose(thing)
    return [file for file in core.files.values() if file.held]


def _server(core: Core, told: ServerRecord, numbers: Callable[[str], int | None]) -> Server:
    nd = told.nd if told.node is None else numbers(told.node)
    if nd is None:
        raise BadState(f"no room for {told.node}")
    # One without a node was ours, and went with the earlier daemon, but for those whose place is well known.
    server = core.servers.at((nd, told.pid, told.chid), told.salt)
    server.gives_tokens = told.gives_tokens
    return server


def _node(core: Core, told: NodeRecord, servers: list[Server]) -> None:
    nodes, attr = core.nodes, told.attr
    if told.nodeid == ROOT_ID:
        nodes.root.attr, nodes.root.ino, nodes.root.mode = attr, attr[0], attr[1]
        return
    above = nodes.get(told.parent)
    if above is None or nodes.get(told.nodeid) is not None or not 0 <= told.server < len(servers):
        raise BadState("a node that is in none, or there twice, or of no server")
    node = Node(told.nodeid, above, told.name, servers[told.server], attr)
    node.named = told.named
    node.lookups = told.lookups
    # Whatever the kernel believes of it, it was told by another daemon.
    node.cached = True
    nodes.put(node, above)


def _aliases(core: Core, told: NodeRecord) -> None:
    node = core.nodes.get(told.nodeid)
    for one in told.aliases:
        above = core.nodes.get(one.parent)
        if node is None or above is None:
            raise BadState("a name in no directory")
        if node.aliases is None:
            node.aliases = {}
        node.aliases[above, one.name] = None
        above.children[one.name] = node


def _file(core: Core, told: FileRecord, connection: Connection) -> File:
    node = core.nodes.get(told.nodeid)
    if node is None or told.fh in core.files:
        raise BadState("a file of no node, or there twice")
    file = core.files[told.fh] = File(told.fh, node, connection, 0, told.flags)
    node.files.append(file)
    file.token = told.token
    file.as_opened = told.as_opened
    file.written, file.synced = told.written, told.written - told.dirty
    file.error, file.unseen = told.error, told.unseen
    for lock in told.held:
        file.held.note(LockRequest(LOCK_SET, lock.kind, lock.start, lock.end, lock.owner, lock.pid, lock.whole))
    file.locked = bool(file.held)
    for one in file.held:
        if not one.whole:
            if node.locks is None:
                node.locks = {}
            node.locks[one.owner] = file
    return file


def _directory(core: Core, told: DirectoryRecord, connection: Connection) -> Directory:
    node = core.nodes.get(told.nodeid)
    if node is None or told.fh in core.directories:
        raise BadState("a directory of no node, or there twice")
    directory = Directory(told.fh, node, connection, 0, core.ahead.record(node, connection, (told.uid, told.gid)), told.pid)
    try:
        directory.cookies.extend(told.cookies)
    except OverflowError:
        raise BadState("a cookie of more than 64 bits") from None
    directory.home = told.home
    core.add_directory(directory)
    return directory
