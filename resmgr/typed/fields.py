"""The wire form of attrs classes: each field in the order of the class, big-endian, nothing between them.

    U8 U16 U32 U64 I8 I16 I32 I64   1 to 8 bytes; a plain `int` is I64
    float                           8 bytes, IEEE 754
    bool                            1 byte, 0 or 1
    bytes, str (UTF-8)              length 4, then the bytes
    list[T], tuple[T, ...]          number of items 4, then the items
    T | None                        1 byte, 0 or 1; after 1 the value
    an enum                         its value, as I32 or as str
    an attrs class                  its fields

`Annotated[T, Max(n)]` bounds bytes and items; without it SIZE_MAX and ITEMS_MAX do. Whatever does not parse raises BadMessage and nothing
else; values that do not fit raise ValueError when they are packed. Classes may not contain themselves, and what a list holds has bytes: a
class without fields is refused there.
"""

from __future__ import annotations

import enum
import struct
import types
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import attrs

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, Misuse

SIZE_MAX = 1 << 20
"""Bytes of one bytes or str."""
ITEMS_MAX = 1 << 16
"""Items of one list. A stranger's count is not believed further than there are bytes or this."""


@attrs.frozen
class Max:
    """At most so many bytes (bytes, str as UTF-8) or items (list, tuple)."""

    size: int


@attrs.frozen
class Number:
    """A number as `struct` packs it."""

    code: str


U8 = Annotated[int, Number("B")]
U16 = Annotated[int, Number("H")]
U32 = Annotated[int, Number("I")]
U64 = Annotated[int, Number("Q")]
I8 = Annotated[int, Number("b")]
I16 = Annotated[int, Number("h")]
I32 = Annotated[int, Number("i")]
I64 = Annotated[int, Number("q")]
NAMES = {"B": "U8", "H": "U16", "I": "U32", "Q": "U64", "b": "I8", "h": "I16", "i": "I32", "q": "I64", "d": "float"}

Pack = Callable[[Any, bytearray], None]  # a field's value, whose type only its annotation knows
Unpack = Callable[[memoryview, int], tuple[Any, int]]  # as above


class Codec(NamedTuple):
    """How one type is packed, unpacked and named for people, and the fewest bytes that one of it has. *layout* names it down to the fields
    of the classes in it: two programs that mean the same have the same one."""

    pack: Pack
    unpack: Unpack
    name: str
    least: int
    layout: str


LENGTH = struct.Struct("!I")


def pack_class(value: object) -> bytes:
    """The fields of an attrs instance."""
    out = bytearray()
    codec_of(type(value)).pack(value, out)
    return bytes(out)


def unpack_class(kind: type[Any], view: Buffer) -> Any:  # an instance of *kind*
    """An instance of *kind* from exactly these bytes."""
    value, end = codec_of(kind).unpack(memoryview(view), 0)
    if end != len(view):
        raise BadMessage(f"{kind.__name__}: {len(view) - end} bytes too many")
    return value


def codec_of(kind: Any, limit: int | None = None) -> Codec:  # an annotation
    """The codec of a type. Misuse for one that has no wire form."""
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *notes = get_args(kind)
        for note in notes:
            if isinstance(note, Number):
                return _number(note.code)
            if isinstance(note, Max):
                limit = note.size
        return codec_of(inner, limit)
    if origin in (list, tuple):
        items = get_args(kind)
        if origin is tuple and (len(items) != 2 or items[1] is not Ellipsis):
            raise Misuse(f"{kind}: a tuple of one type and any length is tuple[T, ...]")
        return _sequence(origin, codec_of(items[0]), ITEMS_MAX if limit is None else limit)
    if origin in (Union, types.UnionType):
        inner = [item for item in get_args(kind) if item is not type(None)]
        if len(inner) != 1 or len(get_args(kind)) != 2:
            raise Misuse(f"{kind}: of unions there is only T | None")
        return _optional(codec_of(inner[0], limit))
    if kind is bool:
        return Codec(_pack_bool, _unpack_bool, "bool", 1, "bool")
    if kind is int:
        return _number("q")
    if kind is float:
        return _number("d")
    if kind is bytes or kind is str:
        return _bytes(kind is str, SIZE_MAX if limit is None else limit)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enum(kind)
    if isinstance(kind, type) and attrs.has(kind):
        return _class(kind)
    raise Misuse(f"{kind!r} has no wire form; see resmgr.typed.fields")


def _number(code: str) -> Codec:
    form = struct.Struct(f"!{code}")
    name = NAMES[code]

    def pack(value: Any, out: bytearray) -> None:  # see Pack
        try:
            out += form.pack(value)
        except struct.error:
            raise ValueError(f"{value!r} is no {name}") from None

    def unpack(view: memoryview, at: int) -> tuple[Any, int]:  # see Unpack
        if at + form.size > len(view):
            raise BadMessage("a number is cut short")
        return form.unpack_from(view, at)[0], at + form.size

    return Codec(pack, unpack, name, form.size, name)


def _pack_bool(value: Any, out: bytearray) -> None:  # see Pack
    out.append(1 if value else 0)


