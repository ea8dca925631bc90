"""IPv4 and IPv6 headers: parsed, cut short at every length, and what hostile ones say."""

from __future__ import annotations

import random
import struct

import pytest

from stack.frame import BadFrame
from stack.wire.ip import EXTENSIONS_MAX, IpHeader, parse_ip

A4, B4 = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
A6, B6 = bytes.fromhex("fd00" + "0" * 27 + "1"), bytes.fromhex("fd00" + "0" * 27 + "2")


def ipv4(payload: bytes, protocol: int = 106, options: bytes = b"", fragment: int = 0) -> bytes:
    header = bytearray(20 + len(options))
    first = 0x40 | len(header) // 4
    struct.pack_into("!BBHHHBBH4s4s", header, 0, first, 0, len(header) + len(payload), 7, fragment, 64, protocol, 0, A4, B4)
    header[20:] = options
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!H", header, 10, ~total & 0xFFFF)
    return bytes(header) + payload


def ipv6(payload: bytes, following: int = 106) -> bytes:
    return struct.pack("!IHBB16s16s", 0x60000000, len(payload), following, 64, A6, B6) + payload


def test_both_versions() -> None:
    assert parse_ip(ipv4(b"hello") + bytes(35)) == IpHeader(4, A4, B4, 106, 20, 25)
    assert parse_ip(ipv4(b"hello", 17, bytes(8))) == IpHeader(4, A4, B4, 17, 28, 33)
    assert parse_ip(ipv6(b"hello") + bytes(3)) == IpHeader(6, A6, B6, 106, 40, 45)
    for packet in (ipv4(b"x"), ipv6(b"x")):
        assert parse_ip(memoryview(packet)) == parse_ip(bytearray(packet)) == parse_ip(packet)


def test_fragments_say_so() -> None:
    assert not parse_ip(ipv4(b"x", fragment=0x4000)).fragment, "don't fragment"
    assert parse_ip(ipv4(b"x", fragment=0x2000)).fragment
    assert parse_ip(ipv4(b"x", fragment=0x0001)).fragment
    whole = parse_ip(ipv6(bytes((106, 0, 0, 0)) + bytes(4) + b"x", 44))
    assert (whole.protocol, whole.payload, whole.fragment) == (106, 48, False)
    assert parse_ip(ipv6(bytes((106, 0, 0, 1)) + bytes(4) + b"x", 44)).fragment
    later = parse_ip(ipv6(bytes((60, 0, 0, 8)) + bytes(4) + b"\x3c\xff", 44))
    assert (later.fragment, later.protocol) == (True, 60), "what is behind it is in the middle of something"


def test_extension_headers_are_passed_over() -> None:
    chain = bytes((43, 0)) + bytes(6) + bytes((60, 1)) + bytes(14) + bytes((51, 0)) + bytes(6) + bytes((106, 1)) + bytes(10) + b"payload"
    found = parse_ip(ipv6(chain, 0))
    assert (found.protocol, found.end - found.payload) == (106, 7)
    endless = b"".join(bytes((60, 0)) + bytes(6) for _ in range(EXTENSIONS_MAX)) + b"x"
    with pytest.raises(BadFrame, match="too many"):
        parse_ip(ipv6(endless, 60))


@pytest.mark.parametrize("packet", [ipv4(b"hello", options=bytes(4)), ipv6(bytes((106, 0)) + bytes(6) + b"x", 60)])
def test_cut_short_at_every_length(packet: bytes) -> None:
    for length in range(len(packet)):
        with pytest.raises(BadFrame):
            parse_ip(packet[:length])


@pytest.mark.parametrize(
    "packet",
    [b"\x50" + bytes(40), b"\x00" + bytes(40), b"\x44" + ipv4(b"x")[1:], ipv4(b"x")[:2] + b"\0\x13" + ipv4(b"x")[4:]],
    ids=["version 5", "version 0", "short header length", "total length below the header"],
)
def test_wrong_fields(packet: bytes) -> None:
    with pytest.raises(BadFrame):
        parse_ip(packet)


def test_every_flipped_bit_of_an_ipv4_header_is_noticed() -> None:
    packet = ipv4(b"hello")
    for bit in range(20 * 8):
        wrong = bytearray(packet)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadFrame):
            parse_ip(wrong)


@pytest.mark.parametrize("seed", range(300))
def test_random_packets_raise_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    packet = bytearray(rng.choice((ipv4(rng.randbytes(30), options=bytes(8)), ipv6(rng.randbytes(60), rng.choice((0, 43, 44, 51, 60))))))
    for _ in range(rng.randrange(4)):
        packet[rng.randrange(len(packet))] = rng.randrange(256)
    try:
        found = parse_ip(packet[: rng.randrange(len(packet) + 1)])
    except BadFrame:
        return
    assert found.payload <= found.end <= len(packet)


def test_groups() -> None:
    def to(version: int, address: bytes) -> bool:
        return IpHeader(version, A4, address, 0, 0, 0).to_group

    assert to(4, bytes((224, 0, 0, 1)))
    assert to(4, b"\xff" * 4)
    assert not to(4, bytes((240, 0, 0, 1)))
    assert not to(4, A4)
    assert to(6, b"\xff\x02" + bytes(14))
    assert not to(6, A6)
