"""Whole nodes over many seeds: each seed is a scenario (docs/howto/simulate.md), and the same seed is the same run, turn by turn.

SEEDS=N in the environment runs N seeds instead of 500; SEED=K runs that one, as a failure's message says.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import zip_longest

import pytest

from qnetpy.testing.plan import KINDS
from qnetpy.testing.scenario import Outcome, Scenario, ScenarioFailed, run
from qnetpy.testing.world import World

pytestmark = pytest.mark.sim
SEEDS = int(os.environ.get("SEEDS", "500"))
ONE = os.environ.get("SEED")
GROUP = 5 * len(KINDS)


@pytest.mark.parametrize("first", [int(ONE)] if ONE else range(0, SEEDS, GROUP), ids=lambda first: f"seeds-{first}")
def test_everything_is_right_again_after_trouble(first: int) -> None:
    results: Counter[str] = Counter()
    seeds = [first] if ONE else range(first, min(first + GROUP, SEEDS))
    for seed in seeds:
        results += run(seed).results
    if len(seeds) == GROUP:
        # The scenarios must make trouble, or they show nothing.
        assert min(results[name] for name in ("ok", "job ok", "EDOM", "EINTR", "EHOSTDOWN", "EBADF")) > 0, results


def differences(one: Outcome, two: Outcome) -> list[tuple[str | None, str | None]]:
    assert one.trace is not None
    assert two.trace is not None
    assert len(one.trace) > 100
    return [pair for pair in zip_longest(one.trace, two.trace) if pair[0] != pair[1]][:3]


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=lambda kind: KINDS[kind])
def test_the_same_seed_gives_the_same_trace(kind: int) -> None:
    assert differences(run(kind, trace=True), run(kind, trace=True)) == []


def test_another_seed_gives_another_trace() -> None:
    assert differences(run(0, trace=True), run(len(KINDS), trace=True))


@pytest.mark.host
@pytest.mark.parametrize("seed", range(len(KINDS)), ids=lambda seed: KINDS[seed])
def test_the_trace_depends_neither_on_hashes_nor_on_compiled_modules(seed: int) -> None:
    """The first is run as these tests are, which may be compiled; the second is Python source always."""
    traces = [
        subprocess.run(
            [sys.executable, "-m", "qnetpy.testing.scenario", str(seed), "--trace"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for environment in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2", "QNETPY_COMPILED": "off"})
    ]
    assert len(traces[0]) > 10_000
    assert traces[0] == traces[1]


def test_a_wrong_result_fails_and_says_how_to_see_it_again() -> None:
    scenario = Scenario(0)
    scenario.world.at(scenario.world.now + 1.0, lambda: scenario.ledger.pulses.update({1: 2}))
    scenario.world.at(scenario.world.now + 1.0, lambda: scenario.ledger.executed.update(dict.fromkeys(range(2000), 1)))
    with pytest.raises(ScenarioFailed, match=r"(?s)seed 0 .*carried out twice.*python -m qnetpy\.testing\.scenario 0 --trace"):
        scenario.run()


def test_an_idle_hour_costs_what_its_heartbeats_cost() -> None:
    world = World(1)
    for name in ("a", "b"):
        world.start(name)
    assert world.until(world.settled)
    world.run(10.0)
    turns, frames = world.dispatch.turns, world.hub.frames
    world.run(3600.0)
    assert world.settled()
    assert all(other.starts == 1 for node in world.live for other in node.qnet.nodes)
    assert world.hub.frames - frames < 3600 / 0.3 * 2 * 1.05
    assert world.dispatch.turns - turns < 3600 / 0.3 * 6


def test_ten_idle_nodes_send_two_frames_each_heartbeat_and_pair() -> None:
    world = World(2)
    for number in range(10):
        world.start(f"n{number}")
    assert world.until(world.settled)
    world.run(5.0)
    frames = world.hub.frames
    world.run(30.0)
    assert world.hub.frames - frames < 45 * 30 / 0.3 * 2 * 1.1
