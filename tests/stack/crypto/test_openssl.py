"""The provider over `cryptography` keeps the contract of providers, on every vector that is here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from resmgr.dispatch import Buffer
from stack.crypto.api import AES_128_GCM, ALGORITHMS, Algorithm
from stack.crypto.providers.openssl import OpenSSL, OpenSSLSession
from stack.crypto.vectors import Vector, builtin_vectors, packaged_vectors, text_vectors, wycheproof_vectors
from stack.testing.crypto import check_provider, check_session, check_vectors

WYCHEPROOF = Path(__file__).parents[4] / "shared" / "data" / "wycheproof"


def test_contract_and_builtin_vectors() -> None:
    vectors = builtin_vectors()
    assert {vector.algorithm for vector in vectors} == set(ALGORITHMS)
    assert check_provider(OpenSSL(), vectors) == len(vectors)


def test_packaged_vectors() -> None:
    """About 8,000 where the package is, none where it is not."""
    vectors = list(packaged_vectors(400))
    assert check_vectors(OpenSSL(), vectors) == len(vectors)
    if vectors:
        assert {vector.algorithm for vector in vectors} == set(ALGORITHMS)
        assert {vector.valid for vector in vectors} == {True, False}


@pytest.mark.skipif(not WYCHEPROOF.is_dir(), reason="optional: Wycheproof's files are not next to the checkout (shared/data/wycheproof)")
def test_wycheproof() -> None:
    vectors = list(wycheproof_vectors(WYCHEPROOF))
    assert len(vectors) > 400
    assert {vector.valid for vector in vectors} == {True, False}
    assert check_vectors(OpenSSL(), vectors) == len(vectors)


def test_dialects_of_text_files() -> None:
    text = (
        '# BoringSSL\nCOUNT = 1\nKEY: x\nKEY= 00112233445566778899aabbccddeeff\nNONCE= 000102030405060708090a0b\nIN= "hi"\nAD= "1"\n'
        "CT= aabb\nTAG= 00112233445566778899aabbccddeeff\n\n"
        "Count = 0\nKey = 00112233445566778899aabbccddeeff\nIV = 000102030405060708090a0b\nCT = \nAAD = 05\n"
        "Tag = 00112233445566778899aabbccddeeff\nFAIL\n\n"
        "Count = 1\nKey = 00112233445566778899aabbccddeeff\nIV = 00\nCT = \nAAD = \nTag = 00112233445566778899aabbccddeeff\nPT = \n"
    )
    first, second = text_vectors(text, "AES-GCM", "here")
    assert (first.plaintext, first.aad, first.ciphertext[:2], first.valid) == (b"hi", b"1", b"\xaa\xbb", True)
    assert (second.plaintext, second.aad, len(second.ciphertext), second.valid) == (b"", b"\5", 16, False)


class _Lenient(OpenSSLSession):
    """Breaks the contract: a bad item ends the batch."""

    def open_many(self, nonces: Sequence[Buffer], ciphertexts: Sequence[Buffer], aads: Sequence[Buffer]) -> list[bytes | None]:
        opened = super().open_many(nonces, ciphertexts, aads)
        return [None] * len(opened) if None in opened else opened


class _WrongTag(OpenSSLSession):
    def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer]) -> list[bytes]:
        return [one[:-1] + b"\0" for one in super().seal_many(nonces, plaintexts, aads)]


class _Broken(OpenSSL):
    name = "broken"

    def __init__(self, session: type[OpenSSLSession]) -> None:
        self._session = session

    def session(self, algorithm: Algorithm, key: Buffer) -> OpenSSLSession:
        good = super().session(algorithm, key)
        assert good._seal is not None
        assert good._open is not None
        return self._session(algorithm, good._seal, good._open)


def test_the_contract_finds_broken_providers() -> None:
    with pytest.raises(AssertionError):
        check_session(_Broken(_Lenient).session(AES_128_GCM, bytes(16)))
    with pytest.raises(AssertionError, match="seal GCM"):
        check_vectors(_Broken(_WrongTag), builtin_vectors())
    wrong = [
        Vector(one.source, one.algorithm, one.key, one.nonce, one.aad + b"x", one.plaintext, one.ciphertext, True)
        for one in builtin_vectors()
    ]
    with pytest.raises(AssertionError, match="open GCM"):
        check_vectors(OpenSSL(), wrong)
