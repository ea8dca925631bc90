"""What both halves of the handshake machine share: this node's credentials, what it remembers of others, queues, and the last step.

Memory of a node (`Remembered`) lasts as long as the daemon. It makes replayed INITIATIONs recognisable (boot id and sequence), lets the
next handshake use IK (static key), and tells a restarted node (boot id). Which connections there are, `Connections` says.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import WeakValueDictionary

import attrs

from qnetpy.identity.authority import NodeIdentity
from qnetpy.identity.certificate import Certificate, CertificateError, fingerprint, parse_chain, verify
from qnetpy.link.constants import BOOT_ID_SIZE, EVENTS_MAX, INDICES_AHEAD, KNOWN_MAX, NODES_MAX, SUITE_SLOTS
from qnetpy.link.cookie import ClusterMac
from qnetpy.link.halfopen import Recent
from qnetpy.link.hello import Offer
from qnetpy.link.lease import Lease
from qnetpy.link.noise.handshakestate import HandshakeState
from qnetpy.link.noise.patterns import Protocol as NoiseProtocol
from qnetpy.link.noise.patterns import parse_name
from qnetpy.link.outcome import STATUS, Established, Event, Failed, PeerIdentity, Reason, place, reason_of, skew_text
from qnetpy.link.session import Role, Session
from qnetpy.link.stamp import stamp_key
from qnetpy.link.wire import PATTERN_IK, PATTERN_XX, Address
from resmgr.errors import Misuse
from stack.crypto.algorithms import AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305, Aead
from stack.crypto.registry import Crypto

PROLOGUE = b"qnet link 1"
"""Names this protocol and its version in the transcript."""
NOISE = {
    PATTERN_XX: "Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s",
    PATTERN_IK: "Noise_IKpsk0_25519_ChaChaPoly_BLAKE2s",
}
SUITES: dict[int, Aead] = {1: AES_128_GCM, 2: AES_256_GCM, 3: CHACHA20_POLY1305}
"""Suites of DATA by their number on the wire."""
DEFAULT_SUITES = ("aes-128-gcm", "chacha20-poly1305", "aes-256-gcm")
SAY_AGAIN = 60.0
"""Seconds for which the same failure of somebody else's handshake is counted but not told again."""

Random = Callable[[int], bytes]


