"""What the programs let through: of a real handshake and its data, calm and guarded, and of everything that enemies make of it."""

from __future__ import annotations

import random

import attrs
import pytest

from qnetpy.identity.authority import issue_identity, make_authority
from qnetpy.link import wire as w
from qnetpy.link.constants import INDICES_AHEAD, MAC_SIZE
from qnetpy.link.screen import HOT_MAX, INDICES_MAX, SAMPLE_OF, View, identity, programs
from qnetpy.link.solicitation import SIZE, Solicitations
from qnetpy.link.stamp import stamp_code
from qnetpy.link.testing import WALL, Caller, Wire, address, agreed
from stack.core.screen import Screen
from stack.drivers.af_packet.filter import program, side_program
from stack.filter.bpf.assembler import MAX_INSTRUCTIONS, SAMPLE_SIZE, WHOLE
from stack.filter.bpf.machine import run

A, B = address(1), address(2)
TYPE = 0x88B5
MAIN, SIDE, SAMPLE, SHED = "main", "side", "sample", "shed"
ETHERNET = bytes(12) + TYPE.to_bytes(2, "big")


class Trial:
    """Two nodes that have shaken hands, and node b's view. `to_b` is everything that a sent, oldest first."""

    def __init__(self) -> None:
        authority = make_authority("garden", WALL, random=random.Random(1).randbytes)
        self.secret = authority.secret
        wire = Wire(1)
        self.a, self.b = (Caller(wire, issue_identity(authority, name, [], WALL), at) for name, at in (("a", A), ("b", B)))
        self.a.want(B, "b")
        wire.run(2.0)
        assert agreed(self.a, self.b)
        self.to_b = [ETHERNET + frame for _, source, _, frame in wire.log if source == A]
        self.view = View(self.b.machine.indices(), stamp_code(self.b.machine.stamp_key))

    def of(self, kind: int) -> bytes:
        return next(frame for frame in self.to_b if frame[14] == kind)


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial()


def queue(view: View, frame: bytes, *, random_word: int = 1) -> str:
    """Where a frame goes. A frame never goes to both queues."""
    main, side = programs(view)
    screens = {TYPE: Screen(main, side, SAMPLE_OF, lambda: None)}
    in_main = run(program(frozenset({TYPE}), screens), frame)
    in_side = run(side_program(frozenset({TYPE}), screens), frame, random=lambda: random_word)
    assert not (in_main and in_side)
    assert in_main in (0, WHOLE)
    return {0: SHED, WHOLE: SIDE, SAMPLE_SIZE: SAMPLE}[in_side] if not in_main else MAIN


def guarded(trial: Trial, **changes: object) -> View:
    return attrs.evolve(trial.view, guarded=True, **changes)  # type: ignore[arg-type]  # names are checked by the class


@pytest.mark.parametrize("pad", [0, 30])
@pytest.mark.parametrize("tags", [b"", bytes.fromhex("8100 0007")])
def test_everything_of_a_real_peer_passes(trial: Trial, pad: int, tags: bytes) -> None:
    seen = set()
    for frame in trial.to_b:
        tagged = frame[:12] + tags + frame[12:] + bytes(pad)
        for view in (trial.view, guarded(trial)):
            assert queue(view, tagged) == (MAIN if frame[14] == w.DATA else SIDE)
        seen.add(frame[14])
    assert seen == {w.INITIATION, w.FINAL, w.DATA}


def test_calm_sheds_nothing(trial: Trial) -> None:
    chance = random.Random(1)
    stranger = ETHERNET + chance.randbytes(200)
    data = bytearray(trial.of(w.DATA))
    data[14 + 4] ^= 1
    for frame in (stranger, bytes(data), ETHERNET + b"\xff" + bytes(45)):
        assert queue(trial.view, frame) == SIDE


def test_guarded_sheds_what_is_not_ours(trial: Trial) -> None:
    view = guarded(trial)
    initiation, final, data = (bytearray(trial.of(kind)) for kind in (w.INITIATION, w.FINAL, w.DATA))
    length = 14 + w.HANDSHAKE_HEADER.size + int.from_bytes(initiation[16:18], "big")
    for place in range(length - 4 - 2 * MAC_SIZE, length - 4):
        wrong = bytearray(initiation)
        wrong[place] ^= 1
        assert queue(view, bytes(wrong)) == SHED, "mac1 and mac2 do not fit the stamp"
    for place in range(length - 4, length):
        wrong = bytearray(initiation)
        wrong[place] ^= 1
        assert queue(view, bytes(wrong)) == SHED, "the stamp does not fit mac1"
    for frame, place in ((initiation, 15), (initiation, 16), (final, 14 + 8), (final, 15), (data, 14 + 4), (data, 14 + 7), (data, 14)):
        wrong = bytearray(frame)
        wrong[place] ^= 0x40
        assert queue(view, bytes(wrong)) == SHED
        assert queue(view, bytes(wrong), random_word=SAMPLE_OF) in (SAMPLE, SHED)
    assert queue(view, ETHERNET + bytes(46), random_word=0) == SAMPLE
    for cut in range(14, length):
        assert queue(view, bytes(initiation[:cut])) == SHED


