"""When the guard goes on and off, and what it takes for a flood."""

from __future__ import annotations

import random

import attrs
import pytest

from qnetpy.identity.authority import issue_identity, make_authority
from qnetpy.link.constants import DESTINATIONS_MAX
from qnetpy.link.guard import CALM_SECONDS, COPIES_MAX, HOT_SECONDS, REORDER_GUARDED, REPLAYS_MAX, REVIEW, SEEN_MAX, WINDOW_SECONDS, Guard
from qnetpy.link.outcome import Failed, PeerHint
from qnetpy.link.screen import FLOORS_MAX, HOT_MAX, identity
from qnetpy.link.session import Session
from qnetpy.link.testing import WALL, Caller, Wire
from qnetpy.link.wire import CONFIRM, COOKIE, DATA, HANDSHAKE_HEADER, RESPONSE, HandshakeFrame
from qnetpy.testing.links import HEAD, Net


@attrs.define
class Counts:
    replayed: int = 0


class Played:
    """What the guard asks of a session."""

    def __init__(self, index: int, floors: dict[int, int]) -> None:
        self.local_index = index
        self.counters = Counts()
        self._floors = floors

    def floors(self, reorder: int) -> dict[int, int]:
        assert reorder == REORDER_GUARDED
        return self._floors


def sessions(*played: Played) -> list[Session]:
    return list(played)  # type: ignore[arg-type]  # the guard needs no more of a session


def frame(mac: bytes) -> memoryview:
    return memoryview(HandshakeFrame(CONFIRM, 1, 2, 1, bytes(4), b"body").pack() + mac.ljust(16, b"\0"))


def test_pressure_puts_it_on_and_calm_takes_it_off() -> None:
    guard = Guard((1, 2))
    assert not guard.view([5]).guarded
    assert guard.next_timeout() is None
    assert guard.sign(10.0)
    assert not guard.sign(11.0), "it is on already"
    assert guard.view([5]).guarded
    assert not guard.review([], 0, 11.0 + CALM_SECONDS - 0.1)
    assert guard.next_timeout() == 11.0 + CALM_SECONDS - 0.1 + REVIEW
    assert guard.review([], 0, 11.0 + CALM_SECONDS)
    assert not guard.on
    assert guard.times == 1


def test_what_drivers_shed_keeps_it_on() -> None:
    guard = Guard((1, 2))
    guard.sign(0.0)
    for second in range(1, 30):
        guard.review([], 256 * second, float(second))
        assert guard.on
    guard.review([], 256 * 29, 29.0 + CALM_SECONDS)
    assert not guard.on


def test_a_frame_repeated_too_often_is_hot_for_a_while() -> None:
    guard = Guard((1, 2))
    guard.sign(0.0)
    for _ in range(COPIES_MAX):
        guard.saw([frame(b"once"), memoryview(bytes((DATA,)) + bytes(60))], 0, 0.5)
    assert not guard.review([], 0, 0.5)
    guard.saw([frame(b"once")], 0, 0.6)
    assert guard.review([], 0, 0.7), "the program must be made anew"
    assert guard.view([]).hot == {int.from_bytes(b"once", "big")}
    guard.sign(HOT_SECONDS)
    assert guard.review([], 0, 0.6 + HOT_SECONDS)
    assert guard.hot == 0


