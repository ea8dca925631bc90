"""The board on which the network module writes which nodes are up, and from which everybody else reads it, or hears of it.

    network module -> NodeBoard.up, suspect, back, down -> listeners in this kernel (names)
                                                        -> subscriptions of programs (channel CHID_NODES)

A node enters when it is up for the first time and stays, as down, with its descriptor and last boot: so that the next time tells whether
it is another boot. How many there can be is the network module's cap. What happened is told to subscribers before listeners act on it, so a
program hears of a node before it hears of its names.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import attrs

from resmgr.channel import CHID_NODES, ND_LOCAL, PID_SYSTEM, PULSE_DISCONNECT, Kernel, Message, Nd, Pulse
from resmgr.nodes.protocol import NodeChange, NodeEvent, pack_event
from resmgr.subscription import READ, REQUEST, WATCH
from resmgr.watches import EventQueue, Watches


@attrs.define(eq=False)
class BoardNode:
    """A node that was up at least once. `state` is UP, SUSPECT or DOWN. `nd` is 0 once another node has its number."""

    name: str
    nd: Nd
    boot: bytes
    roles: frozenset[str]
    state: NodeChange = NodeChange.UP
    starts: int = 1
    """How many links with it there were."""
    reason: str = ""

    @property
    def reachable(self) -> bool:
        return self.state is not NodeChange.DOWN

    def event(self, kind: NodeChange) -> NodeEvent:
        return NodeEvent(kind, self.name, self.nd, self.boot.hex(), self.starts, self.reason)


Listener = Callable[[NodeChange, BoardNode], None]


class NodeBoard:
    """See the head of this file."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._nodes: dict[str, BoardNode] = {}
        self.listeners: list[Listener] = []
        """Called with UP, RESTARTED, SUSPECT, BACK, DOWN, after the board says so itself."""
        self.watches: Watches[NodeEvent] = Watches(kernel, _value)
        self._channel = kernel.channel(self._request, on_pulse=self._pulse, pid=PID_SYSTEM, chid=CHID_NODES, remote=False)

    def __iter__(self) -> Iterator[BoardNode]:
        return iter(self._nodes.values())

    def get(self, name: str) -> BoardNode | None:
        return self._nodes.get(name)

    # What the network module says

    def up(self, name: str, nd: Nd, boot: bytes, roles: frozenset[str] = frozenset(), reason: str = "") -> None:
        """There is a link with that node, which had none."""
        for other in self._nodes.values():
            if other.nd == nd and other.name != name:
                other.nd = ND_LOCAL  # a network module that was loaded anew numbers nodes anew
        node = self._nodes.get(name)
        kind = NodeChange.UP
        if node is None:
            node = self._nodes[name] = BoardNode(name, nd, boot, roles)
        else:
            if node.boot != boot:
                kind = NodeChange.RESTARTED
            node.nd, node.boot, node.roles, node.starts = nd, boot, roles, node.starts + 1
        self._change(node, kind, NodeChange.UP, reason)

    def suspect(self, name: str, reason: str) -> None:
        self._turn(name, NodeChange.UP, NodeChange.SUSPECT, NodeChange.SUSPECT, reason)

    def back(self, name: str) -> None:
        """A suspect node was heard again."""
        self._turn(name, NodeChange.SUSPECT, NodeChange.BACK, NodeChange.UP, "")

    def down(self, name: str, reason: str) -> None:
        node = self._nodes.get(name)
        if node is not None and node.reachable:
            self._change(node, NodeChange.DOWN, NodeChange.DOWN, reason)

    def _turn(self, name: str, before: NodeChange, kind: NodeChange, after: NodeChange, reason: str) -> None:
        node = self._nodes.get(name)
        if node is not None and node.state is before:
            self._change(node, kind, after, reason)

    def _change(self, node: BoardNode, kind: NodeChange, state: NodeChange, reason: str) -> None:
        node.state, node.reason = state, reason
        self.watches.push(kind, node.event(kind))
        for tell in list(self.listeners):
            tell(kind, node)

    # What programs ask

    def _request(self, message: Message) -> None:
        if message.info.nd != ND_LOCAL:
            message.error(errno.EPERM)
        elif not message.msglen == len(message.data) == REQUEST.size:
            message.error(errno.EINVAL)
        else:
            operation, argument, chid = REQUEST.unpack_from(message.data)
            if operation == WATCH:
                self.watches.watch(message, self._queue(), argument, chid)
            elif operation == READ:
                self.watches.read(message, argument)
            else:
                message.error(errno.ENOSYS)

    def _queue(self) -> EventQueue[NodeEvent]:
        def everything() -> Iterator[NodeEvent]:
            return (node.event(node.state) for node in self)

        return EventQueue(everything, _kind, _all, _pack, NodeChange.CURRENT, NodeChange.OVERFLOW)

    def _pulse(self, pulse: Pulse) -> None:
        if pulse.code == PULSE_DISCONNECT:
            self.watches.closed(pulse.info.scoid)

    def destroy(self) -> None:
        self.watches.close()
        self.listeners.clear()
        self._channel.destroy()


def _kind(event: NodeEvent) -> int:
    return event.kind


def _all(event: NodeEvent) -> bool:
    return True


def _pack(kind: int, event: NodeEvent | None) -> bytes:
    return pack_event(NodeEvent(NodeChange(kind)) if event is None else event)


def _value(kind: int, event: NodeEvent | None) -> int:
    return kind << 32 | (0 if event is None else event.nd)
