"""What the kernel knows by number: nodes, the directory entries that it holds (`nodes` has the table of them).

A *node* is a place in the tree: server, parent and name. Only directories keep base handles, one for each connection (user) that needed
one; a leaf is addressed by its parent's handle and its name, or by its open file.
"""

from __future__ import annotations

from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.fuse.behind import Behind
from resmgr.fuse.changes import NEVER
from resmgr.fuse.formats import O_ACCMODE, AttrTuple

if TYPE_CHECKING:
    from resmgr.fuse.changes import Log
    from resmgr.fuse.lease import Lease
    from resmgr.fuse.listed import Record
    from resmgr.fuse.openfile import File
    from resmgr.fuse.removals import Removing
    from resmgr.fuse.servers import Server

STREAMS: Final = frozenset((S_IFCHR, S_IFIFO))
"""Each open of one has a node of its own: the kernel lets one program at a time write to an inode, and a write may wait for ever."""
JOINED: Final = frozenset((S_IFREG, S_IFBLK, S_IFSOCK))
"""Names of one such object are one node. Not those of a symbolic link: its text is cached for as long as the node lives."""
Version = tuple[int, int, int, int]
"""ino, change, mtime, size: when all are equal the data are."""


class Node:
    """See the head of this file. `attr` is the last that the server said, at `attr_at`; `told` is what the kernel was last told of it."""

    __slots__ = (
        "above",
        "ahead",
        "aliases",
        "allowed",
        "attr",
        "attr_at",
        "attr_sure",
        "behind",
        "cached",
        "changed",
        "children",
        "directory",
        "files",
        "fresh",
        "handles",
        "ino",
        "lease",
        "locks",
        "log",
        "lookups",
        "mode",
        "name",
        "name_sure",
        "named",
        "nodeid",
        "pages",
        "parent",
        "removing",
        "server",
        "sure_for",
        "told",
        "used",
        "via",
        "via_on",
    )

    def __init__(self, nodeid: int, parent: Node | None, name: bytes, server: Server, attr: AttrTuple) -> None:
        self.nodeid = nodeid
        self.parent = parent
        self.name = name
        self.above: tuple[bytes, ...] = ()
        """Of the root: names that lead to it from the mounted manager's."""
        self.named = True
        """Whether (parent, name) is believed to lead to it; False after it was removed or replaced."""
        self.aliases: dict[tuple[Node, bytes], None] | None = None
        """Further names of a file with several links; what was told last comes last."""
        self.allowed: tuple[tuple[int, int], int, float] | None = None
        """Of a file: who was told that he may use it, how, and when that was asked (`allowed`)."""
        self.server = server
        self.ino = attr[0]
        self.mode = attr[1]
        self.directory = S_IFMT(attr[1]) == S_IFDIR
        self.attr = attr
        self.attr_at = 0.0
        self.changed = NEVER
        """When it was last changed, as far as that is known here; a directory also when something was made, removed or moved in it."""
        self.log: Log | None = None
        """Of a directory: when what is in it was changed; `Logs` knows what it means that there is none."""
        self.fresh = False
        """`attr` is newer than what the kernel was told: one GETATTR may be answered from it."""
        self.told: AttrTuple | None = None
        self.pages: Version | None = None
        """The version that the kernel's cached pages were read at; None: not known."""
        self.cached = False
        """The kernel may have pages of it, of whatever version."""
        self.behind: Behind | None = None
        """Writes that the kernel was told are done; None: there never were any."""
        self.locks: dict[int, File] | None = None
        """Processes that have locked ranges of it, and through which open file."""
        self.removing: Removing | None = None
        """Of a directory: what is being removed from it that the kernel was told is gone; None: nothing."""
        self.lookups = 0
        self.children: dict[bytes, Node] = {}
        self.handles: dict[Connection, int] = {}
        self.used = 0.0
        """When a request last began to use one of them."""
        self.files: list[File] = []
        self.ahead: dict[Connection, Record] | None = None
        """What was read ahead of a directory, for each user; None: nothing."""
        self.via: tuple[int, bytes] | None = None
        """A leaf on another server than its parent's: base handle and path there."""
        self.via_on: Connection | None = None
        """The connection that the base handle is for."""
        self.lease: Lease | None = None
        """Changes in this directory are told by its server."""
        self.name_sure = 0.0
        self.attr_sure = 0.0
        """When the question was sent whose answer says where the name leads, and what the attributes are, if changes of that are told; else
        0."""
        self.sure_for: tuple[int, int] | None = None
        """The user who was told so; None: everybody may know."""

    def path(self) -> bytes:
        """Path from the mount's root, for people; the names may be outdated."""
        names: list[bytes] = []
        node = self
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        return b"/" + b"/".join(reversed(names))

    def way(self, connection: Connection) -> tuple[int, bytes] | None:
        """Base handle and path by which *connection* reaches what a redirect leads to; None: by its parent and name. The handle of another
        connection, perhaps of before its server was started anew, may be another object's by now. 0 is the root's."""
        via = self.via
        return via if via is None or not via[0] or connection is self.via_on else None

    def met(self, attr: AttrTuple) -> None:
        """A name leads to it, and its server said *attr* with that. When, and whether it stays so, is said afterwards."""
        self.attr = attr
        self.mode = attr[1]
        self.name_sure = self.attr_sure = 0.0

    def tell(self, attr: AttrTuple, at: float) -> None:
        """Its server said *attr* to a question of the time *at*. Whether that stays so, `leases` says afterwards."""
        self.attr = attr
        self.mode = attr[1]
        self.attr_at = at
        self.attr_sure = 0.0

    def doubt_attr(self) -> None:
        """What the kernel was told of its attributes is not so, and may not be answered from here."""
        self.told = None
        self.fresh = False

    def doubt_data(self) -> None:
        """Nor are its contents what they were: what its open files brought, and which version the kernel's pages are of."""
        self.doubt_attr()
        self.pages = None
        for file in self.files:
            file.data = None

    def version(self) -> Version:
        attr = self.attr
        return (attr[0], attr[12], attr[10], attr[6])

    def file_of(self, connection: Connection | None) -> File | None:
        """An open file of this node on *connection*; on any connection when that is None. A live one if there is one."""
        found = None
        for file in self.files:
            if connection is None or file.connection is connection:
                if not file.dead:
                    return file
                found = found or file
        return found

    def descriptor(self, connection: Connection | None, writable: bool = False) -> File | None:
        """What is open of this file on *connection*, for what may be done by a descriptor: the kernel does not say which, and the name may
        lead to another file by now. None: go by the name."""
        if connection is None or (self.named and self.mode & 0o170000 != S_IFREG):
            return None
        for file in self.files:
            if file.connection is connection and (file.flags & O_ACCMODE or not writable) and not (file.dead and self.named):
                return file
        return None


def same_type(node: Node, attr: AttrTuple) -> bool:
    """Whether *attr* can be the same object: type, and for a symbolic link the change value."""
    if (node.mode ^ attr[1]) & 0o170000:
        return False
    return attr[1] & 0o170000 != S_IFLNK or node.attr[12] == attr[12]
