"""Test vectors for providers: one or more of each algorithm that are present everywhere. `vectorfiles` reads what others publish;
`stack.testing.crypto` runs them.

Sources: RFC 3610 (CCM), 4231 (HMAC), 4493 (CMAC), 7693 (BLAKE2), 8439 section 2.8.2, 9001 appendix A.5; the GCM specification of McGrew and
Viega (test cases 1, 4, 14, 16); NIST SP 800-38A appendix F.5 (CTR) and SP 800-38B appendix D (CMAC), the examples of FIPS 180-4, FIPS
202 and of HMAC with SHA-3; IEEE 802.11 annex J.6.4 (CCMP); the keyed BLAKE2 known-answer tests; Wycheproof, where no standard has one.
"""

from __future__ import annotations

import attrs

from stack.crypto import algorithms as known
from stack.crypto.algorithms import Aead, Cipher, Hash, Mac


@attrs.frozen
class AeadVector:
    """One item. `valid` False: it must not open (and says nothing about sealing)."""

    source: str
    algorithm: Aead
    key: bytes
    nonce: bytes
    aad: bytes
    plaintext: bytes
    ciphertext: bytes
    """With the tag."""
    valid: bool


@attrs.frozen
class CipherVector:
    source: str
    algorithm: Cipher
    key: bytes
    nonce: bytes
    plaintext: bytes
    ciphertext: bytes


@attrs.frozen
class MacVector:
    """A tag shorter than the algorithm's is a cut one. `valid` False: it is not the message's."""

    source: str
    algorithm: Mac
    key: bytes
    message: bytes
    tag: bytes
    valid: bool


@attrs.frozen
class HashVector:
    source: str
    algorithm: Hash
    message: bytes
    digest: bytes


Vector = AeadVector | CipherVector | MacVector | HashVector
_hex = bytes.fromhex


def builtin_vectors() -> list[Vector]:
    """Present everywhere; at least one of every algorithm."""
    vectors: list[Vector] = []
    for source, aead, key, nonce, aad, plaintext, ciphertext in _AEAD:
        vectors.append(AeadVector(source, aead, _hex(key), _hex(nonce), _hex(aad), _hex(plaintext), _hex(ciphertext), True))
    for source, cipher, key, ciphertext in _CTR:
        vectors.append(CipherVector(source, cipher, _hex(key), _hex(_CTR_BLOCK), _hex(_BLOCKS), _hex(ciphertext)))
    for source, mac, key, message, tag in _MAC:
        vectors.append(MacVector(source, mac, _hex(key), _hex(message), _hex(tag), True))
    for algorithm, digest in _ABC:
        vectors.append(HashVector(f"{algorithm.name} of abc", algorithm, b"abc", _hex(digest)))
    return vectors


