"""The registry of crypto providers: choosing, moving, failing, and what a handle promises meanwhile."""

from __future__ import annotations

import errno
import gc
from collections.abc import Sequence

import attrs
import pytest

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.crypto.algorithms import (
    AES_128_CTR,
    AES_128_GCM,
    AES_256_GCM,
    ALGORITHMS,
    CHACHA20_POLY1305,
    HMAC_SHA256,
    SHA256,
    Aead,
    Algorithm,
    Cipher,
    Hash,
    Mac,
    algorithm_named,
)
from stack.crypto.api import AeadSession, Hardware, Provider, ProviderGone, check_cipher_batch
from stack.crypto.providers.openssl import OpenSSL, OpenSSLAead
from stack.crypto.registry import Crypto, NotServed, standard_crypto

NONCE = bytes(12)
KEY = bytes(range(16))


class OnlyChaCha(OpenSSL):
    name = "chacha"
    algorithms: tuple[Algorithm, ...] = (CHACHA20_POLY1305,)


class Other(OpenSSL):
    """Another provider of everything, that counts what it was given."""

    name = "other"

    def __init__(self) -> None:
        self.closed = 0
        self.keys: list[bytes] = []

    def aead(self, algorithm: Aead, key: Buffer) -> OpenSSLAead:
        self.keys.append(bytes(key))
        return super().aead(algorithm, key)

    def close(self) -> None:
        self.closed += 1


class Card(OpenSSL):
    """A device: hardware for AES-GCM, until it is pulled."""

    name = "card"
    algorithms: tuple[Algorithm, ...] = (AES_128_GCM, AES_128_CTR, HMAC_SHA256, SHA256)
    hardware = frozenset({"aes-128-gcm"})
    fails = True

    def __init__(self) -> None:
        self.pulled = False
        self.calls = 0

    def aead(self, algorithm: Aead, key: Buffer) -> OpenSSLAead:
        good = super().aead(algorithm, key)
        card = self

        class OnCard(OpenSSLAead):
            def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes]:
                card.calls += 1
                if card.pulled:
                    raise ProviderGone("no such device")
                return super().seal_many(nonces, plaintexts, aads)

        assert good._seal is not None
        assert good._open is not None
        return OnCard(algorithm, good._seal, good._open)


def seal(session: AeadSession, text: bytes = b"text") -> bytes:
    return session.seal_many([NONCE], [text], [b""])[0]


def test_first_provider_with_the_algorithm_serves_it_unless_one_is_named() -> None:
    crypto = Crypto()
    made: list[str] = []

    def chacha() -> OnlyChaCha:
        made.append("chacha")
        return OnlyChaCha()

    crypto.add("chacha", chacha)
    crypto.add("openssl", OpenSSL)
    assert made == []
    assert crypto.aead(AES_256_GCM, bytes(32)).algorithm is AES_256_GCM
    with crypto.aead(CHACHA20_POLY1305, bytes(32)) as session:
        assert session.provider == "chacha"
    assert made == ["chacha"]
    with pytest.raises(LookupError, match=r"crypto provider chacha does not have aes-256-gcm"):
        crypto.aead(AES_256_GCM, bytes(32), "chacha")
    with pytest.raises(LookupError, match="there is no crypto provider opensl; there are chacha, openssl"):
        crypto.aead(AES_256_GCM, bytes(32), "opensl")
    with pytest.raises(Misuse):
        crypto.add("openssl", OpenSSL)
    with pytest.raises(Misuse, match="a key of aes-256-gcm has 32 bytes, not 31"):
        crypto.aead(AES_256_GCM, bytes(31))
    gc.collect()
    assert crypto.sessions == 0


def test_hardware_is_chosen_only_by_who_wants_it() -> None:
    crypto = Crypto()
    crypto.add("openssl", OpenSSL)
    crypto.add("card", Card, by_name=True)
    assert crypto.aead(AES_128_GCM, KEY).provider == "openssl"
    assert crypto.aead(AES_128_GCM, KEY, hardware=Hardware.ONLY).provider == "card"
    assert crypto.aead(AES_128_GCM, KEY, "card").provider == "card"
    with pytest.raises(NotServed, match="no crypto provider has aes-128-ctr in hardware"):
        crypto.cipher(AES_128_CTR, KEY, hardware=Hardware.ONLY)
    with pytest.raises(NotServed, match="crypto provider card does not have aes-128-gcm in software"):
        crypto.aead(AES_128_GCM, KEY, "card", Hardware.NEVER)


