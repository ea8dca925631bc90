"""Another provider's sessions, with large batches cut in parts that run side by side: the caller's thread does one, helpers do the others.

It pays where two things come together. The part of another thread must let the interpreter lock go: OpenSSL's calls through
`cryptography` and `hashlib` do so for an item of 2,048 bytes and more (`ITEM_MIN`; watched over 20,000 calls of each size), CMAC never
does. And the part must be worth waking a sleeping thread on another core for, 25 to 100 µs (`worth`). Everything else goes straight to
the session underneath.

On one core nothing is ever cut.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

from resmgr.dispatch import Buffer
from stack.crypto.algorithms import CMACS, Aead, Algorithm, Cipher, Hash, Kind, Mac
from stack.crypto.api import AeadSession, CipherSession, HashSession, MacSession, Provider

T = TypeVar("T")
ITEM_MIN = 2048
"""Bytes of an item from which on `cryptography` and `hashlib` let other threads run meanwhile."""
PART_SECONDS = 400e-6
"""What a part must take at least for another thread to be worth waking. With half of it, batches of two such parts gained nothing."""
BYTES_PER_SECOND = {Kind.AEAD: 2.0e9, Kind.CIPHER: 2.0e9, Kind.MAC: 0.8e9, Kind.HASH: 0.4e9}
"""Rough rates of one thread, on the fast side where algorithms of a kind differ: too high a rate cuts too seldom, which costs nothing."""


def worth(algorithm: Algorithm) -> int:
    """Bytes of a part that is worth a thread."""
    return int(BYTES_PER_SECOND[algorithm.kind] * PART_SECONDS)


class Cutter:
    """Where to cut, and the threads. Shared by all sessions of a provider; `cut` and `whole` count batches."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.cut = 0
        self.whole = 0
        # It has no thread yet. Made here: batches come in several threads.
        self._pool = ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="crypto")

    def run(self, least: int, items: Sequence[Buffer], part: Callable[[int, int], list[T]]) -> list[T]:
        """*part(begin, end)* of all items, in parts of *least* bytes or more of which none has an item below ITEM_MIN."""
        count = len(items)
        if count > 1 and self.threads > 1:
            sizes = list(map(len, items))
            total = sum(sizes)
            parts = min(self.threads, total // least, count)
            if parts > 1 and min(sizes) >= ITEM_MIN:
                self.cut += 1
                return self._cut(_bounds(sizes, total, parts), part)
        self.whole += 1
        return part(0, count)

    def _cut(self, bounds: list[int], part: Callable[[int, int], list[T]]) -> list[T]:
        others = [self._pool.submit(part, begin, end) for begin, end in pairwise(bounds[1:])]
        try:
            done = part(bounds[0], bounds[1])
        finally:
            # Also after an exception: buffers are borrowed only until the call returns.
            results = [other.exception() or other.result() for other in others]
        for result in results:
            if isinstance(result, BaseException):
                raise result
            done += result
        return done

    def close(self) -> None:
        self._pool.shutdown()


def _bounds(sizes: Sequence[int], total: int, parts: int) -> list[int]:
    """Where the parts begin, and the end: each has about the same number of bytes, and one item at least."""
    bounds, so_far = [0], 0
    for at, size in enumerate(sizes):
        if so_far * parts >= total * len(bounds) and at > bounds[-1] and len(bounds) < parts:
            bounds.append(at)
        so_far += size
    return [*bounds, len(sizes)]


class CutAead:
    """See `stack.crypto.api.AeadSession`."""

    def __init__(self, inner: AeadSession, cutter: Cutter) -> None:
        self.algorithm = inner.algorithm
        self._inner = inner
        self._cutter = cutter
        self._worth = worth(inner.algorithm)
        self.close = inner.close

    def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes]:
        seal = self._inner.seal_many
        if len(nonces) == len(plaintexts) == len(aads):
            return self._cutter.run(
                self._worth, plaintexts, lambda begin, end: seal(nonces[begin:end], plaintexts[begin:end], aads[begin:end])
            )
        return seal(nonces, plaintexts, aads)

    def open_many(self, nonces: Sequence[Buffer], ciphertexts: Sequence[Buffer], aads: Sequence[Buffer], /) -> list[bytes | None]:
        open_ = self._inner.open_many
        if len(nonces) == len(ciphertexts) == len(aads):
            return self._cutter.run(
                self._worth, ciphertexts, lambda begin, end: open_(nonces[begin:end], ciphertexts[begin:end], aads[begin:end])
            )
        return open_(nonces, ciphertexts, aads)


