"""What a node may have of everything at any moment, whatever its peers and cables do: the caps that its parts promise, looked at from
outside."""

from __future__ import annotations

from collections.abc import Iterator

from qnetpy.discovery.solicitor import ASKERS_MAX, SEEN_MAX
from qnetpy.link.calls import STRANGERS_MAX
from qnetpy.link.constants import ATTEMPTS_MAX, COMING_MAX, HALF_OPEN_MAX, OLDER_MAX
from qnetpy.link.paths import PATHS_MAX
from qnetpy.link.transport.constants import COPIES_MAX, MAX_MESSAGE, MAX_RECEIVED_RANGES
from qnetpy.qnet import BACKLOG_MAX
from qnetpy.reach.gossip import NODES_MAX, PER_NODE_MAX
from qnetpy.reach.wanted import WANTED_MAX
from qnetpy.testing.node import SimNode
from resmgr.names.replica import NAMES_PER_NODE, TOLD_MAX
from resmgr.names.replicawire import ENTRIES_MAX
from resmgr.serving import CONNECTIONS_MAX, HELD_MAX, PENDING_MAX

SESSIONS_PER_LINK = 1 + COMING_MAX + OLDER_MAX
"""The keys of now, those that come, and those before."""
TIMERS_PER_LINK = 1


def excess(node: SimNode) -> Iterator[str]:
    """Each thing of which *node* has too much."""
    machine = node.qnet.machine
    sizes = node.qnet.sizes() | node.names.globals.sizes()
    links = len(machine.links)
    for name, limit in (
        ("sessions", SESSIONS_PER_LINK * links),
        ("timers", TIMERS_PER_LINK * links),
        ("paths", PATHS_MAX * links),
        ("peers", links),
        ("half_open", HALF_OPEN_MAX),
        ("calls", ATTEMPTS_MAX),
        ("hints", STRANGERS_MAX),
        ("incoming", PENDING_MAX * links),
        ("connections_in", CONNECTIONS_MAX * links),
        ("held", HELD_MAX * links),
        ("askers", ASKERS_MAX),
        ("solicitations_seen", SEEN_MAX),
        ("endpoints_wanted", WANTED_MAX),
        ("endpoints_to_tell", NODES_MAX * PER_NODE_MAX),
        ("names_own", NAMES_PER_NODE),
        ("names_of_others", NAMES_PER_NODE * links),
        ("names_due", (TOLD_MAX + ENTRIES_MAX) * links),
    ):
        if sizes.get(name, 0) > limit:
            yield f"{name}={sizes[name]}, more than {limit}"
    if len(machine.index) != sizes["paths"]:
        yield f"{len(machine.index)} paths are found by address, and there are {sizes['paths']}"
    for link in machine.links.values():
        told = link.transport.statistics()
        config = link.transport.config
        if told.held > config.receive_window:
            yield f"{link.name} holds {told.held} bytes of credit"
        if told.backlog > BACKLOG_MAX + MAX_MESSAGE:
            yield f"{told.backlog} bytes wait for {link.name}"
        for number, path in told.paths.items():
            if path.received_ranges > MAX_RECEIVED_RANGES:
                yield f"path {number} to {link.name} remembers {path.received_ranges} ranges"
            if path.copies_waiting > COPIES_MAX:
                yield f"path {number} to {link.name} has {path.copies_waiting} copies waiting"
            if path.in_flight > config.max_window + path.payload or path.in_flight < 0:
                yield f"path {number} to {link.name} has {path.in_flight} bytes in flight"
