"""Ethernet hooks: modules that see every batch before the ethertype registry (IN) or before the driver (OUT).

A hook that says `runs` may get runs of segments among the frames (`stack.core.runs`) and sees them as it sees frames.

Order is a number, low first on the way in and high first on the way out, so that one module sits at one height. A hook gets
`(interface, frames)` and returns the frames that go on: the same list, or a new one. Frames are valid until the hook returns; a hook that
replaces a frame gives bytes of its own. What it takes out is counted as `hook_dropped` unless it counts itself (`counts=True`).

A hook is on all interfaces, or on those that it names (`interfaces=`): then it costs the others nothing, neither a call
nor their fast path.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from stack.frame import Frame

if TYPE_CHECKING:
    from stack.core.ifnet import Interface
    from stack.core.isolation import Guard

Hook = Callable[["Interface", list[Frame]], list[Frame]]


class Point(enum.Enum):
    IN = "in"
    OUT = "out"


ORDER_TAP: Final = 100
"""Taps see what the driver saw."""
ORDER_AGGREGATE: Final = 150
"""Ports of an aggregate: what arrives there arrives at the aggregate."""
ORDER_FILTER: Final = 200
ORDER_BRIDGE: Final = 300
ORDER_VLAN: Final = 400
"""Tags are looked at behind the bridge: it forwards tagged frames as they are."""


@attrs.define(eq=False)
class HookEntry:
    """One hook in the list. `everything`: it wants frames of all ethertypes, so drivers may not filter."""

    point: Point
    order: int
    hook: Hook
    name: str
    everything: bool
    counts: bool
    guard: Guard | None = None
    """Of the module that put it there."""
    runs: bool = False
    """It carries runs of segments in one piece; they are cut before others."""
    interfaces: frozenset[str] | None = None
    """Names of the interfaces that it is on, whether they are there or not; None: on all."""

    def sees(self, interface: str) -> bool:
        return self.interfaces is None or interface in self.interfaces


class Hooks:
    """The hooks of one stack, sorted: of all interfaces in `incoming` and `outgoing`, of one by `coming_in` and `going_out`. These are
    replaced, never changed: a batch under way keeps its own."""

    def __init__(self) -> None:
        self._entries: list[HookEntry] = []
        self._in: dict[str, tuple[HookEntry, ...]] = {}
        self._out: dict[str, tuple[HookEntry, ...]] = {}
        """By interface, as they are asked for."""
        self.incoming: tuple[HookEntry, ...] = ()
        self.outgoing: tuple[HookEntry, ...] = ()

    def add(self, entry: HookEntry) -> None:
        self._entries.append(entry)
        self._sort()

    def remove(self, entry: HookEntry) -> None:
        self._entries.remove(entry)
        self._sort()

    def coming_in(self, interface: str) -> tuple[HookEntry, ...]:
        """Low order first."""
        found = self._in.get(interface)
        if found is None:
            found = self._in[interface] = tuple(entry for entry in self.incoming if entry.sees(interface))
        return found

    def going_out(self, interface: str) -> tuple[HookEntry, ...]:
        """High order first."""
        found = self._out.get(interface)
        if found is None:
            found = self._out[interface] = tuple(entry for entry in self.outgoing if entry.sees(interface))
        return found

    def want_everything(self, interface: str) -> bool:
        return any(entry.everything for entry in self.coming_in(interface))

    def forget(self, interface: str) -> None:
        """It is gone."""
        self._in.pop(interface, None)
        self._out.pop(interface, None)

    def want_runs(self, interface: str) -> bool:
        return any(entry.runs for entry in self.coming_in(interface))

    def _sort(self) -> None:
        by_order = sorted(self._entries, key=lambda entry: entry.order)
        self.incoming = tuple(entry for entry in by_order if entry.point is Point.IN)
        self.outgoing = tuple(entry for entry in reversed(by_order) if entry.point is Point.OUT)
        self._in, self._out = {}, {}
