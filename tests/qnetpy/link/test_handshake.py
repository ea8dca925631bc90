"""Handshakes between two machines on a seeded wire: the way it goes, what is refused, told or kept silent, and who wins when both call."""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs
import pytest

from qnetpy.identity.authority import Authority, NodeIdentity, issue_identity, make_authority
from qnetpy.identity.certificate import fingerprint
from qnetpy.link import wire as w
from qnetpy.link.constants import (
    ATTEMPT_TIMEOUT,
    ATTEMPTS_MAX,
    HANDSHAKE_FRAME_MAX,
    MAC_SIZE,
    PINNED_TRIES,
    RETRY_FIRST,
    RETRY_JITTER,
    STAMP_SIZE,
)
from qnetpy.link.cookie import ClusterMac
from qnetpy.link.outcome import STATUS, Failed, PeerHint, Reason
from qnetpy.link.party import choose_suite, suite_numbers
from qnetpy.link.session import Role
from qnetpy.link.testing import WALL, Caller, Faults, Wire, address, agreed
from resmgr.errors import Misuse

A, B, C = address(1), address(2), address(3)
DAY = 86400.0
KINDS = {w.DATA: "data", w.INITIATION: "init", w.RESPONSE: "resp", w.FINAL: "final", w.CONFIRM: "confirm", w.COOKIE: "cookie"}


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("garden", WALL - 30 * DAY, random=random.Random(1).randbytes)


Make = Callable[..., Caller]


@pytest.fixture
def wire() -> Wire:
    return Wire(1)


@pytest.fixture
def make(authority: Authority, wire: Wire) -> Make:
    known: dict[str, NodeIdentity] = {}

    def maker(name: str, at: w.Address, identity: NodeIdentity | None = None, suites: tuple[str, ...] = (), skew: float = 0.0) -> Caller:
        if identity is None:
            identity = known.setdefault(name, issue_identity(authority, name, ["files"], WALL))
        return Caller(wire, identity, at, suites, skew)

    return maker


def spoken(wire: Wire, handshake_only: bool = True) -> list[tuple[w.Address, str]]:
    """Who sent what, in order."""
    kinds = [(source, KINDS[frame[0]]) for _, source, _, frame in wire.log]
    return [one for one in kinds if not handshake_only or one[1] != "data"]


def sent(wire: Wire, kind: int) -> list[bytes]:
    return [frame for _, _, _, frame in wire.log if frame[0] == kind]


def test_first_contact(make: Make, wire: Wire) -> None:
    a, b = make("a", A), make("b", B)
    number = a.call(B, "b")
    wire.run(0.01)
    assert spoken(wire) == [(A, "init"), (B, "cookie"), (A, "init"), (B, "resp"), (A, "final"), (B, "confirm")]
    (here,), (there,) = a.established(), b.established()
    assert (here.peer.name, here.role, here.attempt, here.address) == ("b", Role.INITIATOR, number, B)
    assert (there.peer.name, there.role, there.attempt, there.address) == ("a", Role.RESPONDER, 0, A)
    assert here.transport_id == there.transport_id != 0
    assert not here.continued
    assert not here.restarted
    assert here.peer.roles == {"files"}
    assert here.peer.static_key == b.identity.certificate.static_key
    assert here.peer.boot_id == b.machine.boot_id
    assert here.session.suite == there.session.suite == "aes-128-gcm"
    assert abs(here.clock_skew) < 2
    assert agreed(a, b)
    assert (a.machine.calling, b.machine.half_open) == (0, 0)


def test_frames_fit_everywhere_and_hide_names(make: Make, wire: Wire, authority: Authority) -> None:
    name = "n" * 63
    identity = issue_identity(authority, name, [f"{i}" * 30 for i in range(8)], WALL)
    a, b = make(name, A, identity), make("b", B)
    a.call(B, "b")
    wire.run(0.1)
    b.call(A, name)
    wire.run(0.2)
    assert len(b.established()) == 2
    for _, _, _, frame in wire.log:
        assert len(frame) <= HANDSHAKE_FRAME_MAX
        assert b"nnnn" not in frame
        assert b"garden" not in frame


def test_a_pinned_key_shortens_the_next_handshake(make: Make, wire: Wire) -> None:
    a, b = make("a", A), make("b", B)
    a.call(B)
    wire.run(0.1)
    wire.log.clear()
    b.call(A, "a")
    wire.run(0.11)
    assert spoken(wire) == [(B, "init"), (A, "resp"), (B, "final"), (A, "confirm")]
    assert sent(wire, w.INITIATION)[0][12] == w.PATTERN_IK
    for node in (a, b):
        first, second = node.established()
        assert second.continued
        assert second.transport_id == first.transport_id
        assert second.session.local_index != first.session.local_index
    assert agreed(a, b)


