"""Who is where: the table of nodes and the state of each. Pure; driven by the link machine and by discovery.

    state       entered when                                        leaves to
    KNOWN       its certificate was verified, for a moment           CONNECTING, UP
    CONNECTING  it was down, and a handshake with it is under way    UP, DOWN
    UP          a session is confirmed and the node was heard        SUSPECT, DOWN
    SUSPECT     silent for `suspect_after`, or carrier lost          UP (heard again), DOWN
    DOWN        silent for `down_after`, or said goodbye             CONNECTING, UP

A node enters the table only with an authenticated name: what was merely announced on the wire is the business of
`qnetpy.discovery` and never shows in `/net`. A node descriptor is given at first sight and kept for the life of this table, so it means
the same node after the node's restart; a restart is told by the boot id, and connections made to the earlier boot fail.
QNX keeps an entry in /net until somebody uses it and fails; here the state is the truth, as old as `since`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import attrs

from resmgr.channel import Nd
from resmgr.errors import Misuse

NODES_MAX = 65535
"""Node descriptors are 16 bits wide in QNX; the table refuses more, so that no certificate flood can grow it without end."""


class NodeState(enum.Enum):
    KNOWN = "known"
    CONNECTING = "connecting"
    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"


TRANSITIONS: dict[NodeState, frozenset[NodeState]] = {
    NodeState.KNOWN: frozenset({NodeState.CONNECTING, NodeState.UP}),
    NodeState.CONNECTING: frozenset({NodeState.UP, NodeState.DOWN}),
    NodeState.UP: frozenset({NodeState.SUSPECT, NodeState.DOWN}),
    NodeState.SUSPECT: frozenset({NodeState.UP, NodeState.DOWN}),
    NodeState.DOWN: frozenset({NodeState.CONNECTING, NodeState.UP}),
}


@attrs.define
class Node:
    """One node. `since` is the monotonic time at which it entered `state`; `reason` says why, for people."""

    name: str
    nd: Nd
    state: NodeState
    since: float
    reason: str = ""
    boot_id: bytes = b""
    roles: frozenset[str] = frozenset()
    starts: int = 0
    """How many boots of it were seen up."""

    @property
    def reachable(self) -> bool:
        """Operations may be sent: they succeed or wait."""
        return self.state in (NodeState.UP, NodeState.SUSPECT)


class NodeTable:
    """Nodes by name and by descriptor. This node itself is not in it."""

    def __init__(self) -> None:
        self._by_name: dict[str, Node] = {}
        self._by_nd: dict[int, Node] = {}

    def __iter__(self) -> Iterator[Node]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> Node | None:
        return self._by_name.get(name)

    def by_nd(self, nd: int) -> Node | None:
        return self._by_nd.get(nd)

    def add(self, name: str, now: float) -> Node | None:
        """The node of that name, made KNOWN if it is new; None when the table is full."""
        node = self._by_name.get(name)
        if node is None:
            if len(self._by_name) >= NODES_MAX:
                return None
            node = Node(name, Nd(len(self._by_nd) + 1), NodeState.KNOWN, now)
            self._by_name[name] = node
            self._by_nd[node.nd] = node
        return node

    def enter(self, node: Node, state: NodeState, now: float, reason: str = "") -> bool:
        """Move *node* to *state*; False when it is there already. A transition the table above does not have is a bug."""
        if node.state is state:
            return False
        if state not in TRANSITIONS[node.state]:
            raise Misuse(f"node {node.name}: no way from {node.state.value} to {state.value}")
        if state is NodeState.UP and node.state is not NodeState.SUSPECT:
            node.starts += 1
        node.state = state
        node.since = now
        node.reason = reason
        return True

    def names(self) -> list[str]:
        """Of all nodes."""
        return list(self._by_name)

    def reachable(self, name: str) -> bool:
        """Whether there is a node of that name, and operations may be sent to it."""
        node = self._by_name.get(name)
        return node is not None and node.reachable

    def listed(self) -> list[Node]:
        """What `ls /net` shows: nodes that can be reached, by name."""
        return sorted((node for node in self if node.reachable), key=lambda node: node.name)
