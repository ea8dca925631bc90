"""Requests that only one kind of driver or protocol understands: NetBSD's and QNX's SIOCSDRVSPEC and SIOCGDRVSPEC. A bridge takes members
so, an aggregate ports, an address filter rules.

A module that takes them has `set_specific` and `get_specific`, and is then a `SpecificModule`; a driver besides a `Specific`, and is asked
by its interface's name. Requests come from people, by the manager's local socket: names and values are what JSON can say, and every one is
checked. What they set, `stack.core.module.Keeping` holds over a restart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeGuard, TypeVar

from stack.capability import capability
from stack.core.driver import Driver
from stack.core.told import number

T = TypeVar("T")
R = TypeVar("R")
Row = Mapping[str, object]
DEPTH_MAX = 16
"""Tables in tables that a module may tell; deeper ones, and those that hold themselves, are none."""


class Ask(Protocol):
    """How something of a module is called for what it tells: under its guard."""

    def __call__(self, call: Callable[[], T], /) -> T | None:
        """What *call* returns; None when it raised, which is counted then."""
        ...


def _directly(call: Callable[[], T]) -> T | None:
    return call()


class Rows:
    """A long table in the facts, of which a row is made when it is looked at: who answers a request makes a few at a time. *items* are as
    they were when the table was made; *row* gives None for one that is not there any more. *names*: of each item the interface that its
    row is about, where they are about interfaces."""

    __slots__ = ("_ask", "_makers", "_names", "_size")

    def __init__(self, items: Sequence[T], row: Callable[[T], Row | None], names: Sequence[str] = ()) -> None:
        self._size = len(items)
        self._names = names
        self._makers: Callable[[], Iterator[Callable[[], Row | None]]] = lambda: (partial(row, item) for item in items)
        self._ask: Ask = _directly

    def under(self, ask: Ask) -> Rows:
        """The same, whose rows are made by *ask*; one that cannot be made is left out."""
        found = Rows((), _none, self._names)
        found._size, found._makers, found._ask = self._size, self._makers, ask
        return found

    def turned(self, turn: Callable[[Row], R]) -> Iterator[R]:
        """What *turn* makes of each row. It is called where the row is made, so a row that it cannot take is the module's failure."""
        return (found for make in self._makers() if (found := self._ask(partial(_turned, make, turn))) is not None)

    def named(self, name: str) -> list[Row]:
        """The rows about the interface of that name."""
        makers = (make for make, about in zip(self._makers(), self._names, strict=False) if about == name)
        return [row for make in makers if (row := self._ask(partial(_turned, make, _plain_row))) is not None]

    @property
    def of_module(self) -> bool:
        """A module makes the rows."""
        return self._ask is not _directly

    @property
    def of_interfaces(self) -> bool:
        return bool(self._names)

    def __iter__(self) -> Iterator[Row]:
        return self.turned(_as_it_is)

    def __len__(self) -> int:
        """Of the items."""
        return self._size

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, Rows | Sequence) else other)

    __hash__ = None  # type: ignore[assignment]  # as a list has none


def _none(item: object) -> None:
    return None


def _as_it_is(row: Row) -> Row:
    return row


def _turned(make: Callable[[], Row | None], turn: Callable[[Row], R]) -> R | None:
    row = make()
    return None if row is None else turn(row)


class Named(Mapping[str, Row]):
    """A table by name in the facts, of which likewise a row is made when it is looked at, once."""

    __slots__ = ("_ask", "_made", "_names", "_row")

    def __init__(self, names: Iterable[str], row: Callable[[str], Row]) -> None:
        self._names = dict.fromkeys(names)
        self._row = row
        self._made: dict[str, Row] = {}
        self._ask: Ask = _directly

    def under(self, ask: Ask) -> Named:
        """The same, whose rows are made by *ask*; one that cannot be made is empty."""
        found = Named(self._names, self._row)
        found._ask = ask
        return found

    def __getitem__(self, name: str) -> Row:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._ask(lambda: _plain_row(self._row(name))) or {}
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def sayable(value: object, ask: Ask = _directly, depth: int = DEPTH_MAX) -> object:
    """*value*, which a module told, as JSON can say it; tables that are made row by row stay so, and are made by *ask*. TypeError or
    ValueError for what cannot be said: keys that are no text, a number of more than 128 bits, a table that holds itself."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return number(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth == 0:
        raise ValueError(f"tables in tables, more than {DEPTH_MAX} of them")
    if isinstance(value, Rows | Named):
        return value.under(ask)
    if isinstance(value, dict | Mapping):
        return {_key(key): sayable(one, ask, depth - 1) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [sayable(one, ask, depth - 1) for one in value]
    return str(value)


def sayable_table(value: object, ask: Ask = _directly) -> dict[str, object]:
    """The same of what must be a table."""
    if not isinstance(value, Mapping):
        raise TypeError(f"it tells {type(value).__name__}, not a table")
    return {_key(key): sayable(one, ask) for key, one in value.items()}


def _key(key: object) -> str:
    if isinstance(key, str | int):
        return str(key)
    raise TypeError(f"a key is {type(key).__name__}, not text")


def _plain_row(row: Row) -> Row:
    return {key: plain(one) for key, one in sayable_table(row).items()}


def plain(value: object) -> object:
    """*value*, whose tables are made row by row, with all rows: for those who want it in one piece."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, Rows | list):
        return [plain(one) for one in value]
    return value


class SpecificModule(Protocol):
    """A module with requests of its own."""

    def set_specific(self, command: str, arguments: Mapping[str, object]) -> None:
        """Change something. ModuleError in one sentence when that cannot be; then nothing is changed."""
        ...

    def get_specific(self) -> Mapping[str, object]:
        """All facts that only this kind of module has, as JSON can say it. Tables whose rows take long, or are many, are `Rows` or
        `Named`: an answer is made a few rows at a time."""
        ...


class Specific(SpecificModule, Driver, Protocol):
    """A driver with requests of its own."""


def specific_module(attached: object) -> SpecificModule | None:
    """*attached*, or the driver that is wrapped in it, if it takes such requests."""
    return capability(attached, _is_module)


def specific_driver(driver: Driver) -> Specific | None:
    """*driver*, or the one that is wrapped in it, if it takes such requests."""
    return capability(driver, _is)


def _is_module(attached: object) -> TypeGuard[SpecificModule]:
    return hasattr(attached, "set_specific") and hasattr(attached, "get_specific")


def _is(driver: object) -> TypeGuard[Specific]:
    return _is_module(driver)
