"""What the kernel knows by number: nodes (directory entries it holds) and open files.

A *node* is a place in the tree: server, parent and name. The kernel counts the lookups it was given and takes them back with FORGET; a node
lives while the count is not zero, while it is open, and while nodes below it live (their path leads through it). Only directories keep base
handles, one for each connection (user) that needed one; a leaf is addressed by its parent's handle and its name, or by its open file.

Nodes are found again by (parent, name) and the identity that the server tells: inode number, type, and for symbolic links the change
value (their text never changes, so the kernel may cache it). Another identity under the same name is another node. A regular file (block
device, socket) with several links is also found by its inode number, so that all its names share pages and attributes in the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.fuse.behind import Behind
from resmgr.fuse.formats import MASK64, ROOT_ID, AttrTuple
from resmgr.iomsg import Target
from resmgr.iorequest import LockRequest

if TYPE_CHECKING:
    from resmgr.fuse.lease import Lease
    from resmgr.fuse.listed import Record
    from resmgr.fuse.polling import Armed

STREAMS: Final = frozenset((S_IFCHR, S_IFIFO))
"""Each open of one has a node of its own: the kernel lets one program at a time write to an inode, and a write may wait for ever."""
JOINED: Final = frozenset((S_IFREG, S_IFBLK, S_IFSOCK))
"""Names of one such object are one node. Not those of a symbolic link: its text is cached for as long as the node lives."""
Version = tuple[int, int, int, int]
"""ino, change, mtime, size: when all are equal the data are."""


def mix(key: tuple[int, int, int]) -> int:
    """64 bits that tell servers apart inside st_ino (splitmix64's finisher over the server's address)."""
    value = (key[0] * 0x9E3779B97F4A7C15 + key[1] * 0xBF58476D1CE4E5B9 + key[2] * 0x94D049BB133111EB) & MASK64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MASK64
    return value ^ value >> 31


class Server:
    """A manager that nodes belong to: its address as this node sees it, one connection per user, and what targets in its replies mean."""

    __slots__ = (
        "connections", "gives_tokens", "key", "no_devctl", "no_name_attributes", "no_notify", "no_tokens", "no_xattr", "salt", "targets",
    )  # fmt: skip

    def __init__(self, key: tuple[int, int, int], salt: int) -> None:
        self.key = key
        self.salt = salt
        self.connections: dict[tuple[int, int], Connection] = {}
        self.targets: dict[tuple[int, int, int], Server] = {}
        self.no_notify: set[int] = set()
        self.no_devctl: set[int] = set()
        """Types of nodes (S_IFREG, ...) of which it has said that it has no such handler for them."""
        self.gives_tokens = False
        """It has given one."""
        self.no_tokens = False
        """It does not know how to open anything again (`reopen`)."""
        self.no_xattr = False
        """It has said that it knows no extended attributes."""
        self.no_name_attributes = False
        """It tells nothing of names that lead on from it to other servers."""

    @property
    def target(self) -> Target:
        return Target(*self.key)


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
        "children",
        "directory",
        "files",
        "fresh",
        "handles",
        "ino",
        "lease",
        "locks",
        "lookups",
        "mode",
        "name",
        "name_sure",
        "named",
        "nodeid",
        "pages",
        "parent",
        "server",
        "sure_for",
        "told",
        "via",
    )

    def __init__(self, nodeid: int, parent: Node | None, name: bytes, server: Server, attr: AttrTuple) -> None:
        self.nodeid = nodeid
        self.parent = parent
        self.name = name
        self.above: tuple[bytes, ...] = ()
        """Of the root: names that lead to it from the mounted manager's."""
        self.named = True
        """Whether (parent, name) is believed to lead to it; False after it was removed or replaced."""
        self.aliases: list[tuple[Node, bytes]] | None = None
        """Further names of a file with several links."""
        self.allowed: tuple[tuple[int, int], int, float] | None = None
        """Of a file: who was told that he may use it, how, and when that was asked (`allowed`)."""
        self.server = server
        self.ino = attr[0]
        self.mode = attr[1]
        self.directory = S_IFMT(attr[1]) == S_IFDIR
        self.attr = attr
        self.attr_at = 0.0
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
        self.lookups = 0
        self.children: dict[bytes, Node] = {}
        self.handles: dict[Connection, int] = {}
        self.files: list[File] = []
        self.ahead: dict[Connection, Record] | None = None
        """What was read ahead of a directory, for each user; None: nothing."""
        self.via: tuple[int, bytes] | None = None
        """A leaf on another server than its parent's: base handle and path there."""
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
        """An open file of this node on *connection*; on any connection when that is None."""
        for file in self.files:
            if connection is None or file.connection is connection:
                return file
        return None


