"""Forged LACPDUs against an aggregate that has a true partner: docs/stack/layer2.md says what they get.

The forger sits on the cable of one port, between both ends, or has a cable of his own. Nothing in LACP proves who speaks; what is held is
that he reaches the port of his cable and no other, and that this one is back when he is silent.
"""

from __future__ import annotations

import random

import attrs
import pytest

from stack.core.ifnet import Interface, InterfaceEvent
from stack.l2.lacp.port import WAIT
from stack.testing.driver import frame
from stack.testing.machines import Machine, World
from stack.wire.ethernet import HEADER_SIZE
from stack.wire.lacp import Lacpdu, PortInfo, State, is_slow, pack_slow, parse_slow
from tests.stack.l2.test_lacp import FAST, Systems

READY = State.ACTIVE | State.SHORT | State.AGGREGATION | State.SYNC | State.COLLECTING | State.DISTRIBUTING
FLOWS = 16


@attrs.define
class Town:
    """*ours* and *peer* share cables 0 and 1; *bad* hears and speaks on cable 1 (`en0`), and has cable 2 to *ours* alone (`en1`)."""

    world: World
    ours: Machine
    peer: Machine
    bad: Machine
    heard: list[bytes]
    """On cable 1, since the beginning."""
    downs: list[str]

    @property
    def carrying(self) -> list[str]:
        return sorted(str(row["interface"]) for row in rows(self.ours) if row["mux"] == "distributing")

    def pdus(self, machine: Machine, interface: str) -> list[Lacpdu]:
        """What *machine* has said on cable 1 with that interface, in order."""
        said = [parse_slow(one[HEADER_SIZE:]) for one in self.heard if is_slow(one) and one[6:12] == machine.macs[interface]]
        return [one for one in said if isinstance(one, Lacpdu)]

    def say(self, interface: str, *pdus: Lacpdu) -> None:
        source = self.bad.macs[interface]
        self.bad.stack.output(self.bad.interface(interface), [pack_slow(source, pdu.pack()) for pdu in pdus])

    def talk(self) -> int:
        """Frames of FLOWS flows to the peer: how many arrive."""
        to, before = self.peer.interface("agr0").mac, len(self.peer.seen)
        sent = [frame(to, bytes((2, 7, 0, 0, 0, number)), b"hello") for number in range(FLOWS)]
        self.ours.stack.output(self.ours.interface("agr0"), list(sent))
        self.world.dispatch.run_for(0.01)
        return len(self.peer.seen) - before


def rows(machine: Machine) -> list[dict[str, object]]:
    found = machine.facts("agr0")["ports"]
    assert isinstance(found, list)
    return found


def town(timeout: str = "fast", extra: bool = False) -> Town:
    world = World(3)
    ours, peer, bad = world.machine("ours", 0, 1, 2), world.machine("peer", 0, 1), world.machine("bad", 1, 2)
    heard, downs = bad.tap("en0"), []
    for name in ("en0", "en1"):
        bad.stack.promiscuous(bad.interface(name), "ears")

    def event(what: InterfaceEvent, interface: Interface) -> None:
        if interface.name == "agr0" and what is InterfaceEvent.DOWN:
            downs.append(what.value)

    third = ",agrport=en2" if extra else ""
    ours.stack.load("agr", f"agrport=en0,agrport=en1{third},timeout={timeout}")
    peer.stack.load("agr", f"agrport=en0,agrport=en1,timeout={timeout}")
    ours.stack.on_interface(event)
    made = Town(world, ours, peer, bad, heard, downs)
    world.dispatch.run_for(40)
    assert made.carrying == ["en0", "en1"]
    assert made.talk() == FLOWS
    return made


def actor(found: Town, kind: str) -> PortInfo:
    """Who the forger says that he is."""
    true = found.pdus(found.peer, "en1")[-1].actor
    own = found.pdus(found.ours, "en1")[-1].actor
    return {
        "ourselves": own,
        "our other port": attrs.evolve(own, port=own.port - 1),
        "a stranger": PortInfo(1, bytes.fromhex("02bad0000001"), 1, 1, 1, READY),
        "the partner, on another port": attrs.evolve(true, port=99),
        "the partner, out of step": attrs.evolve(true, state=true.state & ~(State.SYNC | State.COLLECTING | State.DISTRIBUTING)),
        "the partner, not collecting": attrs.evolve(true, state=true.state & ~(State.COLLECTING | State.DISTRIBUTING)),
        "the partner, alone": attrs.evolve(true, state=true.state & ~State.AGGREGATION),
        "nobody": PortInfo(0, bytes(6), 0, 0, 0, State(0)),
    }[kind]


def attack(found: Town, pdus: list[Lacpdu], seconds: float = 6.0, every: float = 0.1, losses: int = 0) -> None:
    """Say them by turns; meanwhile the other port carries all, and what is sent has a bound. *losses*: flows that may be lost at a time."""
    before = len(found.pdus(found.ours, "en1"))
    for number in range(int(seconds / every)):
        found.say("en0", pdus[number % len(pdus)])
        found.world.dispatch.run_for(every - 0.01)
        assert "en0" in found.carrying
        assert found.talk() in (FLOWS, FLOWS - losses)
    assert found.downs == [], "the aggregate as a whole never went"
    assert len(found.pdus(found.ours, "en1")) - before <= 3 * seconds + 3


def recovered(found: Town, seconds: float) -> None:
    found.world.dispatch.run_for(seconds)
    assert found.carrying == ["en0", "en1"]
    assert found.talk() == FLOWS


