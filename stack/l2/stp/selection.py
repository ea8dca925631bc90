"""Port role selection (802.1D-2004 17.28): from what all ports know, who is the root, which way it is, and what each port is for."""

from __future__ import annotations

import attrs

from stack.l2.stp.information import aged
from stack.l2.stp.port import Info, Port, PortRole
from stack.l2.stp.tree import Tree
from stack.wire.bpdu import Priority


def step(tree: Tree) -> bool:
    """Select anew if a port asks for it."""
    if not any(port.reselect for port in tree.ports.values()):
        return False
    _select_root(tree)
    for port in tree.ports.values():
        port.reselect = False
        _select_role(tree, port)
        port.selected = True
    return True


def _select_root(tree: Tree) -> None:
    best, through = (tree.own, 0), None
    for port in tree.ports.values():
        if port.info is not Info.RECEIVED or port.settings.restricted_role or port.priority.bridge[2:] == tree.mac:
            continue
        heard = attrs.evolve(port.priority, cost=min(port.priority.cost + port.settings.cost, 0xFFFFFFFF))
        if (heard, port.identifier) < best:
            best, through = (heard, port.identifier), port
    tree.root, tree.root_port = best[0], through
    own = tree.settings.times
    tree.times = own if through is None else aged(through.times, through.times.hello)


def _select_role(tree: Tree, port: Port) -> None:
    identifier = tree.identifier
    port.designated = Priority(tree.root.root, tree.root.cost, identifier, port.identifier)
    port.designated_times = attrs.evolve(tree.times, hello=tree.settings.hello)
    port.update = False
    if port.info is Info.DISABLED:
        port.selected_role = PortRole.DISABLED
    elif port.info is Info.AGED:
        port.selected_role = PortRole.DESIGNATED
        port.update = True
    elif port.info is Info.MINE:
        port.selected_role = PortRole.DESIGNATED
        port.update = port.priority != port.designated or port.times != port.designated_times
    elif port is tree.root_port:
        port.selected_role = PortRole.ROOT
    elif port.designated < port.priority:
        port.selected_role = PortRole.DESIGNATED
        port.update = True
    elif port.priority.bridge[2:] == tree.mac:
        port.selected_role = PortRole.BACKUP
    else:
        port.selected_role = PortRole.ALTERNATE
