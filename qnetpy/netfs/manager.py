"""The /net manager: one directory, one entry per node that can be reached, and a redirect for everything below an entry.

A connect message for `B/etc/hostname` is answered with a redirect to B's path manager and the rest, `etc/hostname`: the client goes on
there and then talks to the server on B directly; nothing of a file ever passes through this manager. This node itself is an entry,
too, so that `/net/<own name>/x` is `x` here.

The listing is what the node table knows now: it asks nobody, so it never blocks (QNX lists cached name mappings, which may be hours
old). A node that is known but down gives EHOSTDOWN, a name nobody ever authenticated ENOENT; for that one it is looked
meanwhile, if nodes are looked for here, and whoever asks again a moment later may find it.

`/net/B/net/C` on A goes on to C: B tells A's client that the name is a third node's, and A finds C by the same name in its own /net. So C
deals with A and knows it by A's certificate; nothing that B says of a user, and no request of A's, ever passes through B. What B decides is
whether A sees its /net at all: if A may read `/net` here (`exports`). For such a client the own name and the client's name are ELOOP, and
the listing is empty: `find /net/B` would otherwise go through every node once for each way to it.

`B~preferred:en1` is B too, with a choice of paths (`qnetpy.qos`): the choice is in the upper half of the node descriptor, so it holds for
everything that is found below the name. Such names are not listed. A choice that names no policy is EINVAL, no interface ENXIO. Choices are
this node's: a client of another node makes its own (`/net/B/net/C~redundant` is found by that name in its own /net).

What is known of a node are extended attributes of its name (`told`), for programs of this node: a XATTR with the flag OF_NAME is about the
name, any other one goes on to the node. /net itself has one for each node, also for those that are down, whose names lead nowhere.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping

from qnetpy.netfs.told import NODES_MAX, Told, of_all
from qnetpy.nodes import NodeTable
from qnetpy.qos import split
from resmgr.channel import CHID_PATHMGR, ND_LOCAL, PID_SYSTEM, ClientInfo, Kernel, Message
from resmgr.ids import ND_BITS
from resmgr.iofunc.handle import Handle
from resmgr.iofunc.node import Directory, Elsewhere, Node, NodeClient, TreeManager
from resmgr.iomsg import LENGTH, XATTR_GET, XATTR_LIST, XATTR_OF_NAME, XATTR_SIZE_MAX, Connect, Io, Target
from resmgr.iorequest import ConnectRequest, XattrRequest, parse_xattr

CHOSEN_MAX = 64
"""Names with a choice remembered per node: stops a user from filling memory with names; a forgotten one is trusted a second longer."""


class NetDirectory(Directory):
    """`/net` of the node named *own*. *route_by*: the route that a name's choice means; OSError if it means none. *seek*: a name was asked
    for that no node ever had."""

    def __init__(self, own: str, nodes: NodeTable, route_by: Callable[[str], int], seek: Callable[[str], None]) -> None:
        super().__init__()
        self._seek = seek
        self._own = own
        self._table = nodes
        self._route_by = route_by
        self.chosen: dict[str, dict[bytes, None]] = {}
        """Names with a choice that were looked up, by node: what is said of a node is said of them."""

    def lookup(self, name: bytes) -> Node | None:
        text, choice = split(os.fsdecode(name))
        node = self._table.get(text)
        if node is None and text != self._own:
            self._seek(text)
            return None
        route = 0
        if choice is not None:
            route = self._route_by(choice)
            names = self.chosen.setdefault(text, {})
            names[name] = None
            if len(names) > CHOSEN_MAX:
                del names[next(iter(names))]
        if node is None or text == self._own:
            return _path_manager(ND_LOCAL)
        if not node.reachable:
            raise OSError(errno.EHOSTDOWN, "node is down")
        return _path_manager(node.nd | route << ND_BITS)

    def entries(self) -> Iterator[tuple[bytes, Node]]:
        yield self._own.encode(), _path_manager(ND_LOCAL)
        for node in self._table.listed():
            yield node.name.encode(), _path_manager(node.nd)


def _path_manager(nd: int) -> Elsewhere:
    return Elsewhere(Target(nd, PID_SYSTEM, CHID_PATHMGR))


class NetFs(TreeManager):
    """Serves the directory on a channel of *kernel*. *transit*: which clients of other nodes it exists for."""

    def __init__(
        self,
        kernel: Kernel,
        nodes: NodeTable,
        route_by: Callable[[str], int],
        transit: Callable[[ClientInfo], bool],
        seek: Callable[[str], None],
        tell: Callable[[str], Told | None],
    ) -> None:
        """*tell*: what there is to say of the node of that name, perhaps with a choice of paths behind it; None: no such node."""
        self._tell = tell
        self._nodes = nodes
        self._transit = transit
        self._kernel = kernel
        self._net = NetDirectory(kernel.node_name, nodes, route_by, seek)
        self.listeners: list[Callable[[bytes], None]] = []
        """Told the name of each entry that may not be what it was."""
        self.heeds: list[Callable[[int, bool], None]] = []
        """Told of each node (its number) that is silent, or was heard again."""
        super().__init__(kernel, self._net, name="net")

    def _walk(self, client: NodeClient, base: Handle | None, path: bytes) -> tuple[Node, bytes, bytes]:
        info = client.info
        if info.nd != ND_LOCAL:
            if not self._transit(info):
                raise FileNotFoundError(errno.ENOENT, "not exported")
            first, slash, rest = path.partition(b"/")
            name, _ = split(os.fsdecode(first))
            if name in (self._kernel.node_name, info.node):
                raise OSError(errno.ELOOP, "the way leads back")
            path = os.fsencode(name) + slash + rest
        return super()._walk(client, base, path)

    def _readdir(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        if client.info.nd == ND_LOCAL:
            super()._readdir(message, client, handle, flags)
        else:
            message.reply(0)

    # ---- attributes

    def connect_table(self) -> dict[Connect, Callable[[Message, NodeClient, ConnectRequest, Handle | None], None]]:
        return {**super().connect_table(), Connect.XATTR: self._xattr_path}

    def io_table(self) -> dict[Io, Callable[[Message, NodeClient, Handle, int], None]]:
        return {**super().io_table(), Io.XATTR: self._xattr_open}

    def _xattr_path(self, message: Message, client: NodeClient, request: ConnectRequest, base: Handle | None) -> None:
        asked = request.xattr
        assert asked is not None
        if asked.flags & XATTR_OF_NAME and client.info.nd == ND_LOCAL and request.path and b"/" not in request.path:
            told = self._tell(os.fsdecode(request.path))
            if told is None:
                raise FileNotFoundError(errno.ENOENT, "no such node")
            _answer(message, asked, told.values())
            return
        node, _, rest = self._walk(client, base, request.path)
        if not self._redirected(message, node, rest):
            self._of_net(message, client, asked)

    def _xattr_open(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        path, asked = parse_xattr(message.data)
        if path:
            raise OSError(errno.EINVAL, "an open file has no names below it")
        self._of_net(message, client, asked)

    def _of_net(self, message: Message, client: NodeClient, asked: XattrRequest) -> None:
        values: dict[bytes, bytes] = {}
        if client.info.nd == ND_LOCAL:
            names = sorted(self._nodes.names(), key=lambda name: (not self._nodes.reachable(name), name))
            wanted = names[:NODES_MAX] if asked.operation == XATTR_LIST else [os.fsdecode(asked.name.rpartition(b".")[2])]
            found = {name: self._tell(name) for name in (self._kernel.node_name, *wanted)}
            values = of_all({name: told for name, told in found.items() if told is not None})
        _answer(message, asked, values)

    def silent(self, nd: int, silent: bool) -> None:
        """Node *nd* is suspect, or was heard again: what its servers said it would tell is not believed meanwhile."""
        for tell in self.heeds:
            tell(nd, silent)

    def changed(self, name: str) -> None:
        """The node of that name came or went: the directory's times move on, and mounts forget what they believe of the entry."""
        self.root.changed = self._kernel.dispatch.wall()
        for tell in self.listeners:
            for entry in (name.encode(), *self._net.chosen.get(name, ())):
                tell(entry)


def _answer(message: Message, asked: XattrRequest, values: Mapping[bytes, bytes]) -> None:
    """What is known cannot be set."""
    if asked.operation == XATTR_GET:
        if asked.name not in values:
            raise OSError(errno.ENODATA, "nothing to say of that")
        found = values[asked.name]
    elif asked.operation == XATTR_LIST:
        found = b"".join(name + b"\0" for name in values)
    else:
        raise PermissionError(errno.EPERM, "what is known of nodes cannot be set")
    room = min(asked.size, XATTR_SIZE_MAX)
    if room and len(found) > room:
        raise OSError(errno.ERANGE, "more than there is room for")
    message.reply(0, found if room else LENGTH.pack(len(found)))
