"""The contract of crypto providers: give yours to `check_provider`. Raises AssertionError with the vector or rule that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby

from resmgr.errors import Misuse
from stack.crypto.api import Provider, Session
from stack.crypto.vectors import Vector


def check_provider(provider: Provider, vectors: Iterable[Vector]) -> int:
    """All rules and *vectors* (of the algorithms that the provider has). Returns the number of vectors that were run."""
    assert provider.name
    assert provider.algorithms
    for algorithm in provider.algorithms:
        session = provider.session(algorithm, bytes(algorithm.key_size))
        assert session.algorithm == algorithm
        check_session(session)
        for size in (0, algorithm.key_size - 1, algorithm.key_size + 1):
            _misused(f"a key of {size} bytes", partial(provider.session, algorithm, bytes(size)))
    return check_vectors(provider, vectors)


def check_vectors(provider: Provider, vectors: Iterable[Vector]) -> int:
    """Seal and open every vector, vectors of one key as one batch. Returns how many were run."""
    known = [vector for vector in vectors if vector.algorithm in provider.algorithms]
    for (algorithm, key), grouped in groupby(known, key=lambda vector: (vector.algorithm, vector.key)):
        group = list(grouped)
        session = provider.session(algorithm, key)
        opened = session.open_many(
            [vector.nonce for vector in group], [vector.ciphertext for vector in group], [vector.aad for vector in group]
        )
        for vector, plaintext in zip(group, opened, strict=True):
            assert plaintext == (vector.plaintext if vector.valid else None), f"{provider.name}: open {vector.source}"
        valid = [vector for vector in group if vector.valid]
        sealed = session.seal_many(
            [vector.nonce for vector in valid], [vector.plaintext for vector in valid], [vector.aad for vector in valid]
        )
        for vector, ciphertext in zip(valid, sealed, strict=True):
            assert ciphertext == vector.ciphertext, f"{provider.name}: seal {vector.source}"
        session.close()
    return len(known)


def check_session(session: Session) -> None:
    """The rules of `stack.crypto.api.Session` that hold for every algorithm. Closes the session."""
    size, tag = session.algorithm.nonce_size, session.algorithm.tag_size
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
    session.close()
    session.close()
    _misused("a closed session", lambda: session.seal_many([], [], []))
    _misused("a closed session", lambda: session.open_many([], [], []))


def _misused(what: str, call: Callable[[], object]) -> None:
    try:
        call()
    except Misuse:
        return
    raise AssertionError(f"{what} was accepted")
