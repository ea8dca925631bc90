"""AES (FIPS 197), encryption only, and what is made of nothing else: CTR (SP 800-38A) and CMAC (SP 800-38B, RFC 4493).

A round works on the four columns as 32-bit words, with one table for SubBytes, ShiftRows and MixColumns together; the tables are
computed. Which table entries are read depends on the key: a processor's cache tells it to whoever shares it.
"""

from __future__ import annotations

import struct

from resmgr.dispatch import Buffer

BLOCK = 16
_WORDS = struct.Struct("!4I")


def _double(value: int) -> int:
    """By x in GF(2**8)."""
    return value << 1 & 0xFF ^ (0x1B if value & 0x80 else 0)


def _sbox() -> tuple[int, ...]:
    """Inverse in GF(2**8), then the affine map. 3 generates the field: its powers, and their logarithms, give every inverse."""
    powers = [1]
    while len(powers) < 255:
        powers.append(powers[-1] ^ _double(powers[-1]))
    inverse = [0] * 256
    for exponent, power in enumerate(powers):
        inverse[power] = powers[-exponent % 255]
    return tuple(value ^ _turned(value, 1) ^ _turned(value, 2) ^ _turned(value, 3) ^ _turned(value, 4) ^ 0x63 for value in inverse)


def _turned(value: int, bits: int) -> int:
    return (value << bits | value >> 8 - bits) & 0xFF


SBOX = _sbox()


def _table(turn: int) -> tuple[int, ...]:
    words = []
    for value in SBOX:
        twice = _double(value)
        word = twice << 24 | value << 16 | value << 8 | twice ^ value
        words.append((word >> 8 * turn | word << 32 - 8 * turn) & 0xFFFFFFFF)
    return tuple(words)


_T0, _T1, _T2, _T3 = (_table(turn) for turn in range(4))


def _substituted(word: int) -> int:
    return SBOX[word >> 24] << 24 | SBOX[word >> 16 & 255] << 16 | SBOX[word >> 8 & 255] << 8 | SBOX[word & 255]


class Aes:
    """One key of 16 or 32 bytes, expanded."""

    __slots__ = ("_keys",)

    def __init__(self, key: Buffer) -> None:
        words = list(struct.unpack(f"!{len(key) // 4}I", key))
        size = len(words)
        constant = 1
        for index in range(size, 4 * (size + 7)):
            word = words[-1]
            if index % size == 0:
                word = _substituted((word << 8 | word >> 24) & 0xFFFFFFFF) ^ constant << 24
                constant = _double(constant)
            elif size > 6 and index % size == 4:
                word = _substituted(word)
            words.append(words[index - size] ^ word)
        self._keys = [tuple(words[at : at + 4]) for at in range(0, len(words), 4)]

    def encrypt(self, block: Buffer) -> bytes:
        """One block of 16 bytes."""
        first, *middle, last = self._keys
        a, b, c, d = (word ^ key for word, key in zip(_WORDS.unpack(block), first, strict=True))
        for key in middle:
            a, b, c, d = (
                _T0[a >> 24] ^ _T1[b >> 16 & 255] ^ _T2[c >> 8 & 255] ^ _T3[d & 255] ^ key[0],
                _T0[b >> 24] ^ _T1[c >> 16 & 255] ^ _T2[d >> 8 & 255] ^ _T3[a & 255] ^ key[1],
                _T0[c >> 24] ^ _T1[d >> 16 & 255] ^ _T2[a >> 8 & 255] ^ _T3[b & 255] ^ key[2],
                _T0[d >> 24] ^ _T1[a >> 16 & 255] ^ _T2[b >> 8 & 255] ^ _T3[c & 255] ^ key[3],
            )
        rows = ((a, b, c, d), (b, c, d, a), (c, d, a, b), (d, a, b, c))
        return _WORDS.pack(
            *(
                (SBOX[one >> 24] << 24 | SBOX[two >> 16 & 255] << 16 | SBOX[three >> 8 & 255] << 8 | SBOX[four & 255]) ^ key
                for (one, two, three, four), key in zip(rows, last, strict=True)
            )
        )


def xor(one: Buffer, other: Buffer) -> bytes:
    """Of the length of *one*, which is not the longer."""
    size = len(one)
    return (int.from_bytes(one, "big") ^ int.from_bytes(other[:size], "big")).to_bytes(size, "big")


def ctr(aes: Aes, block: Buffer, data: Buffer, bits: int = 128) -> bytes:
    """*data* with the stream that begins at counter block *block*, whose last *bits* count."""
    count = -(-len(data) // BLOCK)
    start = int.from_bytes(block, "big")
    mask = (1 << bits) - 1
    fixed = start & ~mask
    stream = b"".join(aes.encrypt((fixed | start + number & mask).to_bytes(BLOCK, "big")) for number in range(count))
    return xor(data, stream)


def cmac(aes: Aes, message: Buffer) -> bytes:
    """The whole tag."""
    subkey = _doubled(aes.encrypt(bytes(BLOCK)))
    *blocks, last = [bytes(message[at : at + BLOCK]) for at in range(0, len(message), BLOCK)] or [b""]
    if len(last) < BLOCK:
        subkey = _doubled(subkey)
        last = (last + b"\x80").ljust(BLOCK, b"\0")
    state = bytes(BLOCK)
    for block in (*blocks, xor(last, subkey)):
        state = aes.encrypt(xor(state, block))
    return state


def _doubled(block: bytes) -> bytes:
    """By x in GF(2**128), the most significant bit first."""
    value = int.from_bytes(block, "big") << 1
    if value >> 128:
        value = value & (1 << 128) - 1 ^ 0x87
    return value.to_bytes(BLOCK, "big")
