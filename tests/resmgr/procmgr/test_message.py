"""Formats of the process manager: bytes to value, value to bytes, round trip, truncation."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable

import pytest

from resmgr.errors import BadMessage
from resmgr.procmgr import message, nodefacts
from resmgr.procmgr.message import Ended, Row, Scheduling, Spawn
from resmgr.procmgr.nodefacts import NodeFacts
from resmgr.testing.formats import refuses_cuts, survives_changes

SPAWN = Spawn((b"ls", b"-l"), (b"A=b",), message.SPAWN_PTY | message.SPAWN_STDIN, b"/tmp", b"eve", 0o27, 24, 80)
SPAWN_BYTES = bytes.fromhex(
    "0200 0000 00000005 000000000000000000000017 0018 0050 0002 0001 0003 0004 0000 14 00 00 00"
    "00000002 00000002 00000003657665 2f746d70 6c73 2d6c 413d62"
)
PLACED = Spawn(
    (b"top",), (), message.SPAWN_STDERR, b"", b"", 0o22, 0, 0, b"/dev/tty2", -5, Scheduling.IDLE, ((7, 1024), (4, message.UNLIMITED))
)
PLACED_BYTES = bytes.fromhex(
    "0200 0000 00000010 000000000000000000000012 0000 0000 0001 0000 0000 0000 0009 0f 02 02 00"
    "00000007 0000000000000400 00000004 ffffffffffffffff 00000003 2f6465762f74747932 746f70"
)
ROW = Row(7, 1, 1000, "S", -5, 2, 4096, 1.5, b"sh", b"sh\0-c", b"eve", 99)
ROW_BYTES = bytes.fromhex(
    "00000007 00000001 000003e8 53 00 000f 00000002 0000000000001000 000000000016e360 0000000000000063 0002 0003 00000005"
    "7368 657665 7368002d63"
)
FACTS = NodeFacts(2, 99, 0.5, 1 << 30, 1 << 29, 3600, "linux", "6.1", "x86_64")
FACTS_BYTES = bytes.fromhex(
    "00000002 00000063 000001f4 0000000040000000 0000000020000000 0000000000000e10 0005 0003 0006 6c696e7578 362e31 7838365f3634"
)
STOPPED = Ended(None, 20, stopped=True)
FORMATS: list[tuple[str, bytes, object, Callable[[bytes], object], Callable[[], bytes]]] = [
    ("spawn", SPAWN_BYTES, SPAWN, message.parse_spawn, lambda: message.pack_spawn(SPAWN)),
    ("placed", PLACED_BYTES, PLACED, message.parse_spawn, lambda: message.pack_spawn(PLACED)),
    ("spawned", bytes.fromhex("0000000000000009 00000102"), (9, 258), message.parse_spawned, lambda: message.pack_spawned(9, 258)),
    (
        "read",
        bytes.fromhex("0201 0002 00000000 0000000000000009 00000003 00010000"),
        (3, 65536),
        message.parse_stream,
        lambda: message.pack_read(9, 2, 3, 65536),
    ),
    (
        "write",
        bytes.fromhex("0202 0000 00000001 0000000000000009 00000003 00000000"),
        (3, 0),
        message.parse_stream,
        lambda: message.pack_write(9, 3, True),
    ),
    (
        "signal",
        bytes.fromhex("0203 0000 00000000 0000000000000009 0000000f"),
        (15,),
        lambda data: message.parse_fixed(data, message.SIGNAL),
        lambda: message.pack_signal(9, 15),
    ),
    (
        "winsize",
        bytes.fromhex("0204 0000 00000000 0000000000000009 0018 0050 0001 0002"),
        (24, 80, 1, 2),
        lambda data: message.parse_fixed(data, message.WINSIZE),
        lambda: message.pack_winsize(9, 24, 80, 1, 2),
    ),
    ("wait", bytes.fromhex("0205 0000 00000000 0000000000000009"), (0x205, 0, 0, 9), message.parse_header, lambda: message.pack_wait(9)),
    (
        "wait for a stop",
        bytes.fromhex("0205 0000 00000001 0000000000000009"),
        (0x205, 0, 1, 9),
        message.parse_header,
        lambda: message.pack_wait(9, True),
    ),
    ("close", bytes.fromhex("0206 0000 00000000 0000000000000009"), (0x206, 0, 0, 9), message.parse_header, lambda: message.pack_close(9)),
    (
        "list",
        bytes.fromhex("0207 0000 00000000 0000000000000000 00000011"),
        (17,),
        lambda data: message.parse_fixed(data, message.LIST),
        lambda: message.pack_list(17),
    ),
    (
        "kill",
        bytes.fromhex("0208 0000 00000000 0000000000000000 00000011 00000009 0000000000000063"),
        (17, 9, 99),
        lambda data: message.parse_fixed(data, message.KILL),
        lambda: message.pack_kill(17, 9, 99),
    ),
    ("exited", bytes.fromhex("01 00 0007"), Ended(7, None), message.parse_ended, lambda: message.pack_ended(Ended(7, None))),
    ("killed", bytes.fromhex("02 01 000b"), Ended(None, 11, True), message.parse_ended, lambda: message.pack_ended(Ended(None, 11, True))),
    ("stopped", bytes.fromhex("03 00 0014"), STOPPED, message.parse_ended, lambda: message.pack_ended(STOPPED)),
    ("facts", bytes.fromhex("0209 0000 00000000 0000000000000000"), (0x209, 0, 0, 0), message.parse_header, message.pack_facts),
    ("told", FACTS_BYTES, FACTS, nodefacts.parse, lambda: nodefacts.pack(FACTS)),
    ("rows", ROW_BYTES, [ROW], message.parse_rows, lambda: message.pack_row(ROW)),
]
NAMES = [name for name, *_ in FORMATS]


@pytest.mark.parametrize(("data", "value", "parse"), [(data, value, parse) for _, data, value, parse, _ in FORMATS], ids=NAMES)
def test_from_bytes(data: bytes, value: object, parse: Callable[[bytes], object]) -> None:
    assert parse(data) == value


@pytest.mark.parametrize(("data", "pack"), [(data, pack) for _, data, _, _, pack in FORMATS], ids=NAMES)
def test_to_bytes(data: bytes, pack: Callable[[], bytes]) -> None:
    assert pack() == data


@pytest.mark.parametrize(("name", "data", "parse"), [(name, data, parse) for name, data, _, parse, _ in FORMATS], ids=NAMES)
def test_truncation_raises_only_bad_message(name: str, data: bytes, parse: Callable[[bytes], object]) -> None:
    refuses_cuts(parse, data, lambda length: name == "rows" and not length)


@pytest.mark.parametrize(("data", "parse"), [(data, parse) for _, data, _, parse, _ in FORMATS], ids=NAMES)
def test_random_changes_raise_only_bad_message(data: bytes, parse: Callable[[bytes], object]) -> None:
    survives_changes(parse, data, seed=4)


def test_round_trips() -> None:
    rng = random.Random(5)

    def word() -> bytes:
        return bytes(rng.randrange(1, 256) for _ in range(rng.randrange(1, 20)))

    for _ in range(300):
        arguments = tuple(word() for _ in range(rng.randrange(1, 6)))
        variables = tuple(b"N=" + word() for _ in range(rng.randrange(6)))
        umask = rng.choice((message.UMASK_DEFAULT, rng.randrange(0o1000)))
        spawn = Spawn(arguments, variables, rng.randrange(64), word(), word(), umask, rng.randrange(500), rng.randrange(500))
        limits = tuple((number, rng.randrange(1 << 64)) for number in rng.sample(message.LIMITS, rng.randrange(len(message.LIMITS))))
        spawn = spawn._replace(nice=rng.randrange(-20, 20), scheduling=rng.choice(list(Scheduling)), limits=limits)
        assert message.parse_spawn(message.pack_spawn(spawn)) == spawn
        ended = Ended(rng.randrange(256), None) if rng.random() < 0.5 else Ended(None, rng.randrange(1, 65), rng.random() < 0.5)
        assert message.parse_ended(message.pack_ended(ended)) == ended
        rows = [
            Row(
                rng.randrange(1 << 22),
                0,
                rng.randrange(1 << 32),
                "R",
                rng.randrange(-20, 20),
                1,
                rng.randrange(1 << 40),
                2.5,
                word(),
                word(),
                word(),
                rng.randrange(1 << 60),
            )
            for _ in range(rng.randrange(4))
        ]
        assert message.parse_rows(b"".join(map(message.pack_row, rows))) == rows


@pytest.mark.parametrize(
    "wrong",
    [
        message.pack_spawn(SPAWN._replace(arguments=())),
        message.pack_spawn(SPAWN._replace(arguments=(b"",))),
        message.pack_spawn(SPAWN._replace(arguments=(b"a\0b",))),
        message.pack_spawn(SPAWN._replace(environment=(b"novalue",))),
        message.pack_spawn(SPAWN._replace(environment=(b"=x",))),
        message.pack_spawn(SPAWN._replace(flags=128)),
        message.pack_spawn(SPAWN._replace(terminal=b"/dev/tty2")),
        message.pack_spawn(PLACED._replace(terminal=b"/tmp/file")),
        message.pack_spawn(PLACED._replace(terminal=b"/dev/../etc/passwd")),
        message.pack_spawn(PLACED._replace(nice=20)),
        message.pack_spawn(PLACED._replace(limits=((6, 1),))),
        message.pack_spawn(PLACED._replace(limits=((7, 1), (7, 2)))),
        message.pack_spawn(SPAWN._replace(umask=0o1000)),
        message.pack_spawn(SPAWN._replace(arguments=(b"x",) * (message.ARGUMENTS_MAX + 1))),
        message.pack_spawn(SPAWN._replace(environment=(b"A=",) * (message.VARIABLES_MAX + 1))),
        message.pack_spawn(SPAWN._replace(arguments=(bytes([65]) * message.SPAWN_MAX,))),
        SPAWN_BYTES + b"x",
    ],
)
def test_spawn_refuses(wrong: bytes) -> None:
    with pytest.raises(BadMessage):
        message.parse_spawn(wrong)


def test_lengths_that_overflow_are_refused() -> None:
    head = SPAWN_BYTES[: message.HEADER.size + message.SPAWN.size]
    with pytest.raises(BadMessage):
        message.parse_spawn(head + struct.pack("!III", 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF) + b"x" * 20)


def test_a_shell_sees_the_end_as_usual() -> None:
    assert Ended(3, None).shell_status == 3
    assert Ended(None, 15).shell_status == 143


@pytest.mark.parametrize(
    "wrong",
    [
        nodefacts.pack(FACTS._replace(cpus=0)),
        nodefacts.pack(FACTS._replace(os="\x1b[2J")),
        nodefacts.pack(FACTS._replace(os="é")),
        FACTS_BYTES + b"x",
        nodefacts.pack(FACTS._replace(os="x" * nodefacts.FACTS_MAX)),
    ],
)
def test_facts_refuse(wrong: bytes) -> None:
    with pytest.raises(BadMessage):
        nodefacts.parse(wrong)


def test_facts_of_this_machine_are_what_the_kernel_says() -> None:
    facts = nodefacts.read()
    assert nodefacts.parse(nodefacts.pack(facts)) == facts._replace(load=round(facts.load, 3))
    assert (facts.arch, facts.os) == (os.uname().machine, "linux")
    assert 0 < facts.free <= facts.memory
    assert facts.processes > 1
