"""Proof that a machine which joins has the private key of the public key that it asks a certificate for.

Without it, who has a code could get a certificate for somebody else's public key under a name of its own, and revoking that name would
revoke somebody else. The inviter draws a key for the exchange and sends its public half; the joiner shows what only the two private keys
give, bound to this exchange and its code, so it is worth nothing in another. docs/protocol/enrolment.md, "Keys".
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from resmgr.errors import BadMessage

KEY_SIZE = 32
LABEL = b"qnet join 1 key proof"


def public_key(private: bytes) -> bytes:
    """The X25519 public key, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


class Question:
    """The inviter's side of one exchange: `public` is sent, `answered` checks what comes back."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._private = random(KEY_SIZE)
        self.public: bytes = public_key(self._private)

    def answered(self, proof: bytes, static_key: bytes, binding: bytes) -> bool:
        """Whether *proof* was made with the private key of *static_key* in the exchange with that *binding*."""
        try:
            expected = _proof(self._private, static_key, binding, self.public, static_key)
        except BadMessage:
            return False
        return hmac.compare_digest(proof, expected)


def prove(private: bytes, question: bytes, binding: bytes) -> bytes:
    """The joiner's answer, 32 bytes. BadMessage for a *question* that is no key."""
    return _proof(private, question, binding, question, public_key(private))


def _proof(private: bytes, public: bytes, binding: bytes, question: bytes, static_key: bytes) -> bytes:
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        # Of small order: the result would be known to everybody.
        raise BadMessage("enrolment: not a public key") from error
    return HKDF(SHA256(), KEY_SIZE, binding, LABEL + question + static_key).derive(shared)
