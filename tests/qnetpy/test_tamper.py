"""What the man in the middle makes of frames: that he is honest when told so, and that each act does what it says."""

from __future__ import annotations

import pytest

from qnetpy.link import wire
from qnetpy.link.wire import DATA, DATA_HEADER, HandshakeFrame
from qnetpy.testing.tamper import ACTS, ETHERTYPE, MILD, Sending, Tamper

A, B, C = (bytes((2, 0, 0, 0, 0, number)) for number in (1, 2, 3))
TYPE = ETHERTYPE.to_bytes(2, "big")


def data(source: bytes, to: bytes, index: int, number: int = 1, path: int = 0) -> bytes:
    return to + source + TYPE + DATA_HEADER.pack(DATA, path, 200, index, number) + bytes(range(200))


def call(source: bytes, to: bytes) -> bytes:
    frame = HandshakeFrame(wire.INITIATION, 7, 0, wire.PATTERN_XX, bytes((1, 0, 0, 0)), bytes(100))
    return to + source + TYPE + frame.pack() + bytes(36)


def made(tamper: Tamper, act: str, count: int = 500) -> list[list[Sending]]:
    """What comes of frames from A to B at end 0, when he has heard both directions, two sessions and two cables."""
    for number in range(1, 5):
        tamper.heard(0, data(A, B, 11, number))
        tamper.heard(1, data(B, A, 22, number))
        tamper.heard(0, data(C, B, 33, number))
        tamper.heard(2, data(A, B, 11, number, 2))
        tamper.heard(0, call(A, B))
    tamper.act = act
    return [tamper.heard(0, data(A, B, 11, number)) for number in range(5, 5 + count)]


def changed(results: list[list[Sending]]) -> list[Sending]:
    """The frames that are not just passed on."""
    found = []
    for number, result in enumerate(results, 5):
        found += [sending for sending in result if sending != Sending(1, data(A, B, 11, number))]
    return found


def test_honest_he_passes_everything_on() -> None:
    assert not changed(made(Tamper(2, 1), "honest"))


@pytest.mark.parametrize("act", ACTS)
def test_other_protocols_pass_whatever_he_does(act: str) -> None:
    tamper = Tamper(2, 1)
    made(tamper, act)
    for frame in (A + B + b"\x08\0" + bytes(46), A + B + TYPE, b"", A + B + b"\x08\x06" + bytes(1500)):
        assert tamper.heard(0, frame) == [Sending(1, frame)]


@pytest.mark.parametrize("act", ACTS)
def test_each_act_does_something_and_counts_it(act: str) -> None:
    tamper = Tamper(2, 1)
    results = made(tamper, act)
    results += [tamper.heard(1, data(B, A, 22, number)) for number in range(5, 10)]
    assert tamper.did[act] > 0
    assert tamper.did[act] == tamper.did.total()
    assert changed(results[:-5]) or not all(results) or act == "repeat"
    assert all(0 <= sending.end < 4 and sending.delay >= 0.0 for result in results for sending in result)


@pytest.mark.parametrize("act", [act for act in MILD if act not in ("corrupt", "cable", "reorder", "everything")])
def test_the_frame_itself_still_comes_and_comes_last(act: str) -> None:
    for number, result in enumerate(made(Tamper(2, 1), act), 5):
        assert result[-1] == Sending(1, data(A, B, 11, number))


def test_every_bit_of_the_header_and_every_length() -> None:
    bits = set()
    for sending in changed(made(Tamper(2, 1), "header", 2000)):
        original = data(A, B, 11, int.from_bytes(sending.frame[22:30], "big"))
        difference = int.from_bytes(sending.frame, "big") ^ int.from_bytes(original, "big")
        if difference.bit_count() == 1:
            bits.add(8 * len(original) - difference.bit_length())
    # The number itself is what this test tells frames by: its bits look like another frame.
    assert set(range(8 * 14, 8 * 22)) <= bits
    lengths = {len(sending.frame) for sending in changed(made(Tamper(2, 1), "cut", 2000))}
    assert set(range(60, 230)) <= lengths


def test_sessions_directions_paths_and_cables_are_those_that_he_has_heard() -> None:
    def headers(act: str) -> list[tuple[int, bytes, int, int]]:
        """End, addresses, path, index."""
        found = []
        for sending in changed(made(Tamper(2, 1), act)):
            _, path, _, index, _ = DATA_HEADER.unpack_from(sending.frame, 14)
            found.append((sending.end, sending.frame[:12], path, index))
        return found

    assert set(headers("session")) == {(1, B + A, 0, 33)}
    assert set(headers("direction")) == {(0, A + B, 0, 22)}
    assert {(end, addresses, index) for end, addresses, _, index in headers("path")} == {(1, B + A, 11)}
    assert set(headers("cable")) == {(3, B + A, 0, 11)}
    assert {addresses[:6] for _, addresses, _, _ in headers("spoof")} == {B}
    assert {sending.frame[:12] for sending in changed(made(Tamper(2, 1), "reflect"))} == {A + B}
    assert {sending.frame[:12] for sending in changed(made(Tamper(2, 1), "echo"))} == {A + A}
