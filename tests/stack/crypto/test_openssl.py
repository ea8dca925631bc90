"""The provider over `cryptography` keeps the contract of providers, on every vector that is here; and the contract finds broken ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from resmgr.dispatch import Buffer
from stack.crypto.algorithms import AES_128_GCM, ALGORITHMS, CIPHERS, HASHES, MACS, Aead, Cipher, Hash, Mac
from stack.crypto.providers.openssl import Digests, OpenSSL, OpenSSLAead, OpenSSLCtr
from stack.crypto.vectorfiles import packaged_vectors, text_vectors, wycheproof_vectors
from stack.crypto.vectors import AeadVector, MacVector, builtin_vectors
from stack.testing.crypto import check_aead, check_cipher, check_provider, check_vectors

WYCHEPROOF = next(
    (found for above in Path(__file__).parents[3:] if (found := above / "shared" / "data" / "wycheproof").is_dir()), Path("nowhere")
)


def test_contract_and_builtin_vectors() -> None:
    vectors = builtin_vectors()
    assert {vector.algorithm for vector in vectors} == set(ALGORITHMS)
    assert check_provider(OpenSSL(), vectors) == len(vectors)


def test_packaged_vectors() -> None:
    vectors = list(packaged_vectors(400))
    assert check_vectors(OpenSSL(), vectors) == len(vectors) > 2000
    found = {vector.algorithm.name for vector in vectors}
    assert found >= {"aes-128-gcm", "aes-256-gcm", "chacha20-poly1305", "ccmp-128", "ccmp-256"}
    assert found >= {one.name for one in CIPHERS}
    assert found >= {one.name for one in MACS if "sha3" not in one.name and "blake" not in one.name}
    assert found >= {one.name for one in HASHES}
    assert {vector.valid for vector in vectors if isinstance(vector, AeadVector)} == {True, False}


@pytest.mark.skipif(not WYCHEPROOF.is_dir(), reason="optional: Wycheproof's files are not next to the checkout (shared/data/wycheproof)")
def test_wycheproof() -> None:
    vectors = list(wycheproof_vectors(WYCHEPROOF))
    assert len(vectors) > 1000
    for kind in ("gcm", "ccm", "chacha", "cmac", "hmac-sha256", "hmac-sha512"):
        chosen = [vector for vector in vectors if kind in vector.algorithm.name]
        assert {vector.valid for vector in chosen if not isinstance(vector.algorithm, Cipher | Hash)} == {True, False}, kind
    assert {"aes-128-ccm", "aes-256-ccm", "ccmp-256"} <= {vector.algorithm.name for vector in vectors}
    assert check_vectors(OpenSSL(), vectors) == len(vectors)


def test_every_mac_that_wycheproof_has_is_read(tmp_path: Path) -> None:
    """AES-CTR, the plain hashes and BLAKE2 it has not."""
    made = [vector for vector in builtin_vectors() if isinstance(vector, MacVector) and vector.algorithm.name.startswith("hmac")]
    for name in {vector.algorithm.name for vector in made}:
        groups = [
            {
                "keySize": 8 * len(vector.key),
                "tagSize": 8 * len(vector.tag),
                "tests": [
                    {"tcId": 1, "key": vector.key.hex(), "msg": vector.message.hex(), "tag": vector.tag.hex(), "result": "valid"},
                ],
            }
            for vector in made
            if vector.algorithm.name == name
        ]
        (tmp_path / f"{name.replace('-', '_')}_test.json").write_text(json.dumps({"testGroups": groups}))
    vectors = list(wycheproof_vectors(tmp_path))
    assert {vector.algorithm for vector in vectors} == {one for one in MACS if one.name.startswith("hmac")}
    assert check_vectors(OpenSSL(), vectors) == len(vectors)


def test_dialects_of_text_files() -> None:
    text = (
        '# BoringSSL\nCOUNT = 1\nKEY: x\nKEY= 00112233445566778899aabbccddeeff\nNONCE= 000102030405060708090a0b\nIN= "hi"\nAD= "1"\n'
        "CT= aabb\nTAG= 00112233445566778899aabbccddeeff\n\n"
        "Count = 0\nKey = 00112233445566778899aabbccddeeff\nIV = 000102030405060708090a0b\nCT = \nAAD = 05\n"
        "Tag = 00112233445566778899aabbccddeeff\nFAIL\n\n"
        "Count = 1\nKey = 00112233445566778899aabbccddeeff\nIV = 00\nCT = \nAAD = \nTag = 00112233445566778899aabbccddeeff\nPT = \n"
    )
    first, second = text_vectors(text, ("aes-128-gcm",), "here")
    assert (first.plaintext, first.aad, first.ciphertext[:2], first.valid) == (b"hi", b"1", b"\xaa\xbb", True)
    assert (second.plaintext, second.aad, len(second.ciphertext), second.valid) == (b"", b"\5", 16, False)


class _Lenient(OpenSSLAead):
    """Breaks the contract: a bad item ends the batch."""

    def open_many(self, nonces: Sequence[Buffer], ciphertexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes | None]:
        opened = super().open_many(nonces, ciphertexts, aads)
        return [None] * len(opened) if None in opened else opened


class _WrongTag(OpenSSLAead):
    def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes]:
        return [one[:-1] + b"\0" for one in super().seal_many(nonces, plaintexts, aads)]


class _GoesOn(OpenSSLCtr):
    """Breaks the contract: one item's counter goes on from the item before."""

    def encrypt_many(self, nonces: Sequence[Buffer], items: Sequence[Buffer], /) -> list[bytes]:
        return [super(_GoesOn, self).encrypt_many(nonces[:1], [b"".join(map(bytes, items))])[0][: len(one)] for one in items]


class _Broken(OpenSSL):
    name = "broken"

    def __init__(self, session: type[OpenSSLAead]) -> None:
        self._session = session

    def aead(self, algorithm: Aead, key: Buffer) -> OpenSSLAead:
        good = super().aead(algorithm, key)
        assert good._seal is not None
        assert good._open is not None
        return self._session(algorithm, good._seal, good._open)


class _Careless(OpenSSL):
    """Takes tags of any size, and hashes wrong."""

    name = "careless"

    def hash(self, algorithm: Hash) -> Digests:
        return Digests(algorithm, lambda item: bytes(algorithm.digest_size))


def test_the_contract_finds_broken_providers() -> None:
    with pytest.raises(AssertionError):
        check_aead(_Broken(_Lenient).aead(AES_128_GCM, bytes(16)))
    with pytest.raises(AssertionError, match="seal GCM"):
        check_vectors(_Broken(_WrongTag), builtin_vectors())
    with pytest.raises(AssertionError, match="digest sha224"):
        check_vectors(_Careless(), builtin_vectors())
    good = OpenSSL().cipher(CIPHERS[0], bytes(16))
    assert good._make is not None
    with pytest.raises(AssertionError):
        check_cipher(_GoesOn(CIPHERS[0], good._make))
    wrong = [
        AeadVector(one.source, one.algorithm, one.key, one.nonce, one.aad + b"x", one.plaintext, one.ciphertext, True)
        for one in builtin_vectors()
        if isinstance(one, AeadVector)
    ]
    with pytest.raises(AssertionError, match="open GCM"):
        check_vectors(OpenSSL(), wrong)
    assert all(isinstance(one, Mac) for one in MACS)
