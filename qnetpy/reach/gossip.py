"""Gossip: what up nodes tell each other about endpoints, so that nodes of other networks find each other through one seed. Pure.

A node tells of itself (the endpoints it has) and of nodes that it has authenticated (where that was, and what they told of themselves),
never what third nodes told: no rumour goes round, and what is told of a node ends soon after the last that authenticated it. What is told
is a hint and no more: the handshake decides who is there, so that a lying member can cause a bounded number of calls to nobody.

    version 1   0   count (2)
    count times:    age (2, seconds)   port (2)   family (1: 4 or 6)   address (4 or 16)   length (1)   name

docs/protocol/discovery.md has when it is told.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import attrs

from qnetpy.identity.names import is_name
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from stack.wire.endpoint import Endpoint, endpoint

VERSION = 1
AGE_MAX = 900
"""Seconds after which an endpoint at which nobody was authenticated again is not told, nor called, any more."""
ENTRIES_MAX = 512
"""Entries in one message: 43 KiB at most. In a larger cluster it is the newest."""
MESSAGE_MAX = 4 + ENTRIES_MAX * (5 + 16 + 1 + 63)
PER_NODE_MAX = 8
"""Endpoints of one node, told or kept. Stops a member that claims to be everywhere."""
NODES_MAX = 4096
"""Nodes of which endpoints are kept."""
PER_TELLER_MAX = 512
"""Endpoints called because one node told of them. Stops a lying member from making us call all the world."""

_HEAD = struct.Struct("!BBH")
_ENTRY = struct.Struct("!HHB")


@attrs.frozen
class Told:
    """A node was, or claims to be, at an endpoint *age* seconds ago."""

    name: str
    endpoint: Endpoint
    age: int


def pack(entries: Iterable[Told]) -> bytes:
    """At most ENTRIES_MAX entries."""
    parts = []
    for one in entries:
        address, name = one.endpoint.packed, one.name.encode()
        parts += [_ENTRY.pack(one.age, one.endpoint.port, 4 if len(address) == 4 else 6), address, bytes((len(name),)), name]
    return b"".join((_HEAD.pack(VERSION, 0, len(parts) // 4), *parts))


def parse(data: Buffer) -> list[Told]:
    """BadMessage for anything that `pack` does not make. Endpoints that only one machine understands are bad too."""
    data = bytes(data)
    if len(data) < _HEAD.size:
        raise BadMessage("gossip: cut short")
    version, zero, count = _HEAD.unpack_from(data)
    if version != VERSION or zero or count > ENTRIES_MAX:
        raise BadMessage("gossip: version or count")
    found = []
    place = _HEAD.size
    for _ in range(count):
        try:
            age, port, family = _ENTRY.unpack_from(data, place)
            place += _ENTRY.size
            size = {4: 4, 6: 16}[family]
            address = data[place : place + size]
            place += size
            length = data[place]
            name = data[place + 1 : place + 1 + length].decode("ascii")
            place += 1 + length
            made = endpoint(address, port)
        except (struct.error, LookupError, ValueError) as error:
            raise BadMessage("gossip: entry") from error
        if len(address) != size or len(name) != length or place > len(data) or not is_name(name):
            raise BadMessage("gossip: entry")
        if not made.is_routable():
            raise BadMessage("gossip: an endpoint that means nothing elsewhere")
        found.append(Told(name, made, age))
    if place != len(data):
        raise BadMessage("gossip: more than its count")
    return found


class GossipTable:
    """What this node may tell: endpoints of nodes that it has authenticated, with the time when that was last so."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[Endpoint, float]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._seen.values()))

    def saw(self, name: str, where: Endpoint, now: float) -> bool:
        """*name* was authenticated there, or said so over its own link. True when that is news."""
        if not where.is_routable():
            return False
        places = self._seen.pop(name, {})
        self._seen[name] = places
        news = where not in places
        places.pop(where, None)
        places[where] = now
        if len(places) > PER_NODE_MAX:
            del places[next(iter(places))]
        if len(self._seen) > NODES_MAX:
            del self._seen[next(iter(self._seen))]
        return news

    def knows(self, name: str, where: Endpoint) -> bool:
        """Whether that would be told."""
        return where in self._seen.get(name, ())

    def refresh(self, name: str, now: float) -> None:
        """*name* is up: what is known of it holds."""
        places = self._seen.get(name)
        if places is not None:
            for where in places:
                places[where] = now

    def told(self, now: float, without: str = "", only: Iterable[str] | None = None) -> list[Told]:
        """What to tell, newest first, at most ENTRIES_MAX less one node's own."""
        names = self._seen if only is None else only
        found = [
            Told(name, where, max(0, int(now - when)))
            for name in names
            if name != without
            for where, when in self._seen.get(name, {}).items()
            if now - when <= AGE_MAX
        ]
        found.sort(key=lambda one: one.age)
        return found[: ENTRIES_MAX - PER_NODE_MAX]

    def expire(self, now: float) -> None:
        for name in list(self._seen):
            places = {where: when for where, when in self._seen[name].items() if now - when <= AGE_MAX}
            if places:
                self._seen[name] = places
            else:
                del self._seen[name]
