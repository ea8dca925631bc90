"""The key that a node issues with: how it comes from the node's own key, and how the node proves to have it when it asks for a certificate.

It follows from the X25519 private key (HKDF, RFC 5869), so a node whose answer was lost, or that crashed before it stored the key, asks
with the same key again: the machine with the root key certifies no second one beside the first. The proof is a signature of the new key
over who asks for what, so nobody gets a certificate for another's key, whose revocation would then hit that other.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from qnetpy.identity.certificate import Certificate

PROOF_SIZE = 64
DERIVED = b"qnet issuing key 1"
SIGNED = b"qnet issuing key proof 1"


def issuing_key(static_private: bytes) -> bytes:
    """The Ed25519 private key that belongs to a node's X25519 private key; both 32 bytes."""
    return HKDF(SHA256(), 32, salt=None, info=DERIVED).derive(static_private)


def prove(private: bytes, own: Certificate, root_id: bytes) -> bytes:
    """That the node with the certificate *own* has the Ed25519 key *private*, for a certificate under *root_id*."""
    key = Ed25519PrivateKey.from_private_bytes(private)
    return key.sign(_text(key.public_key().public_bytes_raw(), own, root_id))


def proves(proof: bytes, key: bytes, own: Certificate, root_id: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(proof, _text(key, own, root_id))
    except (InvalidSignature, ValueError):
        return False
    return True


def key_id(key: bytes) -> bytes:
    """Of an Ed25519 public key, as its certificate will have it. ValueError for what is no key."""
    return x509.SubjectKeyIdentifier.from_public_key(Ed25519PublicKey.from_public_bytes(key)).digest


def _text(key: bytes, own: Certificate, root_id: bytes) -> bytes:
    names = b"".join(bytes((len(name),)) + name.encode() for name in (own.cluster, own.name))
    return SIGNED + names + own.static_key + root_id + key
