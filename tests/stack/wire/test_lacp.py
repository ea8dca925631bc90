"""LACPDUs and markers: parse, build, round trip, truncation at every length."""

from __future__ import annotations

import pytest

from stack.frame import BadFrame
from stack.wire.lacp import ETHERTYPE, GROUP, PDU_SIZE, Lacpdu, Marker, PortInfo, State, is_slow, pack_slow, parse_slow

ACTOR = PortInfo(0x8000, bytes.fromhex("020000000001"), 1, 0x8000, 2, State.ACTIVE | State.AGGREGATION | State.SYNC)
PARTNER = PortInfo(0xFFFF, bytes.fromhex("020000000002"), 17, 255, 1, State.ACTIVE | State.SHORT | State.EXPIRED)
PDU = Lacpdu(ACTOR, PARTNER, 10)
BYTES = (
    bytes.fromhex("0101 0114 8000 020000000001 0001 8000 0002 0d 000000".replace(" ", ""))
    + bytes.fromhex("0214 ffff 020000000002 0011 00ff 0001 83 000000".replace(" ", ""))
    + bytes.fromhex("0310 000a".replace(" ", ""))
    + bytes(12 + 2 + 50)
)
MARKER = Marker(3, bytes.fromhex("020000000001"), 0x01020304)
MARKER_BYTES = bytes.fromhex("0201 0110 0003 020000000001 01020304 0000".replace(" ", "")) + bytes(92)


@pytest.mark.parametrize(("data", "value"), [(BYTES, PDU), (MARKER_BYTES, MARKER)])
def test_parse_and_build(data: bytes, value: Lacpdu | Marker) -> None:
    assert len(data) == PDU_SIZE
    assert value.pack() == data
    assert parse_slow(data) == value
    assert parse_slow(data[:1] + b"\x02" + data[2:] + b"more") == value


@pytest.mark.parametrize("data", [BYTES, MARKER_BYTES])
def test_cut_short_at_every_length(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(BadFrame):
            parse_slow(data[:length])


@pytest.mark.parametrize(
    ("data", "place"), [(BYTES, 1), (BYTES, 2), (BYTES, 3), (BYTES, 22), (BYTES, 43), (MARKER_BYTES, 2), (MARKER_BYTES, 3)]
)
def test_wrong_types_and_lengths(data: bytes, place: int) -> None:
    with pytest.raises(BadFrame):
        parse_slow(data[:place] + b"\0" + data[place + 1 :])


def test_a_response_is_a_marker_too() -> None:
    answer = Marker(3, MARKER.system, MARKER.transaction, response=True)
    assert answer.pack()[2] == 2
    assert parse_slow(answer.pack()) == answer


def test_other_slow_protocols_are_not_ours() -> None:
    assert parse_slow(b"\x0a" + bytes(20)) is None
    assert parse_slow(b"\x03") is None


def test_every_state_is_kept() -> None:
    for state in range(256):
        pdu = Lacpdu(PortInfo(1, bytes(6), 2, 3, 4, State(state)), PARTNER)
        assert parse_slow(pdu.pack()) == pdu


def test_frames() -> None:
    frame = pack_slow(ACTOR.system, BYTES)
    assert frame[:14] == GROUP + ACTOR.system + ETHERTYPE.to_bytes(2, "big")
    assert is_slow(frame)
    assert not is_slow(frame[:13])
    assert not is_slow(frame[:12] + b"\x08\x00")
    assert str(ACTOR) == "0x8000.02:00:00:00:00:01 key 1 port 2 ACTIVE|AGGREGATION|SYNC"
