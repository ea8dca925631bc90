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
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from qnetpy.discovery.solicitor import BEAT, JITTER
from qnetpy.link.calls import RETRY_REFUSED
from qnetpy.testing.bounds import SESSIONS_PER_LINK, excess
from qnetpy.testing.node import SimNode
from qnetpy.testing.plan import LONELY, SEVERAL, UNTROUBLED, Plan
from qnetpy.testing.trouble import SLACK
from qnetpy.testing.workload import HOLD, Client, FileJob

CONVERGE = 12.0
"""Seconds after healing within which all nodes must see each other: a call repeats once a second, and begins again after 5."""
LONELY_WAIT = BEAT * (1.0 + JITTER)
"""The same where nodes that never met may be silent so long."""
TOLD = "this node was revoked by"
"""What a node says when it hears that, and no exception."""
LOOK_EVERY = 0.5
"""Virtual seconds between looks at the sizes of all tables."""
LOOK_AT_NAMES = 0.1
"""The same, and at names, while programs attach some."""
NAMES_SAME = 2.0
"""Seconds after nodes see each other for good within which all list the same names."""
STALL = 1.5
"""Virtual seconds that an operation may take while one cable of several is good: silence is noticed within half a second, and an operation
may meet it several times."""
VARYING = ("hints", "calls", "half_open", "askers", "solicitations_seen")
"""Sizes that say whom a node heard of, not what it has to do."""
TAIL = 60
"""Lines of the trace, beside those of turns, that are told with a failure."""
ENDPOINTS = 8
"""Endpoints wanted per node that there is, at most: its own, those it had elsewhere, those of its router."""
IDLE = 3.0
"""Virtual seconds over which silence is measured."""
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
        text = self._formatter.format(record)
        if not text.startswith(TOLD):
            self.seen.append(text)


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
        if self.calm is not None:
            world.at(begin + self.calm, self._calm)
        world.at(begin + LOOK_EVERY, self._look)
        for step in self.steps:
            world.at(begin + step.at, self._doing(step.what, step.call))
        world.run(self.end)
        self._check_wrongs()
        self._heal()
        healed = world.now
        limit = CONVERGE + (RETRY_REFUSED if self.refusals else 0.0) + (LONELY_WAIT if self.kind in LONELY else 0.0)
        if not world.until(world.settled, limit):
            raise ScenarioFailed(f"the nodes do not see each other {limit} s after healing: {self._states()}")
        converged = world.now - healed
        # What went on before may still end by the old trouble's consequences; new work may not.
        world.run(world.settings.timers.down_after + SLACK)
        if not world.settled():
            raise ScenarioFailed(f"the nodes lost each other again on good cables: {self._states()}")
        if self.kind in UNTROUBLED:
            for node in world.live:
                self._check_nothing_lost(node)
        if self.calm is not None and self.ledger.pulses_sent != self.ledger.pulses.total():
            raise ScenarioFailed(f"of {self.ledger.pulses_sent} pulses {self.ledger.pulses.total()} came, and no link had ended")
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

    def _calm(self) -> None:
        self.ledger.undisturbed = True

    def _look(self) -> None:
        """All tables are within their bounds, whatever goes on."""
        for node in self.world.live:
            for what in excess(node):
                self.ledger.wrong(f"{node.name}: {what} at {self.world.now:.3f}")
        if self.truth is not None:
            self.truth.check()
        if self.sound and self.kind in SEVERAL and self.ledger.undisturbed:
            for op in self.ledger.open.values():
                if op.mode != HOLD and not op.client.dead and self.world.now - op.began > STALL:
                    self.ledger.wrong(f"operation {op.number} of {op.client.name} waits since {op.began:.3f}, and one cable is good")
        pause = LOOK_EVERY if self.truth is None or self.truth.stopped else LOOK_AT_NAMES
        self.world.at(self.world.now + pause, self._look)

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
        self.world.on_handshake = None
        self.healing = True
        for hub in self.world.hubs.values():
            hub.severed = set()
        for name in self.banned:
            self._off(name, False)
        if len(self.world.live) < 2:
            for name in self.names:
                self._start(name)
        for node in self.world.live:
            self._broken(node.name)
            for interface in node.links:
                if interface not in node.cables or interface in node.moved:
                    node.exchange(interface)
            # What only takes its time stays so: a cable that gets shorter lets frames overtake others.
            node.set_fault(self.faults if self.kind in UNTROUBLED else "")
            for cable in node.cables.values():
                cable.cut = False
                cable.set_carrier(True)

    def _check_nothing_lost(self, node: SimNode) -> None:
        """On a good cable no packet is lost, and none comes for keys that are gone: new ones are made before the old ones break."""
        for link in node.qnet.machine.links.values():
            told = link.transport.statistics()
            lost = sum(path.packets_lost for path in told.paths.values())
            if lost or told.resent_bytes:
                raise ScenarioFailed(f"{node.name} sent {lost} packets and {told.resent_bytes} bytes to {link.name} again on a good cable")
        dropped = {name: count for name, count in node.qnet.machine.counters.items() if count}
        if dropped:
            raise ScenarioFailed(f"{node.name} dropped frames of a good cable: {dropped}")

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
        for enemy in self.enemies:
            enemy.stop()
        if self.truth is not None:
            self.truth.stop()
            if not world.until(lambda: self.truth is None or not self.truth.differences(), NAMES_SAME):
                raise ScenarioFailed("; ".join(self.truth.differences()))
        world.run(3.0 + (RETRY_REFUSED if self.refusals else 0.0))
        later = [self._path_tried(node) for node in world.live]
        world.run(max(0.0, *(when + 1.0 - world.now for when in later)))
        left: list[str] = []
        for _ in range(3):  # a renewal of keys may be under way at any one moment
            left = [text for node in world.live for text in self._left_on(node)]
            if not left:
                break
            world.run(0.25)
        if left:
            raise ScenarioFailed("; ".join(left))
        turns, frames = world.dispatch.turns, sum(hub.frames for hub in world.hubs.values())
        world.run(IDLE)
        live = len(world.live)
        pairs = (live * (live - 1) / 2 + live * (self.count - live)) * len(world.hubs)
        turn_rate = (world.dispatch.turns - turns) / IDLE / pairs
        frame_rate = (sum(hub.frames for hub in world.hubs.values()) - frames) / IDLE / pairs
        if turn_rate > IDLE_TURNS or frame_rate > IDLE_FRAMES:
            raise ScenarioFailed(f"{turn_rate:.0f} turns and {frame_rate:.0f} frames a second and pair while nothing happens")
        self._check_wrongs()

    def _path_tried(self, node: SimNode) -> float:
        """When *node* tries the last of the addresses where a path could not be opened while cables were bad: up to half a minute later."""
        world = self.world
        there = {cable.mac for other in world.live for cable in other.cables.values()}
        tried = [when for link in node.qnet.machine.links.values() for (_, station), (when, _) in link.tried.items() if station in there]
        return max(tried, default=world.now)

    def _left_on(self, node: SimNode) -> Iterator[str]:
        """What a node that has nothing to do should not have."""
        others = {other.name for other in self.world.live if other is not node}
        sizes = node.qnet.sizes()
        wanted = {"links": len(others), "peers": len(others)}
        # Daemons speak about membership with all who are up, and gossip with those to whom they had something to tell.
        least = len(others) * bool(self.stores)
        most = least + len(others) * (any(name.startswith("udp") for name in self.interfaces) + (self.truth is not None))
        for name, size in sizes.items():
            if name in (*VARYING, "sessions", "timers", "paths") or name.startswith("endpoints_"):
                continue
            if name in ("connections_in", "connections_out") and least <= size <= most:
                continue
            if size != wanted.get(name, 0):
                yield f"{node.name} has {name}={size}, not {wanted.get(name, 0)}"
        if sizes["sessions"] > SESSIONS_PER_LINK * len(others):
            yield f"{node.name} has {sizes['sessions']} sessions for {len(others)} nodes"
        yield from self._paths_left_on(node)
        wanted_endpoints = sizes.get("endpoints_wanted", 0)
        if wanted_endpoints > ENDPOINTS * self.count:
            yield f"{node.name} wants {wanted_endpoints} endpoints"
        if sizes["calls"] > (self.count - 1 - len(others)) * len(node.cables) + wanted_endpoints + self._replayed():
            yield f"{node.name} makes {sizes['calls']} calls"
        if due := node.names.globals.sizes()["names_due"]:
            yield f"{node.name} has {due} names to tell"
        if odd := {name: count for name, count in node.names.globals.counters.items() if name not in ("names_sent", "names_told_again")}:
            yield f"{node.name}: {odd}"
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
        counters = {name: count for name, count in node.qnet.counters.items() if name not in ("gossip_sent", "gossip_failed")}
        if counters:
            yield f"{node.name}: {counters}"

    def _replayed(self) -> int:
        """Addresses at which nodes once were: an enemy who repeats their solicitations gets them called for a while."""
        there = {cable.mac for node in self.world.live for cable in node.cables.values()}
        return sum(mac not in there for hub in self.world.hubs.values() for mac in hub.owners) if self.kind in LONELY else 0

    def _paths_left_on(self, node: SimNode) -> Iterator[str]:
        """One for each cable, all in use. A card or an endpoint that is there no more may be tried now and then: its node could not say
        so."""
        world = self.world
        there = {cable.mac for other in world.live for cable in other.cables.values()}
        for link in node.qnet.machine.links.values():
            usable = [path.address for number, path in link.paths.items() if link.transport.usable(number)]
            if sorted(interface for interface, _ in usable) != sorted(node.cables):
                yield f"{node.name} reaches {link.name} over {[interface for interface, _ in usable]}"
            for number, path in link.paths.items():
                interface, station = path.address
                endpoint = node.qnet.endpoint(path.address)
                name = world.interfaces_links[interface]
                known = station in there if endpoint is None else endpoint.address == world.public(link.name, name)
                if known and not link.transport.usable(number) and not {link.name, node.name} & world.behind:
                    yield f"{node.name} does not use a path to {link.name}: {node.qnet.place(path.address)}"


def run(seed: int, *, trace: bool = False) -> Outcome:
    """Run one seed. What fails is run again with a trace, whose end is told with the failure."""
    try:
        return Scenario(seed, trace=trace).run()
    except ScenarioFailed as error:
        again = Scenario(seed, trace=True)
        try:
            again.run()
        except ScenarioFailed:
            lines = [line for line in again.world.dispatch.trace or () if " timers=" not in line]
        else:
            lines = ["(the second run did not fail: something in it does not come from the seed)"]
        raise ScenarioFailed("\n".join((str(error), "the end of its trace:", *lines[-TAIL:]))) from error


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
