"""Bounds: cookies, token buckets, the half-open table, and what a flood gets."""

from __future__ import annotations

import random

import attrs
import pytest

from qnetpy.identity.authority import Authority, NodeIdentity, issue_identity, make_authority
from qnetpy.link import wire as w
from qnetpy.link.constants import (
    ANSWER_AGAIN,
    COOKIE_RATE,
    COOKIE_SECRET_LIFETIME,
    EVENTS_MAX,
    HALF_OPEN_MAX,
    HALF_OPEN_PER_NAME,
    HALF_OPEN_PER_SOURCE,
    HALF_OPEN_STRANGERS,
    KNOWN_MAX,
    MAC_SIZE,
    SEEN_MAX,
    SOURCES_MAX,
    STAMP_SIZE,
)
from qnetpy.link.cookie import ClusterMac, CookieJar, mac
from qnetpy.link.halfopen import HalfOpen, HalfOpenTable, Recent, Sources
from qnetpy.link.hello import Hello
from qnetpy.link.noise.handshakestate import HandshakeState
from qnetpy.link.noise.patterns import parse_name
from qnetpy.link.party import NOISE, PROLOGUE
from qnetpy.link.testing import WALL, Caller, Wire, address, agreed
from resmgr.errors import BadMessage

TAIL = MAC_SIZE + STAMP_SIZE
"""Behind mac1 of an INITIATION."""
A, B, C = address(1), address(2), address(3)
STATE = HandshakeState(parse_name(NOISE[w.PATTERN_XX]), False, b"", bytes(32), random.Random(1).randbytes, None, [bytes(32)])


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("garden", WALL, random=random.Random(1).randbytes)


@pytest.fixture(scope="module")
def identities(authority: Authority) -> list[NodeIdentity]:
    return [issue_identity(authority, name, [], WALL) for name in ("a", "b", "c")]


def entry(index: int, source: w.Address = A, name: str = "n", known: bool = False, began: float = 0.0) -> HalfOpen:
    return HalfOpen(
        index=index, remote_index=1, source=source, known=known, name=name, boot_id=b"", sequence=1, first_mac=index.to_bytes(16, "big"),
        pattern=1, state=STATE, response=b"", suite=1, transport_id=0, offer=b"", began=began, expires=began + 5.0,
        answered=began,
    )  # fmt: skip


def test_recent_forgets_the_oldest() -> None:
    recent: Recent[int, str] = Recent(2)
    recent.put(1, "a")
    recent.put(2, "b")
    recent.put(1, "c")
    recent.put(3, "d")
    assert dict(recent) == {1: "c", 3: "d"}


def test_sources_do_not_grow() -> None:
    sources = Sources()
    for number in range(SOURCES_MAX * 3):
        assert sources.take(("eth0", number.to_bytes(6, "big")), 1.0)
    assert len(sources._buckets) == SOURCES_MAX


def test_table_bounds() -> None:
    table = HalfOpenTable()
    for index in range(1, 1000):
        source = ("eth0", index.to_bytes(6, "big"))
        if table.room(source, False):
            table.add(entry(index, source, f"n{index}"))
    assert len(table) == HALF_OPEN_STRANGERS
    assert table.loaded
    known = ("eth0", b"known")
    for index in range(1000, 1000 + HALF_OPEN_PER_SOURCE):
        assert table.room(known, True)
        table.add(entry(index, known, f"n{index}", known=True))
    assert not table.room(known, True)
    for index in range(2000, 3000):
        source = ("eth1", index.to_bytes(6, "big"))
        if table.room(source, True):
            table.add(entry(index, source, f"n{index}", known=True))
    assert len(table) == HALF_OPEN_MAX
    assert not table.room(C, True)
    assert len(table.expire(4.9)) == 0
    assert len(table.expire(5.0)) == HALF_OPEN_MAX
    assert table.next_timeout() is None
    assert table.answering((1).to_bytes(16, "big")) is None


def test_one_name_has_few_entries_and_the_oldest_goes() -> None:
    table = HalfOpenTable()
    for index in range(1, 10):
        table.add(entry(index, began=index))
    assert [one.index for one in table.of_name("n")] == list(range(10 - HALF_OPEN_PER_NAME, 10))
    assert table.next_timeout() == 10 - HALF_OPEN_PER_NAME + 5.0


def test_a_cookie_is_for_one_address_and_a_while() -> None:
    jar = CookieJar(random.Random(1).randbytes)
    cookie = jar.make(A, 1000.0)
    data = b"frame and mac1"
    good = mac(cookie, data)
    assert jar.check(A, data, good, 1000.0)
    assert not jar.check(B, data, good, 1000.0)
    assert not jar.check(("eth1", A[1]), data, good, 1000.0)
    assert not jar.check(A, data + b"x", good, 1000.0)
    assert not jar.check(A, data, bytes(MAC_SIZE), 1000.0)
    assert jar.check(A, data, good, 1000.0 + COOKIE_SECRET_LIFETIME)
    assert not jar.check(A, data, good, 1000.0 + 2 * COOKIE_SECRET_LIFETIME)
    # After a long pause both secrets are new.
    cookie = jar.make(A, 2000.0)
    assert not jar.check(A, data, mac(cookie, data), 2000.0 + 5 * COOKIE_SECRET_LIFETIME)


