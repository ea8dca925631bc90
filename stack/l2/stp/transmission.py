"""Sending and what surrounds it (802.1D-2004 17.24 to 17.26): which protocol a port speaks, whether it is an edge, and its BPDUs."""

from __future__ import annotations

import attrs

from stack.l2.stp.port import MIGRATE_TIME, Migration, Port, PortRole
from stack.l2.stp.settings import Protocol
from stack.l2.stp.tree import Tree
from stack.wire.bpdu import Config, Role, TopologyChange

_ROLES = {
    PortRole.ROOT: Role.ROOT,
    PortRole.DESIGNATED: Role.DESIGNATED,
    PortRole.ALTERNATE: Role.ALTERNATE,
    PortRole.BACKUP: Role.ALTERNATE,
}


def step_migration(tree: Tree, port: Port) -> bool:
    """Port protocol migration: answer a bridge of 802.1D-1998 in its own words, but not in a hurry."""
    rapid = tree.settings.protocol is Protocol.RSTP
    if not port.enabled:
        changed = port.migration is not Migration.CHECKING or port.send_rstp is not rapid
        check(tree, port)
        return changed
    if port.migration is Migration.SENSING:
        if rapid and not port.send_rstp and port.heard_rstp:
            check(tree, port)
        elif port.send_rstp and port.heard_stp:
            port.migration = Migration.SELECTING
            port.send_rstp = False
            port.migrate_timer = tree.now + MIGRATE_TIME
        else:
            return False
        return True
    if not tree.over(port.migrate_timer):
        return False
    port.migration = Migration.SENSING
    port.heard_rstp = port.heard_stp = False
    return True


def check(tree: Tree, port: Port) -> None:
    """Begin anew: *mcheck*."""
    port.migration = Migration.CHECKING
    port.send_rstp = tree.settings.protocol is Protocol.RSTP
    port.migrate_timer = tree.now + MIGRATE_TIME


def step_edge(tree: Tree, port: Port) -> bool:
    """Bridge detection: is there another bridge behind the port?"""
    before = port.oper_edge
    if not port.enabled:
        port.oper_edge = port.settings.edge
    elif port.settings.auto_edge and port.send_rstp and port.proposing and tree.over(port.edge_delay):
        port.oper_edge = True
    return port.oper_edge is not before


def transmit(tree: Tree, port: Port) -> bytes | None:
    """The BPDU that is due on *port*, as it lies behind the LLC header."""
    if not port.settled or not port.enabled or port.role is PortRole.DISABLED:
        return None
    telling = not tree.over(port.change_timer)
    if tree.over(port.hello_at):
        port.hello_at = tree.now + tree.settings.hello
        if port.role is PortRole.DESIGNATED or (port.role is PortRole.ROOT and telling):
            port.new_info = True
    if not port.new_info:
        return None
    if not port.send_rstp and port.role not in (PortRole.DESIGNATED, PortRole.ROOT):
        return None
    if not port.send_rstp and port.role is PortRole.ROOT and not telling:
        # 802.1D-1998 knows no word for what a root port has to say, but of topology changes.
        port.new_info = False
        return None
    if not port.credit.take(tree.now):
        return None
    port.new_info = False
    port.sent += 1
    if port.send_rstp:
        port.acknowledge = False
        return _rapid(port, telling).pack()
    if port.role is PortRole.ROOT:
        return TopologyChange().pack()
    acknowledge, port.acknowledge = port.acknowledge, False
    return Config(port.designated, port.designated_times, telling, acknowledge).pack()


def _rapid(port: Port, telling: bool) -> Config:
    return Config(
        port.designated,
        port.designated_times,
        telling,
        rapid=True,
        role=_ROLES[port.role],
        proposal=port.proposing,
        learning=port.learning,
        forwarding=port.forwarding,
        agreement=port.agree,
    )


def next_hello(port: Port) -> float:
    """When `transmit` may have something again."""
    return max(port.credit.ready_at(), 0.0) if port.new_info else port.hello_at


def message_age_ok(message: Config) -> bool:
    """It has not come further than it may."""
    return message.rapid or message.times.message_age < message.times.max_age


def fresh_priority(port: Port) -> None:
    """The port's identifier changed."""
    port.designated = attrs.evolve(port.designated, port=port.identifier)
