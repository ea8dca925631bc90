"""Requests that only one kind of driver understands: NetBSD's and QNX's SIOCSDRVSPEC and SIOCGDRVSPEC. A bridge takes members so, an
aggregate ports.

A driver that takes them has `set_specific` and `get_specific`, and is then a `Specific`. Requests come from people, by the manager's
local socket: names and values are what JSON can say, and every one is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeGuard

from stack.core.driver import Driver


class Specific(Driver, Protocol):
    """A driver with requests of its own."""

    def set_specific(self, command: str, arguments: Mapping[str, object]) -> None:
        """Change something. ModuleError in one sentence when that cannot be; then nothing is changed."""
        ...

    def get_specific(self) -> Mapping[str, object]:
        """All facts that only this kind of driver has."""
        ...


def specific_driver(driver: Driver) -> Specific | None:
    """*driver*, or the one that is wrapped in it, if it takes such requests."""
    found: object = driver
    while found is not None and not _is(found):
        found = getattr(found, "inner", None)
    return found


def _is(driver: object) -> TypeGuard[Specific]:
    return hasattr(driver, "set_specific") and hasattr(driver, "get_specific")
