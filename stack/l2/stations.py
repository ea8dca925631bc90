"""What a bridge knows of stations: the filtering database of 802.1D clause 7.9. Pure: `now` is an argument.

An entry is learned from the source address of a frame, and dies when the station was silent for `timeout`; or it is static, and dies with
its port. There are `maximum` learned entries at most, and of one port `most`, if that is said.

Whoever sends from made-up addresses (MAC flooding) fills what is free, and then gets the places that `stack.l2.places` gives away, at a
bounded rate; beyond it a station is not learned, and frames to it are flooded, within the bounds of `stack.l2.storm`.

Whoever sends from another's address takes that one's frames until it speaks again. A station that moves more than MOVES_MAX times in
MOVES_WINDOW is held for HOLD seconds at its home, the port where it was at rest before, and frames from it are taken there only.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator

import attrs

from stack.l2.places import Places

MAX_DEFAULT = 100
"""NetBSD's and QNX's."""
MAX_LIMIT = 8192
TIMEOUT_DEFAULT = 1200.0
STATIC_MAX = 1024
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
    proved: bool = False
    """See `stack.l2.places`."""


class Stations:
    """Addresses to ports. *timeout* 0: no entry ages. *idle(address)*: seconds since somebody else saw the station (a forwarding engine
    does not show what it carries), None: he did not."""

    def __init__(
        self,
        maximum: int = MAX_DEFAULT,
        timeout: float = TIMEOUT_DEFAULT,
        idle: Callable[[bytes], float | None] = lambda _: None,
    ) -> None:
        self.maximum = maximum
        self.timeout = timeout
        self.idle = idle
        self.known: dict[bytes, Station] = {}
        """For lookups on the way of frames; changed only here."""
        self.evicted: list[tuple[bytes, int]] = []
        """Given up for others, with their ports, since whoever drives this took the list."""
        self._statics = 0
        self._places = Places(self._silent)
        """Of the learned ones."""

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
            self._places.put(address, port)
            return Learned.NEWS
        if entry.static:
            return Learned.KNOWN
        if entry.port != port:
            return self._move(address, entry, port, now)
        entry.seen = now
        if now - entry.placed >= _STEP:
            self._spoke(address, entry, now)
        return Learned.KNOWN

    def _spoke(self, address: bytes, entry: Station, now: float) -> None:
        entry.placed, entry.proved = now, True
        self._places.spoke(address, entry.port, True)

    def prove(self, address: bytes, entry: Station) -> None:
        """Something from another port is for it. Idempotent; for who is not proved only, since it is called for each flow."""
        if not entry.static and not entry.proved:
            entry.proved = True
            self._places.spoke(address, entry.port, True)

    def silent(self, address: bytes, entry: Station, now: float) -> float:
        """Seconds since anybody saw a frame from it. For one that is not static."""
        elsewhere = self.idle(address)
        here = now - entry.seen
        return here if elsewhere is None else min(here, elsewhere)

    def _silent(self, address: bytes, now: float) -> tuple[float, bool]:
        entry = self.known[address]
        seconds = self.silent(address, entry, now)
        moved = now - seconds - entry.seen >= _STEP
        if moved:
            entry.seen = now - seconds
            self._spoke(address, entry, now)
        return seconds, moved

    def _make_room(self, port: int, now: float, most: int) -> bool:
        own_full = most if most and self._places.on(port) >= most else 0
        if not own_full and len(self._places) < self.maximum:
            return True
        giving = self._places.giving(port, self.maximum, own_full, now)
        if giving is not None:
            self.remove(giving[0])
            self.evicted.append(giving)
        return giving is not None

    def trim(self, now: float, port: int | None = None, most: int = 0) -> list[bytes]:
        """Give up what is too much since `maximum` is less, or *most* of *port*. The addresses."""
        gone = []
        if port is not None:
            while most and self._places.on(port) > most and (weakest := self._places.weakest(port, now)) is not None:
                self.remove(weakest)
                gone.append(weakest)
        while (surplus := self._places.surplus(self.maximum, now)) is not None:
            self.remove(surplus[0])
            gone.append(surplus[0])
        return gone

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
        self._places.take(address, entry.port)
        self._places.put(address, port)
        entry.port, entry.moved, entry.placed, entry.proved = port, now, now, False

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
            self._places.take(address, entry.port)
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

    def expire(self, now: float) -> list[bytes]:
        """Forget who was silent. The addresses."""
        if not self.timeout:
            return []
        gone = []
        for address, entry in self.known.items():
            if entry.static or now - entry.seen < self.timeout:
                continue
            silent = self.silent(address, entry, now)
            entry.seen = now - silent
            if silent >= self.timeout:
                gone.append(address)
        for address in gone:
            self.remove(address)
        return gone
