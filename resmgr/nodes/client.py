"""Events of nodes for blocking programs (`resmgr.client`); for Trio see `resmgr.nodes.aio`.

with node_events(client) as events:
    for event in events:                  # first what there is, then CURRENT, then what happens
        print(event.kind.name, event.node, event.reason)
"""

from __future__ import annotations

from resmgr.client import Client
from resmgr.events import Events
from resmgr.ids import CHID_NODES, ND_LOCAL, PID_SYSTEM
from resmgr.nodes.protocol import NodeEvent, parse_event
from resmgr.server import Channel


def node_events(client: Client, *, channel: Channel | None = None, code: int = 0) -> Events[NodeEvent]:
    """Subscribe to the nodes of the cluster, as this node sees them. *channel*, *code*: see `resmgr.events.Events`."""
    return Events(client.connect(ND_LOCAL, PID_SYSTEM, CHID_NODES), b"", parse_event, channel, code)
