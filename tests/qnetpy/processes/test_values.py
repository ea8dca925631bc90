"""Plain values: what is encoded comes back, and nothing else is ever made of bytes from elsewhere."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnetpy.processes.values import DEPTH_MAX, BadValue, decode, encode

HASHABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4),
    max_leaves=8,
)
VALUES = st.recursive(
    HASHABLE | st.lists(st.integers()) | st.lists(st.floats(allow_nan=False)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HASHABLE, inner, max_size=4) | st.sets(HASHABLE, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_what_is_encoded_comes_back_with_its_types(value: object) -> None:
    again = decode(encode(value))
    assert (again, type(again)) == (value, type(value))
    assert repr(again) == repr(value) or isinstance(value, set | frozenset | dict | list | tuple)


@pytest.mark.parametrize("value", [[1, 2.0, True, "x", {"a": (1, b"b")}], {1, 2}, 1 << 200, -(1 << 63) - 1, [1.5, 2.5], [1, 2], -0.0j])
def test_bytes_cut_short_anywhere_are_refused(value: object) -> None:
    whole = encode(value)
    assert decode(whole) == value
    for length in range(len(whole)):
        with pytest.raises(BadValue):
            decode(whole[:length])
    with pytest.raises(BadValue):
        decode(whole + b"N")


def test_nan_and_halves_of_pairs_come_back() -> None:
    nan = decode(encode(math.nan))
    assert isinstance(nan, float)
    assert math.isnan(nan)
    assert decode(encode("\ud800")) == "\ud800"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    try:
        decode(data)
    except BadValue:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"l\xff\xff\xff\xff",
        b"A\xff\xff\xff\xff\0\0\0\0",
        b"s\xff\xff\xff\xffx",
        b"d\0\0\0\1NN"[:-1],
        b"S\0\0\0\1l\0\0\0\0",
        b"d\0\0\0\1l\0\0\0\0N",
        b"s\0\0\0\1\xff",
        b"?",
        b"",
        b"l\0\0\0\1" * (DEPTH_MAX + 2) + b"N",
        pickle.dumps([1]),
    ],
)
def test_hostile_bytes_are_refused_before_they_take_memory(data: bytes) -> None:
    with pytest.raises(BadValue):
        decode(data)


class Text(str):
    pass


@pytest.mark.parametrize("value", [object(), Fraction(1, 2), Text("x"), [lambda: 0], {"a": ValueError()}])
def test_what_is_not_plain_is_not_sent(value: object) -> None:
    with pytest.raises(BadValue, match="is not a plain value"):
        encode(value)


def test_too_deep_is_not_sent() -> None:
    value: object = None
    for _ in range(DEPTH_MAX + 1):
        value = [value]
    with pytest.raises(BadValue, match="within each other"):
        encode(value)
