"""What up nodes tell each other: the bytes, and what is kept and told of it."""

from __future__ import annotations

import random

import pytest

from qnetpy.reach.gossip import AGE_MAX, ENTRIES_MAX, NODES_MAX, PER_NODE_MAX, GossipTable, Told, pack, parse
from resmgr.errors import BadMessage
from resmgr.testing.formats import refuses_cuts, survives_changes
from stack.wire.endpoint import Endpoint

FOUR, SIX = Endpoint("10.0.0.1", 34997), Endpoint("2001:db8::1", 1)


def test_bytes() -> None:
    data = pack([Told("n1", FOUR, 7), Told("a", SIX, 0)])
    assert data == bytes.fromhex("01000002000788b5040a000001026e31000000010620010db8" + "00" * 11 + "010161")
    assert parse(data) == [Told("n1", FOUR, 7), Told("a", SIX, 0)]
    assert parse(pack([])) == []


def test_round_trip() -> None:
    rng = random.Random(5)
    for _ in range(200):
        entries = [
            Told(f"n{rng.randrange(1000)}", Endpoint(f"10.{rng.randrange(256)}.0.1", rng.randrange(1, 65536)), rng.randrange(65536))
            for _ in range(rng.randrange(20))
        ]
        assert parse(pack(entries)) == entries


def test_cut_and_changed_bytes_are_bad_messages_or_entries() -> None:
    data = pack([Told("n1", FOUR, 7), Told("abc", SIX, 0)])
    refuses_cuts(parse, data)
    with pytest.raises(BadMessage):
        parse(data + b"\0")
    for found in survives_changes(parse, data, seed=6, times=3000):
        assert all(one.endpoint.is_routable() for one in found)


@pytest.mark.parametrize(
    "where",
    [
        Endpoint("127.0.0.1", 9),
        Endpoint("fe80::1", 9, 1),
        Endpoint("224.0.0.1", 9),
        Endpoint("255.255.255.255", 9),
        Endpoint("10.0.0.1", 0),
    ],
)
def test_endpoints_that_mean_nothing_elsewhere_are_neither_told_nor_believed(where: Endpoint) -> None:
    with pytest.raises(BadMessage):
        parse(pack([Told("n1", where, 0)]))
    assert not GossipTable().saw("n1", where, 0.0)


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "x" * 64])
def test_names_are_names(name: str) -> None:
    with pytest.raises(BadMessage):
        parse(pack([Told(name, FOUR, 0)]))


def test_more_entries_than_the_cap() -> None:
    assert len(parse(pack([Told("n", FOUR, 0)] * ENTRIES_MAX))) == ENTRIES_MAX
    with pytest.raises(BadMessage):
        parse(pack([Told("n", FOUR, 0)] * (ENTRIES_MAX + 1)))


def test_what_is_told() -> None:
    table = GossipTable()
    assert table.saw("a", FOUR, 100.0)
    assert not table.saw("a", FOUR, 110.0)
    assert table.saw("b", SIX, 105.0)
    assert table.told(120.0) == [Told("a", FOUR, 10), Told("b", SIX, 15)]
    assert table.told(120.0, without="a") == [Told("b", SIX, 15)]
    assert table.told(120.0, only=["a", "x"]) == [Told("a", FOUR, 10)]
    table.refresh("b", 900.0)
    assert table.told(110.0 + AGE_MAX + 1) == [Told("b", SIX, 111)]
    table.expire(110.0 + AGE_MAX + 1)
    assert len(table) == 1


def test_caps() -> None:
    table = GossipTable()
    for number in range(PER_NODE_MAX + 3):
        table.saw("a", Endpoint("10.0.0.1", 1000 + number), float(number))
    assert [one.endpoint.port for one in table.told(20.0)] == [1000 + number for number in range(PER_NODE_MAX + 2, 2, -1)]
    for number in range(NODES_MAX + 10):
        table.saw(f"n{number}", FOUR, 30.0)
    assert len(table) == NODES_MAX
    assert len(table.told(30.0)) <= ENTRIES_MAX - PER_NODE_MAX
