"""AES-CCM (SP 800-38C, RFC 3610): CBC-MAC over nonce, lengths, associated data and plaintext, then counter mode over plaintext and tag."""

from __future__ import annotations

import hmac

from resmgr.dispatch import Buffer
from stack.crypto.pure.aes import BLOCK, Aes, ctr, xor

_AAD_SHORT = 0xFF00


class Ccm:
    """One key, tags of *tag_size* bytes. The nonce's size decides how long a plaintext may be: the caller has checked."""

    def __init__(self, key: Buffer, tag_size: int) -> None:
        self._aes = Aes(key)
        self._tag_size = tag_size

    def seal(self, nonce: Buffer, plaintext: Buffer, aad: Buffer) -> bytes:
        counter = self._counter(nonce)
        tag = ctr(self._aes, counter + bytes(BLOCK - len(counter)), self._mac(nonce, bytes(plaintext), bytes(aad)))
        return ctr(self._aes, counter + (1).to_bytes(BLOCK - len(counter), "big"), plaintext) + tag

    def open(self, nonce: Buffer, sealed: Buffer, aad: Buffer) -> bytes | None:
        split = len(sealed) - self._tag_size
        if split < 0:
            return None
        counter = self._counter(nonce)
        plaintext = ctr(self._aes, counter + (1).to_bytes(BLOCK - len(counter), "big"), sealed[:split])
        tag = ctr(self._aes, counter + bytes(BLOCK - len(counter)), sealed[split:])
        return plaintext if hmac.compare_digest(tag, self._mac(nonce, plaintext, bytes(aad))) else None

    def _counter(self, nonce: Buffer) -> bytes:
        """What the counter blocks have in common."""
        return bytes((BLOCK - 2 - len(nonce),)) + bytes(nonce)

    def _mac(self, nonce: Buffer, plaintext: bytes, aad: bytes) -> bytes:
        length = BLOCK - 1 - len(nonce)
        flags = (0x40 if aad else 0) | (self._tag_size - 2) // 2 << 3 | length - 1
        data = bytes((flags,)) + bytes(nonce) + len(plaintext).to_bytes(length, "big")
        if aad:
            size = len(aad).to_bytes(2, "big") if len(aad) < _AAD_SHORT else b"\xff\xfe" + len(aad).to_bytes(4, "big")
            data += _whole(size + aad)
        data += _whole(plaintext)
        state = bytes(BLOCK)
        for at in range(0, len(data), BLOCK):
            state = self._aes.encrypt(xor(state, data[at : at + BLOCK]))
        return state[: self._tag_size]


def _whole(data: bytes) -> bytes:
    """Padded with zeros to whole blocks."""
    return data + bytes(-len(data) % BLOCK)
