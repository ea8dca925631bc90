"""What `qnet status` and `qnet nodes` show of a running node, as values that JSON can say. Times are seconds, sizes bytes."""

from __future__ import annotations

import os

import attrs

from qnetpy.link.link import Link, LinkPath
from qnetpy.link.session import SessionCounters
from qnetpy.link.transport.statistics import PathStatistics
from qnetpy.nodes import Node
from qnetpy.qnet import Qnet
from resmgr import compiled
from stack.core.stack import Stack
from stack.core.statistics import InterfaceStatistics
from stack.managers.layer2 import Layer2
from stack.wire.ethernet import mac_text

Fact = dict[str, object]
DROPS = ("duplicate_fragments", "no_such_path", "after_close", "challenges_dropped", "stray_responses")
"""Of a transport: packets and fragments that were received and not used."""


def _path(qnet: Qnet, path: LinkPath, told: PathStatistics, share: float) -> Fact:
    interface, station = path.address
    endpoint = qnet.endpoint(path.address)
    rate = told.window / told.smoothed_rtt if told.smoothed_rtt > 0 else 0.0
    return {
        "path": path.number,
        "interface": interface,
        "mac": mac_text(station),
        "endpoint": None if endpoint is None else str(endpoint),
        "state": told.state,
        "rtt": round(told.smoothed_rtt, 6),
        "loss": round(told.packets_lost / told.packets_sent, 6) if told.packets_sent else 0.0,
        "rate": round(rate),
        "mtu": path.mtu,
        "payload": told.payload,
        "share": round(share, 3),
        "window": told.window,
        "in_flight": told.in_flight,
        "sent": told.packets_sent,
        "received": told.packets_received,
        "lost": told.packets_lost,
        "late": told.packets_late,
        "timeouts": told.timeouts,
        "copies_dropped": told.copies_dropped,
    }


def _link(qnet: Qnet, link: Link) -> Fact:
    counted = link.transport.statistics()
    whole = sum(path.bytes_sent for path in counted.paths.values())
    paths = [
        _path(qnet, path, counted.paths[path.number], counted.paths[path.number].bytes_sent / whole if whole else 0.0)
        for path in link.paths.values()
    ]
    return {
        "messages_sent": counted.messages_sent,
        "messages_received": counted.messages_received,
        "resent_bytes": counted.resent_bytes,
        "backlog": counted.backlog,
        "drops": {name: getattr(counted, name) for name in DROPS if getattr(counted, name)},
        "suite": "" if link.sessions.current is None else link.sessions.current.suite,
        "keys": _keys(link),
        "paths": paths,
    }


def _keys(link: Link) -> Fact:
    """Frames under the keys in use, the last ones' included: what was sealed, opened, and refused for what reason."""
    sessions = link.sessions.held
    return {name: sum(getattr(session.counters, name) for session in sessions) for name in SessionCounters.NAMES}


def _node(qnet: Qnet, node: Node, link: Link | None, now: float) -> Fact:
    return {
        "name": node.name,
        "nd": node.nd,
        "state": node.state.value,
        "seconds": round(now - node.since, 3),
        "reason": node.reason,
        "roles": sorted(node.roles),
        "starts": node.starts,
        "policy": str(qnet.choice(node.name)),
        "link": None if link is None else _link(qnet, link),
    }


def nodes(qnet: Qnet) -> Fact:
    """Every node that was ever authenticated, and this one."""
    now = qnet.now()
    links = qnet.machine.links
    return {
        "self": qnet.identity.name,
        "roles": sorted(qnet.identity.certificate.roles),
        "nodes": [_node(qnet, node, links.get(node.name), now) for node in sorted(qnet.nodes, key=lambda node: node.name)],
    }


def _interface(one: InterfaceStatistics, layer2: Layer2) -> Fact:
    """With what an engine carried past the stack."""
    carried, drops = layer2.carried(one.name), dict(one.drops)
    for reason, count in carried.drops.items():
        drops[reason] = drops.get(reason, 0) + count
    return {
        **attrs.asdict(one, filter=lambda field, _: field.name not in ("mac", "drops", "info")),
        "mac": mac_text(one.mac),
        "rx_frames": one.rx_frames + carried.received,
        "rx_bytes": one.rx_bytes + carried.rx_bytes,
        "tx_frames": one.tx_frames + carried.tx_frames,
        "tx_bytes": one.tx_bytes + carried.tx_bytes,
        "drops": drops,
        "info": dict(one.info),
        "carried": layer2.carriers(one.name),
    }


def status(qnet: Qnet, stack: Stack, started: float, mount: str | None) -> Fact:
    """*started* is the monotonic time of the daemon's start; *mount* where /net is mounted, if it is."""
    counted, layer2 = stack.statistics(), Layer2(stack)
    certificate = qnet.identity.certificate
    return {
        "node": qnet.identity.name,
        "cluster": qnet.identity.cluster,
        "roles": sorted(certificate.roles),
        "certificate_seconds_left": round(certificate.not_after - stack.dispatch.wall()),
        "pid": os.getpid(),
        "seconds": round(qnet.now() - started, 1),
        "mount": mount,
        "ethertype": qnet.settings.ethertype,
        "modules": list(counted.modules),
        "compiled_modules": len(compiled.running()),
        "compiled_problem": compiled.problem(),
        "interfaces": [_interface(one, layer2) for one in counted.interfaces.values()],
        "engines": list(layer2.engines),
        "drops": qnet.machine.drops(),
        "failures": dict(counted.failures),
        "sizes": qnet.sizes(),
        "reach": qnet.reach.sizes()
        | {reason: count for reason, count in sorted(qnet.counters.items()) if reason.startswith(("gossip", "announced"))},
        **nodes(qnet),
    }