def test_a_solicitation_passes_with_its_stamp_only(trial: Trial) -> None:
    keys = Solicitations(trial.secret)
    frame = ETHERNET + keys.make(bytes(8), bytes(16), A[1]).pack()
    view = guarded(trial)
    assert queue(trial.view, frame) == SIDE
    for tags in (b"", bytes.fromhex("8100 0007")):
        for pad in (0, 6, 100):
            assert queue(view, frame[:12] + tags + frame[12:] + bytes(pad)) == SIDE
    for place in range(14, 14 + SIZE):
        for bit in range(8):
            wrong = bytearray(frame)
            wrong[place] ^= 1 << bit
            assert queue(view, bytes(wrong)) == SHED, place
    for cut in range(14, len(frame)):
        assert queue(view, frame[:cut]) == SHED
    assert queue(view, ETHERNET + Solicitations(bytes(32)).make(bytes(8), bytes(16), A[1]).pack()) == SHED
    word = identity(memoryview(frame + bytes(6)), 14)
    assert word is not None
    assert queue(guarded(trial, hot=frozenset({word})), frame) == SHED
    assert identity(memoryview(frame[:-1]), 14) is None
    assert queue(guarded(trial, hot=frozenset({word ^ 1})), frame) == SIDE


def test_random_bytes_are_shed(trial: Trial) -> None:
    chance = random.Random(2)
    view = guarded(trial)
    queues = [queue(view, ETHERNET + bytes((chance.randrange(8),)) + chance.randbytes(chance.randrange(20, 300))) for _ in range(300)]
    assert set(queues) == {SHED}


def test_what_was_repeated_is_shed(trial: Trial) -> None:
    for kind in (w.INITIATION, w.FINAL):
        frame = trial.of(kind)
        word = identity(memoryview(frame), 14)
        assert word is not None
        assert identity(memoryview(frame + bytes(20)), 14) == word
        assert queue(guarded(trial, hot=frozenset({word})), frame) == SHED
        assert queue(guarded(trial, hot=frozenset({word ^ 1, *range(500)})), frame) == SIDE
        for cut in range(14 + w.HANDSHAKE_HEADER.size + 3):
            assert identity(memoryview(frame)[:cut], 14) is None
    assert identity(memoryview(trial.of(w.DATA)), 14) is None


def test_packets_below_the_floor_are_shed(trial: Trial) -> None:
    frame = trial.of(w.DATA)
    _, path, _, index, number = w.DATA_HEADER.unpack_from(frame, 14)
    assert (path, number) == (0, 0)

    def numbered(number: int, path: int = 0) -> bytes:
        header = w.DATA_HEADER.pack(w.DATA, path, 20, index, number)
        return ETHERNET + header + bytes(20)

    for floor in (0, 1, 1000, 2**32 - 1, 2**32, 2**40 + 7):
        view = guarded(trial, floors={(index, 0): floor, (index, 3): 5, (index ^ 1, 0): 2**50})
        for number in {0, max(0, floor - 1), floor, floor + 1, 2**33, 2**61}:
            assert queue(view, numbered(number)) == (MAIN if number >= floor else SHED)
        assert queue(view, numbered(4, path=3)) == SHED
        assert queue(view, numbered(5, path=3)) == MAIN
        assert queue(view, numbered(0, path=9)) == MAIN


def test_an_index_is_known_before_it_is_told(trial: Trial) -> None:
    """Whoever makes the programs anew when `draws` changes, before frames go out, knows every index that they tell."""
    party = trial.b.machine._party
    told, pushes = set(), 0
    draws, known = -1, frozenset[int]()
    for _ in range(100):
        index = party.new_index()
        if draws != party.draws:
            draws, known = party.draws, trial.b.machine.indices()
            pushes += 1
        assert index in known
        told.add(index)
    assert len(told) == 100
    assert pushes <= 1 + 100 // INDICES_AHEAD + 1
    for index in told:
        party.release(index)
    assert not told & trial.b.machine.indices()


def test_the_largest_programs_fit_the_kernel(trial: Trial) -> None:
    chance = random.Random(3)

    def words(count: int) -> frozenset[int]:
        return frozenset(chance.getrandbits(32) for _ in range(count))

    floors = {(chance.getrandbits(32), path): chance.getrandbits(50) for path in range(16)}
    view = guarded(trial, indices=words(INDICES_MAX), hot=words(HOT_MAX), floors=floors)
    main, side = programs(view)
    screens = {TYPE: Screen(main, side, SAMPLE_OF, lambda: None)}
    assert len(side_program(frozenset({TYPE}), screens)) <= MAX_INSTRUCTIONS
    assert len(program(frozenset({TYPE}), screens)) <= MAX_INSTRUCTIONS
    # With more sessions than that every index passes.
    data = ETHERNET + w.DATA_HEADER.pack(w.DATA, 0, 20, 77, 0) + bytes(20)
    assert queue(view, data) == SHED
    assert queue(attrs.evolve(view, indices=words(INDICES_MAX + 1)), data) == MAIN
