"""The wire form of classes: both ways, cut at every length, changed at random, values that do not fit."""

from __future__ import annotations

import enum
import random
from typing import Annotated, Any

import attrs
import pytest

from resmgr.errors import BadMessage, Misuse
from resmgr.typed.fields import I8, U8, U16, U32, U64, Max, codec_of, pack_class, unpack_class


class Color(enum.Enum):
    RED = 1
    BLUE = -7


class Word(enum.StrEnum):
    YES = "yes"
    NO = "no"


@attrs.frozen
class Inner:
    small: U8
    name: str | None


@attrs.frozen
class Outer:
    a: U16
    b: U32
    c: U64
    d: I8
    e: int
    f: float
    g: bool
    h: Annotated[bytes, Max(8)]
    i: str
    j: list[Inner]
    k: tuple[U16, ...]
    m: Color
    n: Word
    o: Annotated[list[Annotated[str, Max(3)]], Max(2)]
    p: Inner | None


WHOLE = Outer(
    1, 2, 1 << 63, -4, -5, 0.5, True, b"bytes", "süß", [Inner(1, None), Inner(2, "x")], (7, 8), Color.BLUE, Word.NO, ["abc"], Inner(9, "")
)
BYTES = bytes.fromhex(
    "0001 00000002 8000000000000000 fc fffffffffffffffb 3fe0000000000000 01 00000005 6279746573 00000005 73c3bcc39f"
    "00000002 01 00 02 01 00000001 78 00000002 0007 0008 fffffff9 00000002 6e6f 00000001 00000003 616263 01 09 01 00000000"
)


def test_both_ways() -> None:
    assert pack_class(WHOLE) == BYTES
    assert unpack_class(Outer, BYTES) == WHOLE


def test_cut_at_every_length_and_too_long() -> None:
    for length in range(len(BYTES)):
        with pytest.raises(BadMessage):
            unpack_class(Outer, BYTES[:length])
    with pytest.raises(BadMessage):
        unpack_class(Outer, BYTES + b"\0")


def test_changed_bytes_parse_or_are_bad() -> None:
    generator = random.Random(3)
    good = 0
    for _ in range(5000):
        changed = bytearray(BYTES)
        for _ in range(generator.randint(1, 4)):
            changed[generator.randrange(len(changed))] = generator.choice((0, 1, 0xFF, generator.randrange(256)))
        try:
            value = unpack_class(Outer, bytes(changed[: generator.randint(0, len(changed))] if generator.random() < 0.3 else changed))
        except BadMessage:
            continue
        good += 1
        assert unpack_class(Outer, pack_class(value)).a == value.a
    assert 100 < good < 4900


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"a": 1 << 16}, "Outer.a: 65536 is no U16"),
        ({"d": -129}, "Outer.d: -129 is no I8"),
        ({"h": bytes(9)}, "Outer.h: 9 bytes, at most 8"),
        ({"o": ["a", "b", "c"]}, "Outer.o: 3 items, at most 2"),
        ({"o": ["long"]}, "Outer.o: 4 bytes, at most 3"),
        ({"m": 3}, "Outer.m: 3 is not a valid Color"),
        ({"p": 5}, "Outer.p: int is no Inner"),
        ({"j": [Inner(300, None)]}, "Outer.j: Inner.small: 300 is no U8"),
        ({"i": 5}, "Outer.i: 'int' object has no attribute 'encode'"),
    ],
)
def test_values_that_do_not_fit_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}$"):
        pack_class(attrs.evolve(WHOLE, **change))


@attrs.frozen
class Odd:
    field: dict[str, int]


@attrs.frozen
class Two:
    field: int | str


@attrs.frozen
class Endless:
    field: Endless | None


@attrs.frozen
class Empty:
    pass


@attrs.frozen
class Hollow:
    one: Empty
    other: Empty


@pytest.mark.parametrize("kind", [Odd, Two, Endless, tuple[int, str], list[Empty], list[list[Empty]], tuple[Hollow, ...]])
def test_what_has_no_wire_form(kind: Any) -> None:
    with pytest.raises(Misuse):
        codec_of(kind)


def test_a_count_is_not_believed_further_than_there_are_bytes() -> None:
    with pytest.raises(BadMessage):
        codec_of(list[U8]).unpack(memoryview(b"\0\0\xff\xff\x01"), 0)
    with pytest.raises(BadMessage):
        codec_of(list[U8]).unpack(memoryview(b"\xff\xff\xff\xff\x01"), 0)
    few = codec_of(Annotated[list[U8], Max(2)])
    assert few.unpack(memoryview(b"\0\0\0\2\1\2"), 0) == ([1, 2], 6)
    with pytest.raises(BadMessage, match="more than there may be"):
        few.unpack(memoryview(b"\0\0\0\3\1\2\3"), 0)


def test_the_fewest_bytes_of_a_class_are_those_of_its_smallest_value() -> None:
    smallest = pack_class(attrs.evolve(WHOLE, h=b"", i="", j=[], k=(), n=Word.NO, o=[], p=None))
    assert codec_of(Outer).least == len(smallest)
