"""The contract of crypto providers: give yours to `check_provider`. Raises AssertionError with the vector or rule that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby

from resmgr.errors import Misuse
from stack.crypto.algorithms import ALGORITHMS, Aead, Cipher, Mac
from stack.crypto.api import AeadSession, CipherSession, HashSession, MacSession, Provider
from stack.crypto.vectors import AeadVector, CipherVector, HashVector, MacVector, Vector


def check_provider(provider: Provider, vectors: Iterable[Vector], *, threads: bool = True) -> int:
    """All rules and *vectors* (of the algorithms that the provider has). Returns the number of vectors that were run.

    *threads*: check too that one session can be used from several threads.
    """
    assert provider.name
    assert provider.algorithms
    assert provider.hardware <= {one.name for one in provider.algorithms}
    for algorithm in ALGORITHMS:
        if isinstance(algorithm, Aead):
            _check_keys(provider, algorithm, lambda key, one=algorithm: provider.aead(one, key))  # type: ignore[misc]
            if algorithm in provider.algorithms:
                if threads:
                    _check_threads(provider.aead(algorithm, bytes(algorithm.key_size)))
                check_aead(provider.aead(algorithm, bytes(algorithm.key_size)))
        elif isinstance(algorithm, Cipher):
            _check_keys(provider, algorithm, lambda key, one=algorithm: provider.cipher(one, key))  # type: ignore[misc]
            if algorithm in provider.algorithms:
                check_cipher(provider.cipher(algorithm, bytes(algorithm.key_size)))
        elif isinstance(algorithm, Mac):
            _check_macs(provider, algorithm)
        elif algorithm in provider.algorithms:
            check_hash(provider.hash(algorithm))
        else:
            _misused(algorithm.name, partial(provider.hash, algorithm))
    return check_vectors(provider, vectors)


def _check_keys(provider: Provider, algorithm: Aead | Cipher, make: Callable[[bytes], object]) -> None:
    if algorithm not in provider.algorithms:
        _misused(algorithm.name, partial(make, bytes(algorithm.key_size)))
        return
    for size in (0, algorithm.key_size - 1, algorithm.key_size + 1):
        _misused(f"a key of {size} bytes", partial(make, bytes(size)))


def _check_macs(provider: Provider, algorithm: Mac) -> None:
    make = partial(provider.mac, algorithm)
    if algorithm not in provider.algorithms:
        _misused(algorithm.name, lambda: make(bytes(algorithm.key_min), algorithm.tag_size))
        return
    for size in (algorithm.key_min - 1, algorithm.key_max + 1):
        _misused(f"a key of {size} bytes", lambda size=size: make(bytes(size), algorithm.tag_size))  # type: ignore[misc]
    for size in (algorithm.tag_min - 1, algorithm.tag_size + 1):
        _misused(f"a tag of {size} bytes", lambda size=size: make(bytes(algorithm.key_min), size))  # type: ignore[misc]
    whole = make(bytes(algorithm.key_max), algorithm.tag_size)
    cut = make(bytes(algorithm.key_max), algorithm.tag_min)
    assert [one[: algorithm.tag_min] for one in whole.tag_many([b"abc", b""])] == cut.tag_many([b"abc", b""])
    cut.close()
    check_mac(whole)


def check_vectors(provider: Provider, vectors: Iterable[Vector]) -> int:
    """Run every vector of the provider's algorithms, AEAD vectors of one key as one batch. Returns how many were run."""
    known = [vector for vector in vectors if vector.algorithm in provider.algorithms]
    aeads = [vector for vector in known if isinstance(vector, AeadVector)]
    for (algorithm, key), grouped in groupby(aeads, key=lambda vector: (vector.algorithm, vector.key)):
        _check_aead_vectors(provider, provider.aead(algorithm, key), list(grouped))
    for vector in known:
        match vector:
            case CipherVector():
                cipher = provider.cipher(vector.algorithm, vector.key)
                assert cipher.encrypt_many([vector.nonce], [vector.plaintext]) == [vector.ciphertext], _said(provider, "encrypt", vector)
                assert cipher.decrypt_many([vector.nonce], [vector.ciphertext]) == [vector.plaintext], _said(provider, "decrypt", vector)
                cipher.close()
            case MacVector():
                mac = provider.mac(vector.algorithm, vector.key, len(vector.tag))
                assert (mac.tag_many([vector.message]) == [vector.tag]) is vector.valid, _said(provider, "tag", vector)
                mac.close()
            case HashVector():
                hasher = provider.hash(vector.algorithm)
                assert hasher.digest_many([vector.message]) == [vector.digest], _said(provider, "digest", vector)
                hasher.close()
    return len(known)


