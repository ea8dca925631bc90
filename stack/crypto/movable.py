"""A session that can be moved to another provider between two calls: what the handles of all kinds (`stack.crypto.handles`) are.

The calls of a handle are slots. For the providers of this package they hold the methods of the provider's session, so going through a
handle costs nothing; moving changes the slots. For a provider that may fail, or that a module brought, they go by the offer
(`stack.crypto.offer`), which counts as the module's what is raised, and the handle moves on and repeats the batch: the same key, nonces and
plaintexts give the same bytes, so repeating is safe.

Moving has two steps, so that many can move or none: `Handle.prepare` makes the session there, `Move.switch` puts it in place.

A handle owns a copy of its key, for moving, and wipes it when it is closed and no batch is under way in a worker thread.

Dispatch context only. Batches that are answered later (`stack.crypto.jobs`) run the provider's calls in a thread; what they raise is
counted, and moving done, when they are back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, NoReturn, Protocol, TypeVar

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.crypto.algorithms import Algorithm
from stack.crypto.api import CLOSED, Hardware, Provider, ProviderGone
from stack.crypto.jobs import Jobs
from stack.crypto.offer import Offer


class _Session(Protocol):
    def close(self) -> None: ...


S = TypeVar("S", bound=_Session)
T = TypeVar("T")


class Owner(Protocol):
    """The registry, as handles know it."""

    def moved_on(self, handle: Movable, error: ProviderGone) -> None:
        """Its provider failed so: move it to another. ProviderGone when there is none."""
        ...

    def forget(self, handle: Movable) -> None:
        """It is closed."""
        ...

    def forgotten(self, offer: Offer, close: Callable[[], None]) -> None:
        """A handle that nobody closed left a session of *offer*. Any thread: *close* is to be called later."""
        ...


class Moving(Protocol):
    """A session that is made and not in place yet."""

    def switch(self) -> bool:
        """Be served by it from the next call on. False when the handle was closed, or the provider taken away, meanwhile."""
        ...

    def discard(self) -> None: ...


class Movable(Protocol):
    """A handle, as the registry knows it."""

    number: int
    provider: str
    pinned: bool
    hardware: Hardware

    @property
    def algorithm(self) -> Algorithm: ...

    @property
    def served(self) -> bool: ...

    def prepare(self, offer: Offer) -> Moving: ...

    def lose(self, text: str) -> None: ...


def closed_handle(*_: object) -> NoReturn:
    """In the slots of a handle that is closed, or not made yet."""
    raise Misuse(CLOSED)


class Move(Generic[S]):
    """See `Moving`."""

    __slots__ = ("_handle", "_offer", "_session")

    def __init__(self, handle: Handle[S], offer: Offer, session: S) -> None:
        self._handle = handle
        self._offer = offer
        self._session = session

    def switch(self) -> bool:
        if self._offer.gone or not self._handle.take(self._offer, self._session):
            self.discard()
            return False
        return True

    def discard(self) -> None:
        self._offer.let_go(self._session.close)


class Handle(Generic[S]):
    """See the head of this file. Made by `stack.crypto.registry.Crypto`. `provider` is the name of who serves it now, or did when it was
    lost; one that is `pinned` is moved to no other. `hardware` is what its caller wished, and holds wherever it is moved to.
    """

    __slots__ = (
        "__weakref__", "_busy", "_key", "_lost", "_offer", "_old", "_owner", "_session",
        "closed", "hardware", "number", "pinned", "provider",
    )  # fmt: skip

    def __init__(self, owner: Owner, number: int, key: Buffer, pinned: bool) -> None:
        self._owner = owner
        self._key = bytearray(key)
        self._offer: Offer | None = None
        self._session: S | None = None
        self._lost = ""
        self._busy = 0
        self._old: list[tuple[Offer, S]] = []
        """Sessions that were moved away from, or closed, while batches were under way."""
        self.number = number
        self.pinned = pinned
        self.hardware = Hardware.ANY
        self.provider = ""
        self.closed = False

    @property
    def served(self) -> bool:
        """Whether there is a provider for it."""
        return self._session is not None

    def _make(self, provider: Provider) -> S:
        raise NotImplementedError

    def _attach(self, session: S, guarded: bool) -> None:
        """Fill the slots."""
        raise NotImplementedError

    def _detach(self, refuse: Callable[..., NoReturn]) -> None:
        """Fill the slots with *refuse*."""
        raise NotImplementedError

    def prepare(self, offer: Offer) -> Move[S]:
        """A session of *offer*, for the same key. OSError when there is none; nothing of the handle has changed in any case."""
        if self.closed:
            raise Misuse(CLOSED)
        provider = offer.provider()
        return Move(self, offer, offer.ask("session", lambda: self._make(provider)))

    def take(self, offer: Offer, session: S) -> bool:
        """For `Move`: be served by *session*. Whether it is; a handle that was closed takes none."""
        if self.closed:
            return False
        self._set_aside()
        self._offer, self._session, self.provider = offer, session, offer.name
        self._attach(session, offer.guarded)
        self._tidy()
        return True

    def close(self) -> None:
        """Forget the key, as soon as no batch is under way. Idempotent; calls raise Misuse from now on."""
        if self.closed:
            return
        self.closed = True
        self._detach(closed_handle)
        self._owner.forget(self)  # type: ignore[arg-type]  # the four kinds below have an algorithm
        self._set_aside()
        self._tidy()

    def lose(self, text: str) -> None:
        """Nobody serves it any more: every call raises ProviderGone with *text*, until somebody does."""

        def gone(*_: object) -> NoReturn:
            raise ProviderGone(text)

        self._lost = text
        self._detach(gone)
        self._set_aside()
        self._tidy()

    def _set_aside(self) -> None:
        if self._session is not None and self._offer is not None:
            self._old.append((self._offer, self._session))
            self._offer = self._session = None

    def _tidy(self) -> None:
        if self._busy:
            return
        old, self._old = self._old, []
        for offer, session in old:
            offer.let_go(session.close)
        if self.closed:
            self._key[:] = bytes(len(self._key))

    def __del__(self) -> None:
        # Its owner forgot to close it: the key goes all the same, and its session when the registry comes to it. This may be any thread.
        key = getattr(self, "_key", None)
        if key:
            key[:] = bytes(len(key))
        offer, session = getattr(self, "_offer", None), getattr(self, "_session", None)
        if offer is not None and session is not None:
            self._owner.forgotten(offer, session.close)

    def __enter__(self: H) -> H:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _now(self) -> tuple[Offer, S]:
        """Who serves it."""
        if self._offer is None or self._session is None:
            raise Misuse(CLOSED) if self.closed else ProviderGone(self._lost)
        return self._offer, self._session

    def _guard(self, what: str, call: Callable[[S], T]) -> T:
        """*call* of our session, and of the next one when its provider fails."""
        while True:
            offer, session = self._now()
            try:
                return offer.ask(what, partial(call, session))
            except ProviderGone as error:
                # It may have moved within its own call.
                if self._session is session:
                    self._owner.moved_on(self, error)  # type: ignore[arg-type]  # see close

    def _later(
        self, jobs: Jobs, size: int, what: str, call: Callable[[S], T], done: Callable[[T | BaseException], None], client: Hashable
    ) -> None:
        offer, session = self._now()

        def ended(result: T | BaseException) -> None:
            self._busy -= 1
            gone = offer.told(what, result) if isinstance(result, BaseException) else None
            self._tidy()
            offer.ended()
            if gone is None or self.closed:
                done(result if gone is None else gone)
                return
            try:
                if self._session is session:
                    self._owner.moved_on(self, gone)  # type: ignore[arg-type]  # see close
                self._later(jobs, size, what, call, done, client)
            except OSError as error:
                done(error)

        jobs.submit(partial(call, session), size, ended, client)
        self._busy += 1
        offer.began()


H = TypeVar("H", bound=Handle)  # type: ignore[type-arg]  # of any session