def _unpack_bool(view: memoryview, at: int) -> tuple[Any, int]:  # see Unpack
    if at >= len(view) or view[at] > 1:
        raise BadMessage("a bool is neither 0 nor 1")
    return view[at] == 1, at + 1


def _count(view: memoryview, at: int, limit: int) -> tuple[int, int]:
    if at + 4 > len(view):
        raise BadMessage("a length is cut short")
    (count,) = LENGTH.unpack_from(view, at)
    if count > limit:
        raise BadMessage("more than there may be")
    return count, at + 4


def _bytes(text: bool, limit: int) -> Codec:
    def pack(value: Any, out: bytearray) -> None:  # see Pack
        data = value.encode() if text else value
        if len(data) > limit:
            raise ValueError(f"{len(data)} bytes, at most {limit}")
        out += LENGTH.pack(len(data))
        out += data

    def unpack(view: memoryview, at: int) -> tuple[Any, int]:  # see Unpack
        count, at = _count(view, at, limit)
        end = at + count
        if end > len(view):
            raise BadMessage("bytes are cut short")
        data = bytes(view[at:end])
        if not text:
            return data, end
        try:
            return data.decode(), end
        except UnicodeDecodeError:
            raise BadMessage("a str is not UTF-8") from None

    name = f"{'str' if text else 'bytes'}, at most {limit}"
    return Codec(pack, unpack, name, LENGTH.size, name)


def _sequence(kind: Callable[[list[Any]], Any], item: Codec, limit: int) -> Codec:  # list or tuple of what `item` packs
    if not item.least:
        raise Misuse(f"a list of {item.name}, which has no bytes: anybody could claim any number of them")

    def pack(value: Any, out: bytearray) -> None:  # see Pack
        if len(value) > limit:
            raise ValueError(f"{len(value)} items, at most {limit}")
        out += LENGTH.pack(len(value))
        for one in value:
            item.pack(one, out)

    def unpack(view: memoryview, at: int) -> tuple[Any, int]:  # see Unpack
        count, at = _count(view, at, limit)
        if count * item.least > len(view) - at:
            raise BadMessage("items are cut short")
        items = []
        for _ in range(count):
            one, at = item.unpack(view, at)
            items.append(one)
        return kind(items), at

    return Codec(pack, unpack, f"at most {limit} of ({item.name})", LENGTH.size, f"at most {limit} of ({item.layout})")


def _optional(inner: Codec) -> Codec:
    def pack(value: Any, out: bytearray) -> None:  # see Pack
        out.append(0 if value is None else 1)
        if value is not None:
            inner.pack(value, out)

    def unpack(view: memoryview, at: int) -> tuple[Any, int]:  # see Unpack
        present, at = _unpack_bool(view, at)
        return inner.unpack(view, at) if present else (None, at)

    return Codec(pack, unpack, f"optional ({inner.name})", 1, f"optional ({inner.layout})")


def _enum(kind: type[enum.Enum]) -> Codec:
    values = [member.value for member in kind]
    more = 0
    if all(isinstance(value, int) for value in values):
        inner = _number("i")
    elif all(isinstance(value, str) for value in values):
        sizes = [len(value.encode()) for value in values]
        inner, more = _bytes(True, max(sizes)), min(sizes)
    else:
        raise Misuse(f"{kind.__name__}: the values of an enum are all int or all str")

    def pack(value: Any, out: bytearray) -> None:  # see Pack
        inner.pack(kind(value).value, out)

    def unpack(view: memoryview, at: int) -> tuple[Any, int]:  # see Unpack
        value, at = inner.unpack(view, at)
        try:
            return kind(value), at
        except ValueError:
            raise BadMessage(f"no {kind.__name__}") from None

    name = f"{kind.__name__}: {', '.join(f'{member.name} {member.value}' for member in kind)}"
    return Codec(pack, unpack, name, inner.least + more, name)


def fields_of(kind: type[Any]) -> list[tuple[str, Codec]]:
    """Names and codecs of the fields of an attrs class."""
    hints = get_type_hints(kind, include_extras=True)
    return [(field.name, codec_of(hints[field.name])) for field in attrs.fields(kind)]


def _class(kind: type[Any]) -> Codec:
    try:
        fields = fields_of(kind)
    except RecursionError:
        raise Misuse(f"{kind.__name__} contains itself") from None

    def pack(value: Any, out: bytearray) -> None:  # see Pack
        if type(value) is not kind:
            raise ValueError(f"{type(value).__name__} is no {kind.__name__}")
        for name, codec in fields:
            try:
                codec.pack(getattr(value, name), out)
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{kind.__name__}.{name}: {error}") from None

    def unpack(view: memoryview, at: int) -> tuple[Any, int]:  # see Unpack
        values = {}
        for name, codec in fields:
            values[name.lstrip("_")], at = codec.unpack(view, at)
        try:
            return kind(**values), at
        except (ValueError, TypeError):  # a validator of the class
            raise BadMessage(f"no {kind.__name__}") from None

    layout = ", ".join(f"{name}: ({codec.layout})" for name, codec in fields)
    return Codec(pack, unpack, kind.__name__, sum(codec.least for _, codec in fields), layout)
