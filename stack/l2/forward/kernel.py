"""Carrier `kernel`: an XDP program on each port, and the maps that they share. docs/stack/forwarding.md.

The mode of a port, native or generic, follows its driver and what the other ports accept; it changes by taking the program off and putting
it on again, between which frames go up. A port that cannot run native for another reason (its driver, its MTU) runs generic.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import itemgetter

import attrs

from resmgr.dispatch import Dispatch
from resmgr.errors import BadMessage
from stack.core.ifnet import Interface
from stack.core.linuxinterface import LinuxInterface
from stack.ebpf.constants import MapType, XdpMode
from stack.ebpf.map import Map
from stack.ebpf.program import Program, XdpLink
from stack.ebpf.syscall import refusal
from stack.l2.engine import FLOWS_MAX, PORTS_MAX, STATIONS_MAX
from stack.l2.forward.carrier import Counts, FlowCounts, FlowKey, Reason
from stack.l2.forward.features import DeviceFeatures
from stack.l2.forward.parts import CARRIED, FLOW, FLOW_KEY, KEY, PORT, REASONS, STATION, Maps
from stack.l2.forward.preference import is_buffered
from stack.l2.forward.program import forwarding
from stack.linux.namespace import inside
from stack.linux.rtnetlink import tx_dropped
from stack.wire.ethernet import HEADER_SIZE, TAG_SIZE
from stack.wire.netdev import XdpFeature

log = logging.getLogger(__name__)

_INDEX = struct.Struct("=I")
PAIRS_MANY = 128
"""Where to fetch the whole table of PORTS_MAX * PORTS_MAX takes less than to look them up one by one."""


@attrs.define(eq=False)
class _Port:
    number: int
    linux: LinuxInterface
    program: Program
    features: DeviceFeatures
    link: XdpLink | None = None
    on: bool = False
    mtu: int = 0
    native: bool = True
    """Native mode is good for its driver, which has not refused it."""
    trouble: str = ""
    flows: dict[FlowKey, bytes] = attrs.Factory(dict)
    """Keys of the map."""
    own: bytes = bytes(6)
    """The address for which routed packets come."""
    received: tuple[int, int] = (0, 0)
    """Frames and bytes carried from it to ports that are detached."""
    sent: tuple[int, int] = (0, 0)
    """And from such ones to it."""
    dropped_before: int = 0
    """What Linux had dropped there when it was attached."""
    dropped: int = 0
    """And since then, as far as it told."""

    def not_sent(self) -> int:
        """Programs do not hear what becomes of a frame that they redirect."""
        with contextlib.suppress(OSError, BadMessage), inside(self.linux.namespace):
            self.dropped = max(self.dropped, tx_dropped(self.linux.index) - self.dropped_before)
        return self.dropped


class KernelCarrier:
    """See the head of this file and `stack.l2.forward.carrier.Carrier`. OSError when this kernel or our rights do not allow it."""

    name = "kernel"
    costs_while_off = False

    def __init__(self, dispatch: Dispatch, mode: XdpMode | None = None) -> None:
        """*mode*: one that is wanted for all ports where it can be; None: the best for each."""
        self._dispatch = dispatch
        self._mode = mode
        self._ports: dict[int, _Port] = {}
        with contextlib.ExitStack() as stack:
            try:
                make = stack.enter_context
                self._stations = make(Map(MapType.HASH, KEY.size, STATION.size, STATIONS_MAX, "stations"))
                self._outputs = make(Map(MapType.DEVMAP, 4, 4, PORTS_MAX, "outputs"))
                self._settings = make(Map(MapType.ARRAY, 4, PORT.size, PORTS_MAX, "ports"))
                self._carried = make(Map(MapType.PERCPU_ARRAY, 4, CARRIED.size, PORTS_MAX * PORTS_MAX, "carried"))
                self._reasons = make(Map(MapType.PERCPU_ARRAY, 4, REASONS.size, PORTS_MAX, "reasons"))
                self._flows = make(Map(MapType.HASH, FLOW_KEY.size, FLOW.size, FLOWS_MAX, "flows"))
                maps = (self._stations, self._outputs, self._settings, self._carried, self._reasons, self._flows)
                self._maps = Maps(*(one.fd for one in maps))
                # So that a right that is missing is known now, not with the first port.
                Program(forwarding(0, self._maps), "forward").close()
            except OSError as error:
                raise OSError(error.errno, refusal(error, "load programs for forwarding")) from error
            self._closing = stack.pop_all()

    def attach(self, port: int, interface: Interface, linux: LinuxInterface) -> None:
        with contextlib.ExitStack() as undo, inside(linux.namespace):
            features = DeviceFeatures(self._dispatch, linux.index, self._changed)
            undo.callback(features.close)
            program = undo.enter_context(Program(forwarding(port, self._maps), f"fwd_{linux.name}"))
            namespace = os.dup(linux.namespace)
            undo.callback(os.close, namespace)
            made = _Port(port, attrs.evolve(linux, namespace=namespace), program, features, mtu=interface.mtu)
            # Where frames are buffers generic mode is faster, and keeps what lies beside them.
            with contextlib.suppress(OSError, BadMessage):
                made.dropped_before = tx_dropped(linux.index)
            made.native = self._mode is XdpMode.NATIVE or not is_buffered(linux)
            self._clear(port)
            self._outputs.update(_INDEX.pack(port), _INDEX.pack(linux.index))
            undo.callback(self._outputs.delete, _INDEX.pack(port))
            self._ports[port] = made
            undo.callback(self._ports.pop, port)
            self._write(made)
            self._link(made)
            undo.pop_all()
        self._changed()

    def detach(self, port: int) -> None:
        gone = self._ports.pop(port, None)
        if gone is None:
            return
        if gone.link is not None:
            gone.link.close()
        gone.features.close()
        gone.program.close()
        self._outputs.delete(_INDEX.pack(port))
        self._settings.update(_INDEX.pack(port), bytes(PORT.size))
        self._keep_counts(port)
        os.close(gone.linux.namespace)
        self._changed()

    def allow(self, port: int, on: bool) -> None:
        one = self._ports[port]
        one.on = on
        self._write(one)

    def put(self, station: bytes, port: int) -> None:
        self._stations.update(KEY.pack(station), STATION.pack(port, 0, 0))

    def drop(self, station: bytes) -> None:
        self._stations.delete(KEY.pack(station))

    def put_flow(self, port: int, key: FlowKey, output: int, macs: bytes, own: bytes) -> None:
        one = self._ports[port]
        packed = FLOW_KEY.pack(port, 4 if len(key[0]) == 4 else 6, *key)
        self._flows.update(packed, FLOW.pack(output, 0, 0, macs[:6], macs[6:], 0, 0))
        one.flows[key] = packed
        one.own = own
        self._write(one)

    def drop_flow(self, port: int, key: FlowKey) -> None:
        one = self._ports[port]
        packed = one.flows.pop(key, None)
        if packed is not None:
            self._flows.delete(packed)
            self._write(one)

    def flow_counts(self, port: int, key: FlowKey) -> FlowCounts:
        value = self._flows.lookup(self._ports[port].flows[key])
        if value is None:
            return FlowCounts(0.0, 0, 0)
        _, _, used, _, _, frames, octets = FLOW.unpack(value)
        return FlowCounts(used * 1e-9, frames, octets)

    def idle(self, station: bytes) -> float | None:
        value = self._stations.lookup(KEY.pack(station))
        used = 0 if value is None else STATION.unpack(value)[2]
        return max(0.0, time.monotonic() - used * 1e-9) if used else None

    def counts(self, ports: Collection[int]) -> Mapping[int, Counts]:
        attached = self._ports.keys() & ports
        if 2 * len(attached) * len(self._ports) >= PAIRS_MANY:
            came, went = self._all_carried()
        else:
            came = {one: _total(self._carried_between([(one, other) for other in self._ports]).values()) for one in attached}
            went = {one: _total(self._carried_between([(other, one) for other in self._ports]).values()) for one in attached}
        found = {}
        for number in attached:
            one = self._ports[number]
            found[number] = Counts(*_sum(one.received, came[number]), *_sum(one.sent, went[number]), self._reasons_of(number))
        return found

    def frames(self) -> int:
        came, _ = self._all_carried()
        return sum(one.received[0] + came[number][0] for number, one in self._ports.items())

    def how(self, port: int) -> str:
        one = self._ports.get(port)
        if one is None:
            return ""
        if one.link is None:
            return one.trouble
        return "xdp native" if one.link.mode is XdpMode.NATIVE else "xdp generic"

    def close(self) -> None:
        """Idempotent."""
        for port in list(self._ports):
            self.detach(port)
        self._closing.close()

    def _keep_counts(self, gone: int) -> None:
        """The pairs of a port that is detached are counted no more: the others keep theirs."""
        pairs = [pair for other in self._ports for pair in ((gone, other), (other, gone))]
        for (source, output), more in self._carried_between(pairs).items():
            if source == gone:
                self._ports[output].sent = _sum(self._ports[output].sent, more)
            else:
                self._ports[source].received = _sum(self._ports[source].received, more)

    def _carried_between(self, pairs: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], tuple[int, int]]:
        """Frames and bytes, by source and output."""
        return {pair: _added(self._carried.lookup_cpus(_INDEX.pack(pair[0] * PORTS_MAX + pair[1])) or []) for pair in pairs}

    def _all_carried(self) -> tuple[Mapping[int, tuple[int, int]], Mapping[int, tuple[int, int]]]:
        """Frames and bytes between ports that are here, by source and by output."""
        raw = self._carried.array()
        numbers = struct.unpack(f"={len(raw) // 8}Q", raw)
        # Frames and bytes of each processor by turns. There are a thousand pairs: what is done for each is done in the interpreter's C.
        step = 2 * self._carried.cpus
        frames, octets = (list(map(sum, zip(*(numbers[cpu::step] for cpu in range(first, step, 2)), strict=True))) for first in (0, 1))
        here = list(self._ports)
        of = itemgetter(*here, here[0]) if here else tuple
        came, went = {}, {}
        for one in here:
            row, column = slice(one * PORTS_MAX, (one + 1) * PORTS_MAX), slice(one, None, PORTS_MAX)
            came[one] = (sum(of(frames[row])[:-1]), sum(of(octets[row])[:-1]))
            went[one] = (sum(of(frames[column])[:-1]), sum(of(octets[column])[:-1]))
        return came, went

    def _reasons_of(self, port: int) -> tuple[int, ...]:
        values = self._reasons.lookup_cpus(_INDEX.pack(port)) or ()
        reasons = list(map(sum, zip(*map(REASONS.unpack, values), strict=True)))
        reasons[Reason.NOT_SENT] += self._ports[port].not_sent()
        return tuple(reasons)

    def _clear(self, port: int) -> None:
        """Counters of whoever had the number before."""
        self._reasons.update(_INDEX.pack(port), bytes(REASONS.size))
        for other in range(PORTS_MAX):
            for place in (port * PORTS_MAX + other, other * PORTS_MAX + port):
                self._carried.update(_INDEX.pack(place), bytes(CARRIED.size))

    def _write(self, one: _Port) -> None:
        # One tag does not count, as everywhere in Linux.
        self._settings.update(
            _INDEX.pack(one.number), PORT.pack(one.on, one.mtu + HEADER_SIZE + TAG_SIZE, one.own if one.flows else bytes(6))
        )

    def _wanted(self, one: _Port) -> XdpMode:
        if self._mode is XdpMode.GENERIC:
            return XdpMode.GENERIC
        needed = XdpFeature.NDO_XMIT
        accept = all(other.features.features & needed for other in self._ports.values() if other is not one)
        return XdpMode.NATIVE if accept and one.native and one.features.features & XdpFeature.REDIRECT else XdpMode.GENERIC

    def _link(self, one: _Port) -> None:
        mode = self._wanted(one)
        with inside(one.linux.namespace):
            try:
                one.link = XdpLink(one.program, one.linux.index, mode)
            except OSError as error:
                if mode is XdpMode.GENERIC:
                    raise OSError(error.errno, refusal(error, f"put a program on {one.linux.name}")) from error
                one.native = False
                log.info("forwarding: %s takes no native XDP program (%s): generic", one.linux.name, error.strerror)
                try:
                    one.link = XdpLink(one.program, one.linux.index, XdpMode.GENERIC)
                except OSError as again:
                    raise OSError(again.errno, refusal(again, f"put a program on {one.linux.name}")) from again

    def _changed(self) -> None:
        """Other ports, or one accepts other frames than before: perhaps other modes."""
        for one in self._ports.values():
            wanted = self._wanted(one)
            if one.link is not None and one.link.mode is not wanted:
                one.link.close()
                try:
                    self._link(one)
                except OSError as error:
                    log.warning("forwarding: %s is without a program: %s", one.linux.name, error)
                    one.link, one.trouble = None, str(error)


def _sum(one: tuple[int, int], more: tuple[int, int]) -> tuple[int, int]:
    return one[0] + more[0], one[1] + more[1]


def _total(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    frames, octets = zip(*counts, strict=True)
    return sum(frames), sum(octets)


def _added(values: Sequence[bytes]) -> tuple[int, int]:
    """Of all processors."""
    frames = octets = 0
    for value in values:
        more_frames, more_octets = CARRIED.unpack(value)
        frames, octets = frames + more_frames, octets + more_octets
    return frames, octets
