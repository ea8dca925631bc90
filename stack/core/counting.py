"""Modules that count what no interface does: requests refused, work done. A module that has `module_counters` is a `Counting`, and its
counters are among the facts (`netstat -s`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TypeGuard

from stack.capability import capability
from stack.core.isolation import RAISED
from stack.core.told import bounded, counters

if TYPE_CHECKING:
    from stack.core.loaded import Loaded


class Counting(Protocol):
    def module_counters(self) -> Mapping[str, int]:
        """Name to number, since the module was loaded. A pure look."""
        ...


def counters_of(loaded: Loaded) -> dict[str, int]:
    """What *loaded* counts; empty for one that does not, and for one that raises, which is counted."""
    counting = capability(loaded.attached, _counts)
    if counting is None:
        return {}
    try:
        return loaded.guard.ask("module_counters", _asked, counting)
    except RAISED:
        return {}


def _asked(counting: Counting) -> dict[str, int]:
    return dict(bounded(counters(counting.module_counters())))


def _counts(attached: object) -> TypeGuard[Counting]:
    return hasattr(attached, "module_counters")
