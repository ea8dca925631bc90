"""The kernel's ciphers through AF_ALG sockets (Documentation/crypto/userspace-if.rst), and with them the offload engines that it has
drivers for.

A socket is bound to a cipher and given the key; each socket accepted from it does one operation at a time: one `sendmsg` with the
direction, the nonce and how much of the data is associated data, one `recv` for the result. For an AEAD the kernel echoes the
associated data in front of it.

An item costs two system calls, so this pays only with hardware behind it. The kernel takes about 64 KiB at once (16 pages); longer
items, and messages of no bytes, which kernels answer differently, are done by the provider *inner*.

Everything that the kernel answers and that is not a wrong tag (EBADMSG) means that the engine cannot go on: ProviderGone.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.crypto import algorithms as known
from stack.crypto.algorithms import Aead, Algorithm, Cipher, Hash, Mac
from stack.crypto.api import (
    CLOSED,
    AeadSession,
    CipherSession,
    HashSession,
    MacSession,
    NoSessions,
    Provider,
    ProviderGone,
    check_aead_batch,
    check_cipher_batch,
    check_key,
    check_mac,
    check_plaintexts,
)
from stack.crypto.proccrypto import PATH, chosen

AF_ALG = 38
SOL_ALG = 279
ALG_SET_KEY, ALG_SET_IV, ALG_SET_OP, ALG_SET_AEAD_ASSOCLEN, ALG_SET_AEAD_AUTHSIZE = 1, 2, 3, 4, 5
DECRYPT, ENCRYPT = 0, 1
ITEM_MAX = 32 * 1024
"""Bytes of an item that goes to the kernel, associated data included; half of what it takes, as it counts in pages of several buffers."""

NAMES = {
    **dict.fromkeys(("aes-128-gcm", "aes-256-gcm"), ("aead", "gcm(aes)")),
    **dict.fromkeys(("aes-128-ccm", "aes-256-ccm", "ccmp-128", "ccmp-256"), ("aead", "ccm(aes)")),
    "chacha20-poly1305": ("aead", "rfc7539(chacha20,poly1305)"),
    **dict.fromkeys(("aes-128-ctr", "aes-256-ctr"), ("skcipher", "ctr(aes)")),
    **dict.fromkeys(("aes-128-cmac", "aes-256-cmac"), ("hash", "cmac(aes)")),
    **{one.name: ("hash", f"hmac({one.name.removeprefix('hmac-')})") for one in known.HMACS},
    **{one.name: ("hash", one.name) for one in known.HASHES if not one.name.startswith("blake")},
}
"""Type and name of the kernel for each algorithm that it may have."""


class AlgSocket(Protocol):
    """What of a socket is used."""

    def bind(self, address: tuple[str, str], /) -> None: ...

    def setsockopt(self, level: int, option: int, value: Buffer | None, length: int = ..., /) -> None: ...

    def accept(self) -> tuple[AlgSocket, object]: ...

    def sendmsg_afalg(self, msg: Sequence[Buffer] = ..., *, op: int, iv: Buffer = ..., assoclen: int = ..., flags: int = ...) -> int: ...

    def send(self, data: Buffer, /) -> int: ...

    def recv(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


Open = Callable[[], AlgSocket]


def open_socket() -> AlgSocket:
    """An AF_ALG socket of this machine. OSError where its kernel has none."""
    try:
        made: AlgSocket = socket.socket(AF_ALG, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)  # type: ignore[assignment]  # sendmsg_afalg
    except OSError as error:
        raise OSError(error.errno, f"this kernel offers no ciphers to programs (AF_ALG: {error.strerror})") from error
    return made


class _Operations:
    """A bound socket and those accepted from it: one for each thread that is at work at a time."""

    def __init__(self, opened: Open, algorithm: Algorithm, key: Buffer, tag_size: int) -> None:
        self._free: list[AlgSocket] = []
        self._bound: AlgSocket | None = opened()
        try:
            self._bound.bind(NAMES[algorithm.name])
            if len(key):
                self._bound.setsockopt(SOL_ALG, ALG_SET_KEY, bytes(key))
            if tag_size:
                self._bound.setsockopt(SOL_ALG, ALG_SET_AEAD_AUTHSIZE, None, tag_size)
        except OSError as error:
            self.close()
            raise ProviderGone(f"the kernel does not take a key for {algorithm.name}: {error.strerror}") from error

    @property
    def closed(self) -> bool:
        return self._bound is None

    def take(self) -> AlgSocket:
        if self._bound is None:
            raise Misuse(CLOSED)
        try:
            return self._free.pop()
        except IndexError:
            return self._bound.accept()[0]

    def give(self, operation: AlgSocket) -> None:
        self._free.append(operation)

    def close(self) -> None:
        if self._bound is not None:
            self._bound.close()
            self._bound = None
        while self._free:
            self._free.pop().close()


def _crypted(operation: AlgSocket, direction: int, iv: Buffer, parts: Sequence[Buffer], associated: int, size: int) -> bytes | None:
    """What the kernel makes of *parts*, *size* bytes without the associated data; None for a wrong tag."""
    try:
        operation.sendmsg_afalg(parts, op=direction, iv=iv, assoclen=associated)
        made = operation.recv(associated + size)
    except OSError as error:
        if error.errno == errno.EBADMSG:
            return None
        raise ProviderGone(f"the kernel's cipher failed: {error.strerror}") from error
    return made[associated:]


class AlgAead:
    """See `stack.crypto.api.AeadSession`."""

    def __init__(self, opened: Open, algorithm: Aead, key: Buffer, inner: AeadSession) -> None:
        self.algorithm = algorithm
        self._inner = inner
        self._operations = _Operations(opened, algorithm, key, algorithm.tag_size)
        self._ccm = NAMES[algorithm.name][1].startswith("ccm")

    def _iv(self, nonce: Buffer) -> bytes:
        """CCM's is the first counter block: how long the counter is, the nonce, zeros."""
        return (bytes((14 - len(nonce),)) + bytes(nonce)).ljust(16, b"\0") if self._ccm else bytes(nonce)

    def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes]:
        operation = self._operations.take()
        try:
            check_aead_batch(self.algorithm, nonces, plaintexts, aads)
            check_plaintexts(self.algorithm, plaintexts)
            sealed = []
            for nonce, item, aad in zip(nonces, plaintexts, aads, strict=True):
                if not 0 < len(item) + len(aad) <= ITEM_MAX:
                    sealed += self._inner.seal_many([nonce], [item], [aad])
                    continue
                made = _crypted(operation, ENCRYPT, self._iv(nonce), (aad, item), len(aad), len(item) + self.algorithm.tag_size)
                if made is None or len(made) != len(item) + self.algorithm.tag_size:
                    raise ProviderGone("the kernel's cipher gave another length than it should")
                sealed.append(made)
            return sealed
        finally:
            self._operations.give(operation)

    def open_many(self, nonces: Sequence[Buffer], ciphertexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes | None]:
        operation = self._operations.take()
        try:
            check_aead_batch(self.algorithm, nonces, ciphertexts, aads)
            opened: list[bytes | None] = []
            for nonce, item, aad in zip(nonces, ciphertexts, aads, strict=True):
                size = len(item) - self.algorithm.tag_size
                if size < 0:
                    opened.append(None)
                elif not size or len(item) + len(aad) > ITEM_MAX:
                    opened += self._inner.open_many([nonce], [item], [aad])
                else:
                    opened.append(_crypted(operation, DECRYPT, self._iv(nonce), (aad, item), len(aad), size))
            return opened
        finally:
            self._operations.give(operation)

    def close(self) -> None:
        self._operations.close()
        self._inner.close()


