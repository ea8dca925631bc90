"""`bridge0`: the bridge as an interface of the stack, `io-pkt -d packet ifname=eth0 -d packet ifname=eth1 -d bridge add=eth0,add=eth1`.

Puts the pure parts to work (`stack.l2.bridge`, `stack.l2.stp`): hooks at the bridge's height, promiscuous members, the clock, and the
forwarding engine, which is told what is learned and asked before a station is let go. Members come and go by requests
(`stack.core.specific`), whose names are those of brconfig(8):

    add, delete, addspan, delspan IF      flush, flushall, static IF MAC, deladdr MAC       maxaddr, timeout, ifmaxaddr, storm
    learn, discover IF on|off             stp, edge, autoedge, ptp, guard, rootguard, tcnguard IF on|off
    ipf on|off                            proto rstp|stp, priority, hellotime, fwddelay, maxage, holdcnt, ifpriority, ifpathcost

Members are names: one whose interface goes is *absent*, and a member again, with its port and settings (`stack.l2.membership`), when an
interface of that name is attached. The bridge is up while one of its members is, and its MTU is the least of theirs.

Needs CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF for the forwarding engine; without them it forwards by itself.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping

import attrs

from resmgr.dispatch import Timer
from stack.core.driver import Port
from stack.core.errors import ModuleError
from stack.core.fitting import accepted, fitting
from stack.core.hooks import ORDER_BRIDGE, Point
from stack.core.ifnet import Interface, InterfaceEvent
from stack.core.layers import refuse_circle, refuse_relatives
from stack.core.module import Context, Kind, Module
from stack.core.names import station_address
from stack.core.registry import Registration
from stack.core.specific import specific_driver
from stack.frame import BadFrame, Frame
from stack.l2 import ipf
from stack.l2.absent import AbsentMembers
from stack.l2.arguments import interface as interface_named
from stack.l2.arguments import refused
from stack.l2.bridge import PORTS_MAX, Bridge, BridgePort, Decision
from stack.l2.bridge_options import BridgeOptions
from stack.l2.bridge_requests import SETTERS, facts
from stack.l2.engine import Engine
from stack.l2.flushes import FlushBound
from stack.l2.forward.fastpath import FastPath
from stack.l2.forward.kinds import CAPABILITIES, kinds
from stack.l2.membership import KeptBridge, Membership
from stack.l2.pseudo import take_over
from stack.l2.stp.machine import SpanningTree
from stack.l2.stp.settings import PortSettings, Protocol, TreeSettings
from stack.wire.bpdu import GROUP, parse_bpdu
from stack.wire.ethernet import MTU_DEFAULT, made_station
from stack.wire.llc import SAP_STP, pack_llc, parse_llc

log = logging.getLogger(__name__)

PRUNE_SECONDS = 10.0
"""How often silent stations are looked for; more often where `timeout` is short."""
TREE = "spanning tree"
SPAN = "a span port must see all frames"
SWITCHED_OFF = "the bridge is switched off"
FILTERED = "ipf: IP filters see what is bridged"


@attrs.define(eq=False)
class Member:
    """An interface in the bridge."""

    interface: Interface
    port: BridgePort
    registrations: tuple[Registration, ...]
    """Its input, promiscuity and hooks."""
    settings: PortSettings
    """Of the spanning tree."""


class BridgeDriver:
    """See the head of this file, `stack.core.driver.Driver` and `stack.core.specific.Specific`."""

    def __init__(self, context: Context, options: BridgeOptions, engine: Engine) -> None:
        """*engine*: who forwards what is known; the bridge's from now on."""
        kept = context.kept if isinstance(context.kept, KeptBridge) else _as_optioned(options, context)
        self._stack = context.stack
        self._dispatch = context.dispatch
        self.options = options
        self.name = options.name
        self.mac = kept.mac
        self.mtu = MTU_DEFAULT
        self.up = False
        self.bridge = Bridge(self.mac, kept.maxaddr, kept.timeout, options.station)
        self.tree = SpanningTree(self.mac, kept.tree, self._dispatch.now())
        self._flushes = FlushBound()
        self.members: dict[str, Member] = {}
        self.absent = AbsentMembers[Membership](self.name, "member", "deleted", self._add)
        """Members that have no interface just now, or whose interface cannot be one."""
        self.drops = self.bridge.drops
        """Of what no port counts."""
        self._numbers: dict[int, Member] = {}
        self._port: Port | None = None
        self._accepted: frozenset[int] | None = frozenset()
        self._timer: Timer | None = None
        self._prune_at: float | None = None
        self._closed = False
        self._running = True
        """It forwards: nobody has switched it off. If so, members are interfaces like others."""
        self.engine = engine
        self.bridge.stations.idle = engine.idle
        self.ipf = kept.ipf
        """IP filters see what is bridged (`stack.l2.ipf`)."""
        self._filter_watcher = self._stack.on_ip_filters(self._members_changed)
        self._listener = self._stack.on_interface(self._interface_event)
        try:
            if kept is context.kept:
                self.absent.begin(kept.members, self._stack)
            else:
                for name in options.add:
                    self.add(name)
                for name in options.span:
                    self.add(name, span=True)
        except BaseException:
            self.detach()
            raise

    # Driver

    def start(self, port: Port) -> None:
        self._port = port

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        """Of what is for the bridge as a station. The members' drivers are told by the stack."""
        self._accepted = ethertypes

    def transmit(self, frames: list[Frame]) -> None:
        """What our stack sends through the bridge as a station."""
        if not self._closed and self._port is not None:
            self._carry(None, self.bridge.sent(0, fitting(frames, self.mtu, self._port.count)))

    def detach(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.absent.clear()
        for name in list(self.members):
            self.delete(name)
        self._listener.revoke()
        self._filter_watcher.revoke()
        if self._timer is not None:
            self._timer.cancel()
        self.engine.close()

    def info(self) -> Mapping[str, str | int]:
        return {
            "driver": "bridge",
            "members": " ".join(self.members) or "none",
            **({"absent": " ".join(self.absent)} if self.absent else {}),
            "stations": len(self.bridge.stations),
            "engine": self.engine.name,
            "carried by the engine": self.engine.frames,
        }

    @property
    def below(self) -> tuple[str, ...]:
        """`stack.core.layers.Layered`."""
        return (*self.members, *self.absent)

    def get_specific(self) -> Mapping[str, object]:
        return facts(self)

    def set_specific(self, command: str, arguments: Mapping[str, object]) -> None:
        setter = SETTERS.get(command)
        if setter is None:
            raise refused(f"{self.name}: there is no request {command}; there are {', '.join(SETTERS)}")
        setter(self, arguments)
        self.settle()

    def keep(self) -> KeptBridge:
        """`stack.core.module.Keeping`."""
        stations = self.bridge.stations
        members = tuple((name, self.membership(name)) for name in self.below)
        return KeptBridge(self.mac, stations.maximum, stations.timeout, self.ipf, self.tree.settings, members)

    # Members

    def add(self, name: str, span: bool = False) -> None:
        """A member; one that was absent has its settings. ModuleError when there is no such interface, it is in a bridge or an aggregate
        already, would make a loop with another member, cannot be promiscuous, or there are too many."""
        fresh = Membership(spans=span, storm=self.options.storm, tree=self.options.stp and not span)
        known = self.absent.get(name)
        if known is None and len(self.below) >= PORTS_MAX:
            raise refused(f"{self.name} has {PORTS_MAX} members already", errno.ENOSPC)
        self._add(name, known.kept if known is not None and known.kept.spans is span else fresh)

    def _add(self, name: str, wanted: Membership) -> None:
        interface = interface_named(self._stack, name)
        if isinstance(specific_driver(interface.driver), BridgeDriver):
            raise refused(f"{name} is a bridge itself")
        if name in self.members:
            raise refused(f"{name} is a member of {self.name} already", errno.EBUSY)
        # Without members it has no link that could go, and tells nobody that it was switched.
        self._look_at_the_switch()
        refuse_circle(self.name, name, self._stack.below)
        refuse_relatives(name, [one for one in self.below if one != name], self._stack.below)
        if interface.endpoints is not None:
            raise refused(f"{name} has no broadcast: its stations are IP endpoints, which a bridge cannot join to others")
        reserved = {one.kept.number for other, one in self.absent.items() if other != name}
        free = (number for number in range(1, PORTS_MAX + 1) if number not in reserved)
        port = self.bridge.add(interface.mac, wanted.storm, (*filter(None, (wanted.number,)), *free))
        port.up, port.spans = interface.up, wanted.spans
        port.learn, port.discover, port.most = wanted.learn, wanted.discover, wanted.most
        try:
            registrations = take_over(self._stack, interface, self.name, ORDER_BRIDGE, self._incoming, self._outgoing, runs=True)
        except BaseException:
            self.bridge.remove(port.number)
            raise
        member = Member(interface, port, registrations, wanted.settings)
        self.members[name] = self._numbers[port.number] = member
        self.absent.pop(name, None)
        self._keep_own_addresses()
        self.engine.add(interface)
        self._hold(member, SWITCHED_OFF, not self._running)
        if wanted.tree:
            self.join_tree(member, True, wanted.guarded)
        for station in wanted.statics:
            if not self.bridge.is_own(station):
                self.bridge.stations.add_static(station, port.number, 0.0)
                self.engine.learned(station, interface)
        self._members_changed()
        self.settle()

    def _keep_own_addresses(self) -> None:
        """What was learned as a station's and is ours now, the engine must not carry."""
        for member in self.members.values():
            self.engine.forget(member.interface.mac)

    def _hold(self, member: Member, why: str, held: bool) -> None:
        """Whether the engine must carry nothing of it, for that reason."""
        (self.engine.off if held else self.engine.on)(member.interface, why)

    def delete(self, name: str) -> None:
        """ModuleError when it is no member, absent or not."""
        if self.absent.pop(name, None) is None:
            self._take_out(name)

    def _take_out(self, name: str) -> None:
        member = self.member(name)
        self.join_tree(member, False)
        self._flushes.forget(member.port.number)
        del self.members[name], self._numbers[member.port.number]
        self.bridge.remove(member.port.number)
        self.engine.remove(member.interface)
        for registration in member.registrations:
            registration.revoke()
        self._members_changed()
        self.settle()

    def membership(self, name: str) -> Membership:
        """Of a member, absent or not."""
        if name in self.absent:
            return self.absent[name].kept
        member = self.member(name)
        port = member.port
        return Membership(
            port.number,
            port.spans,
            port.learn,
            port.discover,
            port.most,
            int(port.storm.rate),
            port.tree,
            member.settings,
            port.tree and self.tree.view(port.number).guarded,
            self.bridge.stations.static_on(port.number),
        )

    def member(self, name: str) -> Member:
        """ModuleError when there is none, or it is absent."""
        self.absent.refuse(name)
        if name not in self.members:
            raise refused(f"{name} is no member of {self.name}; there are: {', '.join(self.below) or 'none'}", errno.ENOENT)
        return self.members[name]

    def join_tree(self, member: Member, on: bool, guarded: bool = False) -> None:
        """From now on the member takes part in the spanning tree, or not any more; idempotent. *guarded*: its guard has struck before."""
        port, now = member.port, self._dispatch.now()
        if on and port.spans:
            raise refused(f"{member.interface.name} is a span port, which takes part in no spanning tree")
        if on and not port.tree:
            port.tree = True
            self.tree.add(port.number, member.settings, port.up and self._running, now, guarded)
        elif port.tree and not on:
            port.tree = False
            self.tree.remove(port.number, now)
            port.learning = port.forwarding = True
            self._hold(member, TREE, False)

    def configure_tree(self, member: Member, settings: PortSettings) -> None:
        member.settings = settings
        if member.port.tree:
            self.tree.configure_port(member.port.number, settings, self._dispatch.now())

    def _members_changed(self) -> None:
        spans = any(member.port.spans for member in self.members.values())
        for member in self.members.values():
            self._hold(member, SPAN, spans)
            self._hold(member, FILTERED, self.filters)
        up = any(member.port.up for member in self.members.values())
        mtu = min((member.interface.mtu for member in self.members.values()), default=MTU_DEFAULT)
        if (up, mtu) != (self.up, self.mtu):
            self.up, self.mtu = up, mtu
            if self._port is not None and not self._closed:
                self._port.changed()

    @property
    def filters(self) -> bool:
        """`ipf` is on, and there are filters."""
        return self.ipf and bool(self._stack.ip_filters.entries)

    def set_ipf(self, on: bool) -> None:
        self.ipf = on
        self._members_changed()

    def _interface_event(self, event: InterfaceEvent, interface: Interface) -> None:
        self._look_at_the_switch()
        if self.absent.event(event, interface):
            return
        member = self.members.get(interface.name)
        if member is None or member.interface is not interface:
            return
        if event is InterfaceEvent.DETACHED:
            lost = self.membership(interface.name)
            self._take_out(interface.name)
            self.absent.lose(interface.name, lost)
            return
        if event is InterfaceEvent.CHANGED:
            self.bridge.readdress(member.port.number, interface.mac)
            self._keep_own_addresses()
        elif event in (InterfaceEvent.UP, InterfaceEvent.DOWN):
            member.port.up = interface.up
            if not interface.up:
                self.forget(member.port.number)
            if member.port.tree:
                self.tree.set_enabled(member.port.number, interface.up and self._running, self._dispatch.now())
        self._members_changed()
        self.settle()

    def _look_at_the_switch(self) -> None:
        """`ifconfig bridge0 down`, or up again."""
        own = self._stack.interface(self.name)
        running = own is None or own.enabled
        if running is self._running:
            return
        self._running = running
        for member in self.members.values():
            if member.port.tree:
                self.tree.set_enabled(member.port.number, member.port.up and running, self._dispatch.now())
            self._hold(member, SWITCHED_OFF, not running)
        self.settle()

    # Frames

    def _incoming(self, interface: Interface, frames: list[Frame]) -> list[Frame]:
        member = self.members.get(interface.name)
        if member is None or member.interface is not interface or not self._running:
            return frames
        now = self._dispatch.now()
        decision = self.bridge.received(member.port.number, frames, now)
        if self.filters and decision.out:
            self._filter(member, decision)
        # First: what was learned from this batch is told to the engine before a BPDU of it may make all stations there forgotten.
        self._carry(member, decision)
        for frame in decision.bpdus:
            self._bpdu(member, frame, now)
        if decision.bpdus:
            self.settle()
        return decision.up.get(member.port.number, [])

    def _filter(self, received: Member, decision: Decision) -> None:
        """Take out what filters refuse to let through the bridge. A frame that is flooded is asked about once on its way in."""
        leaving = {id(frame): frame for batch in decision.out.values() for frame in batch}
        passed = ipf.passing(self._stack, received.interface, Point.IN, list(leaving.values()), received.port.drops)
        allowed = set(map(id, passed))
        for number, batch in list(decision.out.items()):
            member = self._numbers.get(number)
            if member is not None:
                rest = [frame for frame in batch if id(frame) in allowed]
                decision.out[number] = ipf.passing(self._stack, member.interface, Point.OUT, rest, member.port.drops)

    def _outgoing(self, interface: Interface, frames: list[Frame]) -> list[Frame]:
        member = self.members.get(interface.name)
        if member is None or member.interface is not interface or not self._running:
            return frames
        decision = self.bridge.sent(member.port.number, frames)
        left = decision.out.pop(member.port.number, [])
        self._carry(None, decision)
        return left

    def _carry(self, received: Member | None, decision: Decision) -> None:
        """Do what was decided. What goes up on the member that *received* it is the hook's to return."""
        if self.bridge.news:
            self._tell_news()
        for number, batch in decision.out.items():
            # Who hears a frame may take members away.
            member = self._numbers.get(number)
            if member is not None:
                self._stack.output(member.interface, batch, ORDER_BRIDGE)
        for number, batch in decision.up.items():
            member = self._numbers.get(number)
            if member is not None and member is not received:
                self._stack.entered(member.interface, batch, ORDER_BRIDGE)
        own = accepted(decision.own, self._accepted) if decision.own else []
        if own and self._port is not None and not self._closed:
            self._port.deliver(own)

    def _tell_news(self) -> None:
        news, self.bridge.news = self.bridge.news, []
        for station, number in news:
            if number:
                self.engine.learned(station, self._numbers[number].interface)
            else:
                self.engine.forget(station)
        if self._prune_at is None:
            self._schedule()

    def forget(self, number: int | None, statics: bool = False) -> None:
        """Forget the stations of one port, or of all."""
        for station in self.bridge.stations.flush(number, statics):
            self.engine.forget(station)

    def trim(self, member: Member | None = None) -> None:
        """A bound of stations is lower than before, of *member* or of all."""
        stations, now = self.bridge.stations, self._dispatch.now()
        gone = stations.trim(now) if member is None else stations.trim(now, member.port.number, member.port.most)
        for station in gone:
            self.engine.forget(station)

    @property
    def flushes_put_off(self) -> int:
        """Topology changes that had to wait (`stack.l2.flushes`)."""
        return self._flushes.put_off

    # The spanning tree, and time

    def now(self) -> float:
        return self._dispatch.now()

    def _bpdu(self, member: Member, frame: Frame, now: float) -> None:
        try:
            bpdu = parse_bpdu(parse_llc(frame, SAP_STP))
        except BadFrame:
            self.drops.count("bad_bpdu")
            return
        self.tree.receive(member.port.number, bpdu, now)

    def settle(self) -> None:
        """Carry out what the tree has decided, and wait for what comes next."""
        for number in self._flushes.due(self.tree.flushed(), self._dispatch.now()):
            self.forget(number)
        for member in self.members.values():
            port = member.port
            if port.tree:
                forwarding = self.tree.forwarding(port.number)
                port.learning = self.tree.learning(port.number)
                if forwarding is not port.forwarding:
                    port.forwarding = forwarding
                    log.info("%s: %s is %s", self.name, member.interface.name, "forwarding" if forwarding else "blocked")
                    self._hold(member, TREE, not member.port.forwarding)
        for number, bpdu in self.tree.transmit():
            speaking = self._numbers.get(number)
            if speaking is None:  # it went with what became of an earlier one
                continue
            frame = pack_llc(GROUP, speaking.interface.mac, SAP_STP, bpdu)
            self._stack.output(speaking.interface, [frame], ORDER_BRIDGE)
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._closed:
            return
        due = min((when for when in (self.tree.next_timeout(), self._flushes.next_timeout()) if when is not None), default=None)
        if len(self.bridge.stations):
            if self._prune_at is None:
                self._prune_at = self._dispatch.now() + min(PRUNE_SECONDS, (self.bridge.stations.timeout or PRUNE_SECONDS) / 2)
            due = self._prune_at if due is None else min(due, self._prune_at)
        if due is not None:
            self._timer = self._dispatch.call_at(due, self._timeout)

    def _timeout(self) -> None:
        self._timer = None
        now = self._dispatch.now()
        self.tree.handle_timeout(now)
        if self._prune_at is not None and self._prune_at <= now:
            self._prune_at = None
            for station in self.bridge.stations.expire(now):
                self.engine.forget(station)
        self.settle()


def _as_optioned(options: BridgeOptions, context: Context) -> KeptBridge:
    """Without members: those are added one by one, and must be there."""
    mac = station_address(options.mac, "bridge") if options.mac else made_station(context.random(6))
    tree = TreeSettings(Protocol(options.proto), options.priority, options.maxage, options.hellotime, options.fwddelay)
    return KeptBridge(mac, options.maxaddr, options.timeout, options.ipf, tree, ())


def _attach(context: Context, options: BridgeOptions) -> BridgeDriver:
    engine = FastPath(context.stack, options.engine, kinds(context.dispatch, context.stack.workers))
    try:
        return BridgeDriver(context, options, engine)
    except ValueError as error:
        engine.close()
        raise ModuleError(errno.EINVAL, f"bridge: {str(error).splitlines()[0]}") from None
    except BaseException:
        engine.close()
        raise


MODULE = Module("bridge", Kind.DRIVER, BridgeOptions, _attach, capabilities=CAPABILITIES)
