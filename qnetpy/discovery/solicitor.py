"""When to say on an Ethernet that we are there, and whom to call of those who say so. Pure; the page is docs/protocol/discovery.md, "On an
Ethernet without IP".

    interface is there, carrier is back, another address        0.02 s at most, then after 0.25, 0.5, 1, 2, 4, 8 s, then every 10 s
    a name is asked for that nobody has                         at once, at most every 2 s, and from the beginning

Whoever hears it and has no link to that station calls it: the handshake is the answer. One who has a link to another boot there cannot
know which of the two is the present one, and sends a SOLICITATION to that station alone: the other calls, if it is new. Where the link is
to that very boot, nothing happens.

What is heard was sent from that station by somebody with the cluster secret, at some time: copies and old recordings lead nowhere but to
where a node was. How often they do is bounded by station and in all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import attrs

from qnetpy.link.constants import GROUP
from qnetpy.link.ethernet import is_individual
from qnetpy.link.halfopen import Recent
from qnetpy.link.solicitation import SALT_SIZE, Solicitations, parse_solicitation
from qnetpy.link.wire import Address, BadVersion
from resmgr.bucket import TokenBucket
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage

SPREAD = 0.02
"""Seconds over which the first is spread, so that machines that got power together do not all speak at once."""
WAITS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between the first ones: some may be lost, and some may be heard before those who hear them are ready."""
BEAT = 10.0
"""Seconds between all further ones: two segments that are joined make no carrier come or go."""
JITTER = 0.25
"""Part of each wait that is random."""
SEEK_LEAST = 2.0
"""Seconds between those that programs cause by asking for names."""
LIFETIME = 60.0
"""Seconds for which one counts: several beats, of which a few may be lost."""
SEEN_MAX = 4096
"""Frames remembered, so that copies are told: 48 bytes each."""
ASKERS_MAX = 1024
"""Stations remembered. Stops who has the secret from filling memory; the one not heard for longest gives way."""
ASKER_BURST = 8
ASKER_RATE = 1 / 60
"""From one station, that lead to something: the first ones of a start, then as often as a stranger's address is called (`link.calls`)."""
TOTAL_BURST = 64
TOTAL_RATE = 32.0
"""The same of all stations: as many as mDNS may tell (`discovery.table`)."""

COUNTERS = ("malformed", "bad_version", "bad_mac", "own", "repeated", "asker_too_often", "too_often")
"""Reasons for which one leads to nothing, in the order in which they are looked for."""


@attrs.define(eq=False)
class _Ours:
    """An interface of ours. `at` is when the next one is due there."""

    station: bytes
    up: bool
    step: int = 0
    at: float | None = None
    sent: float | None = None


@attrs.define(eq=False)
class _Asker:
    """A station that asked."""

    bucket: TokenBucket
    expires: float = 0.0
    told: bool = False
    """It was handed out and stands."""


