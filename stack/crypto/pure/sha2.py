"""SHA-224, SHA-256, SHA-384 and SHA-512 (FIPS 180-4). The constants are what the standard says they are: fractions of roots of primes."""

from __future__ import annotations

import math
import struct

import attrs

from resmgr.dispatch import Buffer


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


def _cube_root(number: int) -> int:
    """Rounded down."""
    low, high = 0, 1 << number.bit_length() // 3 + 1
    while low < high:
        middle = low + high + 1 >> 1
        low, high = (middle, high) if middle**3 <= number else (low, middle - 1)
    return low


_PRIMES = _primes(80)
_CUBES = tuple(_cube_root(prime << 192) & (1 << 64) - 1 for prime in _PRIMES)
"""64 bits of the fraction of the cube roots."""
_SQUARES = tuple(math.isqrt(prime << 128) & (1 << 64) - 1 for prime in _PRIMES[:16])


@attrs.frozen
class Sha2:
    """One of the family. *start*: initial hash value; turns and shifts as in sections 4.1.2 and 4.1.3."""

    size: int
    bits: int
    start: tuple[int, ...]
    constants: tuple[int, ...]
    sums: tuple[tuple[int, int, int], tuple[int, int, int]]
    mixes: tuple[tuple[int, int, int], tuple[int, int, int]]

    @property
    def block(self) -> int:
        """Bytes."""
        return self.bits * 2

    def digest(self, message: Buffer) -> bytes:
        block, word = self.block, self.bits // 8
        data = bytes(message) + b"\x80"
        data += bytes((-len(data) - 2 * word) % block) + (len(message) * 8).to_bytes(2 * word, "big")
        state = self.start
        layout = struct.Struct("!16I" if self.bits == 32 else "!16Q")
        for at in range(0, len(data), block):
            state = self._compressed(state, list(layout.unpack_from(data, at)))
        return b"".join(value.to_bytes(word, "big") for value in state)[: self.size]

    def _compressed(self, state: tuple[int, ...], words: list[int]) -> tuple[int, ...]:
        bits, mask = self.bits, (1 << self.bits) - 1

        def turned(value: int, turns: tuple[int, int, int], shift: bool) -> int:
            first, second, third = ((value >> turn | value << bits - turn) & mask for turn in turns)
            return first ^ second ^ (value >> turns[2] if shift else third)

        (sum0, sum1), (mix0, mix1) = self.sums, self.mixes
        for at in range(16, len(self.constants)):
            words.append(words[at - 16] + turned(words[at - 15], mix0, True) + words[at - 7] + turned(words[at - 2], mix1, True) & mask)
        a, b, c, d, e, f, g, h = state
        for constant, word in zip(self.constants, words, strict=True):
            one = h + turned(e, sum1, False) + (e & f ^ ~e & g) + constant + word
            two = turned(a, sum0, False) + (a & b ^ a & c ^ b & c)
            a, b, c, d, e, f, g, h = one + two & mask, a, b, c, d + one & mask, e, f, g
        return tuple(old + new & mask for old, new in zip(state, (a, b, c, d, e, f, g, h), strict=True))


_NARROW = ((2, 13, 22), (6, 11, 25)), ((7, 18, 3), (17, 19, 10))
_WIDE = ((28, 34, 39), (14, 18, 41)), ((1, 8, 7), (19, 61, 6))
_HIGH = tuple(value >> 32 for value in _CUBES[:64])
SHA224 = Sha2(28, 32, tuple(value & 0xFFFFFFFF for value in _SQUARES[8:]), _HIGH, *_NARROW)
SHA256 = Sha2(32, 32, tuple(value >> 32 for value in _SQUARES[:8]), _HIGH, *_NARROW)
SHA384 = Sha2(48, 64, _SQUARES[8:], _CUBES, *_WIDE)
SHA512 = Sha2(64, 64, _SQUARES[:8], _CUBES, *_WIDE)
