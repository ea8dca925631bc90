"""Payloads of the handshake: bytes to value, value to bytes, truncation and noise."""

from __future__ import annotations

import random
import string

import pytest

from qnetpy.identity.certificate import CERTIFICATE_MAX
from qnetpy.link.hello import HELLO, OFFER, Hello, Offer, pack_verdict, parse_hello, parse_offer, parse_verdict
from resmgr.errors import BadMessage

HELLO_ONE = Hello(0x0102030405060708, bytes(range(16)), "n1", "n2")
OFFER_ONE = Offer(1, 2, 1500, 4, 5, 6, 7, 8, bytes(range(16)), b"certificate")


def test_hello_bytes() -> None:
    expected = "0102030405060708" + bytes(range(16)).hex() + b"n1".hex().ljust(128, "0") + b"n2".hex().ljust(128, "0")
    assert HELLO_ONE.pack().hex() == expected
    assert parse_hello(bytes.fromhex(expected) + b"rest") == (HELLO_ONE, b"rest")
    assert HELLO.size == 152


def test_offer_bytes() -> None:
    numbers = "010205dc0000000400000000000000050000000000000006000000000000000700000008"
    expected = numbers + bytes(range(16)).hex() + "000b" + b"certificate".hex()
    assert OFFER_ONE.pack().hex() == expected
    assert parse_offer(bytes.fromhex(expected)) == OFFER_ONE
    assert OFFER.size == 54


def test_verdict_bytes() -> None:
    assert pack_verdict(3, 0x01020304).hex() == "03" + "00" * 7 + "0000000001020304"
    assert parse_verdict(pack_verdict(255, 2**64 - 1)) == (255, 2**64 - 1)


def test_round_trips() -> None:
    chance = random.Random(1)
    letters = string.ascii_lowercase + string.digits
    for _ in range(300):
        names = ["".join(chance.choices(letters, k=chance.randrange(1, 64))) for _ in range(2)]
        hello = Hello(chance.getrandbits(64), chance.randbytes(16), names[0], chance.choice([names[1], ""]))
        assert parse_hello(hello.pack()) == (hello, b"")
        one, two, three, four, five, six, seven, eight = (chance.getrandbits(bits) for bits in (8, 8, 16, 32, 64, 64, 64, 32))
        certificate = chance.randbytes(chance.randrange(CERTIFICATE_MAX + 1))
        offer = Offer(one, two, three, four, five, six, seven, eight, chance.randbytes(16), certificate)
        assert parse_offer(offer.pack()) == offer


def test_truncation_and_surplus() -> None:
    for length in range(HELLO.size):
        with pytest.raises(BadMessage):
            parse_hello(HELLO_ONE.pack()[:length])
    for length in range(len(OFFER_ONE.pack())):
        with pytest.raises(BadMessage):
            parse_offer(OFFER_ONE.pack()[:length])
    for length in (*range(16), 17):
        with pytest.raises(BadMessage):
            parse_verdict(bytes(length))
    with pytest.raises(BadMessage):
        parse_offer(OFFER_ONE.pack() + b"x")
    too_long = OFFER.pack(0, 0, 0, 0, 0, 0, 0, 0, bytes(16), CERTIFICATE_MAX + 1) + bytes(CERTIFICATE_MAX + 1)
    with pytest.raises(BadMessage):
        parse_offer(too_long)


@pytest.mark.parametrize("name", [b"", b"N1", b"a b", b"\xff", b"a\0b", b"../x", b"-a"])
def test_names_are_names(name: bytes) -> None:
    with pytest.raises(BadMessage, match="caller is no name"):
        parse_hello(HELLO.pack(1, bytes(16), name, b""))
    if name:
        with pytest.raises(BadMessage, match="called is no name"):
            parse_hello(HELLO.pack(1, bytes(16), b"a", name))


def test_noise() -> None:
    chance = random.Random(2)
    for _ in range(500):
        for parse in (parse_hello, parse_offer, parse_verdict):
            try:
                parse(chance.randbytes(chance.randrange(400)))
            except BadMessage:
                pass
