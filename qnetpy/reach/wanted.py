"""Endpoints that are to be called, and the addresses they have on each interface of the UDP bearer. Pure.

Several may want one endpoint (configuration, mDNS, gossip): it is called until the last of them does not any more. The driver keeps its
station as long.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from stack.core.endpoints import Endpoints
from stack.wire.endpoint import Endpoint

WANTED_MAX = 2048
"""Endpoints called. Stops announcements and gossip of invented ones: below what a driver keeps."""
Address = tuple[str, bytes]
Tell = Callable[[Address], None]


@attrs.define(eq=False)
class _Wanted:
    users: int = 0
    stations: dict[str, bytes] = attrs.Factory(dict)
    """By interface."""


class WantedEndpoints:
    """*hint* is told an address to call, *unhint* one that is not to be called any more."""

    def __init__(self, hint: Tell, unhint: Tell) -> None:
        self._hint = hint
        self._unhint = unhint
        self._interfaces: dict[str, Endpoints] = {}
        self._wanted: dict[Endpoint, _Wanted] = {}
        self.refused = 0
        """Endpoints that were not taken because WANTED_MAX are there."""

    def __len__(self) -> int:
        return len(self._wanted)

    def __contains__(self, endpoint: Endpoint) -> bool:
        return endpoint in self._wanted

    def interface(self, name: str, endpoints: Endpoints) -> None:
        """An interface is there, or something about it changed."""
        self._interfaces[name] = endpoints
        for endpoint, wanted in self._wanted.items():
            self._place(name, endpoints, endpoint, wanted)

    def interface_gone(self, name: str) -> None:
        """Its hints are forgotten with it, and its stations with the driver."""
        self._interfaces.pop(name, None)
        for wanted in self._wanted.values():
            wanted.stations.pop(name, None)

    def want(self, endpoint: Endpoint) -> bool:
        """One more wants it. False, and nothing is to be taken back, when there are too many or nobody can be there.

        Said again of an endpoint that is known: it is called again soon.
        """
        wanted = self._wanted.get(endpoint)
        if wanted is None:
            if not endpoint.is_callable():
                return False
            if len(self._wanted) >= WANTED_MAX:
                self.refused += 1
                return False
            wanted = self._wanted[endpoint] = _Wanted()
        wanted.users += 1
        for name, endpoints in self._interfaces.items():
            if not self._place(name, endpoints, endpoint, wanted) and name in wanted.stations:
                self._hint((name, wanted.stations[name]))
        return True

    def again(self, endpoint: Endpoint) -> None:
        """Somebody may be there now: call it soon, if it is wanted."""
        wanted = self._wanted.get(endpoint)
        for name, station in () if wanted is None else wanted.stations.items():
            self._hint((name, station))

    def drop(self, endpoint: Endpoint) -> None:
        """One less wants it."""
        wanted = self._wanted.get(endpoint)
        if wanted is None:
            return
        wanted.users -= 1
        if wanted.users:
            return
        del self._wanted[endpoint]
        for name, station in wanted.stations.items():
            self._unhint((name, station))
            self._interfaces[name].release(endpoint)

    def clear(self) -> None:
        """Nobody wants anything any more: the drivers may outlive us."""
        for endpoint, wanted in list(self._wanted.items()):
            wanted.users = 1
            self.drop(endpoint)

    def _place(self, name: str, endpoints: Endpoints, endpoint: Endpoint, wanted: _Wanted) -> bool:
        """Call it through that interface too, if that can be and is not so already."""
        if name in wanted.stations:
            return False
        station = endpoints.station(endpoint)
        if station is None:
            return False
        wanted.stations[name] = station
        self._hint((name, station))
        return True
