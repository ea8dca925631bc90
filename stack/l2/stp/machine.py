"""The spanning tree of one bridge: the state machines of 802.1D-2004 clause 17, run until nothing is due.

    user: add, remove, set_enabled, configure ─┐
    BPDU: receive ─────────────────────────────┼─> machines ─> transmit() -> [(port, BPDU)]   state(port)   flushed() -> ports
    time: handle_timeout, next_timeout ────────┘

One machine speaks both protocols. `Protocol.RSTP` is 802.1D-2004. `Protocol.STP` is what that standard calls *STP compatibility*: BPDUs
of 802.1D-1998, no agreements, ports that wait for the timers; a bridge of 1998 sees one of its kind. Unlike in 1998, each designated port
speaks every hello time by itself, so that a silent root is missed after three of them and not after max age.

What strangers can do here is bounded: BPDUs_PER_SECOND are looked at per port, times have limits (`stack.l2.stp.information`), BPDU guard
and restricted role keep what is heard on a port from moving the tree.
"""

from __future__ import annotations

import attrs

from resmgr.bucket import TokenBucket
from resmgr.errors import Misuse
from stack.core.statistics import Counters
from stack.l2.stp import information, selection, topology, transitions, transmission
from stack.l2.stp.port import HELD, Info, Port, PortRole
from stack.l2.stp.settings import PortSettings, TreeSettings
from stack.l2.stp.tree import Tree
from stack.wire.bpdu import Bpdu, Config, Priority

BPDUS_PER_SECOND = 20
BPDUS_AT_ONCE = 60
"""A bridge sends ten in a row at most, then one a second; several may share a network. More are dropped (`stp_flood`)."""
PORTS_MAX = 255
STEPS_MAX = 10_000
"""Rounds of the machines for one event. They settle in a few; a circle would be our mistake, and must not hang the node."""


@attrs.frozen
class PortView:
    """What people and the bridge see of a port."""

    role: str
    state: str
    """`disabled`, `discarding`, `learning`, `forwarding`."""
    edge: bool
    protocol: str
    cost: int
    identifier: int
    designated_root: bytes
    designated_bridge: bytes
    designated_port: int
    designated_cost: int
    guarded: bool
    received: int
    sent: int


