"""Plain values as bytes: what comes back from a worker that is not trusted. Reading them runs no code and makes nothing but these types:
None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset. (bytearray and memoryview arrive as bytes.)

A value is a letter and what belongs to it, numbers big-endian:

| letter | then |
|---|---|
| N T F | None, True, False |
| i, f, c | 8 bytes: a number of 64 bits; a float; two floats |
| I s b | length u32, bytes: a larger number (two's complement), UTF-8 (surrogates passed), bytes |
| l t d S Z | count u32, values (d: keys and values in turn): list, tuple, dict, set, frozenset |
| J A | count u32, 8 bytes each: a list of small numbers only, of floats only |

This file imports nothing of ours: a worker gets its text, and may run where qnetpy is not installed.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import cast

DEPTH_MAX = 100
"""Values within values. Stops a few bytes from using up the stack."""
_COUNT = struct.Struct("!cI")
_SMALL = struct.Struct("!cq")
_FLOAT = struct.Struct("!cd")
_COMPLEX = struct.Struct("!cdd")
_MANY: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"S", frozenset: b"Z"}
_SMALLEST, _LARGEST = -(1 << 63), (1 << 63) - 1


class BadValue(ValueError):
    """Not a plain value, or bytes that are none."""


def encode(value: object) -> bytes:
    """BadValue says what cannot be sent. Subclasses are not: what makes them special would be lost."""
    parts: list[bytes] = []
    _encode(value, parts, 0)
    return b"".join(parts)


def _encode(value: object, parts: list[bytes], depth: int) -> None:
    kind = type(value)
    if depth > DEPTH_MAX:
        raise BadValue(f"more than {DEPTH_MAX} values within each other")
    if value is None or kind is bool:
        parts.append(b"N" if value is None else b"T" if value else b"F")
    elif isinstance(value, int) and kind is int:
        if _SMALLEST <= value <= _LARGEST:
            parts.append(_SMALL.pack(b"i", value))
        else:
            _counted(b"I", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True), parts)
    elif isinstance(value, float) and kind is float:
        parts.append(_FLOAT.pack(b"f", value))
    elif isinstance(value, complex) and kind is complex:
        parts.append(_COMPLEX.pack(b"c", value.real, value.imag))
    elif isinstance(value, str) and kind is str:
        _counted(b"s", value.encode(errors="surrogatepass"), parts)
    elif isinstance(value, bytes | bytearray | memoryview) and kind in (bytes, bytearray, memoryview):
        _counted(b"b", bytes(value), parts)
    elif isinstance(value, list | tuple | set | frozenset) and kind in _MANY:
        if isinstance(value, list) and value and _array(value, parts):
            return
        parts.append(_COUNT.pack(_MANY[kind], len(value)))
        for item in value:
            _encode(item, parts, depth + 1)
    elif isinstance(value, dict) and kind is dict:
        parts.append(_COUNT.pack(b"d", len(value)))
        for key, item in value.items():
            _encode(key, parts, depth + 1)
            _encode(item, parts, depth + 1)
    else:
        raise BadValue(f"{kind.__module__}.{kind.__qualname__} is not a plain value")


def _counted(letter: bytes, data: bytes, parts: list[bytes]) -> None:
    if len(data) > 0xFFFFFFFF:
        raise BadValue("more than 4 GiB in one value")
    parts += (_COUNT.pack(letter, len(data)), data)


def _array(value: list[object], parts: list[bytes]) -> bool:
    """A list of numbers of one kind, many times faster."""
    kinds = set(map(type, value))
    if kinds not in ({int}, {float}):
        return False
    try:
        data: array[int] | array[float] = array("q", cast("list[int]", value)) if kinds == {int} else array("d", cast("list[float]", value))
    except OverflowError:
        return False
    if sys.byteorder == "little":
        data.byteswap()
    parts += (_COUNT.pack(b"J" if kinds == {int} else b"A", len(data)), data.tobytes())
    return True


def decode(data: bytes | memoryview) -> object:
    """BadValue for whatever `encode` does not make. Holds no more memory than some times the size of *data*."""
    view = memoryview(data)
    try:
        value, end = _decode(view, 0, 0)
    except (struct.error, IndexError, TypeError, UnicodeDecodeError, OverflowError) as error:
        raise BadValue(str(error)) from None
    if end != len(view):
        raise BadValue("more behind the value")
    return value


def _decode(view: memoryview, at: int, depth: int) -> tuple[object, int]:
    if depth > DEPTH_MAX:
        raise BadValue(f"more than {DEPTH_MAX} values within each other")
    letter = bytes(view[at : at + 1])
    if letter in (b"N", b"T", b"F") and letter:
        return (None if letter == b"N" else letter == b"T"), at + 1
    if letter == b"i":
        return _SMALL.unpack_from(view, at)[1], at + _SMALL.size
    if letter == b"f":
        return _FLOAT.unpack_from(view, at)[1], at + _FLOAT.size
    if letter == b"c":
        _, real, imaginary = _COMPLEX.unpack_from(view, at)
        return complex(real, imaginary), at + _COMPLEX.size
    _, count = _COUNT.unpack_from(view, at)
    at += _COUNT.size
    if letter in (b"I", b"s", b"b", b"J", b"A") and letter:
        size = count * 8 if letter in (b"J", b"A") else count
        if size > len(view) - at:
            raise BadValue("cut short")
        return _flat(letter, view[at : at + size]), at + size
    if letter not in (b"l", b"t", b"S", b"Z", b"d"):
        raise BadValue("an unknown kind of value")
    count *= 2 if letter == b"d" else 1
    if count > len(view) - at:
        raise BadValue("cut short")
    items: list[object] = []
    for _ in range(count):
        item, at = _decode(view, at, depth + 1)
        items.append(item)
    if letter == b"d":
        return dict(zip(items[::2], items[1::2], strict=True)), at
    many = {b"l": list, b"t": tuple, b"S": set, b"Z": frozenset}[letter]
    return many(items), at


def _flat(letter: bytes, data: memoryview) -> object:
    if letter == b"I":
        return int.from_bytes(data, "big", signed=True)
    if letter == b"s":
        return str(data, "utf-8", "surrogatepass")
    if letter == b"b":
        return bytes(data)
    numbers: array[int] | array[float] = array("q" if letter == b"J" else "d")
    numbers.frombytes(data)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tolist()