def test_a_sealed_cookie_answers_one_frame() -> None:
    seal = ClusterMac(bytes(32))
    body = seal.seal_cookie(b"c" * 16, b"m" * 16, b"n" * 16)
    assert seal.open_cookie(body, b"m" * 16) == b"c" * 16
    assert b"c" * 16 not in body
    for wrong_body, wrong_mac, key in (
        (body, b"x" * 16, bytes(32)),
        (body[:-1], b"m" * 16, bytes(32)),
        (b"", b"m" * 16, bytes(32)),
        (bytes(len(body)), b"m" * 16, bytes(32)),
        (body, b"m" * 16, bytes(31) + b"\1"),
    ):
        with pytest.raises(BadMessage):
            ClusterMac(key).open_cookie(wrong_body, wrong_mac)


def forged(authority: Authority, caller: str, chance: random.Random, index: int, sequence: int = 1, boot: bytes | None = None) -> bytes:
    """An INITIATION by somebody who has the cluster secret and no certificate, up to mac1."""
    prologue = PROLOGUE + bytes((w.PATTERN_XX, 1, 0, 0, 0)) + index.to_bytes(4, "big")
    protocol = parse_name(NOISE[w.PATTERN_XX])
    state = HandshakeState(protocol, True, prologue, bytes(32), chance.randbytes, None, [authority.secret])
    body = state.write(Hello(sequence, chance.randbytes(16) if boot is None else boot, caller, "b").pack())
    data = w.HandshakeFrame(w.INITIATION, index, 0, w.PATTERN_XX, bytes((1, 0, 0, 0)), body).pack()
    return data + ClusterMac(authority.secret).make(data)


def test_a_flood_of_recorded_frames_keeps_nothing_and_a_known_peer_connects(authority: Authority, identities: list[NodeIdentity]) -> None:
    """From spoofed addresses, 20,000 per second for a second; only some of them are even answered."""
    wire = Wire(1)
    a, b = Caller(wire, identities[0], A), Caller(wire, identities[1], B)
    a.call(B, "b")
    wire.run(0.1)
    chance = random.Random(2)
    frames = [forged(authority, "a", chance, n + 1) + bytes(TAIL) for n in range(200)]
    wire.log.clear()
    # The flood itself does not pass the wire's timers: it would only make the test slow.
    now = wire.now
    for number in range(20_000):
        b.machine.receive(chance.choice(frames), ("eth0", number.to_bytes(6, "big")), now + number / 20_000)
        if number == 10_000:
            a.call(B, "b")
            (renewal,) = [frame for _, source, _, frame in wire.log if source == A and frame[0] == w.INITIATION]
            b.machine.receive(renewal, A, now + 0.5)
    answers = b.machine.transmit()
    responses = [frame for _, frame in answers if frame[0] == w.RESPONSE]
    assert len(responses) == 1
    assert len(answers) <= COOKIE_RATE * 1.5 + 2
    assert sum(len(frame) for _, frame in answers) < sum(len(frames[0]) for _ in range(20_000)) / 10
    assert b.machine.half_open == 1
    assert b.machine.counters["rate_cookies"] > 0
    # The answer gets there, and the renewal is completed.
    a.machine.receive(responses[0], B, wire.now)
    a.pump()
    wire.run(wire.now + 1.0)
    assert len(a.established()) == len(b.established()) == 2
    assert agreed(a, b)


def test_a_flood_by_a_member_without_certificate_is_bounded(authority: Authority, identities: list[NodeIdentity]) -> None:
    """It has the secret and takes the trouble of fetching cookies, from many addresses and under many names."""
    wire = Wire(1)
    a, b, c = (Caller(wire, identity, at) for identity, at in zip(identities, (A, B, C), strict=True))
    a.call(B, "b")
    wire.run(0.1)
    chance = random.Random(3)
    seal = ClusterMac(authority.secret)
    now = wire.now
    for number in range(3000):
        now += 0.0008
        source = ("eth0", b"\6" + (number % 700).to_bytes(5, "big"))
        initiation = forged(authority, f"x{number}", chance, number + 1)
        b.machine.receive(initiation + bytes(TAIL), source, now)
        for _, answer in b.machine.transmit():
            if answer[0] == w.COOKIE:
                cookie = seal.open_cookie(w.parse_handshake(answer)[0].body, initiation[-MAC_SIZE:])
                b.machine.receive(initiation + mac(cookie, initiation) + bytes(STAMP_SIZE), source, now)
        b.machine.transmit()
    party = b.machine._party
    assert b.machine.half_open <= HALF_OPEN_STRANGERS
    assert len(party._indices) <= HALF_OPEN_MAX + 10
    assert len(party.events) <= EVENTS_MAX
    assert len(party.known) <= KNOWN_MAX
    assert len(b.machine._responder._seen) <= SEEN_MAX
    assert b.machine.counters["rate_total"] > 0
    wire.now = now
    a.call(B, "b")
    wire.run(now + 0.5)
    assert len(a.established()) == 2
    assert agreed(a, b)
    # A new node gets in as soon as the flood is over.
    wire.run(now + 6.0)
    c.call(B, "b")
    wire.run(now + 7.0)
    assert agreed(c, b)
    assert b.machine.half_open == 0


