"""The seam between a bridge and what forwards for it without the stack's task: a forwarding engine. See docs/stack/forwarding.md.

The bridge decides, the engine carries. The bridge tells which interfaces are its ports and which station is behind which port; a frame
from a known station, on the port where it is known, to a known station behind another port, then never comes up. Everything else does, as
if there were no engine: groups, our own addresses, unknown stations, a station that moved, every frame of a port that is off.

    bridge -> learned, forget, flush, off, on -> engine
    bridge <- idle (for ageing), statistics    <- engine

A port is off while somebody has to see each of its frames. Reasons have names, several may hold at once, and `statistics` shows them. The
bridge gives its own reasons (spanning tree, a port that discards); the engine finds those that lie in the stack (a tap, a wrapper around
the driver, no Linux interface below).

All calls happen in dispatch context; none blocks. What the IP layer marks as a cacheable flow goes by the same engines when there is
one: a flow is another key with another output, beside stations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import attrs

from stack.core.ifnet import Interface

PORTS_MAX = 32
"""Ports of one engine."""
STATIONS_MAX = 8192
"""Stations of one engine. For one more, the port that has most gives up its oldest, whose frames go by the slow path (`stations_refused`).
Bounds
kernel memory against forged addresses."""


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

    def statistics(self) -> EngineStatistics: ...

    def close(self) -> None:
        """Remove all ports and leave nothing behind. Idempotent."""
        ...