class Refusal(Exception):
    """The other end is not accepted. Internal to the handshake."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


@attrs.define
class Remembered:
    """What is known of a node that was authenticated (or pinned by configuration, then without boot id)."""

    static_key: bytes
    boot_id: bytes = b""
    sequence: int = 0
    """Its INITIATIONs up to this one are old."""
    met: float = float("-inf")
    """When the latest handshake with it was complete; monotonic."""


class Connections(Protocol):
    """What the handshake asks the owner of the connections. Both calls are cheap and change nothing."""

    def held(self, name: str, key: bytes, boot_id: bytes) -> int:
        """Transport id of the connection with that boot of that node under that key; 0: none."""
        ...

    def taken(self, name: str, key: bytes, now: float) -> bytes:
        """The other key, where that name belongs to a live connection with another; b"" where it does not."""
        ...


class Party:
    """See the module. All of it is used from dispatch context only."""

    def __init__(
        self,
        identity: NodeIdentity,
        connections: Connections,
        boot_id: bytes,
        crypto: Crypto,
        random: Random,
        wall: Callable[[], float],
        suites: Sequence[str],
        mtu: Callable[[str], int],
        features: int,
        accept: Callable[[Certificate], bool],
        place: Callable[[Address], str] = place,
    ) -> None:
        if len(boot_id) != BOOT_ID_SIZE:
            raise Misuse(f"a boot id has {BOOT_ID_SIZE} bytes")
        self.identity = identity
        self.connections = connections
        self.boot_id = boot_id
        self.crypto = crypto
        self.random = random
        self.wall = wall
        self.suites = suite_numbers(suites or DEFAULT_SUITES)
        self.mtu = mtu
        self.features = features
        self.accept = accept
        self.place = place
        """An address for people."""
        self.mac = ClusterMac(identity.secret)
        self.stamp_key = stamp_key(identity.secret)
        self.counters: Counter[str] = Counter()
        self.out: list[tuple[Address, bytes]] = []
        self.events: deque[Event] = deque()
        self.nodes: Recent[str, Remembered] = Recent(NODES_MAX)
        self.known: Recent[Address, None] = Recent(KNOWN_MAX)
        self.sequence = 0
        """Of our latest INITIATION."""
        self.outstanding: set[int] = set()
        """Sequences of INITIATIONs that may still be answered."""
        self._indices: set[int] = set()
        self._ahead: list[int] = []
        """Indices for the next handshakes."""
        self.draws = 0
        """How often indices were drawn: when it changes, there are some that nobody knows of."""
        self._live: WeakValueDictionary[int, Lease] = WeakValueDictionary()
        """Of the sessions that somebody still has: their indices are taken."""
        self._said: Recent[tuple[Reason, str, Address], float] = Recent(KNOWN_MAX)
        self._protocols: dict[int, NoiseProtocol] = {number: parse_name(name) for number, name in NOISE.items()}

    def noise(self, pattern: int, initiator: bool, suites: bytes, index: int, remote_static: bytes | None = None) -> HandshakeState:
        """A new handshake whose transcript begins with version, pattern, the suites offered and the initiator's index."""
        prologue = PROLOGUE + bytes((pattern,)) + suites + index.to_bytes(4, "big")
        return HandshakeState(
            self._protocols[pattern], initiator, prologue, self.identity.static_private, self.random, remote_static, [self.identity.secret]
        )

    def new_index(self) -> int:
        """A session index that is not in use: random, so that a stranger cannot guess one."""
        if not self._ahead:
            self.draw()
        index = self._ahead.pop()
        self._indices.add(index)
        return index

    def draw(self) -> None:
        """Draw indices for the next handshakes."""
        self.draws += 1
        while len(self._ahead) < INDICES_AHEAD:
            index = int.from_bytes(self.random(4), "big")
            if index and index not in self._indices and index not in self._live and index not in self._ahead:
                self._ahead.append(index)

    def indices(self) -> frozenset[int]:
        """All indices that frames to us may carry now or soon."""
        return frozenset((*self._indices, *self._live, *self._ahead))

    def release(self, index: int) -> None:
        self._indices.discard(index)

    def chance(self) -> float:
        """A random number from 0 to 1."""
        return int.from_bytes(self.random(2), "big") / 65536

    def own_offer(self, index: int, interface: str, transport_id: int, suite: int = 0, reason: Reason | None = None) -> Offer:
        return Offer(
            status=STATUS[reason] if reason is not None else 0,
            suite=suite,
            mtu=min(self.mtu(interface), 65535),
            features=self.features,
            transport_id=transport_id,
            sequence=min(self.outstanding, default=self.sequence + 1) - 1,
            wall=max(0, int(self.wall())),
            index=index,
            boot_id=self.boot_id,
            certificate=self.identity.certificate.chain,
        )

    def transport_id_with(self, name: str, boot_id: bytes) -> int:
        """Of the connection we hold with that boot of that node; 0: none."""
        node = self.nodes.get(name)
        if node is None or not boot_id or node.boot_id != boot_id:
            return 0
        return self.connections.held(name, node.static_key, boot_id)

    def examine(self, offer: Offer, static_key: bytes, expected: str, source: Address, now: float) -> Certificate:
        """The certificate of the other end, checked in every respect; *expected* is its name if we know it. Refusal."""
        skew = skew_text(offer.wall - self.wall())
        where = self.place(source)
        try:
            certificate = parse_chain(offer.certificate)
            verify(certificate, self.identity.roots, self.wall(), expected or None)
        except CertificateError as error:
            raise Refusal(reason_of(error), f"node at {where}: {error}{skew}") from error
        name = certificate.name
        if certificate.static_key != static_key:
            raise Refusal(Reason.WRONG_KEY, f"node at {where} shows the certificate of {name} and has another key")
        if name == self.identity.name:
            keys = f"keys {fingerprint(self.identity.certificate.static_key)} here, {fingerprint(static_key)} there"
            raise Refusal(Reason.OWN_NAME, f"two nodes with one name: the node at {where} is named {name} like this one ({keys})")
        known = self.connections.taken(name, static_key, now)
        if known:
            keys = f"keys {fingerprint(known)} there, {fingerprint(static_key)} at {where}"
            raise Refusal(Reason.DUPLICATE_NAME, f"two nodes with one name: {name} is connected, and another machine claims it ({keys})")
        if not self.accept(certificate):
            raise Refusal(Reason.REFUSED, f"node {name} at {where} is not accepted here")
        return certificate

    def establish(
        self,
        state: HandshakeState,
        role: Role,
        suite: int,
        indices: tuple[int, int],
        offer: Offer,
        certificate: Certificate,
        sent_transport_id: int,
        address: Address,
        attempt: int,
        now: float,
    ) -> None:
        """The handshake is complete: make the session, remember the node, tell it. *indices*: ours, theirs."""
        name = certificate.name
        before = self.nodes.get(name)
        met = before is not None and before.boot_id != b""
        same_boot = before is not None and before.boot_id == offer.boot_id
        continued = same_boot and sent_transport_id != 0 and sent_transport_id == offer.transport_id
        transport_id = sent_transport_id if continued else int.from_bytes(state.derive(b"transport id")[:8], "big") or 1
        sequence = max(offer.sequence, before.sequence) if before is not None and same_boot else offer.sequence
        self.nodes.put(name, Remembered(certificate.static_key, offer.boot_id, sequence, now))
        self.known.put(address, None)
        algorithm = SUITES[suite]
        tx, rx = (self.crypto.aead(algorithm, suite_key(algorithm, key)) for key in state.split())
        session = Session(tx, rx, indices[0], indices[1], role, now)
        self.release(indices[0])
        self._live[indices[0]] = session.lease
        self.counters["established"] += 1
        self._tell(
            Established(
                peer=PeerIdentity(name, certificate.roles, certificate.static_key, offer.boot_id, certificate),
                session=session,
                role=role,
                address=address,
                transport_id=transport_id,
                continued=continued,
                restarted=met and not same_boot,
                mtu=min(offer.mtu, self.mtu(address[0])),
                features=offer.features & self.features,
                clock_skew=offer.wall - self.wall(),
                attempt=attempt,
            )
        )

    def fail(self, reason: Reason, sentence: str, name: str, address: Address, attempt: int, now: float, *, told: bool = False) -> None:
        """Count a failure and tell it: always when it ends an attempt of ours, else once a minute for the same cause."""
        self.counters[reason.value] += 1
        if not attempt:
            key = (reason, name, address)
            if now - self._said.get(key, -SAY_AGAIN) < SAY_AGAIN:
                return
            self._said.put(key, now)
        self._tell(Failed(reason, sentence, name, address, attempt, told))

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        if len(self.events) > EVENTS_MAX:
            # Strangers' failures first: nobody waits for them.
            spare = next((old for old in self.events if isinstance(old, Failed) and not old.attempt), self.events[0])
            self.events.remove(spare)
            self.counters["events_dropped"] += 1


def suite_numbers(names: Sequence[str]) -> bytes:
    """Suite names in order of preference as an INITIATION carries them. Misuse for an unknown name, none, or too many."""
    numbers = {algorithm.name: number for number, algorithm in SUITES.items()}
    unknown = [name for name in names if name not in numbers]
    if unknown or not names or len(names) > SUITE_SLOTS or len(set(names)) != len(names):
        raise Misuse(f"cipher suites are {', '.join(numbers)}, each once; got {', '.join(names) or 'none'}")
    return bytes(numbers[name] for name in names).ljust(SUITE_SLOTS, b"\0")


def choose_suite(offered: bytes, ours: bytes) -> int:
    """The suite with the smallest sum of places in both lists, on a tie the one that the initiator prefers; 0: none in common."""
    common = [number for number in offered if number and number in ours]
    return min(common, key=lambda number: offered.index(number) + ours.index(number), default=0)


def suite_key(algorithm: Aead, key: bytes) -> bytes:
    """The key of one direction, bound to its suite: BLAKE2s keyed with Noise's 32 bytes over the suite's name, of the suite's size."""
    return hashlib.blake2s(algorithm.name.encode(), key=key, digest_size=algorithm.key_size).digest()
