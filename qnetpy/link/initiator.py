"""The calling half of the handshake: attempts. Sans-IO; docs/protocol/link.md has the states and the reasons.

    WAITING     the peer's own INITIATION is being answered: ours waits a little, since one handshake is enough
    INITIATED   INITIATION sent, repeated until a RESPONSE comes; a COOKIE only changes its mac2
    FINAL       RESPONSE verified, FINAL sent, repeated until the CONFIRM comes

Every attempt ends in one event that carries its number.
"""

from __future__ import annotations

import enum
import hmac

import attrs

from qnetpy.identity.certificate import Certificate, CertificateError, verify
from qnetpy.link.constants import (
    ATTEMPT_TIMEOUT,
    ATTEMPTS_MAX,
    DESTINATIONS_MAX,
    HASTEN_LEAST,
    JOIN_WAIT,
    MAC_SIZE,
    PINNED_TRIES,
    REFUSED_ANSWERS,
    REFUSED_WAIT,
    RENEW_AFTER,
    RETRY_FACTOR,
    RETRY_FIRST,
    RETRY_JITTER,
    RETRY_MAX,
    RETRY_STEADY,
)
from qnetpy.link.cookie import mac
from qnetpy.link.halfopen import HalfOpenTable
from qnetpy.link.hello import Hello, Offer, parse_offer, parse_verdict
from qnetpy.link.noise.functions import DH_SIZE, BadHandshake
from qnetpy.link.noise.handshakestate import HandshakeState
from qnetpy.link.outcome import STATUS, PeerHint, Reason, reason_of, reason_of_status, told_sentence
from qnetpy.link.party import SUITES, Party, Refusal
from qnetpy.link.session import Role
from qnetpy.link.stamp import stamp
from qnetpy.link.wire import FINAL, INITIATION, PATTERN_IK, PATTERN_XX, Address, HandshakeFrame
from resmgr.errors import BadMessage, Misuse

YIELDS_MAX = 2
"""Times that one attempt gives way to the peer's, or begins again because a connection changed. Stops a member without certificate who
claims a name from holding up a call to it."""


class Step(enum.Enum):
    WAITING = "waiting"
    INITIATED = "initiated"
    FINAL = "final"


@attrs.define(eq=False)
class Attempt:
    """One call to one peer."""

    number: int
    name: str
    """As hinted, later as proven; empty when unknown."""
    destinations: list[Address]
    began: float
    send_at: float
    step: Step = Step.WAITING
    repeats: int = 0
    """Times that the frame of this step was sent, since the peer last showed that it hears us."""
    renewed: float = 0.0
    """When the current INITIATION, or the FINAL, was made."""
    index: int = 0
    sequence: int = 0
    """Of the current INITIATION."""
    remote_index: int = 0
    pattern: int = PATTERN_XX
    state: HandshakeState | None = None
    initiation: bytes = b""
    """The frame up to and with mac1."""
    boot_id: bytes = b""
    """Of the peer, that `transport_id` is about."""
    transport_id: int = 0
    """Ours, as told to the peer."""
    cookies: dict[Address, bytes] = attrs.field(factory=dict)
    final: bytes = b""
    offer: Offer | None = None
    certificate: Certificate | None = None
    yields: int = 0
    refusal: Refusal | None = None
    """Of who answered first and is not accepted; somebody else may answer yet, until `give_up_at`."""
    refusals: int = 0
    spent: bytes = b""
    """The ephemeral key of a RESPONSE that was answered with a refusal: its keys have sealed all that they may."""
    unpinned: bool = False
    """XX, although the peer's key is known."""
    give_up_at: float = 0.0
    sent_to: dict[Address, float] = attrs.field(factory=dict)

    def outlived(self, boot_id: bytes) -> bool:
        """Whether a boot of the peer that has answered this attempt is not the one that calls: then nobody may be left to end it."""
        return self.offer is not None and self.step is Step.FINAL and self.offer.boot_id != boot_id


