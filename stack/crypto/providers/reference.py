"""All algorithms in Python, written from the standards and not from a library: for tests, to have a second opinion on every provider.

Not for keys that matter: table look-ups and numbers of any length take times that depend on the key. Some 10,000 times slower than
OpenSSL. So nobody gets it who does not name it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.crypto import algorithms as known
from stack.crypto.algorithms import Aead, Algorithm, Cipher, Hash, Mac
from stack.crypto.api import (
    CLOSED,
    NoSessions,
    check_aead_batch,
    check_cipher_batch,
    check_key,
    check_mac,
    check_plaintexts,
)
from stack.crypto.pure import blake2, keccak, sha2
from stack.crypto.pure.aes import Aes, cmac, ctr
from stack.crypto.pure.ccm import Ccm
from stack.crypto.pure.chacha import ChaChaPoly
from stack.crypto.pure.gcm import Gcm


class _Sealer(Protocol):
    def seal(self, nonce: Buffer, plaintext: Buffer, aad: Buffer) -> bytes: ...

    def open(self, nonce: Buffer, sealed: Buffer, aad: Buffer) -> bytes | None: ...


class _Digest(Protocol):
    @property
    def block(self) -> int: ...

    def digest(self, message: Buffer) -> bytes: ...


class PureAead:
    """See `stack.crypto.api.AeadSession`."""

    def __init__(self, algorithm: Aead, sealer: _Sealer) -> None:
        self.algorithm = algorithm
        self._sealer: _Sealer | None = sealer

    def _open_sealer(self) -> _Sealer:
        if self._sealer is None:
            raise Misuse(CLOSED)
        return self._sealer

    def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes]:
        sealer = self._open_sealer()
        check_aead_batch(self.algorithm, nonces, plaintexts, aads)
        check_plaintexts(self.algorithm, plaintexts)
        return list(map(sealer.seal, nonces, plaintexts, aads))

    def open_many(self, nonces: Sequence[Buffer], ciphertexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes | None]:
        sealer = self._open_sealer()
        check_aead_batch(self.algorithm, nonces, ciphertexts, aads)
        most = self.algorithm.plaintext_max + self.algorithm.tag_size
        return [
            sealer.open(nonce, item, aad) if len(item) <= most else None for nonce, item, aad in zip(nonces, ciphertexts, aads, strict=True)
        ]

    def close(self) -> None:
        self._sealer = None


class PureCtr:
    """See `stack.crypto.api.CipherSession`."""

    def __init__(self, algorithm: Cipher, key: Buffer) -> None:
        self.algorithm = algorithm
        self._aes: Aes | None = Aes(key)

    def encrypt_many(self, nonces: Sequence[Buffer], items: Sequence[Buffer], /) -> list[bytes]:
        if self._aes is None:
            raise Misuse(CLOSED)
        check_cipher_batch(self.algorithm, nonces, items)
        return list(map(partial(ctr, self._aes), nonces, items))

    decrypt_many = encrypt_many

    def close(self) -> None:
        self._aes = None


class PureMac:
    """See `stack.crypto.api.MacSession`."""

    def __init__(self, algorithm: Mac, tag_size: int, tag: Callable[[Buffer], bytes]) -> None:
        self.algorithm = algorithm
        self.tag_size = tag_size
        self._tag: Callable[[Buffer], bytes] | None = tag

    def tag_many(self, items: Sequence[Buffer], /) -> list[bytes]:
        if self._tag is None:
            raise Misuse(CLOSED)
        return [self._tag(item)[: self.tag_size] for item in items]

    def close(self) -> None:
        self._tag = None


class PureHash:
    """See `stack.crypto.api.HashSession`."""

    def __init__(self, algorithm: Hash, digest: Callable[[Buffer], bytes]) -> None:
        self.algorithm = algorithm
        self._digest: Callable[[Buffer], bytes] | None = digest

    def digest_many(self, items: Sequence[Buffer], /) -> list[bytes]:
        if self._digest is None:
            raise Misuse(CLOSED)
        return list(map(self._digest, items))

    def close(self) -> None:
        self._digest = None


class Hmac:
    """RFC 2104 over any hash."""

    def __init__(self, hasher: _Digest, key: Buffer) -> None:
        short = hasher.digest(key) if len(key) > hasher.block else bytes(key)
        whole = short.ljust(hasher.block, b"\0")
        self._hasher = hasher
        self._inner = bytes(byte ^ 0x36 for byte in whole)
        self._outer = bytes(byte ^ 0x5C for byte in whole)

    def tag(self, message: Buffer) -> bytes:
        return self._hasher.digest(self._outer + self._hasher.digest(self._inner + bytes(message)))


class Reference(NoSessions):
    """See `stack.crypto.api.Provider`."""

    name = "reference"
    algorithms: tuple[Algorithm, ...] = known.ALGORITHMS

    def __init__(self) -> None:
        self._hashes: dict[str, _Digest] = {
            known.SHA224.name: sha2.SHA224,
            known.SHA256.name: sha2.SHA256,
            known.SHA384.name: sha2.SHA384,
            known.SHA512.name: sha2.SHA512,
            known.SHA3_224.name: keccak.SHA3_224,
            known.SHA3_256.name: keccak.SHA3_256,
            known.SHA3_384.name: keccak.SHA3_384,
            known.SHA3_512.name: keccak.SHA3_512,
        }

    def aead(self, algorithm: Aead, key: Buffer) -> PureAead:
        check_key(algorithm, key)
        sealer: _Sealer
        if algorithm is known.CHACHA20_POLY1305:
            sealer = ChaChaPoly(key)
        else:
            sealer = Gcm(key) if algorithm.name.endswith("gcm") else Ccm(key, algorithm.tag_size)
        return PureAead(algorithm, sealer)

    def cipher(self, algorithm: Cipher, key: Buffer) -> PureCtr:
        check_key(algorithm, key)
        return PureCtr(algorithm, key)

    def mac(self, algorithm: Mac, key: Buffer, tag_size: int) -> PureMac:
        check_mac(algorithm, key, tag_size)
        if algorithm in known.CMACS:
            return PureMac(algorithm, tag_size, partial(cmac, Aes(key)))
        if algorithm in known.HMACS:
            return PureMac(algorithm, tag_size, Hmac(self._hashes[algorithm.name.removeprefix("hmac-")], key).tag)
        kind = blake2.BLAKE2B if algorithm is known.BLAKE2B_MAC else blake2.BLAKE2S
        return PureMac(algorithm, tag_size, partial(kind.digest, key=bytes(key)))

    def hash(self, algorithm: Hash) -> PureHash:
        if algorithm in (known.BLAKE2B, known.BLAKE2S):
            return PureHash(algorithm, blake2.BLAKE2B.digest if algorithm is known.BLAKE2B else blake2.BLAKE2S.digest)
        return PureHash(algorithm, self._hashes[algorithm.name].digest)