def test_a_key_may_be_pinned_beforehand(make: Make, wire: Wire) -> None:
    a, b = make("a", A), make("b", B)
    a.machine.pin("b", b.identity.certificate.static_key)
    a.call(B, "b")
    wire.run(0.1)
    assert {frame[12] for frame in sent(wire, w.INITIATION)} == {w.PATTERN_IK}
    assert agreed(a, b)


def test_a_pinned_key_that_changed_costs_two_seconds(make: Make, wire: Wire, authority: Authority) -> None:
    a, _ = make("a", A), make("b", B)
    a.call(B, "b")
    wire.run(0.1)
    a.links.clear()
    b = make("b", B, issue_identity(authority, "b", [], WALL))
    a.call(B, "b")
    wire.run(0.1 + PINNED_TRIES + 2 * RETRY_FIRST + 1.0)
    assert agreed(a, b)
    assert a.established()[-1].restarted


def test_a_restarted_peer_is_told_apart(make: Make, wire: Wire) -> None:
    a, b = make("a", A), make("b", B)
    b.call(A, "a")
    wire.run(0.1)
    b = make("b", B)
    b.call(A, "a")
    wire.run(0.2)
    first, second = a.established()
    assert (second.continued, second.restarted) == (False, True)
    assert second.transport_id != first.transport_id
    assert not b.established()[0].restarted
    assert agreed(a, b)


@pytest.mark.parametrize("loser", ["caller", "called"])
def test_who_lost_the_connection_gets_a_new_one(make: Make, wire: Wire, loser: str) -> None:
    a, b = make("a", A), make("b", B)
    a.call(B, "b")
    wire.run(0.1)
    (a if loser == "caller" else b).links.clear()
    a.call(B, "b")
    wire.run(0.2)
    for node in (a, b):
        assert [event.continued for event in node.established()] == [False, False]
        assert not node.established()[-1].restarted
    assert agreed(a, b)


@pytest.mark.parametrize("loser", ["caller", "called"])
@pytest.mark.parametrize("pinned", [False, True])
def test_a_connection_that_ends_during_the_handshake(make: Make, wire: Wire, loser: str, pinned: bool) -> None:
    """The two ends may not come to different conclusions about what the session carries."""
    a, b = make("a", A), make("b", B)
    a.call(B, "b")
    wire.run(0.1)
    if not pinned:
        a.machine._party.nodes.clear()
    wire.log.clear()
    a.call(B, "b")
    while not sent(wire, w.FINAL):
        wire.run(wire.now + 0.00005)
    (a if loser == "caller" else b).links.clear()
    wire.run(1.0)
    assert a.failures() == []
    assert agreed(a, b)
    assert a.established()[-1].transport_id == b.established()[-1].transport_id != a.established()[0].transport_id


