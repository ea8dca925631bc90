"""What strangers can make a responder keep and do, and the bounds of it: half-open handshakes and token buckets. Pure tables.

Rules and their reasons: docs/protocol/link.md, "Under attack". A *known* address is one from which a node was authenticated since we
started; known peers have their own budget and a share of the table that strangers cannot take.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import attrs

from qnetpy.link.constants import (
    BURST_SECONDS,
    COOKIE_RATE,
    HALF_OPEN_LOAD,
    HALF_OPEN_MAX,
    HALF_OPEN_PER_NAME,
    HALF_OPEN_PER_SOURCE,
    HALF_OPEN_STRANGERS,
    KNOWN_RATE,
    SOURCE_BURST,
    SOURCE_RATE,
    SOURCES_MAX,
    STRANGER_RATE,
)
from qnetpy.link.noise.handshakestate import HandshakeState
from qnetpy.link.wire import Address
from resmgr.bucket import TokenBucket

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(OrderedDict[K, V], Generic[K, V]):
    """A dict that holds the latest *limit* entries put in."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def put(self, key: K, value: V) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > self.limit:
            self.popitem(last=False)


class Sources:
    """A bucket for each source. Memory: SOURCES_MAX buckets."""

    def __init__(self) -> None:
        self._buckets: Recent[Address, TokenBucket] = Recent(SOURCES_MAX)

    def take(self, source: Address, now: float) -> bool:
        bucket = self._buckets.get(source)
        if bucket is None:
            bucket = TokenBucket(SOURCE_RATE, SOURCE_BURST)
        self._buckets.put(source, bucket)
        return bucket.take(now)


class Budgets:
    """How much work others may cause."""

    def __init__(self) -> None:
        self.proven = Sources()
        """Of INITIATIONs with a cookie, which only the node at that address can send."""
        self.unproven = Sources()
        self.known = TokenBucket(KNOWN_RATE, KNOWN_RATE * BURST_SECONDS)
        self.strangers = TokenBucket(STRANGER_RATE, STRANGER_RATE * BURST_SECONDS)
        self.cookies = TokenBucket(COOKIE_RATE, COOKIE_RATE * BURST_SECONDS)


@attrs.define(eq=False)
class HalfOpen:
    """An INITIATION we answered with a RESPONSE and that is not confirmed."""

    index: int
    remote_index: int
    source: Address
    known: bool
    name: str
    """As claimed by the Hello."""
    boot_id: bytes
    sequence: int
    first_mac: bytes
    """Of the INITIATION; a copy of it gets the same RESPONSE."""
    pattern: int
    state: HandshakeState
    response: bytes
    suite: int
    transport_id: int
    """Ours, as told in the RESPONSE."""
    offer: bytes
    """IK: the initiator's Offer, from its INITIATION."""
    began: float
    expires: float
    answered: float
    """When the RESPONSE was sent last."""


class HalfOpenTable:
    """Half-open handshakes, by our index, oldest first."""

    def __init__(self) -> None:
        self._entries: dict[int, HalfOpen] = {}
        self._by_mac: dict[bytes, HalfOpen] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, index: int) -> HalfOpen | None:
        return self._entries.get(index)

    def answering(self, first_mac: bytes) -> HalfOpen | None:
        """The entry that an INITIATION with this mac made."""
        return self._by_mac.get(first_mac)

    def of_name(self, name: str) -> list[HalfOpen]:
        return [entry for entry in self._entries.values() if entry.name == name]

    @property
    def loaded(self) -> bool:
        return len(self._entries) >= HALF_OPEN_LOAD

    def room(self, source: Address, known: bool) -> bool:
        """Whether one more entry for *source* is allowed."""
        if len(self._entries) >= HALF_OPEN_MAX:
            return False
        strangers = sum(not entry.known for entry in self._entries.values())
        if not known and strangers >= HALF_OPEN_STRANGERS:
            return False
        return sum(entry.source == source for entry in self._entries.values()) < HALF_OPEN_PER_SOURCE

    def add(self, entry: HalfOpen) -> None:
        """Take *entry* in; the oldest of the same claimed name makes place when there are too many."""
        of_name = self.of_name(entry.name)
        if len(of_name) >= HALF_OPEN_PER_NAME:
            self.remove(of_name[0])
        self._entries[entry.index] = entry
        self._by_mac[entry.first_mac] = entry

    def remove(self, entry: HalfOpen) -> None:
        if self._entries.pop(entry.index, None) is not None:
            self._by_mac.pop(entry.first_mac, None)

    def next_timeout(self) -> float | None:
        for entry in self._entries.values():
            return entry.expires
        return None

    def expire(self, now: float) -> list[HalfOpen]:
        """Remove and return what has passed its time."""
        late = [entry for entry in self._entries.values() if entry.expires <= now]
        for entry in late:
            self.remove(entry)
        return late
