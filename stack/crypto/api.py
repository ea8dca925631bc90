"""Authenticated encryption as batches. Qnet's links, and later `/dev/crypto` and 802.11, use this and nothing below it.

A provider makes sessions; a session holds one key and seals or opens many items per call. Results are per item: a forged item is None in
the result, not an exception, since an attacker can put one into every batch. The provider is chosen once, by name, at configuration.

Unlike QNX (NetBSD's opencrypto): no ioctl sessions and no callbacks per request; a batch is a plain call that returns when it is done. A
provider that offloads would add its own asynchronous form; none exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from resmgr.dispatch import Buffer


@attrs.frozen
class Algorithm:
    """An AEAD. Sizes in bytes. `plaintext_max` is per item.

    `seal_limit` items sealed, and `open_failures_limit` items that did not open, are what one key may see before it must be replaced
    (RFC 9001 section 6.6: for packets of at most 65,536 bytes, advantage of an attacker at most 2**-57). Counting is the session owner's
    business: it knows both ends.
    """

    name: str
    key_size: int
    nonce_size: int
    tag_size: int
    plaintext_max: int
    seal_limit: int
    open_failures_limit: int


AES_128_GCM = Algorithm("aes-128-gcm", 16, 12, 16, 2**36 - 31, 2**23, 2**52)
"""RFC 5116 section 5.1; limits RFC 9001 section 6.6 (RFC 8446 section 5.5 allows 2**24.5 records of 2**14 bytes, a weaker bound)."""
AES_256_GCM = Algorithm("aes-256-gcm", 32, 12, 16, 2**36 - 31, 2**23, 2**52)
"""RFC 5116 section 5.2; limits as for AES-128: they come from the 128-bit block, not from the key."""
CHACHA20_POLY1305 = Algorithm("chacha20-poly1305", 32, 12, 16, 2**38 - 64, 2**62, 2**36)
"""RFC 8439 section 2.8; limits RFC 9001 section 6.6 (no limit on sealing below the number of packets there can be)."""

ALGORITHMS = (AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305)


class Session(Protocol):
    """One key. The lists of a call have equal length, else Misuse. Nonces are `nonce_size` long and never used twice for sealing."""

    @property
    def algorithm(self) -> Algorithm: ...

    def seal_many(self, nonces: Sequence[Buffer], plaintexts: Sequence[Buffer], aads: Sequence[Buffer]) -> list[bytes]:
        """Ciphertext || tag of each item. Buffers are borrowed until this returns. Misuse for a wrong nonce or a session that is closed."""
        ...

    def open_many(self, nonces: Sequence[Buffer], ciphertexts: Sequence[Buffer], aads: Sequence[Buffer]) -> list[bytes | None]:
        """Plaintext of each item, or None where the tag is wrong or the item shorter than a tag. One bad item costs no other item."""
        ...

    def close(self) -> None:
        """Forget the key. Idempotent; later calls raise Misuse."""
        ...


class Provider(Protocol):
    """An implementation of some algorithms. Stateless and shared."""

    @property
    def name(self) -> str: ...

    @property
    def algorithms(self) -> tuple[Algorithm, ...]: ...

    def session(self, algorithm: Algorithm, key: Buffer) -> Session:
        """Misuse when the key has another size or the algorithm is not this provider's."""
        ...
