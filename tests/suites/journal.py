"""What was held when, as far as that is known, and whether something that was seen is allowed by it (docs/protocol/coherence.md).

A change took effect at some moment between two times: in virtual time they are one, of a program they are when it called and when it was
answered. What somebody sees is allowed if there is an order of moments in which it was held. What is allowed to be *bound* seconds old must
have been held at some moment from so long before it was asked for; but who made a change himself has to see it from then on.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import attrs

T = TypeVar("T")
Objects = set[int | None]
Allowed = Callable[["Look"], bool]
ALWAYS = -math.inf
NEVER = math.inf
STEP = 0.0005
"""Seconds to which ages are found."""


class Broken(AssertionError):
    """Something was seen that the page rules out."""


@attrs.define(eq=False)
class Change(Generic[T]):
    """*value* took effect between *began* and *ended* (`NEVER`: or not at all); *by* whom, if that matters. *source*: the value is what
    that name led to at that moment."""

    began: float
    ended: float
    number: int
    value: T
    by: object = None
    source: bytes | None = None


@attrs.frozen
class Look:
    """Somebody asked at *began* and was answered at *ended*; what he saw may be *bound* seconds old."""

    began: float
    ended: float
    bound: float = 0.0
    by: object = None


class Register(Generic[T]):
    """One thing that changes. Changes are noted in the order in which they began."""

    def __init__(self) -> None:
        self.changes: list[Change[T]] = []
        self._begins: list[float] = []
        self._longest = 0.0
        self._uncertain: list[Change[T]] = []

    def set(self, began: float, ended: float, value: T, by: object = None, source: bytes | None = None) -> Change[T]:
        change = Change(began, ended, len(self.changes), value, by, source)
        self.changes.append(change)
        self._begins.append(began)
        if ended == NEVER:
            self._uncertain.append(change)
        elif began != ALWAYS:
            self._longest = max(self._longest, ended - began)
        return change

    def possible(self, look: Look) -> list[Change[T]]:
        """Changes whose value may have been held when it has to have been."""
        last = self._last_known(look)
        found = [change for change in self._uncertain if change.began <= look.ended]
        for at in range(bisect.bisect_right(self._begins, look.ended) - 1, -1, -1):
            change = self.changes[at]
            if last is not None:
                if change.began + self._longest < last.began and change.began != ALWAYS:
                    break
                if (change.ended, change.number) < (last.began, last.number) and change is not last:
                    continue
            if change.ended != NEVER:
                found.append(change)
        return found

    def _last_known(self, look: Look) -> Change[T] | None:
        """Of those that have to be seen, the one that began last: it has replaced what had ended before."""
        for at in range(bisect.bisect_right(self._begins, look.began) - 1, -1, -1):
            change = self.changes[at]
            if change.ended + (0.0 if look.by is not None and change.by == look.by else look.bound) < look.began:
                return change
        return None


class Journal:
    """Names that lead to objects, and what these hold."""

    def __init__(self) -> None:
        self.names: dict[bytes, Register[int | None]] = {}
        self.data: dict[int, Register[bytes]] = {}

    def named(self, name: bytes, began: float, ended: float, to: int | None, by: object = None, source: bytes | None = None) -> None:
        """From then on *name* leads to an object, to none, or to where *source* led."""
        self.names.setdefault(name, Register()).set(began, ended, to, by, source)

    def held(self, ino: int, began: float, ended: float, data: bytes, by: object = None) -> None:
        """From then on an object holds *data*."""
        self.data.setdefault(ino, Register()).set(began, ended, data, by)

    def objects(self, name: bytes, look: Look) -> Objects:
        """Where *name* may have led; None: nowhere."""
        return self._objects(name, look, look.ended, set())

    def _objects(self, name: bytes, look: Look, end: float, seen: set[int]) -> Objects:
        """*end*: when all of it was over. *seen*: moves that were followed already, each of which is once enough: two to each other's names
        have no end."""
        found: Objects = set()
        for change in self.names[name].possible(look) if name in self.names else ():
            if change.source is None:
                found.add(change.value)
            elif id(change) not in seen:
                seen.add(id(change))
                moment = Look(change.began, end if change.ended == NEVER else change.ended)
                found |= self._objects(change.source, moment, end, seen) - {None}
        return found

    def contents(self, objects: Iterable[int | None], look: Look) -> list[bytes]:
        return [change.value for ino in objects if ino is not None and ino in self.data for change in self.data[ino].possible(look)]

    # ---- what may be seen

    def there(self, name: bytes, look: Look) -> set[bool]:
        """Whether the name may exist."""
        return {ino is not None for ino in self.objects(name, look)}

    def sizes(self, name: bytes, look: Look) -> set[int | None]:
        """What a stat may say of the size; None: that there is no such name. The name may have led there, and the object may be called
        otherwise by now."""
        objects = self.objects(name, look)
        found: set[int | None] = {len(data) for data in self.contents(objects, look)}
        return found | {None} if None in objects else found

    def texts(self, name: bytes, look: Look, *, believed: bool = False) -> list[bytes]:
        """What may be read by who opens it: as of the open, whatever else is believed for how long. *believed*: of the file to which the
        name led within the bound."""
        exact = attrs.evolve(look, bound=0.0)
        return self.contents(self.objects(name, look if believed else exact), exact)

    def absent(self, name: bytes, look: Look) -> bool:
        """Whether who opens it may hear that it does not exist, which is believed as names are."""
        return None in self.objects(name, look)


def age(allowed: Allowed, look: Look, most: float) -> float:
    """The smallest *bound*, within `STEP`, with which *allowed* holds; `NEVER` if that is more than *most*."""
    if allowed(attrs.evolve(look, bound=0.0)):
        return 0.0
    if not allowed(attrs.evolve(look, bound=most)):
        return NEVER
    low, high = 0.0, most
    while high - low > STEP:
        middle = (low + high) / 2
        if allowed(attrs.evolve(look, bound=middle)):
            high = middle
        else:
            low = middle
    return high
