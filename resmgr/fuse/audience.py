"""Who may know what is in a leased directory: everybody, so that the kernel may believe it for long, or each user what that user was told.

The kernel checks nothing on a mount with `Permissions.SERVER`, and has one cache for all users. So everybody may know it only if all may
search the directory, and the same is certain of every directory that it lies in, up to the root of its server's tree. Of one that is not
leased nothing is certain, whatever its mode: there may be an ACL, or another export for each user.
"""

from __future__ import annotations

from collections.abc import Callable
from stat import S_ISVTX
from typing import TYPE_CHECKING

from resmgr.channel import ND_LOCAL
from resmgr.fuse.changes import NEVER
from resmgr.fuse.options import FuseOptions, Permissions

if TYPE_CHECKING:
    from resmgr.fuse.above import Above
    from resmgr.fuse.inode import Node
    from resmgr.fuse.lease import Lease


class Audience:
    """Of the leases of one mount. *above*: asks for the watches that are missing. *anew* is given a lease of which everybody was told what
    now only some may know: all that the kernel has of it is to be forgotten."""

    def __init__(self, options: FuseOptions, above: Above, anew: Callable[[Lease], None]) -> None:
        self._everybody = options.permissions is Permissions.KERNEL_AND_SERVER or not options.allow_other
        """Of all directories: the kernel checks who asks, or there is only one who may."""
        self._above = above
        self._anew = anew

    def judge(self, lease: Lease) -> None:
        """The rights of its directory were told, perhaps for the first time."""
        lease.sticky = bool(lease.node.attr[1] & S_ISVTX)
        public = self._public(lease.node)
        if lease.kernel and not public:
            self._private(lease)
        elif public and not lease.kernel:
            self._publish(lease)

    def doubt(self, lease: Lease) -> None:
        """The rights of its directory may not be what they were: who may search and list it is for its server to say again."""
        lease.users.clear()
        lease.readers.clear()
        lease.changers.clear()
        lease.sticky = True
        self._private(lease)

    def ended(self, node: Node) -> None:
        """*node* is not leased any more: what lies below is not certain."""
        for lease in _leased_below(node):
            if lease.kernel:
                self._private(lease)

    def _public(self, node: Node) -> bool:
        if self._everybody:
            return True
        if node.attr[1] & 0o111 != 0o111:
            return False
        parent = node.parent
        if parent is None or (parent.parent is None and parent.server.key[0] == ND_LOCAL and node.server is not parent.server):
            # A node's name in /net, which everybody may know.
            return True
        if parent.lease is None and node.lease is not None:
            self._above.ask(parent, node, node.lease.connection)
        return parent.lease is not None and parent.lease.kernel

    def _publish(self, lease: Lease) -> None:
        """Everybody may know what is in it, and so perhaps what is below."""
        beginning = [lease]
        while beginning:
            lease = beginning.pop()
            lease.kernel = True
            # The listing that the kernel has is that of one user.
            lease.listed_at = NEVER
            lease.readers.clear()
            beginning += [below for below in _leased_below(lease.node) if not below.kernel and self._public(below.node)]

    def _private(self, lease: Lease) -> None:
        """It is not certain any more that everybody may know what is in it, nor of what is below."""
        if self._everybody:
            return
        ending = [lease] if lease.kernel else []
        while ending:
            lease = ending.pop()
            lease.kernel = False
            lease.users.clear()
            lease.readers.clear()
            self._anew(lease)
            for child in lease.node.children.values():
                child.attr_sure = 0.0
            ending += [below for below in _leased_below(lease.node) if below.kernel]


def _leased_below(node: Node) -> list[Lease]:
    return [child.lease for child in node.children.values() if child.lease is not None]
