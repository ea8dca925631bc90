"""What a bridge knows of stations: the filtering database of 802.1D clause 7.9. Pure: `now` is an argument.

An entry is learned from the source address of a frame, and dies when the station was silent for `timeout`; or it is static, and dies with
its port. There are `maximum` learned entries at most, and of one port `most`, if that is said.

Whoever sends from made-up addresses (MAC flooding) fills what is free, and then takes only from itself: for a new station the stalest
entry of the port that has most is given up. EVICTIONS_PER_SECOND bounds what that costs; beyond them a station is not learned, and frames
to it are flooded, within the bounds of `stack.l2.storm`.

Whoever sends from another's address takes that one's frames until it speaks again. A station that moves more than MOVES_MAX times in
MOVES_WINDOW is held for HOLD seconds at its home, the port where it was at rest before, and frames from it are taken there only.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator

import attrs

from resmgr.bucket import TokenBucket

MAX_DEFAULT = 100
"""NetBSD's and QNX's."""
MAX_LIMIT = 8192
TIMEOUT_DEFAULT = 1200.0
STATIC_MAX = 1024
EVICTIONS_PER_SECOND = 500
"""For the new stations of one port. Each costs a forwarding engine two system calls."""
MOVES_MAX = 5
MOVES_WINDOW = 10.0
"""Seconds. Somebody who carries a laptop from port to port moves less; a loop, or a thief against his victim, more."""
AT_REST = 60.0
"""Seconds on one port, after which it is the station's home."""
HOLD = 30.0
_STEP = 1.0
"""Seconds between two changes of an entry's place in the order: most frames change nothing."""


class Learned(enum.Enum):
    KNOWN = "known"
    NEWS = "news"
    """New, or on another port."""
    NO_ROOM = "no room"
    HELD = "held"
    """It moves too often, and this is not its home."""


@attrs.define(eq=False)
class Station:
    """`seen` is the time of the last frame from it. A static one never ages and never moves."""

    port: int
    seen: float
    static: bool = False
    placed: float = 0.0
    """When it was put at the end of its port's order."""
    home: int = 0
    moved: float = 0.0
    """When it came to its port."""
    window: float = 0.0
    moves: int = 0
    """Since `window`."""
    held: float = 0.0
    """Until then it stays."""


class Stations:
    """Addresses to ports. *timeout* 0: no entry ages."""

    def __init__(self, maximum: int = MAX_DEFAULT, timeout: float = TIMEOUT_DEFAULT) -> None:
        self.maximum = maximum
        self.timeout = timeout
        self.known: dict[bytes, Station] = {}
        """For lookups on the way of frames; changed only here."""
        self.evicted: list[tuple[bytes, int]] = []
        """Given up for others, with their ports, since whoever drives this took the list."""
        self._statics = 0
        self._on_port: dict[int, dict[bytes, None]] = {}
        """Learned entries, the stalest first, to a second."""
        self._evictions: dict[int, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self.known)

    @property
    def statics(self) -> int:
        """How many static ones there are."""
        return self._statics

    def static_on(self, port: int) -> tuple[bytes, ...]:
        return tuple(address for address, entry in self.known.items() if entry.static and entry.port == port)

    def __iter__(self) -> Iterator[tuple[bytes, Station]]:
        return iter(self.known.items())

    def learn(self, address: bytes, port: int, now: float, most: int = 0) -> Learned:
        """A frame from *address* came in on *port*. *most*: entries of that port, 0 for no bound."""
        entry = self.known.get(address)
        if entry is None:
            if not self._make_room(port, now, most):
                return Learned.NO_ROOM
            self.known[address] = Station(port, now, placed=now, home=port, moved=now, window=now)
            self._on_port.setdefault(port, {})[address] = None
            return Learned.NEWS
        if entry.static:
            return Learned.KNOWN
        if entry.port != port:
            return self._move(address, entry, port, now)
        entry.seen = now
        if now - entry.placed >= _STEP:
            entry.placed = now
            order = self._on_port[port]
            del order[address]
            order[address] = None
        return Learned.KNOWN

    def _make_room(self, port: int, now: float, most: int) -> bool:
        own_full = most and len(self._on_port.get(port, ())) >= most
        if not own_full and len(self.known) - self._statics < self.maximum:
            return True
        bucket = self._evictions.get(port)
        if bucket is None:
            bucket = self._evictions[port] = TokenBucket(EVICTIONS_PER_SECOND, EVICTIONS_PER_SECOND)
        if not bucket.take(now):
            return False
        victim = port if own_full else max(self._on_port, key=lambda one: len(self._on_port[one]))
        address = next(iter(self._on_port[victim]))
        self.remove(address)
        self.evicted.append((address, victim))
        return True

    def _move(self, address: bytes, entry: Station, port: int, now: float) -> Learned:
        if now < entry.held:
            return Learned.HELD
        if now - entry.moved >= AT_REST:
            entry.home = entry.port
        if now - entry.window >= MOVES_WINDOW:
            entry.window, entry.moves = now, 0
        entry.moves += 1
        if entry.moves <= MOVES_MAX:
            entry.seen = now
            self._put(address, entry, port, now)
            return Learned.NEWS
        entry.held = now + HOLD
        if entry.port != entry.home:
            self._put(address, entry, entry.home, now)
        return Learned.NEWS if port == entry.home else Learned.HELD

    def _put(self, address: bytes, entry: Station, port: int, now: float) -> None:
        del self._on_port[entry.port][address]
        self._on_port.setdefault(port, {})[address] = None
        entry.port, entry.moved, entry.placed = port, now, now

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
            del self._on_port[entry.port][address]
        return True

    def flush(self, port: int | None = None, statics: bool = False) -> list[bytes]:
        """Forget what was learned, with *statics* all, of one port or of all. The addresses."""
        gone = [address for address, entry in self.known.items() if (port is None or entry.port == port) and (statics or not entry.static)]
        for address in gone:
            self.remove(address)
        if port is not None:
            for entry in self.known.values():
                if entry.home == port:
                    entry.home = entry.port
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