@pytest.mark.parametrize("kind", [w.INITIATION, w.COOKIE, w.RESPONSE, w.FINAL, w.CONFIRM])
@pytest.mark.parametrize("pinned", [False, True])
def test_the_loss_of_any_message_is_made_up_for(make: Make, wire: Wire, kind: int, pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make("a", A), make("b", B)
    if pinned:
        a.call(B, "b")
        wire.run(1.0)
    lost: list[bytes] = []
    inject = wire.inject

    def lossy(source: w.Address, destination: w.Address, frame: bytes, delay: float = 0.0) -> None:
        if frame[0] == kind and not lost:
            lost.append(frame)
        else:
            inject(source, destination, frame, delay)

    monkeypatch.setattr(wire, "inject", lossy)
    start = wire.now
    before = len(a.established())
    a.call(B, "b")
    wire.run(start + 0.2)
    assert bool(lost) == (not pinned or kind != w.COOKIE)
    assert len(a.established()) == len(b.established()) == before + 1
    assert agreed(a, b)


@pytest.mark.parametrize("seed", range(30))
def test_copies_and_reordering_are_harmless(make: Make, wire: Wire, seed: int) -> None:
    wire.chance.seed(seed)
    wire.faults = Faults(copy=1.0, reorder=0.5, late=0.02)
    a, b = make("a", A), make("b", B)
    a.call(B, "b")
    wire.run(1.0)
    assert len(a.established()) == len(b.established()) == 1
    assert a.failures() == b.failures() == []
    assert agreed(a, b)
    assert (a.machine.half_open, b.machine.half_open) == (0, 0)


@pytest.mark.parametrize("named", ["both", "one", "none"])
@pytest.mark.parametrize("seed", range(40))
def test_both_call_at_once_and_one_session_results(make: Make, wire: Wire, seed: int, named: str) -> None:
    """On a wire that loses nothing there is exactly one handshake, whatever overtakes what."""
    chance = random.Random(f"{named} {seed}")
    wire.chance.seed(seed)
    wire.faults = Faults(reorder=chance.choice([0.0, 0.5]), late=0.003)
    a, b = make("a", A), make("b", B)
    first, second = (a, b) if chance.random() < 0.5 else (b, a)
    first.call(second.address, second.name if named != "none" else "")
    wire.run(chance.random() * 0.0015)
    if not second.links:
        second.call(first.address, first.name if named == "both" else "")
    wire.run(3.0)
    assert len(a.established()) == len(b.established()) == 1, seed
    assert agreed(a, b), seed
    assert a.established()[0].role is not b.established()[0].role
    assert (a.machine.calling, b.machine.calling) == (0, 0)
    # Every attempt has had its one event.
    for node in (a, b):
        numbers = [event.attempt for event in node.events if event.attempt]
        assert len(numbers) == len(set(numbers))


def second_cable(wire: Wire, a: Caller, b: Caller) -> tuple[w.Address, w.Address]:
    """Both at another address, too: what goes to one on eth1 leaves from the sender's eth1."""
    far = ("eth1", b"\x02\0\0\0\x01\x01"), ("eth1", b"\x02\0\0\0\x01\x02")
    wire.callers[far[0]], wire.callers[far[1]] = a, b
    inject = wire.inject

    def via(source: w.Address, destination: w.Address, frame: bytes, delay: float = 0.0) -> None:
        if destination[0] == "eth1":
            source = far[0] if source == A else far[1]
        inject(source, destination, frame, delay)

    wire.inject = via  # type: ignore[method-assign]  # the wire of this test has two cables
    return far


@pytest.mark.parametrize("seed", range(40))
def test_both_call_over_different_interfaces(make: Make, wire: Wire, seed: int) -> None:
    """Neither knows the other's name, and neither is called from where it calls."""
    chance = random.Random(f"interfaces {seed}")
    wire.chance.seed(seed)
    a, b = make("a", A), make("b", B)
    far, _ = second_cable(wire, a, b)
    a.call(B)
    wire.run(chance.random() * 0.0015)
    if not b.links:
        b.call(far)
    wire.run(3.0)
    assert agreed(a, b), seed
    transports = {event.transport_id for node in (a, b) for event in node.established()}
    assert len(transports) <= 2
    assert a.machine.calling == b.machine.calling == 0


def test_two_hints_for_one_node_are_one_call(make: Make, wire: Wire) -> None:
    a, b = make("a", A), make("b", B)
    number = a.call(C, "b")
    assert a.call(B, "b") == number
    wire.run(0.2)
    assert len(a.established()) == 1
    assert a.established()[0].attempt == number
    assert agreed(a, b)


def test_two_addresses_without_names_end_in_one_session(make: Make, wire: Wire) -> None:
    a, b = make("a", A), make("b", B)
    _, far = second_cable(wire, a, b)
    numbers = {a.call(B), a.call(far)}
    wire.run(9.0)
    assert len(numbers) == 2
    assert {event.attempt for event in a.events} == numbers
    assert len(a.established()) == 1
    (failed,) = a.failures()
    assert (failed.reason, failed.name) == (Reason.SUPERSEDED, "b")
    assert agreed(a, b)


def test_nobody_answers(make: Make, wire: Wire) -> None:
    a = make("a", A)
    number = a.call(B, "b")
    wire.run(ATTEMPT_TIMEOUT + 0.1)
    (failed,) = a.failures()
    assert (failed.reason, failed.attempt, failed.name, failed.address) == (Reason.NO_ANSWER, number, "b", B)
    assert failed.sentence == "node b at eth0 02:00:00:00:00:02 does not answer: not there, another cluster, or another cluster secret"
    assert a.machine.next_timeout() is None
    assert 8 < len(wire.log) < 16, "a call costs a handful of frames, however often its INITIATION is made anew"
    wire.log.clear()
    wire.run(100.0)
    assert wire.log == []


def test_a_lost_frame_costs_a_tenth_of_a_second_whichever_it_is(make: Make, wire: Wire) -> None:
    """Each frame of the handshake lost twice: the waits are those of the first half second, not doubled ones."""
    wire.lose = dict.fromkeys((w.INITIATION, w.COOKIE, w.RESPONSE, w.FINAL, w.CONFIRM), 2)
    a, b = make("a", A), make("b", B)
    a.call(B, "b")
    wire.run(10 * RETRY_FIRST * (1 + RETRY_JITTER) + 0.05)
    assert not any(wire.lose.values())
    assert agreed(a, b)


def test_fresh_cookies_without_end_give_one_frame_each_and_no_faster_timer(make: Make, wire: Wire, authority: Authority) -> None:
    """Somebody with the cluster secret answers every INITIATION with another cookie, and never with a RESPONSE."""
    a = make("a", A)
    secret = ClusterMac(authority.secret)
    a.call(B, "b")
    cookies = 0
    while wire.now < ATTEMPT_TIMEOUT + 0.1:
        if len(sent(wire, w.INITIATION)) > 2 * cookies:
            frame, _, macs = w.parse_handshake(sent(wire, w.INITIATION)[-1])
            body = secret.seal_cookie(cookies.to_bytes(16, "big"), macs[:MAC_SIZE], bytes(16))
            head = w.HandshakeFrame(w.COOKIE, 0, frame.sender, frame.pattern, bytes(4), body).pack()
            wire.inject(B, A, head + secret.make(head))
            cookies += 1
        wire.run(wire.now + 0.02)
    assert a.failures()[0].reason is Reason.NO_ANSWER
    assert len(sent(wire, w.INITIATION)) == 2 * cookies
    # Three INITIATIONs in 8 s, each repeated nine times in RENEW_AFTER.
    assert 20 < cookies <= 3 * 9


@pytest.mark.parametrize("kind", [w.FINAL, w.CONFIRM])
@pytest.mark.parametrize("pinned", [False, True])
def test_a_last_word_from_elsewhere_moves_nobody(make: Make, wire: Wire, kind: int, pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its source is not authenticated: a node is where it heard what the last word answers."""
    a, b = make("a", A), make("b", B)
    if pinned:
        a.call(B, "b")
        wire.run(1.0)
    moved: list[bytes] = []
    inject = wire.inject

    def move(source: w.Address, destination: w.Address, frame: bytes, delay: float = 0.0) -> None:
        if frame[0] == kind:
            moved.append(frame)
            source = C
        inject(source, destination, frame, delay)

    monkeypatch.setattr(wire, "inject", move)
    before = len(a.established())
    a.call(B, "b")
    if kind == w.FINAL:
        # The CONFIRM is a reply, and goes to C; then the caller's second FINAL comes through as it is.
        wire.run(wire.now + 0.05)
        assert moved
        monkeypatch.setattr(wire, "inject", inject)
    wire.run(wire.now + 0.2)
    assert moved
    assert len(a.established()) == len(b.established()) == before + 1
    assert (a.established()[-1].address, b.established()[-1].address) == (B, A)
    assert C not in a.machine._party.known
    assert C not in b.machine._party.known
    assert agreed(a, b)


def test_a_peer_that_falls_silent_is_told(make: Make, wire: Wire) -> None:
    a, _ = make("a", A), make("b", B)
    a.call(B, "b")
    while not sent(wire, w.FINAL):
        wire.run(wire.now + 0.0001)
    del wire.callers[B]
    wire.run(ATTEMPT_TIMEOUT + 0.1)
    assert a.failures()[0].reason in (Reason.NO_ANSWER, Reason.UNCONFIRMED)
    assert a.established() == []


def test_an_abandoned_call_has_no_event(make: Make, wire: Wire) -> None:
    a = make("a", A)
    number = a.call(B)
    a.machine.abandon(number)
    a.machine.abandon(number)
    a.machine.abandon(12345)
    wire.run(20.0)
    assert a.events == []
    assert a.machine.calling == 0


def test_misuse(make: Make, wire: Wire) -> None:
    a = make("a", A)
    with pytest.raises(Misuse, match="itself"):
        a.machine.initiate(PeerHint(B, "a"), 0.0)
    for suites in (("null",), ("aes-128-gcm", "aes-128-gcm"), ("none",)):
        with pytest.raises(Misuse, match="cipher suites are"):
            a.machine.set_suites(suites)


def test_calls_are_bounded(make: Make, wire: Wire) -> None:
    a = make("a", A)
    for number in range(ATTEMPTS_MAX + 5):
        a.machine.initiate(PeerHint(("eth0", number.to_bytes(6, "big"))), 0.0)
    a.pump()
    assert a.machine.calling == ATTEMPTS_MAX
    assert [failed.reason for failed in a.failures()] == [Reason.BUSY] * 5


# Who is refused, and who hears of it


def test_another_cluster_gets_silence(make: Make, wire: Wire) -> None:
    other = make_authority("garden", WALL)
    a, b = make("a", A, issue_identity(other, "a", [], WALL)), make("b", B)
    a.call(B, "b")
    wire.run(10.0)
    assert {source for source, _ in spoken(wire)} == {A}
    assert set(b.machine.counters) == {"bad_mac"}
    assert b.machine.half_open == 0
    assert b.events == []
    assert a.failures()[0].reason is Reason.NO_ANSWER


def test_the_secret_alone_does_not_help(make: Make, wire: Wire, authority: Authority) -> None:
    """Somebody who stole the cluster secret, with a root of his own."""
    thief = attrs.evolve(issue_identity(make_authority("garden", WALL), "a", ["admin"], WALL), secret=authority.secret)
    a, b = make("a", A, thief), make("b", B)
    a.call(B, "b")
    wire.run(1.0)
    assert b.established() == []
    assert a.established() == []
    assert a.failures()[0].reason is Reason.WRONG_CLUSTER
    # And one that does not mind our certificate:
    tolerant = attrs.evolve(thief, roots=(*thief.roots, authority.root))
    make("a", A, tolerant).call(B, "b")
    wire.run(2.0)
    assert b.established() == []
    assert [failed.reason for failed in b.failures()] == [Reason.WRONG_CLUSTER]
    assert "whose root we do not have" in b.failures()[0].sentence


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize(
    ("skew", "reason", "words"),
    [(2 * DAY, Reason.EXPIRED, "says that our certificate has expired"), (-2 * DAY, Reason.NOT_YET_VALID, "not valid yet")],
)
def test_a_caller_whose_certificate_is_out_of_date_there_is_told(
    make: Make, wire: Wire, authority: Authority, pinned: bool, skew: float, reason: Reason, words: str
) -> None:
    """The clock of b is two days off; a's certificate is for a day."""
    short = issue_identity(authority, "a", [], WALL, DAY)
    a, b = make("a", A, short), make("b", B, issue_identity(authority, "b", [], WALL - 9 * DAY, 20 * DAY), skew=skew)
    if pinned:
        a.machine.pin("b", b.identity.certificate.static_key)
    number = a.call(B, "b")
    wire.run(1.0)
    (told,) = a.failures()
    assert (told.reason, told.attempt, told.name) == (reason, number, "b")
    assert words in told.sentence
    assert f"(its clock is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} ours)" in told.sentence
    (heard,) = b.failures()
    assert (heard.reason, heard.attempt, heard.name) == (reason, 0, "a")
    assert b.machine.counters[reason.value] == 1
    assert a.established() == b.established() == []
    assert b.machine.half_open == 0


@pytest.mark.parametrize("reason", [Reason.WRONG_CLUSTER, Reason.REFUSED])
def test_a_call_that_says_itself_why_there_is_no_session_is_nonsense(make: Make, wire: Wire, reason: Reason) -> None:
    a, b = make("a", A), make("b", B)
    a.machine.pin("b", b.identity.certificate.static_key)
    party = a.machine._party
    own = party.own_offer
    party.own_offer = lambda *args: attrs.evolve(own(*args), status=STATUS[reason])  # type: ignore[method-assign]
    a.call(B, "b")
    wire.run(1.0)
    (failed,) = a.failures()
    assert (failed.reason, failed.told) == (Reason.PROTOCOL, True)
    assert [kind for _, kind in spoken(wire)] == ["init", "cookie", "init", "resp"]
    assert b.machine.half_open == 0
    assert b.machine.counters["protocol_error"] == 1


def test_a_called_node_with_an_expired_certificate_is_told_by_the_caller(make: Make, wire: Wire, authority: Authority) -> None:
    a, b = make("a", A), make("b", B, issue_identity(authority, "b", [], WALL - 3 * DAY, DAY))
    a.call(B, "b")
    wire.run(1.0)
    (failed,) = a.failures()
    assert failed.reason is Reason.EXPIRED
    assert "certificate of b expired on" in failed.sentence
    assert b.established() == []


def test_a_node_with_an_expired_certificate_does_not_even_call(make: Make, wire: Wire, authority: Authority) -> None:
    a = make("a", A, issue_identity(authority, "a", [], WALL - 3 * DAY, DAY))
    number = a.call(B, "b")
    assert wire.log == []
    (failed,) = a.failures()
    assert (failed.reason, failed.attempt) == (Reason.EXPIRED, number)
    assert failed.sentence.startswith("our own certificate will not be accepted: the certificate of a expired")


def test_a_renewed_certificate_is_used_from_then_on(make: Make, wire: Wire, authority: Authority) -> None:
    old = issue_identity(authority, "a", [], WALL - 3 * DAY, DAY)
    a, b = make("a", A, old), make("b", B)
    new = issue_identity(authority, "a", ["admin"], WALL)
    a.machine.set_identity(new)
    a.call(B, "b")
    wire.run(1.0)
    assert b.established()[0].peer.roles == {"admin"}


def test_another_node_than_expected(make: Make, wire: Wire) -> None:
    a, b = make("a", A), make("b", B)
    a.call(B, "c")
    wire.run(ATTEMPT_TIMEOUT + 1)
    # The INITIATION says whom it is for; b does not answer for c.
    assert a.failures()[0].reason is Reason.NO_ANSWER
    assert b.machine.counters["not_for_us"] > 0
    assert b.machine.half_open == 0


def test_two_nodes_with_one_name(make: Make, wire: Wire, authority: Authority) -> None:
    a, twin = make("a", A), make("a", B, issue_identity(authority, "a", [], WALL))
    a.call(B)
    wire.run(1.0)
    for node in (a, twin):
        (failed,) = node.failures()
        assert failed.reason is Reason.OWN_NAME
        assert "two nodes with one name" in failed.sentence
        assert node.established() == []
        assert node.machine.half_open == 0


def test_our_own_echo_is_not_another_node(make: Make, wire: Wire) -> None:
    a = make("a", A)
    wire.callers[B] = a
    a.call(B)
    wire.run(3.0)
    assert a.machine.counters["own_echo"] >= 1
    assert a.machine.counters["own_name"] == 0
    assert {frame[0] for _, _, _, frame in wire.log} == {w.INITIATION}


@pytest.mark.parametrize("impostor_calls", [True, False])
def test_a_name_with_a_live_connection_is_not_given_to_another_key(
    make: Make, wire: Wire, authority: Authority, impostor_calls: bool
) -> None:
    a, b = make("a", A), make("b", B)
    b.call(A, "a")
    wire.run(0.1)
    twin = make("b", C, issue_identity(authority, "b", [], WALL))
    if impostor_calls:
        twin.call(A, "a")
    else:
        a.call(C)
    wire.run(1.0)
    assert a.machine.counters["duplicate_name"] == 1
    sentence = a.failures()[-1].sentence
    assert "two nodes with one name" in sentence
    assert all(fingerprint(node.identity.certificate.static_key) in sentence for node in (b, twin)), "both keys are shown"
    assert twin.established() == []
    assert len(a.established()) == 1
    assert agreed(a, b)
    if impostor_calls:
        assert "is connected to another node with our name" in twin.failures()[0].sentence


def test_a_certificate_that_is_not_accepted(make: Make, wire: Wire) -> None:
    a, b = make("a", A), make("b", B)
    b.machine._party.accept = lambda certificate: certificate.name != "a"
    a.call(B, "b")
    wire.run(1.0)
    assert a.failures()[0].sentence == "node b at eth0 02:00:00:00:00:02 refuses this node"
    assert b.machine.counters["refused"] == 1
    assert a.established() == b.established() == []


def test_no_suite_in_common(make: Make, wire: Wire) -> None:
    a, b = make("a", A, suites=("aes-256-gcm",)), make("b", B, suites=("chacha20-poly1305", "aes-128-gcm"))
    a.call(B, "b")
    wire.run(1.0)
    assert a.failures()[0].reason is b.failures()[0].reason is Reason.NO_SUITE
    assert b.machine.half_open == 0


def test_a_failure_of_others_is_told_once_a_minute(make: Make, wire: Wire) -> None:
    a, b = make("a", A, suites=("aes-256-gcm",)), make("b", B, suites=("aes-128-gcm",))
    for _ in range(5):
        a.call(B, "b")
        wire.run(wire.now + 1.0)
    assert len(a.failures()) == 5
    assert len(b.failures()) == 1
    assert b.machine.counters["no_suite"] == 5
    wire.run(61.0)
    a.call(B, "b")
    wire.run(62.0)
    assert len(b.failures()) == 2


# Suites


@pytest.mark.parametrize(
    ("one", "two", "chosen"),
    [
        (("aes-128-gcm",), ("aes-128-gcm", "aes-256-gcm"), "aes-128-gcm"),
        (("aes-128-gcm", "chacha20-poly1305"), ("chacha20-poly1305", "aes-128-gcm"), "aes-128-gcm"),
        (("chacha20-poly1305", "aes-128-gcm"), ("aes-128-gcm", "chacha20-poly1305"), "chacha20-poly1305"),
        (("aes-128-gcm", "aes-256-gcm", "chacha20-poly1305"), ("aes-256-gcm",), "aes-256-gcm"),
    ],
)
def test_the_suite_is_chosen_by_both_preferences(make: Make, wire: Wire, one: tuple[str, ...], two: tuple[str, ...], chosen: str) -> None:
    a, b = make("a", A, suites=one), make("b", B, suites=two)
    a.call(B, "b")
    wire.run(1.0)
    assert a.established()[0].session.suite == chosen
    assert agreed(a, b)
    assert choose_suite(suite_numbers(one), suite_numbers(two)) == choose_suite(suite_numbers(one), suite_numbers(two))


def test_suites_change_with_a_rekey(make: Make, wire: Wire) -> None:
    a, b = make("a", A), make("b", B)
    a.call(B, "b")
    wire.run(1.0)
    b.machine.set_suites(("chacha20-poly1305",))
    a.call(B, "b")
    wire.run(2.0)
    assert [event.session.suite for event in a.established()] == ["aes-128-gcm", "chacha20-poly1305"]
    assert a.established()[-1].continued
    assert agreed(a, b)


def test_an_offer_cut_down_on_the_way_is_noticed(make: Make, wire: Wire, authority: Authority) -> None:
    """By somebody who even has the cluster secret and can make mac1 good again: the offer is in the transcript."""
    a, b = make("a", A, suites=("aes-256-gcm", "chacha20-poly1305")), make("b", B)
    seal = ClusterMac(authority.secret)
    inject = wire.inject

    def downgrade(source: w.Address, destination: w.Address, frame: bytes, delay: float = 0.0) -> None:
        if frame[0] == w.INITIATION:
            parsed, _, macs = w.parse_handshake(frame)
            parsed = attrs.evolve(parsed, suites=bytes((3, 0, 0, 0)))
            frame = parsed.pack() + seal.make(parsed.pack()) + macs[MAC_SIZE:]
        inject(source, destination, frame, delay)

    b.machine._party.known.put(A, None)
    wire.inject = downgrade  # type: ignore[method-assign]  # the attacker sits on this wire
    a.call(B, "b")
    wire.run(10.0)
    assert b.machine.counters["bad_handshake"] > 0
    assert a.established() == b.established() == []


# Replays


def test_recorded_frames_do_nothing_later(make: Make, wire: Wire) -> None:
    a, b = make("a", A), make("b", B)
    a.call(B, "b")
    wire.run(0.1)
    b.call(A, "a")
    wire.run(0.3)
    record = [(source, destination, frame) for _, source, destination, frame in wire.log if frame[0] != w.DATA]
    session = agreed(a, b)
    wire.run(1.0)
    wire.log.clear()
    sizes = [len(node.events) for node in (a, b)]
    for source, destination, frame in record * 3:
        wire.inject(source, destination, frame)
        wire.inject(C, destination, frame)
        wire.run(wire.now + 0.2)
        assert (a.machine.half_open, b.machine.half_open) == (0, 0)
    assert [len(node.events) for node in (a, b)] == sizes
    assert agreed(a, b) is session
    # Answers: only copies of a CONFIRM for a FINAL that came a moment ago.
    assert {kind for _, kind in spoken(wire)} <= {"confirm"}
    assert b.machine.counters["replayed_initiation"] >= 6


def test_recorded_frames_do_nothing_after_a_restart(make: Make, wire: Wire) -> None:
    """The new process knows nobody, and has to ask for a cookie; that keeps nothing."""
    a, b = make("a", A), make("b", B)
    a.call(B, "b")
    wire.run(0.1)
    a.call(B, "b")
    wire.run(0.3)
    record = [(source, frame) for _, source, destination, frame in wire.log if destination == B and frame[0] != w.DATA]
    b = make("b", B)
    wire.log.clear()
    for source, frame in record * 2:
        wire.inject(source, B, frame)
        wire.run(wire.now + 0.06)
        assert b.machine.half_open == 0
    assert b.events == []
    assert {kind for source, kind in spoken(wire) if source == B} == {"cookie"}
    # And the real one gets through meanwhile.
    a.links.clear()
    a.call(B, "b")
    wire.run(wire.now + 0.2)
    assert agreed(a, b)


def test_an_initiation_with_its_cookie_counts_once(make: Make, wire: Wire) -> None:
    """Recorded with a good cookie, never answered by a FINAL, and sent again after its half-open entry is gone."""
    a, b = make("a", A), make("b", B)
    a.call(B, "b")
    while not sent(wire, w.RESPONSE):
        wire.run(wire.now + 0.00005)
    good = [frame for frame in sent(wire, w.INITIATION) if any(frame[-MAC_SIZE - STAMP_SIZE : -STAMP_SIZE])][-1]
    del wire.callers[A]
    wire.run(7.0)
    assert b.machine.half_open == 0
    wire.log.clear()
    wire.inject(A, B, good)
    wire.run(8.0)
    assert b.machine.half_open == 0
    assert wire.log == []
    assert b.machine.counters["replayed_initiation"] == 1


def test_what_is_old_is_known_without_remembering_each_frame(make: Make, wire: Wire) -> None:
    """The sequence in the INITIATION tells, when the list of those seen has overflowed."""
    a, b = make("a", A), make("b", B)
    for _ in range(3):
        a.call(B, "b")
        wire.run(wire.now + 0.2)
    record = sent(wire, w.INITIATION)
    b.machine._responder._seen.clear()
    wire.run(30.0)
    wire.log.clear()
    for frame in record:
        wire.inject(A, B, frame)
    wire.run(wire.now + 0.1)
    assert b.machine.half_open == 0
    assert spoken(wire) == []
    assert b.machine.counters["replayed_initiation"] == len(record)


def test_a_frame_of_an_earlier_boot_is_a_strangers(make: Make, wire: Wire) -> None:
    """Recorded before it could arrive, from an address where a node is known by now."""
    early, b = make("a", A), make("b", B)
    early.machine.initiate(PeerHint(B, "b"), 0.0)
    ((_, frame),) = early.machine.transmit()
    a = make("a", A)
    a.call(B, "b")
    wire.run(1.0)
    wire.log.clear()
    wire.inject(A, B, frame)
    wire.run(2.0)
    assert b.machine.half_open == 0
    assert spoken(wire) == [(B, "cookie")]
    assert agreed(a, b)


def test_copies_of_a_cookie_do_not_make_us_send(make: Make, wire: Wire) -> None:
    a, _ = make("a", A), make("b", B)
    a.call(B, "b")
    while len(sent(wire, w.INITIATION)) < 2:
        wire.run(wire.now + 0.00005)
    del wire.callers[B]
    for _ in range(20):
        a.machine.receive(sent(wire, w.COOKIE)[0], B, wire.now)
    assert a.machine.transmit() == []
    assert a.machine.counters["duplicate"] == 20


def test_when_both_call_by_name_one_does_not_answer(make: Make, wire: Wire) -> None:
    a, b = make("a", A), make("b", B)
    a.call(B, "b")
    b.call(A, "a")
    wire.run(1.0)
    assert len(sent(wire, w.RESPONSE)) == 1
    assert a.machine.counters["crossed"] >= 1
    assert a.established()[0].role is Role.INITIATOR
    assert agreed(a, b)


def test_the_call_that_counts_finds_the_peer_where_it_calls_from(make: Make, wire: Wire) -> None:
    """a's address for b is out of date, and a's call is the one that counts."""
    a, b = make("a", A), make("b", B)
    a.call(C, "b")
    b.call(A, "a")
    wire.run(0.1)
    assert agreed(a, b)
    assert a.established()[0].address == B


def test_an_initiation_does_not_work_at_another_node(make: Make, wire: Wire) -> None:
    a, b, c = make("a", A), make("b", B), make("c", C)
    a.call(B, "b")
    wire.run(0.1)
    for frame in sent(wire, w.INITIATION):
        wire.inject(A, C, frame)
    wire.run(0.2)
    assert c.machine.half_open == 0
    assert c.machine.counters["cookies_sent"] == 1
    c.machine._party.known.put(A, None)
    for frame in sent(wire, w.INITIATION):
        wire.inject(A, C, frame)
    wire.run(0.3)
    assert c.machine.half_open == 0
    assert c.machine.counters["not_for_us"] == 2
    assert agreed(a, b)


def test_the_same_seed_gives_the_same_frames(authority: Authority) -> None:
    identities = [issue_identity(authority, name, [], WALL) for name in ("a", "b")]

    def run() -> list[tuple[float, w.Address, w.Address, bytes]]:
        wire = Wire(77, Faults(0.2, 0.2, 0.2, 0.1))
        for identity, here, there in zip(identities, (A, B), (B, A), strict=True):
            Caller(wire, identity, here).want(there)
        wire.run(5.0)
        return wire.log

    assert run() == run()


def test_every_sentence_says_the_address_as_its_owner_does(authority: Authority, make: Make, wire: Wire) -> None:
    """What a caller has at its end, what is answered too early, and what a certificate says."""
    first, second = make("a", A), make("a", B, issue_identity(authority, "a", [], WALL))
    for one in (first, second):
        one.machine._party.place = lambda address: "gate:7"
    first.call(B)
    wire.run(2.0)
    told = [event.sentence for event in (*first.events, *second.events) if isinstance(event, Failed)]
    assert len(told) == 2
    assert all("at gate:7" in sentence for sentence in told)
