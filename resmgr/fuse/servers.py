"""The servers behind a mount, one connection to each per user, and what the targets in their replies mean on this node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from resmgr.channel import CHID_PATHMGR, ND_LOCAL, PID_SYSTEM, Connection, Credentials, Kernel, Nd
from resmgr.errors import BadMessage
from resmgr.fuse.changes import NEVER
from resmgr.fuse.formats import MASK64
from resmgr.iomsg import Target

if TYPE_CHECKING:
    from resmgr.fuse.inode import Node

SERVERS_OF_NODE: Final = 1024
"""Servers of one node that are remembered. Beyond, those of which nothing is known any more are forgotten. Stops a node that says of each
name that another server has it."""
SWEEP_REST: Final = 1.0
"""Seconds between two looks for such."""
User = tuple[int, int]
"""uid, gid of a request."""


def mix(key: tuple[int, int, int]) -> int:
    """What tells servers apart inside st_ino: the upper 32 bits of splitmix64's finisher over the server's address. The lower are left, for
    programs go through a directory by inode number, which is how it lies on the server's disk."""
    value = (key[0] * 0x9E3779B97F4A7C15 + key[1] * 0xBF58476D1CE4E5B9 + key[2] * 0x94D049BB133111EB) & MASK64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MASK64
    return (value ^ value >> 31) & ~0xFFFFFFFF


class Server:
    """A manager that nodes belong to: its address as this node sees it, one connection per user, and what targets in its replies mean."""

    __slots__ = (
        "connections", "files", "gives_tokens", "key", "no_devctl", "no_directories", "no_name_attributes", "no_notify", "no_tokens",
        "no_xattr", "salt", "targets",
    )  # fmt: skip

    def __init__(self, key: tuple[int, int, int], salt: int) -> None:
        self.key = key
        self.salt = salt
        self.connections: dict[tuple[int, int], Connection] = {}
        self.targets: dict[tuple[int, int, int], Server] = {}
        self.files: dict[int, Node] = {}
        """Nodes of its files by inode number, of those with the same number the last (`nodes`)."""
        self.no_notify: set[int] = set()
        self.no_devctl: set[int] = set()
        """Types of nodes (S_IFREG, ...) of which it has said that it has no such handler for them."""
        self.gives_tokens = False
        """It has given one."""
        self.no_tokens = False
        """It does not know how to open anything again (`reopen`)."""
        self.no_directories = False
        """It knows that of files only (`tokens`)."""
        self.no_xattr = False
        """It has said that it knows no extended attributes."""
        self.no_name_attributes = False
        """It tells nothing of names that lead on from it to other servers."""

    @property
    def target(self) -> Target:
        return Target(*self.key)


class Resolver(Protocol):
    """Makes the connections of a mount. The mount keeps them, one per server and user, and closes them."""

    def connection(self, target: Target, via: Connection | None, uid: int, gid: int) -> Connection:
        """A connection to *target*, which is as seen by the server behind *via* (`nd` 0: its node); None: as seen by this node."""
        ...


class KernelResolver:
    """`nd` 0 in a target is the replying node. Other numbers are this node's: only its own servers' replies may have them (see `onward`).

    *groups* tells a user's supplementary groups, which the kernel's requests do not carry; without it there are none.
    """

    def __init__(self, kernel: Kernel, groups: Callable[[int, int], tuple[int, ...]] | None = None) -> None:
        self._kernel = kernel
        self._groups = groups

    def connection(self, target: Target, via: Connection | None, uid: int, gid: int) -> Connection:
        nd = ND_LOCAL if via is None else via.nd
        groups = () if self._groups is None else self._groups(uid, gid)
        return self._kernel.connect(Nd(target.nd) if target.nd else nd, target.pid, target.chid, Credentials(uid, gid, groups, PID_SYSTEM))


