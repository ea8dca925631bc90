"""Sessions: sealing, opening, replay, limits, rekey; and that no key ever sees a nonce twice."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qnetpy.link.constants import ATTEMPT_TIMEOUT, DONE_LIFETIME, PACKET_NUMBER_MAX, REKEY_AFTER, REKEY_STAGGER, REPLAY_WINDOW
from qnetpy.link.session import KeysExhausted, RekeyPolicy, Role, Session, Sessions
from qnetpy.link.wire import DATA_HEADER, sort_frames
from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.crypto import api
from stack.crypto.registry import standard_crypto

ETHERNET = bytes(range(14))
CRYPTO = standard_crypto()


class Watched:
    """A real crypto session that remembers the nonces it sealed with."""

    def __init__(self, session: api.Session) -> None:
        self.session = session
        self.nonces: list[bytes] = []
        self.opened = 0
        """Items that it was asked to open."""
        self.closed = False

    @property
    def algorithm(self) -> api.Algorithm:
        return self.session.algorithm

    def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer]) -> list[bytes]:
        self.nonces += map(bytes, nonces)
        return self.session.seal_many(nonces, plaintexts, aads)

    def open_many(self, nonces: Sequence[Buffer], ciphertexts: Sequence[Buffer], aads: Sequence[Buffer]) -> list[bytes | None]:
        self.opened += len(nonces)
        return self.session.open_many(nonces, ciphertexts, aads)

    def close(self) -> None:
        self.closed = True
        self.session.close()


def keys(algorithm: api.Algorithm = api.AES_128_GCM, value: int = 1) -> api.Session:
    return CRYPTO.session(algorithm, bytes([value]) * algorithm.key_size)


def pair(algorithm: api.Algorithm = api.AES_128_GCM, now: float = 0.0) -> tuple[Session, Session]:
    return (
        Session(keys(algorithm, 1), keys(algorithm, 2), 11, 22, Role.INITIATOR, now),
        Session(keys(algorithm, 2), keys(algorithm, 1), 22, 11, Role.RESPONDER, now),
    )


def deliver(session: Session, frames: Sequence[Buffer]) -> list[tuple[int, bytes]]:
    return [item for group in sort_frames([memoryview(frame) for frame in frames]).data for item in session.open(group)]


@pytest.mark.parametrize("algorithm", api.ALGORITHMS, ids=lambda algorithm: algorithm.name)
def test_what_is_sealed_is_opened(algorithm: api.Algorithm) -> None:
    one, two = pair(algorithm)
    packets = [bytes([n]) * size for n, size in enumerate((0, 1, 45, 1400, 8900, 65519))]
    frames = one.seal(ETHERNET, 3, 100, packets)
    assert [frame[:14] for frame in frames] == [ETHERNET] * 6
    assert [DATA_HEADER.unpack_from(frame, 14) for frame in frames] == [(1, 3, len(p) + 16, 22, 100 + n) for n, p in enumerate(packets)]
    assert deliver(two, [frame + bytes(46) for frame in frames]) == list(enumerate(packets, 100))
    assert one.suite == algorithm.name
    assert (one.counters.sealed, two.counters.opened) == (6, 6)
    assert one.seal(ETHERNET, 3, 106, []) == []


def test_the_bytes_of_a_frame() -> None:
    """A second implementation can be checked against this: key, nonce and additional data are what docs/protocol/link.md says."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    (frame,) = pair()[0].seal(b"", 5, 0x0102030405060708, [b"packet"])
    header = bytes.fromhex("01050016000000160102030405060708")
    assert frame == header + AESGCM(bytes([1]) * 16).encrypt(bytes.fromhex("000000050102030405060708"), b"packet", header)


def test_both_directions_have_their_own_keys() -> None:
    one, two = pair()
    assert deliver(one, two.seal(ETHERNET, 0, 0, [b"back"])) == [(0, b"back")]
    assert deliver(one, one.seal(ETHERNET, 0, 1, [b"reflected"])) == []
    assert one.counters.bad_tag == 1


def test_a_copy_is_dropped_in_another_batch_and_in_the_same() -> None:
    one, two = pair()
    frames = one.seal(ETHERNET, 0, 0, [bytes([n]) for n in range(8)])
    assert len(deliver(two, frames)) == 8
    assert deliver(two, frames) == []
    more = one.seal(ETHERNET, 0, 8, [b"a", b"b"])
    assert deliver(two, [more[0], more[0], more[1], more[0]]) == [(8, b"a"), (9, b"b")]
    assert two.counters.replayed == 10


