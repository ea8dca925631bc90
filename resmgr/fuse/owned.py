"""What programs of this mount change in leased directories: what the answer says of a name is believed as what the server tells is.

The server does not tell the maker of a change of it, so the answer has to do. It is believed if nothing else was heard of the name between
the question and the answer, by an event or another request from here: then whatever comes after what was answered will be told. A request
that was given up counts until its late answer is there, since it may yet be carried out (docs/protocol/coherence.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resmgr.fuse.inode import same_type
from resmgr.fuse.lease import ABSENT_MAX, Lease, single

if TYPE_CHECKING:
    from resmgr.fuse.formats import AttrTuple
    from resmgr.fuse.inode import Node
    from resmgr.fuse.request import Request

LeasedName = tuple[Lease, bytes]
"""A name in a leased directory."""


def begins(request: Request, directory: Node, name: bytes) -> None:
    """*request* is about to change *name*; what is known of it is in doubt already."""
    lease = directory.lease
    if lease is None or not lease.whole:
        return
    known = lease.own.get(name)
    lease.own[name] = (1, request) if known is None else (known[0] + 1, None)
    if request.own is None:
        request.own = []
    request.own.append((lease, name))


def begins_on(request: Request, node: Node) -> bool:
    """*request* is about to change contents or attributes of *node*. Whether its answer may be believed."""
    parent = node.parent
    if parent is None or parent.lease is None or not parent.lease.whole or node.directory or not node.name_sure or node.aliases:
        return False
    begins(request, parent, node.name)
    return True


def ended(request: Request) -> None:
    """Its server has answered, or never will: `request.undisturbed` are the names of which nothing else was heard. Idempotent."""
    own, request.own = request.own, None
    if own is not None:
        request.undisturbed = [(lease, name) for lease, name in own if _end(request, lease, name)]


def _end(request: Request, lease: Lease, name: bytes) -> bool:
    count, only = lease.own.get(name, (0, None))
    if count > 1:
        lease.own[name] = (count - 1, None)
    else:
        lease.own.pop(name, None)
    return only is request


def believe_attr(request: Request, node: Node, attr: AttrTuple, now: float) -> None:
    """The answer to the request, which came at *now*, says *attr* of *node*, and that every change that is not in it will be told."""
    for lease, name in request.undisturbed:
        if lease.node is node.parent and name == node.name and attr[0] == node.ino and same_type(node, attr):
            if not lease.live or lease.node.lease is not lease or request.at < lease.since:
                continue
            node.tell(attr, now)
            lease.knows(node, request.user)
            if single(node):
                node.attr_sure = request.at


def believe(request: Request) -> None:
    """The request was carried out, and the nodes are as they are now: believe what can be."""
    for lease, name in request.undisturbed:
        node = lease.node
        straight = not request.hops and request.via is None
        if not straight or not lease.live or node.lease is not lease or request.at < lease.since:
            continue
        lease.changers.add(request.user)
        child = node.children.get(name)
        if child is not None:
            lease.told_absent.discard(name)
            lease.knows(child, request.user)
            lease.leads(child, request.at)
        elif len(lease.absent) < ABSENT_MAX:
            lease.absent[name] = (request.at, request.user)
            if lease.names is not None:
                lease.names.discard(name)