def test_one_source_cannot_use_up_what_others_need(authority: Authority, identities: list[NodeIdentity]) -> None:
    wire = Wire(1)
    b, c = Caller(wire, identities[1], B), Caller(wire, identities[2], C)
    chance = random.Random(4)
    for number in range(2000):
        b.machine.receive(forged(authority, "a", chance, number + 1) + bytes(TAIL), A, 1.0)
    assert b.machine.counters["rate_source"] >= 1900
    b.machine.transmit()
    wire.now = 1.0
    c.call(B, "b")
    wire.run(1.2)
    assert agreed(b, c)


def test_copies_of_a_nodes_frames_do_not_use_up_its_budget(authority: Authority, identities: list[NodeIdentity]) -> None:
    """Recorded INITIATIONs of a, sent in its name 20,000 times a second; those that were never answered cost b one COOKIE per 50 ms."""
    wire = Wire(1)
    a, b = Caller(wire, identities[0], A), Caller(wire, identities[1], B)
    a.call(B, "b")
    wire.run(0.1)
    recorded = [frame for _, source, _, frame in wire.log if source == A and frame[0] == w.INITIATION]
    assert len(recorded) == 2, "without a cookie, and with one"
    chance = random.Random(6)
    unknown = forged(authority, "a", chance, 77) + bytes(TAIL)
    now = wire.now
    for number in range(20_000):
        b.machine.receive(chance.choice([*recorded, unknown]), A, now + number / 20_000)
        if number % 1000 == 500:
            b.machine.transmit()
    assert b.machine.counters["rate_source"] == 0
    assert b.machine.counters["cookies_sent"] <= 1 + 21
    assert b.machine.counters["replayed_initiation"] + b.machine.counters["duplicate"] > 19_000
    wire.now = now + 1.0
    b.machine.transmit()
    a.call(B, "b")
    wire.run(wire.now + 0.1)
    assert len(a.established()) == 2


def test_an_answer_is_not_repeated_for_every_copy(authority: Authority, identities: list[NodeIdentity]) -> None:
    """Whoever sends copies in a node's name must not make us flood that node."""
    wire = Wire(1)
    a, b = Caller(wire, identities[0], A), Caller(wire, identities[1], B)
    a.call(B, "b")
    while not any(frame[0] == w.RESPONSE for *_, frame in wire.log):
        wire.run(wire.now + 0.00005)
    good = [frame for _, source, _, frame in wire.log if source == A and frame[0] == w.INITIATION][-1]
    now = wire.now
    for number in range(10_000):
        b.machine.receive(good, A, now + number / 10_000)
    assert len(b.machine.transmit()) <= 1.0 / ANSWER_AGAIN + 1
    assert b.machine.half_open == 1


def test_a_name_claimed_by_a_member_does_not_hold_up_its_owner(authority: Authority, identities: list[NodeIdentity]) -> None:
    """Somebody with the secret calls b as "a" without pause; b still reaches a, and a reaches b."""
    wire = Wire(1)
    a, b = Caller(wire, identities[0], A), Caller(wire, identities[1], B)
    chance = random.Random(5)
    seal = ClusterMac(authority.secret)
    b.want(A, "a")
    for number in range(40):
        initiation = forged(authority, "a", chance, number + 1, sequence=2**63, boot=a.machine.boot_id)
        b.machine.receive(initiation + bytes(TAIL), C, wire.now)
        for destination, answer in b.machine.transmit():
            if destination == C and answer[0] == w.COOKIE:
                cookie = seal.open_cookie(w.parse_handshake(answer)[0].body, initiation[-MAC_SIZE:])
                b.machine.receive(initiation + mac(cookie, initiation) + bytes(STAMP_SIZE), C, wire.now)
            elif destination != C:
                wire.send(B, destination, answer)
        b.pump()
        wire.run(wire.now + 0.1)
    assert agreed(a, b)


