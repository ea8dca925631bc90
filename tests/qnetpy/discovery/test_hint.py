"""Bytes of announcements: four tests per format, and what strangers may write."""

from __future__ import annotations

import random

import pytest

from qnetpy.discovery.hint import TXT_MAX, Place, instance_name, pack_txt, parse_instance, parse_txt
from resmgr.errors import BadMessage
from resmgr.testing.formats import survives_changes

PLACE = Place(1, bytes.fromhex("0242ac110002"), 0x88B5)
TXT = b"\x03v=1\x0em=0242ac110002\x06e=88b5"
TOKEN = bytes(range(16))
NAME = "000102030405060708090a0b0c0d0e0f._qnet._udp.local."


def test_txt_from_bytes() -> None:
    assert parse_txt(TXT) == PLACE


def test_txt_to_bytes() -> None:
    assert pack_txt(PLACE) == TXT


def test_txt_round_trip() -> None:
    rng = random.Random(1)
    for _ in range(300):
        mac = bytes((rng.randrange(0, 256, 2), *rng.randbytes(4), rng.randrange(1, 256)))
        place = Place(1, mac, rng.randrange(0x600, 0x10000))
        assert parse_txt(pack_txt(place)) == place


def test_txt_without_an_ethernet_bearer() -> None:
    place = Place(1, b"", 0x88B5)
    assert pack_txt(place) == b"\x03v=1\x06e=88b5"
    assert parse_txt(pack_txt(place)) == place


def test_txt_truncation_raises_only_bad_message() -> None:
    for length in range(len(TXT)):
        with pytest.raises(BadMessage):
            parse_txt(TXT[:length])


def test_txt_ignores_unknown_keys_and_takes_the_first_of_equal_ones() -> None:
    assert parse_txt(b"\x00\x03x=y\x04flag" + TXT + b"\x03v=9" + b"\x06e=0001") == PLACE
    assert parse_txt(memoryview(TXT.replace(b"v=", b"V="))) == PLACE


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        TXT.replace(b"v=1", b"v=2"),
        TXT.replace(b"v=1", b"v=-"),
        TXT.replace(b"m=02", b"m=03"),
        TXT.replace(b"0242ac110002", b"000000000000"),
        TXT.replace(b"0242ac110002", b"ffffffffffff"),
        TXT.replace(b"0242ac110002", b"0242ac11000g"),
        TXT.replace(b"0242ac110002", b"0242ac1100 2"),
        TXT.replace(b"88b5", b"05ff"),
        TXT.replace(b"88b5", b"+8b5"),
        TXT + bytes(TXT_MAX),
    ],
)
def test_txt_refuses(wrong: bytes) -> None:
    with pytest.raises(BadMessage):
        parse_txt(wrong)


def test_txt_random_bytes_raise_only_bad_message() -> None:
    survives_changes(parse_txt, TXT, seed=2, times=2000)


def test_instance_names() -> None:
    assert instance_name(TOKEN) == NAME
    assert parse_instance(NAME) == parse_instance(NAME.upper()) == TOKEN


@pytest.mark.parametrize(
    "name", ["", NAME[1:], NAME[:-1], "x" + NAME, NAME + "x", "a." + NAME, NAME.replace("00", "\u0660\u0660"), NAME + "\n", "evil"]
)
def test_instance_refuses(name: str) -> None:
    with pytest.raises(BadMessage):
        parse_instance(name)
