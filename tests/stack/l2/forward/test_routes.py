"""The table of routed flows, without an engine: bounds, room, and forgetting, with times as arguments."""

from __future__ import annotations

import pytest

from resmgr.errors import Misuse
from stack.core.ifnet import Interface
from stack.l2.engine import FLOW_SECONDS, FLOWS_DEFAULT, FLOWS_MAX, RoutedFlow
from stack.l2.forward.routes import REAP_SECONDS, Route, Routes
from stack.testing.machines import World


class Engine:
    """What a carrier would count, and what it was told to drop."""

    def __init__(self, limit: int = FLOWS_DEFAULT) -> None:
        machine = World(3).machine("a", 0, 1, 2)
        self.ports: list[Interface] = [machine.interface(f"en{number}") for number in range(3)]
        self.used: dict[bytes, float] = {}
        self.dropped: list[int] = []
        self.routes = Routes(self.look, lambda route: self.dropped.append(number_of(route)), limit)

    def look(self, route: Route) -> None:
        route.used = max(route.used, self.used.get(route.flow.source, 0.0))

    def add(self, number: int, now: float, output: int = 1) -> bool:
        flow = RoutedFlow(self.ports[0], number.to_bytes(4, "big"), bytes((10, 9, 1, 1)), self.ports[output], b"\2\0\0\0\0\1")
        return self.routes.add(flow, now) is not None

    def carried(self, number: int, now: float) -> None:
        self.used[number.to_bytes(4, "big")] = now


def number_of(route: Route) -> int:
    return int.from_bytes(route.flow.source, "big")


def test_a_full_table_refuses_until_one_was_silent_for_a_second() -> None:
    engine = Engine()
    assert [engine.add(number, 10.0) for number in range(300)] == [True] * 256 + [False] * 44
    assert (len(engine.routes.known), engine.routes.refused, engine.dropped) == (256, 44, [])
    for number in range(256):
        if number != 77:
            engine.carried(number, 11.0)
    assert engine.add(1000, 10.0 + REAP_SECONDS), "the most silent one makes room"
    assert engine.dropped == [77]
    assert not engine.add(1001, 10.5 + REAP_SECONDS), "looked for once a second"
    assert not engine.add(1001, 10.0 + 1.9 * REAP_SECONDS)
    assert engine.add(1001, 10.0 + 2 * REAP_SECONDS)
    assert len(engine.routes.known) == 256


def test_nobody_gives_way_while_all_speak() -> None:
    engine = Engine(4)
    for number in range(4):
        engine.add(number, 0.0)
    for now in range(1, 20):
        for number in range(4):
            engine.carried(number, now - 0.5)
        assert not engine.add(99, float(now))
    assert sorted(map(number_of, engine.routes.known.values())) == [0, 1, 2, 3]
    assert engine.add(2, 30.0), "one that is known needs no room"


def test_a_silent_flow_is_forgotten_and_one_that_speaks_is_not() -> None:
    engine = Engine()
    engine.add(1, 0.0)
    engine.add(2, 0.0)
    engine.carried(2, 3.0)
    engine.routes.expire(FLOW_SECONDS - 0.01, FLOW_SECONDS)
    assert engine.dropped == []
    engine.routes.expire(FLOW_SECONDS, FLOW_SECONDS)
    assert engine.dropped == [1]
    engine.routes.expire(3.0 + FLOW_SECONDS, FLOW_SECONDS)
    assert engine.dropped == [1, 2]
    assert not engine.routes.known


def test_an_interface_that_changes_takes_what_comes_in_or_leaves_there() -> None:
    engine = Engine()
    engine.add(1, 0.0, output=1)
    engine.add(2, 0.0, output=2)
    engine.routes.remove_of(engine.ports[1])
    assert engine.dropped == [1]
    engine.routes.remove_of(engine.ports[0])
    assert engine.dropped == [1, 2]


def test_bounds() -> None:
    for limit in (0, FLOWS_MAX + 1):
        with pytest.raises(Misuse, match="at most"):
            Engine(limit)
