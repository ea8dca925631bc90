"""One port of an aggregate: the receive, periodic, mux and transmit machines of 802.1AX-2008 clause 5.4, for one link.

    link up ─> EXPIRED ── 3 s of silence ─> DEFAULTED ── LACPDU ─> CURRENT ── 3 s or 90 s of silence ─> EXPIRED
    selected ─> WAITING (2 s) ─> ATTACHED ── partner in sync ─> COLLECTING ── partner collects ─> DISTRIBUTING

Control of collecting and distributing is independent. Who speaks first and how often is what both ends say: `State.ACTIVE`, `State.SHORT`.
A port without an LACP partner is in no aggregate: the default partner is nobody.
"""

from __future__ import annotations

import enum

import attrs

from resmgr.bucket import TokenBucket
from stack.wire.lacp import Lacpdu, PortInfo, State

FAST_PERIOD, SLOW_PERIOD = 1.0, 30.0
SHORT_TIMEOUT, LONG_TIMEOUT = 3.0, 90.0
WAIT = 2.0
"""A port that could join waits so long for others, so that an aggregate does not change with each of them; and as long again for others
that still wait, not longer: one that begins to wait again and again, by a forger's will, must not keep the others out."""
TRANSMIT_MAX = 3
"""LACPDUs per fast period."""
RECEIVE_RATE, RECEIVE_BURST = 10.0, 20.0
"""LACPDUs that are looked at per second and port, of the partner, and as many of whoever says to be another one: a partner sends three at
most. More are dropped (`lacp_flood`)."""
QUIET = 1.0
"""So long after the last one was dropped, the partner is told what we believe: what it said meanwhile may have been among them."""
NOBODY = PortInfo(0, bytes(6), 0, 0, 0, State(0))


class Receive(enum.Enum):
    DISABLED = "disabled"
    EXPIRED = "expired"
    DEFAULTED = "defaulted"
    CURRENT = "current"


class Mux(enum.Enum):
    DETACHED = "detached"
    WAITING = "waiting"
    ATTACHED = "attached"
    COLLECTING = "collecting"
    DISTRIBUTING = "distributing"


_MUX_STATE = {
    Mux.DETACHED: State(0),
    Mux.WAITING: State(0),
    Mux.ATTACHED: State.SYNC,
    Mux.COLLECTING: State.SYNC | State.COLLECTING,
    Mux.DISTRIBUTING: State.SYNC | State.COLLECTING | State.DISTRIBUTING,
}


