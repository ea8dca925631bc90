"""A provider as it was offered to the registry: made at first use, and called under the guard of the module that brought it.

Providers come from modules, and what they raise is theirs. `Offer.ask` is the one way to call one: whatever it raises but `ProviderGone`
is counted as its module's, which is restarted if it asked for that, and becomes `ProviderFailed`: an answer that the registry knows what to
do with, like `ProviderGone`. Who uses a session never sees what its provider raised.

What a provider says of itself is asked for once, when it is made.

`stack.core.isolation` has the guards; `Guards` and `Guard` are what is needed of them here, since this package is below it.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

import attrs

from resmgr.errors import ResmgrError
from stack.crypto.algorithms import Aead, Algorithm, Cipher, Hash, Mac
from stack.crypto.api import Hardware, Provider, ProviderFailed, ProviderGone

log = logging.getLogger(__name__)

R = TypeVar("R")


class Registration(Protocol):
    """`stack.core.registry.Registration`."""

    def revoke(self) -> None:
        """Take it away. Idempotent."""
        ...


class Guard(Protocol):
    """A module's. `stack.core.isolation.Guard`."""

    module: str

    def ask(self, what: str, call: Callable[[], R]) -> R:
        """*call* as the module's: what it raises is counted and raised on."""
        ...


class Guards(Protocol):
    """Of one stack. `stack.core.isolation.Guards`."""

    @property
    def current(self) -> Guard | None:
        """Of the module whose callback is running."""
        ...

    def registered(self, what: str, revoke: Callable[[], None]) -> Registration:
        """Something is the current module's from now on, and goes when it goes."""
        ...

    def failure(self, what: str, callback: Callable[..., object], guard: None) -> None:
        """Nobody's *callback* raised; called while that is handled."""
        ...


class _Taken:
    """What nobody owns."""

    def __init__(self, revoke: Callable[[], None]) -> None:
        self._revoke: Callable[[], None] | None = revoke

    def revoke(self) -> None:
        revoke, self._revoke = self._revoke, None
        if revoke is not None:
            revoke()


class NoModules:
    """`Guards` of a registry that is no stack's."""

    current = None

    def registered(self, what: str, revoke: Callable[[], None]) -> Registration:
        return _Taken(revoke)

    def failure(self, what: str, callback: Callable[..., object], guard: None) -> None:
        log.exception("exception in %s (%r)", what, callback)


class Broke(Exception):
    """A provider did what its interface does not know; the cause is its exception, if it was one."""


@attrs.frozen
class Problem:
    """Why a provider cannot be used, as errno and text: an exception would keep alive what it was raised through."""

    code: int
    text: str

    def error(self) -> OSError:
        return ResmgrError(self.code, self.text)


def problem_of(error: OSError) -> Problem:
    return Problem(error.errno or errno.EIO, error.strerror or str(error) or type(error).__name__)


class Offer:
    """See the head of this file. `problem` says why it cannot be used just now; `gone`: it was taken away."""

    def __init__(self, name: str, make: Callable[[], Provider], by_name: bool, guards: Guards) -> None:
        self.name = name
        self.by_name = by_name
        self.guard = guards.current
        self.problem: Problem | None = None
        self.gone = False
        self.algorithms: tuple[Algorithm, ...] = ()
        self.hardware: frozenset[str] = frozenset()
        self._fails = False
        self._busy = 0
        self._make = make
        self._made: Provider | None = None
        self._guards = guards

    @property
    def guarded(self) -> bool:
        """Whether its sessions must be called by `ask`: they may fail, or are a module's."""
        return self._fails or self.guard is not None

    @property
    def module(self) -> str:
        """That brought it; "" for none."""
        return "" if self.guard is None else self.guard.module

    def provider(self) -> Provider:
        """The provider. OSError when this machine cannot have it, or it fails; `problem` has it then."""
        self._check()
        if self._made is None:
            try:
                self._made = self.ask("make", self._begin, refuses=True)
            except OSError as error:
                self.problem = problem_of(error)
                raise
            # Its module may have gone within its own call.
            made = self._made
            self._close()
            self._check()
            return made
        return self._made

    def _check(self) -> None:
        if self.gone:
            raise ProviderGone(f"crypto provider {self.name} is gone")
        if self.problem is not None:
            raise self.problem.error()

    def _begin(self) -> Provider:
        made = self._make()
        try:
            self._learn(made)
        except BaseException:
            # Nobody has it; one that is no provider may have no end.
            if hasattr(made, "close"):
                self.let_go(made.close)
            raise
        return made

    def _learn(self, made: Provider) -> None:
        algorithms, hardware, fails = tuple(made.algorithms), frozenset(made.hardware), bool(made.fails)
        if not all(isinstance(one, Aead | Cipher | Mac | Hash) for one in algorithms) or not all(isinstance(one, str) for one in hardware):
            raise Broke("its algorithms are none")
        self.algorithms, self.hardware, self._fails = algorithms, hardware, fails

    def serves(self, algorithm: Algorithm, hardware: Hardware) -> bool:
        """Whether it may serve a session. It must have been made."""
        by_hardware = algorithm.name in self.hardware
        return algorithm in self.algorithms and hardware is not (Hardware.NEVER if by_hardware else Hardware.ONLY)

    def ask(self, what: str, call: Callable[[], R], *, refuses: bool = False) -> R:
        """*call* of the provider or of a session of it. ProviderGone as it says; ProviderFailed for anything else that it raises.

        *refuses*: an OSError is its answer, too.
        """
        known = OSError if refuses else ProviderGone

        def answer() -> R:
            try:
                return call()
            except known:
                raise
            except Broke:
                raise
            # All that a module raises is its failure (`stack.core.isolation.RAISED`). No task runs here that could be cancelled.
            except BaseException as error:
                raise Broke(f"{type(error).__name__}: {error}") from error

        try:
            return answer() if self.guard is None else self.guard.ask(what, answer)
        except Broke as error:
            if self.guard is None:
                self._guards.failure(f"crypto provider {self.name}: {what}", call, None)
            raise ProviderFailed(f"crypto provider {self.name} failed, as the log says: {error}") from error

    def told(self, what: str, error: BaseException) -> ProviderGone:
        """What a call of one of its sessions raised, which ran in a thread, as `ask` would have raised it here."""

        def again() -> None:
            raise error

        try:
            self.ask(what, again)
        except ProviderGone as gone:
            return gone
        raise AssertionError("it was raised")

    def let_go(self, close: Callable[[], None]) -> None:
        """A session's or the provider's *close*. What it raises is counted, and ends nothing else."""
        try:
            self.ask("close", close)
        except ProviderGone:
            pass

    def began(self) -> None:
        """A batch for one of its sessions is given to a thread."""
        self._busy += 1

    def ended(self) -> None:
        """It is back."""
        self._busy -= 1
        self._close()

    def end(self) -> None:
        """It was taken away: nothing of it is called any more, but for sessions of which a batch is under way."""
        self.gone = True
        self._close()

    def _close(self) -> None:
        """Its end, once no thread is in it."""
        if self.gone and not self._busy and self._made is not None:
            made, self._made = self._made, None
            self.let_go(made.close)