class File:
    """An open file: the server's OCB, and first bytes that came with the reply to open."""

    __slots__ = (
        "armed",
        "as_opened",
        "connection",
        "data",
        "data_at",
        "data_ends",
        "dead",
        "error",
        "fh",
        "flags",
        "held",
        "locked",
        "node",
        "ocb",
        "synced",
        "token",
        "unseen",
        "waiting",
        "writes",
        "written",
    )

    def __init__(self, fh: int, node: Node, connection: Connection, ocb: int, flags: int) -> None:
        self.fh = fh
        self.node = node
        self.connection = connection
        self.ocb = ocb
        self.flags = flags
        self.data: Buffer | None = None
        self.data_at = 0.0
        self.data_ends = False
        """`data` ended at the end of the file."""
        self.armed: Armed | None = None
        """Waits at the server for what pollers want."""
        self.locked = False
        """Something may be locked through it."""
        self.writes = 0
        """WRITE messages under way."""
        self.written = 0
        """WRITEs that were acknowledged so far."""
        self.synced = 0
        """Of these, before the last fsync that succeeded."""
        self.dead = False
        """The OCB is not valid any more."""
        self.token = b""
        """With which its server opens it again; none: it does not."""
        self.as_opened: Version | None = None
        """Without a token: what it was when it was opened, if that still says which file it is."""
        self.held: list[LockRequest] = []
        """Locks taken through it."""
        self.error = 0
        """errno of a write whose caller was not told; the next WRITE, FLUSH or FSYNC tells it."""
        self.unseen = False
        """`error` is that of a write through this file, and nobody was told yet."""
        self.waiting: list[Callable[[], None]] = []
        """Called when `writes` is 0 again."""

    def take_error(self) -> int:
        """The errno to tell now, which is then told."""
        code, self.error = self.error, 0
        self.unseen = False
        return code


