"""The stamp in Python against Linux's vectors, and in BPF against Python."""

from __future__ import annotations

import random
import struct

from qnetpy.link.stamp import half_siphash, stamp, stamp_code, stamp_key
from stack.filter.bpf import assembler as b
from stack.filter.bpf.assembler import Assembler, Code
from stack.filter.bpf.machine import run

LINUX = [0x5814C896, 0x7E059EA6, 0x577999B1, 0x6B28096C, 0x8B31D501]
"""test_vectors_hsiphash of lib/siphash_kunit.c, 32-bit words: the message is the first 0, 4, 8, 12 and 16 of the bytes 0, 1, 2..."""


def test_half_siphash_is_that_of_linux() -> None:
    key = struct.unpack("<II", bytes(range(8)))
    for count, expected in enumerate(LINUX):
        words = struct.unpack(f"<{count}I", bytes(range(4 * count)))
        assert half_siphash(key, (*words, 4 * count << 24)) == expected


def test_keys_differ_by_cluster() -> None:
    assert stamp_key(bytes(32)) != stamp_key(bytes(31) + b"\1")
    assert stamp(stamp_key(bytes(32)), bytes(32)) != stamp(stamp_key(bytes(31) + b"\1"), bytes(32))


def compared(key: tuple[int, int], expected: bytes) -> Code:
    asm = Assembler()
    asm.op(b.LDX_IMM, 3)
    asm.code(stamp_code(key))
    asm.branch(b.JEQ, int.from_bytes(expected, "big"), "same")
    asm.op(b.RET, 0)
    asm.label("same")
    asm.op(b.RET, 1)
    return asm.assemble()


def test_bpf_computes_the_same() -> None:
    chance = random.Random(1)
    for _ in range(100):
        key = chance.getrandbits(32), chance.getrandbits(32)
        macs = chance.randbytes(32)
        good = stamp(key, macs)
        assert run(compared(key, good), b"abc" + macs) == 1
        place = chance.randrange(32)
        changed = macs[:place] + bytes((macs[place] ^ 1,)) + macs[place + 1 :]
        assert run(compared(key, good), b"abc" + changed) == 0
        assert run(compared((key[0] ^ 1, key[1]), good), b"abc" + macs) == 0
