"""Ethernet groups: which group addresses a network card has to let through, beside broadcast.

A card filters frames to groups by address. A driver that can tell its card has `join`, and is then a `Joining`; any other delivers them
all.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard

from stack.core.driver import Driver


class Joining(Driver, Protocol):
    """A driver whose card filters groups."""

    def join(self, groups: frozenset[bytes]) -> None:
        """From now on let frames to these groups through, and to no others that only an earlier call named. Never raises for what the
        world does."""
        ...


def can_join(driver: Driver) -> TypeGuard[Joining]:
    return hasattr(driver, "join")
