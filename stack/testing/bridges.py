"""Bridges and cables in virtual time, for tests of spanning trees: a BPDU takes a moment, cables break, and after each event it is checked
that no frame could circle.

A cable joins two ports or more (a shared network). A bridge is a `SpanningTree` and its number.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator

import attrs

from stack.l2.stp.machine import SpanningTree
from stack.l2.stp.settings import PortSettings, TreeSettings
from stack.wire.bpdu import parse_bpdu

Plug = tuple[int, int]
"""A bridge and its port."""


class LoopError(AssertionError):
    """Frames could circle."""


@attrs.define(eq=False)
class Cable:
    """`deaf`: plugs at which nothing arrives any more, though the link is up: a fibre that broke one way."""

    plugs: list[Plug]
    up: bool = True
    deaf: set[Plug] = attrs.Factory(set)


class BridgedNetwork:
    """See the head of this file. *settings*: one for each bridge. `now` is virtual; delays of BPDUs are drawn from *seed*."""

    def __init__(self, settings: list[TreeSettings], seed: int = 0) -> None:
        self.now = 1000.0
        self.random = random.Random(seed)
        self.bridges = [SpanningTree(bytes((2, 0, 0, 0, 0, number + 1)), one, self.now) for number, one in enumerate(settings)]
        self.cables: list[Cable] = []
        self.loss = 0.0
        self.bpdus = 0
        self._ports = [0] * len(settings)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._latest: dict[Plug, float] = {}

    def join(self, *bridges: int, port: PortSettings | None = None) -> Cable:
        """A cable between them, one port of each."""
        plugs = []
        shared = len(bridges) > 2
        for bridge in bridges:
            self._ports[bridge] += 1
            plugs.append((bridge, self._ports[bridge]))
        cable = Cable(plugs)
        self.cables.append(cable)
        for bridge, number in plugs:
            self.bridges[bridge].add(number, port or PortSettings(point_to_point=not shared), True, self.now)
        self._after()
        return cable

    def set_up(self, cable: Cable, up: bool) -> None:
        """Break a cable, or mend it: all its ports notice at once."""
        cable.up = up
        for bridge, number in cable.plugs:
            self.bridges[bridge].set_enabled(number, up, self.now)
        self._after()

    def run_for(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass. With *until*: no longer than needed; whether it came true."""
        end = self.now + seconds
        while until is None or not until():
            due = [when for tree in self.bridges if (when := tree.next_timeout()) is not None]
            if self._events:
                due.append(self._events[0][0])
            when = min(due, default=math.inf)
            if when > end:
                self.now = end
                return until is None or until()
            self.now = max(self.now, when)
            if self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            else:
                for tree in self.bridges:
                    timeout = tree.next_timeout()
                    if timeout is not None and timeout <= self.now:
                        tree.handle_timeout(self.now)
            self._after()
        return True

    def _after(self) -> None:
        self.check()
        for number, tree in enumerate(self.bridges):
            for port, bpdu in tree.transmit():
                self._send(number, port, bpdu)

    def _send(self, bridge: int, port: int, bpdu: bytes) -> None:
        self.bpdus += 1
        for cable in self.cables:
            if (bridge, port) in cable.plugs and cable.up:
                for plug in cable.plugs:
                    if plug != (bridge, port) and self.random.random() >= self.loss:
                        self._deliver(cable, plug, bpdu)

    def _deliver(self, cable: Cable, plug: Plug, bpdu: bytes) -> None:
        def arrive() -> None:
            if cable.up and plug not in cable.deaf:
                self.bridges[plug[0]].receive(plug[1], parse_bpdu(bpdu), self.now)

        # A cable keeps the order of what is sent into it, which the protocol relies on.
        when = max(self.now + self.random.uniform(20e-6, 200e-6), self._latest.get(plug, 0.0))
        self._latest[plug] = when
        heapq.heappush(self._events, (when, next(self._order), arrive))

    def check(self) -> None:
        """LoopError when a frame could circle just now."""
        parent: dict[tuple[str, int], tuple[str, int]] = {}

        def find(one: tuple[str, int]) -> tuple[str, int]:
            while parent.get(one, one) != one:
                one = parent[one]
            return one

        for cable, bridge, _ in self._carrying():
            one, other = find(("bridge", bridge)), find(("cable", cable))
            if one == other:
                raise LoopError(f"a loop at {self.now - 1000.0:.6f} s: {self.picture()}")
            parent[one] = other

    def _carrying(self) -> Iterator[tuple[int, int, int]]:
        for index, cable in enumerate(self.cables):
            ends = [(bridge, port) for bridge, port in cable.plugs if cable.up and self.bridges[bridge].forwarding(port)]
            yield from ((index, bridge, port) for bridge, port in ends if len(ends) > 1)

    def connected(self) -> bool:
        """Every bridge reaches every other that cables reach, by forwarding ports only."""
        return self._groups(forwarding=True) == self._groups(forwarding=False)

    def _groups(self, forwarding: bool) -> set[frozenset[int]]:
        groups = [{number} for number in range(len(self.bridges))]
        for cable in self.cables:
            ends = [bridge for bridge, port in cable.plugs if cable.up and (not forwarding or self.bridges[bridge].forwarding(port))]
            joined: set[int] = set().union(*(group for group in groups if group & set(ends)))
            groups = [group for group in groups if not group & set(ends)] + ([joined] if joined else [])
        return set(map(frozenset, groups))

    def picture(self) -> str:
        """Cables and what their ends do, in one line."""
        cables = [
            "-".join(f"{bridge}.{port}{'!' if self.bridges[bridge].forwarding(port) else ''}" for bridge, port in cable.plugs)
            for cable in self.cables
            if cable.up
        ]
        return " ".join(cables)