class AlgCtr:
    """See `stack.crypto.api.CipherSession`."""

    def __init__(self, opened: Open, algorithm: Cipher, key: Buffer, inner: CipherSession) -> None:
        self.algorithm = algorithm
        self._inner = inner
        self._operations = _Operations(opened, algorithm, key, 0)

    def encrypt_many(self, nonces: Sequence[Buffer], items: Sequence[Buffer], /) -> list[bytes]:
        operation = self._operations.take()
        try:
            check_cipher_batch(self.algorithm, nonces, items)
            made = []
            for nonce, item in zip(nonces, items, strict=True):
                if not 0 < len(item) <= ITEM_MAX:
                    made += self._inner.encrypt_many([nonce], [item])
                    continue
                one = _crypted(operation, ENCRYPT, bytes(nonce), (item,), 0, len(item))
                if one is None or len(one) != len(item):
                    raise ProviderGone("the kernel's cipher gave another length than it should")
                made.append(one)
            return made
        finally:
            self._operations.give(operation)

    decrypt_many = encrypt_many

    def close(self) -> None:
        self._operations.close()
        self._inner.close()


class _Hashing:
    """What MACs and hashes have in common."""

    def __init__(
        self, opened: Open, algorithm: Mac | Hash, key: Buffer, size: int, inner: Callable[[Sequence[Buffer]], list[bytes]]
    ) -> None:
        self._inner = inner
        self._size = size
        self._operations = _Operations(opened, algorithm, key, 0)

    def many(self, items: Sequence[Buffer]) -> list[bytes]:
        operation = self._operations.take()
        try:
            made = []
            for item in items:
                if not 0 < len(item) <= ITEM_MAX:
                    made += self._inner([item])
                    continue
                try:
                    operation.send(item)
                    made.append(operation.recv(64)[: self._size])
                except OSError as error:
                    raise ProviderGone(f"the kernel's hash failed: {error.strerror}") from error
            return made
        finally:
            self._operations.give(operation)

    def close(self) -> None:
        self._operations.close()


