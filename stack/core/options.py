"""Options of modules: `key=value,flag,key="a,b"` into a value of the module's attrs class. The one parser for all of them.

Each field of the class is a key (`_` and `-` are the same); its annotation says what may stand there:

    str                     as it is                     int         12, 0x88b5
    bool                    a bare key is true; on, off, yes, no, true, false, 1, 0
    float                   1.5                          Percent     5% or 0.05 (a fraction of 1 is stored)
    Duration                20ms, 1.5s, 100us, 2m, 1h    Size        4096, 64k, 8M (binary, bytes)
    BitRate                 64k, 10M, 1G (decimal, bits per second)
    Literal["a", "b"]       one of these words           X | None    as X; None when the key is absent
    tuple[X, ...]           the key may be repeated

Besides, `restart=N` is taken out before a module sees its options: it is io-pkt's (`CommonOptions`).

Fields without a default must be given. Commas and quotes inside a value need double quotes around it. Everything wrong raises
`OptionError`, a sentence that names the module, the key, what was found and what would do; and so does a class that is none of options.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Literal, NewType, TypeVar

import attrs

from stack.core.errors import OptionError

O = TypeVar("O")  # noqa: E741  # the options class

Percent = NewType("Percent", float)
"""A fraction of 1."""
Duration = NewType("Duration", float)
"""Seconds."""
Size = NewType("Size", int)
"""Bytes."""
BitRate = NewType("BitRate", float)
"""Bits per second."""

TEXT_MAX = 4096
"""Longer option texts are refused: they come over the network too (mount requests)."""
COMMON = ("restart",)
RESTARTS_MAX = 1000


def parse_options(cls: type[O], text: str, module: str) -> O:
    """*text* as a value of attrs class *cls*; *module* is for the sentences."""
    kinds = _kinds(cls, module)
    found: dict[str, list[object]] = {}
    for key, value in _split(text, module):
        field = key.replace("-", "_")
        kind = kinds.get(field)
        if kind is None:
            raise OptionError(_unknown(key, kinds, module))
        if field in found and not kind.repeats:
            raise OptionError(f"{module}: option {key} is given twice")
        if value is None:
            if kind.convert is not _bool:
                raise OptionError(f"{module}: option {key} needs a value: {key}={kind.example}")
            value = "on"
        try:
            found.setdefault(field, []).append(kind.convert(value))
        except ValueError as error:
            raise OptionError(f"{module}: {key}={value if value.isprintable() else repr(value)}: {error}") from None
    missing = [field for field, kind in kinds.items() if kind.required and field not in found]
    if missing:
        raise OptionError(f"{module}: option {missing[0]} is missing: {missing[0]}={kinds[missing[0]].example}")
    values = {field: tuple(items) if kinds[field].repeats else items[0] for field, items in found.items()}
    make: Callable[..., O] = cls
    try:
        return make(**values)
    except ValueError as error:
        # Validators of attrs add the field and its value to the sentence, as further arguments.
        said = str(error.args[0] if error.args else "the options make no sense together")
        raise OptionError(f"{module}: {said.splitlines()[0]}") from None


@attrs.frozen
class CommonOptions:
    """What io-pkt itself understands behind any module's name; the module does not see it."""

    restart: int = 0
    """Restarts after an exception, at most so many in a row (`stack.core.restart`); 0: the module goes on as it is."""


def take_common(text: str, module: str) -> tuple[CommonOptions, str]:
    """What *text* says for io-pkt, and the rest, which is for the module. `OptionError`."""
    common = [item.span() for item in _items(text, module) if item["key"] in COMMON]
    if not common:
        return CommonOptions(), text
    own = ",".join(text[begin:end].rstrip(",") for begin, end in common)
    rest = [text[item.start() : item.end()].rstrip(",") for item in _items(text, module) if item["key"] not in COMMON]
    found = parse_options(CommonOptions, own, module)
    if not 0 <= found.restart <= RESTARTS_MAX:
        raise OptionError(f"{module}: restart={found.restart}: expected a number from 0 to {RESTARTS_MAX}")
    return found, ",".join(rest)


def describe_options(cls: type[object], module: str) -> list[tuple[str, str]]:
    """(`key=example`, default as text) for each option, in order: for usage texts. *module*, and errors, as of `parse_options`."""
    described = []
    kinds = _kinds(cls, module)
    for field in _fields(cls):
        kind = kinds[_key(field)]
        default = "required" if kind.required else "" if field.default in (None, False, ()) else str(field.default)
        described.append((_key(field) if kind.convert is _bool else f"{_key(field)}={kind.example}", default))
    return described


@attrs.frozen
class _Kind:
    convert: Callable[[str], object]
    example: str
    repeats: bool
    required: bool


def _fields(cls: type[object]) -> list[attrs.Attribute[object]]:
    """Those that are options. *cls* is an attrs class."""
    return [field for field in attrs.fields(typing.cast("type[attrs.AttrsInstance]", cls)) if field.init]


def _key(field: attrs.Attribute[object]) -> str:
    """What the class is made with: `_x` is `x`."""
    return field.alias or field.name


