"""The assembler and the machine, against each other and against the kernel's own classic BPF."""

from __future__ import annotations

import random
import socket

import pytest

from resmgr.errors import Misuse
from stack.filter.bpf import assembler as b
from stack.filter.bpf.assembler import Assembler, Code, member
from stack.filter.bpf.attach import attach
from stack.filter.bpf.machine import run


def chosen(values: list[int]) -> Code:
    """7 for a frame whose first word is one of *values*, 9 otherwise."""
    asm = Assembler()
    asm.op(b.LD_W_ABS, 0)
    member(asm, values, "yes", "no")
    asm.label("no")
    asm.op(b.RET, 9)
    asm.label("yes")
    asm.op(b.RET, 7)
    return asm.assemble()


@pytest.mark.parametrize("count", [0, 1, 2, 16, 17, 100, 1400])
def test_member_finds_each_and_nothing_else(count: int) -> None:
    chance = random.Random(count)
    values = [chance.getrandbits(32) for _ in range(count)]
    code = chosen(values)
    assert len(code) <= 1.4 * count + 8
    assert all(jump <= 255 for _, *jumps, _ in code for jump in jumps)
    for value in [*values, 0, 0xFFFFFFFF, *(value + step for value in values[:50] for step in (-1, 1))]:
        word = value & 0xFFFFFFFF
        assert run(code, word.to_bytes(4, "big")) == (7 if word in values else 9)
    assert run(code, bytes(3)) == 0


def test_a_piece_in_another_program_does_the_same() -> None:
    piece = chosen(list(range(0, 3000, 3)))
    asm = Assembler()
    asm.op(b.LD_B_ABS, 4)
    asm.branch(b.JEQ, 1, "one", "two")
    for name in ("one", "two"):
        asm.label(name)
        asm.code(piece)
    code = asm.assemble()
    for word in (0, 1, 3, 2997, 2999):
        for kind in (1, 2):
            assert run(code, word.to_bytes(4, "big") + bytes((kind,))) == run(piece, word.to_bytes(4, "big"))


def test_jumps_backward_or_to_nowhere_are_refused() -> None:
    for text in ("nowhere", "behind"):
        asm = Assembler()
        asm.label("behind")
        asm.op(b.LD_LEN)
        asm.branch(b.JEQ, 1, text)
        asm.op(b.RET, 0)
        with pytest.raises(Misuse, match=text):
            asm.assemble()
    with pytest.raises(Misuse, match="already"):
        asm.label("behind")


def random_program(chance: random.Random) -> Code:
    """Straight-line work on random words, some branches, and an answer that depends on all of it."""
    asm = Assembler()
    for number in range(16):
        asm.op(b.LD_IMM, chance.getrandbits(32))
        asm.op(b.ST, number)
    for number in range(60):
        asm.op(chance.choice((b.LD_MEM, b.LDX_MEM)), chance.randrange(16))
        match chance.randrange(5):
            case 0:
                asm.op(chance.choice((b.ADD_X, b.OR_X, b.XOR_X)))
            case 1:
                asm.op(chance.choice((b.ADD_K, b.SUB_K, b.AND_K)), chance.getrandbits(32))
            case 2:
                asm.op(chance.choice((b.LSH_K, b.RSH_K)), chance.randrange(32))
            case 3:
                asm.op(chance.choice((b.LD_W_ABS, b.LD_H_ABS, b.LD_B_ABS)), chance.randrange(60))
            case 4:
                asm.op(b.LDX_IMM, chance.randrange(50))
                asm.op(chance.choice((b.LD_W_IND, b.LD_H_IND, b.LD_B_IND)), chance.randrange(10))
        kind, label = chance.choice((b.JEQ, b.JGT, b.JGE, b.JSET, b.JEQ_X)), f"over {number}"
        asm.branch(kind, 0 if kind == b.JEQ_X else chance.getrandbits(32), label if number % 2 else None, None if number % 2 else label)
        asm.op(chance.choice((b.TAX, b.TXA, b.LD_LEN)))
        asm.label(label)
        asm.op(chance.choice((b.ST, b.STX)), chance.randrange(16))
    asm.op(b.LD_MEM, chance.randrange(16))
    asm.branch(b.JSET, 1, "odd")
    asm.op(b.RET, 20)
    asm.label("odd")
    asm.op(b.RET, 33)
    return asm.assemble()


@pytest.mark.host
def test_the_kernel_runs_programs_as_the_machine_does() -> None:
    """The kernel keeps as many bytes of a datagram as a program returns, and drops it at 0."""
    chance = random.Random(1)
    results = set()
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        far.setblocking(False)
        for _ in range(200):
            code = random_program(chance)
            attach(far, code)
            frame = chance.randbytes(chance.choice((64, 64, 40)))
            near.send(frame)
            try:
                kept = len(far.recv(100))
            except BlockingIOError:
                kept = 0
            assert kept == run(code, frame)
            results.add(kept)
    assert results == {0, 20, 33}
