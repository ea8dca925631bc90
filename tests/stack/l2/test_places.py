"""Who keeps his place in a full table of stations, against somebody who makes sources up: at once, with patience, from two ports."""

from __future__ import annotations

import itertools

import pytest

from stack.l2.places import PROVED_SECONDS, UNPROVED_SECONDS, share
from stack.l2.stations import Stations

MAXIMUM, UPLINK, HOST, BAD, BAD_TOO = 100, 1, 2, 3, 4


def named(kind: int, number: int) -> bytes:
    return bytes((2, kind)) + number.to_bytes(4, "big")


class Table:
    """A table, 90 stations of a busy uplink that spoke once each, and one station on a port of its own."""

    def __init__(self) -> None:
        self.elsewhere: dict[bytes, float] = {}
        self.stations = Stations(MAXIMUM, idle=self.elsewhere.get)
        self.numbers = itertools.count()

    def arrive(self, now: float) -> None:
        for number in range(90):
            self.stations.learn(named(UPLINK, number), UPLINK, now)
        self.stations.learn(named(HOST, 0), HOST, now)

    def flood(self, port: int, start: float, seconds: float, rate: int = 2000) -> None:
        for step in range(int(seconds * rate)):
            self.stations.learn(named(0x80 + port, next(self.numbers)), port, start + step / rate)

    def of(self, port: int) -> int:
        return sum(entry.port == port for _, entry in self.stations)


@pytest.fixture
def table() -> Table:
    return Table()


def test_sources_made_up_at_once_take_a_share(table: Table) -> None:
    table.arrive(0.0)
    table.flood(BAD, 1.0, 3.0)
    assert table.of(BAD) == share(MAXIMUM, 3) == 16
    assert table.of(HOST) == 1
    assert table.of(UPLINK) == MAXIMUM - 1 - 16


def test_two_ports_have_two_smaller_ones(table: Table) -> None:
    table.arrive(0.0)
    for second in range(1, 4):
        table.flood(BAD, second, 0.5)
        table.flood(BAD_TOO, second + 0.5, 0.5)
    assert table.of(BAD) + table.of(BAD_TOO) <= MAXIMUM / 2
    assert table.of(UPLINK) == MAXIMUM - 1 - table.of(BAD) - table.of(BAD_TOO) >= 70


def test_who_keeps_his_made_up_ones_up_has_no_more(table: Table) -> None:
    """They are proved like true ones, and for each other besides, from port to port; the others speak but seldom."""
    table.arrive(0.0)
    for second in range(1, 600):
        for port, number in itertools.product((BAD, BAD_TOO), range(60)):
            table.stations.learn(named(0x80 + port, number), port, second + number / 100)
            entry = table.stations.known.get(named(0x80 + port, number))
            if entry is not None:
                table.stations.prove(named(0x80 + port, number), entry)
        if second % 50 == 0:
            table.arrive(second + 0.9)
    assert table.of(BAD) + table.of(BAD_TOO) <= MAXIMUM / 2
    assert table.of(UPLINK) >= MAXIMUM / 2 - 1


def test_who_was_first_shuts_nobody_out(table: Table) -> None:
    table.flood(BAD, 0.0, 2.0)
    for number in range(90):
        table.stations.learn(named(BAD, number), BAD, 3.0)
    table.arrive(3.0)
    assert table.of(HOST) == 1
    assert table.of(UPLINK) >= 49, "what he does not keep up is for others"


def test_sources_that_are_kept_up_before_others_come_leave_them_their_shares(table: Table) -> None:
    for second, number in itertools.product(range(5), range(MAXIMUM)):
        table.stations.learn(named(0x80, number), BAD, second + number / 1000)
    table.arrive(6.0)
    assert (table.of(HOST), table.of(UPLINK)) == (1, share(MAXIMUM, 2))


def test_made_up_ones_that_fell_silent_are_for_others(table: Table) -> None:
    table.stations.maximum = 90
    for number in range(90):
        table.stations.learn(named(0x80, number), BAD, 0.0)
    for number in range(90):
        table.stations.learn(named(UPLINK, number), UPLINK, UNPROVED_SECONDS + 1)
    assert table.of(UPLINK) == 45


def test_a_true_station_beside_the_flood_stays(table: Table) -> None:
    true = named(BAD, 0)
    table.stations.learn(true, BAD, 0.0)
    table.stations.learn(true, BAD, 2.0)
    table.arrive(3.0)
    table.flood(BAD, 4.0, 2.0)
    assert true in table.stations.known
    table.flood(BAD, 2.0 + PROVED_SECONDS, 2.0)
    assert true not in table.stations.known, "unless it was silent for long"


def test_what_an_engine_carries_is_not_silent(table: Table) -> None:
    """The bridge has not heard the station for ten minutes; the engine has, just now."""
    for number in range(MAXIMUM):
        table.stations.learn(named(UPLINK, number), UPLINK, number / 1000)
    busy = named(UPLINK, 0)
    table.elsewhere[busy] = 0.5
    for number in range(20):
        table.stations.learn(named(0x80, number), UPLINK, 600.0 + number)
    assert busy in table.stations.known
    assert table.stations.silent(busy, table.stations.known[busy], 700.0) == 0.5
    assert len(table.stations) == MAXIMUM


def test_lower_bounds_hold_at_once(table: Table) -> None:
    table.arrive(0.0)
    table.stations.add_static(named(UPLINK, 500), UPLINK, 0.0)
    gone = table.stations.trim(1.0, UPLINK, 60)
    assert len(gone) == 30
    assert gone[0] == named(UPLINK, 0)
    table.stations.maximum = 10
    assert len(table.stations.trim(1.0)) == 51
    assert (table.of(UPLINK), table.of(HOST)) == (10, 1)
    assert table.stations.trim(1.0) == []
