"""Which providers there are, who serves an algorithm, and moving sessions between them. An object of one stack. Providers are imported when
first used.

Providers stand in an order of preference; the first that has the algorithm serves it. `ByName` providers are passed over unless they
are named (or, for those with hardware, hardware is asked for): they are slower than the others, or for tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Set
from typing import TypeVar
from weakref import WeakValueDictionary

import attrs

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.crypto.algorithms import Aead, Algorithm, Cipher, Hash, Mac
from stack.crypto.api import Hardware, Provider, ProviderGone
from stack.crypto.handles import AeadHandle, CipherHandle, HashHandle, MacHandle, Movable


class NotServed(LookupError):
    """No provider that may serve it has the algorithm. The text is a sentence."""


@attrs.frozen
class ProviderFacts:
    """What a listing shows. `problem` says why it cannot be used, empty when it can; `sessions` are those it serves, by algorithm."""

    name: str
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


@attrs.define
class _Entry:
    make: Callable[[], Provider]
    by_name: bool
    made: Provider | None = None
    problem: OSError | None = None


H = TypeVar("H", AeadHandle, CipherHandle, MacHandle, HashHandle)


class Crypto:
    """Providers by name, in order of preference, and the sessions they serve. Dispatch context only."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._handles: WeakValueDictionary[int, Movable] = WeakValueDictionary()
        """Live ones in the order in which they were made."""
        self._next = 0
        self.moves: Counter[str] = Counter()
        """Sessions moved, by what moved them: use, remove, failed."""
        self.version = 0
        """Another number whenever another provider may serve than before."""

    # Providers

    def add(self, name: str, make: Callable[[], Provider], *, by_name: bool = False) -> None:
        """Offer a provider; *make* is called once, when it is first used, and raises OSError where this machine cannot have it.

        *by_name*: only for who asks for it. Misuse when the name is taken.
        """
        if name in self._entries:
            raise Misuse(f"there is a crypto provider {name} already")
        self._entries[name] = _Entry(make, by_name)
        self.version += 1

    def remove(self, name: str) -> Moved:
        """Take a provider away. Its sessions go on with the next that has their algorithm; those that nobody else can serve, and
        those whose caller insisted on it, raise ProviderGone from now on.
        """
        entry = self._entries.pop(name, None)
        if entry is None:
            raise Misuse(f"there is no crypto provider {name}")
        self.version += 1
        moved = stayed = 0
        for handle in self._served_by(name):
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
        if entry.made is not None:
            entry.made.close()
        return Moved(moved, stayed)

    @property
    def names(self) -> tuple[str, ...]:
        """In order of preference."""
        return tuple(self._entries)

    def provider(self, name: str) -> Provider:
        """LookupError, as a sentence, when there is none of that name; OSError when this machine cannot have it."""
        entry = self._entries.get(name)
        if entry is None:
            raise LookupError(f"there is no crypto provider {name}; there are {', '.join(self._entries) or 'none'}")
        if entry.problem is not None:
            raise entry.problem
        if entry.made is None:
            try:
                entry.made = entry.make()
            except OSError as error:
                self._trouble(entry, error)
                raise
        return entry.made

    def use(self, name: str) -> Moved:
        """Prefer a provider from now on, and move every session to it that it can serve and nobody pinned elsewhere.

        One that failed is tried again. LookupError and OSError as `provider`; then nothing has changed.
        """
        if name in self._entries:
            self._entries[name].problem = None
        provider = self.provider(name)
        entry = self._entries.pop(name)
        entry.by_name = False
        self.version += 1
        self._entries = {name: entry, **self._entries}
        moved = stayed = 0
        for handle in list(self._handles.values()):
            if handle.provider == name:
                continue
            if handle.pinned or not _may_serve(provider, handle.algorithm, handle.hardware):
                stayed += 1
                continue
            try:
                self._move(handle, provider, "use")
                moved += 1
            except ProviderGone:
                # An engine may have room for so many keys: the rest stays where it is served.
                stayed += 1
        return Moved(moved, stayed)

    def facts(self) -> list[ProviderFacts]:
        """Every provider, which makes those that were not used yet; in order of preference."""
        counts: dict[str, Counter[str]] = {}
        for handle in list(self._handles.values()):
            counts.setdefault(handle.provider, Counter())[handle.algorithm.name] += 1
        told = []
        for name, entry in self._entries.items():
            sessions = dict(counts.get(name, {}))
            try:
                made = self.provider(name)
            except OSError as error:
                told.append(ProviderFacts(name, entry.by_name, error.strerror or str(error), (), frozenset(), sessions))
            else:
                told.append(ProviderFacts(name, entry.by_name, "", made.algorithms, made.hardware, sessions))
        return told

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

    def _trouble(self, entry: _Entry, error: OSError) -> None:
        entry.problem = error
        self.version += 1

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _made(self, handle: H, name: str | None, hardware: Hardware) -> H:
        handle.hardware = hardware
        while True:
            provider = self._choose(handle.algorithm, hardware, name)
            try:
                handle.move(provider)
            except ProviderGone as error:
                if name is not None:
                    raise
                self._trouble(self._entries[provider.name], error)
                continue
            self._handles[handle.number] = handle
            return handle

    def _choose(self, algorithm: Algorithm, hardware: Hardware, name: str | None = None, without: Set[str] = frozenset()) -> Provider:
        for one, entry in self._entries.items():
            if one in without or (name is not None and one != name):
                continue
            if name is None and entry.by_name and hardware is not Hardware.ONLY:
                continue
            try:
                found = self.provider(one)
            except OSError:
                if name is not None:
                    raise
                continue
            if _may_serve(found, algorithm, hardware):
                return found
        if name is not None:
            self.provider(name)
        whose = f"no {'other ' if without else ''}crypto provider" if name is None else f"crypto provider {name}"
        what = {Hardware.ANY: "", Hardware.ONLY: " in hardware", Hardware.NEVER: " in software"}[hardware]
        raise NotServed(f"{whose} has {algorithm.name}{what}" if name is None else f"{whose} does not have {algorithm.name}{what}")

    # What handles need

    def moved_on(self, handle: Movable) -> None:
        """`stack.crypto.handles.Owner`."""
        entry = self._entries.get(handle.provider)
        if entry is not None:
            self._trouble(entry, ProviderGone("it failed in the middle of a session"))
        if handle.pinned:
            raise ProviderGone(f"crypto provider {handle.provider}, which the session insists on, does not serve it any more")
        failed = handle.provider
        try:
            self._move_to_next(handle, "failed")
        except NotServed as error:
            raise ProviderGone(f"crypto provider {failed} does not serve {handle.algorithm.name} any more, and {error}") from None

    def forget(self, handle: Movable) -> None:
        """`stack.crypto.handles.Owner`."""
        self._handles.pop(handle.number, None)

    def _served_by(self, name: str) -> list[Movable]:
        return [handle for handle in list(self._handles.values()) if handle.provider == name]

    def _move_to_next(self, handle: Movable, why: str) -> None:
        """To the first other provider that may serve it and has room. NotServed."""
        passed = {handle.provider}
        while True:
            provider = self._choose(handle.algorithm, handle.hardware, without=passed)
            try:
                self._move(handle, provider, why)
                return
            except ProviderGone:
                passed.add(provider.name)

    def _move(self, handle: Movable, provider: Provider, why: str) -> None:
        handle.move(provider)
        self.moves[why] += 1


def _may_serve(provider: Provider, algorithm: Algorithm, hardware: Hardware) -> bool:
    by_hardware = algorithm.name in provider.hardware
    return algorithm in provider.algorithms and hardware is not (Hardware.NEVER if by_hardware else Hardware.ONLY)


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
