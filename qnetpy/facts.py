"""What `qnet status` and `qnet nodes` show of a running node, as values that JSON can say. Times are seconds, sizes bytes."""

from __future__ import annotations

import os

import attrs

from qnetpy.link.link import Link
from qnetpy.link.session import SessionCounters
from qnetpy.nodes import Node
from qnetpy.qnet import Qnet
from stack.core.stack import Stack
from stack.wire.ethernet import mac_text

Fact = dict[str, object]


def _link(qnet: Qnet, link: Link) -> Fact:
    counted = link.transport.statistics()
    paths = [
        {
            "rtt": round(path.smoothed_rtt, 6),
            "payload": path.payload,
            "sent": path.packets_sent,
            "received": path.packets_received,
            "lost": path.packets_lost,
            "window": path.window,
            "suspect": path.suspect,
        }
        for path in counted.paths.values()
    ]
    interface, mac = link.address
    endpoint = qnet.endpoint(link.address)
    return {
        "interface": interface,
        "mac": mac_text(mac),
        "endpoint": None if endpoint is None else str(endpoint),
        "mtu": link.mtu,
        "messages_sent": counted.messages_sent,
        "messages_received": counted.messages_received,
        "resent_bytes": counted.resent_bytes,
        "backlog": counted.backlog,
        "keys": _keys(link),
        "paths": paths,
    }


def _keys(link: Link) -> Fact:
    """Frames under the keys in use, the last ones' included: what was sealed, opened, and refused for what reason."""
    sessions = [session for session in (link.sessions.current, link.sessions.previous) if session is not None]
    names = [field.name for field in attrs.fields(SessionCounters)]
    return {name: sum(getattr(session.counters, name) for session in sessions) for name in names}


def _node(qnet: Qnet, node: Node, link: Link | None, now: float) -> Fact:
    return {
        "name": node.name,
        "nd": node.nd,
        "state": node.state.value,
        "seconds": round(now - node.since, 3),
        "reason": node.reason,
        "roles": sorted(node.roles),
        "starts": node.starts,
        "link": None if link is None else _link(qnet, link),
    }


def nodes(qnet: Qnet) -> Fact:
    """Every node that was ever authenticated, and this one."""
    now = qnet.now()
    links = qnet.machine.links
    return {
        "self": qnet.identity.name,
        "nodes": [_node(qnet, node, links.get(node.name), now) for node in sorted(qnet.nodes, key=lambda node: node.name)],
    }


def status(qnet: Qnet, stack: Stack, started: float, mount: str | None) -> Fact:
    """*started* is the monotonic time of the daemon's start; *mount* where /net is mounted, if it is."""
    counted = stack.statistics()
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
        "interfaces": [
            {**attrs.asdict(one, filter=lambda field, _: field.name not in ("mac", "drops", "info")), "mac": mac_text(one.mac)}
            | {"drops": dict(one.drops), "info": dict(one.info)}
            for one in counted.interfaces.values()
        ],
        "drops": {reason: count for reason, count in sorted(qnet.machine.counters.items()) if count},
        "failures": dict(counted.failures),
        "reach": qnet.reach.sizes()
        | {reason: count for reason, count in sorted(qnet.counters.items()) if reason.startswith(("gossip", "announced"))},
        **nodes(qnet),
    }
