"""Who has the cluster secret and no certificate that counts, as a node that was revoked: what it reads, and whom it can hold up.

docs/protocol/attacks.md has the table. What it can make a node keep and do is in test_halfopen.py.
"""

from __future__ import annotations

import random

import attrs
import pytest

from qnetpy.identity.authority import Authority, NodeIdentity, issue_identity, make_authority
from qnetpy.link import wire as w
from qnetpy.link.constants import ATTEMPT_TIMEOUT, MAC_SIZE, REFUSED_ANSWERS, REFUSED_WAIT, STAMP_SIZE
from qnetpy.link.cookie import ClusterMac, mac
from qnetpy.link.hello import Hello, Offer, parse_hello
from qnetpy.link.noise.functions import BadHandshake
from qnetpy.link.noise.handshakestate import HandshakeState
from qnetpy.link.noise.patterns import parse_name
from qnetpy.link.outcome import Reason
from qnetpy.link.party import NOISE, PROLOGUE
from qnetpy.link.testing import WALL, Caller, Wire, address, agreed
from qnetpy.link.wire import Address

A, B = address(1), address(2)
CHANCE = random.Random(4)
RATE = 100
"""Frames a second: five times what one address may send."""


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("garden", WALL, random=random.Random(1).randbytes)


@pytest.fixture(scope="module")
def identities(authority: Authority) -> list[NodeIdentity]:
    return [issue_identity(authority, name, [], WALL) for name in ("a", "b")]


@pytest.fixture(scope="module")
def insider(authority: Authority) -> NodeIdentity:
    """It says that it is b, and its certificate is of a root that nobody trusts."""
    other = make_authority("garden", WALL, random=random.Random(2).randbytes, secret=authority.secret)
    return issue_identity(other, "b", [], WALL)


def opened(insider: NodeIdentity, frame: bytes) -> tuple[Hello, HandshakeState, w.HandshakeFrame]:
    """An INITIATION as the insider reads it."""
    parsed, _, _ = w.parse_handshake(frame)
    prologue = PROLOGUE + bytes((parsed.pattern,)) + parsed.suites + parsed.sender.to_bytes(4, "big")
    protocol = parse_name(NOISE[parsed.pattern])
    state = HandshakeState(protocol, False, prologue, insider.static_private, CHANCE.randbytes, None, [insider.secret])
    return parse_hello(state.read(parsed.body))[0], state, parsed


def answer(insider: NodeIdentity, frame: bytes, index: int) -> bytes:
    """A RESPONSE to it, as good as the insider can make one."""
    _, state, parsed = opened(insider, frame)
    offer = Offer(0, 1, 1500, 0, 0, 0, int(WALL), index, CHANCE.randbytes(16), insider.certificate.chain)
    data = w.HandshakeFrame(w.RESPONSE, index, parsed.sender, parsed.pattern, bytes(4), state.write(offer.pack())).pack()
    return data + ClusterMac(insider.secret).make(data)


class Tapped(Wire):
    """The insider hears each INITIATION to B and answers at once, in B's name, *copies* times."""

    def __init__(self, insider: NodeIdentity, copies: int = 1) -> None:
        super().__init__(1)
        self.insider = insider
        self.copies = copies
        self.unread = 0

    def send(self, source: Address, destination: Address, frame: bytes) -> None:
        super().send(source, destination, frame)
        if frame[0] == w.INITIATION and destination == B:
            for number in range(self.copies):
                try:
                    self.inject(B, source, answer(self.insider, frame, 1000 + number))
                except BadHandshake:
                    self.unread += 1


def test_an_answer_in_a_nodes_place_does_not_end_a_first_call(identities: list[NodeIdentity], insider: NodeIdentity) -> None:
    wire = Tapped(insider)
    a, b = Caller(wire, identities[0], A), Caller(wire, identities[1], B)
    a.call(B, "b")
    wire.run(REFUSED_WAIT)
    assert agreed(a, b)
    assert not a.failures()
    assert a.machine.counters["established"] == 1


def test_a_call_to_a_node_that_is_known_cannot_be_answered_by_another(identities: list[NodeIdentity], insider: NodeIdentity) -> None:
    wire = Tapped(insider)
    a, b = Caller(wire, identities[0], A), Caller(wire, identities[1], B)
    a.machine.pin("b", b.identity.certificate.static_key)
    a.call(B, "b")
    wire.run(1.0)
    assert wire.unread > 0, "it cannot even read it"
    assert agreed(a, b)


def test_who_answers_alone_is_refused_soon_and_costs_one_look(identities: list[NodeIdentity], insider: NodeIdentity) -> None:
    wire = Tapped(insider)
    a = Caller(wire, identities[0], A)
    a.call(B, "b")
    wire.run(REFUSED_WAIT + 0.1)
    assert [failed.reason for failed in a.failures()] == [Reason.WRONG_CLUSTER]
    wire.run(ATTEMPT_TIMEOUT + 1.0)
    sent = [frame[0] for _, source, _, frame in wire.log if source == A]
    assert sent == [w.INITIATION, w.FINAL], "that its root is not known is said once, and nothing is sent again"
    assert a.machine.calling == 0


