"""What a caller of the crypto API holds: a session that can be moved to another provider between two calls.

The calls of a handle are slots. They hold the methods of the provider's session, so going through a handle costs nothing; moving
changes the slots. For a provider that may fail they hold a guard, which moves the handle on and repeats the batch: the same key, nonces and
plaintexts give the same bytes, so repeating is safe.

A handle owns a copy of its key, for moving, and wipes it when it is closed and no batch is under way in a worker thread.

Dispatch context only. Batches that are answered later (`stack.crypto.jobs`) run the provider's calls, not the guard: moving is done
when they are back.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Generic, NoReturn, Protocol, TypeVar

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.crypto.algorithms import Aead, Algorithm, Cipher, Hash, Mac
from stack.crypto.api import CLOSED, AeadSession, CipherSession, Hardware, HashSession, MacSession, Provider, ProviderGone
from stack.crypto.jobs import Jobs, size_of


class _Session(Protocol):
    def close(self) -> None: ...


S = TypeVar("S", bound=_Session)
T = TypeVar("T")
Seal = Callable[[Sequence[Buffer], Sequence[Buffer], Sequence[Buffer]], list[bytes]]
Open = Callable[[Sequence[Buffer], Sequence[Buffer], Sequence[Buffer]], list[bytes | None]]
Crypt = Callable[[Sequence[Buffer], Sequence[Buffer]], list[bytes]]
Digest = Callable[[Sequence[Buffer]], list[bytes]]


class Owner(Protocol):
    """The registry, as handles know it."""

    def moved_on(self, handle: Movable) -> None:
        """Its provider failed: move it to another. ProviderGone when there is none."""
        ...

    def forget(self, handle: Movable) -> None:
        """It is closed."""
        ...


class Movable(Protocol):
    """A handle, as the registry knows it."""

    number: int
    provider: str
    pinned: bool
    hardware: Hardware

    @property
    def algorithm(self) -> Algorithm: ...

    def move(self, provider: Provider) -> None: ...

    def lose(self, text: str) -> None: ...


def _closed(*_: object) -> NoReturn:
    raise Misuse(CLOSED)


class Handle(Generic[S]):
    """See the head of this file. Made by `stack.crypto.registry.Crypto`. `provider` is the name of who serves it now; one that is `pinned`
    is moved only when that provider goes away. `hardware` is what its caller wished, and holds wherever it is moved to.
    """

    __slots__ = ("__weakref__", "_busy", "_key", "_old", "_owner", "_session", "closed", "hardware", "number", "pinned", "provider")

    def __init__(self, owner: Owner, number: int, key: Buffer, pinned: bool) -> None:
        self._owner = owner
        self._key = bytearray(key)
        self._session: S | None = None
        self._busy = 0
        self._old: list[S] = []
        """Sessions that were moved away from, or closed, while batches were under way."""
        self.number = number
        self.pinned = pinned
        self.hardware = Hardware.ANY
        self.provider = ""
        self.closed = False

    def _make(self, provider: Provider) -> S:
        raise NotImplementedError

    def _attach(self, session: S, guarded: bool) -> None:
        """Fill the slots."""
        raise NotImplementedError

    def _detach(self, refuse: Callable[..., NoReturn]) -> None:
        """Fill the slots with *refuse*."""
        raise NotImplementedError

    def move(self, provider: Provider) -> None:
        """Be served by *provider* from the next call on. What its `aead` and the like raise; then nothing has changed."""
        if self.closed:
            raise Misuse(CLOSED)
        session = self._make(provider)
        old, self._session = self._session, session
        self.provider = provider.name
        self._attach(session, provider.fails)
        if old is not None:
            self._old.append(old)
            self._tidy()

    def close(self) -> None:
        """Forget the key, as soon as no batch is under way. Idempotent; calls raise Misuse from now on."""
        if self.closed:
            return
        self.closed = True
        self._detach(_closed)
        self._owner.forget(self)  # type: ignore[arg-type]  # the four kinds below have an algorithm
        if self._session is not None:
            self._old.append(self._session)
            self._session = None
        self._tidy()

    def lose(self, text: str) -> None:
        """Nobody serves it any more: every call raises ProviderGone with *text*."""

        def gone(*_: object) -> NoReturn:
            raise ProviderGone(text)

        old, self._session = self._session, None
        self._detach(gone)
        if old is not None:
            self._old.append(old)
            self._tidy()

    def _tidy(self) -> None:
        if self._busy:
            return
        for session in self._old:
            session.close()
        self._old.clear()
        if self.closed:
            self._key[:] = bytes(len(self._key))

    def __del__(self) -> None:
        # Its owner forgot to close it: the key goes all the same.
        key = getattr(self, "_key", None)
        if key:
            key[:] = bytes(len(key))

    def __enter__(self: H) -> H:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _guard(self, call: Callable[[S], T]) -> T:
        """*call* of our session, and of the next one when its provider fails."""
        while True:
            session = self._session
            assert session is not None
            try:
                return call(session)
            except ProviderGone:
                self._owner.moved_on(self)  # type: ignore[arg-type]  # see close

    def _later(self, jobs: Jobs, size: int, call: Callable[[S], T], done: Callable[[T | BaseException], None], client: Hashable) -> None:
        session = self._session
        if session is None:
            raise Misuse(CLOSED) if self.closed else ProviderGone(f"crypto provider {self.provider} is gone")

        def ended(result: T | BaseException) -> None:
            self._busy -= 1
            self._tidy()
            if isinstance(result, ProviderGone) and not self.closed:
                try:
                    if self._session is session:
                        self._owner.moved_on(self)  # type: ignore[arg-type]  # see close
                    self._later(jobs, size, call, done, client)
                except OSError as error:
                    done(error)
                return
            done(result)

        jobs.submit(partial(call, session), size, ended, client)
        self._busy += 1


H = TypeVar("H", bound=Handle)  # type: ignore[type-arg]  # of any session


class AeadHandle(Handle[AeadSession]):
    """`stack.crypto.api.AeadSession`, and the same calls answered later."""

    __slots__ = ("algorithm", "open_many", "seal_many")

    def __init__(self, owner: Owner, number: int, key: Buffer, pinned: bool, algorithm: Aead) -> None:
        super().__init__(owner, number, key, pinned)
        self.algorithm = algorithm
        self.seal_many: Seal = _closed
        self.open_many: Open = _closed

    def _make(self, provider: Provider) -> AeadSession:
        return provider.aead(self.algorithm, self._key)

    def _attach(self, session: AeadSession, guarded: bool) -> None:
        if guarded:
            self.seal_many = lambda nonces, items, aads: self._guard(lambda one: one.seal_many(nonces, items, aads))
            self.open_many = lambda nonces, items, aads: self._guard(lambda one: one.open_many(nonces, items, aads))
        else:
            self.seal_many, self.open_many = session.seal_many, session.open_many

    def _detach(self, refuse: Callable[..., NoReturn]) -> None:
        self.seal_many = self.open_many = refuse

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

        OSError EAGAIN when *jobs* has no room.
        """
        self._later(jobs, size_of(plaintexts, aads), lambda one: one.seal_many(nonces, plaintexts, aads), done, client)

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
        self._later(jobs, size_of(ciphertexts, aads), lambda one: one.open_many(nonces, ciphertexts, aads), done, client)


