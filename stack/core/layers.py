"""Interfaces that stand on others: a VLAN on its parent, an aggregate on its ports, a bridge on its members.

    bridge0 ── vlan5 ── en0          stands_on(bridge0) = vlan5, en1        all_below(bridge0) = vlan5, en1, en0
            └─ en1

Such a driver has `below`, and is then a `Layered`. Names count, whether there is such an interface just now or not: one that comes back is
taken up again. Nothing may stand on itself, by whatever way: a frame would go round in it for ever.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Protocol, TypeGuard

from stack.core.driver import Driver
from stack.core.errors import ModuleError

Below = Callable[[str], tuple[str, ...]]
"""What the interface of a name stands on; nothing when there is none."""


class Layered(Driver, Protocol):
    """A driver whose link is made of other interfaces of its stack."""

    @property
    def below(self) -> tuple[str, ...]:
        """Their names."""
        ...


def _is(driver: object) -> TypeGuard[Layered]:
    return hasattr(driver, "below")


def stands_on(driver: Driver) -> tuple[str, ...]:
    """Names of what *driver*, or the one that is wrapped in it, stands on. Of an interface see `Interface.below`."""
    found: object = driver
    while found is not None and not _is(found):
        found = getattr(found, "inner", None)
    return () if found is None else tuple(map(str, found.below))


def all_below(name: str, below: Below) -> frozenset[str]:
    """All interfaces that *name* stands on, by however many steps."""
    found: set[str] = set()
    ahead = list(below(name))
    while ahead:
        one = ahead.pop()
        if one not in found:
            found.add(one)
            ahead += below(one)
    return frozenset(found)


def refuse_circle(upper: str, lower: str, below: Below) -> None:
    """ModuleError (ELOOP) when *upper* cannot stand on *lower*, which is itself or stands on it."""
    if upper == lower or upper in all_below(lower, below):
        raise ModuleError(errno.ELOOP, f"{lower} stands on {upper}: frames between the two would go round for ever")


def refuse_relatives(lower: str, others: Iterable[str], below: Below) -> None:
    """ModuleError (ELOOP) when *lower* stands on one of *others* or one of them on it: to join them would make a loop."""
    for other in others:
        if other in all_below(lower, below) or lower in all_below(other, below):
            raise ModuleError(errno.ELOOP, f"{lower} and {other} are one link: joined, they would be a loop")
