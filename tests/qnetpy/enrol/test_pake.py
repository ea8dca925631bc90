"""The key exchange: against an implementation of its own, written from docs/protocol/enrolment.md, and against who does not know the
code."""

from __future__ import annotations

import hashlib
import random

import pytest

from qnetpy.enrol.code import make_code
from qnetpy.enrol.pake import INVITER, JOINER, Pake, derive
from qnetpy.enrol.wire import Kind
from resmgr.errors import BadMessage

# Ed25519 (RFC 8032 section 5.1), affine: slow, and independent of the library's code.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
Point = tuple[int, int]
ZERO: Point = (0, 1)


def add(one: Point, two: Point) -> Point:
    (x1, y1), (x2, y2) = one, two
    product = D * x1 * x2 * y1 * y2 % P
    return (x1 * y2 + x2 * y1) * pow(1 + product, P - 2, P) % P, (y1 * y2 + x1 * x2) * pow(1 - product, P - 2, P) % P


def times(point: Point, scalar: int) -> Point:
    total = ZERO
    for bit in bin(scalar % L)[2:]:
        total = add(total, total)
        if bit == "1":
            total = add(total, point)
    return total


def decode(data: bytes) -> Point:
    number = int.from_bytes(data, "little")
    y, sign = number % 2**255, number >> 255
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert (x * x - square) % P == 0
    return (P - x if x % 2 != sign else x), y


def encode(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


BASE = decode(bytes.fromhex("5866666666666666666666666666666666666666666666666666666666666666"))


def arbitrary(seed: bytes) -> Point:
    """The library's M and N: points that nobody knows the logarithm of, hashed from a seed."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    y = int.from_bytes(HKDF(SHA256(), 48, b"", b"SPAKE2 arbitrary element").derive(seed), "big") % P
    for plus in range(1000):
        here = (y + plus) % P
        square = (here * here - 1) * pow(D * here * here + 1, P - 2, P) % P
        x = pow(square, (P + 3) // 8, P)
        if (x * x - square) % P:
            x = x * pow(2, (P - 1) // 4, P) % P
        if (x * x - square) % P:
            continue
        point = (P - x if x & 1 else x, here)
        of_order = point
        for _ in range(3):
            of_order = add(of_order, of_order)
        if of_order != ZERO:
            return of_order
    raise AssertionError


def password_scalar(password: bytes) -> int:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return int.from_bytes(HKDF(SHA256(), 32 + 16, b"", b"SPAKE2 pw").derive(password), "big") % L


def test_another_implementation_agrees() -> None:
    code = make_code(random.Random(7).randbytes)
    ours = Pake(code, joiner=False, random=random.Random(8).randbytes)
    w, x = password_scalar(code.password), 123456789**20 % L
    m, n = arbitrary(b"M"), arbitrary(b"N")

    message = b"A" + encode(add(times(BASE, x), times(m, w)))
    assert ours.message[:1] == b"B"
    shared = times(add(decode(ours.message[1:]), times(n, L - w)), x)
    transcript = b"everything that was said"
    hashed = hashlib.sha256(code.password).digest() + hashlib.sha256(JOINER).digest() + hashlib.sha256(INVITER).digest()
    key = hashlib.sha256(hashed + message[1:] + ours.message[1:] + encode(shared)).digest()

    theirs = derive(key, transcript, joiner=True)
    assert ours.finish(message, transcript).confirmed(theirs.own)


def run(one: Pake, two: Pake, transcripts: tuple[bytes, bytes] = (b"t", b"t")) -> tuple[bool, bool]:
    """Whether each end accepts the other's confirmation."""
    a, b = one.finish(two.message, transcripts[0]), two.finish(one.message, transcripts[1])
    return a.confirmed(b.own), b.confirmed(a.own)


def pair(code_seed: int = 1, other_seed: int = 1) -> tuple[Pake, Pake]:
    chance = random.Random(3)
    make = [make_code(random.Random(seed).randbytes) for seed in (code_seed, other_seed)]
    return Pake(make[0], True, chance.randbytes), Pake(make[1], False, chance.randbytes)


def test_the_same_code_and_transcript_agree_and_nothing_else() -> None:
    assert run(*pair()) == (True, True)
    assert run(*pair(1, 2)) == (False, False)
    assert run(*pair(), (b"t", b"u")) == (False, False)


def test_two_runs_have_nothing_in_common() -> None:
    chance = random.Random(5)
    code = make_code(chance.randbytes)
    first, second = Pake(code, True, chance.randbytes), Pake(code, True, chance.randbytes)
    assert first.message != second.message


@pytest.mark.parametrize(
    "point",
    [
        bytes(32),  # of order 4
        b"\x01" + bytes(31),  # the neutral element
        bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),  # of order 2
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),  # of order 8
        b"\x02" + bytes(31),  # not on the curve
    ],
)
def test_points_that_would_give_the_key_away_are_refused(point: bytes) -> None:
    inviter = pair()[1]
    with pytest.raises(BadMessage):
        inviter.finish(b"A" + point, b"t")


def test_our_own_message_reflected_is_refused() -> None:
    joiner, inviter = pair()
    with pytest.raises(BadMessage):
        inviter.finish(inviter.message, b"t")
    with pytest.raises(BadMessage):
        joiner.finish(b"B" + joiner.message[1:], b"t")


def test_the_channel_is_ordered_and_authentic() -> None:
    joiner, inviter = pair()
    a, b = joiner.finish(inviter.message, b"t"), inviter.finish(joiner.message, b"t")
    first, second = a.send.seal(Kind.REQUEST, b"one"), a.send.seal(Kind.REQUEST, b"two")

    assert first != a.send.seal(Kind.REQUEST, b"one")
    with pytest.raises(BadMessage):
        b.receive.open(Kind.REQUEST, second[4:])  # the first is missing
    joiner, inviter = pair()
    a, b = joiner.finish(inviter.message, b"t"), inviter.finish(joiner.message, b"t")
    sealed = a.send.seal(Kind.REQUEST, b"one")[4:]
    with pytest.raises(BadMessage):
        b.receive.open(Kind.DONE, sealed)  # under another header
    joiner, inviter = pair()
    a, b = joiner.finish(inviter.message, b"t"), inviter.finish(joiner.message, b"t")
    sealed = a.send.seal(Kind.REQUEST, b"one")[4:]
    with pytest.raises(BadMessage):
        a.receive.open(Kind.REQUEST, sealed)  # reflected
    assert b.receive.open(Kind.REQUEST, sealed) == b"one"
