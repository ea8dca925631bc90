"""A settings file is a frozen attrs tree: read from TOML, checked strictly, and explained by its own fields.

Used for the node's configuration (`qnetpy.config`) and for cluster topologies (`qnetpy.cluster.topology`). An unknown key is an error that
names the nearest known one; a value of the wrong type is an error that says where it stands. The commented example and the reference page
are printed from the same tree, so they cannot drift from the code.

Supported field types: bool, int, float, str, `tuple[X, ...]`, `dict[str, X]`, `Literal[...]` and other settings classes. TOML's own types
decide: "5" is not a number, and 1 is not a truth value.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args, get_type_hints
from typing import get_origin as typing_origin

import attrs
import cattrs
from cattrs.errors import ForbiddenExtraKeysError

T = TypeVar("T")
Value = object
"""What TOML gives: str, int, float, bool, list, dict."""


class SettingsError(Exception):
    """One line: file, place in it, what is wrong, what would be right."""


def setting(doc: str, default: T) -> T:
    """A field with its explanation. *default* is immutable, or an attrs factory."""
    return attrs.field(default=default, metadata={"doc": doc})


def required(doc: str, kind: type[T]) -> T:
    """A field without a default: the file must give it. *kind* is the field's type, for the type checker only."""
    field: T = attrs.field(metadata={"doc": doc})
    return field


def get_origin(kind: object) -> object:
    return typing_origin(kind)


class _WrongType(Exception):
    """A value is not of the field's type; the text says what it should be."""


def _strict(kind: type, name: str) -> Callable[[Value, object], Value]:
    def check(value: Value, _: object) -> Value:
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise _WrongType(f"{name} expected, not {json.dumps(value, default=str)}")
        return value

    return check


def _literal(value: Value, kind: object) -> Value:
    choices = get_args(kind)
    if value not in choices:
        near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1)
        raise _WrongType(
            f"one of {', '.join(map(str, choices))} expected, not {value!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return value


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind, name in ((bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "a string")):
        converter.register_structure_hook(kind, _strict(kind, name))
    converter.register_structure_hook_func(lambda kind: get_origin(kind) is Literal, _literal)

    def table_first(kind: type[T]) -> Callable[[Value, object], T]:
        from cattrs.gen import make_dict_structure_fn

        inner = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True)

        def structure(value: Value, _: object) -> T:
            if not isinstance(value, dict):
                raise _WrongType(f"a table expected, not {json.dumps(value, default=str)}")
            return inner(value, kind)

        return structure

    converter.register_structure_hook_factory(attrs.has, table_first)

    def list_first(kind: object) -> Callable[[Value, object], tuple[Value, ...]]:
        item = get_args(kind)[0]

        def structure(value: Value, _: object) -> tuple[Value, ...]:
            if not isinstance(value, list | tuple):
                raise _WrongType(f"a list expected, not {json.dumps(value, default=str)}")
            return tuple(_at(index, converter, entry, item) for index, entry in enumerate(value))

        return structure

    converter.register_structure_hook_factory(lambda kind: get_origin(kind) is tuple, list_first)

    def mapping(kind: object) -> Callable[[Value, object], dict[str, Value]]:
        item = get_args(kind)[1]

        def structure(value: Value, _: object) -> dict[str, Value]:
            if not isinstance(value, dict):
                raise _WrongType(f"a table expected, not {json.dumps(value, default=str)}")
            return {name: _at(name, converter, entry, item) for name, entry in value.items()}

        return structure

    converter.register_structure_hook_factory(lambda kind: get_origin(kind) is dict, mapping)
    return converter


class _Inside(Exception):
    """An error one level down, with the key or index under which it stands."""

    def __init__(self, place: str | int) -> None:
        super().__init__(place)
        self.place = place


def _at(place: str | int, converter: cattrs.Converter, value: Value, kind: type) -> Value:
    try:
        return converter.structure(value, kind)
    except Exception as error:
        raise _Inside(place) from error


def _reasons(error: BaseException, place: str) -> Iterator[str]:
    """Every error of a failed structure call as `place: reason`, outermost first."""
    if isinstance(error, _Inside):
        name = f"[{error.place}]" if isinstance(error.place, int) else f".{error.place}" if place else str(error.place)
        if error.__cause__ is not None:
            yield from _reasons(error.__cause__, place + name)
    elif isinstance(error, ForbiddenExtraKeysError):
        names = [attribute.name for attribute in attrs.fields(error.cl)]
        for key in sorted(error.extra_fields):
            near = difflib.get_close_matches(key, names, 1)
            known = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names)}"
            yield f"{place + '.' if place else ''}{key}: unknown key; {known}"
    elif isinstance(error, cattrs.ClassValidationError):
        with_notes, without = error.group_exceptions()
        for inner, note in with_notes:
            yield from _reasons(inner, f"{place}.{note.name}" if place else note.name)
        for inner in without:
            yield from _reasons(inner, place)
    elif isinstance(error, KeyError):
        yield f"{place}: missing"
    else:
        yield f"{place}: {error}" if place else str(error)


