"""Ethernet headers: bytes to values and back, tags, and what is cut."""

from __future__ import annotations

import random

import pytest

from stack.frame import BadFrame
from stack.wire.ethernet import TPIDS, Ethernet, ethertype_of, is_group, mac_bytes, mac_text, payload_offset, type_and_offset

PLAIN = bytes.fromhex("0200000000020200000000018 8b5".replace(" ", "")) + b"payload"
TAGGED = bytes.fromhex("020000000002 020000000001 88a80007 8100e008 0806") + b"payload"


def test_bytes_to_values() -> None:
    header = Ethernet.parse(PLAIN)
    assert header == Ethernet(b"\2\0\0\0\0\2", b"\2\0\0\0\0\1", 0x88B5)
    assert str(header) == "02:00:00:00:00:01 > 02:00:00:00:00:02 type 0x88b5"
    header = Ethernet.parse(memoryview(TAGGED))
    assert header == Ethernet(b"\2\0\0\0\0\2", b"\2\0\0\0\0\1", 0x0806, ((0x88A8, 7), (0x8100, 0xE008)))
    assert str(header) == "02:00:00:00:00:01 > 02:00:00:00:00:02 vlan 7 vlan 8 type 0x0806"
    assert TAGGED[header.size :] == b"payload"


def test_values_to_bytes() -> None:
    assert Ethernet(b"\2\0\0\0\0\2", b"\2\0\0\0\0\1", 0x88B5).pack() + b"payload" == PLAIN
    assert Ethernet(b"\2\0\0\0\0\2", b"\2\0\0\0\0\1", 0x0806, ((0x88A8, 7), (0x8100, 0xE008))).pack() + b"payload" == TAGGED


@pytest.mark.parametrize("seed", range(20))
def test_round_trip(seed: int) -> None:
    rng = random.Random(seed)
    tags = tuple((rng.choice(sorted(TPIDS)), rng.randrange(1 << 16)) for _ in range(rng.randrange(3)))
    header = Ethernet(rng.randbytes(6), rng.randbytes(6), rng.choice([0, 46, 1500, 0x0600, 0x0800, 0xFFFF]), tags)
    frame = bytearray(header.pack() + rng.randbytes(rng.randrange(50)))
    assert Ethernet.parse(frame) == header, seed
    assert (ethertype_of(frame), payload_offset(frame)) == type_and_offset(frame) == (header.ethertype, header.size), seed


@pytest.mark.parametrize("whole", [PLAIN[:14], TAGGED[:22]])
def test_truncation_raises_badframe_only(whole: bytes) -> None:
    for length in range(len(whole)):
        for parse in (ethertype_of, payload_offset, type_and_offset, Ethernet.parse):
            with pytest.raises(BadFrame):
                parse(whole[:length])


def test_a_run_of_tags_is_bad() -> None:
    frame = bytes(12) + bytes.fromhex("81000001") * 3 + bytes(60)
    for parse in (ethertype_of, payload_offset, type_and_offset, Ethernet.parse):
        with pytest.raises(BadFrame, match="more than two"):
            parse(frame)


def test_addresses() -> None:
    assert mac_bytes("02:00:00:AA:00:01") == mac_bytes("02-00-00-aa-00-01") == b"\2\0\0\xaa\0\1"
    assert mac_text(b"\2\0\0\xaa\0\1") == "02:00:00:aa:00:01"
    assert is_group(b"\xff" * 6)
    assert is_group(b"\x33\x33\0\0\0\1")
    assert not is_group(b"\2\0\0\0\0\1")
    for text in ("", "02:00:00:aa:00", "02:00:00:aa:00:01:02", "02-00:00:aa:00:01", "2:0:0:0:0:1", "02:00:00:aa:00:0g"):
        with pytest.raises(ValueError, match="is not a MAC address"):
            mac_bytes(text)
