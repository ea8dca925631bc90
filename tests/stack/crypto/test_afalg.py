"""The kernel's ciphers. Where the kernel has AF_ALG, the contract and the vectors run on it; where not, the refusal is checked. The
layout of what is sent is checked everywhere, against a double of the kernel's side that is made from its documentation.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

import pytest

from resmgr.dispatch import Buffer
from stack.crypto.algorithms import AEADS, AES_128_CTR, AES_128_GCM, ALGORITHMS, CIPHERS, HASHES, MACS, SHA256
from stack.crypto.api import ProviderGone
from stack.crypto.proccrypto import chosen, parse
from stack.crypto.providers.afalg import (
    ALG_SET_AEAD_AUTHSIZE,
    ALG_SET_KEY,
    ENCRYPT,
    ITEM_MAX,
    NAMES,
    SOL_ALG,
    AfAlg,
    AlgSocket,
)
from stack.crypto.providers.openssl import OpenSSL
from stack.crypto.registry import Crypto, standard_crypto
from stack.crypto.vectorfiles import packaged_vectors
from stack.crypto.vectors import builtin_vectors
from stack.testing.crypto import check_provider, check_vectors


def available() -> bool:
    try:
        socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close()
    except OSError:
        return False
    return True


@pytest.mark.host
@pytest.mark.skipif(not available(), reason="optional: this kernel has no AF_ALG")
def test_contract_and_vectors_on_this_kernel() -> None:
    provider = AfAlg(OpenSSL())
    vectors = [one for one in (*builtin_vectors(), *packaged_vectors(50)) if one.algorithm in provider.algorithms]
    check_provider(provider, builtin_vectors())
    assert check_vectors(provider, vectors) == len(vectors) > 0


@pytest.mark.host
@pytest.mark.skipif(available(), reason="optional: this kernel has AF_ALG")
def test_a_kernel_without_it_says_so() -> None:
    with pytest.raises(OSError, match="this kernel offers no ciphers to programs") as raised:
        AfAlg(OpenSSL())
    assert raised.value.errno == errno.EAFNOSUPPORT
    crypto = standard_crypto()
    with pytest.raises(OSError, match="AF_ALG"):
        crypto.use("afalg")
    facts = {one.name: one for one in crypto.facts()}
    assert "AF_ALG" in facts["afalg"].problem
    assert crypto.aead(AES_128_GCM, bytes(16)).provider == "openssl"


EVERY = frozenset(pair[1] for pair in NAMES.values())


class KernelSide:
    """An AF_ALG socket, as the kernel's documentation has it, over OpenSSL."""

    def __init__(self, names: frozenset[str] = EVERY) -> None:
        self._names = names
        self._kind = self._name = ""
        self._key = b""
        self._tag = 0
        self._result: bytes | OSError = b""
        self.failing = False
        self.parent: KernelSide | None = None

    def bind(self, address: tuple[str, str], /) -> None:
        if address[1] not in self._names:
            raise OSError(errno.ENOENT, "no such cipher")
        self._kind, self._name = address

    def setsockopt(self, level: int, option: int, value: Buffer | None, length: int = 0, /) -> None:
        assert level == SOL_ALG
        if option == ALG_SET_KEY:
            assert value is not None
            self._key = bytes(value)
        else:
            assert (option, value, self._kind) == (ALG_SET_AEAD_AUTHSIZE, None, "aead")
            self._tag = length

    def accept(self) -> tuple[AlgSocket, object]:
        made = KernelSide(self._names)
        made._kind, made._name, made._key, made._tag, made.parent = self._kind, self._name, self._key, self._tag, self
        return made, None

    def sendmsg_afalg(self, msg: Sequence[Buffer] = (), *, op: int, iv: Buffer = b"", assoclen: int = 0, flags: int = 0) -> int:
        if self.parent is not None and self.parent.failing:
            raise OSError(errno.ENODEV, "no such device")
        data = b"".join(map(bytes, msg))
        assert 0 < len(data) <= 16 * 4096
        if self._kind == "skcipher":
            cipher = next(one for one in CIPHERS if one.key_size == len(self._key))
            self._result = OpenSSL().cipher(cipher, self._key).encrypt_many([iv], [data])[0]
            return len(data)
        nonce = bytes(iv)
        if self._name == "ccm(aes)":
            assert len(nonce) == 16
            assert nonce[1 + 14 - nonce[0] :] == bytes(nonce[0] + 1)
            nonce = nonce[1 : 15 - nonce[0]]
        kind = self._name.partition("(")[0]
        wanted = (len(self._key), len(nonce), self._tag)
        algorithm = next(
            one
            for one in AEADS
            if (one.key_size, one.nonce_size, one.tag_size) == wanted
            and (kind in one.name or (kind == "ccm" and "ccmp" in one.name) or (kind == "rfc7539" and "chacha" in one.name))
        )
        session = OpenSSL().aead(algorithm, self._key)
        aad, body = data[:assoclen], data[assoclen:]
        if op == ENCRYPT:
            self._result = aad + session.seal_many([nonce], [body], [aad])[0]
        else:
            opened = session.open_many([nonce], [body], [aad])[0]
            self._result = OSError(errno.EBADMSG, "bad message") if opened is None else aad + opened
        return len(data)

    def send(self, data: Buffer, /) -> int:
        if self._name.startswith(("hmac(", "cmac(")):
            inside = self._name[5:-1]
            name = f"aes-{len(self._key) * 8}-cmac" if inside == "aes" else f"hmac-{inside}"
            mac = next(one for one in MACS if one.name == name)
            self._result = OpenSSL().mac(mac, self._key, mac.tag_size).tag_many([data])[0]
        else:
            self._result = OpenSSL().hash(next(one for one in HASHES if one.name == self._name)).digest_many([data])[0]
        return len(data)

    def recv(self, size: int, /) -> bytes:
        if isinstance(self._result, OSError):
            raise self._result
        return self._result[:size]

    def close(self) -> None:
        self._key = b""


