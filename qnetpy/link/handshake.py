"""The handshake machine: calls peers, answers calls, and says who was reached with which session. Sans-IO.

Noise XX at first contact and IK once a key is pinned, both with the cluster secret mixed in first, so that a stranger gets silence. The
frames, the states and what happens under attack: docs/protocol/link.md. The machine has two halves, `qnetpy.link.initiator` and
`qnetpy.link.responder`, over one `qnetpy.link.party`; this file is what others use.

Drivers: `initiate` (a hint came), `receive` (a handshake frame came), `handle_timeout` (at `next_timeout`). After each, send what
`transmit` returns and act on what `events` returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from qnetpy.identity.authority import NodeIdentity
from qnetpy.identity.certificate import Certificate
from qnetpy.link.constants import MAC_SIZE
from qnetpy.link.halfopen import HalfOpenTable
from qnetpy.link.initiator import Initiator
from qnetpy.link.outcome import Event, PeerHint, place
from qnetpy.link.party import SUITES, Connections, Party, Random, Remembered, suite_numbers
from qnetpy.link.responder import Responder
from qnetpy.link.wire import CONFIRM, COOKIE, FINAL, INITIATION, RESPONSE, Address, BadVersion, parse_handshake
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from stack.crypto.registry import Crypto


def any_interface(_: str) -> int:
    """No limit of our own on what an interface takes."""
    return 65535


def everybody(_: Certificate) -> bool:
    return True


class HandshakeMachine:
    """Handshakes of one node with all others. Nothing blocks; bytes from outside raise nothing."""

    def __init__(
        self,
        identity: NodeIdentity,
        connections: Connections,
        boot_id: bytes,
        crypto: Crypto,
        random: Random,
        wall: Callable[[], float],
        suites: Sequence[str] = (),
        *,
        mtu: Callable[[str], int] = any_interface,
        features: int = 0,
        accept: Callable[[Certificate], bool] = everybody,
        place: Callable[[Address], str] = place,
    ) -> None:
        """*boot_id*: 16 bytes, drawn once per start of the daemon. *wall* gives seconds since the epoch.

        *random* must be the system's (os.urandom) outside simulations: private keys come from it. *suites* in order of preference, none
        for ours. *mtu* tells an interface's limit. *accept* may refuse a certificate that is otherwise good (revocation). *place*
        says an address for people. Misuse for an unknown suite.
        """
        self._party = Party(identity, connections, boot_id, crypto, random, wall, suites, mtu, features, accept, place)
        self._half_open = HalfOpenTable()
        self._initiator = Initiator(self._party, self._half_open)
        self._responder = Responder(self._party, self._half_open, self._initiator)

    @property
    def boot_id(self) -> bytes:
        return self._party.boot_id

    def random(self, size: int) -> bytes:
        """Random bytes of the node's source."""
        return self._party.random(size)

    @property
    def identity(self) -> NodeIdentity:
        return self._party.identity

    @property
    def counters(self) -> Counter[str]:
        """Frames and failures by reason; docs/protocol/link.md explains the names. The live object."""
        return self._party.counters

    @property
    def stamp_key(self) -> tuple[int, int]:
        """Of this cluster: `qnetpy.link.stamp`."""
        return self._party.stamp_key

    @property
    def draws(self) -> int:
        """Another number when `indices` has new ones."""
        return self._party.draws

    def indices(self) -> frozenset[int]:
        """Session indices that frames to us may carry: of sessions, of handshakes, and of the next handshakes."""
        return self._party.indices()

    @property
    def half_open(self) -> int:
        """Handshakes answered and not confirmed."""
        return len(self._half_open)

    @property
    def calling(self) -> int:
        """Attempts under way."""
        return len(self._initiator)

    def initiate(self, hint: PeerHint, now: float) -> int:
        """Call a peer, at first contact or for new keys. Returns the number that the attempt's one event will carry.

        A second call to the same node or address joins the first and adds the address. Misuse for our own name.
        """
        return self._initiator.initiate(hint, now)

    def hasten(self, attempt: int, now: float) -> None:
        """Whoever the attempt calls has just been heard of: it sends again when HASTEN_LEAST has passed since it last did."""
        self._initiator.hasten(attempt, now)

    def abandon(self, attempt: int) -> None:
        """Give an attempt up; it has no event. A number that is not under way is ignored."""
        self._initiator.abandon(attempt)

    def receive(self, frame: Buffer, source: Address, now: float) -> None:
        """A handshake frame without its Ethernet header, padding and all. Copied; never raises for its bytes."""
        party = self._party
        try:
            parsed, data, macs = parse_handshake(frame)
            if not party.mac.check(data, macs[:MAC_SIZE]):
                party.counters["bad_mac"] += 1
                return
            if parsed.type == INITIATION:
                self._responder.on_initiation(parsed, data, macs, source, now)
            elif parsed.type == RESPONSE:
                self._initiator.on_response(parsed, source, now)
            elif parsed.type == FINAL:
                self._responder.on_final(parsed, data, macs, source, now)
            elif parsed.type == CONFIRM:
                self._initiator.on_confirm(parsed, data, now)
            elif parsed.type == COOKIE:
                self._initiator.on_cookie(parsed, source, now)
        except BadVersion:
            party.counters["bad_version"] += 1
        except BadMessage:
            party.counters["malformed"] += 1

    def transmit(self) -> list[tuple[Address, bytes]]:
        """Frames to send, without Ethernet header, in order. The caller owns them."""
        out, self._party.out = self._party.out, []
        return out

    def events(self) -> list[Event]:
        """What happened since the last call, in order."""
        events = list(self._party.events)
        self._party.events.clear()
        return events

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`; None: not before something else happens. Ask again after every other call."""
        times = [time for time in (self._initiator.next_timeout(), self._responder.next_timeout()) if time is not None]
        return min(times, default=None)

    def handle_timeout(self, now: float) -> None:
        self._responder.handle_timeout(now)
        self._initiator.handle_timeout(now)

    def pin(self, name: str, static_key: bytes) -> None:
        """Expect that key of a node not met yet (from a file, or an invitation): the first call to it uses IK. 32 bytes."""
        if name not in self._party.nodes:
            self._party.nodes.put(name, Remembered(static_key))

    def set_identity(self, identity: NodeIdentity) -> None:
        """A renewed certificate or more roots, of the same name, key and cluster secret; handshakes from now on use it."""
        self._party.identity = identity

    def suites(self) -> list[str]:
        """Names, in order of preference."""
        return [SUITES[number].name for number in self._party.suites if number]

    def begin_anew(self, boot_id: bytes, now: float) -> None:
        """Be another boot of this node: there may be a copy of this process, which is the present one. Handshakes under way end here, since
        both copies would get the same keys by them; each attempt has its event. Who waits for our part of one is called: it cannot know."""
        self._party.boot_id = boot_id
        waiting = self._responder.begin_anew()
        self._initiator.begin_anew(now)
        self._party.out.clear()
        for address in waiting:
            self._initiator.initiate(PeerHint(address), now)

    def set_suites(self, suites: Sequence[str]) -> None:
        """Other suites for handshakes from now on; sessions change with their next rekey. Misuse for an unknown one."""
        self._party.suites = suite_numbers(suites)
