"""`agr0`: several links to one other system as one interface, `-d packet ifname=eth0 -d packet ifname=eth1 -d agr agrport=eth0,...`.

LACP (`stack.l2.lacp`) finds out which ports may carry; a port that fails is left at once when its link goes, else after three hello times.
Each flow (`stack.l2.flowhash`) takes one port, so that its frames stay in order.

    port, at the height of aggregates: slow protocols ─> LACP      frames, while it collects ─> agr0, as its own
    agr0: frames, by flow ─> output of a port that distributes

A port belongs to its aggregate. Nothing else of what it receives goes on from there, and what others send through it is dropped:

    not_collecting   received while the port is not in the aggregate     agr_port   sent past the aggregate
    bad_slow         a slow protocol frame that is none                   no_port    no port distributes
    other_slow       of a slow protocol that is not LACP's                other_host for another station

and what LACP drops: `lacp_disabled`, `lacp_flood`, `marker_response`, `marker_flood` (`stack.l2.lacp.machine`).

Ports are promiscuous, since the address of all of them is the aggregate's: the first port's, or an option. Requests (`stack.core.specific`)
are `agrport` and `-agrport`, as ifconfig(8) has them, and `lacp` to change what is said. Ports are names: one whose interface goes is
*absent*, and a port again, with its number and priority, when an interface of that name is attached.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from typing import Literal

import attrs
from attrs.validators import ge, le

from resmgr.dispatch import Timer
from stack.core.driver import Port
from stack.core.fitting import accepted, fitting, for_station
from stack.core.hooks import ORDER_AGGREGATE
from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.layers import refuse_circle
from stack.core.module import Context, Kind, Module
from stack.core.names import station_address
from stack.core.registry import Registration
from stack.core.specific import specific_driver
from stack.core.statistics import Counters
from stack.frame import BadFrame, Frame
from stack.l2 import arguments as given
from stack.l2.absent import Absent, AbsentMembers
from stack.l2.arguments import refused
from stack.l2.flowhash import flow_hash
from stack.l2.lacp.machine import PORTS_MAX, Aggregator, LacpSettings
from stack.l2.pseudo import take_over
from stack.wire.ethernet import HEADER_SIZE, MTU_DEFAULT, mac_text, made_station
from stack.wire.lacp import is_slow, pack_slow, parse_slow

log = logging.getLogger(__name__)

PRIORITY = 0x8000
"""Of a port, where nobody chose another."""


@attrs.frozen
class AgrOptions:
    """Options of `-d agr`. `timeout=fast`: the partner shall speak every second, and is missed after three."""

    name: str = "agr0"
    agrport: tuple[str, ...] = ()
    mac: str = ""
    timeout: Literal["fast", "slow"] = "fast"
    active: bool = True
    priority: int = attrs.field(default=0x8000, validator=[ge(0), le(0xFFFF)])
    key: int = attrs.field(default=1, validator=[ge(1), le(0xFFFF)])


@attrs.define(eq=False)
class AgrPort:
    interface: Interface
    number: int
    registrations: tuple[Registration, ...]
    """Its input, promiscuity and hooks."""


@attrs.frozen
class KeptPort:
    """What lasts of a port while it has no interface. `number` 0: the first that is free."""

    number: int = 0
    priority: int = PRIORITY


@attrs.frozen
class KeptAggregate:
    """What an aggregate has instead of its options after a restart (`stack.core.module.Keeping`). `ports`: by name, absent ones too."""

    mac: bytes
    settings: LacpSettings
    ports: tuple[tuple[str, KeptPort], ...]


class AgrDriver:
    """See the head of this file, `stack.core.driver.Driver`, `stack.core.promiscuity.Promiscuous` and `stack.core.specific.Specific`."""

    def __init__(self, context: Context, options: AgrOptions) -> None:
        """ModuleError when a port is not there, is in an aggregate already, or cannot be promiscuous."""
        self._stack = context.stack
        self._dispatch = context.dispatch
        self.name = options.name
        kept = context.kept if isinstance(context.kept, KeptAggregate) else None
        self.mac = self._address(options, context) if kept is None else kept.mac
        self.mtu = MTU_DEFAULT
        self.up = False
        settings = LacpSettings(options.active, options.timeout == "fast", options.priority, options.key)
        self.lacp = Aggregator(self.mac, settings if kept is None else kept.settings)
        self.ports: dict[str, AgrPort] = {}
        self.absent = AbsentMembers[KeptPort](self.name, "port", "taken out", self._add)
        """Ports that have no interface just now, or whose interface cannot be one."""
        self._numbers: dict[int, AgrPort] = {}
        self._distributing: list[Interface] = []
        self._promiscuous = False
        self._accepted: frozenset[int] | None = frozenset()
        self._port: Port | None = None
        self._timer: Timer | None = None
        self._closed = False
        self.drops = Counters()
        self._listener = self._stack.on_interface(self._interface_event)
        try:
            if kept is None:
                for name in options.agrport:
                    self.add(name)
            else:
                self.absent.begin(kept.ports, self._stack)
        except BaseException:
            self.detach()
            raise

    def _address(self, options: AgrOptions, context: Context) -> bytes:
        first = self._stack.interface(options.agrport[0]) if options.agrport else None
        if options.mac:
            return station_address(options.mac, "agr")
        return made_station(context.random(6)) if first is None else first.mac

    def keep(self) -> KeptAggregate:
        """`stack.core.module.Keeping`."""
        there = [(name, self._kept(port)) for name, port in self.ports.items()]
        away = [(name, absent.kept) for name, absent in self.absent.items()]
        return KeptAggregate(self.mac, self.lacp.settings, (*there, *away))

    def _kept(self, port: AgrPort) -> KeptPort:
        return KeptPort(port.number, self.lacp.ports[port.number].actor.port_priority)

    # Driver

    def start(self, port: Port) -> None:
        self._port = port

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        self._accepted = ethertypes

    def promiscuous(self, on: bool) -> None:
        self._promiscuous = on

    def transmit(self, frames: list[Frame]) -> None:
        there = self._distributing
        if not there:
            self._count("no_port", len(frames))
            return
        batches: dict[int, list[Frame]] = {}
        for frame in fitting(frames, self.mtu, self._count):
            batches.setdefault(flow_hash(frame) % len(there), []).append(frame)
        for index, batch in batches.items():
            self._stack.output(there[index], batch, ORDER_AGGREGATE)

    def detach(self) -> None:
        if self._closed:
            return
        self.absent.clear()
        for name in list(self.ports):
            self.remove(name)
        self._closed = True
        self.up = False
        self._listener.revoke()
        if self._timer is not None:
            self._timer.cancel()

    def info(self) -> Mapping[str, str | int]:
        partner = self.lacp.partner
        return {
            "driver": "agr",
            "ports": " ".join(self.ports) or "none",
            **({"absent": " ".join(self.absent)} if self.absent else {}),
            "carrying": " ".join(interface.name for interface in self._distributing) or "none",
            "partner": "none" if partner is None else mac_text(partner.system),
        }

    @property
    def below(self) -> tuple[str, ...]:
        """`stack.core.layers.Layered`."""
        return (*self.ports, *self.absent)

    # Requests

    def get_specific(self) -> Mapping[str, object]:
        partner, settings = self.lacp.partner, self.lacp.settings
        return {
            "active": settings.active,
            "timeout": "fast" if settings.fast else "slow",
            "priority": settings.system_priority,
            "key": settings.key,
            "partner": None if partner is None else mac_text(partner.system),
            "drops": dict(self.drops) | dict(self.lacp.drops),
            "ports": [
                *(self._port_facts(port) for port in self.ports.values()),
                *(_absent_facts(name, absent) for name, absent in self.absent.items()),
            ],
        }

    def _port_facts(self, port: AgrPort) -> Mapping[str, object]:
        lacp = self.lacp.ports[port.number]
        return {
            "interface": port.interface.name,
            "present": True,
            "number": port.number,
            "up": port.interface.up,
            "priority": lacp.actor.port_priority,
            "receive": lacp.receive.value,
            "mux": lacp.mux.value,
            "actor": str(lacp.actor),
            "partner": str(lacp.partner),
            "received": lacp.received,
            "sent": lacp.sent,
        }

    def set_specific(self, command: str, arguments: Mapping[str, object]) -> None:
        now = self._dispatch.now()
        if command == "agrport":
            self.add(given.text(arguments, "interface"))
        elif command == "-agrport":
            self.remove(given.text(arguments, "interface"))
        elif command == "portpriority":
            port = self._named(given.text(arguments, "interface"))
            self.lacp.set_priority(port.number, given.number(arguments, "value", 0, 0xFFFF), now)
        elif command == "lacp":
            value = given.text(arguments, "value")
            if value not in ("fast", "slow", "active", "passive"):
                raise refused(f"{value} is nothing that LACP can be: fast, slow, active, passive")
            field, on = ("fast", value == "fast") if value in ("fast", "slow") else ("active", value == "active")
            settings = self.lacp.settings
            changed = attrs.evolve(settings, fast=on) if field == "fast" else attrs.evolve(settings, active=on)
            self.lacp.configure(changed, now)
        else:
            raise refused(f"{self.name}: there is no request {command}; there are agrport, -agrport, lacp, portpriority")
        self._settle()

    def add(self, name: str) -> None:
        """Another port; one that was absent has its number and priority. ModuleError when that cannot be."""
        known = self.absent.get(name)
        if known is None and len(self.below) >= PORTS_MAX:
            raise refused(f"{self.name} has {PORTS_MAX} ports already", errno.ENOSPC)
        self._add(name, KeptPort() if known is None else known.kept)

    def _add(self, name: str, kept: KeptPort) -> None:
        interface = given.interface(self._stack, name)
        if isinstance(specific_driver(interface.driver), AgrDriver):
            raise refused(f"{name} is an aggregate itself")
        if name in self.ports:
            raise refused(f"{name} is a port of {self.name} already", errno.EBUSY)
        refuse_circle(self.name, name, self._stack.below)
        upon = [one.name for one in self._stack.interfaces if name in one.below and one.name not in (self.name, interface.owner)]
        if upon:
            raise refused(f"{name} cannot be a port: {', '.join(upon)} on it would hear nothing any more", errno.EBUSY)
        if interface.endpoints is not None:
            raise refused(f"{name} is no Ethernet: its stations are IP endpoints")
        registrations = take_over(self._stack, interface, self.name, ORDER_AGGREGATE, self._incoming, self._outgoing)
        self.absent.pop(name, None)
        taken = {*self._numbers, *(one.kept.number for one in self.absent.values())}
        number = kept.number or next(one for one in range(1, PORTS_MAX + 1) if one not in taken)
        self.ports[name] = self._numbers[number] = AgrPort(interface, number, registrations)
        self.lacp.add(number, kept.priority, interface.up, self._dispatch.now())
        self._settle()

    def remove(self, name: str) -> None:
        """A port less. ModuleError when it is none, absent or not."""
        if self.absent.pop(name, None) is None:
            self._take_out(name)

    def _take_out(self, name: str) -> None:
        port = self._named(name)
        self.lacp.remove(port.number, self._dispatch.now())
        self._send_pdus()
        del self.ports[name], self._numbers[port.number]
        for registration in port.registrations:
            registration.revoke()
        self._settle()

    def _named(self, name: str) -> AgrPort:
        self.absent.refuse(name)
        if name not in self.ports:
            raise refused(f"{name} is no port of {self.name}; there are: {', '.join(self.below) or 'none'}", errno.ENOENT)
        return self.ports[name]

    # Frames of the ports

    def _incoming(self, interface: Interface, frames: list[Frame]) -> list[Frame]:
        port = self.ports.get(interface.name)
        if port is None or port.interface is not interface:
            return frames
        slow = [frame for frame in frames if is_slow(frame)]
        if slow:
            frames = [frame for frame in frames if not is_slow(frame)]
            for frame in slow:
                self._slow(port, frame)
            self._settle()
        if frames and not self.lacp.collects(port.number):
            interface.count("not_collecting", len(frames))
        elif frames:
            self._deliver(frames)
        return []

    def _slow(self, port: AgrPort, frame: Frame) -> None:
        try:
            pdu = parse_slow(memoryview(frame)[HEADER_SIZE:])
        except BadFrame:
            self.drops.count("bad_slow")
            return
        if pdu is None:
            self.drops.count("other_slow")
        else:
            self.lacp.receive(port.number, pdu, self._dispatch.now())

    def _deliver(self, frames: list[Frame]) -> None:
        if not self._promiscuous:
            frames = for_station(frames, self.mac, self._count)
        wanted = accepted(frames, self._accepted)
        if wanted and self._port is not None:
            self._port.deliver(wanted)

    def _outgoing(self, interface: Interface, frames: list[Frame]) -> list[Frame]:
        port = self.ports.get(interface.name)
        if port is None or port.interface is not interface:
            return frames
        interface.count("agr_port", len(frames))
        return []

    # LACP and time

    def _interface_event(self, event: InterfaceEvent, interface: Interface) -> None:
        if self.absent.event(event, interface):
            return
        port = self.ports.get(interface.name)
        if port is None or port.interface is not interface:
            return
        if event is InterfaceEvent.DETACHED:
            kept = self._kept(port)
            self._take_out(interface.name)
            self.absent.lose(interface.name, kept)
        elif event in (InterfaceEvent.UP, InterfaceEvent.DOWN):
            self.lacp.set_enabled(port.number, interface.up, self._dispatch.now())
            self._settle()
        else:
            self._settle()

    def _send_pdus(self) -> None:
        for number, pdu in self.lacp.transmit():
            port = self._numbers.get(number)
            if port is None:  # it went with what became of an earlier one
                continue
            interface = port.interface
            self._stack.output(interface, [pack_slow(interface.mac, pdu)], ORDER_AGGREGATE)

    def _settle(self) -> None:
        """Carry out what LACP has decided, and wait for what comes next."""
        self._send_pdus()
        self._distributing = [self._numbers[number].interface for number in self.lacp.distributing()]
        up = bool(self._distributing)
        mtu = min((port.interface.mtu for port in self.ports.values()), default=MTU_DEFAULT)
        if (up, mtu) != (self.up, self.mtu) and not self._closed:
            self.up, self.mtu = up, mtu
            if self._port is not None:
                self._port.changed()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.lacp.next_timeout()
        if due is not None and not self._closed:
            self._timer = self._dispatch.call_at(due, self._timeout)

    def _timeout(self) -> None:
        self._timer = None
        self.lacp.handle_timeout(self._dispatch.now())
        self._settle()

    def _count(self, reason: str, number: int = 1) -> None:
        if self._port is not None:
            self._port.count(reason, number)


def _absent_facts(name: str, absent: Absent[KeptPort]) -> Mapping[str, object]:
    kept = absent.kept
    return {"interface": name, "present": False, "why": absent.why, "number": kept.number, "up": False, "priority": kept.priority}


def _attach(context: Context, options: AgrOptions) -> AgrDriver:
    try:
        return AgrDriver(context, options)
    except ValueError as error:
        raise refused(f"agr: {str(error).splitlines()[0]}") from None


MODULE = Module("agr", Kind.DRIVER, AgrOptions, _attach)
