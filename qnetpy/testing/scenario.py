"""Scenarios drawn from a seed: some nodes, some work, and what goes wrong meanwhile; afterwards everything must be right again.

    python -m qnetpy.testing.scenario 1234           # run that seed and say what happened
    python -m qnetpy.testing.scenario 1234 --trace   # and print its trace: two runs of one seed print the same

The kind of a scenario is the seed modulo the number of kinds; all else is drawn. Phases: trouble (the plan below runs), healing (all cables
good, whoever is off stays off), a second round of work that nothing may disturb, silence. docs/howto/simulate.md lists what is checked.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs

from qnetpy.testing.plan import Plan, Step
from qnetpy.testing.workload import Client, FileJob
from qnetpy.testing.world import SimNode

CONVERGE = 12.0
"""Seconds after healing within which all nodes must see each other: a call repeats once a second, and begins again after 5."""
IDLE_TURNS = 60.0
IDLE_FRAMES = 20.0
"""Per second, pair of nodes and cable, at most, when nothing happens. A PING and its ACK each heartbeat are 7 frames a second."""


@attrs.define
class Outcome:
    """What a run came to, when nothing was wrong."""

    seed: int
    kind: str
    plan: list[str]
    results: Counter[str]
    converged: float
    """Seconds from healing until all nodes saw each other."""
    seconds: float
    """Virtual."""
    frames: int
    turns: int
    trace: list[str] | None


class ScenarioFailed(AssertionError):
    """With everything that is needed to see why."""


class _Errors(logging.Handler):
    """Exceptions that a stack survives and logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []
        self._formatter = logging.Formatter("%(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self._formatter.format(record))


class Scenario(Plan):
    """One seed. `run` returns an `Outcome` or raises `ScenarioFailed`."""

    def run(self) -> Outcome:
        """All phases."""
        errors = _Errors()
        logger = logging.getLogger()
        logger.addHandler(errors)
        try:
            with self._telling(errors):
                return self._run()
        finally:
            logger.removeHandler(errors)

    @contextmanager
    def _telling(self, errors: _Errors) -> Iterator[None]:
        """Whatever goes wrong is told with the plan and the way to see it again."""
        try:
            yield
            if self.ledger.wrongs or errors.seen:
                raise ScenarioFailed("; ".join(self.ledger.wrongs[:5] + errors.seen[:2]))
        except Exception as error:
            first = self.ledger.wrongs[:3] + errors.seen[:2]
            text = "\n".join(
                (
                    f"seed {self.seed} ({self.kind}, {self.count} nodes, cable {self.faults or 'good'}): {error}",
                    f"failed at {self.world.now:.6f}",
                    *first,
                    *self.plan,
                    f"replay: python -m qnetpy.testing.scenario {self.seed} --trace",
                )
            )
            raise ScenarioFailed(text) from error

    @property
    def plan(self) -> list[str]:
        """What happens when, for people."""
        return [f"  {1000.0 + step.at:.6f} {step.what}" for step in self.steps if step.what]

    def _run(self) -> Outcome:
        world = self.world
        begin = world.now
        self.ledger.undisturbed = False
        if self.kind == "clean":
            world.at(begin + 0.2, self._calm)
        elif self.sound:
            world.at(begin + 4.0, self._calm)
        for step in self.steps:
            world.at(begin + step.at, self._doing(step))
        world.run(self.end)
        self._check_wrongs()
        self._heal()
        healed = world.now
        if not world.until(world.settled, CONVERGE):
            raise ScenarioFailed(f"the nodes do not see each other {CONVERGE} s after healing: {self._states()}")
        converged = world.now - healed
        # What went on before may still end by the old trouble's consequences; new work may not.
        world.run(4.5)
        if not world.settled():
            raise ScenarioFailed(f"the nodes lost each other again on good cables: {self._states()}")
        self._second_round()
        self._quiet()
        return Outcome(
            self.seed,
            self.kind,
            self.plan,
            self.ledger.results,
            converged,
            world.now - begin,
            sum(hub.frames for hub in world.hubs.values()),
            world.dispatch.turns,
            world.dispatch.trace,
        )

    def _doing(self, step: Step) -> Callable[[], None]:
        def do() -> None:
            if step.what:
                self.world.dispatch.note(f"! {step.what}")
            step.call()

        return do

    def _calm(self) -> None:
        self.ledger.undisturbed = True

    def _check_wrongs(self) -> None:
        if self.ledger.wrongs:
            raise ScenarioFailed(self.ledger.wrongs[0])

    def _states(self) -> str:
        return "; ".join(
            f"{node.name} knows " + ", ".join(f"{other.name}={other.state.value}({other.reason})" for other in node.qnet.nodes)
            for node in self.world.live
        )

    def _heal(self) -> None:
        self.world.dispatch.note("! heal")
        if len(self.world.live) < 2:
            for name in self.names:
                self._start(name)
        for node in self.world.live:
            self._broken(node.name)
            for interface, link in node.links.items():
                if interface not in node.cables or node.cables[interface].mac != self.world.mac(node.name, link):
                    node.exchange(interface, self.world.mac(node.name, link))
            node.set_fault("")
            for cable in node.cables.values():
                cable.cut = False
                cable.set_carrier(True)

    def _second_round(self) -> None:
        """New work on good cables, between nodes that see each other: all of it succeeds."""
        world = self.world
        self._calm()
        for client in self.clients:
            if not client.node.dead:
                for op in client.mine:
                    client.unblock(op)
        if not world.until(lambda: not self._unfinished(), 5.0):
            raise ScenarioFailed(f"still pending on good cables: {self._unfinished()}")
        for client in self.clients:
            client.close()
        before = Counter(self.ledger.results)
        live = world.live
        clients = [Client(a, b.name, self.ledger, self.chance) for a in live for b in live if a is not b]
        self.clients += clients
        pulses = self.ledger.pulses_sent, self.ledger.pulses.total()
        ops = [client.send(mode) for client in clients for mode in (0, 1, 2, 4)]
        for client in clients:
            client.pulse()
            FileJob(client.node, client.to, self.ledger, random.Random(self.chance.getrandbits(64))).start()
        done = world.until(lambda: bool(self.ledger.wrongs) or not self._unfinished(), 20.0)
        self._check_wrongs()
        if not done:
            raise ScenarioFailed(f"new work does not end on good cables: {self._unfinished()}")
        self._check_wrongs()
        if any(op is None for op in ops):
            raise ScenarioFailed("a node that is up is not known")
        world.run(0.1)
        sent, came = self.ledger.pulses_sent - pulses[0], self.ledger.pulses.total() - pulses[1]
        if sent != came:
            raise ScenarioFailed(f"{sent} pulses were sent on good cables and {came} came")
        after = self.ledger.results - before
        if set(after) - {"ok", "EDOM", "job ok"}:
            raise ScenarioFailed(f"failures on good cables: {dict(after)}")
        for client in self.clients:
            client.close()

    def _unfinished(self) -> list[str]:
        return [
            f"op {op.number} {op.client.name}>{op.to} mode {op.mode} {op.size}/{op.reply_size} since {op.began:.3f}"
            for op in self.ledger.open.values()
            if not op.client.dead
        ] + [f"job {job.number} {job.node.name}>{job.to}" for job in self.ledger.jobs.values() if not job.node.dead]

    # Silence

    def _quiet(self) -> None:
        """With nothing to do, nothing is kept and hardly anything happens."""
        world = self.world
        world.run(3.0)
        left: list[str] = []
        for _ in range(3):  # a renewal of keys may be under way at any one moment
            left = [text for node in world.live for text in self._left_on(node)]
            if not left:
                break
            world.run(0.25)
        if left:
            raise ScenarioFailed("; ".join(left))
        turns, frames = world.dispatch.turns, sum(hub.frames for hub in world.hubs.values())
        world.run(5.0)
        live = len(world.live)
        pairs = (live * (live - 1) / 2 + live * (self.count - live)) * len(world.hubs)
        turn_rate = (world.dispatch.turns - turns) / 5 / pairs
        frame_rate = (sum(hub.frames for hub in world.hubs.values()) - frames) / 5 / pairs
        if turn_rate > IDLE_TURNS or frame_rate > IDLE_FRAMES:
            raise ScenarioFailed(f"{turn_rate:.0f} turns and {frame_rate:.0f} frames a second and pair while nothing happens")
        self._check_wrongs()

    def _left_on(self, node: SimNode) -> Iterator[str]:
        """What a node that has nothing to do should not have."""
        others = {other.name for other in self.world.live if other is not node}
        sizes = node.qnet.sizes()
        wanted = {"links": len(others), "peers": len(others)}
        for name, size in sizes.items():
            if name in ("hints", "calls", "sessions", "half_open", "timers", "paths"):
                continue
            if size != wanted.get(name, 0):
                yield f"{node.name} has {name}={size}, not {wanted.get(name, 0)}"
        if sizes["sessions"] > 2 * len(others):
            yield f"{node.name} has {sizes['sessions']} sessions for {len(others)} nodes"
        there = {cable.mac for other in self.world.live for cable in other.cables.values()}
        for link in node.qnet.machine.links.values():
            used = [path.address[0] for number, path in link.paths.items() if link.transport.usable(number)]
            if sorted(used) != sorted(node.cables):
                yield f"{node.name} reaches {link.name} over {used}"
            # A card that is there no more may be tried now and then: its node could not say so.
            if any(path.address[1] in there for number, path in link.paths.items() if not link.transport.usable(number)):
                yield f"{node.name} does not use a path to {link.name}"
        if sizes["calls"] > (self.count - 1 - len(others)) * len(node.cables):
            yield f"{node.name} makes {sizes['calls']} calls"
        if len(node.files.manager.table.handles):
            yield f"{node.name} has {len(node.files.manager.table.handles)} open handles"
        if len(node.files.manager.table.clients):
            yield f"{node.name} has {len(node.files.manager.table.clients)} file clients"
        if failures := dict(node.stack.statistics().failures):
            yield f"{node.name}: exceptions in {failures}"
        if protocol_errors := node.qnet.machine.counters["protocol_errors"]:
            yield f"{node.name}: a node broke the protocol {protocol_errors} times"
        if dropped := node.qnet.dropped():
            yield f"{node.name}: messages dropped: {dropped}"
        if node.qnet.counters:
            yield f"{node.name}: {dict(node.qnet.counters)}"


def run(seed: int, *, trace: bool = False) -> Outcome:
    """Run one seed."""
    return Scenario(seed, trace=trace).run()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m qnetpy.testing.scenario", description="Run one simulated scenario.")
    parser.add_argument("seed", type=int)
    parser.add_argument("--trace", action="store_true", help="print every turn, frame batch and result")
    arguments = parser.parse_args(argv)
    scenario = Scenario(arguments.seed, trace=arguments.trace)
    try:
        outcome = scenario.run()
    except ScenarioFailed as error:
        for line in scenario.world.dispatch.trace or ():
            print(line)
        print(error, file=sys.stderr)
        return 1
    for line in outcome.trace or outcome.plan:
        print(line)
    print(
        f"seed {outcome.seed} ({outcome.kind}): {dict(sorted(outcome.results.items()))}, {outcome.seconds:.1f} s, {outcome.frames} frames, "
        f"{outcome.turns} turns, settled {outcome.converged:.2f} s after healing"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
