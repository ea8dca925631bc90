"""One aggregate: its ports, and which of them are one link (802.1AX-2008 clause 5.4.14, selection). A pure machine: `now` is an argument.

Ports whose partners are the same system and say the same key can be one link. Where there are several such groups (cables went to the
wrong switch), the aggregate keeps to the one it is with, or takes the largest; the other ports wait. A port whose partner cannot be one of
several is alone. What says that it is from ourselves is not looked at, so a cable from one of our ports to another has no partner.
"""

from __future__ import annotations

import attrs

from resmgr.errors import Misuse
from stack.core.statistics import Counters
from stack.l2.lacp.port import WAIT, LacpPort, Mux, Receive
from stack.wire.lacp import Lacpdu, PortInfo, SlowPdu, State

PORTS_MAX = 16
STEPS_MAX = 100
Group = tuple[int, bytes, int, int]
"""Partner's system and key, and its port where it is alone."""


@attrs.frozen
class LacpSettings:
    """`fast`: the partner shall speak every second, not every thirty. `active`: we speak first."""

    active: bool = True
    fast: bool = False
    system_priority: int = attrs.field(default=0x8000, validator=[attrs.validators.ge(0), attrs.validators.le(0xFFFF)])
    key: int = attrs.field(default=1, validator=[attrs.validators.ge(1), attrs.validators.le(0xFFFF)])


class Aggregator:
    """See the head of this file. *system* is the aggregate's MAC address."""

    def __init__(self, system: bytes, settings: LacpSettings) -> None:
        self.system = system
        self.settings = settings
        self.ports: dict[int, LacpPort] = {}
        self.drops = Counters()
        self._now = 0.0
        self._group: Group | None = None
        self._outgoing: list[tuple[int, bytes]] = []

    def add(self, number: int, priority: int, enabled: bool, now: float) -> None:
        """A port. Misuse when there are PORTS_MAX, or it is one already."""
        if number in self.ports or len(self.ports) >= PORTS_MAX or not 1 <= number <= 0xFFFF:
            raise Misuse(f"there can be no port {number}")
        self.ports[number] = LacpPort(number, self._info(number, priority))
        self.set_enabled(number, enabled, now)

    def _info(self, number: int, priority: int) -> PortInfo:
        settings = self.settings
        state = (
            State.AGGREGATION
            | State.DEFAULTED
            | (State.ACTIVE if settings.active else State(0))
            | (State.SHORT if settings.fast else State(0))
        )
        return PortInfo(settings.system_priority, self.system, settings.key, priority, number, state)

    def remove(self, number: int, now: float) -> None:
        """It says goodbye: the partner need not wait until it has heard nothing for long."""
        port = self.ports[number]
        port.selected = False
        port.step_mux(now, False)
        goodbye = port.transmit(now)
        if goodbye is not None:
            self._outgoing.append((number, goodbye))
        del self.ports[number]
        self._run(now)

    def set_enabled(self, number: int, enabled: bool, now: float) -> None:
        self.ports[number].set_enabled(enabled, now)
        self._run(now)

    def set_priority(self, number: int, priority: int, now: float) -> None:
        port = self.ports[number]
        port.actor = attrs.evolve(port.actor, port_priority=priority)
        port.need_to_transmit = True
        self._run(now)

    def configure(self, settings: LacpSettings, now: float) -> None:
        """Other settings, which all partners are told."""
        self.settings = settings
        for port in self.ports.values():
            fresh = self._info(port.number, port.actor.port_priority)
            kept = port.actor.state & ~(State.ACTIVE | State.SHORT)
            port.actor = attrs.evolve(fresh, state=kept | fresh.state & (State.ACTIVE | State.SHORT))
            port.need_to_transmit = True
        self._run(now)

    def receive(self, number: int, pdu: SlowPdu, now: float) -> None:
        """A PDU came in on a port."""
        port = self.ports[number]
        if not port.enabled:
            self.drops.count("lacp_disabled")
        elif isinstance(pdu, Lacpdu):
            if pdu.actor.system_id == (self.settings.system_priority, self.system):
                # Reflected, of another port of ours, or forged. It says nothing of a partner: where there is none, there will be none.
                self.drops.count("lacp_own")
                return
            if not port.takes(pdu, now):
                self.drops.count("lacp_flood")
                return
            port.heard(pdu, now)
            self._run(now)
        elif pdu.response:
            self.drops.count("marker_response")
        elif port.markers.take(now):
            self._outgoing.append((number, attrs.evolve(pdu, response=True).pack()))
        else:
            self.drops.count("marker_flood")

    def handle_timeout(self, now: float) -> None:
        self._run(now)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` has something to do. What is over and waits for other ports is not waited for."""
        due = [when for port in self.ports.values() for when in port.timeouts() if when > self._now]
        return min(due, default=None)

    def transmit(self) -> list[tuple[int, bytes]]:
        """PDUs to send, by port, as they lie behind the Ethernet header. Each once."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def collects(self, number: int) -> bool:
        """What comes in on this port is the aggregate's."""
        return self.ports[number].mux in (Mux.COLLECTING, Mux.DISTRIBUTING)

    def distributing(self) -> list[int]:
        """The ports that the aggregate sends through, in order of number."""
        return sorted(port.number for port in self.ports.values() if port.mux is Mux.DISTRIBUTING)

    @property
    def partner(self) -> PortInfo | None:
        """Of the group that was chosen."""
        return next((port.partner for port in self.ports.values() if port.selected), None)

    # Selection

    def _run(self, now: float) -> None:
        self._now = now
        for port in self.ports.values():
            port.time(now)
        self._select()
        for _ in range(STEPS_MAX):
            waiting = [port for port in self.ports.values() if port.mux is Mux.WAITING]
            ready = all(port.waited(now) for port in waiting)
            changed = [port for port in self.ports.values() if port.step_mux(now, ready or port.waited(now, 2 * WAIT))]
            if not changed:
                break
        else:
            raise AssertionError("the aggregate does not settle")
        for port in self.ports.values():
            pdu = port.transmit(now)
            if pdu is not None:
                self._outgoing.append((port.number, pdu))

    def _group_of(self, port: LacpPort) -> Group | None:
        """Which link the port could be part of; None: of none just now."""
        partner = port.partner
        if not port.enabled or port.receive in (Receive.DISABLED, Receive.DEFAULTED) or partner.system == bytes(6):
            return None
        alone = 0 if State.AGGREGATION in partner.state else 1 + partner.port
        return (*partner.system_id, partner.key, alone)

    def _select(self) -> None:
        groups: dict[Group, list[LacpPort]] = {}
        for port in self.ports.values():
            group = self._group_of(port)
            if group is not None:
                groups.setdefault(group, []).append(port)
        if self._group not in groups:
            # The largest; between equals the one with the port of the best priority.
            best = sorted(groups, key=lambda one: (-len(groups[one]), min((port.actor.port_priority, port.number) for port in groups[one])))
            self._group = best[0] if best else None
        for port in self.ports.values():
            group = self._group_of(port)
            chosen = group is not None and group == self._group
            if chosen and not port.selected and port.mux is not Mux.DETACHED:
                # It has another partner than a moment ago: it leaves before it joins, or begins to wait, again.
                port.step_mux(0.0, False)
            port.selected = chosen