@attrs.define(eq=False, repr=False)
class LacpPort:
    """`actor` and `partner` are the operational values of both ends. Times are absolute seconds; None: not running."""

    number: int
    actor: PortInfo
    partner: PortInfo = NOBODY
    enabled: bool = False
    receive: Receive = Receive.DISABLED
    mux: Mux = Mux.DETACHED
    selected: bool = False
    need_to_transmit: bool = False
    current_until: float | None = None
    wait_until: float | None = None
    periodic_at: float | None = None
    credit: TokenBucket = attrs.Factory(lambda: TokenBucket(TRANSMIT_MAX / FAST_PERIOD, TRANSMIT_MAX))
    limit: TokenBucket = attrs.Factory(lambda: TokenBucket(RECEIVE_RATE, RECEIVE_BURST))
    others: TokenBucket = attrs.Factory(lambda: TokenBucket(RECEIVE_RATE, RECEIVE_BURST))
    """Of those who are not the partner just now: as long as two say that they are, both are heard, and neither is believed for long."""
    ask_at: float | None = None
    markers: TokenBucket = attrs.Factory(lambda: TokenBucket(RECEIVE_RATE, RECEIVE_BURST))
    received: int = 0
    sent: int = 0

    # What happens to it

    def set_enabled(self, enabled: bool, now: float) -> None:
        """The link came or went."""
        if enabled == self.enabled:
            return
        self.enabled = enabled
        if enabled:
            self.partner = NOBODY
            self._expire(now)
        else:
            self.receive = Receive.DISABLED
            self.current_until = self.periodic_at = self.ask_at = None
            self._set_partner_state(self.partner.state & ~State.SYNC)

    def _expire(self, now: float) -> None:
        self.receive = Receive.EXPIRED
        self._set_partner_state(self.partner.state & ~State.SYNC | State.SHORT)
        self._set_actor(State.EXPIRED, True)
        self.current_until = now + SHORT_TIMEOUT

    def takes(self, pdu: Lacpdu, now: float) -> bool:
        """Whether it is looked at."""
        if (self.limit if pdu.actor.same_port(self.partner) else self.others).take(now):
            return True
        self.ask_at = now + QUIET
        return False

    def heard(self, pdu: Lacpdu, now: float) -> None:
        """A LACPDU of the partner. Who is wrong about us is told at once: besides what the standard compares, about our collecting, which
        it would else learn in 30 s; and one who was the partner until now, that we have another."""
        self.received += 1
        mine, theirs = self.actor, pdu.actor
        if not theirs.same_port(self.partner):
            self.selected = False
            self.need_to_transmit = True
        compared = State.ACTIVE | State.SHORT | State.SYNC | State.AGGREGATION | State.COLLECTING
        if not (pdu.partner.same_port(mine) and pdu.partner.state & compared == mine.state & compared):
            self.need_to_transmit = True
        alive = State.ACTIVE in theirs.state or (State.ACTIVE in mine.state and State.ACTIVE in pdu.partner.state)
        agreed = pdu.partner.same_port(mine) or State.AGGREGATION not in theirs.state
        sync = State.SYNC if agreed and alive and State.SYNC in theirs.state else State(0)
        self.partner = attrs.evolve(theirs, state=theirs.state & ~State.SYNC | sync)
        self.receive = Receive.CURRENT
        self._set_actor(State.EXPIRED | State.DEFAULTED, False)
        self.current_until = now + (SHORT_TIMEOUT if State.SHORT in mine.state else LONG_TIMEOUT)

    def time(self, now: float) -> None:
        """What is due by the clock."""
        if self.current_until is not None and self.current_until <= now:
            if self.receive is Receive.CURRENT:
                self._expire(now)
            else:
                self.receive = Receive.DEFAULTED
                self.current_until = None
                self.selected = False
                self.partner = NOBODY
                self._set_actor(State.EXPIRED, False)
                self._set_actor(State.DEFAULTED, True)
        if self.ask_at is not None and self.ask_at <= now:
            self.ask_at = None
            self.need_to_transmit = True
        self._periodic(now)

    def _periodic(self, now: float) -> None:
        if not self.enabled or State.ACTIVE not in self.actor.state | self.partner.state:
            self.periodic_at = None
            return
        period = FAST_PERIOD if State.SHORT in self.partner.state else SLOW_PERIOD
        if self.periodic_at is None:
            self.periodic_at = now + period
            self.need_to_transmit = True
        elif self.periodic_at <= now:
            self.need_to_transmit = True
            self.periodic_at = now + period
        elif self.periodic_at > now + period:
            # The partner wants to hear faster than before.
            self.need_to_transmit = True
            self.periodic_at = now + period

    def step_mux(self, now: float, ready: bool) -> bool:
        """One transition of the mux machine, if one is due. *ready*: all who wait have waited long enough, or this one twice that."""
        before = self.mux
        if not self.selected or not self.enabled:
            self.mux = Mux.DETACHED
            self.wait_until = None
        elif self.mux is Mux.DETACHED:
            self.mux = Mux.WAITING
            self.wait_until = now + WAIT
        elif self.mux is Mux.WAITING:
            if ready:
                self.mux = Mux.ATTACHED
                self.wait_until = None
        elif State.SYNC not in self.partner.state:
            self.mux = Mux.ATTACHED
        elif self.mux is Mux.ATTACHED or State.COLLECTING not in self.partner.state:
            self.mux = Mux.COLLECTING
        else:
            self.mux = Mux.DISTRIBUTING
        if self.mux is before:
            return False
        kept = self.actor.state & ~(State.SYNC | State.COLLECTING | State.DISTRIBUTING)
        if _MUX_STATE[self.mux] != _MUX_STATE[before]:
            self.need_to_transmit = True
        self.actor = attrs.evolve(self.actor, state=kept | _MUX_STATE[self.mux])
        return True

    def waited(self, now: float, seconds: float = WAIT) -> bool:
        """Whether it waits, and has for so long."""
        return self.wait_until is not None and self.wait_until - WAIT + seconds <= now

    def transmit(self, now: float) -> bytes | None:
        """The LACPDU that is due, as it lies behind the Ethernet header."""
        speaking = State.ACTIVE in self.actor.state | self.partner.state
        if not self.need_to_transmit or not self.enabled or not speaking or not self.credit.take(now):
            return None
        self.need_to_transmit = False
        self.sent += 1
        return Lacpdu(self.actor, self.partner).pack()

    def timeouts(self) -> list[float]:
        """When something is due."""
        due = [when for when in (self.current_until, self.wait_until, self.periodic_at, self.ask_at) if when is not None]
        if self.wait_until is not None:
            due.append(self.wait_until + WAIT)
        if self.need_to_transmit and self.enabled and State.ACTIVE in self.actor.state | self.partner.state:
            due.append(self.credit.ready_at())
        return due

    def _set_actor(self, flags: State, on: bool) -> None:
        state = self.actor.state | flags if on else self.actor.state & ~flags
        self.actor = attrs.evolve(self.actor, state=state)

    def _set_partner_state(self, state: State) -> None:
        self.partner = attrs.evolve(self.partner, state=state)
