"""Vectors from files that others publish: Wycheproof's `*_test_schema_v1` files; NIST CAVS `*.rsp`; OpenSSL's and BoringSSL's text
files, as the package `cryptography_vectors` has them. What our algorithms do not have (other sizes of nonces, tags and keys) is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from pathlib import Path

from stack.crypto.algorithms import AEADS, ALGORITHMS, CIPHERS, Aead, Hash, Mac
from stack.crypto.vectors import AeadVector, CipherVector, HashVector, MacVector, Vector

_AEAD_FILES = {
    "aes_gcm_test.json": ("aes-128-gcm", "aes-256-gcm"),
    "aes_ccm_test.json": ("aes-128-ccm", "aes-256-ccm", "ccmp-128", "ccmp-256"),
    "chacha20_poly1305_test.json": ("chacha20-poly1305",),
}
_MAC_FILES = {
    "aes_cmac_test.json": ("aes-128-cmac", "aes-256-cmac"),
    **{
        f"hmac_{one}_test.json": (f"hmac-{one.replace('_', '-')}",)
        for one in ("sha256", "sha384", "sha512", "sha3_256", "sha3_384", "sha3_512")
    },
}


def wycheproof_vectors(folder: Path) -> Iterator[Vector]:
    """From the files of *folder* that have an algorithm of ours; it need not have all of them."""
    for file, names in _AEAD_FILES.items():
        for group in _groups(folder / file):
            algorithm = _aead(names, _size(group, "keySize"), _size(group, "ivSize"), _size(group, "tagSize"))
            if algorithm is not None:
                yield from (_wycheproof_aead(file, algorithm, test) for test in _tests(group))
    for file, names in _MAC_FILES.items():
        for group in _groups(folder / file):
            mac = _mac(names, _size(group, "keySize"), _size(group, "tagSize"))
            if mac is not None:
                yield from (_wycheproof_mac(file, mac, test) for test in _tests(group))


Json = Mapping[str, object]


def _groups(path: Path) -> Iterator[Json]:
    if path.exists():
        yield from json.loads(path.read_text())["testGroups"]


def _tests(group: Json) -> list[Json]:
    tests = group["tests"]
    assert isinstance(tests, list)
    return tests


def _size(group: Json, name: str) -> int:
    size = group[name]
    assert isinstance(size, int)
    return size // 8


def _bytes(test: Json, name: str) -> bytes:
    text = test[name]
    assert isinstance(text, str)
    return bytes.fromhex(text)


def _wycheproof_aead(file: str, algorithm: Aead, test: Json) -> AeadVector:
    return AeadVector(
        f"Wycheproof {file} {test['tcId']}",
        algorithm,
        _bytes(test, "key"),
        _bytes(test, "iv"),
        _bytes(test, "aad"),
        _bytes(test, "msg"),
        _bytes(test, "ct") + _bytes(test, "tag"),
        test["result"] == "valid",
    )


def _wycheproof_mac(file: str, algorithm: Mac, test: Json) -> MacVector:
    source = f"Wycheproof {file} {test['tcId']}"
    return MacVector(source, algorithm, _bytes(test, "key"), _bytes(test, "msg"), _bytes(test, "tag"), test["result"] == "valid")


def _aead(names: tuple[str, ...], key: int, nonce: int, tag: int) -> Aead | None:
    for algorithm in AEADS:
        if algorithm.name in names and (algorithm.key_size, algorithm.nonce_size, algorithm.tag_size) == (key, nonce, tag):
            return algorithm
    return None


def _mac(names: tuple[str, ...], key: int, tag: int) -> Mac | None:
    for algorithm in ALGORITHMS:
        if isinstance(algorithm, Mac) and algorithm.name in names and algorithm.key_min <= key <= algorithm.key_max:
            return algorithm if algorithm.tag_min <= tag <= algorithm.tag_size else None
    return None


_HASH_FILES = {
    **{f"sha{size}": f"hashes/SHA2/SHA{size}ShortMsg.rsp" for size in (224, 256, 384, 512)},
    **{f"sha3-{size}": f"hashes/SHA3/SHA3_{size}ShortMsg.rsp" for size in (224, 256, 384, 512)},
    **{name: f"hashes/blake2/{name}.txt" for name in ("blake2b", "blake2s")},
}


def packaged_vectors(limit_per_file: int | None = None) -> Iterator[Vector]:
    """From the package `cryptography_vectors`; nothing when it is not installed."""
    try:
        package = import_module("cryptography_vectors")
    except ModuleNotFoundError:
        return
    folder = Path(str(package.__file__)).parent

    def read(pattern: str, parse: Callable[[str, str], Iterator[Vector]]) -> Iterator[Vector]:
        for path in sorted(folder.glob(pattern)):
            yield from islice(parse(path.read_text(), path.name), limit_per_file)

    gcm, chacha = ("aes-128-gcm", "aes-256-gcm"), ("chacha20-poly1305",)
    yield from read("ciphers/AES/GCM/gcm*.rsp", lambda text, name: text_vectors(text, gcm, name))
    yield from read("ciphers/ChaCha20Poly1305/*.txt", lambda text, name: text_vectors(text, chacha, name))
    yield from read("ciphers/AES/CCM/*.rsp", ccm_vectors)
    yield from read("ciphers/AES/CTR/*.txt", ctr_vectors)
    for size in (128, 256):
        cmac = _named(Mac, f"aes-{size}-cmac")
        yield from read(f"CMAC/nist-800-38b-aes{size}.txt", lambda text, name, one=cmac: mac_vectors(text, one, name))  # type: ignore[misc]
    for size in (256, 384, 512):
        hmac = _named(Mac, f"hmac-sha{size}")
        yield from read(f"HMAC/rfc-4231-sha{size}.txt", lambda text, name, one=hmac: mac_vectors(text, one, name))  # type: ignore[misc]
    for kind, pattern in _HASH_FILES.items():
        algorithm = _named(Hash, kind)
        yield from read(pattern, lambda text, name, one=algorithm: hash_vectors(text, one, name))  # type: ignore[misc]


def _named(kind: type[Mac] | type[Hash], name: str) -> Mac | Hash:
    return next(one for one in ALGORITHMS if isinstance(one, kind) and one.name == name)


def blocks(text: str) -> Iterator[tuple[dict[str, str], bool]]:
    """Fields of each block of a `key = value` file, names in lower case; False for a block with the line FAIL. Comments are lines with
    #.
    """
    for block in re.split(r"\n\s*\n", text.replace("\r", "")):
        fields: dict[str, str] = {}
        passes = True
        for line in block.splitlines():
            match = re.fullmatch(r"\s*(\w+)\s*=\s*(.*?)\s*", line)
            if match is not None:
                fields[match[1].lower()] = match[2]
            elif line.strip() == "FAIL":
                passes = False
            else:
                # CAVS: [Alen = 0, Nlen = 13]
                fields |= {name.lower(): value for name, value in re.findall(r"(\w+) = (\w+)", line) if line.startswith("[")}
        yield fields, passes


def text_vectors(text: str, names: tuple[str, ...], file: str) -> Iterator[AeadVector]:
    """AEAD vectors of NIST's, OpenSSL's or BoringSSL's dialect."""
    for number, (fields, passes) in enumerate(blocks(text)):
        key, nonce, tag = _field(fields, "key"), _field(fields, "iv", "nonce"), _field(fields, "tag")
        if key is None or nonce is None or tag is None:
            continue
        algorithm = _aead(names, len(key), len(nonce), len(tag))
        if algorithm is None:
            continue
        ciphertext = (_field(fields, "ct", "ciphertext") or b"") + tag
        plaintext = _field(fields, "pt", "plaintext", "in") or b""
        aad = _field(fields, "aad", "ad") or b""
        yield AeadVector(f"{file} {number}", algorithm, key, nonce, aad, plaintext, ciphertext, passes and "result" not in fields)


