"""One leased directory: what is covered by what its server tells (docs/protocol/coherence.md), and what speaks against that."""

from __future__ import annotations

from stat import S_IFMT, S_IFREG
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.fuse.changes import NEVER
from resmgr.fuse.storms import Storm

if TYPE_CHECKING:
    from array import array

    from resmgr.fuse.changes import Logs
    from resmgr.fuse.inode import Node
    from resmgr.fuse.known import Names
    from resmgr.fuse.request import Request
    from resmgr.fuse.servers import User

ABSENT_MAX: Final = 1024
"""Names of one directory remembered as not existing. Stops a directory of changing names from filling memory."""
SALT_BITS: Final = 48
"""Inode numbers of one server differ above these bits if they lie on different file systems."""


class Lease:
    """One leased directory. `node.children` are what is known of it, `absent` what is known not to be there, and since when."""

    __slots__ = (
        "absent",
        "again",
        "answered",
        "changers",
        "connection",
        "cookies",
        "ino",
        "kernel",
        "listed_at",
        "live",
        "logs",
        "names",
        "node",
        "opened",
        "own",
        "readers",
        "since",
        "sticky",
        "storm",
        "told_absent",
        "unlisted",
        "users",
        "whole",
    )

    def __init__(self, node: Node, connection: Connection, logs: Logs, since: float, opened: float, whole: bool) -> None:
        self.node = node
        self.logs = logs
        self.connection = connection
        self.ino = node.ino
        self.since = since
        self.opened = opened
        """When the question was sent whose answer began it."""
        self.whole = whole
        """What is in it and its attributes are told; else only its rights (`above`)."""
        self.kernel = False
        """What is in it may be told to everybody, so the kernel may believe it for long; else it is for the user who was told."""
        self.live = True
        self.again: dict[bytes, tuple[int, float]] = {}
        """Names that are told once more: kinds of their events, and when the last one came."""
        self.answered = NEVER
        """When the kernel was last told something under it."""
        self.absent: dict[bytes, tuple[float, User]] = {}
        self.told_absent: set[bytes] = set()
        """Names that the kernel may believe not to exist. More than `absent`: what fails here may have been done there."""
        self.users: set[User] = set()
        """Who may search it, by what the server answered them."""
        self.readers: set[User] = set()
        """Who could open it."""
        self.unlisted = False
        """Who had it open last did not list it, but had it synced, or found by it what lies in it: so may the next."""
        self.changers: set[User] = set()
        """Who could make, remove or move something in it: who may do one may do all."""
        self.sticky = True
        """Who may remove what from it depends on whose it is; also where that is not known."""
        self.listed_at = NEVER
        """When the listing was asked for that the kernel has read to the end under this lease."""
        self.own: dict[bytes, tuple[int, Request | None]] = {}
        """Names that requests from here are changing: how many, and the only one if nothing else is heard of the name meanwhile."""
        self.names: Names | None = None
        """All that are in it, if that is known."""
        self.storm = Storm()
        self.cookies: array[int] | None = None
        """What the positions in that listing mean."""

    def covers(self, name: bytes, at: float) -> bool:
        """Whether what was asked at *at* about *name* is still so."""
        return self.whole and self.live and (at >= self.since or at == self.opened) and not self.logs.since(self.node, name, at)

    def holds(self, at: float) -> bool:
        """Whether what was asked at *at* about the directory itself, or all that is in it, is still so."""
        return self.live and (at >= self.since or at == self.opened) and at > self.node.changed

    def doubt(self, name: bytes) -> None:
        """Whether *name* is there, or where it leads, is in doubt."""
        self.absent.pop(name, None)
        if self.names is not None:
            self.names.add(name)
        self.meddle(name)

    def meddle(self, name: bytes) -> None:
        """Something was heard of *name*, or of what it leads to, while requests from here may be changing it."""
        if self.own and name in self.own:
            self.own[name] = (self.own[name][0], None)

    def overtaken(self, name: bytes, at: float) -> bool:
        """Whether the server has told of a change of *name* since *at*: an answer asked for then may be older, and nobody will say so."""
        return self.logs.heard_since(self.node, name, at)

    def entered(self, child: Node, name: bytes, at: float, user: User) -> None:
        """*user* was told that *name* leads to *child*, with attributes, in an answer asked for at *at*."""
        self.knows(child, user)
        if self.covers(name, at) and self.leads(child, at) and not child.directory and single(child) and at > child.changed:
            child.attr_sure = at

    def leads(self, child: Node, at: float) -> bool:
        """That a name of it leads to *child* is sure as of *at*, unless *child* is what its server does not tell of; whether it is."""
        if not self.has(child):
            return False
        child.name_sure = at
        return True

    def has(self, child: Node) -> bool:
        """Whether *child*, to which a name of it leads, lies on its server and file system: else nothing of it is told."""
        return child.server is self.node.server and not (child.ino ^ self.node.ino) >> SALT_BITS

    def knows(self, child: Node, user: User) -> None:
        """*user* was told something of *child*: what another was told is not sure any more, unless everybody may know it."""
        whom = None if self.kernel else user
        if child.sure_for != whom:
            child.sure_for = whom
            child.name_sure = child.attr_sure = 0.0


def single(node: Node) -> bool:
    """Whether nothing but its one name leads to it."""
    return not node.aliases and (node.attr[2] <= 1 or S_IFMT(node.mode) != S_IFREG)
