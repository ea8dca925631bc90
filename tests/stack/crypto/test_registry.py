"""The registry of crypto providers."""

from __future__ import annotations

import pytest

from resmgr.errors import Misuse
from stack.crypto.api import AES_256_GCM, ALGORITHMS, CHACHA20_POLY1305, Algorithm
from stack.crypto.providers.openssl import OpenSSL, OpenSSLSession
from stack.crypto.registry import Crypto, algorithm_named, standard_crypto


class OnlyChaCha(OpenSSL):
    name = "chacha"
    algorithms = (CHACHA20_POLY1305,)


class Marked(OpenSSLSession):
    pass


def test_first_provider_with_the_algorithm_serves_it_unless_one_is_named() -> None:
    crypto = Crypto()
    made: list[str] = []

    def chacha() -> OnlyChaCha:
        made.append("chacha")
        return OnlyChaCha()

    crypto.add("chacha", chacha)
    crypto.add("openssl", OpenSSL)
    assert made == []
    assert crypto.session(AES_256_GCM, bytes(32)).algorithm is AES_256_GCM
    assert crypto.session(CHACHA20_POLY1305, bytes(32)).algorithm is CHACHA20_POLY1305
    assert made == ["chacha"]
    with pytest.raises(LookupError, match=r"no crypto provider has aes-256-gcm"):
        crypto.session(AES_256_GCM, bytes(32), "chacha")
    with pytest.raises(LookupError, match="there is no crypto provider opensl; there are chacha, openssl"):
        crypto.session(AES_256_GCM, bytes(32), "opensl")
    with pytest.raises(Misuse):
        crypto.add("openssl", OpenSSL)


def test_standard_registry_is_an_object_of_its_own() -> None:
    one, other = standard_crypto(), standard_crypto()
    one.add("extra", OpenSSL)
    assert other.names == ("openssl",)


def test_algorithms_by_name() -> None:
    assert [algorithm_named(one.name) for one in ALGORITHMS] == list(ALGORITHMS)
    with pytest.raises(LookupError, match="there are aes-128-gcm"):
        algorithm_named("rot13")
    assert isinstance(ALGORITHMS[0], Algorithm)
