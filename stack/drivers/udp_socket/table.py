"""Which endpoint has which station. Pure.

A station is a keyed hash of the endpoint (BLAKE2s, 46 bits, locally administered, no group), with a key drawn when the driver starts. So an
endpoint that was forgotten comes back under the same station, nobody outside can choose endpoints whose stations are equal, and the table
is needed for the way back only, from station to endpoint. Entries are of three kinds:

    kept        asked for by name (`keep`): stays until it is let go. KEPT_MAX
    used        something was sent to it: the one not sent to for longest gives way. USED_MAX
    heard       something came from it, nothing was sent: a ring, the oldest gives way. HEARD_MAX

Datagrams with invented sources therefore push out nothing but each other. To push out an endpoint in use, which is sent to at least
every 0.4 s (heartbeats), they would have to make us send to USED_MAX others meanwhile; links answer at most some 1,600 strangers a second
(docs/protocol/link.md), and none who does not hold the cluster's secret.
"""

from __future__ import annotations

import hashlib
import math
from typing import Generic, TypeVar

import attrs

from stack.wire.endpoint import SockAddr
from stack.wire.ethernet import made_station

KEPT_MAX = 4096
USED_MAX = 4096
HEARD_MAX = 1024
S = TypeVar("S")
"""What datagrams are sent through: a socket."""


@attrs.define(eq=False)
class Entry(Generic[S]):
    """An endpoint. `socket` and `source` are how it is sent to: through which socket, and from which address of ours (b"": any)."""

    sockaddr: SockAddr
    station: bytes
    socket: S
    source: bytes = b""
    heard_at: float = -math.inf
    """When something last came to `source`."""
    header: bytes = b""
    """Ethernet header of what comes from there."""
    kept: int = 0


class EndpointTable(Generic[S]):
    """See the head of this file. *key*: 16 random bytes."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.by_address: dict[SockAddr, Entry[S]] = {}
        """For the way in; only read."""
        self.by_station: dict[bytes, Entry[S]] = {}
        """For the way out; only read."""
        self._used: dict[bytes, Entry[S]] = {}
        self._heard: dict[bytes, Entry[S]] = {}
        self._kept = 0

    def hash(self, text: str) -> bytes:
        """Six bytes: a locally administered address of one station."""
        return made_station(hashlib.blake2s(text.encode(), key=self._key, digest_size=6).digest())

    def heard(self, sockaddr: SockAddr, sock: S) -> Entry[S] | None:
        """A datagram came from an endpoint that is not in `by_address`: its new entry. None if another has its station (in 2**46 one)."""
        entry = self._enter(sockaddr, sock)
        if entry is not None:
            self._heard[entry.station] = entry
            if len(self._heard) > HEARD_MAX:
                self._forget(next(iter(self._heard.values())))
        return entry

    def keep(self, sockaddr: SockAddr, sock: S) -> Entry[S] | None:
        """The entry of that endpoint, made if need be, which stays until `let_go`. None when KEPT_MAX are kept."""
        entry = self.by_address.get(sockaddr)
        if (entry is None or not entry.kept) and self._kept >= KEPT_MAX:
            return None
        if entry is None:
            entry = self._enter(sockaddr, sock)
        if entry is not None:
            if not entry.kept:
                self._kept += 1
            entry.kept += 1
            self._heard.pop(entry.station, None)
            self._used.pop(entry.station, None)
        return entry

    def let_go(self, sockaddr: SockAddr) -> None:
        """Take one `keep` back."""
        entry = self.by_address.get(sockaddr)
        if entry is not None and entry.kept:
            entry.kept -= 1
            if not entry.kept:
                self._kept -= 1
                self.use(entry)

    def use(self, entry: Entry[S]) -> None:
        """Something is sent to it."""
        if entry.kept:
            return
        station = entry.station
        self._heard.pop(station, None)
        self._used.pop(station, None)
        self._used[station] = entry
        if len(self._used) > USED_MAX:
            self._forget(next(iter(self._used.values())))

    def sizes(self) -> tuple[int, int, int]:
        """How many are kept, used, heard."""
        return self._kept, len(self._used), len(self._heard)

    def _enter(self, sockaddr: SockAddr, sock: S) -> Entry[S] | None:
        station = self.hash(repr(sockaddr))
        if station in self.by_station:
            return None
        entry = Entry(sockaddr, station, sock)
        self.by_address[sockaddr] = self.by_station[station] = entry
        return entry

    def _forget(self, entry: Entry[S]) -> None:
        del self.by_address[entry.sockaddr], self.by_station[entry.station]
        self._used.pop(entry.station, None)
        self._heard.pop(entry.station, None)