def test_a_copy_costs_no_decryption() -> None:
    one, _ = pair()
    watched = Watched(keys(value=1))
    two = Session(keys(value=2), watched, 22, 11, Role.RESPONDER, 0.0)
    frames = one.seal(ETHERNET, 0, 0, [bytes([n]) for n in range(100)])
    assert len(deliver(two, frames)) == 100
    opened = watched.opened
    for _ in range(10):
        assert deliver(two, frames) == []
        assert deliver(two, frames[:1]) == []
    assert watched.opened == opened == 100


def test_floors_are_below_everything_that_is_new() -> None:
    one, two = pair()
    frames = one.seal(ETHERNET, 0, 0, [b"x"] * 400)
    other = one.seal(ETHERNET, 7, 50, [b"y"] * 3)
    assert two.floors(256) == {}
    deliver(two, [*frames[:10], *frames[20:30], *other])
    assert two.floors(256) == {0: 10, 7: 0}
    deliver(two, frames[10:20])
    assert two.floors(256) == {0: 30, 7: 0}
    deliver(two, frames[399:])
    assert two.floors(256) == {0: 400 - 256, 7: 0}
    assert two.floors(8192) == {0: 30, 7: 0}


def test_reordered_frames_are_opened_once() -> None:
    one, two = pair()
    frames = one.seal(ETHERNET, 0, 0, [bytes([n % 256]) for n in range(300)])
    chance = random.Random(5)
    chance.shuffle(frames)
    got = [item for start in range(0, 300, 7) for item in deliver(two, frames[start : start + 7])]
    assert sorted(got) == [(n, bytes([n % 256])) for n in range(300)]
    assert deliver(two, frames) == []


def test_older_than_the_window_is_dropped() -> None:
    one, two = pair()
    (old,) = one.seal(ETHERNET, 0, 0, [b"old"])
    (edge,) = one.seal(ETHERNET, 0, 1, [b"edge"])
    deliver(two, one.seal(ETHERNET, 0, REPLAY_WINDOW, [b"new"]))
    assert deliver(two, [old]) == []
    assert deliver(two, [edge]) == [(1, b"edge")]


def test_each_path_has_its_own_numbers() -> None:
    one, two = pair()
    for path in (0, 1, 255):
        assert deliver(two, one.seal(ETHERNET, path, 7, [b"x"])) == [(7, b"x")]


def test_no_changed_or_cut_frame_is_opened_and_none_disturbs_the_window() -> None:
    one, two = pair()
    (frame,) = one.seal(ETHERNET, 0, 1000, [b"packet" * 5])
    for place in range(14, len(frame)):
        for bit in (0, 7):
            bad = bytearray(frame)
            bad[place] ^= 1 << bit
            assert deliver(two, [bad]) == []
        assert deliver(two, [frame[:place]]) == []
    # A forged far number must not have moved the window (check, decrypt, update).
    assert deliver(two, [frame]) == [(1000, b"packet" * 5)]
    assert two.counters.opened == 1


def test_a_forgery_costs_the_rest_of_its_batch_nothing() -> None:
    one, two = pair()
    frames = [bytearray(frame) for frame in one.seal(ETHERNET, 0, 0, [bytes([n]) for n in range(6)])]
    for place in (0, 3, 5):
        frames[place][-1] ^= 1
    assert deliver(two, frames) == [(n, bytes([n])) for n in (1, 2, 4)]
    assert two.counters.bad_tag == 3
    for place in (0, 3, 5):
        frames[place][-1] ^= 1
    assert [n for n, _ in deliver(two, frames)] == [0, 3, 5]


def test_a_number_is_never_sealed_twice() -> None:
    one, _ = pair()
    one.seal(ETHERNET, 0, 10, [b"a", b"b"])
    for first in (0, 10, 11):
        with pytest.raises(Misuse, match="sealed already"):
            one.seal(ETHERNET, 0, first, [b"c"])
    one.seal(ETHERNET, 1, 10, [b"c"])
    with pytest.raises(Misuse, match="no number"):
        one.seal(ETHERNET, 0, PACKET_NUMBER_MAX, [b"c", b"d"])


def test_a_failed_seal_does_not_free_its_numbers() -> None:
    one, _ = pair()
    with pytest.raises(Exception):  # noqa: B017  # whatever the packing of a too long packet raises
        one.seal(ETHERNET, 0, 0, [bytes(70000)])
    with pytest.raises(Misuse):
        one.seal(ETHERNET, 0, 0, [b"x"])


