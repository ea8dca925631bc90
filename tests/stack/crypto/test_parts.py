"""Batches in threads: no part keeps the interpreter lock longer than the dispatch may do work itself, and all parts make the whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from resmgr.dispatch import Buffer
from resmgr.testing.virtual import VirtualDispatch
from stack.crypto.algorithms import AES_128_CMAC, AES_128_CTR, AES_128_GCM, SHA3_512, Hash
from stack.crypto.jobs import ITEM, Jobs
from stack.crypto.parts import LETS_GO, NEVER, PART, in_parts
from stack.crypto.providers.openssl import Digests, OpenSSL
from stack.crypto.registry import Crypto, standard_crypto

KEY = bytes(range(16))


@pytest.mark.parametrize(
    ("items", "heads", "lets_go", "parts"),
    [
        ([], (), LETS_GO, [0]),
        ([b""], (), LETS_GO, [1]),
        ([b""] * 1024, (), LETS_GO, [64] * 16),
        ([bytes(1023)] * 100, (), LETS_GO, [13] * 7 + [9]),
        ([bytes(LETS_GO)] * 30, (), LETS_GO, [30]),
        ([bytes(LETS_GO)] * 30, (), NEVER, [8, 8, 8, 6]),
        ([b"x"] * 3, [bytes(20_000)] * 3, LETS_GO, [1, 1, 1]),
    ],
)
def test_where_a_batch_is_cut(items: list[bytes], heads: Sequence[bytes], lets_go: int, parts: list[int]) -> None:
    asked: list[slice] = []

    def call(session: str, part: slice) -> list[tuple[str, int]]:
        asked.append(part)
        return [(session, number) for number in range(len(items))[part]]

    assert in_parts(items, call, heads, lets_go)("s") == [("s", number) for number in range(len(items))]
    assert [len(items[one]) for one in asked] == parts
    for part in asked:
        assert sum(ITEM + (len(one) if len(one) < lets_go else 0) for one in items[part][1:]) < PART


class Counting(OpenSSL):
    """It notes how many items it hashes at a time."""

    name = "counting"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def hash(self, algorithm: Hash) -> Digests:
        good, calls = super().hash(algorithm), self.calls

        class Counted(Digests):
            def digest_many(self, items: Sequence[Buffer], /) -> list[bytes]:
                calls.append(len(items))
                return good.digest_many(items)

        return Counted(algorithm, lambda item: b"")


def test_a_batch_in_a_thread_is_done_in_parts() -> None:
    dispatch, crypto, counting = VirtualDispatch(1), Crypto(), Counting()
    crypto.add("counting", lambda: counting)
    got: list[object] = []
    items = [bytes([number % 256]) * 1000 for number in range(1000)]
    with crypto.hash(SHA3_512) as session:
        session.digest_later(Jobs(dispatch), items, got.append)
        dispatch.run_for(1.0)
    assert got == [OpenSSL().hash(SHA3_512).digest_many(items)]
    assert max(counting.calls) <= PART // 1000
    assert sum(counting.calls) == 1000


def test_parts_make_the_whole() -> None:
    dispatch, crypto = VirtualDispatch(1), standard_crypto()
    jobs, got = Jobs(dispatch), list[object]()
    items, aads = [bytes([number % 256]) * (number % 700) for number in range(500)], [bytes([number % 7]) * 9 for number in range(500)]
    nonces, blocks = [number.to_bytes(12, "big") for number in range(500)], [number.to_bytes(16, "little") for number in range(500)]
    aead, cipher, mac = crypto.aead(AES_128_GCM, KEY), crypto.cipher(AES_128_CTR, KEY), crypto.mac(AES_128_CMAC, KEY)
    sealed, made, tags = aead.seal_many(nonces, items, aads), cipher.encrypt_many(blocks, items), mac.tag_many(items)
    forged = [one if number % 100 else b"" for number, one in enumerate(sealed)]
    aead.seal_later(jobs, nonces, items, aads, got.append)
    aead.open_later(jobs, nonces, forged, aads, got.append)
    cipher.decrypt_later(jobs, blocks, made, got.append)
    mac.verify_later(jobs, items, [tags[0], *tags[1:400], *tags[:100]], got.append)
    dispatch.run_for(1.0)
    assert got == [
        sealed,
        [one if number % 100 else None for number, one in enumerate(items)],
        items,
        [number < 400 for number in range(500)],
    ]