class Solicitor:
    """See the head of this file. After each call, send what `transmit` and tell what `hints` returns.

    *boot_id* is asked for what is ours now. *random* gives so many bytes; what is made of them need not be secret.
    """

    def __init__(self, keys: Solicitations, boot_id: Callable[[], bytes], random: Callable[[int], bytes]) -> None:
        self.counters: Counter[str] = Counter()
        """Frames that led to nothing, by reason."""
        self.sent = 0
        self._keys = keys
        self._boot_id = boot_id
        self._random = random
        self._ours: dict[str, _Ours] = {}
        self._seen: Recent[bytes, None] = Recent(SEEN_MAX)
        self._askers: dict[Address, _Asker] = {}
        """Longest unheard first."""
        self._total = TokenBucket(TOTAL_RATE, TOTAL_BURST)
        self._out: list[tuple[Address, bytes]] = []
        self._fresh: list[Address] = []
        self._gone: list[Address] = []

    def __len__(self) -> int:
        """Stations that count now."""
        return sum(asker.told for asker in self._askers.values())

    def sizes(self) -> dict[str, int]:
        """How much of everything is remembered."""
        return {"askers": len(self._askers), "solicitations_seen": len(self._seen)}

    # Ours

    def interface(self, name: str, station: bytes, up: bool, now: float) -> None:
        """An Ethernet interface of ours is there, or has another address, or its carrier changed."""
        before = self._ours.get(name)
        if before is not None and (before.station, before.up) == (station, up):
            return
        ours = self._ours[name] = _Ours(station, up)
        if up:
            ours.at = now + SPREAD * self._chance()

    def interface_gone(self, name: str) -> None:
        """Who was heard there is gone as well."""
        self._ours.pop(name, None)
        for address in [address for address in self._askers if address[0] == name]:
            self._forget(address)

    def seek(self, now: float) -> None:
        """Somebody asked for a node that is not known: perhaps it is there and silent."""
        for name, ours in self._ours.items():
            if ours.up and (ours.sent is None or now >= ours.sent + SEEK_LEAST):
                ours.step = 0
                self._solicit(name, ours, now)

    def _solicit(self, name: str, ours: _Ours, now: float) -> None:
        self._send((name, GROUP), ours)
        wait = WAITS[ours.step] if ours.step < len(WAITS) else BEAT
        ours.step = min(ours.step + 1, len(WAITS))
        ours.sent = now
        ours.at = now + wait * (1.0 + JITTER * self._chance())

    def _send(self, to: Address, ours: _Ours) -> None:
        self._out.append((to, self._keys.make(self._random(SALT_SIZE), self._boot_id(), ours.station).pack()))
        self.sent += 1

    def _chance(self) -> float:
        return int.from_bytes(self._random(4)) / 2**32

    # Others

    def heard(self, source: Address, frame: Buffer, boot_there: bytes, now: float) -> None:
        """A frame from *source*, without Ethernet header. *boot_there*: of the node that we have a link to and met there, b"" for nobody.

        Never raises for what the frame holds.
        """
        reason = self._hear(source, frame, boot_there, now)
        if reason:
            self.counters[reason] += 1

    def _hear(self, source: Address, frame: Buffer, boot_there: bytes, now: float) -> str:
        """The reason for which it led to nothing; empty when there is none to tell."""
        name, station = source
        try:
            asked = parse_solicitation(frame)
        except BadVersion:
            return "bad_version"
        except BadMessage:
            return "malformed"
        ours = self._ours.get(name)
        if ours is None or not is_individual(station):
            return "malformed"
        if not self._keys.check(asked, station):
            return "bad_mac"
        if any(one.station == station for one in self._ours.values()) or self._keys.is_from(asked, self._boot_id()):
            return "own"
        if asked.mac in self._seen:
            return "repeated"
        self._seen.put(asked.mac, None)
        if boot_there and self._keys.is_from(asked, boot_there):
            self._refresh(source, now)
            return ""
        asker = self._asker(source, now)
        if not asker.bucket.take(now):
            return "asker_too_often"
        if not self._total.take(now):
            return "too_often"
        if boot_there:
            self._send(source, ours)
        else:
            asker.told = True
            self._fresh.append(source)
        return ""

    def _asker(self, source: Address, now: float) -> _Asker:
        asker = self._refresh(source, now)
        if asker is None:
            if len(self._askers) >= ASKERS_MAX:
                self._forget(next(iter(self._askers)))
            asker = self._askers[source] = _Asker(TokenBucket(ASKER_RATE, ASKER_BURST), now + LIFETIME)
        return asker

    def _refresh(self, source: Address, now: float) -> _Asker | None:
        """Heard again, now the latest."""
        asker = self._askers.pop(source, None)
        if asker is not None:
            asker.expires = now + LIFETIME
            self._askers[source] = asker
        return asker

    def _forget(self, source: Address) -> None:
        if self._askers.pop(source).told:
            self._gone.append(source)

    # Out

    def transmit(self) -> list[tuple[Address, bytes]]:
        """Frames to send, without Ethernet header: our interface and the station, perhaps `GROUP`, that each is for."""
        out, self._out = self._out, []
        return out

    def hints(self) -> tuple[list[Address], list[Address]]:
        """Where to call now, and where nobody asked for long."""
        fresh, self._fresh = self._fresh, []
        gone, self._gone = self._gone, []
        return fresh, gone

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`; None: not before something else happens."""
        times = [ours.at for ours in self._ours.values() if ours.at is not None]
        times += [asker.expires for asker in self._askers.values()][:1]
        return min(times, default=None)

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Calling it early is harmless."""
        for name, ours in self._ours.items():
            if ours.at is not None and ours.at <= now:
                self._solicit(name, ours, now)
        while self._askers:
            source, asker = next(iter(self._askers.items()))
            if asker.expires > now:
                break
            self._forget(source)