def test_a_sender_refuses_to_pass_the_limit() -> None:
    one, _ = pair()
    assert one.left == 2**23
    one.seal_limit = 10
    one.seal(ETHERNET, 0, 0, [b""] * 8)
    assert one.left == 2
    with pytest.raises(KeysExhausted, match="pass 10 under one key of aes-128-gcm"):
        one.seal(ETHERNET, 0, 8, [b""] * 3)
    one.seal(ETHERNET, 0, 8, [b""] * 2)
    with pytest.raises(KeysExhausted):
        one.seal(ETHERNET, 1, 0, [b""])


def test_a_receiver_stops_at_its_limit_of_failures() -> None:
    one, two = pair()
    two.failures_limit = 5
    bad = [frame[:-1] + b"\0" for frame in one.seal(ETHERNET, 0, 0, [b""] * 6)]
    for frame in bad[:5]:
        deliver(two, [frame])
    assert deliver(two, one.seal(ETHERNET, 0, 6, [b"x"])) == []


def test_a_closed_session_has_no_keys() -> None:
    one, _ = pair()
    one.close()
    one.close()
    with pytest.raises(Misuse):
        one.seal(ETHERNET, 0, 0, [b"x"])


def test_rekey_is_due_by_time_frames_and_failures() -> None:
    for role, after in ((0, REKEY_AFTER), (1, REKEY_AFTER + REKEY_STAGGER)):
        sessions = Sessions()
        assert sessions.rekey_due(1e9) == ""
        sessions.install(pair(now=50.0)[role], 50.0)
        assert sessions.rekey_due(50.0 + after - 0.01) == ""
        assert sessions.rekey_due(50.0 + after) == "time"
    sessions = Sessions(RekeyPolicy(frames=4, failures=3))
    one, two = pair()
    sessions.install(one, 0.0)
    one.seal(ETHERNET, 0, 0, [b""] * 3)
    assert sessions.rekey_due(1.0) == ""
    one.seal(ETHERNET, 0, 3, [b""])
    assert sessions.rekey_due(1.0) == "frames"
    sessions = Sessions(RekeyPolicy(frames=4, failures=3))
    sessions.install(two, 0.0)
    deliver(two, [frame[:-1] + b"\0" for frame in one.seal(ETHERNET, 0, 4, [b""] * 3)])
    assert sessions.rekey_due(1.0) == "failures"