def test_answers_without_end_end_the_call(identities: list[NodeIdentity], insider: NodeIdentity) -> None:
    """Each costs an exchange of keys, so there is a bound; then it is as if nobody had answered who is wanted."""
    wire = Tapped(insider, copies=3 * REFUSED_ANSWERS)
    a = Caller(wire, identities[0], A)
    a.call(B, "b")
    wire.run(0.1)
    assert [failed.reason for failed in a.failures()] == [Reason.WRONG_CLUSTER]
    assert a.machine.counters["unknown_index"] == 2 * REFUSED_ANSWERS, "the others are not looked at"


def test_it_reads_who_calls_whom_at_first_contact_only(identities: list[NodeIdentity], insider: NodeIdentity) -> None:
    wire = Wire(1)
    a = Caller(wire, identities[0], A)
    Caller(wire, identities[1], B)
    a.call(B, "b")
    wire.run(1.0)
    a.call(B, "b")
    wire.run(2.0)
    assert len(a.established()) == 2
    calls = [frame for _, source, _, frame in wire.log if source == A and frame[0] == w.INITIATION]
    first, last = calls[0], calls[-1]
    hello, _, _ = opened(insider, first)
    assert (hello.caller, hello.called, hello.boot_id) == ("a", "b", a.machine.boot_id)
    with pytest.raises(BadHandshake):
        opened(insider, last)
    # Without the secret, not even that.
    with pytest.raises(BadHandshake):
        opened(attrs.evolve(insider, secret=bytes(32)), first)


def bogus(authority: Authority, index: int) -> bytes:
    """An INITIATION in the name of a, of a boot that nobody knows, up to mac1."""
    prologue = PROLOGUE + bytes((w.PATTERN_XX, 1, 0, 0, 0)) + index.to_bytes(4, "big")
    state = HandshakeState(parse_name(NOISE[w.PATTERN_XX]), True, prologue, bytes(32), CHANCE.randbytes, None, [authority.secret])
    body = state.write(Hello(index, CHANCE.randbytes(16), "a", "b").pack())
    data = w.HandshakeFrame(w.INITIATION, index, 0, w.PATTERN_XX, bytes((1, 0, 0, 0)), body).pack()
    return data + ClusterMac(authority.secret).make(data)


@pytest.mark.parametrize("hears", [False, True])
def test_in_a_nodes_name_it_holds_up_new_keys_if_it_hears_the_answers_and_never_the_session(
    authority: Authority, identities: list[NodeIdentity], hears: bool
) -> None:
    """It uses up what that address may ask for. Who hears the cookies, as on a hub, uses up what is asked with one, too."""
    wire = Hub(authority) if hears else Wire(1)
    a, b = Caller(wire, identities[0], A), Caller(wire, identities[1], B)
    a.call(B, "b")
    wire.run(1.0)
    assert agreed(a, b)
    for number in range(1, 14 * RATE):
        frame = bogus(authority, number)
        if isinstance(wire, Hub):
            wire.asked[number] = frame
        wire.inject(A, B, frame + bytes(MAC_SIZE + STAMP_SIZE), number / RATE)
    wire.run(2.0)
    a.call(B, "b")
    wire.run(9.5)
    assert b.machine.counters["rate_source"] > 100
    assert len(a.established()) == (1 if hears else 2)
    assert a.links["b"].heard > 9.0
    before = len(a.established())
    b.call(A, "a")
    wire.run(2.0 + ATTEMPT_TIMEOUT + 2.0)
    assert len(a.established()) == before + 1, "the other end is answered as soon as the own call has ended"
    wire.run(16.0)
    a.call(B, "b")
    wire.run(20.0)
    assert len(a.established()) == before + 2
    assert agreed(a, b)
    assert a.ups["b"] == b.ups["a"] == 1


class Hub(Wire):
    """On which the insider hears the answers to what it sent in another's name."""

    def __init__(self, authority: Authority) -> None:
        super().__init__(1)
        self.seal = ClusterMac(authority.secret)
        self.asked: dict[int, bytes] = {}

    def send(self, source: Address, destination: Address, frame: bytes) -> None:
        super().send(source, destination, frame)
        if frame[0] == w.COOKIE:
            parsed, _, _ = w.parse_handshake(frame)
            initiation = self.asked.get(parsed.receiver)
            if initiation is not None:
                cookie = self.seal.open_cookie(parsed.body, initiation[-MAC_SIZE:])
                self.inject(A, B, initiation + mac(cookie, initiation) + bytes(STAMP_SIZE))


@pytest.mark.parametrize("copies", [1, 3])
def test_what_it_is_told_of_its_root_is_sealed_once(identities: list[NodeIdentity], insider: NodeIdentity, copies: int) -> None:
    """The same RESPONSE again, and others: keys of one handshake seal one FINAL."""
    wire = Tapped(insider, copies)
    a = Caller(wire, identities[0], A)
    a.call(B, "b")
    wire.run(0.1)
    for _, _, _, frame in [entry for entry in wire.log if entry[3][0] == w.RESPONSE]:
        wire.inject(B, A, frame)
    wire.run(REFUSED_WAIT)
    assert len([frame for _, source, _, frame in wire.log if source == A and frame[0] == w.FINAL]) == 1
