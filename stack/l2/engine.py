"""The seam between a bridge and what forwards for it without the stack's task: a forwarding engine. See docs/stack/forwarding.md.

The bridge decides, the engine carries. The bridge tells which interfaces are its ports and which station is behind which port; a frame
from a known station, on the port where it is known, to a known station behind another port, then never comes up. Everything else does, as
if there were no engine: groups, our own addresses, unknown stations, a station that moved, every frame of a port that is off.

    bridge -> learned, forget, flush, off, on -> engine
    bridge <- idle (for ageing), statistics    <- engine

A port is off while somebody has to see each of its frames. Reasons have names, several may hold at once, and `statistics` shows them. The
bridge gives its own reasons (spanning tree, a port that discards); the engine finds those that lie in the stack (a tap, a wrapper around
the driver, no Linux interface below).

The IP layer marks flows that it routes between ports: `route`, `unroute`. A packet of such a flow that comes in for the port's own address
then leaves as the IP layer would have sent it, and does not come up.

All calls happen in dispatch context; none blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import attrs

from stack.core.ifnet import Interface

PORTS_MAX = 32
"""Ports of one engine."""
STATIONS_MAX = 8192
"""Stations of one engine. For one more, its own port or the one that has most (`stack.l2.places`) gives up its oldest, whose frames go by
the slow path (`stations_refused`) until it has the place of one that is silent (`stack.l2.forward.lacking`). Bounds kernel memory against
forged addresses."""

FLOWS_MAX = 4096
"""Routed flows of one engine, at most; `FLOWS_DEFAULT` unless the IP layer asks for more."""
FLOWS_DEFAULT = 256
"""As many as QNX's `ipflow` has."""
FLOW_SECONDS = 5.0
"""A flow that was silent for so long is forgotten: QNX's timer."""


@attrs.frozen
class RoutedFlow:
    """Packets from *source* to *destination* (addresses of 4 or 16 bytes) that come in on *interface* for its own address leave through
    *output* for the station *next_hop*, from the address of *output*, with a TTL that is one less."""

    interface: Interface
    source: bytes
    destination: bytes
    output: Interface
    next_hop: bytes


@attrs.frozen
class FlowStatistics:
    """*idle*: seconds since a packet of it was carried, or since it was marked."""

    flow: RoutedFlow
    idle: float
    frames: int
    octets: int


@attrs.frozen
class PortStatistics:
    """What the engine did for one port. `off`: why it carries nothing of this port just now; empty when it does.

    `up` counts frames that came in here and were handed to the stack, by reason; `dropped` those that ended here.
    """

    off: tuple[str, ...]
    how: str
    """How it is attached: `xdp native`, `xdp generic`, `thread 0`; empty when it is not."""
    in_frames: int
    """Came in here and were carried to another port."""
    in_bytes: int
    out_frames: int
    """Came in elsewhere and were carried out here."""
    out_bytes: int
    up: Mapping[str, int]
    dropped: Mapping[str, int]


@attrs.frozen
class EngineStatistics:
    """A frozen copy. `why`: why this engine and not the one asked for or preferred; empty when there is nothing to say."""

    engine: str
    why: str
    stations: int
    stations_refused: int
    ports: Mapping[str, PortStatistics]
    flows: int = 0
    """Routed."""
    flows_refused: int = 0

    @property
    def frames(self) -> int:
        """Carried in all."""
        return sum(port.in_frames for port in self.ports.values())


class Engine(Protocol):
    """See the head of this file."""

    @property
    def name(self) -> str:
        """`kernel`, `threads` or `none`."""
        ...

    def add(self, interface: Interface) -> None:
        """A port from now on. What stands against carrying its frames is no error: it is a reason to be off. Misuse beyond PORTS_MAX."""
        ...

    def remove(self, interface: Interface) -> None:
        """No port any more; its stations are forgotten. Its frames go up again when this returns. Unknown interfaces are ignored."""
        ...

    def off(self, interface: Interface, why: str) -> None:
        """Carry nothing into or out of this port while *why* holds. Idempotent."""
        ...

    def on(self, interface: Interface, why: str) -> None:
        """*why* holds no more. The port carries again when no other reason is left."""
        ...

    def learned(self, station: bytes, interface: Interface) -> None:
        """Frames to *station* leave through *interface*, and frames from it come in there. Replaces what was known. Cheap when it is
        known already. Groups and our own addresses are never told."""
        ...

    def forget(self, station: bytes) -> None: ...

    def flush(self, interface: Interface | None = None) -> None:
        """Forget the stations of one port, or all."""
        ...

    def idle(self, station: bytes) -> float | None:
        """Seconds since the engine last carried a frame *from* the station; None: not since it was told of it. For ageing: what the engine
        carries the bridge does not see."""
        ...

    def route(self, flow: RoutedFlow) -> bool:
        """Pass on what is of *flow* from now on, until it was silent for FLOW_SECONDS, an interface of it changes, or `unroute`. Replaces
        what was known. False: not now, because of a port that is off or no port, or for want of room. Misuse for one that cannot be."""
        ...

    def unroute(self, interface: Interface, source: bytes | None = None, destination: bytes | None = None) -> None:
        """Forget the flow; without addresses, all that come in or leave there. When a route, a neighbour or a filter changes."""
        ...

    def flows(self) -> list[FlowStatistics]: ...

    def statistics(self) -> EngineStatistics:
        """Costs what counting each port costs: for people."""
        ...

    @property
    def frames(self) -> int:
        """Carried in all; cheaper than `statistics`."""
        ...

    def close(self) -> None:
        """Remove all ports and leave nothing behind. Idempotent."""
        ...