@pytest.mark.parametrize("algorithm", api.ALGORITHMS, ids=lambda algorithm: algorithm.name)
def test_rekey_is_due_well_before_the_limits(algorithm: api.Algorithm) -> None:
    one, two = pair(algorithm)
    for session in (one, two):
        session.counters.sealed = int(session.seal_limit * 0.6)
        assert RekeyPolicy().due(session, 0.0) == "frames"
        session.counters.sealed = 0
        session.counters.bad_tag = min(session.failures_limit // 2, 2**20)
        assert RekeyPolicy().due(session, 0.0) == "failures"


def test_make_before_break() -> None:
    """What was sealed with the old keys is opened for the grace time, then the keys are gone."""
    sessions = Sessions(RekeyPolicy(grace=5.0))
    old = [Watched(keys(value=value)) for value in (1, 2)]
    first = Session(old[1], old[0], 22, 11, Role.RESPONDER, 0.0)
    sender = pair()[0]
    sessions.install(first, 0.0)
    assert sessions.next_timeout() is None
    second = pair()[0]
    assert sessions.install(second, 100.0) == []
    assert sessions.held == [second, first]
    assert sessions.current is second
    assert deliver(first, sender.seal(ETHERNET, 0, 0, [b"late"])) == [(0, b"late")]
    assert sessions.next_timeout() == 105.0
    assert sessions.expire(104.9) == []
    assert sessions.expire(105.0) == [first]
    assert all(one.closed for one in old)
    assert sessions.next_timeout() is None


def responders(count: int) -> list[Session]:
    """With the indices 1, 2, ... of ours."""
    return [
        Session(keys(value=number), keys(value=100 + number), number, 50, Role.RESPONDER, float(number)) for number in range(1, count + 1)
    ]


def test_who_was_called_seals_with_new_keys_when_the_caller_has_used_them() -> None:
    sessions = Sessions(RekeyPolicy(grace=5.0))
    one, two, three = responders(3)
    sessions.install(one, 1.0)
    assert sessions.current is one, "there are no others to go on with"
    sessions.install(two, 2.0)
    assert (sessions.current, sessions.coming) == (one, [two])
    assert sessions.heard(1, 2.5) == []
    assert (sessions.current, sessions.coming) == (one, [two]), "what comes under the old keys says nothing"
    assert sessions.heard(2, 3.0) == []
    assert (sessions.current, sessions.coming, sessions.older) == (two, [], [one])
    assert sessions.expire(7.9) == []
    assert sessions.expire(8.0) == [one]
    sessions.install(three, 9.0)
    assert sessions.expire(9.0 + DONE_LIFETIME - 0.1) == [], "the caller may hear the confirmation so late"
    assert sessions.expire(9.0 + DONE_LIFETIME) == [three]
    assert sessions.held == [two]


def test_a_caller_that_calls_again_is_heard_under_all_keys_that_it_may_use() -> None:
    sessions = Sessions(RekeyPolicy(grace=5.0))
    one, two, three, four, five = responders(5)
    for session in (one, two, three, four):
        assert sessions.install(session, session.established) == []
    assert (sessions.current, sessions.coming, sessions.older) == (one, [three, four], [two])
    sessions.heard(3, 4.5)
    assert (sessions.current, sessions.coming, sessions.older) == (three, [four], [two, one])
    assert sessions.heard(4, 4.6) == [two]
    assert sessions.install(five, 5.0) == []
    call = pair()[0]
    assert sessions.install(call, 6.0) == [one, three]
    assert sessions.held == [call, four, five], "our own call counts at once"


def test_no_other_call_while_new_keys_wait_for_their_first_use() -> None:
    sessions = Sessions(RekeyPolicy(after=10.0, stagger=0.0))
    one, two = responders(2)
    sessions.install(one, 1.0)
    sessions.install(two, 12.0)
    two.established = 12.0
    assert sessions.rekey_due(12.5) == ""
    assert sessions.rekey_due(12.0 + ATTEMPT_TIMEOUT) == "time"
    one.counters.sealed = one.seal_limit
    assert sessions.rekey_due(12.5) == "frames", "there is nothing to go on with"
    third = Session(keys(value=9), keys(value=8), 7, 8, Role.RESPONDER, 13.0)
    sessions.install(third, 13.0)
    assert sessions.current is third


def test_a_fourth_session_ends_the_first_at_once() -> None:
    sessions = Sessions()
    one, two, three, four = (pair()[0] for _ in range(4))
    sessions.install(one, 0.0)
    sessions.install(two, 1.0)
    assert sessions.install(three, 2.0) == []
    assert sessions.install(four, 3.0) == [one]
    assert sessions.close() == [four, two, three]
    assert sessions.current is None
    assert not sessions.usable(2.0)


def test_a_session_too_old_or_used_up_is_not_usable() -> None:
    sessions = Sessions(RekeyPolicy(reject_after=600.0))
    one, _ = pair()
    sessions.install(one, 0.0)
    assert sessions.usable(599.0)
    assert not sessions.usable(600.0)
    one.counters.sealed = one.seal_limit
    assert not sessions.usable(1.0)


class NonceReuse(RuleBasedStateMachine):
    """Any order of seals, refused seals and rekeys, with numbers that go on across sessions as the transport's do."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Watched] = []
        self.sessions = Sessions()
        self.next: dict[int, int] = {}
        self.now = 0.0
        self.rekey(Role.INITIATOR)

    @rule(role=st.sampled_from(Role))
    def rekey(self, role: Role) -> None:
        watched = Watched(keys(value=len(self.made) % 250))
        self.made.append(watched)
        self.sessions.install(Session(watched, keys(value=251), len(self.made), 2, role, self.now), self.now)

    @rule(place=st.integers(0, 2))
    def heard(self, place: int) -> None:
        """The peer uses keys that come."""
        if place < len(self.sessions.coming):
            self.sessions.heard(self.sessions.coming[place].local_index, self.now)

    @rule(seconds=st.sampled_from([0.1, 4.0, 9.0]))
    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.sessions.expire(self.now)

    @rule(path=st.integers(0, 3), count=st.integers(0, 5), step=st.integers(-6, 6))
    def seal(self, path: int, count: int, step: int) -> None:
        session = self.sessions.current
        assert session is not None
        first = max(0, self.next.get(path, 0) + step)
        try:
            frames = session.seal(ETHERNET, path, first, [b"x"] * count)
        except Misuse:
            return
        assert len(frames) == count
        self.next[path] = max(self.next.get(path, 0), first + count)

    @invariant()
    def no_nonce_twice(self) -> None:
        for watched in self.made:
            assert len(set(watched.nonces)) == len(watched.nonces)


TestNonceReuse = NonceReuse.TestCase
TestNonceReuse.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(st.binary(max_size=100), st.integers(0, 2**63), st.integers(0, 255))
@settings(deadline=None)
def test_random_bodies_are_counted_not_raised(body: bytes, number: int, path: int) -> None:
    _, two = pair()
    frame = ETHERNET + DATA_HEADER.pack(1, path, max(16, len(body)), 22, number) + body.ljust(16, b"\0")
    assert deliver(two, [frame]) == []
