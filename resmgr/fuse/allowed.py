"""What access(2) and chdir(2) ask, answered from what servers answered before (docs/protocol/coherence.md).

In a leased directory the server tells of every change of rights, so who was let in is let in again: who searched or opened a directory may
search or open it, and who was told that he may use a file may use it so until something of its name is told, or is changed from here.
Refusals are not remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resmgr.fuse.lease import single

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.inode import Node
    from resmgr.fuse.request import Request

SEARCH: Final = 1
READ: Final = 4


def known(core: Core, request: Request, mask: int) -> bool:
    """Whether the request's user may use its node as *mask* (R_OK and so on) says, as far as it is known here."""
    node, user = request.node, request.user
    if node.directory:
        lease = node.lease
        if lease is None or not lease.live or not lease.whole or not mask or mask & ~(READ | SEARCH):
            return False
        found = (not mask & SEARCH or user in lease.users) and (not mask & READ or user in lease.readers)
    else:
        allowed = node.allowed
        if allowed is None or allowed[0] != user or mask & ~allowed[1]:
            return False
        found = allowed[2] > request.at - core.leases.seconds and _told(node, allowed[2])
    if found:
        core.drops["lease_hits"] += 1
        core.at_home = True
    return found


def learn(request: Request, mask: int) -> None:
    """The server said that the request's user may."""
    node = request.node
    if node.directory or not _told(node, request.at):
        return
    before = node.allowed
    if before is not None and before[0] == request.user and _told(node, before[2]):
        # As old as the older one.
        node.allowed = (request.user, mask | before[1], before[2])
    else:
        node.allowed = (request.user, mask, request.at)


def _told(node: Node, at: float) -> bool:
    """Whether what was asked at *at* of the file *node* is so until its server tells of it."""
    parent = node.parent
    if parent is None or not node.named or parent.lease is None:
        return False
    return parent.lease.has(node) and single(node) and parent.lease.covers(node.name, at)
