"""The topology change machine (802.1D-2004 17.31): when a port begins to forward, stations may be behind other ports than before. All
bridges are told and forget what they learned."""

from __future__ import annotations

from stack.l2.stp.port import Change, Port, PortRole
from stack.l2.stp.tree import Tree


def step(tree: Tree, port: Port) -> bool:
    """One transition, if one is due."""
    active = port.role in (PortRole.ROOT, PortRole.DESIGNATED)
    told = port.got_change or port.got_notice or port.got_acknowledgement or port.propagate
    if port.change is Change.INACTIVE:
        if not port.learning:
            return _forget(port) if told else False
        _forget(port)
        port.change = Change.LEARNING
    elif port.change is Change.LEARNING:
        if active and port.forwarding and not port.oper_edge:
            _start(tree, port)
            _tell_others(tree, port)
            port.new_info = True
            port.change = Change.ACTIVE
        elif not active and not port.learning:
            port.flush = True
            port.change_timer = 0.0
            port.acknowledge = False
            port.change = Change.INACTIVE
        else:
            return _forget(port) if told else False
    elif not active or port.oper_edge or not port.forwarding:
        port.change = Change.LEARNING
    elif port.got_notice or port.got_change:
        if port.got_notice:
            _start(tree, port)
            if port.role is PortRole.DESIGNATED:
                port.acknowledge = True
        port.got_notice = port.got_change = False
        _tell_others(tree, port)
    elif port.propagate:
        port.propagate = False
        _start(tree, port)
        port.flush = True
    elif port.got_acknowledgement:
        port.got_acknowledgement = False
        port.change_timer = 0.0
    else:
        return False
    return True


def _forget(port: Port) -> bool:
    port.got_change = port.got_notice = port.got_acknowledgement = port.propagate = False
    return True


def _start(tree: Tree, port: Port) -> None:
    """Tell of the change for a while."""
    if not tree.over(port.change_timer):
        return
    if port.send_rstp:
        port.change_timer = tree.now + tree.settings.hello + 1.0
        port.new_info = True
    else:
        port.change_timer = tree.now + tree.times.max_age + tree.times.forward_delay


def _tell_others(tree: Tree, port: Port) -> None:
    tree.changes += 1
    tree.changed_at = tree.now
    for other in tree.ports.values():
        if other is not port:
            other.propagate = True
