"""Requests that only one kind of driver or protocol understands: NetBSD's and QNX's SIOCSDRVSPEC and SIOCGDRVSPEC. A bridge takes members
so, an aggregate ports, an address filter rules.

A module that takes them has `set_specific` and `get_specific`, and is then a `SpecificModule`; a driver besides a `Specific`, and is asked
by its interface's name. Requests come from people, by the manager's local socket: names and values are what JSON can say, and every one is
checked. What they set, `stack.core.module.Keeping` holds over a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeGuard, TypeVar

from stack.capability import capability
from stack.core.driver import Driver

T = TypeVar("T")
Row = Mapping[str, object]


class Rows:
    """A long table in the facts, of which a row is made when it is looked at: who answers a request makes a few at a time. *items* are as
    they were when the table was made; *row* gives None for one that is not there any more."""

    __slots__ = ("_rows", "_size")

    def __init__(self, items: Sequence[T], row: Callable[[T], Row | None]) -> None:
        self._size = len(items)
        self._rows: Callable[[], Iterator[Row | None]] = lambda: (row(item) for item in items)

    def __iter__(self) -> Iterator[Row]:
        return (row for row in self._rows() if row is not None)

    def __len__(self) -> int:
        """Of the items."""
        return self._size

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, Rows | Sequence) else other)

    __hash__ = None  # type: ignore[assignment]  # as a list has none


class SpecificModule(Protocol):
    """A module with requests of its own."""

    def set_specific(self, command: str, arguments: Mapping[str, object]) -> None:
        """Change something. ModuleError in one sentence when that cannot be; then nothing is changed."""
        ...

    def get_specific(self) -> Mapping[str, object]:
        """All facts that only this kind of module has. Tables that may have more than a few hundred rows are `Rows`."""
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
