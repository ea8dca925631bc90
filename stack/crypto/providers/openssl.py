"""OpenSSL through `cryptography`, and through `hashlib` for hashes: one C call per item, for AEADs the loop over a batch in C too (`map`).

Measured: 0.7 µs for 1400 bytes of AES-GCM. The AEAD classes keep the expanded key, so a session costs its key schedule once. The low-level
`Cipher` objects cost 2.8 µs per item, and the `*_into` forms gain at most a tenth: neither is used. For CTR there is nothing else: making
an encryptor costs 17 µs, giving one another counter block 1 to 2, so a session keeps those it made. A MAC object is made once and
copied per item (1 µs; making one costs 7).

Threads: AEAD objects are free of state, MAC and hash objects are copied, an encryptor is taken out of the list while it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import AEADEncryptionContext, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers import Cipher as OpenSSLCipher
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.hmac import HMAC

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.crypto.algorithms import (
    ALGORITHMS,
    BLAKE2B_MAC,
    BLAKE2S_MAC,
    CHACHA20_POLY1305,
    CMACS,
    HMAC_SHA3_256,
    HMAC_SHA3_384,
    HMAC_SHA3_512,
    HMAC_SHA256,
    HMAC_SHA384,
    HMAC_SHA512,
    Aead,
    Algorithm,
    Cipher,
    Hash,
    Mac,
)
from stack.crypto.api import (
    CLOSED,
    NoSessions,
    check_aead_batch,
    check_cipher_batch,
    check_key,
    check_mac,
    check_plaintexts,
)

Call = Callable[[Buffer, Buffer, Buffer], bytes]


class OpenSSLAead:
    """See `stack.crypto.api.AeadSession`."""

    __slots__ = ("_nonce_size", "_open", "_seal", "algorithm")

    def __init__(self, algorithm: Aead, seal: Call, open_: Call) -> None:
        self.algorithm = algorithm
        self._nonce_size = algorithm.nonce_size
        self._seal: Call | None = seal
        self._open: Call | None = open_

    def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes]:
        seal = self._seal
        if seal is None:
            raise Misuse(CLOSED)
        if len(nonces) == len(plaintexts) == len(aads) == 1 and len(nonces[0]) == self._nonce_size:
            return [seal(nonces[0], plaintexts[0], aads[0])]
        check_aead_batch(self.algorithm, nonces, plaintexts, aads)
        return list(map(seal, nonces, plaintexts, aads))

    def open_many(self, nonces: Sequence[Buffer], ciphertexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes | None]:
        open_ = self._open
        if open_ is None:
            raise Misuse(CLOSED)
        if len(nonces) == len(ciphertexts) == len(aads) == 1 and len(nonces[0]) == self._nonce_size:
            try:
                return [open_(nonces[0], ciphertexts[0], aads[0])]
            except InvalidTag:
                return [None]
        check_aead_batch(self.algorithm, nonces, ciphertexts, aads)
        opened: list[bytes | None] = []
        items = map(open_, nonces, ciphertexts, aads)
        while True:
            # extend keeps what came before the exception, and the iterator goes on behind it: a bad item costs only itself.
            try:
                opened.extend(items)
            except InvalidTag:
                opened.append(None)
            else:
                return opened

    def close(self) -> None:
        self._seal = self._open = None


class OpenSSLCcm(OpenSSLAead):
    """CCM, whose plaintexts have a limit that somebody could reach."""

    __slots__ = ()

    def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes]:
        check_plaintexts(self.algorithm, plaintexts)
        return super().seal_many(nonces, plaintexts, aads)

    def open_many(self, nonces: Sequence[Buffer], ciphertexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes | None]:
        most = self.algorithm.plaintext_max + self.algorithm.tag_size
        return super().open_many(nonces, [one if len(one) <= most else b"" for one in ciphertexts], aads)


class OpenSSLCtr:
    """See `stack.crypto.api.CipherSession`."""

    __slots__ = ("_free", "_make", "algorithm")

    def __init__(self, algorithm: Cipher, make: Callable[[bytes], CipherContext]) -> None:
        self.algorithm = algorithm
        self._make: Callable[[bytes], CipherContext] | None = make
        self._free: list[CipherContext] = []

    def encrypt_many(self, nonces: Sequence[Buffer], items: Sequence[Buffer], /) -> list[bytes]:
        make = self._make
        if make is None:
            raise Misuse(CLOSED)
        check_cipher_batch(self.algorithm, nonces, items)
        try:
            context = self._free.pop()
        except IndexError:
            context = make(bytes(self.algorithm.nonce_size))
        made = []
        for nonce, item in zip(nonces, items, strict=True):
            context.reset_nonce(bytes(nonce))
            made.append(context.update(item))
        self._free.append(context)
        return made

    decrypt_many = encrypt_many

    def close(self) -> None:
        self._make = None
        self._free.clear()


class _Updatable(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def finalize(self) -> bytes: ...


class OpenSSLMac:
    """See `stack.crypto.api.MacSession`. *start* gives a fresh object with the key."""

    __slots__ = ("_start", "algorithm", "tag_size")

    def __init__(self, algorithm: Mac, tag_size: int, start: Callable[[], _Updatable]) -> None:
        self.algorithm = algorithm
        self.tag_size = tag_size
        self._start: Callable[[], _Updatable] | None = start

    def tag_many(self, items: Sequence[Buffer], /) -> list[bytes]:
        start = self._start
        if start is None:
            raise Misuse(CLOSED)
        tags = []
        for item in items:
            one = start()
            one.update(item)  # type: ignore[arg-type]  # the stub of CMAC says bytes; it takes every buffer
            tags.append(one.finalize()[: self.tag_size])
        return tags

    def close(self) -> None:
        self._start = None


class Digests:
    """See `stack.crypto.api.HashSession`."""

    __slots__ = ("_digest", "algorithm")

    def __init__(self, algorithm: Hash, digest: Callable[[Buffer], bytes]) -> None:
        self.algorithm = algorithm
        self._digest: Callable[[Buffer], bytes] | None = digest

    def digest_many(self, items: Sequence[Buffer], /) -> list[bytes]:
        if self._digest is None:
            raise Misuse(CLOSED)
        return list(map(self._digest, items))

    def close(self) -> None:
        self._digest = None


class KeyedDigests:
    """See `stack.crypto.api.MacSession`."""

    __slots__ = ("_digest", "algorithm", "tag_size")

    def __init__(self, algorithm: Mac, digest: Callable[[Buffer], bytes]) -> None:
        self.algorithm = algorithm
        self.tag_size = algorithm.tag_size
        self._digest: Callable[[Buffer], bytes] | None = digest

    def tag_many(self, items: Sequence[Buffer], /) -> list[bytes]:
        if self._digest is None:
            raise Misuse(CLOSED)
        return list(map(self._digest, items))

    def close(self) -> None:
        self._digest = None


def _aead(algorithm: Aead, key: Buffer) -> OpenSSLAead:
    if algorithm is CHACHA20_POLY1305:
        chacha = ChaCha20Poly1305(key)
        return OpenSSLAead(algorithm, chacha.encrypt, chacha.decrypt)
    if algorithm.name.endswith("gcm"):
        gcm = AESGCM(key)
        return OpenSSLAead(algorithm, gcm.encrypt, gcm.decrypt)
    ccm = AESCCM(key, algorithm.tag_size)
    return OpenSSLCcm(algorithm, ccm.encrypt, ccm.decrypt)


def _hmac_hash(algorithm: Mac) -> hashes.HashAlgorithm:
    kinds: dict[str, type[hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | hashes.SHA3_256 | hashes.SHA3_384 | hashes.SHA3_512]] = {
        HMAC_SHA256.name: hashes.SHA256,
        HMAC_SHA384.name: hashes.SHA384,
        HMAC_SHA512.name: hashes.SHA512,
        HMAC_SHA3_256.name: hashes.SHA3_256,
        HMAC_SHA3_384.name: hashes.SHA3_384,
        HMAC_SHA3_512.name: hashes.SHA3_512,
    }
    return kinds[algorithm.name]()


def _digest(name: str, item: Buffer) -> bytes:
    return hashlib.new(name, item, usedforsecurity=True).digest()


class OpenSSL(NoSessions):
    """See `stack.crypto.api.Provider`."""

    name = "openssl"
    algorithms: tuple[Algorithm, ...] = ALGORITHMS

    def aead(self, algorithm: Aead, key: Buffer) -> OpenSSLAead:
        if algorithm not in self.algorithms:
            raise self._has_no(algorithm)
        check_key(algorithm, key)
        return _aead(algorithm, key)

    def cipher(self, algorithm: Cipher, key: Buffer) -> OpenSSLCtr:
        if algorithm not in self.algorithms:
            raise self._has_no(algorithm)
        check_key(algorithm, key)

        def make(nonce: bytes) -> CipherContext:
            context = OpenSSLCipher(algorithms.AES(key), modes.CTR(nonce)).encryptor()
            assert not isinstance(context, AEADEncryptionContext)
            return context

        return OpenSSLCtr(algorithm, make)

    def mac(self, algorithm: Mac, key: Buffer, tag_size: int) -> OpenSSLMac | KeyedDigests:
        if algorithm not in self.algorithms:
            raise self._has_no(algorithm)
        check_mac(algorithm, key, tag_size)
        if algorithm in CMACS:
            return OpenSSLMac(algorithm, tag_size, CMAC(algorithms.AES(key)).copy)
        if algorithm is BLAKE2B_MAC:
            return KeyedDigests(algorithm, lambda item: hashlib.blake2b(item, key=key).digest())
        if algorithm is BLAKE2S_MAC:
            return KeyedDigests(algorithm, lambda item: hashlib.blake2s(item, key=key).digest())
        return OpenSSLMac(algorithm, tag_size, HMAC(key, _hmac_hash(algorithm)).copy)

    def hash(self, algorithm: Hash) -> Digests:
        if algorithm not in self.algorithms:
            raise self._has_no(algorithm)
        return Digests(algorithm, partial(_digest, algorithm.name.replace("-", "_")))
