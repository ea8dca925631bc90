"""Test kit of the handshake: nodes that only shake hands and ping each other, on a seeded wire, in virtual time.

A `Caller` does what the owner of a `HandshakeMachine` must do and nothing more: it calls again after a failure, renews keys when they are
due, sends a ping over the current session, and drops a peer that is silent. `Wire` loses, copies, delays and corrupts frames.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from heapq import heappop, heappush
from zlib import crc32

import attrs

from qnetpy.identity.authority import NodeIdentity
from qnetpy.link.handshake import HandshakeMachine
from qnetpy.link.outcome import Established, Event, Failed, PeerHint
from qnetpy.link.session import RekeyPolicy, Session, Sessions
from qnetpy.link.wire import ETHERNET_HEADER, NONCE, Address, sort_frames
from resmgr.dispatch import Buffer
from stack.crypto.api import Algorithm
from stack.crypto.api import Session as CryptoSession
from stack.crypto.registry import Crypto, standard_crypto

WALL = 1_800_000_000.0
PING = 0.3
DOWN_AFTER = 3.0
CALL_AGAIN = 0.5


@attrs.define
class Faults:
    """Chances per frame, from 0 to 1. A reordered frame is late by up to `late` seconds."""

    drop: float = 0.0
    copy: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    late: float = 0.3


class NonceReused(AssertionError):
    """A key sealed two items with one nonce, or out of order, which a sender must not either."""


Sealed = dict[tuple[bytes, bytes], int]
"""By key and nonce: a checksum of the plaintext."""


class WatchedCrypto(Crypto):
    """Crypto whose sessions raise NonceReused. One for all nodes of a test, since both ends of a link have the same keys."""

    def __init__(self, sealed: Sealed | None = None) -> None:
        """*sealed*: gets an entry for everything that is sealed."""
        super().__init__()
        self._sealed = sealed
        self._real = standard_crypto()
        self._used: dict[tuple[str, bytes], dict[int, int]] = {}
        """By suite and key: the last number sealed on each path."""

    def session(self, algorithm: Algorithm, key: Buffer, provider: str | None = None) -> CryptoSession:
        used = self._used.setdefault((algorithm.name, bytes(key)), {})
        return _Watched(self._real.session(algorithm, key, provider), used, bytes(key), self._sealed)


class _Watched:
    def __init__(self, session: CryptoSession, used: dict[int, int], key: bytes, sealed: Sealed | None) -> None:
        self._session = session
        self._used = used
        self._key = key
        self._sealed = sealed
        self.close = session.close
        self.open_many = session.open_many

    @property
    def algorithm(self) -> Algorithm:
        return self._session.algorithm

    def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer]) -> list[bytes]:
        for path, number in map(NONCE.unpack, nonces):
            # The numbers of a path only rise, so that one number remembers all that were used.
            if number <= self._used.get(path, -1):
                raise NonceReused(f"path {path}, number {number}")
            self._used[path] = number
        if self._sealed is not None:
            for nonce, plaintext in zip(nonces, plaintexts, strict=True):
                self._sealed[self._key, bytes(nonce)] = crc32(plaintext)
        return self._session.seal_many(nonces, plaintexts, aads)


@attrs.define(eq=False)
class Link:
    """A connection of a `Caller`, as far as there is one."""

    peer: str
    static_key: bytes
    boot_id: bytes
    transport_id: int
    address: Address
    sessions: Sessions
    heard: float
    next_number: int = 0
    renewing: int = 0


class Caller:
    """One node. `links` by peer name; `events` is everything the machine said; `ups` counts new connections by peer."""

    def __init__(self, wire: Wire, identity: NodeIdentity, address: Address, suites: Sequence[str] = (), skew: float = 0.0) -> None:
        self.wire = wire
        self.address = address
        self.identity = identity
        self.links: dict[str, Link] = {}
        self.events: list[Event] = []
        self.ups: Counter[str] = Counter()
        self.wanted: dict[Address, str] = {}
        """Addresses to stay connected with, and the name hinted for each."""
        self.rekey = RekeyPolicy()
        self.opened: set[tuple[int, int, int]] = set()
        self._retry: dict[Address, float] = {}
        self._pinged = 0.0
        self._random = random.Random(wire.chance.getrandbits(64))
        self.machine = HandshakeMachine(
            identity, self, self._random.randbytes(16), wire.crypto, self._random.randbytes, lambda: WALL + skew + wire.now, suites
        )
        wire.callers[address] = self

    @property
    def name(self) -> str:
        return self.identity.name

    def held(self, name: str, key: bytes, boot_id: bytes) -> int:
        link = self.links.get(name)
        return link.transport_id if link is not None and (link.static_key, link.boot_id) == (key, boot_id) else 0

    def taken(self, name: str, key: bytes, now: float) -> bytes:
        link = self.links.get(name)
        return b"" if link is None or link.static_key == key or now - link.heard >= DOWN_AFTER else link.static_key

    def call(self, address: Address, name: str = "") -> int:
        """Initiate once; the number of the attempt."""
        number = self.machine.initiate(PeerHint(address, name), self.wire.now)
        self.pump()
        return number

    def want(self, address: Address, name: str = "") -> None:
        """Call, and call again whenever there is no connection."""
        self.wanted[address] = name
        self._retry[address] = self.wire.now

    def failures(self) -> list[Failed]:
        return [event for event in self.events if isinstance(event, Failed)]

    def established(self) -> list[Established]:
        return [event for event in self.events if isinstance(event, Established)]

    def receive(self, frame: bytes, source: Address) -> None:
        result = sort_frames([memoryview(frame)], 0)
        for arrivals in result.data:
            for link in self.links.values():
                for session in link.sessions.held:
                    if session.local_index == arrivals.index:
                        for number, _ in session.open(arrivals):
                            link.sessions.heard(arrivals.index, self.wire.now)
                            key = (session.local_index, arrivals.path, number)
                            assert key not in self.opened, f"{self.name} opened {key} twice"
                            self.opened.add(key)
                            link.heard = self.wire.now
        for _, handshake in result.handshakes:
            self.machine.receive(handshake, source, self.wire.now)
        self.pump()

    def pump(self) -> None:
        """Act on events and send what there is."""
        now = self.wire.now
        # Handshake frames first: a CONFIRM before the first data under its keys.
        for destination, frame in self.machine.transmit():
            self.wire.send(self.address, destination, frame)
        for event in self.machine.events():
            self.events.append(event)
            if isinstance(event, Established):
                self._up(event)
            for link in self.links.values():
                if link.renewing == event.attempt:
                    link.renewing = 0
        for name in [name for name, link in self.links.items() if now - link.heard >= DOWN_AFTER]:
            self.links.pop(name).sessions.close()

    def tick(self) -> None:
        """Timers: the machine's and ours."""
        now = self.wire.now
        when = self.machine.next_timeout()
        if when is not None and when <= now:
            self.machine.handle_timeout(now)
        for address, name in self.wanted.items():
            reached = any(link.address == address or link.peer == name for link in self.links.values())
            if not reached and now >= self._retry[address]:
                self._retry[address] = now + CALL_AGAIN
                self.machine.initiate(PeerHint(address, name), now)
        if now >= self._pinged + PING:
            self._pinged = now
            for link in self.links.values():
                link.sessions.expire(now)
                if link.sessions.rekey_due(now) and not link.renewing:
                    link.renewing = self.machine.initiate(PeerHint(link.address, link.peer), now)
                self.ping(link)
        self.pump()

    def ping(self, link: Link) -> None:
        session = link.sessions.current
        assert session is not None
        for frame in session.seal(bytes(ETHERNET_HEADER), 0, link.next_number, [b"ping"]):
            link.next_number += 1
            self.wire.send(self.address, link.address, frame[ETHERNET_HEADER:])

    def next_time(self) -> float:
        times = [when for when in (self.machine.next_timeout(),) if when is not None]
        if self.links:
            times.append(self._pinged + PING)
        times += [max(when, self.wire.now + 0.01) for when in self._retry.values()]
        return min(times, default=float("inf"))

    def _up(self, event: Established) -> None:
        now, peer = self.wire.now, event.peer
        link = self.links.get(peer.name)
        if link is None or not event.continued or link.transport_id != event.transport_id:
            if link is not None:
                link.sessions.close()
            self.ups[peer.name] += 1
            sessions = Sessions(self.rekey)
            link = Link(peer.name, peer.static_key, peer.boot_id, event.transport_id, event.address, sessions, now)
            self.links[peer.name] = link
        link.sessions.install(event.session, now)
        link.address = event.address
        link.heard = now
        self.ping(link)