def _check_aead_vectors(provider: Provider, session: AeadSession, group: list[AeadVector]) -> None:
    opened = session.open_many(
        [vector.nonce for vector in group], [vector.ciphertext for vector in group], [vector.aad for vector in group]
    )
    for vector, plaintext in zip(group, opened, strict=True):
        assert plaintext == (vector.plaintext if vector.valid else None), _said(provider, "open", vector)
    valid = [vector for vector in group if vector.valid]
    sealed = session.seal_many([vector.nonce for vector in valid], [vector.plaintext for vector in valid], [vector.aad for vector in valid])
    for vector, ciphertext in zip(valid, sealed, strict=True):
        assert ciphertext == vector.ciphertext, _said(provider, "seal", vector)
    session.close()


def _said(provider: Provider, what: str, vector: Vector) -> str:
    return f"{provider.name}: {what} {vector.source}"


def check_aead(session: AeadSession) -> None:
    """The rules of `stack.crypto.api.AeadSession` that hold for every algorithm. Closes the session."""
    algorithm = session.algorithm
    size, tag = algorithm.nonce_size, algorithm.tag_size
    count = 9
    nonces = [number.to_bytes(size, "big") for number in range(count)]
    plaintexts = [bytes([number]) * (number * 700) for number in range(count)]
    aads = [b"head%d" % number for number in range(count)]

    assert session.seal_many([], [], []) == []
    assert session.open_many([], [], []) == []
    sealed = session.seal_many(nonces, plaintexts, aads)
    assert [len(one) for one in sealed] == [len(one) + tag for one in plaintexts]
    assert session.open_many(nonces, sealed, aads) == plaintexts

    # Every kind of buffer gives the same.
    assert session.seal_many([bytearray(one) for one in nonces], [memoryview(one) for one in plaintexts], aads) == sealed
    assert session.open_many(nonces, [memoryview(one) for one in sealed], [bytearray(one) for one in aads]) == plaintexts

    # Bad items, first, last and in a row, are None; the others open.
    bad = {0, 3, 4, count - 1}
    forged = [one[:-1] + bytes([one[-1] ^ 1]) if number in bad else one for number, one in enumerate(sealed)]
    expected = [None if number in bad else one for number, one in enumerate(plaintexts)]
    assert session.open_many(nonces, forged, aads) == expected
    assert session.open_many(nonces, [b""] * count, aads) == [None] * count

    # Each bit of nonce, associated data and ciphertext counts; every length short of the whole fails.
    item = session.seal_many([nonces[1]], [b"abc"], [aads[1]])[0]
    flipped = [bytes(byte ^ (1 << bit % 8 if place == bit // 8 else 0) for place, byte in enumerate(item)) for bit in range(8 * len(item))]
    assert session.open_many([nonces[1]] * len(flipped), flipped, [aads[1]] * len(flipped)) == [None] * len(flipped)
    cut = [item[:length] for length in range(len(item))]
    assert session.open_many([nonces[1]] * len(cut), cut, [aads[1]] * len(cut)) == [None] * len(cut)
    assert session.open_many([nonces[2], nonces[1]], [item, item], [aads[1], aads[2]]) == [None, None]

    _misused("lists of unequal length", lambda: session.seal_many(nonces, plaintexts[1:], aads))
    _misused("lists of unequal length", lambda: session.open_many(nonces, sealed, aads[1:]))
    _misused("a short nonce", lambda: session.seal_many([bytes(size - 1)], [b""], [b""]))
    _misused("a long nonce", lambda: session.open_many([bytes(size + 1)], [bytes(tag)], [b""]))
    if algorithm.plaintext_max < 2**20:
        long = bytes(algorithm.plaintext_max + 1)
        _misused("a long plaintext", lambda: session.seal_many([nonces[0]], [long], [b""]))
        assert session.open_many(nonces[:2], [long + bytes(tag), sealed[1]], [b"", aads[1]]) == [None, plaintexts[1]]
    session.close()
    session.close()
    _misused("a closed session", lambda: session.seal_many([], [], []))
    _misused("a closed session", lambda: session.open_many([], [], []))


def check_cipher(session: CipherSession) -> None:
    """The rules of `stack.crypto.api.CipherSession` that hold for every algorithm. Closes the session."""
    size = session.algorithm.nonce_size
    nonces = [bytes([number]) * size for number in range(8)]
    items = [bytes([number]) * (number * 333) for number in range(8)]
    assert session.encrypt_many([], []) == []
    made = session.encrypt_many(nonces, items)
    assert [len(one) for one in made] == [len(one) for one in items]
    assert session.decrypt_many(nonces, made) == items
    assert session.encrypt_many(nonces[::-1], items[::-1]) == made[::-1], "an item depends on what came before it"
    assert session.encrypt_many([bytearray(one) for one in nonces], [memoryview(one) for one in items]) == made
    # The counter block is one number of 128 bits, and wraps.
    ends, (first, second) = bytes([255]) * size, session.encrypt_many([bytes([255]) * size, bytes(size)], [bytes(48), bytes(32)])
    assert first[16:] == second, f"the counter does not wrap after {ends.hex()}"
    _misused("lists of unequal length", lambda: session.encrypt_many(nonces, items[1:]))
    _misused("a short counter block", lambda: session.decrypt_many([bytes(size - 1)], [b""]))
    session.close()
    session.close()
    _misused("a closed session", lambda: session.encrypt_many([], []))


def check_mac(session: MacSession) -> None:
    """The rules of `stack.crypto.api.MacSession` that hold for every algorithm. Closes the session."""
    items = [bytes([number]) * (number * 333) for number in range(8)]
    assert session.tag_many([]) == []
    tags = session.tag_many(items)
    assert {len(tag) for tag in tags} == {session.tag_size}
    assert len(set(tags)) == len(tags)
    assert session.tag_many([memoryview(one) for one in items[::-1]]) == tags[::-1], "a tag depends on what came before it"
    session.close()
    session.close()
    _misused("a closed session", lambda: session.tag_many([]))


def check_hash(session: HashSession) -> None:
    """The rules of `stack.crypto.api.HashSession` that hold for every algorithm. Closes the session."""
    items = [bytes([number]) * (number * 333) for number in range(8)]
    assert session.digest_many([]) == []
    digests = session.digest_many(items)
    assert {len(one) for one in digests} == {session.algorithm.digest_size}
    assert session.digest_many([memoryview(one) for one in items[::-1]]) == digests[::-1]
    session.close()
    session.close()
    _misused("a closed session", lambda: session.digest_many([]))


def _check_threads(session: AeadSession) -> None:
    """Four threads at once get what one gets."""
    count = 16
    nonces = [number.to_bytes(session.algorithm.nonce_size, "big") for number in range(count)]
    plaintexts = [bytes([number]) * (number * 200) for number in range(count)]
    alone = session.seal_many(nonces, plaintexts, [b""] * count)
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda _: session.seal_many(nonces, plaintexts, [b""] * count), range(8)):
            assert made == alone
    session.close()


def _misused(what: str, call: Callable[[], object]) -> None:
    try:
        call()
    except Misuse:
        return
    raise AssertionError(f"{what} was accepted")