class Servers:
    """Servers that were met, by address. `root` is the mount's. *now*: as of `Dispatch`; *in_use*: those that something known here is
    of, or that are being asked."""

    def __init__(self, resolver: Resolver, root: Target, now: Callable[[], float], in_use: Callable[[], set[Server]]) -> None:
        self._resolver = resolver
        self._now = now
        self._in_use = in_use
        self._count: dict[int, int] = defaultdict(int)
        """Of each node."""
        self._swept: dict[int, float] = {}
        """When those of a node were looked through."""
        key = (root.nd, root.pid, root.chid)
        self.on_death: Callable[[Connection], None] = lambda connection: None
        """Called when the server behind a connection, or its node, is not there any more, or is forgotten."""
        self._by_key: dict[tuple[int, int, int], Server] = {}
        self.root = self.at(key, 0)
        home = (int(ND_LOCAL), int(PID_SYSTEM), int(CHID_PATHMGR))
        self.home = self.at(home, mix(home))
        """This node's path manager."""
        self._by_connection: dict[Connection, Server] = {}

    def of(self, connection: Connection) -> Server:
        """The server behind a connection."""
        found = self._by_connection.get(connection)
        if found is not None:
            return found
        key = (connection.nd, connection.pid, connection.chid)
        return self.at(key, mix(key))

    def lives(self, connection: Connection) -> bool:
        """Whether *connection* is one of this mount's whose server was not seen to go."""
        return connection in self._by_connection

    def at(self, key: tuple[int, int, int], salt: int) -> Server:
        """The server at an address. *salt*: of its inode numbers, if it is new here."""
        server = self._by_key.get(key)
        if server is None:
            server = self._by_key[key] = Server(key, salt)
            self._count[key[0]] += 1
        return server

    def connect(self, server: Server, user: User) -> Connection:
        """The connection of *user* to *server*, made if there is none."""
        connection = server.connections.get(user)
        if connection is None:
            connection = self._resolver.connection(server.target, None, *user)
            self._adopt(server, user, connection)
        return connection

    def translate(self, via: Connection, target: tuple[int, int, int], user: User) -> Connection:
        """The connection of *user* to what the server behind *via* calls *target*. `BadMessage`: it is one too many."""
        origin = self.of(via)
        server = origin.targets.get(target)
        if server is not None and user in server.connections:
            return server.connections[user]
        nd = target[0] or int(via.nd)
        if self._count[nd] >= SERVERS_OF_NODE and (nd, target[1], target[2]) not in self._by_key:
            self._make_room(nd)
        connection = self._resolver.connection(Target(*target), via, *user)
        server = origin.targets[target] = self.of(connection)
        known = server.connections.get(user)
        if known is not None:
            if known is not connection:
                connection.close()
            return known
        self._adopt(server, user, connection)
        return connection

    def _make_room(self, nd: int) -> None:
        """Forget servers of a node of which nothing is known any more. `BadMessage`: there is none."""
        now = self._now()
        if now - self._swept.get(nd, NEVER) >= SWEEP_REST:
            self._swept[nd] = now
            used = self._in_use() | {self.root, self.home}
            for server in [one for one in self._by_key.values() if one.key[0] == nd and one not in used]:
                del self._by_key[server.key]
                self._count[nd] -= 1
                for connection in list(server.connections.values()):
                    self._by_connection.pop(connection, None)
                    connection.on_death = None
                    connection.close()
                    self.on_death(connection)
            for server in self._by_key.values():
                server.targets.clear()
        if self._count[nd] >= SERVERS_OF_NODE:
            raise BadMessage("more servers than a node has")

    def _adopt(self, server: Server, user: User, connection: Connection) -> None:
        server.connections[user] = connection
        self._by_connection[connection] = server

        def died(gone: Connection) -> None:
            self._by_connection.pop(gone, None)
            if server.connections.get(user) is gone:
                del server.connections[user]
                server.targets.clear()
            self.on_death(gone)

        connection.on_death = died

    def close(self) -> None:
        """Close every connection, and with it all handles."""
        for server in self._by_key.values():
            connections = list(server.connections.values())
            server.connections.clear()
            for connection in connections:
                connection.on_death = None
                connection.close()
        self._by_connection.clear()
