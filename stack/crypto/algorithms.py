"""The algorithms that the crypto API names. Values only: what a key, a nonce and a tag measure, and how much one key may do. Sizes in
bytes.

A name means one set of parameters: AES-CCM with the parameters of 802.11 has a name of its own. What one does and another does not have (a
nonce, a tag) is why there are four classes and not one.
"""

from __future__ import annotations

import enum

import attrs


class Kind(enum.Enum):
    AEAD = "aead"
    CIPHER = "cipher"
    MAC = "mac"
    HASH = "hash"


@attrs.frozen
class Aead:
    """Authenticated encryption with associated data. `plaintext_max` is per item.

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
    kind = Kind.AEAD


@attrs.frozen
class Cipher:
    """A stream: each item, of at most `data_max` bytes, is encrypted from its own initial counter block of `nonce_size` bytes, which counts
    up by one per 16 bytes.

    The caller keeps counter blocks apart: two items under one key must not share a single one, their last blocks included.
    """

    name: str
    key_size: int
    nonce_size: int
    data_max: int
    kind = Kind.CIPHER


@attrs.frozen
class Mac:
    """A message authentication code. A tag may be cut to `tag_min` bytes when the session is made."""

    name: str
    key_min: int
    key_max: int
    tag_size: int
    tag_min: int
    kind = Kind.MAC


@attrs.frozen
class Hash:
    name: str
    digest_size: int
    kind = Kind.HASH


Algorithm = Aead | Cipher | Mac | Hash
"""For listings. Whoever works with one knows its kind."""

AES_128_GCM = Aead("aes-128-gcm", 16, 12, 16, 2**36 - 31, 2**23, 2**52)
"""RFC 5116 section 5.1; limits RFC 9001 section 6.6 (RFC 8446 section 5.5 allows 2**24.5 records of 2**14 bytes, a weaker bound)."""
AES_256_GCM = Aead("aes-256-gcm", 32, 12, 16, 2**36 - 31, 2**23, 2**52)
"""RFC 5116 section 5.2; limits as for AES-128: they come from the 128-bit block, not from the key."""
CHACHA20_POLY1305 = Aead("chacha20-poly1305", 32, 12, 16, 2**38 - 64, 2**62, 2**36)
"""RFC 8439 section 2.8; limits RFC 9001 section 6.6 (no limit on sealing below the number of packets there can be)."""
AES_128_CCM = Aead("aes-128-ccm", 16, 12, 16, 2**24 - 1, 2_965_820, 2_965_820)
"""RFC 5116 section 5.3; limits RFC 9001 section 6.6: 2**21.5 both."""
AES_256_CCM = Aead("aes-256-ccm", 32, 12, 16, 2**24 - 1, 2_965_820, 2_965_820)
"""RFC 5116 section 5.4; limits as for AES-128."""
CCMP_128 = Aead("ccmp-128", 16, 13, 8, 2**16 - 1, 2**48 - 1, 2**32)
"""IEEE 802.11 section 12.5.2: M=8, L=2. Sealing ends with the packet number; 802.11 limits failures by time, not by key: ours is 2**-32."""
CCMP_256 = Aead("ccmp-256", 32, 13, 16, 2**16 - 1, 2**48 - 1, 2**32)
"""The same with M=16."""

AES_128_CTR = Cipher("aes-128-ctr", 16, 16, 2**36)
"""NIST SP 800-38A section 6.5, the whole block counting, big-endian."""
AES_256_CTR = Cipher("aes-256-ctr", 32, 16, 2**36)

AES_128_CMAC = Mac("aes-128-cmac", 16, 16, 16, 8)
"""NIST SP 800-38B; RFC 4493. Appendix A.2 there wants 64 bits at least."""
AES_256_CMAC = Mac("aes-256-cmac", 32, 32, 16, 8)
HMAC_KEY_MAX = 1024
"""Longer keys add nothing: HMAC hashes what is longer than a block."""
HMAC_SHA256 = Mac("hmac-sha256", 1, HMAC_KEY_MAX, 32, 10)
"""RFC 2104; a tag of less than half the hash or 80 bits is refused there (section 5)."""
HMAC_SHA384 = Mac("hmac-sha384", 1, HMAC_KEY_MAX, 48, 10)
HMAC_SHA512 = Mac("hmac-sha512", 1, HMAC_KEY_MAX, 64, 10)
HMAC_SHA3_256 = Mac("hmac-sha3-256", 1, HMAC_KEY_MAX, 32, 10)
HMAC_SHA3_384 = Mac("hmac-sha3-384", 1, HMAC_KEY_MAX, 48, 10)
HMAC_SHA3_512 = Mac("hmac-sha3-512", 1, HMAC_KEY_MAX, 64, 10)
BLAKE2B_MAC = Mac("blake2b-mac", 1, 64, 64, 64)
"""RFC 7693, keyed. The size of the digest goes into the hash, so a tag is never cut."""
BLAKE2S_MAC = Mac("blake2s-mac", 1, 32, 32, 32)

SHA224 = Hash("sha224", 28)
SHA256 = Hash("sha256", 32)
"""FIPS 180-4."""
SHA384 = Hash("sha384", 48)
SHA512 = Hash("sha512", 64)
SHA3_224 = Hash("sha3-224", 28)
SHA3_256 = Hash("sha3-256", 32)
"""FIPS 202."""
SHA3_384 = Hash("sha3-384", 48)
SHA3_512 = Hash("sha3-512", 64)
BLAKE2B = Hash("blake2b", 64)
"""RFC 7693."""
BLAKE2S = Hash("blake2s", 32)

AEADS = (AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305, AES_128_CCM, AES_256_CCM, CCMP_128, CCMP_256)
CIPHERS = (AES_128_CTR, AES_256_CTR)
CMACS = (AES_128_CMAC, AES_256_CMAC)
HMACS = (HMAC_SHA256, HMAC_SHA384, HMAC_SHA512, HMAC_SHA3_256, HMAC_SHA3_384, HMAC_SHA3_512)
MACS = (*CMACS, *HMACS, BLAKE2B_MAC, BLAKE2S_MAC)
HASHES = (SHA224, SHA256, SHA384, SHA512, SHA3_224, SHA3_256, SHA3_384, SHA3_512, BLAKE2B, BLAKE2S)
ALGORITHMS: tuple[Algorithm, ...] = (*AEADS, *CIPHERS, *MACS, *HASHES)


def algorithm_named(name: str) -> Algorithm:
    """LookupError, as a sentence, when there is none."""
    for algorithm in ALGORITHMS:
        if algorithm.name == name:
            return algorithm
    raise LookupError(f"there is no algorithm {name}; there are {', '.join(one.name for one in ALGORITHMS)}")