def test_a_provider_that_cannot_be_had_says_why_and_is_passed_over() -> None:
    def absent() -> Provider:
        raise OSError(errno.ENODEV, "no such card")

    crypto = Crypto()
    crypto.add("card", absent)
    crypto.add("openssl", OpenSSL)
    assert crypto.aead(AES_128_GCM, KEY).provider == "openssl"
    with pytest.raises(OSError, match="no such card"):
        crypto.aead(AES_128_GCM, KEY, "card")
    with pytest.raises(OSError, match="no such card"):
        crypto.use("card")
    facts = {one.name: one for one in crypto.facts()}
    assert (facts["card"].problem, facts["card"].algorithms) == ("no such card", ())
    assert facts["openssl"].algorithms == ALGORITHMS
    assert crypto.names == ("card", "openssl")


def test_sessions_move_to_the_provider_that_is_used_from_now_on() -> None:
    crypto = standard_crypto()
    other = Other()
    crypto.add("other", lambda: other)
    session, pinned = crypto.aead(AES_128_GCM, KEY), crypto.aead(AES_128_GCM, KEY, "openssl")
    chacha = crypto.aead(CHACHA20_POLY1305, bytes(32))
    mac, cipher, hasher = crypto.mac(HMAC_SHA256, b"k"), crypto.cipher(AES_128_CTR, KEY), crypto.hash(SHA256)
    before = seal(session), mac.tag_many([b"x"]), cipher.encrypt_many([bytes(16)], [b"x"]), hasher.digest_many([b"x"])
    moved = crypto.use("other")
    assert (moved.moved, moved.stayed) == (5, 1)
    assert [one.provider for one in (session, pinned, chacha, mac, cipher, hasher)] == ["other", "openssl", *["other"] * 4]
    assert before == (seal(session), mac.tag_many([b"x"]), cipher.encrypt_many([bytes(16)], [b"x"]), hasher.digest_many([b"x"]))
    assert other.keys == [KEY, bytes(32)]
    assert crypto.moves == {"use": 5}
    assert crypto.aead(AES_128_GCM, KEY).provider == "other"
    gc.collect()
    assert {one.name: sum(one.sessions.values()) for one in crypto.facts() if one.sessions} == {"other": 5, "openssl": 1}

    moved = crypto.remove("other")
    assert (moved.moved, moved.stayed, other.closed) == (5, 0, 1)
    assert before[0] == seal(session)
    assert session.provider == "openssl"
    with pytest.raises(LookupError):
        crypto.use("other")


def test_when_the_last_provider_goes_calls_say_so() -> None:
    crypto = Crypto()
    crypto.add("chacha", OnlyChaCha)
    crypto.add("openssl", OpenSSL)
    pinned, gcm = crypto.aead(CHACHA20_POLY1305, bytes(32), "chacha"), crypto.aead(AES_128_GCM, KEY)
    assert crypto.remove("openssl").stayed == 1
    with pytest.raises(ProviderGone, match="openssl is gone, and no other crypto provider has aes-128-gcm") as raised:
        seal(gcm)
    assert raised.value.errno == errno.EAGAIN
    crypto.add("openssl", OpenSSL)
    assert crypto.remove("chacha").stayed == 1
    with pytest.raises(ProviderGone, match="which the session insists on"):
        seal(pinned)
    pinned.close()
    with pytest.raises(Misuse, match="closed"):
        seal(pinned)


def test_a_provider_that_fails_in_the_middle_is_not_noticed() -> None:
    crypto = Crypto()
    card = Card()
    crypto.add("card", lambda: card)
    crypto.add("openssl", OpenSSL)
    one, two, pinned = crypto.aead(AES_128_GCM, KEY), crypto.aead(AES_128_GCM, KEY), crypto.aead(AES_128_GCM, KEY, "card")
    right = seal(one)
    assert (one.provider, card.calls) == ("card", 1)
    card.pulled = True
    assert seal(one) == right
    assert (one.provider, two.provider, card.calls) == ("openssl", "card", 2)
    assert seal(two) == right
    assert crypto.moves == {"failed": 2}
    with pytest.raises(ProviderGone, match="card, which the session insists on"):
        seal(pinned)
    assert crypto.aead(AES_128_GCM, KEY).provider == "openssl"
    assert {one.name: one.problem for one in crypto.facts()} == {"card": "it failed in the middle of a session", "openssl": ""}
    # It was put back: who names it tries again.
    card.pulled = False
    crypto.use("card")
    assert (one.provider, seal(one)) == ("card", right)
    card.pulled = True
    crypto.remove("openssl")
    with pytest.raises(ProviderGone, match="no other crypto provider has aes-128-gcm"):
        seal(one)


