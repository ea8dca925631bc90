"""ChaCha20-Poly1305 (RFC 8439)."""

from __future__ import annotations

import hmac
import struct

from resmgr.dispatch import Buffer
from stack.crypto.pure.aes import xor

_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")
_QUARTERS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15), (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
_MASK = 0xFFFFFFFF
_PRIME = (1 << 130) - 5
_CLAMP = 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
TAG = 16


def block(key: tuple[int, ...], counter: int, nonce: tuple[int, ...]) -> bytes:
    """64 bytes of stream."""
    start = (*_CONSTANTS, *key, counter & _MASK, *nonce)
    state = list(start)
    for _ in range(10):
        for a, b, c, d in _QUARTERS:
            for first, second, third, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                state[first] = state[first] + state[second] & _MASK
                mixed = state[third] ^ state[first]
                state[third] = (mixed << bits | mixed >> 32 - bits) & _MASK
    return struct.pack("<16I", *(one + other & _MASK for one, other in zip(state, start, strict=True)))


def poly1305(key: bytes, data: bytes) -> bytes:
    """The tag of *data* under a key of 32 bytes that is used once."""
    r, s = int.from_bytes(key[:16], "little") & _CLAMP, int.from_bytes(key[16:], "little")
    total = 0
    for at in range(0, len(data), 16):
        total = (total + int.from_bytes(data[at : at + 16] + b"\1", "little")) * r % _PRIME
    return (total + s & (1 << 128) - 1).to_bytes(16, "little")


class ChaChaPoly:
    """One key."""

    def __init__(self, key: Buffer) -> None:
        self._key = struct.unpack("<8I", key)

    def seal(self, nonce: Buffer, plaintext: Buffer, aad: Buffer) -> bytes:
        words = struct.unpack("<3I", nonce)
        ciphertext = self._crypt(words, plaintext)
        return ciphertext + self._tag(words, ciphertext, bytes(aad))

    def open(self, nonce: Buffer, sealed: Buffer, aad: Buffer) -> bytes | None:
        if len(sealed) < TAG:
            return None
        words = struct.unpack("<3I", nonce)
        ciphertext, tag = bytes(sealed[:-TAG]), bytes(sealed[-TAG:])
        if not hmac.compare_digest(tag, self._tag(words, ciphertext, bytes(aad))):
            return None
        return self._crypt(words, ciphertext)

    def _crypt(self, nonce: tuple[int, ...], data: Buffer) -> bytes:
        return xor(data, b"".join(block(self._key, 1 + number, nonce) for number in range(-(-len(data) // 64))))

    def _tag(self, nonce: tuple[int, ...], ciphertext: bytes, aad: bytes) -> bytes:
        data = b"".join((aad, bytes(-len(aad) % 16), ciphertext, bytes(-len(ciphertext) % 16)))
        return poly1305(block(self._key, 0, nonce)[:32], data + struct.pack("<QQ", len(aad), len(ciphertext)))
