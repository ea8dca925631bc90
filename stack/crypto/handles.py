"""What a caller of the crypto API holds, one class for each kind of algorithm (`stack.crypto.movable` is what they share).

What a caller did wrong is found here before a provider is asked that may fail or that a module brought, so whatever one raises is its own
failure. What such a provider gives is measured: as many results as items, each as long as it must be.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Hashable, Sequence
from typing import NoReturn, Protocol, TypeVar

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.crypto.algorithms import CMACS, Aead, Cipher, Hash, Mac
from stack.crypto.api import (
    AeadSession,
    CipherSession,
    HashSession,
    MacSession,
    Provider,
    check_aead_batch,
    check_cipher_batch,
    check_key,
    check_mac,
    check_plaintexts,
)
from stack.crypto.jobs import Jobs, size_of
from stack.crypto.movable import Handle, Owner, closed_handle
from stack.crypto.offer import Broke
from stack.crypto.parts import LETS_GO, NEVER, in_parts

S = TypeVar("S", contravariant=True)
R = TypeVar("R")
WHOLE = slice(None)


class Part(Protocol[S, R]):
    """A call of a session for a part of a batch."""

    def __call__(self, session: S, part: slice = WHOLE, /) -> list[R]: ...


Seal = Callable[[Sequence[Buffer], Sequence[Buffer], Sequence[Buffer]], list[bytes]]
Open = Callable[[Sequence[Buffer], Sequence[Buffer], Sequence[Buffer]], list[bytes | None]]
Crypt = Callable[[Sequence[Buffer], Sequence[Buffer]], list[bytes]]
Digest = Callable[[Sequence[Buffer]], list[bytes]]


class AeadHandle(Handle[AeadSession]):
    """`stack.crypto.api.AeadSession`, and the same calls answered later."""

    __slots__ = ("algorithm", "open_many", "seal_many")

    def __init__(self, owner: Owner, number: int, key: Buffer, pinned: bool, algorithm: Aead) -> None:
        check_key(algorithm, key)
        super().__init__(owner, number, key, pinned)
        self.algorithm = algorithm
        self.seal_many: Seal = closed_handle
        self.open_many: Open = closed_handle

    def _make(self, provider: Provider) -> AeadSession:
        return provider.aead(self.algorithm, self._key)

    def _attach(self, session: AeadSession, guarded: bool) -> None:
        if guarded:
            self.seal_many = lambda nonces, items, aads: self._guard("seal_many", self._sealing(nonces, items, aads))
            self.open_many = lambda nonces, items, aads: self._guard("open_many", self._opening(nonces, items, aads))
        else:
            self.seal_many, self.open_many = session.seal_many, session.open_many

    def _detach(self, refuse: Callable[..., NoReturn]) -> None:
        self.seal_many = self.open_many = refuse

    def _sealing(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer]) -> Part[AeadSession, bytes]:
        check_aead_batch(self.algorithm, nonces, plaintexts, aads)
        check_plaintexts(self.algorithm, plaintexts)
        tag = self.algorithm.tag_size

        def sealed(session: AeadSession, part: slice = WHOLE) -> list[bytes]:
            items = plaintexts[part]
            return _measured(session.seal_many(nonces[part], items, aads[part]), [len(one) + tag for one in items])

        return sealed

    def _opening(self, nonces: Sequence[Buffer], ciphertexts: Sequence[Buffer], aads: Sequence[Buffer]) -> Part[AeadSession, bytes | None]:
        check_aead_batch(self.algorithm, nonces, ciphertexts, aads)
        tag = self.algorithm.tag_size

        def opened(session: AeadSession, part: slice = WHOLE) -> list[bytes | None]:
            items = ciphertexts[part]
            found = session.open_many(nonces[part], items, aads[part])
            if type(found) is not list:
                raise Broke("it gave no list")
            told = [(given, one) for given, one in zip(items, found, strict=True) if one is not None]
            _measured([one for _, one in told], [len(given) - tag for given, _ in told])
            return found

        return opened

    def seal_later(
        self,
        jobs: Jobs,
        nonces: Sequence[Buffer],
        plaintexts: Sequence[Buffer],
        aads: Sequence[Buffer],
        done: Callable[[list[bytes] | BaseException], None],
        client: Hashable = None,
    ) -> None:
        """`seal_many` in the background. The lists and buffers are borrowed until *done*. *client*: for whom, see `Jobs`.

        OSError EAGAIN when *jobs* has no room; Misuse as `seal_many`.
        """
        work = in_parts(plaintexts, self._sealing(nonces, plaintexts, aads), aads)
        self._later(jobs, size_of(plaintexts, aads), "seal_many", work, done, client)

    def open_later(
        self,
        jobs: Jobs,
        nonces: Sequence[Buffer],
        ciphertexts: Sequence[Buffer],
        aads: Sequence[Buffer],
        done: Callable[[list[bytes | None] | BaseException], None],
        client: Hashable = None,
    ) -> None:
        """`open_many` in the background; see `seal_later`."""
        work = in_parts(ciphertexts, self._opening(nonces, ciphertexts, aads), aads)
        self._later(jobs, size_of(ciphertexts, aads), "open_many", work, done, client)


class CipherHandle(Handle[CipherSession]):
    """`stack.crypto.api.CipherSession`, and the same calls answered later."""

    __slots__ = ("algorithm", "decrypt_many", "encrypt_many")

    def __init__(self, owner: Owner, number: int, key: Buffer, pinned: bool, algorithm: Cipher) -> None:
        check_key(algorithm, key)
        super().__init__(owner, number, key, pinned)
        self.algorithm = algorithm
        self.encrypt_many: Crypt = closed_handle
        self.decrypt_many: Crypt = closed_handle

    def _make(self, provider: Provider) -> CipherSession:
        return provider.cipher(self.algorithm, self._key)

    def _attach(self, session: CipherSession, guarded: bool) -> None:
        if guarded:
            self.encrypt_many = lambda nonces, items: self._guard("encrypt_many", self._crypting(nonces, items, True))
            self.decrypt_many = lambda nonces, items: self._guard("decrypt_many", self._crypting(nonces, items, False))
        else:
            self.encrypt_many, self.decrypt_many = session.encrypt_many, session.decrypt_many

    def _detach(self, refuse: Callable[..., NoReturn]) -> None:
        self.encrypt_many = self.decrypt_many = refuse

    def _crypting(self, nonces: Sequence[Buffer], items: Sequence[Buffer], encrypt: bool) -> Part[CipherSession, bytes]:
        check_cipher_batch(self.algorithm, nonces, items)

        def crypted(session: CipherSession, part: slice = WHOLE) -> list[bytes]:
            now = items[part]
            return _measured((session.encrypt_many if encrypt else session.decrypt_many)(nonces[part], now), list(map(len, now)))

        return crypted

    def encrypt_later(
        self,
        jobs: Jobs,
        nonces: Sequence[Buffer],
        items: Sequence[Buffer],
        done: Callable[[list[bytes] | BaseException], None],
        client: Hashable = None,
    ) -> None:
        """`encrypt_many` in the background; see `AeadHandle.seal_later`."""
        self._later(jobs, size_of(items), "encrypt_many", in_parts(items, self._crypting(nonces, items, True)), done, client)

    def decrypt_later(
        self,
        jobs: Jobs,
        nonces: Sequence[Buffer],
        items: Sequence[Buffer],
        done: Callable[[list[bytes] | BaseException], None],
        client: Hashable = None,
    ) -> None:
        """`decrypt_many` in the background; see `AeadHandle.seal_later`."""
        self._later(jobs, size_of(items), "decrypt_many", in_parts(items, self._crypting(nonces, items, False)), done, client)


class MacHandle(Handle[MacSession]):
    """`stack.crypto.api.MacSession`, verifying, and the same calls answered later."""

    __slots__ = ("algorithm", "tag_many", "tag_size")

    def __init__(self, owner: Owner, number: int, key: Buffer, pinned: bool, algorithm: Mac, tag_size: int) -> None:
        check_mac(algorithm, key, tag_size)
        super().__init__(owner, number, key, pinned)
        self.algorithm = algorithm
        self.tag_size = tag_size
        self.tag_many: Digest = closed_handle

    def _make(self, provider: Provider) -> MacSession:
        return provider.mac(self.algorithm, self._key, self.tag_size)

    def _attach(self, session: MacSession, guarded: bool) -> None:
        self.tag_many = (lambda items: self._guard("tag_many", self._tagging(items))) if guarded else session.tag_many

    def _detach(self, refuse: Callable[..., NoReturn]) -> None:
        self.tag_many = refuse

    def _tagging(self, items: Sequence[Buffer]) -> Part[MacSession, bytes]:
        def tagged(session: MacSession, part: slice = WHOLE) -> list[bytes]:
            now = items[part]
            return _measured(session.tag_many(now), [self.tag_size] * len(now))

        return tagged

    def _in_parts(self, items: Sequence[Buffer]) -> Callable[[MacSession], list[bytes]]:
        return in_parts(items, self._tagging(items), lets_go=NEVER if self.algorithm in CMACS else LETS_GO)

    def verify_many(self, items: Sequence[Buffer], tags: Sequence[Buffer]) -> list[bool]:
        """Whether each item has its tag, which has `tag_size` bytes. Takes as long for any wrong tag."""
        if len(items) != len(tags):
            raise Misuse(f"{len(items)} items and {len(tags)} tags")
        return _equal(self.tag_many(items), tags)

    def tag_later(
        self, jobs: Jobs, items: Sequence[Buffer], done: Callable[[list[bytes] | BaseException], None], client: Hashable = None
    ) -> None:
        """`tag_many` in the background; see `AeadHandle.seal_later`."""
        self._later(jobs, size_of(items), "tag_many", self._in_parts(items), done, client)

    def verify_later(
        self,
        jobs: Jobs,
        items: Sequence[Buffer],
        tags: Sequence[Buffer],
        done: Callable[[list[bool] | BaseException], None],
        client: Hashable = None,
    ) -> None:
        """`verify_many` in the background; see `AeadHandle.seal_later`."""
        if len(items) != len(tags):
            raise Misuse(f"{len(items)} items and {len(tags)} tags")
        tagging = self._in_parts(items)
        self._later(jobs, size_of(items), "tag_many", lambda session: _equal(tagging(session), tags), done, client)


class HashHandle(Handle[HashSession]):
    """`stack.crypto.api.HashSession`, and the same call answered later."""

    __slots__ = ("algorithm", "digest_many")

    def __init__(self, owner: Owner, number: int, pinned: bool, algorithm: Hash) -> None:
        super().__init__(owner, number, b"", pinned)
        self.algorithm = algorithm
        self.digest_many: Digest = closed_handle

    def _make(self, provider: Provider) -> HashSession:
        return provider.hash(self.algorithm)

    def _attach(self, session: HashSession, guarded: bool) -> None:
        self.digest_many = (lambda items: self._guard("digest_many", self._digesting(items))) if guarded else session.digest_many

    def _detach(self, refuse: Callable[..., NoReturn]) -> None:
        self.digest_many = refuse

    def _digesting(self, items: Sequence[Buffer]) -> Part[HashSession, bytes]:
        def digested(session: HashSession, part: slice = WHOLE) -> list[bytes]:
            now = items[part]
            return _measured(session.digest_many(now), [self.algorithm.digest_size] * len(now))

        return digested

    def digest_later(
        self, jobs: Jobs, items: Sequence[Buffer], done: Callable[[list[bytes] | BaseException], None], client: Hashable = None
    ) -> None:
        """`digest_many` in the background; see `AeadHandle.seal_later`."""
        self._later(jobs, size_of(items), "digest_many", in_parts(items, self._digesting(items)), done, client)


def _measured(made: list[bytes], sizes: list[int]) -> list[bytes]:
    """*made*, if it is that many results of those sizes."""
    if type(made) is not list or not all(isinstance(one, bytes) for one in made) or list(map(len, made)) != sizes:
        raise Broke("its results are not as many, or not as long, as they must be")
    return made


def _equal(made: Sequence[bytes], given: Sequence[Buffer]) -> list[bool]:
    return [hmac.compare_digest(one, bytes(other)) for one, other in zip(made, given, strict=True)]
