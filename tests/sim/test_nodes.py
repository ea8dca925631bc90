"""Whole nodes over many seeds: each seed is a scenario (docs/howto/simulate.md), and the same seed is the same run, turn by turn.

SEEDS=N in the environment runs N seeds instead of 1000; SEED=K runs that one, as a failure's message says.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from itertools import zip_longest

import attrs
import pytest

from qnetpy.link import wire
from qnetpy.link.constants import MAC_SIZE
from qnetpy.link.cookie import ClusterMac
from qnetpy.link.testing import NonceReused
from qnetpy.testing import bounds, campaign
from qnetpy.testing.plan import KINDS
from qnetpy.testing.scenario import Outcome, Scenario, ScenarioFailed, run
from qnetpy.testing.world import World
from stack.drivers.hub import HubPort
from stack.wire.ethernet import HEADER_SIZE

pytestmark = pytest.mark.sim
SEEDS = int(os.environ.get("SEEDS", "1000"))
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


TRACES = """
from qnetpy.testing.plan import KINDS
from qnetpy.testing.scenario import run
for seed in range(len(KINDS)):
    print(*run(seed, trace=True).trace or (), sep="\\n", end="\\0")
"""


@pytest.fixture(scope="module")
def elsewhere() -> list[list[str]]:
    """The traces of a seed of each kind, from two processes: one is as these tests are, which may be compiled, one Python source always."""
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen([sys.executable, "-c", TRACES], env={**os.environ, **environment}, stdout=subprocess.PIPE))
            for environment in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2", "QNETPY_COMPILED": "off"})
        ]
        told = [process.communicate()[0].decode().split("\0")[:-1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return told


@pytest.mark.host
@pytest.mark.parametrize("seed", range(len(KINDS)), ids=lambda seed: KINDS[seed])
def test_the_trace_depends_neither_on_hashes_nor_on_compiled_modules(seed: int, elsewhere: list[list[str]]) -> None:
    first, second = (traces[seed] for traces in elsewhere)
    assert len(first) > 10_000
    assert first == second


@pytest.mark.mistakes
def test_a_wrong_result_fails_and_says_how_to_see_it_again() -> None:
    scenario = Scenario(0)
    scenario.world.at(scenario.world.now + 1.0, lambda: scenario.ledger.pulses.update({1: 2}))
    scenario.world.at(scenario.world.now + 1.0, lambda: scenario.ledger.executed.update(dict.fromkeys(range(2000), 1)))
    with pytest.raises(ScenarioFailed, match=r"(?s)seed 0 .*carried out twice.*python -m qnetpy\.testing\.scenario 0 --trace"):
        scenario.run()


def test_what_fails_is_run_again_and_the_end_of_its_trace_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "TIMERS_PER_LINK", -1)
    told = r"timers=\d+, more than -\d+.*replay: .*the end of its trace:.* lan n\d .*DATA [0-9a-f]{8}"
    with pytest.raises(ScenarioFailed, match=f"(?s){told}"):
        run(0)


class Later(dict[tuple[str, int], int]):
    """As if a later pulse had come on every connection."""

    def get(self, key: object, default: object = None) -> int:
        return 10**9


@pytest.mark.mistakes
def test_pulses_out_of_order_are_noticed() -> None:
    scenario = Scenario(0)

    def spoil() -> None:
        for server in scenario.servers.values():
            server.last_pulse = Later()

    scenario.world.at(scenario.world.now + 0.1, spoil)
    with pytest.raises(ScenarioFailed, match=r"pulse \d+ of a connection from n\d came behind"):
        scenario.run()


def test_an_ephemeral_key_that_comes_with_another_message_is_noticed() -> None:
    """As from a copy of a machine whose kernel was not told, and so draws the same random numbers."""
    world = World(1)
    sent: list[bytes] = []
    spread = world.hub.spread

    def tap(sender: HubPort, frames: list[bytes]) -> None:
        sent.extend(frames)
        spread(sender, frames)

    world.hub.spread = tap  # type: ignore[method-assign]  # a tap on the cable
    for name in ("a", "b"):
        world.start(name)
    assert world.until(world.settled)
    first = next(frame for frame in sent if frame[HEADER_SIZE] == wire.INITIATION)
    port = world.hub.ports[0]
    world.hub.seen(port, [first])
    frame, _, macs = wire.parse_handshake(first[HEADER_SIZE:])
    other = attrs.evolve(frame, body=frame.body[:-1] + bytes((frame.body[-1] ^ 1,))).pack()
    damaged = first[:HEADER_SIZE] + other + macs
    world.hub.seen(port, [damaged])
    forged = first[:HEADER_SIZE] + other + ClusterMac(world.authority.secret).make(other) + macs[MAC_SIZE:]
    with pytest.raises(NonceReused, match="two INITIATIONs"):
        world.hub.seen(port, [forged])


def test_a_range_of_seeds_is_divided_and_summed_up(capfd: pytest.CaptureFixture[str]) -> None:
    assert campaign.main(["0-2", "--jobs", "2"]) == 0
    output, errors = capfd.readouterr()
    assert "failed: none" in output
    assert "'ok'" in output
    assert "3 of 3 seeds" in errors
    with pytest.raises(SystemExit):
        campaign.main(["7"])


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
    # And a look at the clocks each second.
    assert world.dispatch.turns - turns < 3600 / 0.3 * 6 + 3600 * 2


def test_ten_idle_nodes_send_two_frames_each_heartbeat_and_pair() -> None:
    world = World(2)
    for number in range(10):
        world.start(f"n{number}")
    assert world.until(world.settled)
    world.run(5.0)
    frames = world.hub.frames
    world.run(30.0)
    assert world.hub.frames - frames < 45 * 30 / 0.3 * 2 * 1.1
