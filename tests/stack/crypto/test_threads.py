"""The provider that cuts batches: the contract, cut or not, and where it cuts."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.crypto.algorithms import AEADS, AES_128_GCM, CIPHERS, HASHES, MACS, Aead
from stack.crypto.providers.openssl import OpenSSL, OpenSSLAead
from stack.crypto.providers.threads import ITEM_MIN, Threads, worth
from stack.crypto.vectors import builtin_vectors
from stack.testing.crypto import check_provider

KEY = bytes(range(16))


def test_contract_and_builtin_vectors() -> None:
    provider = Threads(OpenSSL(), 3)
    vectors = builtin_vectors()
    assert check_provider(provider, vectors) == len(vectors)
    provider.close()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_what_is_cut_gives_what_the_whole_gives(threads: int) -> None:
    plain, cut = OpenSSL(), Threads(OpenSSL(), threads)
    items = [bytes([number]) * (60_000 + number) for number in range(40)]
    for aead in AEADS:
        one, other = plain.aead(aead, bytes(aead.key_size)), cut.aead(aead, bytes(aead.key_size))
        args = [number.to_bytes(aead.nonce_size, "big") for number in range(40)], items, [b"%d" % number for number in range(40)]
        sealed = one.seal_many(*args)
        assert other.seal_many(*args) == sealed
        forged = [one[:-1] if number in (0, 7, 20, 39) else one for number, one in enumerate(sealed)]
        opened = other.open_many(args[0], forged, args[2])
        assert opened == [None if number in (0, 7, 20, 39) else one for number, one in enumerate(items)]
    for cipher in CIPHERS:
        blocks = [number.to_bytes(16, "little") for number in range(40)]
        one_c, other_c = plain.cipher(cipher, bytes(cipher.key_size)), cut.cipher(cipher, bytes(cipher.key_size))
        assert one_c.encrypt_many(blocks, items) == other_c.encrypt_many(blocks, items)
    for mac in MACS:
        key = bytes(mac.key_max)
        assert plain.mac(mac, key, mac.tag_size).tag_many(items) == cut.mac(mac, key, mac.tag_size).tag_many(items)
    for algorithm in HASHES:
        assert plain.hash(algorithm).digest_many(items) == cut.hash(algorithm).digest_many(items)
    assert (cut.cutter.cut > 20) is (threads > 1)
    cut.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("crypto")]


class Recording(OpenSSL):
    """Remembers who sealed what; fails for a plaintext that says so."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, int]] = []

    def aead(self, algorithm: Aead, key: Buffer) -> OpenSSLAead:
        good = super().aead(algorithm, key)
        parts = self.parts

        class Recorded(OpenSSLAead):
            def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes]:
                parts.append((threading.current_thread().name, len(plaintexts)))
                if any(bytes(one[:4]) == b"fail" for one in plaintexts):
                    raise Misuse("told to fail")
                return super().seal_many(nonces, plaintexts, aads)

        assert good._seal is not None
        assert good._open is not None
        return Recorded(algorithm, good._seal, good._open)


def test_where_it_cuts() -> None:
    inner = Recording()
    provider = Threads(inner, 2)
    session = provider.aead(AES_128_GCM, KEY)
    least = worth(AES_128_GCM)

    def parts(sizes: Sequence[int], head: bytes = b"") -> list[int]:
        inner.parts.clear()
        items = [head.ljust(size, b"\0") for size in sizes]
        session.seal_many([number.to_bytes(12, "big") for number in range(len(items))], items, [b""] * len(items))
        return [count for _, count in inner.parts]

    big = 100_000
    count = 2 * least // big + 2
    assert sorted(parts([big] * count)) == [count // 2, count - count // 2]
    names = {name.startswith("crypto") for name, _ in inner.parts}
    assert names == {True, False}, "one part is the caller's own"
    assert parts([big] * (count // 2)) == [count // 2], "too little for two"
    assert parts([1500] * 2000) == [2000], "the lock is not let go for these"
    assert parts([*[big] * count, ITEM_MIN - 1]) == [count + 1]
    assert parts([3 * least]) == [1], "one item cannot be cut"
    assert parts([2 * least, ITEM_MIN]) == [1, 1]
    assert parts([]) == [0]
    with pytest.raises(Misuse, match="told to fail"):
        parts([big] * count, b"fail")
    # Nothing of a failed batch is still under way.
    assert sum(count for _, count in inner.parts) == count
    provider.close()


def test_batches_in_several_threads_share_the_pool() -> None:
    """The first come at once, as those of `Jobs` do."""
    cut = Threads(OpenSSL(), 3)
    items = [bytes(worth(AES_128_GCM))] * 3
    session = cut.aead(AES_128_GCM, KEY)
    together = threading.Barrier(4)

    def seal() -> None:
        together.wait(5)
        session.seal_many([bytes(12)] * 3, items, [b""] * 3)

    before = cut.cutter._pool
    users = [threading.Thread(target=seal) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert cut.cutter._pool is before
    assert sum(one.name.startswith("crypto") for one in threading.enumerate()) <= 2
    cut.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("crypto")]