class CutCipher:
    """See `stack.crypto.api.CipherSession`."""

    def __init__(self, inner: CipherSession, cutter: Cutter) -> None:
        self.algorithm = inner.algorithm
        self._inner = inner
        self._cutter = cutter
        self._worth = worth(inner.algorithm)
        self.close = inner.close

    def encrypt_many(self, nonces: Sequence[Buffer], items: Sequence[Buffer], /) -> list[bytes]:
        return self._each(self._inner.encrypt_many, nonces, items)

    def decrypt_many(self, nonces: Sequence[Buffer], items: Sequence[Buffer], /) -> list[bytes]:
        return self._each(self._inner.decrypt_many, nonces, items)

    def _each(
        self,
        call: Callable[[Sequence[Buffer], Sequence[Buffer]], list[bytes]],
        nonces: Sequence[Buffer],
        items: Sequence[Buffer],
    ) -> list[bytes]:
        if len(nonces) == len(items):
            return self._cutter.run(self._worth, items, lambda begin, end: call(nonces[begin:end], items[begin:end]))
        return call(nonces, items)


class CutMac:
    """See `stack.crypto.api.MacSession`."""

    def __init__(self, inner: MacSession, cutter: Cutter) -> None:
        self.algorithm = inner.algorithm
        self.tag_size = inner.tag_size
        self._inner = inner
        self._cutter = cutter
        self._worth = worth(inner.algorithm)
        self.close = inner.close

    def tag_many(self, items: Sequence[Buffer], /) -> list[bytes]:
        tag = self._inner.tag_many
        return self._cutter.run(self._worth, items, lambda begin, end: tag(items[begin:end]))


class CutHash:
    """See `stack.crypto.api.HashSession`."""

    def __init__(self, inner: HashSession, cutter: Cutter) -> None:
        self.algorithm = inner.algorithm
        self._inner = inner
        self._cutter = cutter
        self._worth = worth(inner.algorithm)
        self.close = inner.close

    def digest_many(self, items: Sequence[Buffer], /) -> list[bytes]:
        digest = self._inner.digest_many
        return self._cutter.run(self._worth, items, lambda begin, end: digest(items[begin:end]))


class Threads:
    """See `stack.crypto.api.Provider`. *inner* does the work; *threads*: how many work on one batch, the caller's included (0: one per
    core).
    """

    name = "threads"

    def __init__(self, inner: Provider, threads: int = 0) -> None:
        self._inner = inner
        self.cutter = Cutter(threads or len(os.sched_getaffinity(0)))
        self.algorithms = inner.algorithms
        self.hardware = inner.hardware
        self.fails = inner.fails

    def aead(self, algorithm: Aead, key: Buffer) -> AeadSession:
        return CutAead(self._inner.aead(algorithm, key), self.cutter)

    def cipher(self, algorithm: Cipher, key: Buffer) -> CipherSession:
        return CutCipher(self._inner.cipher(algorithm, key), self.cutter)

    def mac(self, algorithm: Mac, key: Buffer, tag_size: int) -> MacSession:
        session = self._inner.mac(algorithm, key, tag_size)
        return session if algorithm in CMACS else CutMac(session, self.cutter)

    def hash(self, algorithm: Hash) -> HashSession:
        return CutHash(self._inner.hash(algorithm), self.cutter)

    def close(self) -> None:
        self.cutter.close()
        self._inner.close()
