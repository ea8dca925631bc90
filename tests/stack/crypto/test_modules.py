"""Providers that modules bring: they come and go with their module, and what they do wrong is their module's and nobody else's."""

from __future__ import annotations

import asyncio
import errno
import gc
import threading
from collections.abc import Callable, Sequence

import attrs
import pytest

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.errors import ModuleError
from stack.core.loaded import Loaded
from stack.core.module import Context, Kind, Module
from stack.core.stack import Stack
from stack.crypto.algorithms import AES_128_CTR, AES_128_GCM, HMAC_SHA256, SHA3_512, SHA256, Aead, Cipher, Hash, Mac
from stack.crypto.api import Hardware, Provider, ProviderFailed, ProviderGone
from stack.crypto.handles import AeadHandle
from stack.crypto.jobs import Jobs
from stack.crypto.providers.openssl import Digests, OpenSSL, OpenSSLAead, OpenSSLCtr, OpenSSLMac
from stack.crypto.registry import Crypto
from stack.managers.facts import crypto

KEY, NONCE = bytes(range(16)), bytes(12)
RAISES = (RuntimeError, Misuse, SystemExit, KeyboardInterrupt, asyncio.CancelledError)


class Card(OpenSSL):
    """As good as OpenSSL, until it is told otherwise. `calls` counts what its sessions were asked."""

    name = "another name than it is offered under"
    hardware = frozenset({"aes-128-gcm"})

    def __init__(self) -> None:
        self.wrong: Callable[[], list[bytes]] | None = None
        self.sessions_until: int | None = None
        self.error: type[BaseException] = RuntimeError
        self.calls = self.closed = self.open = 0

    def aead(self, algorithm: Aead, key: Buffer) -> OpenSSLAead:
        if self.sessions_until is not None:
            self.sessions_until -= 1
            if self.sessions_until < 0:
                raise self.error("a bug of the card")
        good, card = super().aead(algorithm, key), self
        card.open += 1

        class OnCard(OpenSSLAead):
            def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes]:
                card.calls += 1
                return super().seal_many(nonces, plaintexts, aads) if card.wrong is None else card.wrong()

            def close(self) -> None:
                card.open -= self._seal is not None
                super().close()

        assert good._seal is not None
        assert good._open is not None
        return OnCard(algorithm, good._seal, good._open)

    def close(self) -> None:
        self.closed += 1


@attrs.frozen
class Options:
    pass


class CardModule:
    """`forgets`: it leaves its provider behind."""

    def __init__(self, context: Context, name: str, make: Callable[[], Provider], by_name: bool) -> None:
        self.offered = context.stack.crypto.add(name, make, by_name=by_name)
        self.forgets = False

    def detach(self) -> None:
        if not self.forgets:
            self.offered.revoke()


class Oracle(OpenSSL):
    algorithms = ("everything",)  # type: ignore[assignment]  # it is wrong


class User:
    """A module that calls *call* once."""

    def __init__(self, context: Context, call: Callable[[], None]) -> None:
        context.dispatch.call_at(context.dispatch.now() + 0.5, call)

    def detach(self) -> None: ...


class Nothing:
    """A session that can nothing."""

    def close(self) -> None: ...


class Rig:
    def __init__(self) -> None:
        self.dispatch = VirtualDispatch(1)
        self.system = System(self.dispatch, "here")
        self.stack = Stack(self.system, lambda size: bytes(size))
        self.crypto = self.stack.crypto
        self.cards: list[Card] = []

    def load(self, name: str = "card", make: Callable[[], Provider] | None = None, by_name: bool = False) -> Loaded:
        def module(context: Context, options: Options) -> CardModule:
            return CardModule(context, name, make or self.card, by_name)

        return self.stack.load(Module(f"{name}-module", Kind.PROTOCOL, Options, module), "restart=3")

    def card(self) -> Card:
        self.cards.append(Card())
        return self.cards[-1]

    def session(self, hardware: Hardware = Hardware.ANY, provider: str | None = None) -> AeadHandle:
        return self.crypto.aead(AES_128_GCM, KEY, provider, hardware)

    def turn(self) -> None:
        self.dispatch.run_for(0.001)

    def row(self, name: str = "card") -> dict[str, object]:
        providers = crypto(self.crypto)["providers"]
        assert isinstance(providers, list)
        (found,) = (one for one in providers if one["name"] == name)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def rig() -> Rig:
    return Rig()


def seal(session: AeadHandle) -> bytes:
    return session.seal_many([NONCE], [b"text"], [b""])[0]


RIGHT = OpenSSL().aead(AES_128_GCM, KEY).seal_many([NONCE], [b"text"], [b""])[0]


