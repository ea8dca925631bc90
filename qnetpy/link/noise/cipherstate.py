"""CipherState (revision 34, section 5.1): a key and the number of its next message."""

from __future__ import annotations

from qnetpy.link.noise.functions import Cipher
from resmgr.errors import Misuse

NONCE_MAX = 2**64 - 2
"""2**64 - 1 is reserved for rekeying (section 5.1)."""


class CipherState:
    """Without a key it passes plaintext through."""

    __slots__ = ("cipher", "key", "nonce")

    def __init__(self, cipher: Cipher, key: bytes | None = None) -> None:
        self.cipher = cipher
        self.key = key
        self.nonce = 0

    def copy(self) -> CipherState:
        twin = CipherState(self.cipher, self.key)
        twin.nonce = self.nonce
        return twin

    def encrypt(self, ad: bytes, plaintext: bytes) -> bytes:
        if self.key is None:
            return plaintext
        ciphertext = self.cipher.encrypt(self.key, self._next(), ad, plaintext)
        self.nonce += 1
        return ciphertext

    def decrypt(self, ad: bytes, ciphertext: bytes) -> bytes:
        """BadHandshake leaves the state as it was."""
        if self.key is None:
            return ciphertext
        plaintext = self.cipher.decrypt(self.key, self._next(), ad, ciphertext)
        self.nonce += 1
        return plaintext

    def rekey(self) -> None:
        """Section 4.2, REKEY."""
        if self.key is None:
            raise Misuse("noise: rekey without a key")
        self.key = self.cipher.encrypt(self.key, 2**64 - 1, b"", bytes(32))[:32]

    def _next(self) -> int:
        if self.nonce > NONCE_MAX:
            raise Misuse("noise: no nonces left")
        return self.nonce
