"""What a bridge holds: ports and stations, the reasons for which a port is off, and a carrier that does the work.

    bridge -> FastPath -> Carrier (kernel or threads)
              knows interfaces, hooks, wrappers, reasons      knows numbers, Linux interfaces, stations

A port is *attached* to the carrier while it can be (an interface of Linux, no wrapper around the driver), and *on* while no reason speaks
against it. A carrier through which frames go up at a cost (worker threads: a copy and a wake-up) has only ports that are on: the driver
receives for the others itself. Stations of ports that are not attached are kept here only, and given to the carrier when the port is back.

A frame that the carrier had in hand when a port went off may still be carried: a thread's batch, or what is on its way in the kernel.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Mapping

from resmgr.dispatch import Timer
from resmgr.errors import Misuse
from stack.core.driver import Driver
from stack.core.hooks import ORDER_BRIDGE, HookEntry
from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.isolation import RAISED
from stack.core.linuxinterface import LinuxInterface, on_linux
from stack.core.stack import Stack
from stack.l2.engine import (
    FLOW_SECONDS,
    FLOWS_DEFAULT,
    PORTS_MAX,
    STATIONS_MAX,
    EngineStatistics,
    FlowStatistics,
    PortStatistics,
    RoutedFlow,
)
from stack.l2.forward.carrier import DROPPED, NOTHING, Carrier, Counts, Reason
from stack.l2.forward.placed import PlacedStations
from stack.l2.forward.port import EnginePort
from stack.l2.forward.preference import preferred
from stack.l2.forward.routes import Route, Routes

log = logging.getLogger(__name__)

DOWN = "its link is down"
Kinds = Mapping[str, Callable[[], Carrier]]
"""How to make each carrier; OSError in one sentence when it cannot be had."""


class FastPath:
    """`stack.l2.engine.Engine`.

    *engine*: one of *kinds*, `none`, or `auto`, which takes the best for the first port (`stack.l2.forward.preference`) that can be had.
    It is opened when that port comes: a bridge of links in memory opens nothing. One that cannot be had is no error: the bridge forwards
    without, and `statistics` says why. *stations*, *flows*: how many it keeps, at most STATIONS_MAX and FLOWS_MAX.
    """

    def __init__(self, stack: Stack, engine: str, kinds: Kinds, flows: int = FLOWS_DEFAULT, stations: int = STATIONS_MAX) -> None:
        if engine not in ("auto", "none", *kinds):
            raise Misuse(f"there is no engine {engine}; there are auto, none, {', '.join(kinds)}")
        if not 0 < stations <= STATIONS_MAX:
            raise Misuse(f"an engine keeps at most {STATIONS_MAX} stations")
        self._stack = stack
        self._wanted = engine
        self._kinds = kinds
        self._carrier: Carrier | None = None
        self._chosen = False
        self._why = ""
        self._ports: dict[Interface, EnginePort] = {}
        self._placed = PlacedStations(stack.dispatch, stations, self._ports.values(), lambda: self._carrier)
        self._routes = Routes(self._look, self._drop_route, flows)
        self._timer: Timer | None = None
        self._closed = False
        self._registrations = [stack.on_hooks(self._hooks_changed), stack.on_interface(self._interface_changed)]

    @property
    def name(self) -> str:
        if self._carrier is not None:
            return self._carrier.name
        return "none" if self._chosen else self._wanted

    def _choose(self, linux: LinuxInterface) -> Carrier | None:
        if not self._chosen:
            self._chosen = True
            whys: list[str] = []
            for name in preferred(linux) if self._wanted == "auto" else [one for one in self._kinds if one == self._wanted]:
                try:
                    self._carrier = self._kinds[name]()
                    break
                except OSError as error:
                    whys.append(f"{name}: {error.strerror or error}")
            self._why = "; ".join(whys)
        return self._carrier

    # Ports

    def add(self, interface: Interface) -> None:
        if interface in self._ports:
            return
        taken = {port.number for port in self._ports.values()}
        number = next((one for one in range(PORTS_MAX) if one not in taken), None)
        if number is None:
            raise Misuse(f"an engine has at most {PORTS_MAX} ports")
        port = self._ports[interface] = EnginePort(number, interface)
        self._look_at_hooks(port)
        self._try(port)

    def remove(self, interface: Interface) -> None:
        port = self._ports.get(interface)
        if port is not None:
            self.flush(interface)
            self._routes.remove_of(interface)
            self._detach(port)
            del self._ports[interface]
            self._leave_counts(port)
            # Last: others may take it within this call.
            if port.claim is not None:
                port.claim.revoke()

    def _leave_counts(self, port: EnginePort) -> None:
        """What was carried is told as a part of the interface's counters, which must not fall when its port goes."""
        interface, counts = port.interface, port.before
        interface.rx_frames += counts.in_frames
        interface.rx_bytes += counts.in_bytes
        interface.tx_frames += counts.out_frames
        interface.tx_bytes += counts.out_bytes
        for reason in DROPPED:
            if counts.reasons[reason]:
                interface.count(reason.name.lower(), counts.reasons[reason])

    def off(self, interface: Interface, why: str) -> None:
        port = self._ports.get(interface)
        if port is not None and why not in port.reasons:
            port.reasons[why] = None
            self._allow(port)

    def on(self, interface: Interface, why: str) -> None:
        port = self._ports.get(interface)
        if port is not None and why in port.reasons:
            del port.reasons[why]
            self._allow(port)

    # Stations

    def learned(self, station: bytes, interface: Interface) -> None:
        port = self._ports.get(interface)
        if port is not None:
            self._placed.learned(station, port)

    def forget(self, station: bytes) -> None:
        self._placed.forget(station)

    def flush(self, interface: Interface | None = None) -> None:
        ports = self._ports.values() if interface is None else filter(None, (self._ports.get(interface),))
        self._placed.flush(list(ports))

    def idle(self, station: bytes) -> float | None:
        return self._placed.idle(station)

    # Routed flows

    def route(self, flow: RoutedFlow) -> bool:
        source, output = self._ports.get(flow.interface), self._ports.get(flow.output)
        carrier, now = self._carrier, self._stack.dispatch.now()
        if carrier is None or source is None or output is None or not (source.index and output.index):
            return False
        if source.reasons or output.reasons:
            return False
        route = self._routes.add(flow, now)
        if route is None:
            return False
        try:
            carrier.put_flow(source.number, route.key, output.number, flow.next_hop + flow.output.mac, flow.interface.mac)
        except OSError as error:
            log.warning("forwarding: no room for a flow: %s", error.strerror)
            self.unroute(flow.interface, *route.key)
            return False
        if self._timer is None:
            self._timer = self._stack.dispatch.call_at(now + FLOW_SECONDS, self._expire)
        return True

    def unroute(self, interface: Interface, source: bytes | None = None, destination: bytes | None = None) -> None:
        if source is None or destination is None:
            self._routes.remove_of(interface)
        else:
            self._routes.remove((interface, source, destination))

    def flows(self) -> list[FlowStatistics]:
        now, told = self._stack.dispatch.now(), []
        for route in self._routes.known.values():
            self._look(route)
            told.append(FlowStatistics(route.flow, max(0.0, now - route.used), route.frames, route.octets))
        return told

    def _look(self, route: Route) -> None:
        port = self._ports.get(route.flow.interface)
        if port is not None and port.index and self._carrier is not None:
            counts = self._carrier.flow_counts(port.number, route.key)
            route.used = max(route.used, counts.used)
            route.frames, route.octets = counts.frames, counts.octets

    def _drop_route(self, route: Route) -> None:
        port = self._ports.get(route.flow.interface)
        if port is not None and port.index and self._carrier is not None:
            self._carrier.drop_flow(port.number, route.key)

    def _expire(self) -> None:
        now = self._stack.dispatch.now()
        self._routes.expire(now, FLOW_SECONDS)
        self._timer = self._stack.dispatch.call_at(now + FLOW_SECONDS / 5, self._expire) if self._routes.known else None

    # Views

    def statistics(self) -> EngineStatistics:
        counts = self._counts(self._ports.values())
        ports = {port.interface.name: self._port_statistics(port, counts[port]) for port in counts}
        return EngineStatistics(
            self.name, self._why, len(self._placed), self._placed.refused, ports, len(self._routes.known), self._routes.refused
        )

    @property
    def frames(self) -> int:
        now = 0 if self._carrier is None else self._carrier.frames()
        return now + sum(port.before.in_frames for port in self._ports.values())

    def _port_statistics(self, port: EnginePort, counts: Counts) -> PortStatistics:
        told = [reason for reason, number in zip(Reason, counts.reasons, strict=False) if number] if any(counts.reasons) else []
        named = [(reason.name.lower(), counts.reasons[reason], reason in DROPPED) for reason in told]
        return PortStatistics(
            tuple(port.reasons),
            self._carrier.how(port.number) if self._carrier is not None and port.index else "",
            counts.in_frames,
            counts.in_bytes,
            counts.out_frames,
            counts.out_bytes,
            {name: number for name, number, dropped in named if not dropped},
            {name: number for name, number, dropped in named if dropped},
        )

    def _counts(self, ports: Collection[EnginePort]) -> Mapping[EnginePort, Counts]:
        """In all, those of earlier included."""
        attached = [port.number for port in ports if port.index]
        now = {} if self._carrier is None or not attached else self._carrier.counts(attached)
        return {port: port.before.plus(now.get(port.number, NOTHING)) for port in ports}

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for registration in self._registrations:
            registration.revoke()
        for interface in list(self._ports):
            self.remove(interface)
        self._placed.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._carrier is not None:
            self._carrier.close()
            self._carrier = None

    # Attaching

    def _try(self, port: EnginePort) -> None:
        """Attach the port if it can be, and keep the reason if not."""
        port.reasons.pop(port.obstacle, None)
        port.obstacle = self._attach(port)
        if port.obstacle:
            port.reasons[port.obstacle] = None
        if port.index:
            self._allow(port)

    def _attach(self, port: EnginePort) -> str:
        interface = port.interface
        driver: Driver = interface.driver
        if not on_linux(driver):
            wrap = next((loaded.wrap for loaded in self._stack.loaded if loaded.interface is interface), ())
            if wrap:
                return f"{wrap[-1][0]} is around the driver"
            return f"the driver of {interface.name} lends no Linux interface"
        if not interface.up:
            return DOWN
        try:
            linux = interface.ask("linux_interface", driver.linux_interface)
        except OSError as error:
            return f"no right to ask for its network namespace: {error.strerror}"
        except RAISED:
            return f"the driver of {interface.name} failed when it was asked for its Linux interface"
        if linux is None:
            return DOWN
        try:
            carrier = self._choose(linux)
            if carrier is None:
                return f"no engine: {self._why or 'none is wanted'}"
            if port.reasons and carrier.costs_while_off:
                return ""
            if port.claim is None or not port.claim.live:
                port.claim = self._stack.carry(interface, carrier.name)
            carrier.attach(port.number, interface, linux)
        except OSError as error:
            return error.strerror or str(error)
        finally:
            os.close(linux.namespace)
        port.index, port.mtu = linux.index, interface.mtu
        self._placed.attached(port)
        return ""

    def _detach(self, port: EnginePort) -> None:
        carrier = self._carrier
        if not port.index or carrier is None:
            return
        for station in port.stations:
            carrier.drop(station)
        self._routes.remove_of(port.interface)
        port.before = self._counts([port])[port]
        port.index = 0
        carrier.detach(port.number)

    def _allow(self, port: EnginePort) -> None:
        carrier = self._carrier
        if port.index and carrier is not None:
            if port.reasons and carrier.costs_while_off:
                self._detach(port)
            else:
                carrier.allow(port.number, not port.reasons)
        elif not port.index and port.reasons.keys() <= {port.obstacle}:
            self._try(port)

    # What happens in the stack

    def _look_at_hooks(self, port: EnginePort) -> None:
        entries = [entry for entry, _ in self._stack.hooks() if _passed_by(entry) and entry.sees(port.interface.name)]
        before, port.hooks = port.hooks, tuple(f"hook {entry.name} sees its frames" for entry in entries)
        for old in before:
            if old not in port.hooks:
                port.reasons.pop(old, None)
        for reason in port.hooks:
            port.reasons[reason] = None

    def _hooks_changed(self) -> None:
        for port in list(self._ports.values()):
            self._look_at_hooks(port)
            self._allow(port)

    def _interface_changed(self, event: InterfaceEvent, interface: Interface) -> None:
        port = self._ports.get(interface)
        if port is None:
            return
        if event is InterfaceEvent.DETACHED:
            self.remove(interface)
            return
        if event is InterfaceEvent.CHANGED:
            self._routes.remove_of(interface)
        if port.index and (not interface.up or (_index(interface), interface.mtu) != (port.index, port.mtu)):
            self._detach(port)
        if not port.index:
            self._try(port)


def _passed_by(entry: HookEntry) -> bool:
    """What is carried would go past it: it lies below the bridge, on the way in or out. What is above sees what the bridge leaves."""
    return entry.order < ORDER_BRIDGE


def _index(interface: Interface) -> int:
    """Of its Linux interface just now; 0 for none."""
    driver = interface.driver
    if not on_linux(driver):
        return 0
    linux = None
    with contextlib.suppress(*RAISED):
        linux = interface.ask("linux_interface", driver.linux_interface)
    if linux is None:
        return 0
    os.close(linux.namespace)
    return linux.index
