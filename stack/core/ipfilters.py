"""Filters of IP packets: pfil's heads for IPv4 and IPv6. Who carries IP packets may show them here, as a bridge with `ipf` does
(`stack.l2.ipf`; `stack.inet.ip` does not); a filter says which may pass.

    filter(interface, point, packets) -> one bool for each packet: it passes

IN: they came in on *interface*; OUT: they are to leave there. Packets have headers that parse; what does not is dropped before, by who
carries it, and counted. Filters are asked in the order in which they came, each about what the ones before it let pass. A filter that fails
drops what it was asked about.

Nothing is reassembled: a fragment comes as it is, and says so (`header.fragment`); only the first has the ports, so a filter by ports must
decide what it does with the others. A run of segments (`stack.wire.run`) is one packet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from stack.core.hooks import Point
from stack.core.ifnet import Interface
from stack.core.isolation import RAISED, Guard, Guards
from stack.core.listeners import Listeners
from stack.frame import Frame
from stack.wire.ip import IpHeader


@attrs.frozen(eq=False)
class Packet:
    """*frame* is valid until the filter returns; the packet begins at *network* in it, and `header` counts from there."""

    frame: Frame
    network: int
    header: IpHeader


IpFilter = Callable[[Interface, Point, list[Packet]], list[bool]]


@attrs.frozen(eq=False)
class Entry:
    name: str
    wanted: IpFilter
    guard: Guard | None
    """Of the module that put it there."""


class IpFilters:
    """Of one stack. `entries` is replaced, never changed. `watchers` are told when a filter has come or gone."""

    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self.entries: tuple[Entry, ...] = ()
        self.watchers: Listeners[()] = Listeners(guards, "watcher of IP filters")

    def add(self, wanted: IpFilter, name: str) -> Callable[[], None]:
        """From now on, until what is returned is called."""
        entry = Entry(name, wanted, self._guards.current)
        self._set((*self.entries, entry))
        return lambda: self._set(tuple(one for one in self.entries if one is not entry))

    def _set(self, entries: tuple[Entry, ...]) -> None:
        self.entries = entries
        self.watchers.tell()

    def passing(self, interface: Interface, point: Point, packets: Mapping[int, Packet]) -> Mapping[int, Packet]:
        """Those of *packets* that all filters let pass."""
        for entry in self.entries:
            if packets:
                verdicts = self._ask(entry, interface, point, list(packets.values()))
                packets = {place: packet for (place, packet), passes in zip(packets.items(), verdicts, strict=False) if passes}
        return packets

    def _ask(self, entry: Entry, interface: Interface, point: Point, packets: list[Packet]) -> list[bool]:
        def ask(interface: Interface, frames: list[Frame]) -> object:
            return entry.wanted(interface, point, packets)

        try:
            verdicts = self._guards.run(entry.guard, entry.name, ask, interface, [])
            if not isinstance(verdicts, list) or len(verdicts) != len(packets):
                raise TypeError(f"an IP filter returns a list with a verdict on each of {len(packets)} packets, not {verdicts!r:.40}")
            return verdicts
        except RAISED:
            self._guards.failure(f"IP filter {entry.name}", entry.wanted, entry.guard)
            return []
