"""What a worker thread and the dispatch share of a port: stations, flows, counters, and what waits to be handed up.

It changes by replacing, never in place, or is a deque: no locks per frame.
"""

from __future__ import annotations

import threading
from collections import deque

from stack.core.ifnet import Interface
from stack.frame import Frame
from stack.l2.forward.carrier import FlowKey, Reason
from stack.l2.forward.ring import PortRing
from stack.wire.ethernet import HEADER_SIZE, TAG_SIZE


class Station:
    """`used`: monotonic seconds of the last frame from it that was carried; 0: none yet."""

    __slots__ = ("port", "used")

    def __init__(self, port: int) -> None:
        self.port = port
        self.used = 0.0


class Flow:
    """What becomes of frames between two addresses that came in on one port: out by `pairs` of the output, or up for `reason`."""

    __slots__ = ("pairs", "reason", "room", "source")

    def __init__(self, source: Station, pairs: list[int] | None, room: int, reason: Reason) -> None:
        self.source = source
        self.pairs = pairs
        self.room = room
        self.reason = reason


class Routed:
    """A flow of the IP layer's: out by `pairs` of the port *output*, with other addresses."""

    __slots__ = ("frames", "macs", "octets", "output", "used")

    def __init__(self, output: int, macs: bytes) -> None:
        self.output = output
        self.macs = macs
        self.used = 0.0
        self.frames = self.octets = 0


class WorkerPort:
    """A port as workers and the dispatch see it. Counters but that of overruns are written by the worker alone, `allowed` and the like by
    the dispatch."""

    def __init__(self, number: int, interface: Interface, ring: PortRing, mtu: int) -> None:
        self.number = number
        self.interface = interface
        self.ring = ring
        self.mtu = mtu
        self.room = mtu + HEADER_SIZE + TAG_SIZE
        self.allowed = False
        self.leaving = False
        self.gone = False
        """The ring is closed: what is in `handed` is the last."""
        self.sending = threading.Lock()
        """Held by who sends through this port or closes it: a descriptor that is closed may be another file's at once."""
        self.flows: dict[bytes, Flow] = {}
        self.routes: dict[FlowKey, Routed] = {}
        self.own = b""
        """The address for which packets of `routes` come; empty while there are none."""
        self.handed: deque[tuple[frozenset[bytes], list[Frame]]] = deque()
        self.next = 0
        self.in_frames = self.in_bytes = 0
        self.out: dict[int, list[int]] = {}
        """By output port: frames and bytes carried there."""
        self.reasons = [0] * len(Reason)
        self.failed = False
        """Somebody has been told that a batch was lost by an error."""

    def count_lost(self) -> None:
        """By the dispatch: the kernel tells how many frames found the ring full."""
        with self.sending:
            if not self.gone:
                self.reasons[Reason.OVERRUN] += self.ring.lost()
