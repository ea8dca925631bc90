"""Sessions and providers: what callers of the crypto API use, and what somebody implements who brings a cipher engine.

A provider makes sessions; a session holds one key and works on many items per call. There is one interface per kind of algorithm.
Results are per item: a forged item is None in the result, not an exception, since an attacker can put one into every batch.

Callers do not ask providers but `stack.crypto.registry.Crypto`, whose handles have the same calls and can be moved from one provider
to another.

Unlike QNX (NetBSD's opencrypto): no session of several chained algorithms, and a batch is a plain call that returns when it is done; later
answers are `stack.crypto.jobs`.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Sequence
from typing import Protocol

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse, ResmgrError
from stack.crypto.algorithms import Aead, Algorithm, Cipher, Hash, Mac


class Hardware(enum.Enum):
    """Whether offload hardware may serve a session. Instructions of the processor are not hardware in this sense."""

    ANY = "any"
    ONLY = "only"
    NEVER = "never"


class ProviderGone(ResmgrError):
    """A session's provider cannot serve it any more, and nothing was done: make a session elsewhere and try again (EAGAIN, as in
    opencrypto).
    """

    def __init__(self, text: str, code: int = errno.EAGAIN) -> None:
        super().__init__(code, text)


class ProviderFailed(ProviderGone):
    """It raised what a provider may not, or gave what is no result; that is counted (`stack.crypto.offer`). EIO. Providers do not raise
    this."""

    def __init__(self, text: str) -> None:
        super().__init__(text, errno.EIO)


class AeadSession(Protocol):
    """One key. The lists of a call have equal length, else Misuse. Nonces are `nonce_size` long and never used twice for sealing."""

    @property
    def algorithm(self) -> Aead: ...

    def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes]:
        """Ciphertext || tag of each item. Buffers are borrowed until this returns.

        Misuse for a nonce of another size, a plaintext longer than `plaintext_max`, or a session that is closed.
        """
        ...

    def open_many(self, nonces: Sequence[Buffer], ciphertexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes | None]:
        """Plaintext of each item, or None where the tag is wrong or the item shorter than a tag. One bad item costs no other item."""
        ...

    def close(self) -> None:
        """Forget the key. Idempotent; later calls raise Misuse. Not while a call is under way in another thread."""
        ...


class CipherSession(Protocol):
    """One key. The lists of a call have equal length, else Misuse. Nothing is authenticated: whoever can change data can change its
    meaning.
    """

    @property
    def algorithm(self) -> Cipher: ...

    def encrypt_many(self, nonces: Sequence[Buffer], items: Sequence[Buffer], /) -> list[bytes]:
        """Each item encrypted from its initial counter block; as long as it was. Borrowed until this returns."""
        ...

    def decrypt_many(self, nonces: Sequence[Buffer], items: Sequence[Buffer], /) -> list[bytes]: ...

    def close(self) -> None:
        """See `AeadSession.close`."""
        ...


class MacSession(Protocol):
    """One key, tags of one size."""

    @property
    def algorithm(self) -> Mac: ...

    @property
    def tag_size(self) -> int: ...

    def tag_many(self, items: Sequence[Buffer], /) -> list[bytes]: ...

    def close(self) -> None:
        """See `AeadSession.close`."""
        ...


class HashSession(Protocol):
    """No key."""

    @property
    def algorithm(self) -> Hash: ...

    def digest_many(self, items: Sequence[Buffer], /) -> list[bytes]: ...

    def close(self) -> None:
        """See `AeadSession.close`."""
        ...


class Provider(Protocol):
    """An implementation of some algorithms, shared by all sessions. Calls of one session may come from several threads at once.

    A kind that no algorithm of `algorithms` has is never asked for; `NoSessions` answers it. What it says of itself is asked once, when it
    is made. It is known by the name that it was offered under.
    """

    @property
    def name(self) -> str: ...

    @property
    def algorithms(self) -> tuple[Algorithm, ...]: ...

    @property
    def hardware(self) -> frozenset[str]:
        """Names of the algorithms that offload hardware does."""
        ...

    @property
    def fails(self) -> bool:
        """Whether its sessions may raise ProviderGone. Their handles then catch it, which costs a call."""
        ...

    def aead(self, algorithm: Aead, key: Buffer) -> AeadSession:
        """Misuse when the key has another size or the algorithm is not this provider's. *key* stays the caller's, and as it is, until the
        session is closed.
        """
        ...

    def cipher(self, algorithm: Cipher, key: Buffer) -> CipherSession: ...

    def mac(self, algorithm: Mac, key: Buffer, tag_size: int) -> MacSession: ...

    def hash(self, algorithm: Hash) -> HashSession: ...

    def close(self) -> None:
        """No session is left: end threads, close descriptors."""
        ...


class NoSessions:
    """Base for providers: software, never gone, nothing to close, and no algorithm of any kind until a method says otherwise."""

    name = ""
    algorithms: tuple[Algorithm, ...] = ()
    hardware: frozenset[str] = frozenset()
    fails = False

    def aead(self, algorithm: Aead, key: Buffer) -> AeadSession:
        raise self._has_no(algorithm)

    def cipher(self, algorithm: Cipher, key: Buffer) -> CipherSession:
        raise self._has_no(algorithm)

    def mac(self, algorithm: Mac, key: Buffer, tag_size: int) -> MacSession:
        raise self._has_no(algorithm)

    def hash(self, algorithm: Hash) -> HashSession:
        raise self._has_no(algorithm)

    def close(self) -> None:
        """Nothing to end."""

    def _has_no(self, algorithm: Algorithm) -> Misuse:
        return Misuse(f"provider {self.name} has no {algorithm.name}")


# What sessions check, for those who write one.


def check_key(algorithm: Aead | Cipher, key: Buffer) -> None:
    if len(key) != algorithm.key_size:
        raise Misuse(f"a key of {algorithm.name} has {algorithm.key_size} bytes, not {len(key)}")


def check_mac(algorithm: Mac, key: Buffer, tag_size: int) -> None:
    if not algorithm.key_min <= len(key) <= algorithm.key_max:
        raise Misuse(f"a key of {algorithm.name} has {algorithm.key_min} to {algorithm.key_max} bytes, not {len(key)}")
    if not algorithm.tag_min <= tag_size <= algorithm.tag_size:
        raise Misuse(f"a tag of {algorithm.name} has {algorithm.tag_min} to {algorithm.tag_size} bytes, not {tag_size}")


def check_aead_batch(algorithm: Aead, nonces: Sequence[Buffer], items: Sequence[Buffer], aads: Sequence[Buffer]) -> None:
    """Lengths of the lists and of the nonces."""
    count = len(nonces)
    if len(items) != count or len(aads) != count:
        raise Misuse(f"{count} nonces, {len(items)} items and {len(aads)} associated data")
    if count and set(map(len, nonces)) != {algorithm.nonce_size}:
        raise Misuse(f"a nonce of {algorithm.name} has {algorithm.nonce_size} bytes")


def check_plaintexts(algorithm: Aead, plaintexts: Sequence[Buffer]) -> None:
    if plaintexts and max(map(len, plaintexts)) > algorithm.plaintext_max:
        raise Misuse(f"a plaintext of {algorithm.name} has at most {algorithm.plaintext_max} bytes")


def check_cipher_batch(algorithm: Cipher, nonces: Sequence[Buffer], items: Sequence[Buffer]) -> None:
    if len(nonces) != len(items):
        raise Misuse(f"{len(nonces)} counter blocks and {len(items)} items")
    if nonces and set(map(len, nonces)) != {algorithm.nonce_size}:
        raise Misuse(f"a counter block of {algorithm.name} has {algorithm.nonce_size} bytes")
    if items and max(map(len, items)) > algorithm.data_max:
        raise Misuse(f"an item of {algorithm.name} has at most {algorithm.data_max} bytes")


CLOSED = "the session is closed"
