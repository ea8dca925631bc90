"""Events of nodes, as programs get them and as bytes. docs/protocol/names.md, "Subscriptions". Light: blocking programs load it."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from typing import NamedTuple

from resmgr.errors import BadMessage

EVENT = struct.Struct("!BBBxIQ16s")
"""kind, length of the name, length of the reason, nd, starts, boot."""
REASON_MAX = 255


class NodeChange(enum.IntEnum):
    """What happened to a node. CURRENT: what came before is what there is now. OVERFLOW: forget all, it comes anew."""

    UP = 1
    SUSPECT = 2
    BACK = 3
    DOWN = 4
    RESTARTED = 5
    CURRENT = 6
    OVERFLOW = 7


class NodeEvent(NamedTuple):
    """`node`, `boot` (hexadecimal), `starts` (how many of its links were seen) and `reason` are empty for CURRENT and OVERFLOW."""

    kind: NodeChange
    node: str = ""
    nd: int = 0
    boot: str = ""
    starts: int = 0
    reason: str = ""


def pack_event(event: NodeEvent) -> bytes:
    name = event.node.encode()
    reason = event.reason.encode()[:REASON_MAX].decode(errors="ignore").encode()
    boot = bytes.fromhex(event.boot)
    return EVENT.pack(event.kind, len(name), len(reason), event.nd, event.starts, boot) + name + reason


def parse_event(data: bytes) -> NodeEvent:
    """BadMessage for what `pack_event` does not make."""
    try:
        kind, name_length, reason_length, nd, starts, boot = EVENT.unpack_from(data)
        if EVENT.size + name_length + reason_length != len(data):
            raise BadMessage("event of a node: length")
        name = data[EVENT.size : EVENT.size + name_length].decode()
        reason = data[EVENT.size + name_length :].decode()
        change = NodeChange(kind)
    except (struct.error, ValueError) as error:
        raise BadMessage(f"event of a node: {error}") from None
    return NodeEvent(change, name, nd, boot.hex() if any(boot) else "", starts, reason)


class Reachable:
    """Who is up, from events alone. *own*: this node, which always is."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._up: set[str] = set()

    def apply(self, event: NodeEvent) -> None:
        if event.kind is NodeChange.OVERFLOW:
            self._up.clear()
        elif event.kind in (NodeChange.UP, NodeChange.BACK, NodeChange.RESTARTED):
            self._up.add(event.node)
        else:
            self._up.discard(event.node)

    def missing(self, nodes: Iterable[str]) -> list[str]:
        """Those of *nodes* that are not."""
        return sorted(set(nodes) - self._up - {self._own})

    def all(self, nodes: Iterable[str]) -> bool:
        return not self.missing(nodes)
