"""AES-GCM (SP 800-38D, RFC 5116) with nonces of 12 bytes and whole tags.

A block is a polynomial whose first bit is the coefficient of x**0: as a number, multiplying by x shifts right.
"""

from __future__ import annotations

import hmac

from resmgr.dispatch import Buffer
from stack.crypto.pure.aes import BLOCK, Aes, ctr, xor

_REDUCE = 0xE1 << 120


class Gcm:
    """One key."""

    def __init__(self, key: Buffer) -> None:
        self._aes = Aes(key)
        product = int.from_bytes(self._aes.encrypt(bytes(BLOCK)), "big")
        products = []
        for _ in range(128):
            products.append(product)
            product = product >> 1 ^ (_REDUCE if product & 1 else 0)
        self._tables = [_sums(products[at : at + 8]) for at in range(0, 128, 8)]
        """For each byte of a block: each of its values times the hash key."""

    def seal(self, nonce: Buffer, plaintext: Buffer, aad: Buffer) -> bytes:
        block = bytes(nonce) + b"\0\0\0\2"
        ciphertext = ctr(self._aes, block, plaintext, 32)
        return ciphertext + self._tag(nonce, ciphertext, aad)

    def open(self, nonce: Buffer, sealed: Buffer, aad: Buffer) -> bytes | None:
        if len(sealed) < BLOCK:
            return None
        ciphertext, tag = bytes(sealed[:-BLOCK]), bytes(sealed[-BLOCK:])
        if not hmac.compare_digest(tag, self._tag(nonce, ciphertext, aad)):
            return None
        return ctr(self._aes, bytes(nonce) + b"\0\0\0\2", ciphertext, 32)

    def _tag(self, nonce: Buffer, ciphertext: bytes, aad: Buffer) -> bytes:
        lengths = (len(aad) * 8 << 64 | len(ciphertext) * 8).to_bytes(BLOCK, "big")
        state = 0
        for data in (bytes(aad), ciphertext, lengths):
            for at in range(0, len(data), BLOCK):
                mixed = state ^ int.from_bytes(data[at : at + BLOCK].ljust(BLOCK, b"\0"), "big")
                state = 0
                for table, byte in zip(self._tables, mixed.to_bytes(BLOCK, "big"), strict=True):
                    state ^= table[byte]
        return xor(state.to_bytes(BLOCK, "big"), self._aes.encrypt(bytes(nonce) + b"\0\0\0\1"))


def _sums(products: list[int]) -> list[int]:
    """For each byte: the sum of those products whose bit is set, the highest bit's first."""
    table = [0] * 256
    for place, product in enumerate(products):
        bit = 0x80 >> place
        for value in range(256):
            if value & bit:
                table[value] ^= product
    return table
