"""How fast a provider is: batches of one size, for a time. The clock is an argument."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from stack.crypto.algorithms import Aead, Algorithm, Cipher, Mac
from stack.crypto.api import Provider


@attrs.frozen
class Speed:
    """*items* of *size* bytes in *seconds*."""

    items: int
    size: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.items * self.size / self.seconds

    @property
    def cost(self) -> float:
        """Seconds per item."""
        return self.seconds / self.items


def batch(provider: Provider, algorithm: Algorithm, size: int, count: int) -> Callable[[], object]:
    """A call that seals, encrypts, tags or digests *count* items of *size* bytes."""
    items = [bytes(size)] * count
    if isinstance(algorithm, Aead):
        nonces, aads = [number.to_bytes(algorithm.nonce_size, "big") for number in range(count)], [bytes(24)] * count
        seal = provider.aead(algorithm, bytes(algorithm.key_size)).seal_many
        return lambda: seal(nonces, items, aads)
    if isinstance(algorithm, Cipher):
        blocks = [(number << 32).to_bytes(algorithm.nonce_size, "big") for number in range(count)]
        encrypt = provider.cipher(algorithm, bytes(algorithm.key_size)).encrypt_many
        return lambda: encrypt(blocks, items)
    if isinstance(algorithm, Mac):
        tag = provider.mac(algorithm, bytes(algorithm.key_min), algorithm.tag_size).tag_many
        return lambda: tag(items)
    digest = provider.hash(algorithm).digest_many
    return lambda: digest(items)


def measure(call: Callable[[], object], size: int, count: int, seconds: float, clock: Callable[[], float]) -> Speed:
    """*call* does *count* items of *size* bytes, and is made again and again for about *seconds*, after once to warm up."""
    call()
    rounds = 1
    while True:
        begin = clock()
        for _ in range(rounds):
            call()
        took = clock() - begin
        if took >= seconds or rounds >= 1 << 30:
            return Speed(rounds * count, size, took)
        rounds = max(2 * rounds, min(64 * rounds, int(rounds * 1.1 * seconds / max(took, 1e-9))))
