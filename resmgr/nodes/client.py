"""Events of nodes for blocking programs (`resmgr.client`); for Trio see `resmgr.nodes.aio`.

with node_events(client) as events:
    for event in events:                  # first what there is, then CURRENT, then what happens
        print(event.kind.name, event.node, event.reason)
"""

from __future__ import annotations

import errno
import time

from resmgr.client import Client
from resmgr.errors import ResmgrError
from resmgr.ids import CHID_NODES, ND_LOCAL, PID_SYSTEM
from resmgr.nodes.protocol import NodeEvent, Reachable, parse_event
from resmgr.server import Channel
from resmgr.subscription import Events


def node_events(client: Client, *, channel: Channel | None = None, code: int = 0) -> Events[NodeEvent]:
    """Subscribe to the nodes of the cluster, as this node sees them. *channel*, *code*: see `resmgr.subscription.Events`."""
    return Events(client.connect(ND_LOCAL, PID_SYSTEM, CHID_NODES), b"", parse_event, channel, code)


def wait_up(client: Client, *nodes: str, timeout: float | None = None) -> None:
    """Wait until all of *nodes* are up at one time (this node is). ResmgrError(ETIMEDOUT) after *timeout* seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    seen = Reachable(client.node)
    with node_events(client) as events:
        while not seen.all(nodes):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise ResmgrError(errno.ETIMEDOUT, f"not up: {', '.join(seen.missing(nodes))}")
            for event in events.read(left):
                seen.apply(event)
