"""Batches that are answered later: in dispatch context, bounded, and safe against closing and moving meanwhile."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence

import pytest
import trio

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from resmgr.runner import open_dispatch
from resmgr.testing.virtual import VirtualDispatch
from stack.crypto.algorithms import AES_128_CCM, AES_128_CTR, AES_128_GCM, HMAC_SHA256, SHA256, Aead
from stack.crypto.api import ProviderGone
from stack.crypto.jobs import Jobs
from stack.crypto.providers.openssl import OpenSSL, OpenSSLAead
from stack.crypto.registry import Crypto, standard_crypto

KEY = bytes(range(16))
BIG = [bytes(100_000), bytes(range(256)) * 200]
NONCES = [bytes(12), bytes(11) + b"1"]
AADS = [b"", b"head"]


def test_every_call_can_be_answered_later() -> None:
    dispatch = VirtualDispatch(1)
    jobs = Jobs(dispatch)
    crypto = standard_crypto()
    aead, mac = crypto.aead(AES_128_GCM, KEY), crypto.mac(HMAC_SHA256, KEY)
    cipher, hasher = crypto.cipher(AES_128_CTR, KEY), crypto.hash(SHA256)
    blocks = [bytes(16), bytes([9]) * 16]
    for items in (BIG, [b"a", b"b"]):
        sealed = aead.seal_many(NONCES, items, AADS)
        encrypted, tags = cipher.encrypt_many(blocks, items), mac.tag_many(items)
        got: list[object] = []
        aead.seal_later(jobs, NONCES, items, AADS, got.append)
        aead.open_later(jobs, NONCES, [sealed[0], b"bad"], AADS, got.append)
        cipher.encrypt_later(jobs, blocks, items, got.append)
        cipher.decrypt_later(jobs, blocks, encrypted, got.append)
        mac.tag_later(jobs, items, got.append)
        mac.verify_later(jobs, items, tags[::-1], got.append)
        hasher.digest_later(jobs, items, got.append)
        assert got == [], "answered before the call returned"
        assert jobs.jobs == 7
        dispatch.run_for(1.0)
        wanted = [sealed, [items[0], None], encrypted, items, tags, [False, False], hasher.digest_many(items)]
        assert sorted(map(repr, got)) == sorted(map(repr, wanted))
    assert (jobs.jobs, jobs.bytes, jobs.threaded, jobs.inline) == (0, 0, 7, 7)


def test_the_queue_is_bounded_and_a_refused_batch_leaves_nothing() -> None:
    dispatch = VirtualDispatch(1)
    jobs = Jobs(dispatch, jobs_max=3, bytes_max=1000, inline=10)
    session = standard_crypto().hash(SHA256)
    got: list[object] = []
    for size in (2000,):
        session.digest_later(jobs, [bytes(size)], got.append)  # one of any size
    with pytest.raises(OSError, match="wait for completions") as raised:
        session.digest_later(jobs, [b"x"], got.append)
    assert raised.value.errno == errno.EAGAIN
    dispatch.run_for(1.0)
    for _ in range(3):
        session.digest_later(jobs, [b"x"], got.append)
    with pytest.raises(OSError, match="wait for"):
        session.digest_later(jobs, [b"x"], got.append)
    dispatch.run_for(1.0)
    assert (len(got), jobs.refused, jobs.jobs, jobs.bytes) == (4, 2, 0, 0)
    session.close()
    with pytest.raises(Misuse):
        session.digest_later(jobs, [b"x"], got.append)


def test_clients_take_turns() -> None:
    dispatch = VirtualDispatch(1)
    jobs = Jobs(dispatch, running_max=1)
    order: list[str] = []
    for name, client in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("b2", "b"), ("c1", None)):
        jobs.submit(lambda: None, 100_000, lambda _, name=name: order.append(name), client)  # type: ignore[misc]  # bound here
    dispatch.run_for(1.0)
    assert order == ["a1", "a2", "b1", "c1", "a3", "b2"]
    assert (jobs.jobs, jobs._waiting) == (0, {})


def test_items_and_what_is_authenticated_count_too() -> None:
    dispatch = VirtualDispatch(1)
    jobs = Jobs(dispatch)
    aead = standard_crypto().aead(AES_128_GCM, KEY)
    done: list[object] = []
    aead.seal_later(jobs, [NONCES[0]], [b""], [bytes(20_000)], done.append)
    aead.seal_later(jobs, [NONCES[0]] * 100, [b""] * 100, [b""] * 100, done.append)
    aead.open_later(jobs, [NONCES[0]], [bytes(16)], [bytes(20_000)], done.append)
    aead.seal_later(jobs, NONCES, [b"", b""], [b"", b""], done.append)
    dispatch.run_for(1.0)
    assert (len(done), jobs.threaded, jobs.inline) == (4, 3, 1)


class Slow(OpenSSL):
    """A provider whose sealing waits in its thread until it is let go."""

    name = "slow"
    fails = True

    def __init__(self) -> None:
        self.go = threading.Event()
        self.began = threading.Event()
        self.pulled = False

    def aead(self, algorithm: Aead, key: Buffer) -> OpenSSLAead:
        good = super().aead(algorithm, key)
        slow = self

        class Waits(OpenSSLAead):
            def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes]:
                slow.began.set()
                assert slow.go.wait(20)
                if slow.pulled:
                    raise ProviderGone("no such device")
                return super().seal_many(nonces, plaintexts, aads)

        assert good._seal is not None
        assert good._open is not None
        return Waits(algorithm, good._seal, good._open)


@pytest.mark.host
@pytest.mark.parametrize("what", ["close", "use", "pulled"])
async def test_what_happens_to_a_session_while_a_batch_is_in_a_thread(what: str) -> None:
    """CCM, whose OpenSSL object reads the key at every call: a key wiped too early would show."""
    crypto = Crypto()
    slow = Slow()
    crypto.add("slow", lambda: slow)
    crypto.add("openssl", OpenSSL)
    session = crypto.aead(AES_128_CCM, KEY)
    key = session._key
    with standard_crypto().aead(AES_128_CCM, KEY) as other:
        right = other.seal_many(NONCES, BIG, AADS)
    async with open_dispatch() as dispatch:
        jobs = Jobs(dispatch)
        came = trio.Event()
        got: list[object] = []

        def done(result: object) -> None:
            got.append(result)
            came.set()

        dispatch.enter(lambda: session.seal_later(jobs, NONCES, BIG, AADS, done))
        assert await trio.to_thread.run_sync(slow.began.wait, 20)
        if what == "close":
            session.close()
            assert key == KEY, "wiped under the hands of a thread"
        elif what == "use":
            crypto.use("openssl")
            assert session.seal_many(NONCES, BIG, AADS) == right
        else:
            slow.pulled = True
        slow.go.set()
        with trio.fail_after(20):
            await came.wait()
        assert got == [right]
        assert (jobs.jobs, jobs.bytes) == (0, 0)
    assert (key == bytes(16)) is (what == "close")
    if what != "close":
        assert session.provider == "openssl"