class Initiator:
    """Attempts by number and, while they wait for an answer, by index."""

    def __init__(self, party: Party, half_open: HalfOpenTable) -> None:
        self._party = party
        self._half_open = half_open
        self._attempts: dict[int, Attempt] = {}
        self._by_index: dict[int, Attempt] = {}
        self._last_number = 0
        self._completed = 0
        """The greatest sequence of an INITIATION of ours by which a handshake was completed."""

    def __len__(self) -> int:
        return len(self._attempts)

    def initiate(self, hint: PeerHint, now: float) -> int:
        party = self._party
        if hint.name == party.identity.name:
            raise Misuse("a node does not call itself")
        attempt = self._find(hint.name, hint.address)
        if attempt is not None:
            if self._add_destination(attempt, hint.address) and attempt.step is Step.INITIATED:
                self._send(attempt, hint.address, now)
            return attempt.number
        self._last_number += 1
        attempt = Attempt(self._last_number, hint.name, [hint.address], now, now, give_up_at=now + ATTEMPT_TIMEOUT)
        if len(self._attempts) >= ATTEMPTS_MAX:
            party.fail(
                Reason.BUSY, f"too many calls at once, {self._who(attempt)} is not called", hint.name, hint.address, attempt.number, now
            )
            return attempt.number
        own = party.identity.certificate
        try:
            verify(own, party.identity.roots, party.wall())
        except CertificateError as error:
            sentence = f"our own certificate will not be accepted: {error}"
            party.fail(reason_of(error), sentence, hint.name, hint.address, attempt.number, now)
            return attempt.number
        self._attempts[attempt.number] = attempt
        if hint.name and self._half_open.of_name(hint.name):
            attempt.send_at = now + JOIN_WAIT
        else:
            self._begin(attempt, now)
        return attempt.number

    def hasten(self, number: int, now: float) -> None:
        """The one who is called has just been heard of: send again soon."""
        attempt = self._attempts.get(number)
        if attempt is not None and attempt.step is Step.INITIATED:
            attempt.send_at = min(attempt.send_at, max(now, max(attempt.sent_to.values(), default=now) + HASTEN_LEAST))

    def abandon(self, number: int) -> None:
        attempt = self._attempts.get(number)
        if attempt is not None:
            self._end(attempt)

    def begin_anew(self, now: float) -> None:
        """End every attempt."""
        for attempt in list(self._attempts.values()):
            self._fail(attempt, Reason.SUPERSEDED, f"the call to {self._who(attempt)} ends: this node begins anew", now)

    def ours(self, frame: HandshakeFrame, first_mac: bytes) -> bool:
        """Whether an INITIATION is one that we sent: a loop in the network, or a driver that shows what it transmits."""
        attempt = self._by_index.get(frame.sender)
        return attempt is not None and attempt.initiation[-MAC_SIZE:] == first_mac

    def crossing(self, name: str, source: Address) -> Attempt | None:
        """Our attempt, if frames of it are out, to the node that calls us as *name* from *source*."""
        attempt = self._find(name, source)
        return attempt if attempt is not None and attempt.step is not Step.WAITING else None

    def insist(self, attempt: Attempt, source: Address, now: float) -> None:
        """The peer calls as well and our call is the one that counts: make sure that it reaches the peer where it really is."""
        if attempt.step is Step.INITIATED and now - attempt.sent_to.get(source, -RETRY_FIRST) >= RETRY_FIRST / 2:
            self._add_destination(attempt, source)
            self._send(attempt, source, now)

    def satisfied(self, name: str, source: Address, now: float) -> int:
        """The peer's handshake succeeded: attempts to it end. Returns the number of one, 0 when there was none."""
        found = [one for one in self._attempts.values() if one.name == name or (not one.name and source in one.destinations)]
        for attempt in found[1:]:
            self._fail(attempt, Reason.SUPERSEDED, f"{self._who(attempt)} was reached by another call", now)
        for attempt in found[:1]:
            self._end(attempt)
        return found[0].number if found else 0

    def on_cookie(self, frame: HandshakeFrame, source: Address, now: float) -> None:
        attempt = self._by_index.get(frame.receiver)
        if attempt is None or attempt.step is not Step.INITIATED or source not in attempt.destinations:
            self._party.counters["unknown_index"] += 1
            return
        cookie = self._party.mac.open_cookie(frame.body, attempt.initiation[-MAC_SIZE:])
        if attempt.cookies.get(source) == cookie:
            # A copy. Answering it would let anybody double our frames.
            self._party.counters["duplicate"] += 1
            return
        if self._overtaken(attempt):
            self._begin(attempt, now)
            return
        fresh = source not in attempt.cookies
        attempt.cookies[source] = cookie
        self._send(attempt, source, now)
        if fresh and attempt.refusal is None:
            attempt.repeats = 1
            self._set_timer(attempt, now)

    def on_response(self, frame: HandshakeFrame, source: Address, now: float) -> None:
        party = self._party
        attempt = self._by_index.get(frame.receiver)
        if attempt is None or attempt.state is None:
            party.counters["unknown_index"] += 1
            return
        if attempt.step is not Step.INITIATED or frame.pattern != attempt.pattern or frame.body[:DH_SIZE] == attempt.spent:
            party.counters["duplicate"] += 1
            return
        if source not in attempt.destinations:
            # Somebody took it along, and nobody is known to hear there. Who was called answers again.
            party.counters["other_source"] += 1
            return
        state = attempt.state.copy()
        try:
            offer = parse_offer(state.read(frame.body))
            if offer.index != frame.sender:
                raise BadHandshake("response: header changed on the way")
        except BadHandshake:
            party.counters["bad_handshake"] += 1
            return
        except BadMessage as error:
            self._refuse(attempt, Refusal(Reason.PROTOCOL, f"{self._who(attempt)} speaks another protocol: {error}"), now)
            return
        try:
            certificate = party.examine(offer, state.remote_static, attempt.name, source, now)
        except Refusal as refusal:
            if refusal.reason is not Reason.WRONG_CLUSTER or attempt.refusal is not None:
                self._refuse(attempt, refusal, now)
            elif attempt.pattern == PATTERN_IK and not attempt.unpinned:
                attempt.unpinned = True
                self._begin(attempt, now)
            else:
                self._say_root_unknown(attempt, state, frame, source)
                self._refuse(attempt, refusal, now)
            return
        attempt.state = state
        if not attempt.name:
            attempt.name = certificate.name
        if offer.status:
            reason = reason_of_status(offer.status)
            self._fail(attempt, reason, told_sentence(self._who(attempt), reason, offer.wall - party.wall()), now, told=True)
        elif offer.suite not in SUITES or offer.suite not in party.suites:
            self._fail(attempt, Reason.PROTOCOL, f"{self._who(attempt)} chose what we did not offer", now)
        elif self._reached_otherwise(attempt, offer):
            self._fail(attempt, Reason.SUPERSEDED, f"{self._who(attempt)} was reached by another call", now)
        elif self._gives_way(attempt, offer, now):
            self._wait(attempt, now)
        else:
            self._finish(attempt, frame, offer, certificate, source, now)

    def on_confirm(self, frame: HandshakeFrame, data: bytes, now: float) -> None:
        """The peer is where the FINAL went, for there it was heard; where the CONFIRM comes from is not authenticated."""
        party = self._party
        attempt = self._by_index.get(frame.receiver)
        if attempt is None or attempt.step is not Step.FINAL or frame.sender != attempt.remote_index:
            party.counters["unknown_index"] += 1
            return
        state, offer, certificate = attempt.state, attempt.offer, attempt.certificate
        assert state is not None
        assert offer is not None
        assert certificate is not None
        if not hmac.compare_digest(mac(state.derive(b"confirm responder"), data[:-MAC_SIZE]), data[-MAC_SIZE:]):
            party.counters["bad_handshake"] += 1
            return
        status, wall = parse_verdict(frame.body[:-MAC_SIZE])
        changed = party.transport_id_with(attempt.name, attempt.boot_id) != attempt.transport_id
        if (status == STATUS[Reason.SUPERSEDED] or (not status and changed)) and attempt.yields < YIELDS_MAX:
            # The connection that this was about ended, or began, at one of the ends.
            attempt.yields += 1
            self._begin(attempt, now)
        elif status:
            reason = reason_of_status(status)
            self._fail(attempt, reason, told_sentence(self._who(attempt), reason, wall - party.wall()), now, told=True)
        elif changed:
            self._fail(attempt, Reason.SUPERSEDED, f"{self._who(attempt)}: the connection changed during the handshake", now)
        else:
            self._completed = max(self._completed, attempt.sequence)
            self._end(attempt, keep_index=True)
            party.establish(
                state, Role.INITIATOR, offer.suite, (attempt.index, attempt.remote_index), offer, certificate, attempt.transport_id,
                attempt.destinations[0], attempt.number, now,
            )  # fmt: skip

    def next_timeout(self) -> float | None:
        return min((min(one.send_at, one.give_up_at) for one in self._attempts.values()), default=None)

    def handle_timeout(self, now: float) -> None:
        for attempt in list(self._attempts.values()):
            if attempt.refusal is not None and attempt.step is not Step.FINAL and now >= attempt.give_up_at:
                self._fail(attempt, attempt.refusal.reason, attempt.refusal.sentence, now)
            elif now >= attempt.began + ATTEMPT_TIMEOUT:
                if attempt.step is Step.FINAL:
                    self._fail(attempt, Reason.UNCONFIRMED, f"{self._who(attempt)} answered and then fell silent", now)
                else:
                    text = f"{self._who(attempt)} does not answer: not there, another cluster, or another cluster secret"
                    self._fail(attempt, Reason.NO_ANSWER, text, now)
            elif now >= attempt.send_at:
                overtaken = bool(attempt.cookies) and self._overtaken(attempt)
                if attempt.step is Step.WAITING or now - attempt.renewed >= RENEW_AFTER or self._pin_failed(attempt, now) or overtaken:
                    # A new frame for the same silence does not make us impatient again.
                    patient = attempt.step is Step.INITIATED and not attempt.cookies and not self._pin_failed(attempt, now)
                    self._begin(attempt, now, attempt.repeats if patient else 0)
                else:
                    self._repeat(attempt, now)

    def _who(self, attempt: Attempt) -> str:
        where = self._party.place(attempt.destinations[0])
        return f"node {attempt.name} at {where}" if attempt.name else f"node at {where}"

    def _find(self, name: str, address: Address) -> Attempt | None:
        for attempt in self._attempts.values():
            if (attempt.name == name) if (attempt.name and name) else (address in attempt.destinations):
                return attempt
        return None

    def _add_destination(self, attempt: Attempt, address: Address) -> bool:
        if address in attempt.destinations:
            return False
        if len(attempt.destinations) >= DESTINATIONS_MAX:
            # The first was asked for; the newest is the likeliest.
            del attempt.destinations[1]
        attempt.destinations.append(address)
        return True

    def _pin_failed(self, attempt: Attempt, now: float) -> bool:
        return attempt.pattern == PATTERN_IK and attempt.step is Step.INITIATED and now - attempt.began >= PINNED_TRIES

    def _overtaken(self, attempt: Attempt) -> bool:
        """Whether a later INITIATION of ours led to a handshake, perhaps with the node at this stranger's address: there this one is old
        then, and not answered."""
        return attempt.step is Step.INITIATED and not attempt.name and attempt.sequence < self._completed

    def _begin(self, attempt: Attempt, now: float, repeats: int = 0) -> None:
        """Make a new INITIATION and send it everywhere. *repeats*: how often the one before was sent to somebody who is silent."""
        party = self._party
        self._forget_index(attempt)
        node = party.nodes.get(attempt.name)
        pinned = node is not None and not attempt.unpinned and now - attempt.began < PINNED_TRIES
        attempt.pattern = PATTERN_IK if pinned else PATTERN_XX
        attempt.step = Step.INITIATED
        attempt.renewed = now
        attempt.repeats = repeats
        attempt.cookies.clear()
        attempt.index = party.new_index()
        self._by_index[attempt.index] = attempt
        party.sequence += 1
        attempt.sequence = party.sequence
        party.outstanding.add(attempt.sequence)
        attempt.boot_id = node.boot_id if node is not None else b""
        attempt.transport_id = party.transport_id_with(attempt.name, attempt.boot_id)
        attempt.state = party.noise(
            attempt.pattern, True, party.suites, attempt.index, node.static_key if node is not None and pinned else None
        )
        payload = Hello(party.sequence, party.boot_id, party.identity.name, attempt.name).pack()
        if pinned:
            payload += party.own_offer(attempt.index, attempt.destinations[0][0], attempt.transport_id).pack()
        body = attempt.state.write(payload)
        data = HandshakeFrame(INITIATION, attempt.index, 0, attempt.pattern, party.suites, body).pack()
        attempt.initiation = data + party.mac.make(data)
        self._repeat(attempt, now)

    def _repeat(self, attempt: Attempt, now: float) -> None:
        for destination in attempt.destinations[:1] if attempt.step is Step.FINAL else attempt.destinations:
            self._send(attempt, destination, now)
        attempt.repeats += 1
        self._set_timer(attempt, now)

    def _set_timer(self, attempt: Attempt, now: float) -> None:
        wait = min(RETRY_FIRST * RETRY_FACTOR ** max(0, attempt.repeats - RETRY_STEADY), RETRY_MAX)
        attempt.send_at = now + wait * (1.0 + RETRY_JITTER * self._party.chance())

    def _send(self, attempt: Attempt, destination: Address, now: float) -> None:
        if attempt.step is Step.FINAL:
            frame = attempt.final
        else:
            cookie = attempt.cookies.get(destination)
            second = mac(cookie, attempt.initiation) if cookie is not None else bytes(MAC_SIZE)
            frame = attempt.initiation + second + stamp(self._party.stamp_key, attempt.initiation[-MAC_SIZE:] + second)
        attempt.sent_to[destination] = now
        self._party.out.append((destination, frame))

    def _refuse(self, attempt: Attempt, refusal: Refusal, now: float) -> None:
        """Who answered is not accepted. With a known key that was the node itself; else it may be anybody who has the cluster secret, and
        the node may answer yet. Nothing is sent again: whoever is refused does not cost more by it."""
        attempt.refusals += 1
        if attempt.pattern == PATTERN_IK or attempt.refusals >= REFUSED_ANSWERS:
            self._fail(attempt, refusal.reason, refusal.sentence, now)
        elif attempt.refusal is None:
            attempt.refusal = refusal
            attempt.give_up_at = attempt.send_at = min(attempt.give_up_at, now + REFUSED_WAIT)

    def _say_root_unknown(self, attempt: Attempt, state: HandshakeState, frame: HandshakeFrame, source: Address) -> None:
        """Who answered shows a certificate under a root that we do not have. If that is an older one than ours it has another certificate
        too, and nobody else may be able to tell it that it is time to show that: we may be where nobody can call us. A FINAL tells it, of
        XX alone, since that of IK has no place for it."""
        if attempt.pattern != PATTERN_XX:
            return
        party = self._party
        attempt.spent = bytes(frame.body[:DH_SIZE])
        body = state.write(party.own_offer(attempt.index, source[0], 0, reason=Reason.WRONG_CLUSTER).pack())
        data = HandshakeFrame(FINAL, attempt.index, frame.sender, attempt.pattern, bytes(4), body).pack()
        party.out.append((source, data + party.mac.make(data)))

    def _reached_otherwise(self, attempt: Attempt, offer: Offer) -> bool:
        """Whether another handshake with this boot of the peer was completed, or nearly, since the INITIATION of *attempt* was made."""
        node = self._party.nodes.get(attempt.name)
        if node is not None and node.boot_id == offer.boot_id and node.met >= attempt.renewed:
            return True
        return any(one.step is Step.FINAL and one.name == attempt.name for one in self._attempts.values())

    def _gives_way(self, attempt: Attempt, offer: Offer, now: float) -> bool:
        """Whether the peer calls us at this moment, without having known that we call it, and its call is the one that counts."""
        if attempt.name > self._party.identity.name or attempt.yields >= YIELDS_MAX:
            return False
        return any(
            entry.boot_id == offer.boot_id and now - entry.began < JOIN_WAIT for entry in self._half_open.of_name(attempt.name)
        )  # fmt: skip

    def _wait(self, attempt: Attempt, now: float) -> None:
        attempt.yields += 1
        attempt.step = Step.WAITING
        self._forget_index(attempt)
        attempt.send_at = now + JOIN_WAIT

    def _finish(self, attempt: Attempt, frame: HandshakeFrame, offer: Offer, certificate: Certificate, source: Address, now: float) -> None:
        """The peer is who it should be: say who we are."""
        party = self._party
        assert attempt.state is not None
        for entry in self._half_open.of_name(attempt.name):
            self._half_open.remove(entry)
            party.release(entry.index)
        attempt.step = Step.FINAL
        attempt.give_up_at = attempt.began + ATTEMPT_TIMEOUT
        party.outstanding.discard(attempt.sequence)
        attempt.renewed = now
        attempt.repeats = 0
        attempt.offer, attempt.certificate = offer, certificate
        attempt.remote_index = frame.sender
        # The FINAL goes to the first alone; the others are for another INITIATION, should nobody hear it there.
        attempt.destinations.remove(source)
        attempt.destinations.insert(0, source)
        if attempt.pattern == PATTERN_XX:
            attempt.boot_id = offer.boot_id
            attempt.transport_id = party.transport_id_with(attempt.name, offer.boot_id)
            body = attempt.state.write(party.own_offer(attempt.index, source[0], attempt.transport_id).pack())
            data = HandshakeFrame(FINAL, attempt.index, frame.sender, attempt.pattern, bytes(4), body).pack()
        else:
            head = HandshakeFrame(FINAL, attempt.index, frame.sender, attempt.pattern, bytes(4), bytes(MAC_SIZE)).header()
            data = head + mac(attempt.state.derive(b"confirm initiator"), head)
        attempt.final = data + party.mac.make(data)
        self._repeat(attempt, now)

    def _fail(self, attempt: Attempt, reason: Reason, sentence: str, now: float, *, told: bool = False) -> None:
        self._end(attempt)
        self._party.fail(reason, sentence, attempt.name, attempt.destinations[0], attempt.number, now, told=told)

    def _end(self, attempt: Attempt, keep_index: bool = False) -> None:
        self._attempts.pop(attempt.number, None)
        if keep_index:
            self._by_index.pop(attempt.index, None)
        else:
            self._forget_index(attempt)

    def _forget_index(self, attempt: Attempt) -> None:
        self._party.outstanding.discard(attempt.sequence)
        if self._by_index.pop(attempt.index, None) is not None:
            self._party.release(attempt.index)