class SpanningTree:
    """See the head of this file. Times are seconds of one monotonic clock."""

    def __init__(self, mac: bytes, settings: TreeSettings, now: float) -> None:
        self._tree = Tree(mac, settings, now)
        self._limits: dict[int, TokenBucket] = {}
        self._outgoing: list[tuple[int, bytes]] = []
        self._flushed: set[int] = set()
        self.drops = Counters()

    # What the operator and the link do

    def add(self, number: int, settings: PortSettings, enabled: bool, now: float, guarded: bool = False) -> None:
        """A port. *guarded*: one whose guard has struck before. Misuse when the number is taken or no port's."""
        if not 1 <= number <= PORTS_MAX or number in self._tree.ports:
            raise Misuse(f"there can be no port {number}")
        tree = self._tree
        own, times = tree.own, tree.settings.times
        port = Port(number, settings, own, times, own, times, TokenBucket(1.0, tree.settings.hold_count))
        transmission.fresh_priority(port)
        port.oper_edge = settings.edge
        tree.ports[number] = port
        self._limits[number] = TokenBucket(BPDUS_PER_SECOND, BPDUS_AT_ONCE)
        port.guarded = guarded and settings.guard
        port.linked, port.enabled = enabled, enabled and not port.guarded
        tree.now = now
        transmission.check(tree, port)
        self._run()

    def remove(self, number: int, now: float) -> None:
        self.set_enabled(number, False, now)
        del self._tree.ports[number]
        del self._limits[number]
        self._run()

    def set_enabled(self, number: int, enabled: bool, now: float) -> None:
        """The port has a link, or not. A guard that has struck holds: who plugs the cable in anew has not been told that he may."""
        port = self._tree.ports[number]
        self._tree.now = now
        port.linked = enabled
        port.enabled = enabled and not port.guarded
        self._run()

    def configure(self, settings: TreeSettings, now: float) -> None:
        """Other settings of the bridge; if the protocol is another one, all ports begin anew."""
        tree = self._tree
        tree.now = now
        anew = settings.protocol is not tree.settings.protocol
        tree.settings = settings
        for port in tree.ports.values():
            port.credit = TokenBucket(1.0, settings.hold_count)
            self._begin_anew(port, anew)
        self._run()

    def configure_port(self, number: int, settings: PortSettings, now: float) -> None:
        """Other settings of a port."""
        port = self._tree.ports[number]
        self._tree.now = now
        port.settings = settings
        transmission.fresh_priority(port)
        if not settings.guard and port.guarded:
            port.guarded = False
            port.enabled = port.linked
        self._begin_anew(port, False)
        self._run()

    def _begin_anew(self, port: Port, protocol: bool) -> None:
        port.reselect, port.selected = True, False
        if protocol:
            enabled, port.enabled = port.enabled, False
            self._run()
            port.enabled = enabled

    # What is heard, and time

    def receive(self, number: int, bpdu: Bpdu, now: float) -> None:
        """A BPDU came in on a port. What counts no more than a drop is counted in `drops`."""
        tree = self._tree
        port = tree.ports[number]
        tree.now = now
        if not port.enabled:
            self.drops.count("stp_disabled")
        elif not self._limits[number].take(now):
            self.drops.count("stp_flood")
        elif port.settings.guard:
            port.guarded = True
            port.enabled = False
            self.drops.count("stp_guarded")
            self._run()
        elif isinstance(bpdu, Config) and not transmission.message_age_ok(bpdu):
            self.drops.count("stp_too_old")
        elif isinstance(bpdu, Config) and bpdu.priority.sender == (tree.mac, number):
            self.drops.count("stp_own")
        else:
            port.received += 1
            rapid = isinstance(bpdu, Config) and bpdu.rapid
            port.heard_rstp = port.heard_rstp or rapid
            port.heard_stp = port.heard_stp or not rapid
            port.oper_edge = False
            port.edge_delay = now + transitions.edge_delay(tree, port)
            port.message = bpdu
            self._run()

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do."""
        ahead = [timer for port in self._tree.ports.values() for timer in port.timers() if self._tree.now < timer < HELD]
        ahead += [
            max(transmission.next_hello(port), self._tree.now + 0.001)
            for port in self._tree.ports.values()
            if port.enabled and port.new_info and port.role in (PortRole.ROOT, PortRole.DESIGNATED)
        ]
        return min(ahead, default=None)

    def handle_timeout(self, now: float) -> None:
        self._tree.now = now
        self._run()

    def _run(self) -> None:
        tree = self._tree
        for _ in range(STEPS_MAX):
            changed = False
            for port in tree.ports.values():
                changed |= transmission.step_migration(tree, port)
                changed |= transmission.step_edge(tree, port)
                changed |= information.step(tree, port)
            changed |= selection.step(tree)
            for port in tree.ports.values():
                changed |= transitions.step(tree, port)
                changed |= topology.step(tree, port)
            if not changed:
                break
        else:
            raise AssertionError("the spanning tree does not settle")
        for port in tree.ports.values():
            if port.flush:
                port.flush = False
                self._flushed.add(port.number)
            bpdu = transmission.transmit(tree, port)
            if bpdu is not None:
                self._outgoing.append((port.number, bpdu))

    # What comes out

    def transmit(self) -> list[tuple[int, bytes]]:
        """BPDUs to send, by port, as they lie behind the LLC header. Each once."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def flushed(self) -> frozenset[int]:
        """Ports behind which stations may not be any more. Each once."""
        flushed, self._flushed = frozenset(self._flushed), set()
        return flushed

    def learning(self, number: int) -> bool:
        return self._tree.ports[number].learning

    def forwarding(self, number: int) -> bool:
        return self._tree.ports[number].forwarding

    @property
    def identifier(self) -> bytes:
        return self._tree.identifier

    @property
    def root(self) -> Priority:
        """Who is the root, and what it costs to get there."""
        return self._tree.root

    @property
    def root_port(self) -> int | None:
        """None while we are the root."""
        return None if self._tree.root_port is None else self._tree.root_port.number

    @property
    def topology_changes(self) -> int:
        """Ports that began to forward, and changes heard of."""
        return self._tree.changes

    @property
    def topology_changed_at(self) -> float | None:
        return self._tree.changed_at

    @property
    def settings(self) -> TreeSettings:
        return self._tree.settings

    def view(self, number: int) -> PortView:
        """A frozen copy."""
        port = self._tree.ports[number]
        state = "forwarding" if port.forwarding else "learning" if port.learning else "discarding"
        heard = port.priority if port.info is Info.RECEIVED else port.designated
        return PortView(
            port.role.value,
            state if port.enabled else "disabled",
            port.oper_edge,
            "rstp" if port.send_rstp else "stp",
            port.settings.cost,
            port.identifier,
            heard.root,
            heard.bridge,
            heard.port,
            heard.cost,
            port.guarded,
            port.received,
            port.sent,
        )
