"""The Internet checksum against a loop over words, and against the example of RFC 1071."""

from __future__ import annotations

import random
import struct

import pytest

from stack.wire.checksum import checksum, ones_sum, pseudo_sum, udp_checksum


def by_words(data: bytes, start: int = 0) -> int:
    total: int = start + sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_the_example_of_the_rfc() -> None:
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert ones_sum(data) == 0xDDF2
    assert checksum(data) == 0x220D


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 20, 1499, 1500, 9000, 65536, 200_000])
def test_any_bytes(size: int) -> None:
    draw = random.Random(size)
    for _ in range(20):
        data, start = draw.randbytes(size), draw.randrange(1 << 20)
        assert ones_sum(data) == by_words(data)
        assert ones_sum(memoryview(data), start) == by_words(data, start)
        sealed = data + bytes(size % 2) + checksum(data).to_bytes(2, "big")
        assert by_words(sealed) == 0xFFFF


def test_zero_and_all_ones() -> None:
    assert (ones_sum(bytes(8)), ones_sum(b"\xff" * 8), ones_sum(b"\0\1\xff\xfe")) == (0, 0xFFFF, 0xFFFF)
    assert (checksum(b"\xff\xff"), udp_checksum(b"\xff\xff")) == (0, 0xFFFF)


def test_pseudo_header() -> None:
    addresses = bytes((10, 0, 0, 1, 10, 0, 0, 2))
    assert pseudo_sum(addresses, 17, 300) == by_words(addresses + struct.pack("!BBH", 0, 17, 300))
    wide = random.Random(1).randbytes(32)
    assert pseudo_sum(wide, 6, 70000) == by_words(wide + struct.pack("!IBBBB", 70000, 0, 0, 0, 6))
