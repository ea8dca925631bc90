"""The largest packet a path carries, found by authenticated padded probes: DPLPMTUD, RFC 8899, for one sending direction.

The search starts at BASE_PAYLOAD, tries the interface's own size and the Ethernet-1500 size below it at once, and halves the rest of the
interval when
they fail. A size has failed when MAX_PROBES probes of it were lost; losing a probe says nothing about congestion. When the search ends
below
the interface's size it starts again after `retry` seconds.

A black hole is a run of large packets that are lost, none sent after them having arrived, while smaller ones are acknowledged. Then the
path falls back to the base at once and searches below the size that failed.
"""

from __future__ import annotations

from typing import Final

from qnetpy.link.transport.constants import BASE_PAYLOAD

MAX_PROBES: Final = 3
"""RFC 8899 section 5.1.2, MAX_PROBES."""
STEP: Final = 32
"""An interval this small is not searched further."""
JUMBO_LESS_ETHERNET: Final = 9000 - 1500
BLACK_HOLE_PACKETS: Final = 6
"""Large packets lost in a row. With 5 % random loss six in a row are one in 64 million."""


class MtuSearch:
    __slots__ = (
        "_failed",
        "_high",
        "_losses",
        "_outstanding",
        "_retry",
        "_wanted",
        "changes",
        "enabled",
        "maximum",
        "payload",
        "probes_sent",
        "retry_at",
        "suspicion",
    )

    def __init__(self, maximum: int, retry: float, enabled: bool) -> None:
        self.maximum = maximum
        self.payload = min(BASE_PAYLOAD, maximum)
        """Largest plaintext known to pass."""
        self.enabled = enabled and maximum > self.payload
        self.retry_at: float | None = None
        self.suspicion = 0
        """Large packets lost since one arrived."""
        self.probes_sent = 0
        self.changes = 0
        self._retry = retry
        self._high = maximum + 1
        """Smallest size that failed."""
        self._losses: dict[int, int] = {}
        self._outstanding: set[int] = set()
        self._wanted: list[int] = []
        if self.enabled:
            self._begin([maximum, maximum - JUMBO_LESS_ETHERNET])

    def resize(self, maximum: int) -> None:
        """The interface takes *maximum* from now on: what is known to pass stays, as far as it fits; the rest is found out again."""
        probing = self.enabled or self.maximum <= BASE_PAYLOAD
        self.maximum = maximum
        self.payload = min(self.payload, maximum)
        self.suspicion = 0
        self.changes += 1
        self.retry_at = None
        self._high = maximum + 1
        self._outstanding.clear()
        self._wanted = []
        self.enabled = probing and maximum > BASE_PAYLOAD
        if self.enabled:
            self._begin([maximum, maximum - JUMBO_LESS_ETHERNET])

    def _begin(self, sizes: list[int]) -> None:
        self._losses.clear()
        self._wanted = [size for size in sizes if self.payload < size < self._high]

    def due(self) -> bool:
        """A probe should be sent now."""
        return bool(self._wanted)

    def probe(self) -> int:
        """Size of the probe to send now; `due` was true. Smaller sizes first, so that one that passes is used soon."""
        size = self._wanted.pop()
        self._outstanding.add(size)
        self.probes_sent += 1
        return size

    def on_acked(self, size: int, now: float) -> bool:
        """A probe arrived. True when the payload grew."""
        self._outstanding.discard(size)
        grew = size > self.payload and size < self._high
        if grew:
            self.payload = size
            self.suspicion = 0
            self.changes += 1
            self._wanted = [wanted for wanted in self._wanted if wanted > size]
        self._advance(now)
        return grew

    def on_lost(self, size: int, now: float) -> None:
        """A probe was lost."""
        self._outstanding.discard(size)
        if self.payload < size < self._high:
            losses = self._losses[size] = self._losses.get(size, 0) + 1
            if losses < MAX_PROBES:
                self._wanted.append(size)
            else:
                self._high = size
        self._advance(now)

    def _advance(self, now: float) -> None:
        if self._wanted or self._outstanding:
            return
        if self.payload == self.maximum:
            self.retry_at = None
        elif self._high - self.payload > STEP:
            self._wanted.append((self.payload + self._high) // 2)
        else:
            self.retry_at = now + self._retry

    def on_retry(self) -> None:
        """The retry timer ran out."""
        self.retry_at = None
        self._high = self.maximum + 1
        self._begin([self.maximum])

    def on_large_lost(self, count: int, now: float) -> bool:
        """*count* packets above the base were lost and none sent later has arrived. True when that makes a black hole."""
        self.suspicion += count
        if self.suspicion < BLACK_HOLE_PACKETS or self.payload <= BASE_PAYLOAD:
            return False
        failed = self.payload
        self.payload = BASE_PAYLOAD
        self.suspicion = 0
        self.changes += 1
        self.retry_at = None
        self._outstanding.clear()
        self._high = failed + 1
        if self.enabled:
            self._begin([failed])
        return True
