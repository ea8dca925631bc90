"""The answering half of the handshake. Sans-IO; docs/protocol/link.md has the order of checks and the reasons.

What is spent on a frame grows with what its sender has shown: nothing but a hash without the cluster secret; a cookie without a proven
address or a fresh sequence number; a Diffie-Hellman exchange and a table entry only after that, within budgets. An INITIATION that was
answered, or could have been sent before we met its sender last, leaves no trace.
"""

from __future__ import annotations

import hmac
import math

import attrs

from qnetpy.identity.certificate import fingerprint
from qnetpy.link.constants import ANSWER_AGAIN, COOKIE_NONCE_SIZE, DONE_LIFETIME, HALF_OPEN_LIFETIME, HALF_OPEN_MAX, MAC_SIZE, SEEN_MAX
from qnetpy.link.cookie import CookieJar, mac
from qnetpy.link.halfopen import Budgets, HalfOpen, HalfOpenTable, Recent
from qnetpy.link.hello import Hello, Offer, pack_verdict, parse_hello, parse_offer
from qnetpy.link.initiator import Initiator
from qnetpy.link.noise.functions import BadHandshake
from qnetpy.link.noise.handshakestate import HandshakeState
from qnetpy.link.outcome import STATUS, Reason, told_sentence
from qnetpy.link.party import Party, Refusal, choose_suite
from qnetpy.link.session import Role
from qnetpy.link.wire import CONFIRM, COOKIE, PATTERN_IK, PATTERN_XX, RESPONSE, Address, HandshakeFrame
from resmgr.errors import BadMessage


@attrs.frozen
class Done:
    """A FINAL that was answered: a copy of it gets the same CONFIRM."""

    index: int
    first_mac: bytes
    confirm: bytes
    failed: bool
    expires: float


