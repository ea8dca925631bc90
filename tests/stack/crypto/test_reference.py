"""The provider in Python: the contract, the vectors, and the same answers as OpenSSL on what no vector has."""

from __future__ import annotations

import random

from stack.crypto.algorithms import AEADS, CIPHERS, HASHES, MACS
from stack.crypto.providers.openssl import OpenSSL
from stack.crypto.providers.reference import Reference
from stack.crypto.vectorfiles import packaged_vectors
from stack.crypto.vectors import builtin_vectors
from stack.testing.crypto import check_provider, check_vectors

SIZES = (0, 1, 15, 16, 17, 63, 64, 65, 111, 112, 127, 128, 129, 135, 136, 137, 300)
"""Around the blocks and paddings of all algorithms."""


def test_contract_and_builtin_vectors() -> None:
    vectors = builtin_vectors()
    assert check_provider(Reference(), vectors, threads=False) == len(vectors)


def test_packaged_vectors() -> None:
    vectors = list(packaged_vectors(40))
    assert check_vectors(Reference(), vectors) == len(vectors) > 500


def test_two_implementations_agree() -> None:
    """Written independently of each other: an error would have to be made twice."""
    chance = random.Random(7)
    one, other = OpenSSL(), Reference()
    items = [chance.randbytes(size) for size in SIZES]
    for aead in AEADS:
        key = chance.randbytes(aead.key_size)
        nonces = [chance.randbytes(aead.nonce_size) for _ in items]
        aads = [chance.randbytes(chance.choice((0, 1, 13, 22, 40))) for _ in items]
        sealed = one.aead(aead, key).seal_many(nonces, items, aads)
        assert other.aead(aead, key).seal_many(nonces, items, aads) == sealed, aead.name
        assert other.aead(aead, key).open_many(nonces, sealed, aads) == items, aead.name
    for cipher in CIPHERS:
        key = chance.randbytes(cipher.key_size)
        nonces = [chance.randbytes(16) for _ in items]
        assert one.cipher(cipher, key).encrypt_many(nonces, items) == other.cipher(cipher, key).encrypt_many(nonces, items)
    for mac in MACS:
        for size in {mac.key_min, min(mac.key_max, 137), mac.key_max}:
            key = chance.randbytes(size)
            made = other.mac(mac, key, mac.tag_size).tag_many(items)
            assert one.mac(mac, key, mac.tag_size).tag_many(items) == made, (mac.name, size)
    for algorithm in HASHES:
        assert one.hash(algorithm).digest_many(items) == other.hash(algorithm).digest_many(items), algorithm.name


def test_ccm_of_long_associated_data() -> None:
    """Beyond 0xff00 bytes its length is written in another way."""
    aead = AEADS[3]
    args = [bytes(12)], [b"x"], [bytes(0xFF00)]
    assert OpenSSL().aead(aead, bytes(16)).seal_many(*args) == Reference().aead(aead, bytes(16)).seal_many(*args)
