"""Link aggregation in virtual time: two systems, their cables, and what becomes of a port."""

from __future__ import annotations

import random

import attrs
import pytest

from resmgr.errors import Misuse
from stack.l2.lacp.machine import PORTS_MAX, Aggregator, LacpSettings
from stack.wire.lacp import Lacpdu, Marker, PortInfo, State, parse_slow

FAST = LacpSettings(fast=True)


@attrs.define(eq=False)
class Wire:
    """A cable between port *number* of both systems."""

    a: tuple[int, int]
    b: tuple[int, int]
    deaf: bool = False
    """Nothing arrives, and nobody notices: a converter in between."""


class Systems:
    def __init__(self, settings: list[LacpSettings], seed: int = 0) -> None:
        self.now = 1000.0
        self.random = random.Random(seed)
        self.loss = 0.0
        self.systems = [Aggregator(bytes((2, 0, 0, 0, 0, number + 1)), one) for number, one in enumerate(settings)]
        self.wires: list[Wire] = []
        self.pdus = 0

    def join(self, one: int, other: int) -> Wire:
        ends = []
        for system in (one, other):
            number = len(self.systems[system].ports) + 1
            self.systems[system].add(number, 0x8000, True, self.now)
            ends.append((system, number))
        wire = Wire(ends[0], ends[1])
        self.wires.append(wire)
        self.carry()
        return wire

    def carry(self) -> None:
        while True:
            out = [(number, port, pdu) for number, system in enumerate(self.systems) for port, pdu in system.transmit()]
            if not out:
                return
            for number, port, pdu in out:
                self.pdus += 1
                for wire in self.wires:
                    if (number, port) in (wire.a, wire.b) and not wire.deaf and self.random.random() >= self.loss:
                        there, to = wire.b if (number, port) == wire.a else wire.a
                        parsed = parse_slow(pdu)
                        assert parsed is not None
                        if to in self.systems[there].ports:
                            self.systems[there].receive(to, parsed, self.now)

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            self.carry()
            when = min((one for system in self.systems if (one := system.next_timeout()) is not None), default=float("inf"))
            if when > end:
                break
            assert when >= self.now
            self.now = when
            for system in self.systems:
                system.handle_timeout(self.now)
        self.now = end

    def both(self) -> list[list[int]]:
        return [system.distributing() for system in self.systems]


def test_two_cables_become_one_link() -> None:
    world = Systems([FAST, FAST])
    world.join(0, 1)
    world.join(0, 1)
    assert world.both() == [[], []]
    world.run_for(2.5)
    assert world.both() == [[1, 2], [1, 2]]
    partner = world.systems[0].partner
    assert partner is not None
    assert partner.system == world.systems[1].system


def test_the_passive_end_follows_and_two_of_them_stay_silent() -> None:
    world = Systems([FAST, LacpSettings(active=False)])
    world.join(0, 1)
    world.run_for(5)
    assert world.both() == [[1], [1]]
    silent = Systems([LacpSettings(active=False)] * 2)
    silent.join(0, 1)
    silent.run_for(200)
    assert silent.both() == [[], []]
    assert silent.pdus == 0


def test_a_port_whose_link_goes_is_left_at_once() -> None:
    world = Systems([FAST, FAST])
    world.join(0, 1)
    world.join(0, 1)
    world.run_for(10)
    world.systems[0].set_enabled(1, False, world.now)
    assert world.systems[0].distributing() == [2]
    world.systems[0].set_enabled(1, True, world.now)
    world.run_for(5)
    assert world.both() == [[1, 2], [1, 2]]


def test_silence_is_noticed_by_the_timeout_that_was_asked_for() -> None:
    for settings, seconds in ((FAST, 3.0), (LacpSettings(), 90.0)):
        world = Systems([settings, settings])
        world.join(0, 1)
        wire = world.join(0, 1)
        world.run_for(100)
        wire.deaf = True
        world.run_for(seconds * 0.6)
        assert world.both() == [[1, 2], [1, 2]]
        world.run_for(seconds * 0.5)
        assert world.both() == [[1], [1]]
        wire.deaf = False
        world.run_for(65)
        assert world.both() == [[1, 2], [1, 2]]