class Responder:
    """Half-open handshakes, and the answers to those that ended a moment ago."""

    def __init__(self, party: Party, half_open: HalfOpenTable, initiator: Initiator) -> None:
        self._party = party
        self._half_open = half_open
        self._initiator = initiator
        self._jar = CookieJar(party.random)
        self._budgets = Budgets()
        self._seen: Recent[bytes, None] = Recent(SEEN_MAX)
        self._cookies: Recent[bytes, float] = Recent(SEEN_MAX)
        """When an INITIATION was last answered by a COOKIE, by its mac1."""
        self._done: dict[int, Done] = {}

    def on_initiation(self, frame: HandshakeFrame, data: bytes, macs: bytes, source: Address, now: float) -> None:
        """*data*: what mac1 is over, which was checked; *macs*: both."""
        party = self._party
        first_mac, second_mac = macs[:MAC_SIZE], macs[MAC_SIZE : 2 * MAC_SIZE]
        if self._initiator.ours(frame, first_mac):
            party.counters["own_echo"] += 1
            return
        entry = self._half_open.answering(first_mac)
        if entry is not None:
            party.counters["duplicate"] += 1
            if now >= entry.answered + ANSWER_AGAIN:
                entry.answered = now
                party.out.append((entry.source, entry.response))
            return
        if first_mac in self._seen:
            party.counters["replayed_initiation"] += 1
            return
        proven = self._jar.check(source, data + first_mac, second_mac, now)
        if not proven and now < self._cookies.get(first_mac, -ANSWER_AGAIN) + ANSWER_AGAIN:
            party.counters["duplicate"] += 1
            return
        known = source in party.known
        # Not before: whoever sends copies of a node's frames in its name must not use up its budget.
        if not (self._budgets.proven if proven else self._budgets.unproven).take(source, now):
            party.counters["rate_source"] += 1
            if known and not proven:
                # An insider may send in the node's name without hearing what we say: a cookie tells who is there, on another budget.
                self._send_cookie(frame, first_mac, source, now)
            return
        if not proven and (not known or self._half_open.loaded):
            # Nothing tells a first call from a copy of an old one, except an answer of the caller to something new.
            self._send_cookie(frame, first_mac, source, now)
            return
        if not (self._budgets.known if known else self._budgets.strangers).take(now):
            party.counters["rate_total"] += 1
            return
        state = party.noise(frame.pattern, False, frame.suites, frame.sender)
        try:
            hello, rest = parse_hello(state.read(frame.body))
            offer = parse_offer(rest) if frame.pattern == PATTERN_IK else None
        except BadHandshake:
            party.counters["bad_handshake"] += 1
            return
        except BadMessage:
            party.counters["malformed"] += 1
            return
        if (rest and offer is None) or not self._wanted(hello, source, now):
            return
        node = party.nodes.get(hello.caller)
        same_boot = node is not None and node.boot_id == hello.boot_id
        if node is not None and same_boot and hello.sequence <= node.sequence:
            self._seen.put(first_mac, None)
            party.counters["replayed_initiation"] += 1
            return
        if not proven and not same_boot:
            # A known address and a node or boot that is not: as if from a stranger.
            self._send_cookie(frame, first_mac, source, now)
            return
        self._seen.put(first_mac, None)
        self._answer(frame, first_mac, hello, offer, rest, state, source, known, now)

    def on_final(self, frame: HandshakeFrame, data: bytes, macs: bytes, source: Address, now: float) -> None:
        """*source* is not authenticated and gets the CONFIRM, no more. The caller is where the RESPONSE went: a FINAL shows that it was
        heard there."""
        party = self._party
        entry = self._half_open.get(frame.receiver)
        if entry is None:
            done = self._done.get(frame.receiver)
            if done is not None and hmac.compare_digest(done.first_mac, macs):
                party.counters["duplicate"] += 1
                party.out.append((source, done.confirm))
            else:
                party.counters["unknown_index"] += 1
            return
        if frame.sender != entry.remote_index or frame.pattern != entry.pattern:
            party.counters["malformed"] += 1
            return
        try:
            if entry.pattern == PATTERN_XX:
                payload = entry.state.read(frame.body)
            elif hmac.compare_digest(mac(entry.state.derive(b"confirm initiator"), data[: -len(frame.body)]), frame.body):
                payload = entry.offer
            else:
                raise BadHandshake("final: authentication failed")
        except BadHandshake:
            party.counters["bad_handshake"] += 1
            return
        try:
            offer = parse_offer(payload)
            if offer.index != entry.remote_index or offer.boot_id != entry.boot_id:
                raise BadMessage("offer: differs from the INITIATION")
            certificate = party.examine(offer, entry.state.remote_static, entry.name, entry.source, now)
            if offer.status not in (0, STATUS[Reason.WRONG_CLUSTER]):
                raise BadMessage("offer: a status that no FINAL has")
            if not offer.status and party.transport_id_with(entry.name, entry.boot_id) != entry.transport_id:
                raise Refusal(Reason.SUPERSEDED, f"node {entry.name}: the connection changed during the handshake")
        except Refusal as refusal:
            self._conclude(entry, macs, source, refusal.reason, now)
            party.fail(refusal.reason, refusal.sentence, entry.name, entry.source, 0, now)
            return
        except BadMessage as error:
            self._conclude(entry, macs, source, Reason.PROTOCOL, now)
            party.fail(Reason.PROTOCOL, f"node {entry.name} speaks another protocol: {error}", entry.name, entry.source, 0, now)
            return
        if offer.status:
            # The other end does not wait for an answer.
            self._half_open.remove(entry)
            party.release(entry.index)
            sentence = told_sentence(f"node {entry.name} at {party.place(entry.source)}", Reason.WRONG_CLUSTER, offer.wall - party.wall())
            party.fail(Reason.WRONG_CLUSTER, sentence, entry.name, entry.source, 0, now, told=True)
            return
        self._conclude(entry, macs, source, None, now)
        for older in self._half_open.of_name(entry.name):
            # Later ones stay: their INITIATION came after this one's, perhaps from a later boot.
            if older.began <= entry.began:
                self._half_open.remove(older)
                party.release(older.index)
        attempt = self._initiator.satisfied(entry.name, entry.source, now)
        offer = attrs.evolve(offer, sequence=max(offer.sequence, entry.sequence))
        party.establish(
            entry.state, Role.RESPONDER, entry.suite, (entry.index, entry.remote_index), offer, certificate, entry.transport_id,
            entry.source, attempt, now,
        )  # fmt: skip

    def next_timeout(self) -> float | None:
        times = [self._half_open.next_timeout(), next((done.expires for done in self._done.values()), None)]
        return min((time for time in times if time is not None), default=None)

    def handle_timeout(self, now: float) -> None:
        for entry in self._half_open.expire(now):
            self._party.counters["half_open_expired"] += 1
            self._party.release(entry.index)
        for done in [done for done in self._done.values() if done.expires <= now]:
            self._forget(done)

    def begin_anew(self) -> list[Address]:
        """Forget whom we answered; returns where those are who have not said their last word. A copy of what they said may be answered
        once more, so no cookie of ours counts any more by which an older recording could be, too."""
        waiting: dict[Address, None] = {}
        for entry in self._half_open.expire(math.inf):
            self._party.release(entry.index)
            waiting[entry.source] = None
        for done in list(self._done.values()):
            self._forget(done)
        self._jar = CookieJar(self._party.random)
        self._seen = Recent(SEEN_MAX)
        self._cookies = Recent(SEEN_MAX)
        return list(waiting)

    def _wanted(self, hello: Hello, source: Address, now: float) -> bool:
        party = self._party
        if hello.caller == party.identity.name and hello.boot_id == party.boot_id:
            party.counters["own_echo"] += 1
            return False
        if hello.called not in ("", party.identity.name):
            party.counters["not_for_us"] += 1
            return False
        attempt = self._initiator.crossing(hello.caller, source)
        if attempt is not None and party.identity.name < hello.caller and not attempt.outlived(hello.boot_id):
            # Both call at once: the call of the smaller name counts, and the other end answers it.
            party.counters["crossed"] += 1
            self._initiator.insist(attempt, source, now)
            return False
        return True

    def _answer(
        self,
        frame: HandshakeFrame,
        first_mac: bytes,
        hello: Hello,
        offer: Offer | None,
        packed_offer: bytes,
        state: HandshakeState,
        source: Address,
        known: bool,
        now: float,
    ) -> None:
        """The INITIATION is fresh: send a RESPONSE, and keep an entry unless the RESPONSE says why not."""
        party = self._party
        suite = choose_suite(frame.suites, party.suites)
        refusal = self._refusal(frame, hello, offer, state, suite, source, now)
        if refusal is None and not self._half_open.room(source, known):
            party.counters["half_open_full"] += 1
            return
        index = party.new_index()
        transport_id = party.transport_id_with(hello.caller, hello.boot_id)
        answer = party.own_offer(index, source[0], transport_id, suite, refusal.reason if refusal is not None else None)
        body = state.write(answer.pack())
        data = HandshakeFrame(RESPONSE, index, frame.sender, frame.pattern, bytes(4), body).pack()
        response = data + party.mac.make(data)
        party.out.append((source, response))
        if refusal is not None:
            party.release(index)
            party.fail(refusal.reason, refusal.sentence, hello.caller, source, 0, now)
            return
        node = party.nodes.get(hello.caller)
        if frame.pattern == PATTERN_IK and node is not None and node.static_key == state.remote_static and node.boot_id == hello.boot_id:
            node.sequence = hello.sequence
        before = self._half_open.of_name(hello.caller)
        self._half_open.add(
            HalfOpen(
                index=index,
                remote_index=frame.sender,
                source=source,
                known=known,
                name=hello.caller,
                boot_id=hello.boot_id,
                sequence=hello.sequence,
                first_mac=first_mac,
                pattern=frame.pattern,
                state=state,
                response=response,
                suite=suite,
                transport_id=transport_id,
                offer=packed_offer,
                began=now,
                expires=now + HALF_OPEN_LIFETIME,
                answered=now,
            )
        )
        for entry in before:
            if self._half_open.get(entry.index) is None:
                party.counters["half_open_replaced"] += 1
                party.release(entry.index)

    def _refusal(
        self, frame: HandshakeFrame, hello: Hello, offer: Offer | None, state: HandshakeState, suite: int, source: Address, now: float
    ) -> Refusal | None:
        """Why the caller is refused already now: that it has our name, or no suite, or (IK) a certificate that is no good."""
        party = self._party
        who = f"node {hello.caller} at {party.place(source)}"
        if hello.caller == party.identity.name:
            key = fingerprint(party.identity.certificate.static_key)
            return Refusal(Reason.OWN_NAME, f"two nodes with one name: {who} calls itself like this one (our key {key})")
        if offer is not None:
            try:
                party.examine(offer, state.remote_static, hello.caller, source, now)
            except Refusal as refusal:
                return refusal
            if offer.index != frame.sender or offer.boot_id != hello.boot_id or offer.status:
                return Refusal(Reason.PROTOCOL, f"{who} contradicts itself")
        if not suite:
            return Refusal(Reason.NO_SUITE, f"{who} has no cipher suite in common with us")
        return None

    def _send_cookie(self, frame: HandshakeFrame, first_mac: bytes, source: Address, now: float) -> None:
        party = self._party
        if not self._budgets.cookies.take(now):
            party.counters["rate_cookies"] += 1
            return
        party.counters["cookies_sent"] += 1
        self._cookies.put(first_mac, now)
        body = party.mac.seal_cookie(self._jar.make(source, now), first_mac, party.random(COOKIE_NONCE_SIZE))
        data = HandshakeFrame(COOKIE, 0, frame.sender, frame.pattern, bytes(4), body).pack()
        party.out.append((source, data + party.mac.make(data)))

    def _conclude(self, entry: HalfOpen, macs: bytes, source: Address, reason: Reason | None, now: float) -> None:
        """Answer a FINAL, and remember the answer for copies of it."""
        party = self._party
        self._half_open.remove(entry)
        verdict = pack_verdict(STATUS[reason] if reason is not None else 0, max(0, int(party.wall())))
        frame = HandshakeFrame(CONFIRM, entry.index, entry.remote_index, entry.pattern, bytes(4), verdict + bytes(MAC_SIZE))
        head = frame.header() + verdict
        data = head + mac(entry.state.derive(b"confirm responder"), head)
        confirm = data + party.mac.make(data)
        if len(self._done) >= HALF_OPEN_MAX:
            self._forget(next(iter(self._done.values())))
        self._done[entry.index] = Done(entry.index, macs, confirm, reason is not None, now + DONE_LIFETIME)
        party.out.append((source, confirm))

    def _forget(self, done: Done) -> None:
        del self._done[done.index]
        if done.failed:
            self._party.release(done.index)