class CipherHandle(Handle[CipherSession]):
    """`stack.crypto.api.CipherSession`, and the same calls answered later."""

    __slots__ = ("algorithm", "decrypt_many", "encrypt_many")

    def __init__(self, owner: Owner, number: int, key: Buffer, pinned: bool, algorithm: Cipher) -> None:
        super().__init__(owner, number, key, pinned)
        self.algorithm = algorithm
        self.encrypt_many: Crypt = _closed
        self.decrypt_many: Crypt = _closed

    def _make(self, provider: Provider) -> CipherSession:
        return provider.cipher(self.algorithm, self._key)

    def _attach(self, session: CipherSession, guarded: bool) -> None:
        if guarded:
            self.encrypt_many = lambda nonces, items: self._guard(lambda one: one.encrypt_many(nonces, items))
            self.decrypt_many = lambda nonces, items: self._guard(lambda one: one.decrypt_many(nonces, items))
        else:
            self.encrypt_many, self.decrypt_many = session.encrypt_many, session.decrypt_many

    def _detach(self, refuse: Callable[..., NoReturn]) -> None:
        self.encrypt_many = self.decrypt_many = refuse

    def encrypt_later(
        self,
        jobs: Jobs,
        nonces: Sequence[Buffer],
        items: Sequence[Buffer],
        done: Callable[[list[bytes] | BaseException], None],
        client: Hashable = None,
    ) -> None:
        """`encrypt_many` in the background; see `AeadHandle.seal_later`."""
        self._later(jobs, size_of(items), lambda one: one.encrypt_many(nonces, items), done, client)

    def decrypt_later(
        self,
        jobs: Jobs,
        nonces: Sequence[Buffer],
        items: Sequence[Buffer],
        done: Callable[[list[bytes] | BaseException], None],
        client: Hashable = None,
    ) -> None:
        """`decrypt_many` in the background; see `AeadHandle.seal_later`."""
        self._later(jobs, size_of(items), lambda one: one.decrypt_many(nonces, items), done, client)