KINDS = (
    "ourselves",
    "our other port",
    "a stranger",
    "the partner, on another port",
    "the partner, out of step",
    "the partner, not collecting",
    "the partner, alone",
    "nobody",
)


@pytest.mark.parametrize("timeout", ["fast", "slow"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_forger_between_both_ends_takes_out_that_port_and_while_he_speaks(kind: str, timeout: str) -> None:
    found = town(timeout)
    told = found.pdus(found.ours, "en1")[-1].actor
    forged = Lacpdu(actor(found, kind), told)
    found.say("en0", forged)
    found.world.dispatch.run_for(0.001)
    assert found.carrying in (["en0"], ["en0", "en1"])
    recovered(found, WAIT + 1)
    # The peer hears it too. What is from ourselves takes its port out, of which we hear up to a third of a second later.
    attack(found, [forged], losses=FLOWS // 2 if kind == "ourselves" else 0)
    recovered(found, WAIT + 2)


@pytest.mark.parametrize("timeout", ["fast", "slow"])
def test_what_the_partner_said_long_ago_is_undone_by_what_it_says_at_once(timeout: str) -> None:
    """It hears from us that we have it wrong, and answers, though it would be silent for 30 s."""
    found = town(timeout)
    first = found.pdus(found.peer, "en1")[0]
    assert State.SYNC not in first.actor.state
    found.say("en0", first)
    recovered(found, 1.0)
    attack(found, found.pdus(found.peer, "en1")[:6])
    recovered(found, WAIT + 2)


@pytest.mark.parametrize("kind", ["the partner, on another port", "the partner, out of step"])
def test_a_forger_who_speaks_all_the_time_does_not_keep_the_partner_from_being_heard(kind: str) -> None:
    """At 50/s, with what we are when we believe him, so that we have nothing to say; the partner speaks every 30 s unless it hears that we
    have it wrong."""
    found = town("slow")
    own = found.pdus(found.ours, "en1")[-1].actor
    forged = Lacpdu(actor(found, kind), attrs.evolve(own, state=own.state & ~(State.COLLECTING | State.DISTRIBUTING)))
    attack(found, [forged], seconds=5.0, every=0.02)
    drops = found.ours.facts("agr0")["drops"]
    assert isinstance(drops, dict)
    assert drops["lacp_flood"] > 100
    recovered(found, WAIT + 2)


def test_replayed_on_another_cable_they_are_nobodys() -> None:
    """They name another port of ours, so nobody agrees with us on that cable."""
    found = town(extra=True)
    replayed = found.pdus(found.peer, "en1")[-3:]
    for number in range(100):
        found.say("en1", replayed[number % len(replayed)])
        found.world.dispatch.run_for(0.1)
        assert found.carrying == ["en0", "en1"]


def test_who_has_a_cable_and_the_partners_name_is_a_port_of_the_partner() -> None:
    """LACP proves nothing. He gets the flows of one port, and loses nobody else's."""
    found = town(extra=True)
    taken = found.bad.tap("en1")
    forged = attrs.evolve(found.pdus(found.peer, "en1")[-1].actor, port=9)
    for _ in range(50):
        said = [parse_slow(one[HEADER_SIZE:]) for one in taken if is_slow(one)]
        mine = said[-1].actor if said and isinstance(said[-1], Lacpdu) else PortInfo(0, bytes(6), 0, 0, 0, State(0))
        found.say("en1", Lacpdu(forged, mine))
        found.world.dispatch.run_for(0.1)
    assert found.carrying == ["en0", "en1", "en2"]
    before = len(taken)
    arrived = found.talk()
    assert arrived + len([one for one in taken[before:] if not is_slow(one)]) == FLOWS
    assert 0 < arrived < FLOWS
    found.world.dispatch.run_for(4)
    assert found.carrying == ["en0", "en1"]
    assert found.talk() == FLOWS


def test_a_flood_is_cut_and_stays_on_its_port() -> None:
    found = town()
    dice, told = random.Random(1), found.pdus(found.ours, "en1")[-1].actor
    before = len(found.pdus(found.ours, "en1"))
    for _ in range(50):
        infos = [PortInfo(1, b"\2\xba" + dice.randbytes(4), dice.randrange(9), 1, dice.randrange(9), READY) for _ in range(100)]
        found.say("en0", *(Lacpdu(info, told) for info in infos))
        found.world.dispatch.run_for(0.09)
        assert "en0" in found.carrying
        assert found.talk() == FLOWS
    drops = found.ours.facts("agr0")["drops"]
    assert isinstance(drops, dict)
    assert drops["lacp_flood"] > 4800
    assert len(found.pdus(found.ours, "en1")) - before <= 18
    assert found.downs == []
    recovered(found, WAIT + 2)


def test_who_begins_anew_all_the_time_keeps_no_other_port_out() -> None:
    """Ports that come at about the same time wait for each other. Two of a forger, each time with another partner, are never done."""
    world = Systems([FAST, FAST])
    ours, theirs = world.systems
    for _ in range(2):
        world.join(0, 1)
    for number in (3, 4):
        ours.add(number, 0x8000, True, world.now)
    world.run_for(10)
    assert ours.distributing() == [1, 2]
    true = theirs.ports[1].actor
    for turn in range(120):
        forged = attrs.evolve(true, port=100 + turn)
        ours.receive(3 + turn % 2, Lacpdu(forged, forged), world.now)
        world.run_for(0.5)
        if turn == 60:
            for on in (False, True):
                ours.set_enabled(1, on, world.now)
            assert ours.distributing() == [2]
        assert turn < 70 or ours.distributing() == [1, 2], "it waits twice as long for them, and no longer"
