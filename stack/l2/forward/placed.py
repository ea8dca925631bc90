"""Which stations have a place in an engine, and behind which port: told by the bridge, bounded, and given to the carrier while their port
is attached. Who gives his place up, and how he comes by another one: `stack.l2.places`, `stack.l2.forward.lacking`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from resmgr.dispatch import Dispatch, Timer
from stack.l2.forward.carrier import Carrier
from stack.l2.forward.lacking import OFFER_SECONDS, Lacking, silent_one
from stack.l2.forward.port import EnginePort
from stack.l2.places import share

log = logging.getLogger(__name__)


class PlacedStations:
    """At most *most* of them, behind *ports* (a view of what there is); *carrier* may be there later than this."""

    def __init__(self, dispatch: Dispatch, most: int, ports: Collection[EnginePort], carrier: Callable[[], Carrier | None]) -> None:
        self._dispatch = dispatch
        self._most = most
        self._ports = ports
        self._carrier = carrier
        self._known: dict[bytes, EnginePort] = {}
        self._lacking: Lacking[EnginePort] = Lacking()
        self._offering: Timer | None = None
        self.refused = 0
        """Times that there was no place."""

    def __len__(self) -> int:
        return len(self._known)

    def learned(self, station: bytes, port: EnginePort) -> None:
        before = self._known.get(station)
        if before is port:
            return
        if before is None and len(self._known) >= self._most:
            self.refused += 1
            self._give_up(next(iter(self._giving(port).stations)))
        self._enter(station, port, before)

    def forget(self, station: bytes) -> None:
        self._lacking.remove(station)
        port = self._known.pop(station, None)
        carrier = self._carrier()
        if port is not None:
            port.stations.pop(station, None)
            if port.index and carrier is not None:
                carrier.drop(station)

    def flush(self, ports: Collection[EnginePort]) -> None:
        for station in [station for port in ports for station in (*port.stations, *self._lacking.of(port))]:
            self.forget(station)

    def idle(self, station: bytes) -> float | None:
        """See `stack.l2.engine.Engine`."""
        port, carrier = self._known.get(station), self._carrier()
        return carrier.idle(station) if port is not None and port.index and carrier is not None else None

    def attached(self, port: EnginePort) -> None:
        """The carrier is told of those that are behind it."""
        for station in list(port.stations):
            self._put(station, port)

    def close(self) -> None:
        """Idempotent."""
        if self._offering is not None:
            self._offering.cancel()

    def _giving(self, port: EnginePort) -> EnginePort:
        """Whose oldest gives its place to a new one of *port*: as in the bridge, beyond its share a port takes from itself."""
        with_stations = sum(bool(one.stations) or one is port for one in self._ports)
        if len(port.stations) >= share(self._most, with_stations):
            return port
        return max(self._ports, key=lambda one: len(one.stations))

    def _give_up(self, station: bytes) -> None:
        """Its place is another's now; it waits for one."""
        port = self._known[station]
        self.forget(station)
        self._lack(station, port)

    def _lack(self, station: bytes, port: EnginePort) -> None:
        self._lacking.put(station, port)
        if self._offering is None:
            self._offering = self._dispatch.call_at(self._dispatch.now() + OFFER_SECONDS, self._offer)

    def _offer(self) -> None:
        """Those that lack a place, again."""
        self._offering = None
        for station, port in self._lacking.next_ones():
            self._lacking.remove(station)
            full = len(self._known) >= self._most
            silent = silent_one(self._known, self.idle) if full else None
            if silent is not None:
                self._give_up(silent)
            if full and silent is None:
                self._lack(station, port)
            else:
                self._enter(station, port, None)
        if len(self._lacking) and self._offering is None:
            self._offering = self._dispatch.call_at(self._dispatch.now() + OFFER_SECONDS, self._offer)

    def _enter(self, station: bytes, port: EnginePort, before: EnginePort | None) -> None:
        self._lacking.remove(station)
        self._known[station] = port
        port.stations[station] = None
        carrier = self._carrier()
        if before is not None:
            before.stations.pop(station, None)
        if port.index:
            self._put(station, port)
        elif before is not None and before.index and carrier is not None:
            carrier.drop(station)

    def _put(self, station: bytes, port: EnginePort) -> None:
        carrier = self._carrier()
        if carrier is None:
            return
        try:
            carrier.put(station, port.number)
        except OSError as error:
            self.refused += 1
            if self.refused == 1:
                log.warning("forwarding: no room for a station, which is tried again later: %s", error.strerror)
            del self._known[station]
            port.stations.pop(station, None)
            self._lack(station, port)