def test_events_are_bounded_and_ours_stay(identities: list[NodeIdentity]) -> None:
    wire = Wire(1)
    a = Caller(wire, identities[0], A)
    party = a.machine._party
    from qnetpy.link.outcome import Failed, Reason

    party.fail(Reason.NO_ANSWER, "ours", "b", B, 1, 0.0)
    for number in range(EVENTS_MAX * 2):
        party.fail(Reason.EXPIRED, "theirs", f"n{number}", B, 0, 0.0)
    events = a.machine.events()
    assert len(events) == EVENTS_MAX
    assert isinstance(events[0], Failed)
    assert events[0].sentence == "ours"
    assert a.machine.events() == []


# Bytes that are not what they should be


@pytest.mark.parametrize("insider", [False, True])
@pytest.mark.parametrize("pinned", [False, True])
def test_damaged_frames_change_nothing(authority: Authority, identities: list[NodeIdentity], insider: bool, pinned: bool) -> None:
    """Before each real frame comes every damaged form of it: cut at every length, each byte changed; by an insider with a good mac1.

    The handshake then goes on with the real frames as if nothing had been.
    """
    seal = ClusterMac(authority.secret)
    wire = Wire(9)
    a, b = Caller(wire, identities[0], A), Caller(wire, identities[1], B)
    if pinned:
        a.machine.pin("b", b.identity.certificate.static_key)
    checked: set[int] = set()
    done: set[bytes] = set()
    inject = wire.inject

    def damage(source: w.Address, destination: w.Address, frame: bytes, delay: float = 0.0) -> None:
        receiver = wire.callers[destination].machine
        if frame[0] != w.DATA and frame[-46:] not in done:
            # Once for each frame: an insider's forgeries use up the budget of strangers, and the real one is repeated until it is heard.
            done.add(frame[-46:])
            checked.add(frame[0])
            size = w.macs_size(frame[0])
            # Sources of their own, so that what is tested is not the limit per source.
            for place in range(len(frame)):
                changed = bytearray(frame)
                changed[place] ^= 0x55
                for bad in (bytes(changed), frame[:place]):
                    if insider and len(bad) > 20 + size and place < len(frame) - size:
                        bad = bad[: len(bad) - size] + seal.make(bad[: len(bad) - size]) + bytes(size - MAC_SIZE)
                    elif insider:
                        continue
                    receiver.receive(bad, ("eth9", place.to_bytes(6, "big")), wire.now)
            receiver.transmit()
        inject(source, destination, frame, delay)

    wire.inject = damage  # type: ignore[method-assign]  # the attacker sits on this wire
    a.call(B, "b")
    wire.run(2.0)
    assert checked >= {w.INITIATION, w.RESPONSE, w.FINAL, w.CONFIRM, w.COOKIE}
    assert agreed(a, b)
    assert len(a.established()) == len(b.established()) == 1
    assert a.failures() == b.failures() == []


def test_random_frames_get_no_answer(authority: Authority, identities: list[NodeIdentity]) -> None:
    wire = Wire(1)
    b = Caller(wire, identities[1], B)
    chance = random.Random(6)
    for length in range(200):
        for kind in range(8):
            noise = chance.randbytes(length)
            b.machine.receive(bytes((kind,))[:length] + noise[1:], A, 1.0)
            if length >= 20:
                good_header = bytes((kind, 1)) + (length - 20).to_bytes(2, "big") + noise[4:12] + b"\1\0\0\0\1\0\0\0" + noise[20:]
                b.machine.receive(good_header, A, 1.0)
    assert b.machine.transmit() == []
    assert b.events == b.machine.events() == []
    assert set(b.machine.counters) <= {"malformed", "bad_mac", "bad_version"}


def test_another_version_is_counted(identities: list[NodeIdentity]) -> None:
    wire = Wire(1)
    a, b = Caller(wire, identities[0], A), Caller(wire, identities[1], B)
    a.call(B, "b")
    frame = bytearray(wire.log[0][3])
    frame[1] = 2
    b.machine.receive(frame, A, 0.0)
    assert b.machine.counters["bad_version"] == 1
    assert b.machine.transmit() == []


def test_a_stolen_certificate_is_no_use_without_its_key(authority: Authority, identities: list[NodeIdentity]) -> None:
    """c has a's certificate and the secret, and its own key."""
    wire = Wire(1)
    thief = object.__new__(NodeIdentity)
    for field in attrs.fields(NodeIdentity):
        object.__setattr__(thief, field.name, getattr(identities[0] if field.name == "certificate" else identities[2], field.name))
    b, c = Caller(wire, identities[1], B), Caller(wire, thief, C)
    c.call(B, "b")
    wire.run(1.0)
    assert b.established() == c.established() == []
    assert b.machine.counters["bad_certificate_key"] == 1
    assert "has another key" in b.failures()[0].sentence
