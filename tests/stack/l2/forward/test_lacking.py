"""Who waits for a place in an engine, and who gives his up."""

from __future__ import annotations

import random

import pytest

from stack.l2.forward import lacking
from stack.l2.forward.fastpath import FastPath
from stack.l2.forward.lacking import CANDIDATES_MAX, OFFER_SECONDS, OFFERS_MAX, Lacking, silent_one
from stack.testing.machines import World


def named(number: int) -> bytes:
    return number.to_bytes(6, "big")


def test_the_first_in_line_has_its_turn() -> None:
    line: Lacking[str] = Lacking()
    for number in range(OFFERS_MAX + 10):
        line.put(named(number), "ab"[number % 2])
    assert line.next_ones()[0] == (named(0), "a")
    assert len(line.next_ones()) == OFFERS_MAX
    line.put(named(0), "b")
    assert line.next_ones()[0] == (named(1), "b")
    assert named(0) in line.of("b")
    line.remove(named(1))
    line.remove(named(1))
    assert len(line) == OFFERS_MAX + 9


def test_the_line_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lacking, "WAITING_MAX", 3)
    line: Lacking[str] = Lacking()
    for number in range(5):
        line.put(named(number), "a")
    assert line.of("a") == [named(2), named(3), named(4)]


def test_who_speaks_keeps_its_place() -> None:
    stations = dict.fromkeys(map(named, range(20)))
    assert silent_one(stations, lambda station: 0.0) is None
    assert next(iter(stations)) == named(CANDIDATES_MAX), "they are looked at again when the others have been"
    quiet = {named(CANDIDATES_MAX + 2): OFFER_SECONDS, named(1): None}
    assert silent_one(stations, lambda station: quiet.get(station, OFFER_SECONDS / 2)) == named(CANDIDATES_MAX + 2)
    assert silent_one({}, lambda station: None) is None


def test_all_that_speak_have_a_place_in_the_end() -> None:
    """100 places, 300 stations of which 80 speak."""
    dice = random.Random(3)
    every = [named(number) for number in range(300)]
    speaking = set(dice.sample(every, 80))
    places, line = dict.fromkeys(every[:100]), Lacking[str]()
    for station in every[100:]:
        line.put(station, "a")
    for _ in range(40):
        for station, port in line.next_ones():
            line.remove(station)
            victim = silent_one(places, lambda one: 0.0 if one in speaking else None)
            if victim is None:
                line.put(station, port)
            else:
                del places[victim]
                line.put(victim, port)
                places[station] = None
        if speaking <= set(places):
            break
    assert speaking <= set(places)


def test_a_port_that_floods_takes_its_share_and_then_from_itself() -> None:
    machine = World(3).machine("bridge", 0, 1, 2)
    engine = FastPath(machine.stack, "none", {}, stations=90)
    uplink, host, bad = (machine.interface(f"en{number}") for number in range(3))
    for port in (uplink, host, bad):
        engine.add(port)
    for number in range(88):
        engine.learned(named(number), uplink)
    engine.learned(named(0x100), host)
    for number in range(1000):
        engine.learned(named(0x1000 + number), bad)
    assert engine.statistics().stations == 90
    engine.flush(bad)
    assert engine.statistics().stations == 90 - 15
    engine.flush(host)
    assert engine.statistics().stations == 90 - 16
    engine.close()
