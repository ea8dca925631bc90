"""Requests to /dev/crypto and their answers: round trips, every cut, and lengths that lie."""

from __future__ import annotations

import struct

import pytest

from resmgr.errors import BadMessage
from resmgr.testing.formats import refuses_cuts, survives_changes
from stack.cryptodev.protocol import (
    BATCH_HEAD,
    ITEMS_MAX,
    Listed,
    Operation,
    SessionRequest,
    pack_batch,
    pack_free,
    pack_results,
    parse_batch,
    parse_batch_head,
    parse_free,
    parse_listing,
    parse_results,
    reply_size,
)

SESSION = SessionRequest("aes-128-gcm", bytes(range(16)), 8, "never")
NONCES, AADS, ITEMS = [bytes(12), bytes([1]) * 12], [b"", b"head"], [b"text", b""]


def batch(data: bytes) -> tuple[int, int, list[bytes], list[bytes], list[bytes]]:
    session, operation, count = parse_batch_head(data)
    found = parse_batch(data, count, 12)
    return session, operation, [bytes(one) for one in found.nonces], [bytes(one) for one in found.aads], [bytes(one) for one in found.items]


def test_round_trips() -> None:
    assert SessionRequest.parse(SESSION.pack()) == SESSION
    assert SESSION.pack().hex() == "02080b000010" + b"aes-128-gcm".hex() + bytes(range(16)).hex()
    assert "000102" not in repr(SESSION), "keys do not get into logs"
    assert parse_free(pack_free(7)) == 7
    packed = b"".join(pack_batch(3, Operation.SEAL, NONCES, AADS, ITEMS))
    assert batch(packed) == (3, 1, NONCES, AADS, ITEMS)
    assert parse_results(pack_results([b"one", None, b""]), 3) == [b"one", None, b""]
    one = Listed("aead", "ccmp-128", 16, 16, 13, 8, "openssl")
    assert parse_listing(one.line().encode() + b"\n") == [one]


def test_no_cut_and_no_lie_is_taken() -> None:
    refuses_cuts(SessionRequest.parse, SESSION.pack())
    refuses_cuts(parse_free, pack_free(7))
    packed = b"".join(pack_batch(3, Operation.SEAL, NONCES, AADS, ITEMS))
    refuses_cuts(batch, packed)
    refuses_cuts(lambda data: parse_results(data, 3), pack_results([b"one", None, b"two"]))
    for data, parse in ((SESSION.pack(), SessionRequest.parse), (pack_free(7), parse_free), (packed, batch)):
        with pytest.raises(BadMessage):
            parse(data + b"x")
    with pytest.raises(BadMessage):
        parse_results(pack_results([b"one"]) + b"x", 1)
    for seed in range(4):
        survives_changes(SessionRequest.parse, SESSION.pack(), seed)
        survives_changes(batch, packed, seed)
        survives_changes(lambda data: parse_results(data, 3), pack_results([b"one", None, b"two"]), seed)


@pytest.mark.parametrize("count", [2**16 - 1, ITEMS_MAX + 1])
def test_a_count_that_lies_costs_nothing(count: int) -> None:
    with pytest.raises(BadMessage):
        parse_batch_head(BATCH_HEAD.pack(1, 1, count))
    with pytest.raises(BadMessage):
        parse_batch(BATCH_HEAD.pack(1, 1, ITEMS_MAX), ITEMS_MAX, 12)
    huge = BATCH_HEAD.pack(1, 1, 2) + struct.pack("!IIII", 2**32 - 1, 2**32 - 1, 2**32 - 1, 5)
    with pytest.raises(BadMessage):
        parse_batch(huge + bytes(100), 2, 12)


def test_other_nonsense() -> None:
    for operation in (0, 8, 255):
        with pytest.raises(BadMessage):
            parse_batch_head(BATCH_HEAD.pack(1, operation, 1))
    for data in (b"\3" + SESSION.pack()[1:], SESSION.pack().replace(b"aes", b"\xffes"), struct.pack("!BBBxH", 0, 0, 0, 0)):
        with pytest.raises(BadMessage):
            SessionRequest.parse(data)
    for text in (b"aead\n", b"\xff", b"a b c d e f g h i j k\n"):
        with pytest.raises(BadMessage):
            parse_listing(text)
    assert parse_listing(b"") == []


@pytest.mark.parametrize(
    ("operation", "results", "each"),
    [
        (Operation.SEAL, [bytes(20), bytes(16)], 16),
        (Operation.OPEN, [bytes(4), None], 16),
        (Operation.ENCRYPT, [bytes(4), b""], 0),
        (Operation.TAG, [bytes(32), bytes(32)], 32),
        (Operation.VERIFY, [b"", None], 32),
        (Operation.DIGEST, [bytes(64), bytes(64)], 64),
    ],
)
def test_the_size_of_a_reply_is_known_before(operation: Operation, results: list[bytes | None], each: int) -> None:
    assert len(pack_results(results)) <= reply_size(operation, 2, 4, each)
