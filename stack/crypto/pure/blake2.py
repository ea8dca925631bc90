"""BLAKE2b and BLAKE2s (RFC 7693), keyed or not, with digests of whole size."""

from __future__ import annotations

import struct

import attrs

from resmgr.dispatch import Buffer
from stack.crypto.pure.sha2 import SHA256, SHA512

_SIGMA = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    (14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
    (11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4),
    (7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8),
    (9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13),
    (2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9),
    (12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11),
    (13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10),
    (6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5),
    (10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0),
)
_QUARTERS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15), (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


@attrs.frozen
class Blake2:
    """One of the two. *size*: bytes of the digest."""

    size: int
    bits: int
    rounds: int
    turns: tuple[int, int, int, int]
    start: tuple[int, ...]

    def digest(self, message: Buffer, key: Buffer = b"") -> bytes:
        block = self.bits * 2
        data = bytes(key).ljust(block, b"\0") if key else b""
        data += bytes(message)
        state = [self.start[0] ^ 0x01010000 ^ len(key) << 8 ^ self.size, *self.start[1:]]
        at = 0
        while len(data) - at > block:
            state = self._compressed(state, data[at : at + block], at + block, last=False)
            at += block
        state = self._compressed(state, data[at:].ljust(block, b"\0"), len(data), last=True)
        return b"".join(word.to_bytes(self.bits // 8, "little") for word in state)

    def _compressed(self, state: list[int], block: bytes, count: int, *, last: bool) -> list[int]:
        bits, mask = self.bits, (1 << self.bits) - 1
        words = struct.unpack("<16I" if bits == 32 else "<16Q", block)
        work = [*state, *self.start]
        work[12] ^= count & mask
        work[13] ^= count >> bits
        if last:
            work[14] ^= mask
        turn_ad, turn_cb, turn_da, turn_bc = self.turns
        for number in range(self.rounds):
            order = _SIGMA[number % 10]
            for place, (a, b, c, d) in enumerate(_QUARTERS):
                for word, first, second in (
                    (words[order[2 * place]], turn_ad, turn_cb),
                    (words[order[2 * place + 1]], turn_da, turn_bc),
                ):
                    work[a] = work[a] + work[b] + word & mask
                    mixed = work[d] ^ work[a]
                    work[d] = (mixed >> first | mixed << bits - first) & mask
                    work[c] = work[c] + work[d] & mask
                    mixed = work[b] ^ work[c]
                    work[b] = (mixed >> second | mixed << bits - second) & mask
        return [old ^ work[at] ^ work[at + 8] for at, old in enumerate(state)]


BLAKE2B = Blake2(64, 64, 12, (32, 24, 16, 63), SHA512.start)
BLAKE2S = Blake2(32, 32, 10, (16, 12, 8, 7), SHA256.start)