@pytest.mark.parametrize("paths", [2, DESTINATIONS_MAX])
@pytest.mark.parametrize("seed", range(5))
def test_a_node_that_gets_no_answer_at_any_of_our_addresses_is_no_flood(paths: int, seed: int) -> None:
    authority = make_authority("garden", WALL)
    wire = Wire(seed)
    caller = Caller(wire, issue_identity(authority, "a", [], WALL), ("eth0", b"\2\0\0\0\0\1")).machine
    guard = Guard(caller.stamp_key)
    guard.sign(0.0)
    for path in range(paths):
        caller.initiate(PeerHint((f"eth{path}", b"\2\0\0\0\0\2"), "b"), 0.0)
    seen: list[tuple[float, bytes]] = []
    while not any(isinstance(event, Failed) for event in caller.events()):
        frames = [data for _, data in caller.transmit()]
        seen += [(wire.now, data) for data in frames]
        guard.saw([memoryview(data) for data in frames], 0, wire.now)
        assert guard.hot == 0, f"at {wire.now}"
        wire.now = caller.next_timeout() or wire.now
        caller.handle_timeout(wire.now)
    copies = [sum(data == other and now <= then < now + WINDOW_SECONDS for then, other in seen) for now, data in seen]
    assert max(copies) == 7 * paths


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lost", [(RESPONSE,), (RESPONSE, COOKIE)])
def test_two_nodes_that_call_each_other_at_all_addresses_and_get_no_answer_are_no_flood(seed: int, lost: tuple[int, ...]) -> None:
    """The one whose call counts sends it, besides its own repetitions, to wherever the other calls from."""
    net = Net(seed)
    cables = ("one", "two", "three", "four")
    a, b = net.add("a", 1, cables), net.add("b", 2, cables)
    net.up(a, b)
    net.block = lambda sender, cable, frame: True
    assert net.run(5.0, lambda: not a.owner.links and not b.owner.links)
    since = len(net.frames)
    net.block = lambda sender, cable, frame: frame[HEAD] in lost
    net.run(10.0)
    sent: dict[int, list[float]] = {}
    for when, _, _, frame in net.frames[since:]:
        word = identity(memoryview(frame), HEAD)
        if word is not None:
            sent.setdefault(word, []).append(when)
    assert a.machine.handshake_counters["crossed"] > 0
    most = max(sum(first <= when < first + WINDOW_SECONDS for when in times) for times in sent.values() for first in times)
    assert 7 < most <= COPIES_MAX


def test_memory_is_bounded() -> None:
    guard = Guard((1, 2))
    guard.sign(0.0)
    chance = random.Random(1)
    for _ in range(5):
        for _ in range(SEEN_MAX):
            guard.saw([frame(chance.randbytes(4))], 0, 0.5)
    assert len(guard._counts) == SEEN_MAX
    words = [chance.randbytes(4) for _ in range(HOT_MAX + 100)]
    for _ in range(COPIES_MAX + 1):
        guard.saw([frame(word) for word in words], 0, 2.5)
    assert guard.hot == HOT_MAX
    many = [Played(number, {0: 5}) for number in range(100)]
    guard.review(sessions(*many), 0, 3.0)
    for one in many:
        one.counters.replayed = REPLAYS_MAX + 1
    guard.review(sessions(*many), 0, 3.2)
    assert len(guard.view([]).floors) == FLOORS_MAX


def test_copies_of_a_session_give_it_floors() -> None:
    guard = Guard((1, 2))
    attacked, other = Played(7, {0: 100, 1: 5}), Played(8, {0: 9})
    attacked.counters.replayed = 10_000
    assert not guard.review(sessions(attacked, other), 0, 1.0), "old copies are no flood"
    attacked.counters.replayed += REPLAYS_MAX
    assert not guard.review(sessions(attacked, other), 0, 1.1)
    attacked.counters.replayed += REPLAYS_MAX + 1
    assert guard.review(sessions(attacked, other), 0, 1.2)
    assert guard.view([]).floors == {(7, 0): 100, (7, 1): 5}
    # The program sheds them now: the counter stands still, the floors follow the session.
    attacked._floors = {0: 300, 1: 5}
    assert guard.review(sessions(attacked, other), 500, 1.3)
    assert guard.view([]).floors == {(7, 0): 300, (7, 1): 5}
    assert guard.review(sessions(attacked, other), 500, 1.3 + CALM_SECONDS)
    assert guard.view([]).floors == {}
    assert not guard.on


def test_frames_that_are_none_are_not_counted() -> None:
    guard = Guard((1, 2))
    guard.sign(0.0)
    for length in range(HANDSHAKE_HEADER.size + 3):
        for _ in range(COPIES_MAX + 1):
            guard.saw([frame(b"x")[:length]], 0, 0.1)
    assert guard.hot == 0