class Wire:
    """All nodes hear what is sent to their address. One seed decides everything."""

    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        self.chance = random.Random(seed)
        self.faults = Faults() if faults is None else faults
        self.crypto = WatchedCrypto()
        self.now = 0.0
        self.callers: dict[Address, Caller] = {}
        self.log: list[tuple[float, Address, Address, bytes]] = []
        """Every frame sent: time, from, to, bytes."""
        self.lose: dict[int, int] = {}
        """How many of the next frames of each type are lost, beside the faults."""
        self._queue: list[tuple[float, int, Address, Address, bytes]] = []
        self._count = 0

    def send(self, source: Address, destination: Address, frame: bytes) -> None:
        self.log.append((self.now, source, destination, frame))
        chance, faults = self.chance.random, self.faults
        if self.lose.get(frame[0], 0) > 0:
            self.lose[frame[0]] -= 1
            return
        for _ in range(2 if chance() < faults.copy else 1):
            if chance() < faults.drop:
                continue
            data = frame
            if chance() < faults.corrupt:
                place = self.chance.randrange(len(frame))
                data = frame[:place] + bytes((frame[place] ^ 1 << self.chance.randrange(8),)) + frame[place + 1 :]
            delay = 0.0001 + chance() * (faults.late if chance() < faults.reorder else 0.0002)
            self.inject(source, destination, data, delay)

    def inject(self, source: Address, destination: Address, frame: bytes, delay: float = 0.0) -> None:
        """Deliver *frame* as if it came from *source*, padded as Ethernet does."""
        self._count += 1
        heappush(self._queue, (self.now + delay, self._count, source, destination, frame.ljust(46, b"\0")))

    def run(self, until: float) -> None:
        """Let time pass."""
        while True:
            timers = [(caller.next_time(), caller) for caller in self.callers.values()]
            when, caller = min(timers, key=lambda timer: timer[0], default=(float("inf"), None))
            if self._queue and self._queue[0][0] <= when:
                at, _, source, destination, frame = self._queue[0]
                if at > until:
                    break
                heappop(self._queue)
                self.now = max(self.now, at)
                receiver = self.callers.get(destination)
                if receiver is not None:
                    receiver.receive(frame, source)
                continue
            if caller is None or when > until:
                break
            self.now = max(self.now, when)
            caller.tick()
        self.now = until


def address(number: int, interface: str = "eth0") -> Address:
    return interface, bytes((2, 0, 0, 0, 0, number))


def agreed(one: Caller, two: Caller) -> Session | None:
    """The session of *one* if both hold the two ends of one session and the same transport; None otherwise."""
    here, there = one.links.get(two.name), two.links.get(one.name)
    if here is None or there is None or here.transport_id != there.transport_id:
        return None
    mine, yours = here.sessions.current, there.sessions.current
    if mine is None or yours is None or (mine.local_index, mine.remote_index) != (yours.remote_index, yours.local_index):
        return None
    for sealer, opener, link in ((mine, yours, here), (yours, mine, there)):
        frames = [memoryview(frame) for frame in sealer.seal(b"", 9, link.next_number, [b"agreed"])]
        link.next_number += 1
        if [data for group in sort_frames(frames, 0).data for _, data in opener.open(group)] != [b"agreed"]:
            return None
    return mine
