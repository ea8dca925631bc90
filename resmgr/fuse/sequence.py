"""In which order a program goes through the names of a directory: as they were listed, by name, or by inode number (cp -r, and whoever uses
fts in a large directory)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from heapq import nsmallest
from itertools import dropwhile, islice
from typing import Final

NAMES_MAX: Final = 4096
"""Names of one directory that are remembered. Of a larger one, `PART` in each order from one name on."""
PART: Final = 1024


class Order(IntEnum):
    """Of names."""

    LISTED = 0
    NAME = 1
    INODE = 2


class Sequence:
    """Names in each order, those from `start` on if it is not `whole`; *known* are the inode numbers of all, as they were listed."""

    __slots__ = ("_known", "_orders", "start", "whole")

    def __init__(self, known: Mapping[bytes, int], start: bytes | None) -> None:
        self.start = start
        self.whole = len(known) <= NAMES_MAX
        self._known = known if self.whole else _part(known, start)
        self._orders: dict[Order, tuple[list[bytes], dict[bytes, int]]] = {}

    def __contains__(self, name: bytes) -> bool:
        return name in self._known

    def names(self, order: Order) -> list[bytes]:
        return self._ordered(order)[0]

    def at(self, name: bytes, order: Order) -> int:
        """The position of a name that is there."""
        return self._ordered(order)[1][name]

    def _ordered(self, order: Order) -> tuple[list[bytes], dict[bytes, int]]:
        found = self._orders.get(order)
        if found is None:
            known = self._known
            names = sorted(known) if order is Order.NAME else sorted(known, key=known.__getitem__) if order is Order.INODE else list(known)
            found = self._orders[order] = names, {name: position for position, name in enumerate(names)}
        return found


def _part(known: Mapping[bytes, int], start: bytes | None) -> dict[bytes, int]:
    """The first `PART` names from *start* on in each order: what is taken for another order lies behind those, or before *start*."""
    if start is None:
        names: list[bytes] = list(known)
        numbers = names
        listed = islice(names, PART)
    else:
        ino = known.get(start, 0)
        names = [name for name in known if name >= start]
        numbers = [name for name in known if known[name] >= ino]
        listed = islice(dropwhile(start.__ne__, known), PART)
    picked = {*listed, *nsmallest(PART, names), *nsmallest(PART, numbers, key=known.__getitem__)}
    return {name: ino for name, ino in known.items() if name in picked}
