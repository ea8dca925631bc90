"""Which providers there are, who serves an algorithm, and moving sessions between them. An object of one stack. Providers are imported when
first used.

Providers stand in an order of preference; the first that has the algorithm serves it. `ByName` providers are passed over unless they
are named (or, for those with hardware, hardware is asked for): they are slower than the others, or for tests.

A provider is the module's that offers it (`stack.crypto.offer`): it goes when its module goes, and what it raises is its module's. The
order is the registry's own, by name: a provider that comes back, as it does when its module is restarted, has its place again, and the
sessions that would be its own.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Set
from typing import TypeVar
from weakref import WeakValueDictionary

import attrs

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.crypto.algorithms import Aead, Algorithm, Cipher, Hash, Mac
from stack.crypto.api import Hardware, Provider, ProviderFailed, ProviderGone
from stack.crypto.handles import AeadHandle, CipherHandle, HashHandle, MacHandle
from stack.crypto.movable import Movable, Moving
from stack.crypto.offer import Guards, NoModules, Offer, Registration, problem_of

ABSENT_MAX = 64
"""Names of providers that are gone and whose place is kept. Stops modules that offer one name after another."""


class NotServed(LookupError):
    """No provider that may serve it has the algorithm. The text is a sentence."""


@attrs.frozen
class ProviderFacts:
    """What a listing shows. `problem` says why it cannot be used, empty when it can; `sessions` are those it serves, by algorithm; `module`
    brought it, "" for those of this package."""

    name: str
    module: str
    by_name: bool
    problem: str
    algorithms: tuple[Algorithm, ...]
    hardware: frozenset[str]
    sessions: dict[str, int]


@attrs.frozen
class Moved:
    """Of `Crypto.use` and `remove`: sessions that moved, and those that stayed, as their algorithm or their caller demands."""

    moved: int
    stayed: int


H = TypeVar("H", AeadHandle, CipherHandle, MacHandle, HashHandle)


class Crypto:
    """Providers by name, in order of preference, and the sessions they serve. Dispatch context only."""

    def __init__(self) -> None:
        self._guards: Guards = NoModules()
        self._soon: Callable[[Callable[[], None]], None] = _at_once
        self._offers: dict[str, Offer] = {}
        self._registrations: dict[str, Registration] = {}
        self._order: list[str] = []
        """Names in order of preference, those of `ABSENT_MAX` that are gone included."""
        self._preferred: set[str] = set()
        """Names in it that somebody put first."""
        self._handles: WeakValueDictionary[int, Movable] = WeakValueDictionary()
        """Live ones in the order in which they were made."""
        self._forgotten: deque[tuple[Offer, Callable[[], None]]] = deque()
        """Sessions of handles that nobody closed, and their ends."""
        self._next = 0
        self.moves: Counter[str] = Counter()
        """Sessions moved, by what moved them: use, remove, failed, returned."""
        self.version = 0
        """Another number whenever another provider may serve than before."""

    def belong_to(self, guards: Guards, soon: Callable[[Callable[[], None]], None]) -> None:
        """Be the registry of a stack: what is offered from now on is the module's whose callback is running. *soon* calls what it gets in
        another turn."""
        self._guards, self._soon = guards, soon

    # Providers

    def add(self, name: str, make: Callable[[], Provider], *, by_name: bool = False) -> Registration:
        """Offer a provider, until what is returned is revoked; *make* is called once, when it is first used, and raises OSError where this
        machine cannot have it.

        *by_name*: only for who asks for it. Misuse when the name is taken. One of a name that was here takes the place that it had, and
        soon has its sessions again.
        """
        if name in self._offers:
            raise Misuse(f"there is a crypto provider {name} already")
        offer = self._offers[name] = Offer(name, make, by_name and name not in self._preferred, self._guards)
        if name not in self._order:
            self._order.append(name)
        self.version += 1

        def revoke() -> None:
            self._take(offer)

        self._registrations[name] = registration = self._guards.registered(f"crypto provider {name}", revoke)
        if self._handles:
            # Not at once: its module may not have all that *make* needs yet.
            self._soon(lambda: self._welcome(offer))
        return registration

    def remove(self, name: str) -> Moved:
        """Take a provider away. Its sessions go on with the next that has their algorithm; those that nobody else can serve, and
        those whose caller insisted on it, raise ProviderGone until there is one again.
        """
        offer = self._offers.get(name)
        if offer is None:
            raise Misuse(f"there is no crypto provider {name}")
        registration = self._registrations[name]
        moved = self._take(offer)
        registration.revoke()
        return moved

    def _take(self, offer: Offer) -> Moved:
        name = offer.name
        self._tidy()
        if self._offers.get(name) is not offer:
            return Moved(0, 0)
        del self._offers[name], self._registrations[name]
        self.version += 1
        moved = stayed = 0
        for handle in self._live():
            if handle.provider != name or not handle.served:
                continue
            if handle.pinned:
                handle.lose(f"crypto provider {name}, which the session insists on, is gone")
                stayed += 1
                continue
            try:
                self._move_to_next(handle, "remove")
                moved += 1
            except NotServed as error:
                handle.lose(f"crypto provider {name} is gone, and {error}")
                stayed += 1
        offer.end()
        absent = [one for one in self._order if one not in self._offers]
        for one in absent[ABSENT_MAX:]:
            self._order.remove(one)
            self._preferred.discard(one)
        return Moved(moved, stayed)

    def close(self) -> None:
        """Take all providers away: their threads and descriptors are gone when no batch is under way. Idempotent. Sessions that are left
        raise ProviderGone."""
        for handle in self._live():
            handle.lose("the crypto providers are closed")
        for name in list(self._offers):
            self.remove(name)

    @property
    def names(self) -> tuple[str, ...]:
        """In order of preference."""
        return tuple(name for name in self._order if name in self._offers)

    def provider(self, name: str) -> Provider:
        """LookupError, as a sentence, when there is none of that name; OSError when this machine cannot have it."""
        return self._made_now(self._named(name))

    def _named(self, name: str) -> Offer:
        offer = self._offers.get(name)
        if offer is None:
            raise LookupError(f"there is no crypto provider {name}; there are {', '.join(self.names) or 'none'}")
        return offer

    def _made_now(self, offer: Offer) -> Provider:
        known = offer.problem
        try:
            return offer.provider()
        except OSError:
            if offer.problem is not known:
                self.version += 1
            raise

    def use(self, name: str) -> Moved:
        """Prefer a provider from now on, and move every session to it that it can serve, has room for, and nobody pinned elsewhere.

        One that failed is tried again. LookupError and OSError as `provider`, and OSError when it fails for a session: then nothing has
        changed. Sessions move when each that shall has one there.
        """
        offer = self._named(name)
        before, offer.problem = offer.problem, None
        moving: list[Moving] = []
        stayed = 0
        try:
            self._made_now(offer)
            for handle in self._live():
                if handle.provider == name and handle.served:
                    continue
                if (handle.pinned and handle.provider != name) or not offer.serves(handle.algorithm, handle.hardware):
                    stayed += 1
                    continue
                try:
                    moving.append(handle.prepare(offer))
                except ProviderFailed as error:
                    raise ProviderFailed(f"{error.strerror}; nothing has changed") from error
                except ProviderGone:
                    # An engine may have room for so many keys: the rest stays where it is served.
                    stayed += 1
            if offer.gone:
                raise ProviderGone(f"crypto provider {name} is gone")
        except OSError:
            if offer.problem is None:
                offer.problem = before
            for one in moving:
                one.discard()
            raise
        offer.by_name = False
        self._preferred.add(name)
        self._order.remove(name)
        self._order.insert(0, name)
        self.version += 1
        moved = sum(one.switch() for one in moving)
        self.moves["use"] += moved
        return Moved(moved, stayed)

    def _welcome(self, offer: Offer) -> None:
        """Give a provider that has come the sessions that nobody served, and, if it was preferred before, those that would be its own."""
        for handle in self._live():
            ours = handle.provider == offer.name
            if offer.gone or (handle.served and (ours or offer.name not in self._preferred)) or (handle.pinned and not ours):
                continue
            try:
                if self._choose(handle.algorithm, handle.hardware, offer.name if handle.pinned else None) is offer:
                    self._move(handle, offer, "returned")
            except ProviderFailed as error:
                self._trouble(offer, error)
                return
            except (NotServed, OSError):
                continue

    def facts(self) -> list[ProviderFacts]:
        """Every provider, which makes those that were not used yet; in order of preference."""
        self._tidy()
        counts: dict[str, Counter[str]] = {}
        for handle in self._live():
            if handle.served:
                counts.setdefault(handle.provider, Counter())[handle.algorithm.name] += 1
        told = []
        for offer in self._ordered():
            problem = ""
            try:
                self._made_now(offer)
            except OSError as error:
                problem = error.strerror or str(error)
            algorithms, hardware = ((), frozenset[str]()) if problem else (offer.algorithms, offer.hardware)
            sessions = dict(counts.get(offer.name, {}))
            told.append(ProviderFacts(offer.name, offer.module, offer.by_name, problem, algorithms, hardware, sessions))
        return told

    def _ordered(self) -> list[Offer]:
        return [self._offers[name] for name in self.names]

    # Sessions

    def aead(self, algorithm: Aead, key: Buffer, provider: str | None = None, hardware: Hardware = Hardware.ANY) -> AeadHandle:
        """A session of the named provider, or of the first that has *algorithm*. *key* is copied.

        NotServed, which is a LookupError, as a sentence; OSError when the named provider cannot be had; Misuse for a key of another size.
        """
        return self._made(AeadHandle(self, self._number(), key, provider is not None, algorithm), provider, hardware)

    def cipher(self, algorithm: Cipher, key: Buffer, provider: str | None = None, hardware: Hardware = Hardware.ANY) -> CipherHandle:
        """See `aead`."""
        return self._made(CipherHandle(self, self._number(), key, provider is not None, algorithm), provider, hardware)

    def mac(
        self, algorithm: Mac, key: Buffer, tag_size: int = 0, provider: str | None = None, hardware: Hardware = Hardware.ANY
    ) -> MacHandle:
        """See `aead`. *tag_size* 0: whole tags."""
        handle = MacHandle(self, self._number(), key, provider is not None, algorithm, tag_size or algorithm.tag_size)
        return self._made(handle, provider, hardware)

    def hash(self, algorithm: Hash, provider: str | None = None, hardware: Hardware = Hardware.ANY) -> HashHandle:
        """See `aead`."""
        return self._made(HashHandle(self, self._number(), provider is not None, algorithm), provider, hardware)

    def serving(self, algorithm: Algorithm) -> str:
        """The provider that a new session would have; empty when there is none."""
        try:
            return self._choose(algorithm, Hardware.ANY).name
        except NotServed:
            return ""

    @property
    def sessions(self) -> int:
        return len(self._handles)

    def _trouble(self, offer: Offer, error: OSError) -> None:
        offer.problem = problem_of(error)
        self.version += 1

    def _number(self) -> int:
        self._tidy()
        self._next += 1
        return self._next

    def _made(self, handle: H, name: str | None, hardware: Hardware) -> H:
        handle.hardware = hardware
        while not handle.served:
            offer = self._choose(handle.algorithm, hardware, name)
            try:
                handle.prepare(offer).switch()
            except ProviderGone as error:
                if name is not None:
                    raise
                self._trouble(offer, error)
        self._handles[handle.number] = handle
        return handle

    def _choose(self, algorithm: Algorithm, hardware: Hardware, name: str | None = None, without: Set[str] = frozenset()) -> Offer:
        what = {Hardware.ANY: "", Hardware.ONLY: " in hardware", Hardware.NEVER: " in software"}[hardware]
        if name is not None:
            offer = self._named(name)
            self._made_now(offer)
            if offer.serves(algorithm, hardware):
                return offer
            raise NotServed(f"crypto provider {name} does not have {algorithm.name}{what}")
        for offer in self._ordered():
            if offer.name in without or (offer.by_name and hardware is not Hardware.ONLY):
                continue
            try:
                self._made_now(offer)
            except OSError:
                continue
            # To make one calls its module, which may take away what it likes.
            if not offer.gone and offer.serves(algorithm, hardware):
                return offer
        raise NotServed(f"no {'other ' if without else ''}crypto provider has {algorithm.name}{what}")

    # What handles need

    def moved_on(self, handle: Movable, error: ProviderGone) -> None:
        """`stack.crypto.movable.Owner`."""
        failed = handle.provider
        offer = self._offers.get(failed)
        if offer is not None:
            broke = ": " + error.strerror if isinstance(error, ProviderFailed) and error.strerror else ""
            self._trouble(offer, ProviderGone(f"it failed in the middle of a session{broke}"))
        if handle.pinned:
            raise ProviderGone(f"crypto provider {failed}, which the session insists on, does not serve it any more")
        try:
            self._move_to_next(handle, "failed")
        except NotServed as none:
            raise ProviderGone(f"crypto provider {failed} does not serve {handle.algorithm.name} any more, and {none}") from None

    def forget(self, handle: Movable) -> None:
        """`stack.crypto.movable.Owner`."""
        self._handles.pop(handle.number, None)

    def forgotten(self, offer: Offer, close: Callable[[], None]) -> None:
        """`stack.crypto.movable.Owner`."""
        self._forgotten.append((offer, close))

    def _tidy(self) -> None:
        while self._forgotten:
            offer, close = self._forgotten.popleft()
            offer.let_go(close)

    def _live(self) -> Iterator[Movable]:
        """Those of now that were not closed, by what was done for those before, when they come."""
        for handle in list(self._handles.values()):
            if handle.number in self._handles:
                yield handle

    def _move_to_next(self, handle: Movable, why: str) -> None:
        """To the first other provider that may serve it and has room. NotServed."""
        passed = {handle.provider}
        while True:
            offer = self._choose(handle.algorithm, handle.hardware, without=passed)
            try:
                self._move(handle, offer, why)
                return
            except ProviderFailed as error:
                self._trouble(offer, error)
            except ProviderGone:
                passed.add(offer.name)

    def _move(self, handle: Movable, offer: Offer, why: str) -> None:
        if not handle.prepare(offer).switch():
            raise ProviderGone(f"crypto provider {offer.name} is gone")
        self.moves[why] += 1


def _at_once(call: Callable[[], None]) -> None:
    call()


def standard_crypto() -> Crypto:
    """A registry with the providers of this package."""
    crypto = Crypto()
    add_standard(crypto)
    return crypto


def add_standard(crypto: Crypto) -> None:
    """Offer the providers of this package."""
    crypto.add("openssl", _openssl)
    crypto.add("threads", _threads, by_name=True)
    crypto.add("afalg", _afalg, by_name=True)
    crypto.add("reference", _reference, by_name=True)


def _openssl() -> Provider:
    from stack.crypto.providers.openssl import OpenSSL

    return OpenSSL()


def _threads() -> Provider:
    from stack.crypto.providers.threads import Threads

    return Threads(_openssl())


def _afalg() -> Provider:
    from stack.crypto.providers.afalg import AfAlg

    return AfAlg(_openssl())


def _reference() -> Provider:
    from stack.crypto.providers.reference import Reference

    return Reference()
