"""What carries: the seam below `FastPath`. Ports are numbers, stations are in the carrier only while their port is attached.

`FastPath` decides when a port is attached and when it is on; a carrier does as it is told, and counts. All calls in dispatch context.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import Protocol

import attrs

from stack.core.ifnet import Interface
from stack.core.linuxinterface import LinuxInterface


class Reason(enum.IntEnum):
    """Why a frame was not carried. The order is that of the counters that programs and workers keep."""

    SHORT = 0
    GROUP = 1
    OFF = 2
    SOURCE = 3
    DESTINATION = 4
    OUTPUT_OFF = 5
    LONG = 6
    SAME_PORT = 7
    """Dropped, not handed up."""
    TRUNCATED = 8
    """Dropped: longer than a slot of the ring (threads)."""
    WAITING_FULL = 9
    """Dropped: too many frames wait for the stack (threads)."""
    NOT_SENT = 10
    """Dropped: the output interface did not take it. Threads count where it came in; the kernel where it should have left, as Linux counts
    it: whoever sent it, and what had been carried by then is counted as that, too."""
    OVERRUN = 11
    """Dropped: the ring was full (threads)."""
    ORDER = 12
    """Handed up, since earlier frames between these stations wait for the stack and must not be overtaken."""
    FLOW = 13
    """For the port's own address, and of no flow that is known."""
    FOREIGN = 14
    """For the port's own address, and for the IP layer to look at: options, a fragment, a TTL that ends, a bad header, no IP."""
    FAILED = 15
    """Dropped: of the batch in which the worker came upon an error of its own (threads)."""


DROPPED = frozenset((Reason.SAME_PORT, Reason.TRUNCATED, Reason.WAITING_FULL, Reason.NOT_SENT, Reason.OVERRUN, Reason.FAILED))


FlowKey = tuple[bytes, bytes]
"""Source and destination, 4 or 16 bytes each."""


@attrs.frozen
class FlowCounts:
    """Of a routed flow; *used*: seconds of the monotonic clock, 0 for never."""

    used: float
    frames: int
    octets: int


@attrs.frozen
class Counts:
    """Of one port, since it was attached."""

    in_frames: int
    in_bytes: int
    out_frames: int
    out_bytes: int
    reasons: tuple[int, ...]
    """By `Reason`."""

    def plus(self, more: Counts) -> Counts:
        return Counts(
            self.in_frames + more.in_frames,
            self.in_bytes + more.in_bytes,
            self.out_frames + more.out_frames,
            self.out_bytes + more.out_bytes,
            tuple(map(sum, zip(self.reasons, more.reasons, strict=True))),
        )


NOTHING = Counts(0, 0, 0, 0, (0,) * len(Reason))


class Carrier(Protocol):
    """See the head of this file."""

    @property
    def name(self) -> str: ...

    @property
    def costs_while_off(self) -> bool:
        """Frames of a port that is attached, but off, go up at a cost."""
        ...

    def attach(self, port: int, interface: Interface, linux: LinuxInterface) -> None:
        """Take over a port, off. OSError, and nothing has changed, when the system refuses it; the text is for people."""
        ...

    def detach(self, port: int) -> None:
        """The port's frames go up as without an engine when this returns. Its stations have been dropped before. What it carried to other
        ports, and they to it, stays in their counts."""
        ...

    def allow(self, port: int, on: bool) -> None:
        """Whether frames are carried into and out of an attached port."""
        ...

    def put(self, station: bytes, port: int) -> None:
        """OSError when there is no more room."""
        ...

    def drop(self, station: bytes) -> None: ...

    def put_flow(self, port: int, key: FlowKey, output: int, macs: bytes, own: bytes) -> None:
        """Packets of *key* that come in on an attached port for its address *own* leave through *output*, which is attached, with *macs*:
        destination and source. OSError when there is no more room."""
        ...

    def drop_flow(self, port: int, key: FlowKey) -> None: ...

    def flow_counts(self, port: int, key: FlowKey) -> FlowCounts: ...

    def idle(self, station: bytes) -> float | None:
        """See `stack.l2.engine.Engine.idle`."""
        ...

    def counts(self, ports: Collection[int]) -> Mapping[int, Counts]:
        """Of those of *ports* that are attached."""
        ...

    def frames(self) -> int:
        """Carried in all by the ports that are attached."""
        ...

    def how(self, port: int) -> str:
        """How the port is attached, for people; empty when it is not."""
        ...

    def close(self) -> None: ...
