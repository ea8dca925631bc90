"""Who was heard where: hints with their expiry, and the caps that a flood of announcements runs into. Pure.

A hint makes the node start a handshake, which costs a key agreement and a frame to an address of the announcer's choice. So new hints are
handed out at a bounded rate, the table is bounded, and one hardware address holds few places in it. What is over a cap is counted under
a named reason. Nothing a stranger announces can make a hint that was handed out disappear before its expiry, except by crowding
the same hardware address (then the caller still has hints for that address).
"""

from __future__ import annotations

import enum
import math

from qnetpy.discovery.hint import Hint
from resmgr.bucket import TokenBucket

HINTS_MAX = 1024
"""Hints kept. Stops a stranger who invents nodes until memory is gone; the oldest that was not handed out yet gives way."""
HINTS_PER_MAC_MAX = 4
"""Hints per interface and hardware address (first IP address of hosts without one). Stops one host that announces many tokens; a
restarted node pushes out its own old ones."""
TELL_BURST = 64
TELL_RATE = 32.0
"""New hints per second that are handed out, after a burst. Stops announcements from becoming a storm of handshakes."""


class Drop(enum.StrEnum):
    """Why an announcement led to nothing."""

    BAD_NAME = "bad_name"
    BAD_TXT = "bad_txt"
    OWN = "own"
    CROWDED_MAC = "crowded_mac"
    TABLE_FULL = "table_full"
    RESOLVE_BUSY = "resolve_busy"
    UNRESOLVED = "unresolved"


_Key = tuple[str, bytes]


class HintTable:
    """Hints by (interface, token). `own` is this node's token: hearing oneself is not a hint."""

    def __init__(self, own: bytes, now: float) -> None:
        self.own = own
        self.drops: dict[Drop, int] = dict.fromkeys(Drop, 0)
        self._hints: dict[_Key, Hint] = {}
        self._untold: dict[_Key, None] = {}
        self._told: dict[_Key, Hint] = {}
        self._by_mac: dict[tuple[str, tuple[bytes | str, ...]], dict[_Key, None]] = {}
        self._gone: list[Hint] = []
        self._telling = TokenBucket(TELL_RATE, TELL_BURST)
        self._polled = now

    def __len__(self) -> int:
        return len(self._hints)

    def drop(self, reason: Drop, count: int = 1) -> None:
        self.drops[reason] += count

    def standing(self) -> list[Hint]:
        """The hints that were handed out and stand."""
        return list(self._told.values())

    def heard(self, hint: Hint) -> None:
        """An announcement, new or repeated."""
        if hint.token == self.own:
            self.drop(Drop.OWN)
            return
        key = (hint.interface, hint.token)
        known = self._hints.get(key)
        if known is not None and known.station != hint.station:
            self._unlist(key, known)
            known = None
        if known is None:
            self._make_room(hint)
            self._by_mac.setdefault((hint.interface, hint.station), {})[key] = None
        self._hints[key] = hint
        told = self._told.get(key)
        if told is not None and told.says_the_same(hint):
            self._told[key] = hint
            self._untold.pop(key, None)
        else:
            self._untold.setdefault(key)

    def gone(self, interface: str, token: bytes) -> None:
        """A goodbye."""
        self._remove((interface, token))

    def interface_gone(self, interface: str) -> None:
        for key in [key for key in self._hints if key[0] == interface]:
            self._remove(key)

    def poll(self, now: float) -> tuple[list[Hint], list[Hint]]:
        """What to tell the caller now: hints that are new or changed (as the rate allows), and hints that no longer stand."""
        for key in [key for key, hint in self._hints.items() if hint.expiry <= now]:
            self._remove(key)
        self._polled = now
        fresh: list[Hint] = []
        while self._untold and self._telling.take(now):
            key = next(iter(self._untold))
            del self._untold[key]
            hint = self._told[key] = self._hints[key]
            fresh.append(hint)
        gone, self._gone = self._gone, []
        return fresh, gone

    def next_timeout(self) -> float | None:
        """When to poll again at the latest (monotonic seconds); None when nothing is pending."""
        if self._gone:
            return self._polled
        due = min((hint.expiry for hint in self._hints.values()), default=math.inf)
        if self._untold:
            due = min(due, max(self._polled, self._telling.ready_at()))
        return None if due == math.inf else due

    def _make_room(self, hint: Hint) -> None:
        same = self._by_mac.get((hint.interface, hint.station), {})
        if len(same) >= HINTS_PER_MAC_MAX:
            self.drop(Drop.CROWDED_MAC)
            self._remove(next(iter(same)))
        if len(self._hints) >= HINTS_MAX:
            self.drop(Drop.TABLE_FULL)
            self._remove(next(iter(self._untold), next(iter(self._hints))))

    def _remove(self, key: _Key) -> None:
        known = self._hints.pop(key, None)
        if known is not None:
            self._unlist(key, known)
        self._untold.pop(key, None)
        told = self._told.pop(key, None)
        if told is not None:
            self._gone.append(told)

    def _unlist(self, key: _Key, hint: Hint) -> None:
        same = self._by_mac[hint.interface, hint.station]
        del same[key]
        if not same:
            del self._by_mac[hint.interface, hint.station]
