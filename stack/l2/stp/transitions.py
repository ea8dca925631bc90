"""The port role transitions machine (802.1D-2004 17.29): how a port takes up its role without a loop on the way.

A port that would forward waits until nobody can be forwarding against it: a timer, or the word of the bridge behind it (*agreement*), who
has blocked his own ports first (*sync*). A root port waits until who was root port before has stopped (*reroot*).
"""

from __future__ import annotations

from stack.l2.stp.port import HELD, MIGRATE_TIME, Port, PortRole
from stack.l2.stp.settings import Protocol
from stack.l2.stp.tree import Tree


def step(tree: Tree, port: Port) -> bool:
    """One transition, if one is due."""
    if not port.settled:
        return False
    if port.role is not port.selected_role:
        _take_role(tree, port)
        return True
    if port.role is PortRole.ROOT:
        return _root(tree, port)
    if port.role is PortRole.DESIGNATED:
        return _designated(tree, port)
    if port.role is PortRole.DISABLED:
        return _blocked(port)
    return _alternate(tree, port)


def _take_role(tree: Tree, port: Port) -> None:
    before, role = port.role, port.selected_role
    port.role = role
    if before is PortRole.DISABLED:
        port.forward_timer = tree.now + port.designated_times.max_age
    elif before in (PortRole.ALTERNATE, PortRole.BACKUP):
        port.forward_timer = tree.now + tree.forward_delay(port)
    if before is PortRole.BACKUP:
        port.recent_backup = tree.now + 2 * port.designated_times.hello
    if role in (PortRole.ROOT, PortRole.DESIGNATED):
        if role is PortRole.ROOT:
            port.recent_root = HELD
        elif before is PortRole.ROOT:
            port.recent_root = tree.now + port.designated_times.forward_delay
        return
    port.learning = port.forwarding = False
    port.forward_timer = HELD
    if role is PortRole.BACKUP:
        port.recent_backup = HELD
    _blocked(port)


def _blocked(port: Port) -> bool:
    """Whatever others ask a port to stop, this one has."""
    changed = not port.synced or port.sync or port.reroot or port.recent_root != 0.0
    port.synced = True
    port.sync = port.reroot = False
    port.recent_root = 0.0
    return changed


def _sync_all(tree: Tree) -> None:
    for port in tree.ports.values():
        port.sync = True


def _root(tree: Tree, port: Port) -> bool:
    rapid = tree.settings.protocol is Protocol.RSTP
    if port.proposed and not port.agree:
        _sync_all(tree)
        port.proposed = False
    elif (port.proposed and port.agree) or (not port.agree and tree.all_synced()):
        port.proposed = port.sync = False
        port.agree = True
        port.new_info = True
    elif not port.forwarding and not port.reroot:
        for other in tree.ports.values():
            other.reroot = True
    elif port.reroot and port.forwarding:
        port.reroot = False
    elif not port.forwarding and (tree.over(port.forward_timer) or (rapid and tree.rerooted(port) and tree.over(port.recent_backup))):
        _proceed(tree, port)
    elif port.recent_root != HELD:
        port.recent_root = HELD
    else:
        return False
    return True


def _proceed(tree: Tree, port: Port) -> None:
    """From listening to learning, or from there to forwarding."""
    if not port.learning:
        port.learning = True
        port.forward_timer = tree.now + tree.forward_delay(port)
        if port.role is PortRole.DESIGNATED:
            # Not in the standard, where the next hello says so: as late as the port forwards. Who disputes it must hear of it before.
            port.new_info = True
    else:
        port.forwarding = True
        port.forward_timer = 0.0


def _designated(tree: Tree, port: Port) -> bool:
    if not port.forwarding and not port.agreed and not port.proposing and not port.oper_edge:
        port.proposing = True
        port.edge_delay = tree.now + edge_delay(tree, port)
        port.new_info = True
    elif (not port.synced and (port.agreed or port.oper_edge or not (port.learning or port.forwarding))) or (port.sync and port.synced):
        port.recent_root = 0.0
        port.synced = True
        port.sync = False
    elif port.reroot and tree.over(port.recent_root):
        port.reroot = False
    elif _must_stop(tree, port):
        port.learning = port.forwarding = port.disputed = False
        port.forward_timer = tree.now + tree.forward_delay(port)
    elif not port.forwarding and _may_proceed(tree, port):
        _proceed(tree, port)
        if port.forwarding:
            port.agreed = port.send_rstp
    else:
        return False
    return True


def _must_stop(tree: Tree, port: Port) -> bool:
    asked = (port.sync and not port.synced) or (port.reroot and not tree.over(port.recent_root)) or port.disputed
    return asked and not port.oper_edge and (port.learning or port.forwarding)


def _may_proceed(tree: Tree, port: Port) -> bool:
    free = tree.over(port.forward_timer) or port.agreed or port.oper_edge
    return free and (tree.over(port.recent_root) or not port.reroot) and not port.sync


def edge_delay(tree: Tree, port: Port) -> float:
    """How long nothing may be heard before the port is taken for an edge."""
    return MIGRATE_TIME if port.settings.point_to_point else port.designated_times.max_age


def _alternate(tree: Tree, port: Port) -> bool:
    if port.proposed and not port.agree:
        _sync_all(tree)
        port.proposed = False
    elif (port.proposed and port.agree) or (not port.agree and tree.all_synced()):
        port.proposed = False
        port.agree = True
        port.new_info = True
    else:
        return _blocked(port)
    return True
