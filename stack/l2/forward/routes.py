"""Flows that the IP layer routes, as the engine keeps them: bounded, and forgotten when they are silent or no longer true.

The IP layer marks a flow when it has routed a packet of it and sees nothing that has to look at each: no filter, no translation, no tunnel.
From then on the engine passes its packets on. QNX's `ipflow` keeps 256 flows and forgets one that was silent for 5 s; so does this, and
a flow that is marked when the table is full takes the place of one that was silent for a second, or is refused: strangers who invent
addresses cost no more than the slow path does.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from resmgr.errors import Misuse
from stack.core.ifnet import Interface
from stack.l2.engine import FLOWS_DEFAULT, FLOWS_MAX, RoutedFlow
from stack.l2.forward.carrier import FlowKey

REAP_SECONDS = 1.0


@attrs.define(eq=False)
class Route:
    """*used*, *frames*, *octets*: what the carrier had counted when it was last asked, or when the flow was marked."""

    flow: RoutedFlow
    used: float
    frames: int = 0
    octets: int = 0

    @property
    def key(self) -> FlowKey:
        return self.flow.source, self.flow.destination


class Routes:
    """See the head of this file. *look(route)* brings its counts up to date, *drop(route)* takes it from the carrier."""

    def __init__(self, look: Callable[[Route], None], drop: Callable[[Route], None], limit: int = FLOWS_DEFAULT) -> None:
        if not 0 < limit <= FLOWS_MAX:
            raise Misuse(f"an engine keeps at most {FLOWS_MAX} flows")
        self._look = look
        self._drop = drop
        self._limit = limit
        self._looked = 0.0
        self.known: dict[tuple[Interface, bytes, bytes], Route] = {}
        self.refused = 0

    def add(self, flow: RoutedFlow, now: float) -> Route | None:
        """None when there is no room."""
        _check(flow)
        place = (flow.interface, flow.source, flow.destination)
        self.remove(place)
        if len(self.known) >= self._limit and not (now >= self._looked + REAP_SECONDS and self._reap(now)):
            self.refused += 1
            return None
        made = self.known[place] = Route(flow, now)
        return made

    def _reap(self, now: float) -> bool:
        """Make room for one: the most silent goes, if it was silent for a second. Looked for once a second at most."""
        self._looked = now
        for route in self.known.values():
            self._look(route)
        oldest = min(self.known.values(), key=lambda route: route.used)
        if now - oldest.used < REAP_SECONDS:
            return False
        self.remove((oldest.flow.interface, *oldest.key))
        return True

    def remove(self, place: tuple[Interface, bytes, bytes]) -> None:
        """Idempotent."""
        route = self.known.pop(place, None)
        if route is not None:
            self._drop(route)

    def remove_of(self, interface: Interface) -> None:
        """All that come in or leave there."""
        for place in [place for place, route in self.known.items() if interface in (route.flow.interface, route.flow.output)]:
            self.remove(place)

    def expire(self, now: float, seconds: float) -> None:
        for place, route in list(self.known.items()):
            self._look(route)
            if now - route.used >= seconds:
                self.remove(place)


def _check(flow: RoutedFlow) -> None:
    if flow.interface is flow.output:
        raise Misuse("a flow that leaves where it came in is for the IP layer: the sender must be told of the better way")
    if len(flow.source) != len(flow.destination) or len(flow.source) not in (4, 16):
        raise Misuse("the addresses of a flow are both 4 or both 16 bytes")
    if len(flow.next_hop) != 6 or flow.next_hop[0] & 1:
        raise Misuse("the next hop of a flow is a station's address")
    first = flow.destination[0]
    if first == 0xFF if len(flow.destination) == 16 else first >= 224:
        raise Misuse("a flow to a group leaves through more than one interface")
