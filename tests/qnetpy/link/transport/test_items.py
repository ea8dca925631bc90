"""Formats of the transport's items: bytes to value, value to bytes, seeded round trips, truncation, and nonsense."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from qnetpy.link.transport.constants import ACK_DELAY_UNIT, MAX_MESSAGE
from qnetpy.link.transport.items import (
    ACK_HEAD,
    CHALLENGE_HEAD,
    CLOSE_HEAD,
    CREDIT,
    DATA_HEAD,
    PATH,
    RESPONSE,
    ROUTE,
    START_HEAD,
    Ack,
    Challenge,
    Close,
    Credit,
    Data,
    Item,
    Packet,
    Padding,
    PathNews,
    PathState,
    Ping,
    Response,
    Start,
    decode,
)
from resmgr.errors import BadMessage

KNOWN: list[tuple[str, Item]] = [
    ("00 00 00", Padding(3)),
    ("01", Ping()),
    ("02 00 0003 0000000000000009 00000002", Ack(48e-6, ((7, 10),))),
    ("02 01 0000 0000000000000014 00000000 00000003 00000005", Ack(0.0, ((12, 17), (20, 21)))),
    ("03 0a 0002 0000000000000007 00000005 00000009 4142", Data(10, 7, 5, 9, b"AB")),
    ("04 3f 0001 0000000000000007 00000000 00000009 0000000000000063 00000004 43", Start(63, 7, 9, 99, 4, b"C")),
    ("04 00 0000 0000000000000001 00000000 00000000 ffffffffffffffff 00000000", Start(0, 1, 0, (1 << 64) - 1, 0, b"")),
    ("05 0000000000100000", Credit(1 << 20)),
    ("06 03 0001 627965", Close(1, "bye")),
    ("04 7f 0001 0000000000000007 00000000 00000009 0000000000000063 00000004 0302 43", Start(63, 7, 9, 99, 4, b"C", (3, 2))),
    ("07 05 06 0102030405060708 020000000001", Challenge(5, bytes(range(1, 9)), bytes((2, 0, 0, 0, 0, 1)))),
    ("07 00 00 ffffffffffffffff", Challenge(0, b"\xff" * 8, b"")),
    ("08 0102030405060708", Response(bytes(range(1, 9)))),
    ("09 07 00 00000009", PathNews(7, PathState.CLOSED, 9)),
    ("09 ff 02 ffffffff", PathNews(255, PathState.UP, 0xFFFFFFFF)),
]


@pytest.mark.parametrize(("text", "item"), KNOWN)
def test_bytes_to_value(text: str, item: Item) -> None:
    packet = decode(bytes.fromhex(text))

    assert packet == Packet(False, (item,))


@pytest.mark.parametrize(("text", "item"), KNOWN)
def test_value_to_bytes(text: str, item: Item) -> None:
    assert item.pack() == bytes.fromhex(text)


def test_several_items_and_urgent() -> None:
    packet = Packet(True, (Ack(0.0, ((0, 4),)), Ping(), Start(1, 2, 3, 4, 1, b"abc"), Data(5, 6, 7, 10, b"def"), Padding(5)))

    assert decode(packet.pack()) == packet
    assert packet.pack()[0] == 0x82


def random_item(random: Random) -> Item:
    kind = random.randrange(9)
    total = random.choice([2, 1400, MAX_MESSAGE])
    size = random.randrange(1, min(total, 1000))
    if kind == 0:
        return Ping()
    if kind == 1:
        ranges = []
        bound = random.getrandbits(random.choice([4, 40]))
        for _ in range(random.choice([1, 1, 2, 32, 200])):
            start = bound + random.randrange(1, 1 << random.randrange(1, 20))
            bound = start + random.randrange(1, 1 << random.randrange(1, 20))
            ranges.append((start, bound))
        return Ack(random.getrandbits(16) * ACK_DELAY_UNIT, tuple(ranges))
    if kind == 2:
        offset = random.randrange(1, total - size + 1)
        return Data(random.randrange(64), random.randrange(1, 1 << 64), offset, total, random.randbytes(size))
    if kind == 3:
        message = random.randrange(1, 1 << 64)
        return Start(
            random.randrange(64),
            message,
            total,
            random.getrandbits(64),
            random.randrange(min(message, 1 << 32)),
            random.randbytes(size),
            random.choice([None, (random.randrange(4), random.randrange(256))]),
        )
    if kind == 4:
        return Credit(random.getrandbits(64))
    if kind == 5:
        return Close(random.getrandbits(16), "".join(random.choice("aé☃ ") for _ in range(random.randrange(30))))
    if kind == 6:
        return Challenge(random.randrange(256), random.randbytes(8), random.randbytes(random.randrange(33)))
    if kind == 7:
        return Response(random.randbytes(8))
    return PathNews(random.randrange(256), random.choice(list(PathState)), random.getrandbits(32))


@pytest.mark.parametrize("seed", range(50))
def test_round_trip(seed: int) -> None:
    random = Random(seed)
    items = [random_item(random) for _ in range(random.randrange(1, 6))]
    if random.random() < 0.3:
        items.append(Padding(random.randrange(1, 2000)))
    packet = Packet(random.random() < 0.5, tuple(items))

    assert decode(packet.pack()) == packet


@pytest.mark.parametrize(("text", "item"), KNOWN)
def test_truncation_at_every_length(text: str, item: Item) -> None:
    whole = bytes.fromhex(text)
    for length in range(len(whole)):
        if isinstance(item, Padding) and length:
            continue
        with pytest.raises(BadMessage):
            decode(whole[:length])
        if length:
            with pytest.raises(BadMessage):
                decode(b"\x01" + whole[:length])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0a", "unknown item"),
        ("07 01 21 0102030405060708" + "41" * 33, "address length"),
        ("07 01 06 0102030405060708 41", "address length"),
        ("09 01 04 00000001", "PATH state"),
        ("04 40 0001 0000000000000005 00000000 00000001 0000000000000001 00000000 0400 41", "route policy"),
        ("04 80 0001 0000000000000005 00000000 00000001 0000000000000001 00000000 41", "priority"),
        ("7f", "unknown item"),
        ("01 81", "unknown item"),
        ("02 00 0000 0000000000000001 00000002", "below 0"),
        ("02 01 0000 0000000000000005 00000000 00000000 00000001", "empty ACK range"),
        ("02 01 0000 0000000000000005 00000000 00000001 00000000", "empty ACK range"),
        ("02 01 0000 0000000000000005 00000000 00000003 00000003", "below 0"),
        ("03 40 0001 0000000000000001 00000001 00000002 41", "priority"),
        ("03 00 0001 0000000000000000 00000001 00000002 41", "message id"),
        ("03 00 0001 0000000000000001 00000002 00000002 41", "beyond its message"),
        ("03 00 0001 0000000000000001 00000000 00000002 41", "DATA at 0"),
        ("03 00 0000 0000000000000001 00000001 00000002", "empty fragment"),
        ("03 00 0001 0000000000000001 00000001 04000001 41", "too long"),
        ("04 00 0001 0000000000000001 00000001 00000002 0000000000000001 00000000 41", "START not at 0"),
        ("04 00 0001 0000000000000005 00000000 00000001 0000000000000001 00000005 41", "behind nothing"),
        ("06 81 0001" + "41" * 129, "CLOSE reason"),
    ],
)
def test_nonsense(text: str, why: str) -> None:
    with pytest.raises(BadMessage, match=why):
        decode(bytes.fromhex(text))


def test_reason_is_made_printable() -> None:
    packet = decode(bytes.fromhex("06 04 0001 1b5b ff 41"))

    assert packet.items == (Close(1, "?[\ufffdA"),)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_raise_only_bad_message(seed: int) -> None:
    random = Random(seed)
    for _ in range(500):
        junk = bytes([random.randrange(8)]) + random.randbytes(random.randrange(80))
        try:
            decode(junk)
        except BadMessage:
            pass


STRUCTS = {
    "ACK": ACK_HEAD,
    "DATA": DATA_HEAD,
    "START": START_HEAD,
    "CREDIT": CREDIT,
    "CLOSE": CLOSE_HEAD,
    "CHALLENGE": CHALLENGE_HEAD,
    "RESPONSE": RESPONSE,
    "PATH": PATH,
    "ROUTE": ROUTE,
}


def test_protocol_page_draws_these_structs() -> None:
    page = (Path(__file__).parents[4] / "docs/protocol/transport.md").read_text()
    drawn = {}
    for line in page.splitlines():
        name, _, fields = line.partition(" ")
        if name in STRUCTS and (fields.startswith(" ") or name in ("CHALLENGE", "RESPONSE")) and "|" in fields:
            sizes = [field.split()[1] for field in fields.split("(")[0].split("|") if len(field.split()) > 1]
            drawn[name] = sum(int(size) for size in sizes if size.isdigit())

    assert drawn == {name: layout.size for name, layout in STRUCTS.items()}