_GCM_PLAINTEXT = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
_GCM_AAD = "feedfacedeadbeeffeedfacedeadbeefabaddad2"
_GCM_KEY = "feffe9928665731c6d6a8f9467308308"
_AEAD: tuple[tuple[str, Aead, str, str, str, str, str], ...] = (
    ("GCM 1", known.AES_128_GCM, "00" * 16, "00" * 12, "", "", "58e2fccefa7e3061367f1d57a4e7455a"),
    (
        "GCM 4",
        known.AES_128_GCM,
        _GCM_KEY,
        "cafebabefacedbaddecaf888",
        _GCM_AAD,
        _GCM_PLAINTEXT,
        "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
        "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e0915bc94fbc3221a5db94fae95ae7121a47",
    ),
    ("GCM 14", known.AES_256_GCM, "00" * 32, "00" * 12, "", "00" * 16, "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"),
    (
        "GCM 16",
        known.AES_256_GCM,
        _GCM_KEY * 2,
        "cafebabefacedbaddecaf888",
        _GCM_AAD,
        _GCM_PLAINTEXT,
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b",
    ),
    (
        "RFC 8439 2.8.2",
        known.CHACHA20_POLY1305,
        "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
        "070000004041424344454647",
        "50515253c0c1c2c3c4c5c6c7",
        (b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.").hex(),
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b"
        "1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691",
    ),
    (
        "RFC 9001 A.5",
        known.CHACHA20_POLY1305,
        "c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8",
        "e0459b3474bdd0e46d417eb0",
        "4200bff4",
        "01",
        "655e5cd55c41f69080575d7999c25a5bfb",
    ),
    (
        "RFC 3610 packet 1",
        known.CCMP_128,
        "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf",
        "00000003020100a0a1a2a3a4a5",
        "0001020304050607",
        "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e",
        "588c979a61c663d2f066d0c2c0f989806d5f6b61dac38417e8d12cfdf926e0",
    ),
    (
        "IEEE 802.11 J.6.4",
        known.CCMP_128,
        "c97c1f67ce371185514a8a19f2bdd52f",
        "005030f1844408b5039776e70c",
        "08400fd2e128a57c5030f1844408abaea5b8fcba0000",
        "f8ba1a55d02f85ae967bb62fb6cda8eb7e78a050",
        "f3d0a2fe9a3dbf2342a643e43246e80c3c04d0197845ce0b16f97623",
    ),
    (
        "Wycheproof aes_ccm 340",
        known.CCMP_256,
        "a6938b2e56d5dc55665956840ac690c8ac9ff421cc062fc34209f7715f2d526e",
        "ad37de72d3521546d5ff51462b",
        "0a3809bc563c6675",
        "9d286bcc115f10b2caa8c5d8daa91ec7",
        "4ed4dbc8aa8cf6375021d15e43c1f6c3bfba9c41ec63aa296b1446b888b6251c",
    ),
    (
        "Wycheproof aes_ccm 12",
        known.AES_128_CCM,
        "9415f925bcb41dc25e86c826dbc8bf68",
        "bdffaa763b916ff0ee3f3ce4",
        "705d676cd8a94451",
        "feb36167eafc02c8e2bd6e13817686ba",
        "08db327a88be7b48f430fd7bfccdf502b7c249f810adacf99abded1f3b9130f2",
    ),
    (
        "Wycheproof aes_ccm 168",
        known.AES_256_CCM,
        "b907a45075513fe8a8019edee3f2591487b2a030b03c6e1d771c862571d2ea1e",
        "118a6964c2d3e380071f5266",
        "034585621af8d7ff",
        "55a465644f5b650928cbee7c063214d6",
        "ab01f92db4f210bdb5edaf0a1bd19eba621630c505d24e3b29294977d8ffa4b4",
    ),
)

_CTR_BLOCK = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"
_BLOCKS = "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
_AES_128 = "2b7e151628aed2a6abf7158809cf4f3c"
_AES_256 = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
_CTR = (
    (
        "SP 800-38A F.5.1",
        known.AES_128_CTR,
        _AES_128,
        "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee",
    ),
    (
        "SP 800-38A F.5.5",
        known.AES_256_CTR,
        _AES_256,
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c52b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6",
    ),
)

_JEFE = "4a656665"
_NOTHING = b"what do ya want for nothing?".hex()
_COUNT_32 = bytes(range(32)).hex()
_COUNT_64 = bytes(range(64)).hex()
_MAC = (
    ("RFC 4493 1", known.AES_128_CMAC, _AES_128, "", "bb1d6929e95937287fa37d129b756746"),
    ("RFC 4493 2", known.AES_128_CMAC, _AES_128, _BLOCKS[:32], "070a16b46b4d4144f79bdd9dd04a287c"),
    ("RFC 4493 3", known.AES_128_CMAC, _AES_128, _BLOCKS[:80], "dfa66747de9ae63030ca32611497c827"),
    ("RFC 4493 4", known.AES_128_CMAC, _AES_128, _BLOCKS, "51f0bebf7e3b9d92fc49741779363cfe"),
    ("SP 800-38B D.3 1", known.AES_256_CMAC, _AES_256, "", "028962f61b7bf89efc6b551f4667d983"),
    ("SP 800-38B D.3 2", known.AES_256_CMAC, _AES_256, _BLOCKS[:32], "28a7023f452e8f82bd4bf28d8c37c35c"),
    ("SP 800-38B D.3 3", known.AES_256_CMAC, _AES_256, _BLOCKS[:80], "aaf3d8f1de5640c232f5b169b9c911e6"),
    ("SP 800-38B D.3 4", known.AES_256_CMAC, _AES_256, _BLOCKS, "e1992190549f6ed5696a2c056c315410"),
    ("RFC 4231 4.3", known.HMAC_SHA256, _JEFE, _NOTHING, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
    ("RFC 4231 4.6", known.HMAC_SHA256, "0c" * 20, b"Test With Truncation".hex(), "a3b6167473100ee06e0c796c2955552b"),
    (
        "RFC 4231 4.3",
        known.HMAC_SHA384,
        _JEFE,
        _NOTHING,
        "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
    ),
    (
        "RFC 4231 4.3",
        known.HMAC_SHA512,
        _JEFE,
        _NOTHING,
        "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
    ),
    ("HMAC SHA-3", known.HMAC_SHA3_256, _JEFE, _NOTHING, "c7d4072e788877ae3596bbb0da73b887c9171f93095b294ae857fbe2645e1ba5"),
    (
        "HMAC SHA-3",
        known.HMAC_SHA3_384,
        _JEFE,
        _NOTHING,
        "f1101f8cbf9766fd6764d2ed61903f21ca9b18f57cf3e1a23ca13508a93243ce48c045dc007f26a21b3f5e0e9df4c20a",
    ),
    (
        "HMAC SHA-3",
        known.HMAC_SHA3_512,
        _JEFE,
        _NOTHING,
        "5a4bfeab6166427c7a3647b747292b8384537cdb89afb3bf5665e4c5e709350b287baec921fd7ca0ee7a0c31d022a95e1fc92ba9d77df883960275beb4e62024",
    ),
    (
        "BLAKE2 keyed",
        known.BLAKE2B_MAC,
        _COUNT_64,
        "",
        "10ebb67700b1868efb4417987acf4690ae9d972fb7a590c2f02871799aaa4786b5e996e8f0f4eb981fc214b005f42d2ff4233499391653df7aefcbc13fc51568",
    ),
    ("BLAKE2 keyed", known.BLAKE2S_MAC, _COUNT_32, "", "48a8997da407876b3d79c0d92325ad3b89cbb754d86ab71aee047ad345fd2c49"),
)
_ABC = (
    (known.SHA224, "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"),
    (known.SHA256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    (known.SHA384, "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7"),
    (
        known.SHA512,
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
    ),
    (known.SHA3_224, "e642824c3f8cf24ad09234ee7d3c766fc9a3a5168d0c94ad73b46fdf"),
    (known.SHA3_256, "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"),
    (known.SHA3_384, "ec01498288516fc926459f58e2c6ad8df9b473cb0fc08c2596da7cf0e49be4b298d88cea927ac7f539f1edf228376d25"),
    (
        known.SHA3_512,
        "b751850b1a57168a5693cd924b6b096e08f621827444f70d884f5d0240d2712e10e116e9192af3c91a7ec57647e3934057340b4cf408d5a56592f8274eec53f0",
    ),
    (
        known.BLAKE2B,
        "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d17d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923",
    ),
    (known.BLAKE2S, "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"),
)
