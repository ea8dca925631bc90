"""Test vectors for providers: the formats in which others publish them, and a few that are built in. `stack.testing.crypto` runs them.

Sources: RFC 8439 section 2.8.2, RFC 9001 appendix A.5, the GCM specification of McGrew and Viega (test cases 1, 4, 14, 16); Wycheproof's
`aead_test_schema_v1` files; NIST CAVS `gcm*.rsp`; OpenSSL's and BoringSSL's text files, as the package `cryptography_vectors` has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path

import attrs

from stack.crypto.api import AES_128_GCM, AES_256_GCM, ALGORITHMS, CHACHA20_POLY1305, Algorithm


@attrs.frozen
class Vector:
    """One item. `valid` False: it must not open (and says nothing about sealing)."""

    source: str
    algorithm: Algorithm
    key: bytes
    nonce: bytes
    aad: bytes
    plaintext: bytes
    ciphertext: bytes
    """With the tag."""
    valid: bool


def builtin_vectors() -> list[Vector]:
    """Present everywhere."""
    return [
        Vector(
            source,
            algorithm,
            bytes.fromhex(key),
            bytes.fromhex(nonce),
            bytes.fromhex(aad),
            bytes.fromhex(plaintext),
            bytes.fromhex(ciphertext),
            True,
        )
        for source, algorithm, key, nonce, aad, plaintext, ciphertext in _BUILTIN
    ]


def wycheproof_vectors(folder: Path) -> Iterator[Vector]:
    """From `aes_gcm_test.json` and `chacha20_poly1305_test.json` in *folder*; sizes that our algorithms do not have are left out."""
    for name in ("aes_gcm_test.json", "chacha20_poly1305_test.json"):
        path = folder / name
        data = json.loads(path.read_text())
        for group in data["testGroups"]:
            algorithm = _algorithm(data["algorithm"], group["keySize"] // 8)
            if algorithm is None or (group["ivSize"], group["tagSize"]) != (algorithm.nonce_size * 8, algorithm.tag_size * 8):
                continue
            for test in group["tests"]:
                yield Vector(
                    f"Wycheproof {name} {test['tcId']}",
                    algorithm,
                    bytes.fromhex(test["key"]),
                    bytes.fromhex(test["iv"]),
                    bytes.fromhex(test["aad"]),
                    bytes.fromhex(test["msg"]),
                    bytes.fromhex(test["ct"] + test["tag"]),
                    test["result"] == "valid",
                )


def packaged_vectors(limit_per_file: int | None = None) -> Iterator[Vector]:
    """From the package `cryptography_vectors`; nothing when it is not installed."""
    try:
        package = import_module("cryptography_vectors")
    except ModuleNotFoundError:
        return
    ciphers = Path(str(package.__file__)).parent / "ciphers"
    for family, pattern in (("AES-GCM", "AES/GCM/gcm*.rsp"), ("CHACHA20-POLY1305", "ChaCha20Poly1305/*.txt")):
        for path in sorted(ciphers.glob(pattern)):
            yield from islice(text_vectors(path.read_text(), family, path.name), limit_per_file)


def text_vectors(text: str, family: str, name: str) -> Iterator[Vector]:
    """Vectors of a `key = value` file: NIST's, OpenSSL's or BoringSSL's dialect."""
    for number, block in enumerate(re.split(r"\n\s*\n", text)):
        fields: dict[str, str] = {}
        valid = True
        for line in block.splitlines():
            match = re.fullmatch(r"\s*(\w+)\s*=\s*(.*?)\s*", line)
            if match is not None:
                fields[match[1].lower()] = match[2]
            elif line.strip() == "FAIL":
                valid = False
        key = _field(fields, "key")
        nonce = _field(fields, "iv", "nonce")
        tag = _field(fields, "tag")
        if key is None or nonce is None or tag is None:
            continue
        algorithm = _algorithm(family, len(key))
        if algorithm is None or (len(nonce), len(tag)) != (algorithm.nonce_size, algorithm.tag_size):
            continue
        ciphertext = (_field(fields, "ct", "ciphertext") or b"") + tag
        plaintext = _field(fields, "pt", "plaintext", "in") or b""
        aad = _field(fields, "aad", "ad") or b""
        yield Vector(f"{name} {number}", algorithm, key, nonce, aad, plaintext, ciphertext, valid and "result" not in fields)


def _field(fields: dict[str, str], *names: str) -> bytes | None:
    for name in names:
        value = fields.get(name)
        if value is not None:
            return value[1:-1].encode() if value.startswith('"') else bytes.fromhex(value)
    return None


def _algorithm(family: str, key_size: int) -> Algorithm | None:
    prefix = {"AES-GCM": "aes", "CHACHA20-POLY1305": "chacha20"}[family]
    for algorithm in ALGORITHMS:
        if algorithm.name.startswith(prefix) and algorithm.key_size == key_size:
            return algorithm
    return None


_GCM_PLAINTEXT = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
_GCM_AAD = "feedfacedeadbeeffeedfacedeadbeefabaddad2"
_GCM_KEY = "feffe9928665731c6d6a8f9467308308"
_BUILTIN = (
    ("GCM 1", AES_128_GCM, "00" * 16, "00" * 12, "", "", "58e2fccefa7e3061367f1d57a4e7455a"),
    (
        "GCM 4",
        AES_128_GCM,
        _GCM_KEY,
        "cafebabefacedbaddecaf888",
        _GCM_AAD,
        _GCM_PLAINTEXT,
        "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
        "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e0915bc94fbc3221a5db94fae95ae7121a47",
    ),
    ("GCM 14", AES_256_GCM, "00" * 32, "00" * 12, "", "00" * 16, "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"),
    (
        "GCM 16",
        AES_256_GCM,
        _GCM_KEY * 2,
        "cafebabefacedbaddecaf888",
        _GCM_AAD,
        _GCM_PLAINTEXT,
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b",
    ),
    (
        "RFC 8439 2.8.2",
        CHACHA20_POLY1305,
        "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
        "070000004041424344454647",
        "50515253c0c1c2c3c4c5c6c7",
        (b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.").hex(),
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b"
        "1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691",
    ),
    (
        "RFC 9001 A.5",
        CHACHA20_POLY1305,
        "c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8",
        "e0459b3474bdd0e46d417eb0",
        "4200bff4",
        "01",
        "655e5cd55c41f69080575d7999c25a5bfb",
    ),
)
