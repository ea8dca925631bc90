"""The table of nodes, by the kernel's numbers.

The kernel counts the lookups it was given and takes them back with FORGET; a node lives while the count is not zero, while it is open,
while nodes below it live (their path leads through it), and while removals from it are on the way (who looks it up again waits for them).

Nodes are found again by (parent, name) and the identity that the server tells: inode number, type, and for symbolic links the change
value (their text never changes, so the kernel may cache it). Another identity under the same name is another node. A regular file (block
device, socket) that is open here or has several links is also found by its inode number, so that all its names share pages, attributes and
what is on the way to its server. What is open keeps its number at the server; that of what has one link and is not open may be used again.

Of several names (`aliases`) the node's own is the one by which the server told it last: the kernel does not say by which it means a node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from stat import S_IFDIR

from resmgr.fuse.formats import ROOT_ID, AttrTuple
from resmgr.fuse.inode import JOINED, STREAMS, Node, same_type
from resmgr.fuse.servers import Server


class NodeTable:
    """All nodes. `closed(node)` is called for a node that leaves, so that its base handles can be closed; `gone(parent, name)` for a name
    that leads nowhere any more, since its file has another one and the server says that it has no more than that."""

    def __init__(self, root_server: Server, closed: Callable[[Node], None], gone: Callable[[Node, bytes], None]) -> None:
        unknown: AttrTuple = (0, S_IFDIR | 0o755, 2, 0, 0, 0, 0, 0, 4096, 0, 0, 0, 0)
        self.root = Node(ROOT_ID, None, b"", root_server, unknown)
        self.root.lookups = 1
        self._nodes: dict[int, Node] = {ROOT_ID: self.root}
        self.next = ROOT_ID + 1
        """The number of the next one."""
        self._closed = closed
        self._gone = gone
        self.get = self._nodes.get

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))

    def enter(self, parent: Node, name: bytes, server: Server, attr: AttrTuple) -> Node:
        """The node that *name* in *parent* leads to, by what the server just said. Its lookup count is not changed."""
        known = self.of(server, attr)
        child = parent.children.get(name)
        if child is not None:
            in_use = attr[1] & 0o170000 in STREAMS and child.files
            better = known is not None and known is not child and not child.files
            if child.server is server and child.ino == attr[0] and same_type(child, attr) and not in_use and not better:
                if child.aliases:
                    self._told_by(child, parent, name)
                child.met(attr)
                return child
            self.unname(child, parent, name)
        if known is not None:
            known.met(attr)
            # Who may use it by another name need not by this one: exports are of paths.
            known.allowed = None
            self.add_name(known, parent, name)
            self._outnumbered(known)
            return known
        node = Node(self.next, parent, name, server, attr)
        self._nodes[self.next] = node
        self.next += 1
        parent.children[name] = node
        self.number(node)
        return node

    def of(self, server: Server, attr: AttrTuple) -> Node | None:
        """The node of the file that *server* says *attr* of, by its inode number; None: it is told by its names only."""
        known = server.files.get(attr[0])
        if known is None or (known.mode ^ attr[1]) & 0o170000 or not (attr[2] > 1 or _pinned(known)):
            return None
        return known

    def put(self, node: Node, parent: Node) -> None:
        """A node that the kernel knew before this table was made, in *parent*, which was put before."""
        self._nodes[node.nodeid] = node
        if node.named:
            parent.children[node.name] = node
        self.number(node)

    def number(self, node: Node) -> None:
        """*node*, the last one made with its inode number, or opened, is found by it, too, if that says which file it is."""
        if node.mode & 0o170000 in JOINED and node.ino:
            node.server.files[node.ino] = node

    def _unnumber(self, node: Node) -> None:
        if node.server.files.get(node.ino) is node:
            del node.server.files[node.ino]

    def enter_nameless(self, parent: Node, server: Server, attr: AttrTuple) -> Node:
        """A node for a file that was made in *parent* without a name."""
        node = Node(self.next, parent, b"", server, attr)
        node.named = False
        self._nodes[self.next] = node
        self.next += 1
        self.number(node)
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
                node.aliases = {}
            node.aliases[old, node.name] = None
        node.parent = parent
        node.name = name
        node.named = True

    def _told_by(self, node: Node, parent: Node, name: bytes) -> None:
        """*name* in *parent*, one of several of *node*, was told last."""
        old, aliases = node.parent, node.aliases
        if aliases is not None and old is not None and (parent, name) in aliases:
            del aliases[parent, name]
            aliases[old, node.name] = None
            node.parent = parent
            node.name = name

    def _outnumbered(self, node: Node) -> None:
        """The names of *node* that were told first are not there any more, if there are more than its server counts."""
        while node.aliases and len(node.aliases) >= max(1, node.attr[2]):
            parent, name = next(iter(node.aliases))
            self.unname(node, parent, name)
            self._gone(parent, name)

    def unname(self, node: Node, parent: Node, name: bytes) -> None:
        """*name* in *parent* leads to *node* no more."""
        self._move(node, parent, name)
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
        """`unname`, but *node* stays, as it gets another name now."""
        if parent.children.get(name) is node:
            del parent.children[name]
        if node.parent is parent and node.name == name:
            if node.aliases:
                (node.parent, node.name), _ = node.aliases.popitem()
            else:
                node.named = False
        elif node.aliases and (parent, name) in node.aliases:
            del node.aliases[parent, name]

    def forget(self, node: Node, count: int) -> None:
        """The kernel gives *count* lookups back; more than it had counts as all."""
        node.lookups = max(0, node.lookups - count)
        if node.lookups == 0:
            self.settle(node)

    def settle(self, node: Node | None) -> None:
        """Let *node* go if nothing needs it any more, then perhaps its parent."""
        while node is not None and node.parent is not None and not node.lookups and not node.children and not node.files:
            if node.removing is not None and node.removing.names:
                return
            if self._nodes.pop(node.nodeid, None) is None:
                return
            self._unnumber(node)
            parent = node.parent
            for holder, name in [(parent, node.name), *(node.aliases or ())]:
                if holder.children.get(name) is node:
                    del holder.children[name]
                    if holder is not parent:
                        self.settle(holder)
            self._closed(node)
            node = parent

    def rebind(self, node: Node, attr: AttrTuple) -> None:
        """Its only name leads to another file of the same type now, and nothing has the old one open: the node becomes the new file."""
        self._unnumber(node)
        node.ino = attr[0]
        node.pages = None
        self.number(node)


def _pinned(node: Node) -> bool:
    """Whether its server has it open for us, so that its inode number is its own."""
    file = node.file_of(None)
    return file is not None and not file.dead