def test_contract_and_vectors_against_the_documented_layout() -> None:
    provider = AfAlg(OpenSSL(), KernelSide, "")
    assert {one.name for one in ALGORITHMS if one not in provider.algorithms} == {"blake2b", "blake2s", "blake2b-mac", "blake2s-mac"}
    vectors = builtin_vectors()
    assert check_provider(provider, vectors) == len([one for one in vectors if one.algorithm in provider.algorithms])


def test_items_beyond_what_the_kernel_takes_are_done_all_the_same() -> None:
    provider = AfAlg(OpenSSL(), KernelSide, "")
    items = [b"", bytes(ITEM_MAX - 24), bytes(ITEM_MAX + 1), bytes(100_000)]
    nonces = [bytes([number]) * 12 for number in range(4)]
    one, other = provider.aead(AES_128_GCM, bytes(16)), OpenSSL().aead(AES_128_GCM, bytes(16))
    sealed = other.seal_many(nonces, items, [bytes(24)] * 4)
    assert one.seal_many(nonces, items, [bytes(24)] * 4) == sealed
    assert one.open_many(nonces, sealed, [bytes(24)] * 4) == items
    blocks = [bytes([number]) * 16 for number in range(4)]
    ctr = provider.cipher(AES_128_CTR, bytes(16))
    assert ctr.encrypt_many(blocks, items) == OpenSSL().cipher(AES_128_CTR, bytes(16)).encrypt_many(blocks, items)
    assert provider.hash(SHA256).digest_many(items) == OpenSSL().hash(SHA256).digest_many(items)


def test_an_engine_that_goes_away() -> None:
    sockets: list[KernelSide] = []

    def opened() -> AlgSocket:
        sockets.append(KernelSide())
        return sockets[-1]

    crypto = Crypto()
    crypto.add("afalg", lambda: AfAlg(OpenSSL(), opened, PROC))
    crypto.add("openssl", OpenSSL)
    session, pinned = crypto.aead(AES_128_GCM, bytes(16)), crypto.aead(AES_128_GCM, bytes(16), "afalg")
    right = session.seal_many([bytes(12)], [b"text"], [b""])
    assert session.provider == "afalg"
    for one in sockets:
        one.failing = True
    assert session.seal_many([bytes(12)], [b"text"], [b""]) == right
    assert session.provider == "openssl"
    with pytest.raises(ProviderGone):
        pinned.seal_many([bytes(12)], [b"text"], [b""])


PROC = """name         : gcm(aes)
driver       : rfc4106-gcm-card
module       : card
priority     : 4001
internal     : no
type         : aead
async        : yes

name         : gcm(aes)
driver       : generic-gcm-aesni
priority     : 400
internal     : no
async        : yes

name         : ccm(aes)
driver       : cryptd(__ccm-aes-ce)
priority     : 300
internal     : no
async        : yes

name         : ctr(aes)
driver       : ctr-internal
priority     : 9000
internal     : yes
async        : yes

name         : ctr(aes)
driver       : ctr-aes-aesni
priority     : 400
internal     : no
async        : no

name         : sha256
driver       : sha256-generic
priority     : high
"""


def test_which_drivers_are_hardware() -> None:
    assert {name: (one.driver, one.hardware) for name, one in chosen(PROC).items()} == {
        "gcm(aes)": ("rfc4106-gcm-card", True),
        "ccm(aes)": ("cryptd(__ccm-aes-ce)", False),
        "ctr(aes)": ("ctr-aes-aesni", False),
    }
    assert AfAlg(OpenSSL(), KernelSide, PROC).hardware == {"aes-128-gcm", "aes-256-gcm"}
    for cut in range(0, len(PROC), 7):
        list(parse(PROC[:cut]))
    assert list(parse("\n\n:\nname:\n\nname : x\ndriver")) == []
