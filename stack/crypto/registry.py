"""Which providers there are, and who serves an algorithm. An object of one stack. Providers are imported when first used."""

from __future__ import annotations

from collections.abc import Callable

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.crypto.api import ALGORITHMS, Algorithm, Provider, Session


class Crypto:
    """Providers by name, in order of preference."""

    def __init__(self) -> None:
        self._makers: dict[str, Callable[[], Provider]] = {}
        self._made: dict[str, Provider] = {}

    def add(self, name: str, make: Callable[[], Provider]) -> None:
        """Offer a provider; *make* is called once, when it is first used. Misuse when the name is taken."""
        if name in self._makers:
            raise Misuse(f"there is a crypto provider {name} already")
        self._makers[name] = make

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._makers)

    def provider(self, name: str) -> Provider:
        """LookupError, as a sentence, when there is none of that name."""
        made = self._made.get(name)
        if made is None:
            make = self._makers.get(name)
            if make is None:
                raise LookupError(f"there is no crypto provider {name}; there are {', '.join(self._makers) or 'none'}")
            made = self._made[name] = make()
        return made

    def session(self, algorithm: Algorithm, key: Buffer, provider: str | None = None) -> Session:
        """A session of the named provider, or of the first one that has *algorithm*."""
        for name in self._makers if provider is None else (provider,):
            found = self.provider(name)
            if algorithm in found.algorithms:
                return found.session(algorithm, key)
        raise LookupError(f"no crypto provider has {algorithm.name}")


def algorithm_named(name: str) -> Algorithm:
    """LookupError, as a sentence, when there is none."""
    for algorithm in ALGORITHMS:
        if algorithm.name == name:
            return algorithm
    raise LookupError(f"there is no algorithm {name}; there are {', '.join(one.name for one in ALGORITHMS)}")


def standard_crypto() -> Crypto:
    """A registry with the providers of this package."""
    crypto = Crypto()
    crypto.add("openssl", _openssl)
    return crypto


def _openssl() -> Provider:
    from stack.crypto.providers.openssl import OpenSSL

    return OpenSSL()
