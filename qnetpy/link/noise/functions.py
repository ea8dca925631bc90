"""DH, cipher and hash functions of Noise (revision 34, sections 4 and 12), over `cryptography` and hashlib."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from resmgr.errors import BadMessage

DH_SIZE = 32
TAG_SIZE = 16


class BadHandshake(BadMessage):
    """A handshake message is not authentic, or is cut short. Says which part."""


def public_key(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def dh(private: bytes, public: bytes) -> bytes:
    """X25519 (RFC 7748). BadHandshake for a public key of small order: section 12.1 leaves refusing to us, and nobody honest sends one."""
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise BadHandshake("noise: public key of small order") from error


@attrs.frozen
class Cipher:
    """An AEAD with Noise's 64-bit nonce."""

    name: str
    make: Callable[[bytes], AESGCM | ChaCha20Poly1305]
    nonce: Callable[[int], bytes]

    def encrypt(self, key: bytes, counter: int, ad: bytes, plaintext: bytes) -> bytes:
        return self.make(key).encrypt(self.nonce(counter), plaintext, ad)

    def decrypt(self, key: bytes, counter: int, ad: bytes, ciphertext: bytes) -> bytes:
        """BadHandshake when the tag is wrong."""
        try:
            return self.make(key).decrypt(self.nonce(counter), ciphertext, ad)
        except InvalidTag as error:
            raise BadHandshake("noise: authentication failed") from error


@attrs.frozen
class Hash:
    """A hash function and HKDF over it (section 4.3)."""

    name: str
    algorithm: str
    """hashlib's name."""
    size: int

    def digest(self, data: bytes) -> bytes:
        return hashlib.new(self.algorithm, data).digest()

    def hkdf(self, chaining_key: bytes, material: bytes, count: int) -> tuple[bytes, ...]:
        """*count* outputs of `size` bytes."""
        secret = hmac.digest(chaining_key, material, self.algorithm)
        outputs: list[bytes] = []
        previous = b""
        for number in range(1, count + 1):
            previous = hmac.digest(secret, previous + bytes((number,)), self.algorithm)
            outputs.append(previous)
        return tuple(outputs)


CIPHERS = {
    # Sections 12.3 and 12.4: 32 zero bits, then the counter, little-endian for ChaChaPoly and big-endian for AESGCM.
    "ChaChaPoly": Cipher("ChaChaPoly", ChaCha20Poly1305, struct.Struct("<4xQ").pack),
    "AESGCM": Cipher("AESGCM", AESGCM, struct.Struct(">4xQ").pack),
}
HASHES = {
    "SHA256": Hash("SHA256", "sha256", 32),
    "SHA512": Hash("SHA512", "sha512", 64),
    "BLAKE2s": Hash("BLAKE2s", "blake2s", 32),
    "BLAKE2b": Hash("BLAKE2b", "blake2b", 64),
}