def ccm_vectors(text: str, file: str) -> Iterator[AeadVector]:
    """NIST's CCM files: lengths, key and nonce stand once for all that follow."""
    said: dict[str, str] = {}
    for number, (fields, _) in enumerate(blocks(text)):
        said |= {name: value for name, value in fields.items() if name in ("alen", "plen", "nlen", "tlen", "key", "nonce")}
        if "ct" not in fields:
            continue
        key, nonce = bytes.fromhex(said["key"]), bytes.fromhex(said["nonce"])
        algorithm = _aead(_AEAD_FILES["aes_ccm_test.json"], len(key), len(nonce), int(said["tlen"]))
        if algorithm is None:
            continue
        plaintext = bytes.fromhex(fields.get("payload", ""))[: int(said["plen"])]
        aad = bytes.fromhex(fields["adata"])[: int(said["alen"])]
        passes = not fields.get("result", "Pass").startswith("Fail")
        yield AeadVector(f"{file} {number}", algorithm, key, nonce, aad, plaintext, bytes.fromhex(fields["ct"]), passes)


def ctr_vectors(text: str, file: str) -> Iterator[CipherVector]:
    """Blocks with KEY, IV, PLAINTEXT, CIPHERTEXT."""
    for number, (fields, _) in enumerate(blocks(text)):
        key, nonce = _field(fields, "key"), _field(fields, "iv")
        algorithm = next((one for one in CIPHERS if key is not None and one.key_size == len(key)), None)
        if algorithm is None or key is None or nonce is None:
            continue
        plaintext, ciphertext = bytes.fromhex(fields["plaintext"]), bytes.fromhex(fields["ciphertext"])
        yield CipherVector(f"{file} {number}", algorithm, key, nonce, plaintext, ciphertext)


def mac_vectors(text: str, algorithm: Mac | Hash, file: str) -> Iterator[MacVector]:
    """Blocks with a key, MESSAGE or Msg, and OUTPUT or MD."""
    assert isinstance(algorithm, Mac)
    for number, (fields, _) in enumerate(blocks(text)):
        key, message, tag = _field(fields, "key"), _field(fields, "message", "msg"), _field(fields, "output", "md")
        if key is not None and message is not None and tag is not None:
            yield MacVector(f"{file} {number}", algorithm, key, message, tag, True)


def hash_vectors(text: str, algorithm: Mac | Hash, file: str) -> Iterator[HashVector]:
    """Blocks with Len in bits, Msg and MD."""
    assert isinstance(algorithm, Hash)
    for number, (fields, _) in enumerate(blocks(text)):
        message, digest = _field(fields, "msg"), _field(fields, "md")
        if message is not None and digest is not None:
            yield HashVector(f"{file} {number}", algorithm, message[: int(fields["len"]) // 8], digest)


def _field(fields: dict[str, str], *names: str) -> bytes | None:
    for name in names:
        value = fields.get(name)
        if value is not None:
            return value[1:-1].encode() if value.startswith('"') else bytes.fromhex(value)
    return None