class MacHandle(Handle[MacSession]):
    """`stack.crypto.api.MacSession`, verifying, and the same calls answered later."""

    __slots__ = ("algorithm", "tag_many", "tag_size")

    def __init__(self, owner: Owner, number: int, key: Buffer, pinned: bool, algorithm: Mac, tag_size: int) -> None:
        super().__init__(owner, number, key, pinned)
        self.algorithm = algorithm
        self.tag_size = tag_size
        self.tag_many: Digest = _closed

    def _make(self, provider: Provider) -> MacSession:
        return provider.mac(self.algorithm, self._key, self.tag_size)

    def _attach(self, session: MacSession, guarded: bool) -> None:
        self.tag_many = (lambda items: self._guard(lambda one: one.tag_many(items))) if guarded else session.tag_many

    def _detach(self, refuse: Callable[..., NoReturn]) -> None:
        self.tag_many = refuse

    def verify_many(self, items: Sequence[Buffer], tags: Sequence[Buffer]) -> list[bool]:
        """Whether each item has its tag, which has `tag_size` bytes. Takes as long for any wrong tag."""
        if len(items) != len(tags):
            raise Misuse(f"{len(items)} items and {len(tags)} tags")
        return _equal(self.tag_many(items), tags)

    def tag_later(
        self, jobs: Jobs, items: Sequence[Buffer], done: Callable[[list[bytes] | BaseException], None], client: Hashable = None
    ) -> None:
        """`tag_many` in the background; see `AeadHandle.seal_later`."""
        self._later(jobs, size_of(items), lambda one: one.tag_many(items), done, client)

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
        self._later(jobs, size_of(items), lambda one: _equal(one.tag_many(items), tags), done, client)


class HashHandle(Handle[HashSession]):
    """`stack.crypto.api.HashSession`, and the same call answered later."""

    __slots__ = ("algorithm", "digest_many")

    def __init__(self, owner: Owner, number: int, pinned: bool, algorithm: Hash) -> None:
        super().__init__(owner, number, b"", pinned)
        self.algorithm = algorithm
        self.digest_many: Digest = _closed

    def _make(self, provider: Provider) -> HashSession:
        return provider.hash(self.algorithm)

    def _attach(self, session: HashSession, guarded: bool) -> None:
        self.digest_many = (lambda items: self._guard(lambda one: one.digest_many(items))) if guarded else session.digest_many

    def _detach(self, refuse: Callable[..., NoReturn]) -> None:
        self.digest_many = refuse

    def digest_later(
        self, jobs: Jobs, items: Sequence[Buffer], done: Callable[[list[bytes] | BaseException], None], client: Hashable = None
    ) -> None:
        """`digest_many` in the background; see `AeadHandle.seal_later`."""
        self._later(jobs, size_of(items), lambda one: one.digest_many(items), done, client)


def _equal(made: Sequence[bytes], given: Sequence[Buffer]) -> list[bool]:
    return [hmac.compare_digest(one, bytes(other)) for one, other in zip(made, given, strict=True)]
