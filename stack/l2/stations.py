"""What a bridge knows of stations: the filtering database of 802.1D clause 7.9. Pure: `now` is an argument.

An entry is learned from the source address of a frame, and dies when the station was silent for `timeout`; or it is static, and dies with
its port. Whoever sends from made-up addresses fills at most `maximum` entries (MAC flooding), of which `Port.most` bounds the share of one
port; a station that finds no room is not learned, and frames to it are flooded, within the bounds of `stack.l2.storm`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

MAX_DEFAULT = 100
"""NetBSD's and QNX's."""
MAX_LIMIT = 8192
TIMEOUT_DEFAULT = 1200.0
STATIC_MAX = 1024


@attrs.define(eq=False)
class Station:
    """`seen` is the time of the last frame from it. A static one never ages and never moves."""

    port: int
    seen: float
    static: bool = False


class Stations:
    """Addresses to ports. *timeout* 0: no entry ages."""

    def __init__(self, maximum: int = MAX_DEFAULT, timeout: float = TIMEOUT_DEFAULT) -> None:
        self.maximum = maximum
        self.timeout = timeout
        self.known: dict[bytes, Station] = {}
        """For lookups on the way of frames; changed only here."""
        self._statics = 0
        self._on_port: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.known)

    def __iter__(self) -> Iterator[tuple[bytes, Station]]:
        return iter(self.known.items())

    def learn(self, address: bytes, port: int, now: float, most: int = 0) -> bool | None:
        """A frame from *address* came in on *port*. True when that is news, None when there is no room for it. *most*: entries of that
        port, 0 for no bound."""
        entry = self.known.get(address)
        if entry is not None:
            if entry.static:
                return False
            entry.seen = now
            if entry.port == port:
                return False
            self._count(entry.port, -1)
            self._count(port, 1)
            entry.port = port
            return True
        if len(self.known) - self._statics >= self.maximum or (most and self._on_port.get(port, 0) >= most):
            return None
        self.known[address] = Station(port, now)
        self._count(port, 1)
        return True

    def add_static(self, address: bytes, port: int, now: float) -> bool:
        """False when there are STATIC_MAX already."""
        before = self.known.get(address)
        if self._statics >= STATIC_MAX and (before is None or not before.static):
            return False
        if before is not None:
            self.remove(address)
        self.known[address] = Station(port, now, static=True)
        self._statics += 1
        return True

    def remove(self, address: bytes) -> bool:
        """Whether there was such an entry."""
        entry = self.known.pop(address, None)
        if entry is None:
            return False
        if entry.static:
            self._statics -= 1
        else:
            self._count(entry.port, -1)
        return True

    def flush(self, port: int | None = None, statics: bool = False) -> list[bytes]:
        """Forget what was learned, with *statics* all, of one port or of all. The addresses."""
        gone = [address for address, entry in self.known.items() if (port is None or entry.port == port) and (statics or not entry.static)]
        for address in gone:
            self.remove(address)
        return gone

    def expire(self, now: float, idle: Callable[[bytes], float | None]) -> list[bytes]:
        """Forget who was silent. *idle(address)*: seconds since somebody else saw the station, None: he did not. The addresses."""
        if not self.timeout:
            return []
        gone = []
        for address, entry in self.known.items():
            if entry.static or now - entry.seen < self.timeout:
                continue
            elsewhere = idle(address)
            if elsewhere is not None and elsewhere < self.timeout:
                entry.seen = now - elsewhere
            else:
                gone.append(address)
        for address in gone:
            self.remove(address)
        return gone

    def _count(self, port: int, number: int) -> None:
        self._on_port[port] = self._on_port.get(port, 0) + number
