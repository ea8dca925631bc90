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
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from qnetpy.nodes import NodeTable
from qnetpy.qos import split
from resmgr.channel import CHID_PATHMGR, ND_LOCAL, PID_SYSTEM, ClientInfo, Kernel, Message
from resmgr.ids import ND_BITS
from resmgr.iofunc.handle import Handle
from resmgr.iofunc.node import Directory, Elsewhere, Node, NodeClient, TreeManager
from resmgr.iomsg import Target

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
    ) -> None:
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
