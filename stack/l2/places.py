"""Whose place in a full table of stations goes to a new one. Pure: `now` is an argument.

Sources can be made up, and a switch cannot tell such a station from a true one that has just come. What it can tell is how the ports use
the table. Every port may have its *share*, half of the table divided by the ports that have stations; up to it a new station takes the
place of one at the port that has most. So nobody is shut out by who came first. Beyond its share a port takes from its own stations, and
from a port with more than itself only what is *spare* there. So the other half belongs to who came first, and all that made-up sources can
displace of a busy uplink is the share of the ports that they come in on. They cannot raise it by speaking again, or from two ports at once:
the shares of all together are half of the table.

Spare is a station that was silent for PROVED_SECONDS; or, if it has not been *proved*, one that was silent for UNPROVED_SECONDS or whose
port *presses*, while the other one does not: it has pushed out as many of its own as it has within PRESSING_SECONDS. So who fills the table
before others come, with sources that he does not keep up, loses them to others down to an even split. A station is proved when it speaks
again a second after it came or later, or when something from another port is for it. Within a port, who is not proved goes before who is: a
flood of sources does not displace the true stations beside the one that floods, unless it keeps its own up as if they were true.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import attrs

from resmgr.bucket import TokenBucket

EVICTIONS_PER_SECOND = 500
"""For the new stations of one port. Each costs a forwarding engine two system calls."""
PROVED_SECONDS = 300.0
UNPROVED_SECONDS = 60.0
PRESSING_SECONDS = 10.0
CANDIDATES_MAX = 4
"""So many are asked about elsewhere for one place."""

Silent = Callable[[bytes, float], tuple[float, bool]]
"""Of a station, at what time: for how many seconds nobody heard it, and whether that was news, for which it has another place."""


def share(places: int, ports: int) -> int:
    """Of one of *ports* that have stations."""
    return max(1, places // (2 * max(1, ports)))


@attrs.define(eq=False)
class _Queue:
    """Stations of a port, each order the stalest first, to a second."""

    unproved: dict[bytes, None] = attrs.Factory(dict)
    proved: dict[bytes, None] = attrs.Factory(dict)
    pushed: int = 0
    """How many of it gave way to others of it since `since`."""
    since: float = float("-inf")
    pressed: float = float("-inf")
    """When it last did what the head of this file calls to press."""
    bucket: TokenBucket = attrs.Factory(lambda: TokenBucket(EVICTIONS_PER_SECOND, EVICTIONS_PER_SECOND))

    def __len__(self) -> int:
        return len(self.unproved) + len(self.proved)

    def push(self, now: float) -> None:
        """One of it gives way to another of it."""
        if now - self.since >= PRESSING_SECONDS:
            self.since, self.pushed = now, 0
        self.pushed += 1
        if self.pushed >= len(self):
            self.pressed = now

    def presses(self, now: float) -> bool:
        return now - self.pressed < PRESSING_SECONDS


class Places:
    """Learned stations by their ports. *silent*: see there."""

    def __init__(self, silent: Silent) -> None:
        self._silent = silent
        self._ports: dict[int, _Queue] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def on(self, port: int) -> int:
        """How many there are of one port."""
        queue = self._ports.get(port)
        return 0 if queue is None else len(queue)

    def put(self, address: bytes, port: int, proved: bool = False) -> None:
        """At the end of its port's order. It must not be there."""
        queue = self._ports.setdefault(port, _Queue())
        (queue.proved if proved else queue.unproved)[address] = None
        self._count += 1

    def take(self, address: bytes, port: int) -> None:
        queue = self._ports[port]
        if address in queue.proved:
            del queue.proved[address]
        else:
            del queue.unproved[address]
        self._count -= 1

    def spoke(self, address: bytes, port: int, proved: bool) -> None:
        """To the end of its port's order."""
        self.take(address, port)
        self.put(address, port, proved)

    def giving(self, port: int, places: int, most: int, now: float) -> tuple[bytes, int] | None:
        """Who gives its place to a new station of *port*, where it is; *most*: the bound of *port*, if it has reached that, else 0.
        None: nobody, since this port has displaced too many within a second."""
        own = self._ports.setdefault(port, _Queue())
        if not own.bucket.take(now):
            return None
        if not most:
            with_stations = {number: queue for number, queue in self._ports.items() if len(queue) or number == port}
            fullest = max(with_stations, key=lambda one: len(with_stations[one]))
            if fullest != port:
                if len(own) < share(places, len(with_stations)):
                    return self._weakest(fullest, now), fullest
                found = self._spare(fullest, own, now) if len(self._ports[fullest]) > len(own) else None
                if found is not None:
                    return found, fullest
        own.push(now)
        return self._weakest(port, now), port

    def surplus(self, places: int, now: float) -> tuple[bytes, int] | None:
        """Who goes first when there are more than *places*; None: there are not."""
        if self._count <= places:
            return None
        fullest = max(self._ports, key=lambda one: len(self._ports[one]))
        return self._weakest(fullest, now), fullest

    def weakest(self, port: int, now: float) -> bytes | None:
        """Who goes first of one port."""
        return self._weakest(port, now) if self.on(port) else None

    def _weakest(self, port: int, now: float) -> bytes:
        queue = self._ports[port]
        found = self._stale(queue.proved, PROVED_SECONDS, now) or self._stale(queue.unproved, 0.0, now)
        return found or next(iter(queue.unproved or queue.proved))

    def _spare(self, port: int, taker: _Queue, now: float) -> bytes | None:
        queue = self._ports[port]
        presses = queue.presses(now) and not taker.presses(now)
        unproved = self._stale(queue.unproved, 0.0 if presses else UNPROVED_SECONDS, now)
        return unproved or self._stale(queue.proved, PROVED_SECONDS, now)

    def _stale(self, order: dict[bytes, None], seconds: float, now: float) -> bytes | None:
        """The stalest of *order*, if it was silent for so long."""
        for address in list(islice(order, CANDIDATES_MAX)):
            silent, moved = self._silent(address, now)
            if not moved:
                return address if silent >= seconds else None
        return None