def test_an_engine_without_room_for_another_key() -> None:
    class Small(OpenSSL):
        name = "small"
        left = 1

        def aead(self, algorithm: Aead, key: Buffer) -> OpenSSLAead:
            if not self.left:
                raise ProviderGone("no room for another key")
            self.left -= 1
            return super().aead(algorithm, key)

    crypto = Crypto()
    crypto.add("openssl", OpenSSL)
    crypto.add("small", Small)
    sessions = [crypto.aead(AES_128_GCM, KEY) for _ in range(3)]
    moved = crypto.use("small")
    assert (moved.moved, moved.stayed) == (1, 2)
    assert [one.provider for one in sessions] == ["small", "openssl", "openssl"]
    assert len({seal(one) for one in sessions}) == 1
    assert crypto.aead(AES_128_GCM, KEY).provider == "openssl"
    with pytest.raises(OSError, match="no room"):
        crypto.aead(AES_128_GCM, KEY, "small")


def test_keys_are_wiped() -> None:
    crypto = standard_crypto()
    session = crypto.aead(AES_128_GCM, KEY)
    key = session._key
    assert key == KEY
    session.close()
    session.close()
    assert key == bytes(16)
    assert crypto.sessions == 0
    forgotten = crypto.aead(AES_128_GCM, KEY)
    key = forgotten._key
    del forgotten
    gc.collect()
    assert bytes(key) == bytes(16)
    assert crypto.sessions == 0


def test_verifying() -> None:
    with standard_crypto().mac(HMAC_SHA256, b"key", 16) as mac:
        (tag,) = mac.tag_many([b"text"])
        assert len(tag) == 16
        assert mac.verify_many([b"text", b"text", b"other"], [tag, bytes(16), memoryview(tag)]) == [True, False, False]
        assert mac.verify_many([b"text"], [tag[:15]]) == [False]
        with pytest.raises(Misuse):
            mac.verify_many([b"text"], [])
    with pytest.raises(Misuse, match="a tag of hmac-sha256 has 10 to 32 bytes, not 9"):
        standard_crypto().mac(HMAC_SHA256, b"key", 9)


def test_standard_registry_is_an_object_of_its_own() -> None:
    one, other = standard_crypto(), standard_crypto()
    one.add("extra", OpenSSL)
    assert "extra" not in other.names
    assert other.names[0] == "openssl"


def test_algorithms_by_name() -> None:
    assert [algorithm_named(one.name) for one in ALGORITHMS] == list(ALGORITHMS)
    with pytest.raises(LookupError, match="there are aes-128-gcm"):
        algorithm_named("rot13")
    assert {type(one) for one in ALGORITHMS} == {Aead, Cipher, Mac, Hash}


class Twin(Card):
    """A second card of the same kind."""

    name = "twin"


def test_a_wish_about_hardware_holds_wherever_a_session_is_moved() -> None:
    crypto, card, twin = Crypto(), Card(), Twin()
    crypto.add("card", lambda: card)
    crypto.add("openssl", OpenSSL)
    only, never = (crypto.aead(AES_128_GCM, KEY, hardware=wish) for wish in (Hardware.ONLY, Hardware.NEVER))
    assert (only.provider, never.provider) == ("card", "openssl")
    right = seal(never)
    # Neither does preferring another provider ...
    assert (crypto.use("openssl").stayed, only.provider) == (1, "card")
    assert (crypto.use("card").stayed, never.provider) == (1, "openssl")
    # ... nor a failure ...
    crypto.add("twin", lambda: twin)
    card.pulled = True
    assert (seal(only), only.provider, twin.calls) == (right, "twin", 1)
    # ... nor the end of a provider put it where its caller did not want it.
    crypto.remove("openssl")
    with pytest.raises(ProviderGone, match="no other crypto provider has aes-128-gcm in software"):
        seal(never)
    crypto.add("openssl", OpenSSL)
    crypto.remove("card")
    crypto.remove("twin")
    with pytest.raises(ProviderGone, match="no other crypto provider has aes-128-gcm in hardware"):
        seal(only)


def test_a_provider_without_room_is_passed_over_by_who_must_move() -> None:
    class Full(OpenSSL):
        name = "full"

        def aead(self, algorithm: Aead, key: Buffer) -> OpenSSLAead:
            raise ProviderGone("no room for another key")

    crypto = Crypto()
    crypto.add("other", Other)
    crypto.add("full", Full)
    crypto.add("openssl", OpenSSL)
    session = crypto.aead(AES_128_GCM, KEY)
    assert (crypto.remove("other").moved, session.provider) == (1, "openssl")


def test_an_item_of_a_cipher_has_a_bound() -> None:
    short = attrs.evolve(AES_128_CTR, data_max=32)
    check_cipher_batch(short, [bytes(16)], [bytes(32)])
    with pytest.raises(Misuse, match="an item of aes-128-ctr has at most 32 bytes"):
        check_cipher_batch(short, [bytes(16)] * 2, [b"", bytes(33)])