class AlgMac:
    """See `stack.crypto.api.MacSession`."""

    def __init__(self, opened: Open, algorithm: Mac, key: Buffer, inner: MacSession) -> None:
        self.algorithm = algorithm
        self.tag_size = inner.tag_size
        self._inner = inner
        self._hashing = _Hashing(opened, algorithm, key, inner.tag_size, inner.tag_many)
        self.tag_many = self._hashing.many

    def close(self) -> None:
        self._hashing.close()
        self._inner.close()


class AlgHash:
    """See `stack.crypto.api.HashSession`."""

    def __init__(self, opened: Open, algorithm: Hash, inner: HashSession) -> None:
        self.algorithm = algorithm
        self._inner = inner
        self._hashing = _Hashing(opened, algorithm, b"", algorithm.digest_size, inner.digest_many)
        self.digest_many = self._hashing.many

    def close(self) -> None:
        self._hashing.close()
        self._inner.close()


class AfAlg(NoSessions):
    """See `stack.crypto.api.Provider`. *inner*: for items that the kernel does not take. OSError where the kernel has no AF_ALG."""

    name = "afalg"
    fails = True

    def __init__(self, inner: Provider, opened: Open = open_socket, drivers: str | None = None) -> None:
        self._inner = inner
        self._opened = opened
        opened().close()
        self.algorithms = tuple(one for one in known.ALGORITHMS if one.name in NAMES and self._has(one))
        fast = chosen(_drivers() if drivers is None else drivers)
        self.hardware = frozenset(one.name for one in self.algorithms if (made := fast.get(NAMES[one.name][1])) and made.hardware)

    def _has(self, algorithm: Algorithm) -> bool:
        """The kernel has it if a socket can be bound to it; this loads the module for it."""
        one = self._opened()
        try:
            one.bind(NAMES[algorithm.name])
        except OSError:
            return False
        finally:
            one.close()
        return True

    def aead(self, algorithm: Aead, key: Buffer) -> AlgAead:
        if algorithm not in self.algorithms:
            raise self._has_no(algorithm)
        check_key(algorithm, key)
        return AlgAead(self._opened, algorithm, key, self._inner.aead(algorithm, key))

    def cipher(self, algorithm: Cipher, key: Buffer) -> AlgCtr:
        if algorithm not in self.algorithms:
            raise self._has_no(algorithm)
        check_key(algorithm, key)
        return AlgCtr(self._opened, algorithm, key, self._inner.cipher(algorithm, key))

    def mac(self, algorithm: Mac, key: Buffer, tag_size: int) -> AlgMac:
        if algorithm not in self.algorithms:
            raise self._has_no(algorithm)
        check_mac(algorithm, key, tag_size)
        return AlgMac(self._opened, algorithm, key, self._inner.mac(algorithm, key, tag_size))

    def hash(self, algorithm: Hash) -> AlgHash:
        if algorithm not in self.algorithms:
            raise self._has_no(algorithm)
        return AlgHash(self._opened, algorithm, self._inner.hash(algorithm))


def _drivers() -> str:
    try:
        return Path(PATH).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
