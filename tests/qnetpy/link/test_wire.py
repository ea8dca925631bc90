"""Frame formats: bytes to value, value to bytes, padding, truncation at every length."""

from __future__ import annotations

import random

import pytest

from qnetpy.link import wire
from qnetpy.link.wire import DATA, DATA_HEADER, HandshakeFrame, parse_handshake, sort_frames, sources_of
from resmgr.errors import BadMessage

ETHERNET = bytes(range(14))


def data_frame(index: int = 7, path: int = 0, number: int = 5, body: bytes = bytes(20), pad: int = 0) -> memoryview:
    return memoryview(ETHERNET + DATA_HEADER.pack(DATA, path, len(body), index, number) + body + bytes(pad))


def test_data_header_bytes() -> None:
    assert DATA_HEADER.pack(DATA, 2, 0x0102, 0x03040506, 0x0708090A0B0C0D0E).hex() == "01020102030405060708090a0b0c0d0e"
    assert wire.NONCE.pack(2, 0x0708090A0B0C0D0E).hex() == "000000020708090a0b0c0d0e"
    assert wire.DATA_OVERHEAD == 32


def test_a_uniform_batch_is_one_group() -> None:
    result = sort_frames([data_frame(number=n, body=bytes([n]) * (16 + n), pad=n) for n in range(5)])
    (group,) = result.data
    assert (group.index, group.path, list(group.numbers)) == (7, 0, [0, 1, 2, 3, 4])
    assert [bytes(body) for body in group.bodies] == [bytes([n]) * (16 + n) for n in range(5)]
    assert bytes(group.headers[3]) == DATA_HEADER.pack(DATA, 0, 19, 7, 3)
    assert (result.handshakes, result.malformed) == ([], 0)


def test_a_mixed_batch_is_sorted() -> None:
    handshake = HandshakeFrame(wire.FINAL, 1, 2, wire.PATTERN_XX, bytes(4), b"body").pack() + bytes(16)
    batch = [
        data_frame(index=1, number=10),
        memoryview(ETHERNET + handshake + bytes(9)),
        data_frame(index=2, number=20),
        data_frame(index=1, number=11),
        data_frame(index=1, path=3, number=12),
        memoryview(b""),
        memoryview(ETHERNET),
        memoryview(ETHERNET + b"\xff" * 60),
        data_frame(body=bytes(15)),
        data_frame(body=bytes(100))[:-1],
    ]
    result = sort_frames(batch)
    assert [(group.index, group.path, list(group.numbers)) for group in result.data] == [(1, 0, [10, 11]), (2, 0, [20]), (1, 3, [12])]
    ((place, frame),) = result.handshakes
    assert place == 1
    assert parse_handshake(frame)[0].body == b"body"
    assert result.malformed == 5
    assert sort_frames([]).data == []


def test_both_ways_of_sorting_agree() -> None:
    """The quick way sees what the general one sees, for each batch of one kind, also when frames are cut."""
    for cut in range(1, len(data_frame()) + 1):
        frame = data_frame()[:cut]
        quick, general = sort_frames([frame] * 3), sort_frames([frame, data_frame(index=99)])
        full = cut == len(data_frame())
        assert bool([group for group in general.data if group.index == 7]) == full
        # A frame that is cut behind its header and 16 bytes passes the quick way as a body too short to be authentic.
        bodies = [body for group in quick.data for body in group.bodies]
        assert len(bodies) == 0 or (len(bodies[0]) == 20) == full


def test_noise_is_counted_and_nothing_else() -> None:
    chance = random.Random(3)
    for _ in range(3000):
        batch = [memoryview(chance.randbytes(chance.randrange(80))) for _ in range(chance.randrange(4))]
        result = sort_frames(batch)
        count = sum(len(group.numbers) for group in result.data) + len(result.handshakes) + len(result.solicitations) + result.malformed
        assert count == len(batch)
        for _, frame in result.handshakes:
            try:
                parse_handshake(frame)
            except BadMessage:
                pass


FRAMES = [
    HandshakeFrame(wire.INITIATION, 5, 0, wire.PATTERN_XX, bytes([3, 1, 0, 0]), bytes(range(40))),
    HandshakeFrame(wire.RESPONSE, 5, 6, wire.PATTERN_IK, bytes(4), b"x"),
    HandshakeFrame(wire.FINAL, 2**32 - 1, 6, wire.PATTERN_XX, bytes(4), b""),
    HandshakeFrame(wire.CONFIRM, 1, 1, wire.PATTERN_XX, bytes(4), bytes(900)),
    HandshakeFrame(wire.COOKIE, 0, 9, wire.PATTERN_XX, bytes(4), bytes(48)),
]


def test_where_the_packets_of_a_batch_come_from() -> None:
    frames = [data_frame(number=number) for number in (3, 4)]
    frames += [memoryview(bytes(6) + bytes((2, 9, 9, 9, 9, number)) + bytes(2) + data_frame(number=number)[14:]) for number in (4, 5)]
    frames += [data_frame(number=6, path=1), data_frame(number=7, index=8), frames[0][:20], memoryview(b"")]
    (group,) = [one for one in sort_frames(frames).data if (one.index, one.path) == (7, 0)]
    here = ETHERNET[6:12]
    assert sources_of(frames, 14, group) == {3: here, 4: here, 5: bytes((2, 9, 9, 9, 9, 5))}


def test_handshake_header_bytes() -> None:
    assert FRAMES[0].header().hex() == "0201004c" + "00000005" + "00000000" + "01" + "00" + "0000" + "03010000"


@pytest.mark.parametrize("frame", FRAMES)
def test_handshake_round_trip_with_padding(frame: HandshakeFrame) -> None:
    macs = random.Random(1).randbytes(wire.macs_size(frame.type))
    for pad in (0, 1, 46):
        assert parse_handshake(frame.pack() + macs + bytes(pad)) == (frame, frame.pack(), macs)


@pytest.mark.parametrize("frame", FRAMES)
def test_handshake_truncated_anywhere(frame: HandshakeFrame) -> None:
    whole = frame.pack() + bytes(wire.macs_size(frame.type))
    for length in range(len(whole)):
        with pytest.raises(BadMessage):
            parse_handshake(whole[:length])


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, 1, "type"),
        (0, 9, "type"),
        (1, 0, "version 0"),
        (1, 2, "version 2, ours is 1"),
        (11, 1, "does not belong"),
        (12, 0, "pattern"),
        (12, 3, "pattern"),
        (13, 1, "reserved"),
        (15, 1, "reserved"),
        (3, 0, "length"),
        (2, 1, "length"),
    ],
)
def test_handshake_header_fields_are_checked(place: int, value: int, reason: str) -> None:
    whole = bytearray(FRAMES[0].pack() + bytes(36))
    whole[place] = value
    with pytest.raises(BadMessage, match=reason):
        parse_handshake(whole)


def test_suites_only_in_an_initiation() -> None:
    for kind, suites in ((wire.INITIATION, bytes(4)), (wire.RESPONSE, bytes([1, 0, 0, 0]))):
        frame = HandshakeFrame(kind, 1, 0 if kind == wire.INITIATION else 2, wire.PATTERN_XX, suites, b"")
        with pytest.raises(BadMessage, match="does not belong"):
            parse_handshake(frame.pack() + bytes(36))
