"""The way of a batch through the stack: from a driver through the hooks to who registered for its ethertype, and from there to a driver.

    driver -> deliver -> IN hooks, low order first -> ethertype registry -> protocol module
    driver <- transmit <- OUT hooks, high order first <- output <- protocol module

This is the hot path: what a batch costs here, every message costs. It knows nothing of how modules come and go (`stack.core.modules`); each
call of one runs under its guard (`stack.core.isolation`), and what it raises is counted and ends no batch of others.
"""

from __future__ import annotations

import struct

from stack.core.driver import in_batches
from stack.core.fitting import for_station, taken
from stack.core.hooks import HookEntry, Hooks
from stack.core.ifnet import Interface
from stack.core.isolation import RAISED, Guards
from stack.core.registry import Ethertypes, Handlers, IpProtocols
from stack.core.runs import carries_runs, cut_runs, has_runs
from stack.core.statistics import Drop
from stack.core.tags import sort_out
from stack.frame import Frame
from stack.wire.ethernet import HEADER_SIZE, TPIDS, unpack_type


class Datapath:
    """Hooks, registries of handlers, and the batches between them."""

    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self._ethertypes = Ethertypes()
        self._ip_protocols = IpProtocols()
        self._hooks = Hooks()
        self._runs = False
        """A hook carries runs of segments: batches may hold some."""
        self._plain = False
        """The batch that is being received holds none, and so does what comes of it within the call."""

    def _put_hook(self, entry: HookEntry) -> None:
        self._hooks.add(entry)
        self._runs = any(one.runs for one in self._hooks.incoming)

    def _take_hook(self, entry: HookEntry) -> None:
        self._hooks.remove(entry)
        self._runs = any(one.runs for one in self._hooks.incoming)

    def received(self, interface: Interface, frames: list[Frame]) -> None:
        """For interfaces: a batch from a driver goes up. Never raises what a module raised."""
        interface.rx_frames += len(frames)
        interface.rx_bytes += len(frames[0]) if len(frames) == 1 else sum(map(len, frames))
        entries = self._hooks.coming_in(interface.name)
        if not self._runs:
            self._passed(interface, frames, entries)
            return
        outer, self._plain = self._plain, not has_runs(frames)
        try:
            if self._plain:
                self._passed(interface, frames, entries)
            else:
                self._runs_received(interface, frames, entries, True)
        finally:
            self._plain = outer

    def _passed(self, interface: Interface, frames: list[Frame], entries: tuple[HookEntry, ...]) -> None:
        """A batch from a driver, without runs, meets the hooks in *entries*."""
        for entry in entries:
            frames = self._hooked(entry, interface, frames)
        self._arrived(interface, frames, True)

    def _arrived(self, interface: Interface, frames: list[Frame], from_link: bool) -> None:
        """A batch is past all hooks."""
        if from_link and frames and interface.promiscuous:
            frames = for_station(frames, interface.mac, interface.drops.count)
        if frames:
            self._up(interface, frames)

    def _runs_received(self, interface: Interface, frames: list[Frame], entries: tuple[HookEntry, ...], from_link: bool) -> None:
        """A batch with runs of segments meets the hooks in *entries*: whole as long as they carry runs. What comes of it may be several
        batches."""
        for place, entry in enumerate(entries):
            if not entry.runs:
                entries = entries[place:]
                break
            frames = self._hooked(entry, interface, frames)
        else:
            entries = ()
        for batch in in_batches(cut_runs(frames)):
            for entry in entries:
                batch = self._hooked(entry, interface, batch)
            self._arrived(interface, batch, from_link)

    def entered(self, interface: Interface, frames: list[Frame], above: int) -> None:
        """A batch that a hook took from another interface goes on as if it had come in here: through the IN hooks behind *above*, and up.

        It is not counted as received. For hooks (bridge, aggregate), within whose call the frames are valid.
        """
        if self._runs and not self._plain and has_runs(frames):
            above_it = tuple(entry for entry in self._hooks.coming_in(interface.name) if entry.order > above)
            self._runs_received(interface, frames, above_it, False)
            return
        for entry in self._hooks.coming_in(interface.name):
            if entry.order > above:
                frames = self._hooked(entry, interface, frames)
        self._arrived(interface, frames, False)

    def _up(self, interface: Interface, frames: list[Frame]) -> None:
        """A batch goes to the ethertypes' handlers."""
        if len(frames) == 1:
            # A message or its answer. The means for batches cost 3 µs.
            frame = frames[0]
            ethertype = frame[12] << 8 | frame[13] if len(frame) >= HEADER_SIZE else 0
            if ethertype and ethertype not in TPIDS:
                self._handle(interface, ethertype, frames)
            else:
                self._sort_out(interface, frames)
            return
        try:
            kinds = list(map(unpack_type, frames))
        except struct.error:
            self._sort_out(interface, frames)
            return
        first = kinds[0]
        if first[0] not in TPIDS and kinds.count(first) == len(kinds):
            self._handle(interface, first[0], frames)
        else:
            self._sort_out(interface, frames)

    def _sort_out(self, interface: Interface, frames: list[Frame]) -> None:
        """A batch that is not all of one untagged ethertype."""
        found = sort_out(frames)
        for reason, number in found.bad.items():
            interface.drops.count(reason, number)
        for kind, batch in found.own.items():
            self._handle(interface, kind, batch)
        for kind, batch in found.foreign.items():
            if kind not in self._ethertypes.any_vlan or not self._give(self._ethertypes, kind, interface, batch):
                interface.drops.count(Drop.NO_VLAN, len(batch))

    def _handle(self, interface: Interface, ethertype: int, frames: list[Frame]) -> None:
        if not self._give(self._ethertypes, ethertype, interface, frames):
            interface.drops.count(Drop.NO_PROTOCOL, len(frames))

    def received_ip(self, interface: Interface, protocol: int, packets: list[Frame]) -> bool:
        """For the module for IP: give packets to who registered for their *protocol*. Whether there is somebody."""
        return self._give(self._ip_protocols, protocol, interface, packets)

    def _give(self, table: Handlers, number: int, interface: Interface, frames: list[Frame]) -> bool:
        handler = table.handlers.get(number)
        if handler is None:
            return False
        table.handled[number] += len(frames)
        guard = table.guards[number]
        try:
            self._guards.run(guard, "handler", handler, interface, frames)
        except RAISED:
            interface.drops.count(Drop.HANDLER_FAILED, len(frames))
            what = f"{number:#06x}" if table is self._ethertypes else f"IP protocol {number}"
            self._guards.failure(f"handler of {what}", handler, guard)
        return True

    def output(self, interface: Interface, frames: list[Frame], below: int | None = None) -> None:
        """Send whole frames, in order, through the OUT hooks; those of hooks through the ones under *below*, their own order.

        Borrowed until this returns. What cannot be sent is dropped and counted.
        """
        runs = self._runs and not self._plain and has_runs(frames)
        for entry in self._hooks.going_out(interface.name):
            if below is None or entry.order < below:
                if runs and not entry.runs:
                    frames, runs = cut_runs(frames), False
                frames = self._hooked(entry, interface, frames)
        driver = interface.driver
        if runs and not carries_runs(driver):
            frames, runs = cut_runs(frames), False
        if not frames:
            return
        if not interface.up:
            interface.drops.count(Drop.LINK_DOWN, len(frames))
            return
        before = interface.driver_drops
        try:
            transmit = driver.transmit_runs if runs and carries_runs(driver) else driver.transmit
            self._guards.send(interface.guard, transmit, frames)
        except RAISED:
            interface.drops.count(Drop.DRIVER_FAILED, len(frames))
            self._guards.failure(f"driver of {interface.name}", driver.transmit, interface.guard)
            return
        if interface.driver_drops != before:
            frames = taken(frames, interface.driver_mtu, interface.driver_drops - before)
        interface.tx_frames += len(frames)
        interface.tx_bytes += len(frames[0]) if len(frames) == 1 else sum(map(len, frames))

    def _hooked(self, entry: HookEntry, interface: Interface, frames: list[Frame]) -> list[Frame]:
        try:
            left: object = self._guards.run(entry.guard, entry.name, entry.hook, interface, frames)
            if not isinstance(left, list):
                raise TypeError(f"a hook returns a list of frames, not {type(left).__name__}")
        except RAISED:
            interface.drops.count(Drop.HOOK_FAILED, len(frames))
            self._guards.failure(f"hook {entry.name}", entry.hook, entry.guard)
            return []
        if len(left) < len(frames) and not entry.counts:
            interface.drops.count(Drop.HOOK_DROPPED, len(frames) - len(left))
        return left
