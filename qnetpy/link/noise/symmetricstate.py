"""SymmetricState (revision 34, section 5.2): chaining key, transcript hash and the handshake's cipher."""

from __future__ import annotations

from qnetpy.link.noise.cipherstate import CipherState
from qnetpy.link.noise.patterns import Protocol


class SymmetricState:
    """Mutable; `copy` is cheap, so that a message that turns out to be forged can be undone."""

    __slots__ = ("chaining_key", "cipher", "hash", "transcript")

    def __init__(self, protocol: Protocol) -> None:
        name = protocol.name.encode()
        self.hash = protocol.hash
        self.transcript = name.ljust(self.hash.size, b"\0") if len(name) <= self.hash.size else self.hash.digest(name)
        self.chaining_key = self.transcript
        self.cipher = CipherState(protocol.cipher)

    def copy(self) -> SymmetricState:
        twin = SymmetricState.__new__(SymmetricState)
        twin.hash = self.hash
        twin.transcript = self.transcript
        twin.chaining_key = self.chaining_key
        twin.cipher = self.cipher.copy()
        return twin

    def mix_key(self, material: bytes) -> None:
        self.chaining_key, key = self.hash.hkdf(self.chaining_key, material, 2)
        self.cipher = CipherState(self.cipher.cipher, key[:32])

    def mix_hash(self, data: bytes) -> None:
        self.transcript = self.hash.digest(self.transcript + data)

    def mix_key_and_hash(self, material: bytes) -> None:
        self.chaining_key, extra, key = self.hash.hkdf(self.chaining_key, material, 3)
        self.mix_hash(extra)
        self.cipher = CipherState(self.cipher.cipher, key[:32])

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = self.cipher.encrypt(self.transcript, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        plaintext = self.cipher.decrypt(self.transcript, ciphertext)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """Transport keys: initiator to responder, responder to initiator. 32 bytes each."""
        first, second = self.hash.hkdf(self.chaining_key, b"", 2)
        return first[:32], second[:32]

    def derive(self, label: bytes) -> bytes:
        """A key for another use, independent of those of `split`: HKDF with *label* (never empty) where `split` has nothing."""
        (output,) = self.hash.hkdf(self.chaining_key, label + self.transcript, 1)
        return output[:32]