def test_a_provider_goes_with_its_module_and_its_sessions_move_first(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    loaded = rig.load()
    assert [one.what for one in loaded.guard.registrations] == ["crypto provider card"]
    assert (rig.row()["module"], rig.row("openssl")["module"]) == ("card-module", "")
    session, pinned = rig.session(), rig.session(provider="card")
    assert rig.crypto.use("card").moved == 1
    attached = loaded.attached
    assert isinstance(attached, CardModule)
    attached.forgets = True
    rig.stack.unload(loaded)
    assert "module card-module left crypto provider card behind" in caplog.text
    assert "card" not in rig.crypto.names
    assert (session.provider, seal(session)) == ("openssl", RIGHT)
    with pytest.raises(ProviderGone, match="card, which the session insists on, is gone"):
        seal(pinned)
    (card,) = rig.cards
    assert (card.open, card.closed, card.calls) == (0, 1, 0)
    # Nothing of it can be had again.
    with pytest.raises(LookupError, match="there is no crypto provider card; there are openssl"):
        rig.crypto.use("card")
    rig.load()
    assert "card" in rig.crypto.names


def test_a_start_that_fails_takes_its_provider_away(rig: Rig) -> None:
    def attach(context: Context, options: Options) -> CardModule:
        CardModule(context, "card", rig.card, False)
        raise ModuleError(errno.ENODEV, "no card here")

    with pytest.raises(ModuleError, match="no card here"):
        rig.stack.load(Module("card-module", Kind.PROTOCOL, Options, attach))
    assert "card" not in rig.crypto.names
    rig.turn()
    rig.load()
    assert "card" in rig.crypto.names


@pytest.mark.parametrize("raises", RAISES)
def test_one_that_cannot_be_made_says_so_and_is_nobody_elses_trouble(rig: Rig, raises: type[BaseException]) -> None:
    def make() -> Provider:
        raise raises("a bug in make")

    loaded = rig.load(make=make)
    row = rig.row()
    assert row["problem"] == f"crypto provider card failed, as the log says: {raises.__name__}: a bug in make"
    assert (loaded.guard.failures, rig.session().provider) == ({"make": 1}, "openssl")
    with pytest.raises(ProviderFailed, match="a bug in make") as raised:
        rig.crypto.use("card")
    assert raised.value.errno == errno.EIO
    assert rig.crypto.names[0] == "openssl"


@pytest.mark.parametrize("wrong", [lambda: None, object, Nothing, Oracle])
def test_what_is_no_provider_is_a_problem(rig: Rig, wrong: Callable[[], Provider]) -> None:
    rig.load(make=wrong)
    assert "failed, as the log says" in str(rig.row()["problem"])


def test_use_is_all_or_nothing(rig: Rig) -> None:
    card = Card()
    rig.load(make=lambda: card, by_name=True)
    sessions = [rig.session() for _ in range(4)]
    for error in RAISES:
        card.error, card.sessions_until = error, 2
        with pytest.raises(ProviderFailed, match="a bug of the card; nothing has changed"):
            rig.crypto.use("card")
        assert [one.provider for one in sessions] == ["openssl"] * 4
        assert (rig.crypto.names[0], rig.row()["by_name"], card.open, rig.crypto.moves) == ("openssl", True, 0, {})
        assert all(seal(one) == RIGHT for one in sessions)
    card.sessions_until = None
    assert rig.crypto.use("card").moved == 4
    assert (card.open, rig.crypto.names[0], rig.row()["by_name"]) == (4, "card", False)


@pytest.mark.parametrize("raises", RAISES)
def test_what_a_session_raises_is_its_providers_failure_and_not_its_users(rig: Rig, raises: type[BaseException]) -> None:
    loaded = rig.load()
    session, other = rig.session(), rig.session()
    rig.crypto.use("card")

    def wrong() -> list[bytes]:
        raise raises("a bug of the card")

    got: list[bytes] = []
    user = rig.stack.load(
        Module("user", Kind.PROTOCOL, Options, lambda context, _: User(context, lambda: got.append(seal(session)))), "restart=2"
    )
    rig.cards[-1].wrong = wrong
    rig.dispatch.run_for(0.5)
    assert got == [RIGHT], "no batch is lost"
    assert (user.guard.failures, loaded.guard.failures) == ({}, {"seal_many": 1})
    assert rig.crypto.moves["failed"] == 1
    # Its module, and nobody else's, is restarted, and its sessions come back to it.
    rig.dispatch.run_for(0.1)
    restarts, its_users = loaded.restarts, user.restarts
    assert restarts is not None
    assert its_users is not None
    assert (restarts.total, its_users.total) == (1, 0)
    assert len(rig.cards) == 2
    assert (session.provider, other.provider, rig.row()["problem"]) == ("card", "card", "")
    assert (seal(session), rig.cards[1].calls, rig.cards[0].open) == (RIGHT, 1, 0)


@pytest.mark.parametrize("wrong", [lambda: None, list, lambda: [b"short"], lambda: [RIGHT, RIGHT], lambda: (RIGHT,), lambda: ["x" * 20]])
def test_what_is_no_result_is_a_failure(rig: Rig, wrong: Callable[[], list[bytes]]) -> None:
    loaded = rig.load()
    session = rig.session()
    rig.crypto.use("card")
    rig.cards[-1].wrong = wrong
    assert (seal(session), session.provider, loaded.guard.failures) == (RIGHT, "openssl", {"seal_many": 1})


def test_a_mistake_of_the_caller_is_not_the_providers(rig: Rig) -> None:
    loaded = rig.load()
    rig.crypto.use("card")
    session, cipher = rig.session(), rig.crypto.cipher(AES_128_CTR, KEY)
    with pytest.raises(Misuse, match="a nonce of aes-128-gcm has 12 bytes"):
        session.seal_many([b""], [b"text"], [b""])
    with pytest.raises(Misuse, match="a counter block"):
        cipher.decrypt_many([b""], [b"text"])
    with pytest.raises(Misuse, match="a key of aes-128-gcm has 16 bytes"):
        rig.crypto.aead(AES_128_GCM, b"")
    with pytest.raises(Misuse, match="a nonce"):
        session.seal_later(Jobs(rig.dispatch), [b""], [b"text"], [b""], print)
    assert (loaded.guard.failures, session.provider, cipher.provider, rig.cards[-1].calls) == ({}, "card", "card", 0)


@pytest.mark.parametrize("size", [10, 100_000])
def test_the_same_for_batches_that_are_answered_later(rig: Rig, size: int) -> None:
    loaded = rig.load()
    session = rig.session()
    right = session.seal_many([NONCE], [bytes(size)], [b""])
    rig.crypto.use("card")
    for error in (RuntimeError, SystemExit, Misuse):

        def wrong(error: type[BaseException] = error) -> list[bytes]:
            raise error("a bug of the card")

        got: list[object] = []
        card = rig.cards[-1]
        card.wrong = wrong
        session.seal_later(Jobs(rig.dispatch), [NONCE], [bytes(size)], [b""], got.append)
        rig.turn()
        assert got == [right]
        card.wrong = None
        rig.crypto.use("card")
    assert loaded.guard.failures == {"seal_many": 1}
    assert rig.crypto.moves["failed"] == 3


def test_the_order_outlives_a_module_and_sessions_return(rig: Rig) -> None:
    first, second = rig.load("first"), rig.load("second", by_name=True)
    session, only = rig.session(), rig.session(Hardware.ONLY)
    pinned = rig.session(provider="first")
    assert only.provider == "first"
    rig.crypto.use("first")
    rig.crypto.use("second")
    order = ("second", "first", "openssl")
    assert (rig.crypto.names[:3], session.provider, only.provider) == (order, "second", "second")
    rig.stack.unload(second)
    assert (session.provider, only.provider) == ("first", "first")
    rig.stack.unload(first)
    assert session.provider == "openssl"
    with pytest.raises(ProviderGone, match="no other crypto provider has aes-128-gcm in hardware"):
        seal(only)
    rig.load("first")
    with pytest.raises(ProviderGone):
        seal(only)  # not within the load
    rig.turn()
    assert [one.provider for one in (session, only, pinned)] == ["first"] * 3
    rig.load("second", by_name=True)
    rig.turn()
    assert rig.crypto.names[:3] == order
    assert [one.provider for one in (session, only, pinned)] == ["second", "second", "first"]
    assert {seal(one) for one in (session, only, pinned)} == {RIGHT}
    assert rig.session().provider == "second"


def test_names_that_are_gone_are_forgotten_in_the_end(rig: Rig) -> None:
    for number in range(200):
        rig.crypto.add(f"card{number}", OpenSSL).revoke()
    assert len(rig.crypto._order) < 100
    assert rig.crypto.names == ("openssl", "threads", "afalg", "reference")


def test_every_kind_of_session_falls_back(rig: Rig) -> None:
    class Bad(OpenSSL):
        def cipher(self, algorithm: Cipher, key: Buffer) -> OpenSSLCtr:
            return Nothing()  # type: ignore[return-value]  # it is wrong

        def mac(self, algorithm: Mac, key: Buffer, tag_size: int) -> OpenSSLMac:
            return Nothing()  # type: ignore[return-value]  # it is wrong

        def hash(self, algorithm: Hash) -> Digests:
            return Nothing()  # type: ignore[return-value]  # it is wrong

    rig.load(make=Bad)
    good = OpenSSL()
    rig.crypto.use("card")
    cipher = rig.crypto.cipher(AES_128_CTR, KEY)
    assert cipher.decrypt_many([bytes(16)], [b"x"]) == good.cipher(AES_128_CTR, KEY).decrypt_many([bytes(16)], [b"x"])
    rig.crypto.use("card")
    mac = rig.crypto.mac(HMAC_SHA256, KEY)
    assert mac.tag_many([b"x"]) == good.mac(HMAC_SHA256, KEY, 32).tag_many([b"x"])
    rig.crypto.use("card")
    digest = rig.crypto.hash(SHA256)
    assert digest.digest_many([b"x"]) == good.hash(SHA256).digest_many([b"x"])
    assert digest.provider == "openssl"
    assert rig.crypto.moves["failed"] == 3


def test_a_provider_is_not_closed_while_a_thread_is_in_it(rig: Rig) -> None:
    loaded = rig.load()
    session = rig.session()
    right = session.seal_many([NONCE], [bytes(100_000)], [b""])
    rig.crypto.use("card")
    got: list[object] = []
    session.seal_later(Jobs(rig.dispatch), [NONCE], [bytes(100_000)], [b""], got.append)
    rig.stack.unload(loaded)
    (card,) = rig.cards
    assert (session.provider, got, card.open, card.closed) == ("openssl", [], 1, 0)
    rig.turn()
    assert (got, card.open, card.closed) == ([right], 0, 1)


@pytest.mark.parametrize("then", [lambda: [RIGHT], lambda: None])
def test_a_provider_may_unload_its_module_within_a_call(rig: Rig, then: Callable[[], list[bytes]]) -> None:
    loaded = rig.load()
    session = rig.session()
    rig.crypto.use("card")
    (card,) = rig.cards

    def leave() -> list[bytes]:
        rig.stack.unload(loaded)
        return then()

    card.wrong = leave
    assert (seal(session), session.provider, card.open, card.closed) == (RIGHT, "openssl", 0, 1)
    assert (seal(session), card.calls, rig.crypto.moves["remove"]) == (RIGHT, 1, 1)


def test_a_provider_may_unload_its_module_while_it_is_made(rig: Rig) -> None:
    def make() -> Provider:
        rig.stack.unload(rig.stack.loaded[-1])
        return rig.card()

    rig.load(make=make)
    session = rig.session()
    with pytest.raises(ProviderGone, match="crypto provider card is gone"):
        rig.crypto.use("card")
    assert (session.provider, seal(session), rig.crypto.names[0], rig.cards[-1].closed) == ("openssl", RIGHT, "openssl", 1)
    assert rig.session(Hardware.NEVER).provider == "openssl"


def test_the_end_of_a_stack_is_that_of_its_providers(rig: Rig) -> None:
    def threads() -> int:
        return sum(one.name.startswith("crypto") for one in threading.enumerate())

    rig.load()
    rig.crypto.use("card")
    session, before = rig.session(), threads()
    rig.crypto.use("threads")
    rig.crypto.hash(SHA3_512).digest_many([bytes(100_000)] * 60)
    assert threads() > before
    with pytest.raises(Misuse):
        rig.crypto.add("threads", OpenSSL)
    rig.stack.close()
    rig.stack.close()
    assert (threads(), rig.cards[-1].closed, rig.cards[-1].open, rig.crypto.names) == (before, 1, 0, ())
    with pytest.raises(ProviderGone):
        seal(session)
    given = Crypto()
    given.add("card", rig.card)
    other = Stack(rig.system, lambda size: bytes(size), crypto=given)
    other.close()
    assert given.names == ("card",), "it may be somebody else's, too"


def test_what_is_made_and_is_no_provider_is_closed(rig: Rig) -> None:
    class Odd(Card):
        algorithms = ("everything",)  # type: ignore[assignment]  # it is wrong

    made: list[Odd] = []

    def make() -> Odd:
        made.append(Odd())
        return made[-1]

    rig.load(make=make)  # type: ignore[arg-type]  # it is wrong
    with pytest.raises(OSError, match="its algorithms are none"):
        rig.crypto.use("card")
    assert [one.closed for one in made] == [1]


def test_the_session_of_a_handle_that_was_forgotten_is_closed_when_the_registry_is_asked_next(rig: Rig) -> None:
    rig.load()
    rig.crypto.use("card")
    (card,) = rig.cards
    for _ in range(3):
        session = rig.session()
        assert card.open == 1
        del session
        gc.collect()
    rig.crypto.facts()
    assert card.open == 0
    session = rig.session()
    del session
    gc.collect()
    rig.crypto.remove("card")
    assert (card.open, card.closed) == (0, 1)
