"""Events of nodes on Trio, for any kernel: the daemon's own or that of a program that joined with `resmgr.aio.open_process`.

with node_events(process.kernel, process.credentials) as events:
    async for event in events:            # first what there is, then CURRENT, then what happens
        print(event.kind.name, event.node, event.reason)
"""

from __future__ import annotations

from resmgr.channel import CHID_NODES, ND_LOCAL, PID_SYSTEM, Credentials, Kernel
from resmgr.nodes.protocol import NodeEvent, Reachable, parse_event
from resmgr.subscriptionaio import AsyncEvents


def node_events(kernel: Kernel, credentials: Credentials) -> AsyncEvents[NodeEvent]:
    """Subscribe to the nodes of the cluster, as this node sees them."""
    return AsyncEvents(kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_NODES, credentials), b"", parse_event)


async def wait_up(kernel: Kernel, credentials: Credentials, *nodes: str) -> None:
    """Wait until all of *nodes* are up at one time (this node is). Without end: put a Trio time limit around it."""
    seen = Reachable(kernel.node_name)
    with node_events(kernel, credentials) as events:
        async for event in events:
            seen.apply(event)
            if seen.all(nodes):
                return