def test_few_pdus_are_sent() -> None:
    world = Systems([LacpSettings(), LacpSettings()])
    world.join(0, 1)
    world.run_for(100)
    world.pdus = 0
    world.run_for(300)
    assert world.pdus == 20
    fast = Systems([FAST, FAST])
    fast.join(0, 1)
    fast.run_for(100)
    fast.pdus = 0
    fast.run_for(100)
    assert 190 <= fast.pdus <= 202


def test_cables_to_two_systems_are_not_one_link() -> None:
    world = Systems([FAST, FAST, FAST])
    world.join(0, 1)
    world.join(0, 2)
    world.join(0, 2)
    world.run_for(10)
    chosen = world.systems[0].distributing()
    assert chosen in ([1], [2, 3])
    world.run_for(100)
    assert world.systems[0].distributing() == chosen
    for number in chosen:
        world.systems[0].set_enabled(number, False, world.now)
    world.run_for(10)
    assert world.systems[0].distributing() == ([2, 3] if chosen == [1] else [1])


def test_a_cable_to_oneself_is_no_link() -> None:
    world = Systems([FAST])
    world.join(0, 0)
    world.run_for(30)
    assert world.both() == [[]]


def test_keys_separate() -> None:
    world = Systems([FAST, FAST])
    world.join(0, 1)
    world.join(0, 1)
    system = world.systems[1]
    system.ports[2].actor = attrs.evolve(system.ports[2].actor, key=9)
    world.run_for(10)
    assert len(world.systems[0].distributing()) == 1


def test_other_settings_are_told() -> None:
    world = Systems([LacpSettings(), LacpSettings()])
    world.join(0, 1)
    world.run_for(40)
    world.systems[0].configure(FAST, world.now)
    world.run_for(31)
    world.pdus = 0
    world.run_for(30)
    assert 30 <= world.pdus <= 34


def test_a_port_that_is_removed_says_goodbye() -> None:
    world = Systems([LacpSettings(), LacpSettings()])
    world.join(0, 1)
    world.join(0, 1)
    world.run_for(100)
    world.systems[0].remove(2, world.now)
    world.carry()
    assert world.both() == [[1], [1]]


def test_lost_pdus_are_made_good() -> None:
    for seed in range(20):
        world = Systems([FAST, FAST], seed)
        world.loss = 0.3
        world.join(0, 1)
        world.join(0, 1)
        world.run_for(60)
        world.loss = 0.0
        world.run_for(10)
        assert world.both() == [[1, 2], [1, 2]], seed


def test_markers_are_answered_within_bounds() -> None:
    world = Systems([FAST, FAST])
    world.join(0, 1)
    world.systems[0].receive(1, Marker(7, bytes(6), 42), world.now)
    assert [parse_slow(pdu) for _, pdu in world.systems[0].transmit()] == [Marker(7, bytes(6), 42, response=True)]
    for _ in range(100):
        world.systems[0].receive(1, Marker(7, bytes(6), 42), world.now)
    assert len(world.systems[0].transmit()) == 19
    assert world.systems[0].drops == {"marker_flood": 81}


def test_a_flood_of_pdus_is_bounded() -> None:
    world = Systems([FAST, FAST])
    world.join(0, 1)
    for number in range(1000):
        info = PortInfo(1, bytes((2, 1, 1, 1, number >> 8, number & 0xFF)), 1, 1, 1, State.ACTIVE | State.AGGREGATION | State.SYNC)
        world.systems[0].receive(1, Lacpdu(info, info), world.now)
    assert world.systems[0].drops["lacp_flood"] > 900
    assert len(world.systems[0].transmit()) <= 3


def test_ports_have_a_bound() -> None:
    system = Aggregator(bytes(6), FAST)
    for number in range(1, PORTS_MAX + 1):
        system.add(number, 0, True, 0.0)
    with pytest.raises(Misuse):
        system.add(PORTS_MAX + 1, 0, True, 0.0)
