"""The stamp at the end of an INITIATION: a keyed checksum that a kernel's packet filter can compute, so that a flood of INITIATIONs from
somebody without the cluster secret ends there. docs/protocol/link.md, "Under attack".

It is HalfSipHash-1-3 (Aumasson and Bernstein's SipHash with 32-bit words, as Linux's `hsiphash`) of mac1 and mac2, 32 bits, once in
Python for the sender and once in classic BPF for the receiver. It protects nothing but time: what passes is checked by mac1 all the same,
so that a guess (1 in 2^32) or a break gets a flood back to where it was without a stamp.
"""

from __future__ import annotations

import hashlib
import struct

from qnetpy.link.constants import MAC_SIZE, STAMP_SIZE
from stack.filter.bpf import assembler as b
from stack.filter.bpf.assembler import Assembler, Code

_COUNT = 2 * MAC_SIZE // 4
_WORDS = struct.Struct(f"!{_COUNT}I")
_LAST = 2 * MAC_SIZE << 24
"""The final block: the length, as SipHash pads."""
_MASK = 0xFFFFFFFF
_BLOCKS = 4
"""The word of memory where a program keeps the first block; below is the state."""
Key = tuple[int, int]


def stamp_key(secret: bytes) -> Key:
    """Of a cluster: two words, big-endian, of BLAKE2s with its own personalisation, so that they tell nothing of the other keys."""
    first, second = struct.unpack("!II", hashlib.blake2s(secret, person=b"qnetstmp", digest_size=8).digest())
    return first, second


def stamp(key: Key, macs: bytes) -> bytes:
    """Of an INITIATION with these mac1 and mac2, 32 bytes."""
    return half_siphash(key, (*_WORDS.unpack(macs), _LAST)).to_bytes(STAMP_SIZE, "big")


def _start(key: Key) -> tuple[int, int, int, int]:
    return key[0], key[1], 0x6C796765 ^ key[0], 0x74656462 ^ key[1]


def half_siphash(key: Key, blocks: tuple[int, ...]) -> int:
    """HalfSipHash-1-3 of whole blocks, the last of which holds the length."""
    state = _start(key)
    for block in blocks:
        v0, v1, v2, v3 = state
        v0, v1, v2, v3 = _round(v0, v1, v2, v3 ^ block)
        state = v0 ^ block, v1, v2, v3
    v0, v1, v2, v3 = state
    v2 ^= 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v1 ^ v3


def _rotated(word: int, count: int) -> int:
    return (word << count | word >> 32 - count) & _MASK


def _round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0 = (v0 + v1) & _MASK
    v1 = _rotated(v1, 5) ^ v0
    v0 = _rotated(v0, 16)
    v2 = (v2 + v3) & _MASK
    v3 = _rotated(v3, 8) ^ v2
    v0 = (v0 + v3) & _MASK
    v3 = _rotated(v3, 7) ^ v0
    v2 = (v2 + v1) & _MASK
    v1 = _rotated(v1, 13) ^ v2
    v2 = _rotated(v2, 16)
    return v0, v1, v2, v3


def stamp_code(key: Key) -> Code:
    """BPF: A = the stamp of the mac1 and mac2 at X. Uses memory 0 to 12, and X."""
    asm = Assembler()
    for number in range(_COUNT):
        asm.op(b.LD_W_IND, 4 * number)
        asm.op(b.ST, _BLOCKS + number)
    asm.op(b.LD_IMM, _LAST)
    asm.op(b.ST, _BLOCKS + _COUNT)
    for number, word in enumerate(_start(key)):
        asm.op(b.LD_IMM, word)
        asm.op(b.ST, number)
    for block in range(_BLOCKS, _BLOCKS + _COUNT + 1):
        _xor(asm, 3, block)
        _assemble_round(asm)
        _xor(asm, 0, block)
    asm.op(b.LD_IMM, 0xFF)
    asm.op(b.TAX)
    asm.op(b.LD_MEM, 2)
    asm.op(b.XOR_X)
    asm.op(b.ST, 2)
    for _ in range(3):
        _assemble_round(asm)
    asm.op(b.LDX_MEM, 3)
    asm.op(b.LD_MEM, 1)
    asm.op(b.XOR_X)
    return asm.assemble()


def _xor(asm: Assembler, one: int, other: int) -> None:
    asm.op(b.LDX_MEM, other)
    asm.op(b.LD_MEM, one)
    asm.op(b.XOR_X)
    asm.op(b.ST, one)


def _add(asm: Assembler, one: int, other: int) -> None:
    asm.op(b.LDX_MEM, other)
    asm.op(b.LD_MEM, one)
    asm.op(b.ADD_X)
    asm.op(b.ST, one)


def _rotate(asm: Assembler, one: int, count: int, other: int | None = None) -> None:
    """Rotate to the left, then exclusive-or with *other*."""
    asm.op(b.LD_MEM, one)
    asm.op(b.RSH_K, 32 - count)
    asm.op(b.TAX)
    asm.op(b.LD_MEM, one)
    asm.op(b.LSH_K, count)
    asm.op(b.OR_X)
    if other is not None:
        asm.op(b.LDX_MEM, other)
        asm.op(b.XOR_X)
    asm.op(b.ST, one)


def _assemble_round(asm: Assembler) -> None:
    _add(asm, 0, 1)
    _rotate(asm, 1, 5, 0)
    _rotate(asm, 0, 16)
    _add(asm, 2, 3)
    _rotate(asm, 3, 8, 2)
    _add(asm, 0, 3)
    _rotate(asm, 3, 7, 0)
    _add(asm, 2, 1)
    _rotate(asm, 1, 13, 2)
    _rotate(asm, 2, 16)
