"""What a driver can do besides `Driver`: a capability is a Protocol of its own, and whoever has its methods has it. This is the one way to
look for one.

A wrapper passes on what it knows; for the rest the driver inside is asked, along `inner`, through any number of wrappers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard, TypeVar

T = TypeVar("T")


def capability(driver: object, has: Callable[[object], TypeGuard[T]]) -> T | None:
    """*driver*, or the one that is wrapped in it, the outermost for which *has* is true."""
    found: object = driver
    while found is not None:
        if has(found):
            return found
        found = getattr(found, "inner", None)
    return None