def _kinds(cls: type[object], module: str) -> dict[str, _Kind]:
    """By key, which is what the class is made with. OptionError when *cls* is no class of options."""
    name, whose = getattr(cls, "__name__", repr(cls)), f"{module} has wrong options of its own"
    if not attrs.has(cls):
        raise OptionError(f"{whose}: {name} is not an attrs class")
    try:
        hints = typing.get_type_hints(cls)
    except Exception as error:  # whatever evaluating its annotations raises
        raise OptionError(f"{whose}: the types of {name} cannot be read: {type(error).__name__}: {error}") from error
    kinds = {}
    for field in _fields(cls):
        try:
            kinds[_key(field)] = _kind(hints.get(field.name, "without a type, it"), field.default is attrs.NOTHING)
        except TypeError as error:
            raise OptionError(f"{whose}: {name}.{field.name}: {error}") from None
    return kinds


def _kind(hint: object, required: bool) -> _Kind:
    """TypeError for what cannot be an option."""
    repeats = False
    if typing.get_origin(hint) is tuple:
        arguments = typing.get_args(hint)
        if len(arguments) != 2 or arguments[1] is not Ellipsis:
            raise TypeError("of tuples only tuple[X, ...] can be an option")
        repeats, hint = True, arguments[0]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        rest = [one for one in typing.get_args(hint) if one is not type(None)]
        if len(rest) == 1:
            hint = rest[0]
    if typing.get_origin(hint) is Literal:
        words = tuple(str(word) for word in typing.get_args(hint))
        return _Kind(partial(_word, words), "|".join(words), repeats, required)
    for known, convert, example in _CONVERTERS:
        if hint is known:
            return _Kind(convert, example, repeats, required)
    raise TypeError(f"{getattr(hint, '__name__', hint)} cannot be an option")


def _split(text: str, module: str) -> Iterator[tuple[str, str | None]]:
    """Keys with their values, None for a bare key."""
    for item in _items(text, module):
        quoted = item["quoted"]
        yield item["key"], item["plain"] if quoted is None else quoted


def _items(text: str, module: str) -> Iterator[re.Match[str]]:
    if len(text) > TEXT_MAX:
        raise OptionError(f"{module}: more than {TEXT_MAX} characters of options")
    place = 0
    while place < len(text):
        item = _ITEM.match(text, place)
        if item is None:
            raise OptionError(
                f"{module}: cannot read options from {text[place : place + 20]!r} on: expected key=value or flag, then a comma"
            )
        yield item
        place = item.end()
        if place == len(text) and text.endswith(","):
            raise OptionError(f"{module}: nothing follows the last comma of the options")


_ITEM = re.compile(r'(?P<key>[A-Za-z][A-Za-z0-9_-]*)(?:=(?:"(?P<quoted>[^"]*)"|(?P<plain>[^,"]*)))?(?:,|$)')


def _unknown(key: str, kinds: Mapping[str, _Kind], module: str) -> str:
    if not kinds:
        return f"{module}: there is no option {key}: {module} takes none"
    near = difflib.get_close_matches(key.replace("-", "_"), kinds, n=1, cutoff=0.5)
    if near:
        return f"{module}: there is no option {key}; did you mean {near[0]}?"
    return f"{module}: there is no option {key}; there are {', '.join(kinds)}"


def _str(text: str) -> str:
    return text


def _int(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError("expected a whole number, like 12 or 0x88b5") from None


def _float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("expected a number, like 1.5") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("expected a finite number")
    return value


def _bool(text: str) -> bool:
    if text in ("on", "yes", "true", "1"):
        return True
    if text in ("off", "no", "false", "0"):
        return False
    raise ValueError("expected on or off")


def _percent(text: str) -> float:
    value = _float(text[:-1]) / 100 if text.endswith("%") else _float(text)
    if not 0 <= value <= 1:
        raise ValueError("expected a share between 0 and 1, or with a percent sign, like 5%")
    return value


def _scaled(units: Mapping[str, float], example: str, text: str) -> float:
    match = _QUANTITY.fullmatch(text)
    if match is None or match["unit"] not in units:
        raise ValueError(f"expected a quantity, like {example}")
    return float(match["number"]) * units[match["unit"]]


_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>[A-Za-z]*)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_BINARY = {"": 1.0, "k": 1024.0, "K": 1024.0, "M": 1024.0**2, "G": 1024.0**3}
_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


def _duration(text: str) -> float:
    return 0.0 if text == "0" else _scaled(_SECONDS, "20ms, 1.5s or 2m (the unit is needed)", text)


def _size(text: str) -> int:
    return int(_scaled(_BINARY, "4096, 64k or 8M", text))


def _rate(text: str) -> float:
    return _scaled(_DECIMAL, "64k, 10M or 1G (bits per second)", text)


def _word(words: tuple[str, ...], text: str) -> str:
    if text not in words:
        raise ValueError(f"expected one of {', '.join(words)}")
    return text


_CONVERTERS: tuple[tuple[object, Callable[[str], object], str], ...] = (
    (str, _str, "TEXT"),
    (int, _int, "N"),
    (float, _float, "X"),
    (bool, _bool, "on"),
    (Percent, _percent, "5%"),
    (Duration, _duration, "20ms"),
    (Size, _size, "64k"),
    (BitRate, _rate, "10M"),
)
