"""The assembler: encodings as the instruction set has them, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from resmgr.errors import Misuse
from stack.ebpf.assembler import R0, R1, R2, R3, R6, R10, Alu, Assembler, Jump, Width
from stack.ebpf.constants import Helper

Build = Callable[[Assembler], None]

ENCODINGS: list[tuple[Build, str]] = [
    (lambda a: a.constant(R0, 2), "b700000002000000"),
    (lambda a: a.constant(R0, -1), "b7000000ffffffff"),
    (lambda a: a.move(R6, R1), "bf16000000000000"),
    (lambda a: a.compute(Alu.ADD, R2, -8), "07020000f8ffffff"),
    (lambda a: a.combine(Alu.SUB, R3, R2), "1f23000000000000"),
    (lambda a: a.big_endian(R0, 16), "dc00000010000000"),
    (lambda a: a.load(Width.W, R2, R1, 4), "6112040000000000"),
    (lambda a: a.load(Width.H, R2, R1, 12), "69120c0000000000"),
    (lambda a: a.load(Width.B, R2, R1, 0), "7112000000000000"),
    (lambda a: a.load(Width.DW, R2, R1, 0), "7912000000000000"),
    (lambda a: a.store(Width.DW, R10, -8, R1), "7b1af8ff00000000"),
    (lambda a: a.store_constant(Width.W, R10, -4, 7), "620afcff07000000"),
    (lambda a: a.store_constant(Width.W, R10, -4, 0xFFFFFFFF), "620afcffffffffff"),
    (lambda a: a.add_to(R0, 8, R1), "db10080000000000"),
    (lambda a: a.map(R1, 5), "18110000050000000000000000000000"),
    (lambda a: a.call(Helper.MAP_LOOKUP), "8500000001000000"),
    (lambda a: a.exit(), "9500000000000000"),
]


@pytest.mark.skipif(sys.byteorder != "little", reason="the table is of little-endian machines")
@pytest.mark.parametrize(("build", "expected"), ENCODINGS)
def test_encodings(build: Build, expected: str) -> None:
    assembler = Assembler()
    build(assembler)
    code = assembler.assemble()
    assert code.instructions.hex() == expected
    assert code.count == len(expected) // 16 == len(code.text)


def test_jumps_count_from_the_next_instruction_and_a_map_takes_two_places() -> None:
    assembler = Assembler()
    assembler.label("start")
    assembler.branch(Jump.EQ, R1, 0, "end")
    assembler.map(R1, 3)
    assembler.branch_register(Jump.GT, R1, R2, "start")
    assembler.label("end")
    assembler.jump("start")
    code = assembler.assemble().instructions
    offsets = [int.from_bytes(code[place + 2 : place + 4], sys.byteorder, signed=True) for place in range(0, len(code), 8)]
    assert offsets == [3, 0, 0, -4, -5]


@pytest.mark.parametrize(
    "build",
    [
        lambda a: a.jump("nowhere"),
        lambda a: a.load(Width.W, 11, R1, 0),
        lambda a: a.load(Width.W, R0, R1, 1 << 15),
        lambda a: a.constant(R0, 1 << 31),
        lambda a: a.constant(R0, 1 << 32),
        lambda a: a.store_constant(Width.DW, R10, -8, 1 << 31),
        lambda a: a.big_endian(R0, 8),
        lambda a: (a.label("twice"), a.label("twice")),
    ],
)
def test_what_would_be_another_instruction_is_refused(build: Build) -> None:
    assembler = Assembler()

    def assemble() -> None:
        build(assembler)
        assembler.assemble()

    with pytest.raises(Misuse):
        assemble()


def test_a_jump_too_far_is_refused() -> None:
    assembler = Assembler()
    assembler.jump("far")
    for _ in range(1 << 15):
        assembler.exit()
    assembler.label("far")
    assembler.exit()
    with pytest.raises(Misuse, match="instructions away"):
        assembler.assemble()


def test_fresh_labels_differ() -> None:
    assembler = Assembler()
    assert assembler.fresh() != assembler.fresh()
