"""VirtualDispatch: same seed, same trace; the dispatch contract in virtual time; several nodes; power off."""

from __future__ import annotations

import time
from functools import partial

import pytest

from resmgr.dispatch import Dispatch
from resmgr.errors import Misuse
from resmgr.testing.virtual import START, VirtualDispatch
from resmgr.turns import ROUNDS_MAX


def busy_cluster(seed: int) -> list[str]:
    world = VirtualDispatch(seed, trace=True)
    nodes = [world.node(f"n{number}") for number in range(4)]
    random = world.random("load")

    def work(hops: int) -> None:
        world.note(f"work {hops}")
        if hops:
            other = random.choice(nodes)
            other.call_at(world.now() + random.choice((0.0, 0.5)), lambda: work(hops - 1))

    for node in nodes:
        node.call_soon(lambda: work(20))
    world.run_for(100)
    assert world.trace is not None
    return world.trace


def test_one_seed_one_trace_and_seeds_differ() -> None:
    assert busy_cluster(7) == busy_cluster(7)
    assert len({tuple(busy_cluster(seed)) for seed in range(5)}) == 5


def test_is_a_dispatch_and_time_jumps() -> None:
    world = VirtualDispatch(1)
    checked: Dispatch = world
    view: Dispatch = world.node("n")
    seen: list[float] = []
    view.call_at(START + 1000, lambda: seen.append(checked.now()))
    began = time.monotonic()
    world.run_until(START + 2000.0)
    assert seen == [START + 1000]
    assert world.now() == START + 2000
    assert world.wall() - 2000 > 1e9
    assert time.monotonic() - began < 1


def test_order_inside_a_turn_is_the_real_ones() -> None:
    world = VirtualDispatch(1)
    seen: list[str] = []

    def timer() -> None:
        seen.append("timer")
        world.at_turn_end(lambda: seen.append("end"))
        world.call_soon(lambda: seen.append("soon"))
        world.call_at(world.now(), lambda: seen.append("next turn"))

    world.call_at(START, timer)
    world.call_at(START, lambda: seen.append("timer 2"))
    world.call_at(START, lambda: seen.append("cancelled")).cancel()
    world.run_for(0.0)
    assert seen == ["timer", "timer 2", "soon", "end", "next turn"]


def test_run_until_predicate() -> None:
    world = VirtualDispatch(1)
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        world.call_at(world.now() + 1, tick)

    tick()
    assert world.run_until(lambda: count == 5)
    assert world.now() == START + 4
    assert not world.run_until(lambda: count == 100, limit=10)
    assert world.run_until(lambda: count > 1)


def test_blocking_runs_inline_and_reports_in_a_later_turn() -> None:
    world = VirtualDispatch(1)
    seen: list[object] = []

    def start() -> None:
        world.call_blocking(lambda: 1 // 0, seen.append)
        world.call_blocking(lambda: "done", seen.append)
        seen.append("started")

    world.call_soon(start)
    world.run_for(0)
    assert seen[0] == "started"
    assert isinstance(seen[1], ZeroDivisionError)
    assert seen[2] == "done"


def test_order_between_nodes_is_seeded_and_within_a_node_fixed() -> None:
    orders: set[str] = set()
    for seed in range(20):
        world = VirtualDispatch(seed)
        seen: list[str] = []
        for name in "abc":
            node = world.node(name)
            for number in (1, 2):
                node.call_at(START + 1, partial(seen.append, f"{name}{number}"))
        world.run_for(2)
        order = "".join(seen)
        assert all(f"{name}1{name}2" in order for name in "abc")
        orders.add(order)
    assert len(orders) > 3


def test_a_stopped_node_runs_nothing_more_and_accepts_calls() -> None:
    world = VirtualDispatch(1)
    node = world.node("n")
    seen: list[str] = []
    node.call_at(START + 1, lambda: seen.append("before"))
    node.call_at(START + 3, lambda: seen.append("after"))
    world.call_at(START + 2, node.stop)
    world.run_for(2.5)
    node.call_soon(lambda: seen.append("soon"))
    node.at_turn_end(lambda: seen.append("end"))
    node.call_at(START + 3, lambda: seen.append("timer")).cancel()
    node.call_blocking(lambda: 1, lambda result: seen.append("blocking"))
    world.run_for(10)
    assert seen == ["before"]


def test_what_does_not_exist_here_is_said() -> None:
    world = VirtualDispatch(1)
    with pytest.raises(Misuse):
        world.attach_fd(0, lambda: None)
    with pytest.raises(Misuse):
        world.want_write(0, None)
    with pytest.raises(Misuse):
        world.start_task(lambda: None)  # type: ignore[arg-type,return-value]  # a wrong call on purpose
    world.detach_fd(0)


def test_a_circle_is_found() -> None:
    world = VirtualDispatch(1)

    def again() -> None:
        world.call_at(world.now(), again)

    again()
    with pytest.raises(RuntimeError, match="stands still"):
        world.run_for(1)


def test_skewed_wall_clock() -> None:
    world = VirtualDispatch(1)
    assert world.node("n", skew=86400.0).wall() - world.wall() == 86400.0


@pytest.mark.parametrize("rate", [0.9, 1.0003, 1.1])
def test_a_clock_that_runs_at_its_own_rate_is_never_early(rate: float) -> None:
    world = VirtualDispatch(1)
    view, good = world.node("n", rate=rate), world.node("good")
    chance = world.random("times")
    seen: list[tuple[float, float]] = []
    for when in [START + chance.random() * 100 for _ in range(200)]:
        view.call_at(when, partial(lambda when: seen.append((when, view.now())), when))
    world.run_for(10.0)
    assert all(due <= now < due + 1e-9 for due, now in seen)
    assert view.now() - START == pytest.approx(10.0 * rate)
    assert good.now() - START == 10.0
    assert view.wall() - good.wall() == pytest.approx(10.0 * (rate - 1), abs=1e-5)
    world.run_for(110.0)
    assert len(seen) == 200
    view.skew += 86400.0
    assert view.wall() - good.wall() == pytest.approx(120.0 * (rate - 1) + 86400.0, abs=1e-5)


def test_an_endless_chain_of_soon_calls_leaves_the_turn_its_end() -> None:
    world = VirtualDispatch(1)
    seen: list[int] = []
    steps = 0

    def again() -> None:
        nonlocal steps
        steps += 1
        if not seen:
            world.call_soon(again)

    world.call_soon(again)
    world.at_turn_end(lambda: seen.append(steps))
    world.run_until(lambda: bool(seen) or steps > 1000)
    assert seen == [ROUNDS_MAX]
