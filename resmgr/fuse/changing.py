"""What programs of this mount change, or find changed: whoever believes something of it is told, when it begins and when it is over.

From when a request that changes something is about to be sent until it is answered, nothing older is believed; whoever asked meanwhile may
have heard what was before. What can be believed of the answer itself is in `owned`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from resmgr.fuse import owned
from resmgr.fuse.inode import Node

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.request import Request


class Change(NamedTuple):
    """Of *name* in *directory*: where it leads, if there is one; with *node* only that one's attributes. `contents`: also its contents;
    `rights`: also who may do what with it."""

    directory: Node
    name: bytes
    node: Node | None
    contents: bool
    rights: bool


def changes_name(request: Request, directory: Node, name: bytes) -> None:
    """The request makes, removes or replaces *name*."""
    change = Change(directory, name, None, False, True)
    request.changes = (*request.changes, change)
    _doubt(request.core, change)
    owned.begins(request, directory, name)


def changes_node(request: Request, node: Node, *, contents: bool = False, rights: bool = False) -> None:
    """The request changes attributes of *node*; the others: as `Change` has them."""
    core = request.core
    if node.parent is not None:
        places = ((node.parent, node.name), *(node.aliases or ()))
        changes = tuple([Change(directory, name, node, contents, rights) for directory, name in places])
        request.changes = (*request.changes, *changes)
        for change in changes:
            _doubt(core, change)
    if node.ahead and rights:
        core.ahead.forget_node(node)


def changed(request: Request) -> None:
    """What the request changes is changed; what that makes of the nodes comes now, and then `owned.believe`."""
    doubt(request)
    request.changes = ()


def doubt(request: Request) -> None:
    """The request's answer has come, or it is given up: it may have been carried out at any time until now."""
    if request.own and request.pending is None:
        owned.ended(request)
    for change in request.changes:
        _doubt(request.core, change)


def late(request: Request) -> None:
    """The answer to a request that was given up has come: it may have been carried out at any time until now. The server tells that to
    others only, so it counts as an event: the kernel may have been told what was before."""
    doubt(request)
    core = request.core
    for change in request.changes:
        core.leases.happened(change.directory, change.name, change.node is None)
    node = request.changes[0].node
    if node is not None:
        # It may have another name since.
        core.take_back(node)


def written(core: Core, node: Node) -> None:
    """The contents of *node* are being or were changed through this mount, or by others while it was locked."""
    now = core.dispatch.now()
    node.doubt_data()
    node.changed = now
    node.attr_sure = 0.0
    if node.parent is not None:
        _touch(core, node.parent, node.name, now)
        for directory, name in node.aliases or ():
            _touch(core, directory, name, now)


def found_changed(core: Core, directory: Node, name: bytes) -> None:
    """*name* does not lead where it is believed to lead: others have changed it, and have not told yet."""
    _touch(core, directory, name, core.dispatch.now())
    there = directory.children.get(name)
    if there is not None:
        there.name_sure = 0.0


def _touch(core: Core, directory: Node, name: bytes, now: float) -> None:
    core.logs.changed(directory, name, now)
    if core.open_ahead.places:
        core.open_ahead.changed(directory, name)
    if directory.lease is not None:
        directory.lease.meddle(name)


def _doubt(core: Core, change: Change) -> None:
    directory, name, now = change.directory, change.name, core.dispatch.now()
    _touch(core, directory, name, now)
    # Of what was opened ahead and is closed, the server may not know that yet.
    core.handles.hurry((directory, name))
    node = change.node
    if node is None:
        directory.changed = now
        directory.attr_sure = 0.0
        if directory.lease is not None:
            directory.lease.doubt(name)
        node = directory.children.get(name)
        if node is None:
            return
        node.name_sure = 0.0
    node.changed = now
    node.attr_sure = 0.0
    core.delegated.changed(node, change.rights)
    if change.contents:
        node.doubt_data()
    if node.lease is not None and change.rights:
        # Its rights may be what changes, or where it is.
        core.leases.audience.doubt(node.lease)
