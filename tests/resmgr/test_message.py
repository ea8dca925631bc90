"""Wire formats of message passing: bytes to values, values to bytes, and every truncation and mutation raises BadMessage or parses."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from resmgr import message as wire
from resmgr.errors import BadMessage

BLOCK = wire.ConnectBlock(0, 7, 16, 4711, 1000, 100, (4, 24, 27))
BLOCK_BYTES = bytes.fromhex("002a000300000000000000070000001000001267000003e800000064ff0000000004000000180000001b")
TOLD = wire.ConnectBlock(3, 7, 16, 4711, 1000, 100, (), 9, "nöde", ("admin", "user"))

SEND = bytes.fromhex("01010a0200000005000000020000004000000000000003e8") + BLOCK_BYTES + b"hello"
REPLY = bytes.fromhex("0201000000000005000040000000000000000003") + b"abc"
READ = bytes.fromhex("03000a00000000050000000b000100000000000000004000")
READ_DATA = bytes.fromhex("04000a00000000050000000b00000004") + b"data"
WRITE = bytes.fromhex("05000a00000000050000000000000010") + b"pushed"
PULSE = bytes.fromhex("06010a00000000020000001affffffffffffffff") + BLOCK_BYTES
UNBLOCK = bytes.fromhex("07000a0000000005")
EVENT = bytes.fromhex("0b000a00000000020000000000000063")
HELLO = bytes.fromhex("0a00000000000000000000010000126700100000") + b"n1"

PARSERS: list[tuple[bytes, Callable[[bytes], object]]] = [
    (SEND, wire.parse_send),
    (REPLY, wire.parse_reply),
    (READ, wire.parse_read),
    (READ_DATA, wire.parse_read_data),
    (WRITE, wire.parse_write),
    (PULSE, wire.parse_pulse),
    (UNBLOCK, wire.parse_bare),
    (HELLO, wire.parse_hello),
    (wire.pack_block(TOLD), lambda view: wire.parse_block(view, 0)),
    (BLOCK_BYTES, lambda view: wire.parse_block(view, 0)),
    (EVENT, wire.parse_event),
]


def plain(values: tuple[object, ...]) -> tuple[object, ...]:
    """With bytes in place of views."""
    return tuple(bytes(value) if isinstance(value, memoryview) else value for value in values)


def test_block_both_ways() -> None:
    assert wire.pack_block(BLOCK) == BLOCK_BYTES
    assert wire.parse_block(BLOCK_BYTES, 0) == (BLOCK, len(BLOCK_BYTES))
    packed = wire.pack_block(TOLD)
    assert wire.parse_block(b"xx" + packed + b"yy", 2) == (TOLD, 2 + len(packed))


def test_send_both_ways() -> None:
    assert plain(wire.parse_send(SEND)) == (1, 10, 2, 5, 2, 64, 1000, BLOCK, b"hello")
    assert wire.SEND_HEADER.pack(wire.SEND, 1, 10, 2, 5, 2, 64, 1000) + wire.pack_block(BLOCK) + b"hello" == SEND


def test_others_both_ways() -> None:
    assert wire.parse_event(EVENT) == (2, 99)
    assert wire.pack_event(2, 99, 10) == EVENT
    with pytest.raises(BadMessage):
        wire.parse_event(bytes(wire.pack_event(2, 0, 10)))
    assert plain(wire.parse_reply(REPLY)) == (1, 0, 5, 0x4000, 3, b"abc")
    assert wire.REPLY_HEADER.pack(wire.REPLY, 1, 0, 0, 5, 0x4000, 3) + b"abc" == REPLY
    assert wire.parse_reply(wire.REPLY_HEADER.pack(wire.REPLY, 0, 0, 0, 5, 0, -9))[4] == -9
    assert wire.parse_read(READ) == (5, 11, 0x10000, 0x4000)
    assert wire.READ_HEADER.pack(wire.READ, 0, 10, 0, 5, 11, 0x10000, 0x4000) == READ
    assert plain(wire.parse_read_data(READ_DATA)) == (5, 11, 4, b"data")
    assert wire.READ_DATA_HEADER.pack(wire.READ_DATA, 0, 10, 0, 5, 11, 4) + b"data" == READ_DATA
    assert plain(wire.parse_write(WRITE)) == (5, 16, b"pushed")
    assert wire.WRITE_HEADER.pack(wire.WRITE, 0, 10, 0, 5, 16) + b"pushed" == WRITE
    assert wire.parse_pulse(PULSE) == (10, 2, 26, -1, BLOCK)
    assert wire.PULSE_HEADER.pack(wire.PULSE, 1, 10, 0, 2, 26, -1) + BLOCK_BYTES == PULSE
    assert wire.parse_bare(UNBLOCK) == 5
    assert wire.HEADER.pack(wire.UNBLOCK, 0, 10, 0, 5) == UNBLOCK
    assert wire.parse_hello(HELLO) == (1, 0x1267, 0x100000, "n1")
    assert wire.pack_hello(0x1267, 0x100000, "n1") == HELLO


@pytest.mark.parametrize("number", range(len(PARSERS)))
def test_truncation_at_every_length(number: int) -> None:
    whole, parse = PARSERS[number]
    parse(whole)
    # SEND, REPLY, WRITE and HELLO end in bytes of any length: cutting those leaves a message that is shorter, not wrong.
    fixed = {0: len(SEND) - 5, 1: len(REPLY) - 3, 4: len(WRITE) - 6, 7: len(HELLO) - 2}.get(number, len(whole))
    for length in range(fixed):
        with pytest.raises(BadMessage):
            parse(whole[:length])


@pytest.mark.parametrize("number", range(len(PARSERS)))
def test_random_changes_raise_only_bad_message(number: int) -> None:
    whole, parse = PARSERS[number]
    generator = random.Random(number)
    for _ in range(3000):
        changed = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        try:
            parse(bytes(changed[: generator.randint(1, len(changed))]))
        except BadMessage:
            pass


def test_blocks_round_trip_from_seed() -> None:
    generator = random.Random(1)
    for _ in range(500):
        number = generator.getrandbits
        told = generator.random() < 0.5
        block = wire.ConnectBlock(
            number(32),
            number(32),
            number(32),
            number(32),
            number(32),
            number(32),
            tuple(number(32) for _ in range(generator.randint(0, 5))),
            number(32) if told else 0,
            "n" * generator.randint(0, 255) if told else None,
            tuple("r" * generator.randint(0, 40) for _ in range(generator.randint(0, 5))) if told else (),
        )
        assert wire.parse_block(wire.pack_block(block), 0)[0] == block


def test_a_client_in_too_many_groups_is_shown_with_the_first() -> None:
    block = BLOCK._replace(groups=tuple(range(1000)))
    assert wire.parse_block(wire.pack_block(block), 0)[0].groups == tuple(range(wire.GROUPS_MAX))


@pytest.mark.parametrize(
    ("parse", "view"),
    [
        (wire.parse_send, wire.SEND_HEADER.pack(1, 0, 0, 0, 1, 1, 0, 3) + b"four"),
        (wire.parse_send, wire.SEND_HEADER.pack(1, 2, 0, 0, 1, 1, 0, 3)),
        (wire.parse_send, wire.SEND_HEADER.pack(1, 0, 0, 0, 1, 1, 0, 1 << 63)),
        (wire.parse_reply, wire.REPLY_HEADER.pack(2, 0, 0, 0, 1, 0, -9) + b"x"),
        (wire.parse_reply, wire.REPLY_HEADER.pack(2, 0, 0, 0, 1, 0, -(1 << 62))),
        (wire.parse_read, wire.READ_HEADER.pack(3, 0, 0, 0, 1, 1, wire.CHUNK_MAX + 1, 0)),
        (wire.parse_read, wire.READ_HEADER.pack(3, 0, 0, 0, 1, 1, 1, 1 << 63)),
        (wire.parse_read_data, wire.READ_DATA_HEADER.pack(4, 0, 0, 0, 1, 1, -9) + b"x"),
        (wire.parse_read_data, wire.READ_DATA_HEADER.pack(4, 0, 0, 0, 1, 1, 2) + b"x"),
        (wire.parse_write, wire.WRITE_HEADER.pack(5, 0, 0, 0, 1, 1 << 63) + b"x"),
        (wire.parse_pulse, wire.PULSE_HEADER.pack(6, 0, 0, 0, 1, 1, 1) + b"x"),
    ],
)
def test_contradictions(parse: Callable[[bytes], object], view: bytes) -> None:
    with pytest.raises(BadMessage):
        parse(view)


def test_parsing_a_send_is_cheap() -> None:
    """Beside the one call that it cannot do without; the point is that nobody adds a microsecond unseen."""
    send = wire.SEND_HEADER.pack(1, 0, 10, 0, 5, 2, 64, 64) + bytes(64)

    def seconds(call: Callable[[bytes], object]) -> float:
        best = 1.0
        for _ in range(9):
            began = time.process_time()
            for _ in range(2000):
                call(send)
            best = min(best, time.process_time() - began)
        return best

    assert seconds(wire.parse_send) < 12 * seconds(wire.SEND_HEADER.unpack_from)