class NodeTable:
    """All nodes. `closed(node)` is called for a node that leaves, so that its base handles can be closed."""

    def __init__(self, root_server: Server, closed: Callable[[Node], None]) -> None:
        unknown: AttrTuple = (0, S_IFDIR | 0o755, 2, 0, 0, 0, 0, 0, 4096, 0, 0, 0, 0)
        self.root = Node(ROOT_ID, None, b"", root_server, unknown)
        self.root.lookups = 1
        self._nodes: dict[int, Node] = {ROOT_ID: self.root}
        self._linked: dict[tuple[Server, int], Node] = {}
        self.next = ROOT_ID + 1
        """The number of the next one."""
        self._closed = closed
        self.get = self._nodes.get

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))

    def enter(self, parent: Node, name: bytes, server: Server, attr: AttrTuple) -> Node:
        """The node that *name* in *parent* leads to, by what the server just said. Its lookup count is not changed."""
        child = parent.children.get(name)
        if child is not None:
            in_use = attr[1] & 0o170000 in STREAMS and child.files
            if child.server is server and child.ino == attr[0] and same_type(child, attr) and not in_use:
                child.attr = attr
                child.name_sure = child.attr_sure = 0.0
                child.mode = attr[1]
                return child
            self.unname(child, parent, name)
        if attr[2] > 1 and attr[1] & 0o170000 in JOINED and attr[0]:
            known = self._linked.get((server, attr[0]))
            if known is not None and known.nodeid in self._nodes:
                known.attr = attr
                known.name_sure = known.attr_sure = 0.0
                known.mode = attr[1]
                self.add_name(known, parent, name)
                return known
        node = Node(self.next, parent, name, server, attr)
        self._nodes[self.next] = node
        self.next += 1
        parent.children[name] = node
        if attr[2] > 1 and attr[1] & 0o170000 in JOINED and attr[0]:
            self._linked[server, attr[0]] = node
        return node

    def put(self, node: Node, parent: Node) -> None:
        """A node that the kernel knew before this table was made, in *parent*, which was put before."""
        self._nodes[node.nodeid] = node
        if node.named:
            parent.children[node.name] = node
        self.linked(node)

    def linked(self, node: Node) -> None:
        """*node* is found by its inode number, too, if it may have several names."""
        if node.attr[2] > 1 and node.mode & 0o170000 in JOINED and node.ino:
            self._linked[node.server, node.ino] = node

    def enter_nameless(self, parent: Node, server: Server, attr: AttrTuple) -> Node:
        """A node for a file that was made in *parent* without a name."""
        node = Node(self.next, parent, b"", server, attr)
        node.named = False
        self._nodes[self.next] = node
        self.next += 1
        return node

    def add_name(self, node: Node, parent: Node, name: bytes) -> None:
        """*node* is also, or now, *name* in *parent*; whatever had that name has it no more."""
        other = parent.children.get(name)
        if other is node:
            return
        if other is not None:
            self.unname(other, parent, name)
        parent.children[name] = node
        old = node.parent
        if node.named and old is not None:
            if node.aliases is None:
                node.aliases = []
            node.aliases.append((parent, name))
            self._linked[node.server, node.ino] = node
        else:
            node.parent = parent
            node.name = name
            node.named = True

    def unname(self, node: Node, parent: Node, name: bytes) -> None:
        """*name* in *parent* leads to *node* no more."""
        if parent.children.get(name) is node:
            del parent.children[name]
        if node.parent is parent and node.name == name:
            if node.aliases:
                node.parent, node.name = node.aliases.pop()
            else:
                node.named = False
        elif node.aliases and (parent, name) in node.aliases:
            node.aliases.remove((parent, name))
        self.settle(node)
        self.settle(parent)

    def rename(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, exchange: bool) -> None:
        """A rename was done. Whatever had the new name lost it (or has the old one now)."""
        moved = parent.children.get(name)
        other = new_parent.children.get(new_name)
        if moved is not None and moved is other:
            return
        if other is not None:
            self._move(other, new_parent, new_name)
        if moved is not None:
            self._move(moved, parent, name)
            self.add_name(moved, new_parent, new_name)
        if other is not None:
            if exchange:
                self.add_name(other, parent, name)
            self.settle(other)
        self.settle(parent)

    def _move(self, node: Node, parent: Node, name: bytes) -> None:
        del parent.children[name]
        if node.parent is parent and node.name == name:
            if node.aliases:
                node.parent, node.name = node.aliases.pop()
            else:
                node.named = False
        elif node.aliases and (parent, name) in node.aliases:
            node.aliases.remove((parent, name))

    def forget(self, node: Node, count: int) -> None:
        """The kernel gives *count* lookups back; more than it had counts as all."""
        node.lookups = max(0, node.lookups - count)
        if node.lookups == 0:
            self.settle(node)

    def settle(self, node: Node | None) -> None:
        """Let *node* go if nothing needs it any more, then perhaps its parent."""
        while node is not None and node.parent is not None and not node.lookups and not node.children and not node.files:
            if self._nodes.pop(node.nodeid, None) is None:
                return
            if self._linked.get((node.server, node.ino)) is node:
                del self._linked[node.server, node.ino]
            parent = node.parent
            for holder, name in [(parent, node.name), *(node.aliases or ())]:
                if holder.children.get(name) is node:
                    del holder.children[name]
                    if holder is not parent:
                        self.settle(holder)
            self._closed(node)
            node = parent

    def rebind(self, node: Node, attr: AttrTuple) -> None:
        """The name leads to another file of the same type now, and nothing has the old one open: the node becomes the new file."""
        if self._linked.get((node.server, node.ino)) is node:
            del self._linked[node.server, node.ino]
        for holder, name in node.aliases or ():
            if holder.children.get(name) is node:
                del holder.children[name]
        node.ino = attr[0]
        node.aliases = None
        node.pages = None


def same_type(node: Node, attr: AttrTuple) -> bool:
    """Whether *attr* can be the same object: type, and for a symbolic link the change value."""
    if (node.mode ^ attr[1]) & 0o170000:
        return False
    return attr[1] & 0o170000 != S_IFLNK or node.attr[12] == attr[12]