def structure(kind: type[T], table: Mapping[str, Value], source: str = "settings") -> T:
    """Check *table* against *kind* and return the tree. SettingsError names the first wrong place (and how many more there are)."""
    try:
        return _converter().structure(table, kind)
    except Exception as error:
        reasons = list(_reasons(error, ""))
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise SettingsError(f"{source}: {reasons[0]}{more}") from error


def _plainly(error: str) -> str:
    """What the parser says of something that is written down twice, in other words than its own."""
    twice = re.match(r"Cannot (?:mutate immutable namespace|declare) \((.*?)\)(?: twice)? (\(at .*\))", error)
    if twice is not None:
        name = ".".join(re.findall("'([^']*)'", twice[1]))
        return f"{name} is given twice {twice[2]}"
    return error.replace("Cannot overwrite a value", "a name is given twice")


def load(kind: type[T], path: str | Path) -> T:
    """Read a TOML file. SettingsError for what is wrong in it, OSError if it cannot be read."""
    data = Path(path).read_bytes()
    try:
        table = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not TOML: {_plainly(str(error))}") from error
    return structure(kind, table, str(path))


def as_toml(value: Value) -> str:
    """One TOML value on one line. Settings classes become inline tables of what differs from their defaults."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_toml(entry) for entry in value) + "]"
    own = type(value)
    if attrs.has(own):
        value = {field.name: getattr(value, field.name) for field in attrs.fields(own)}
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)} = {as_toml(entry)}" for name, entry in value.items()) + "}"
    raise TypeError(f"{value!r} has no TOML form")


def _key(name: str) -> str:
    return name if name and all(letter.isalnum() or letter in "-_" for letter in name) and name.isascii() else json.dumps(name)


def dump(tree: attrs.AttrsInstance) -> str:
    """The whole tree as TOML, one table per nested class; `structure` of it gives the tree back."""
    return "\n".join(_tables(tree, (), None)).strip() + "\n"


def example(kind: type[attrs.AttrsInstance], width: int = 110) -> str:
    """A commented file in which every setting stands with its explanation and default value, commented out."""
    return "\n".join(_tables(kind(), (), width)).strip() + "\n"


def _tables(tree: attrs.AttrsInstance, path: tuple[str, ...], width: int | None) -> Iterator[str]:
    from textwrap import wrap

    own = type(tree)
    nested = []
    if path:
        yield ""
        if width is not None:
            yield from (f"# {line}" for line in wrap(" ".join((own.__doc__ or "").split()), width))
        yield f"[{'.'.join(_key(name) for name in path)}]"
    for field in attrs.fields(own):
        value = getattr(tree, field.name)
        if attrs.has(type(value)):
            nested.append((field.name, value))
            continue
        if width is None:
            yield f"{field.name} = {as_toml(value)}"
            continue
        yield ""
        yield from (f"# {line}" for line in wrap(field.metadata["doc"], width))
        yield f"#{field.name} = {as_toml(value)}"
    for name, value in nested:
        yield from _tables(value, (*path, name), width)


def _made(default: object) -> bool:
    return type(default).__name__ == "Factory"


def reference(kind: type[attrs.AttrsInstance], leave_out: Sequence[type] = ()) -> str:
    """The settings as Markdown tables, for docs/reference, without what is below the classes of *leave_out*."""
    return "\n".join(_reference(kind, (), leave_out)).strip() + "\n"


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").split("\n")[0]


def _reference(kind: type[attrs.AttrsInstance], path: tuple[str, ...], leave_out: Sequence[type]) -> Iterator[str]:
    hints = get_type_hints(kind)
    yield from ("", f"## [{'.'.join(path)}]", "") if path else ()
    yield from (" ".join((kind.__doc__ or "").split()), "")
    rows = []
    inner: list[tuple[tuple[str, ...], type[attrs.AttrsInstance]]] = []
    for field in attrs.fields(kind):
        found = hints[field.name]
        origin, arguments = get_origin(found), get_args(found)
        if found in leave_out:
            rows.append(f"| `{field.name}` | | A table: {_first_line(found)} |")
            continue
        if attrs.has(found):
            inner.append(((*path, field.name), found))
            continue
        if origin is tuple and attrs.has(arguments[0]):
            inner.append(((*path, f"{field.name}[]"), arguments[0]))
        elif origin is dict and attrs.has(arguments[1]):
            inner.append(((*path, field.name, "NAME"), arguments[1]))
        default = "required" if field.default is attrs.NOTHING else "none" if _made(field.default) else as_toml(field.default)
        rows.append(f"| `{field.name}` | `{default}` | {field.metadata['doc']} |")
    if rows:
        yield from ("| key | default | meaning |", "|---|---|---|", *rows)
    for where, found in inner:
        yield from _reference(found, where, leave_out)
