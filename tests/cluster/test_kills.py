"""Clients that never read and servers that never reply, on real nodes, each killed at every step of messages and of file systems; and each
daemon killed alone. Who is left gets the error that is documented within the contract's time, nothing is kept, the next client is served.

Every case, in an order and with pauses of the seed: python -m tests.cluster.test_kills [SEED [ROUNDS]]
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import attrs
import pytest

from qnetpy.testing.cluster import wait_for
from tests.cluster.daemons import SLACK, Two, two_nodes
from tests.cluster.victims import PATH

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
PROGRAM = Path(__file__).with_name("victims.py")
COUNTS = ("net_client", "net_server", "outbound_msgs", "server_msgs")
MESSAGES = ("connect", "send", "body pulled", "received", "replied", "event")
FILES = ("open", "read", "readdir", "lock", "poll")
VICTIMS = ("client", "server")
MANNERS = ("killed", "stopped, then killed")
STEPS = tuple(product((*MESSAGES, *FILES), VICTIMS, MANNERS))
AT_ONCE = 1.0
"""Seconds in which the end of a program is known on the other node, whose link is up. It takes milliseconds."""
PATIENCE = 1.05
"""Seconds that a killed program may hang in a request of which its server says nothing (`interrupt_delay` and `interrupt_patience`)."""
DOWN = 3.0
"""Seconds of silence after which a node is down (`down_after`)."""
SLOW = 2.0
"""Seconds for a busy machine."""
KEPT = 3
"""Connections that a daemon may have more than before: /net keeps those of files that the kernel remembers."""
ERRORS = {"messages": {"ESRCH", "EBADF"}, "files": {"EIO", "ESTALE", "ENOENT", "poll"}}
"""Of a client whose server died: it was at work for it or had not got it; of files, that are open or not there any more."""


class Said:
    """What the programs of one node say."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self._kept: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._stdout is not None
        for line in self._stdout:
            self._lines.put(json.loads(line))

    def end(self) -> None:
        """It kills what it has started, and ends."""
        self._stdin.close()
        self._reader.join()

    def order(self, **order: object) -> None:
        self._stdin.write(json.dumps(order).encode() + b"\n")
        self._stdin.flush()

    def until(self, number: int, *what: str, seconds: float = 10.0) -> dict[str, Any]:
        """The first of *what* that program *number* says; what it says else is passed over."""
        deadline = time.monotonic() + seconds
        heard = []
        while True:
            for one in self._kept:
                if one["number"] == number:
                    self._kept.remove(one)
                    heard.append(one)
                    if one["what"] in what:
                        return one
                    break
            else:
                try:
                    self._kept.append(self._lines.get(timeout=max(0.0, deadline - time.monotonic())))
                except queue.Empty:
                    raise AssertionError(f"program {number} did not say {' or '.join(what)} within {seconds:g} s, but {heard}") from None


@attrs.define
class Stage:
    """Two nodes with a program on each that forks victims."""

    two: Two
    random: random.Random
    said: dict[str, Said]
    waited: dict[str, float] = attrs.field(factory=dict)
    """The longest that somebody who is left waited, by what for."""
    _last: int = 0

    def start(self, node: str, role: str, *words: str, say: str = "") -> int:
        self._last += 1
        self.said[node].order(start=self._last, role=role, words=words)
        if say:
            self.said[node].until(self._last, say)
        return self._last

    def signal(self, node: str, number: int, what: signal.Signals) -> float:
        self.said[node].order(signal=number, number=int(what))
        return time.monotonic()

    def kill(self, node: str, number: int, manner: str) -> float:
        if manner != "killed":
            self.signal(node, number, signal.SIGSTOP)
            self.pause()
        return self.signal(node, number, signal.SIGKILL)

    def pause(self) -> None:
        """Any moment of the step, and of a few milliseconds after it."""
        time.sleep(self.random.choice((0.0, 0.0005, 0.002, 0.008, 0.03)) * self.random.random())

    def within(self, seconds: float, since: float, told: dict[str, Any], what: str) -> None:
        took = told["at"] - since
        self.waited[what] = max(took, self.waited.get(what, 0.0))
        assert took <= seconds + SLOW, f"{what} after {took:.2f} s"

    def figures(self, node: str) -> dict[str, int]:
        self._last += 1
        self.said[node].order(read=f"/net/{node}/proc/qnetstats", number=self._last)
        lines = self.said[node].until(self._last, "read")["text"].splitlines()
        figures = dict(line.split(" ", 1) for line in lines)
        return {name: int(figures[name]) for name in COUNTS}

    def ask(self, role: str, *words: str) -> None:
        """A new client is served."""
        number = self.start("a", role, "ask", *words)
        told = self.said["a"].until(number, "served", "failed", "broken")
        assert told["what"] == "served", told
        self.said["a"].until(number, "ended")

    def daemon_killed(self, node: str) -> None:
        """The daemon of one node is killed alone, with programs at every step of which somebody waits; then it is started again."""
        a, b = self.said["a"], self.said["b"]
        server, manager = self.start("b", "server", say="ready"), self.start("b", "manager", say="ready")
        waiting = [self.start("a", "client", step, "b", say="there") for step in ("received", "body pulled", "event")]
        waiting += [self.start("a", "holder", f"/net/b{PATH}", say="ready")]
        waiting += [self.start("a", "user", step, f"/net/b{PATH}", say="there") for step in ("read", "lock", "poll")]
        for _ in range(2):
            b.until(server, "held")
        self.pause()
        since = time.monotonic()
        os.kill(self.two.daemons[node].pid, signal.SIGKILL)
        told_of, seconds = (("ENOTCONN", "ECONNABORTED", "poll"), AT_ONCE) if node == "a" else (("EHOSTDOWN", "EBADF", "poll"), DOWN)
        self.signal("a", waiting.pop(3), signal.SIGKILL)
        for number in waiting:
            told = a.until(number, "failed", "broken", "ended")
            assert told["what"] == "failed", told
            assert told["error"] in told_of, told
            self.within(seconds, since, told, f"a client is told that the daemon of {node} is gone")
        if node == "a":
            self.two.cluster.run(node, "qnet", "up")  # who is back at once is known to have been gone
            for _ in range(3):
                told = b.until(server, "disconnected")
                self.within(DOWN, since, told, "a server is told that its clients' daemon is gone")
            for number in (server, manager):
                self.signal("b", number, signal.SIGKILL)
        else:
            for number in (server, manager):
                told = b.until(number, "failed", "broken")
                assert told.get("error") == "ENOTCONN", told
                self.within(AT_ONCE, since, told, "a server is told that its daemon is gone")
        for number in (server, manager):
            b.until(number, "ended")
        if node == "b":
            self.two.cluster.run(node, "qnet", "up")
        self.two.find()
        server, manager = self.start("b", "server", say="ready"), self.start("b", "manager", say="ready")
        self.ask("client", "b")
        self.ask("user", f"/net/b{PATH}")
        for number in (server, manager):
            self.signal("b", number, signal.SIGKILL)
            b.until(number, "ended")

    def case(self, step: str, victim: str, manner: str) -> None:
        """One program is killed at one step. The server goes with it or goes on for the next case."""
        files = step in FILES
        role, words = ("user", [step, f"/net/b{PATH}"]) if files else ("client", [step, "b"])
        server = self.start("b", "manager" if files else "server", say="ready")
        held = self.start("a", "holder", f"/net/b{PATH}", say="ready") if step == "lock" else 0
        if step == "send":
            self.signal("b", server, signal.SIGSTOP)
        client = self.start("a", role, *words, say="there")
        a, b = self.said["a"], self.said["b"]
        if step in ("received", "body pulled"):
            b.until(server, "held")
        self.pause()
        stuck = files and (step in ("open", "readdir"))
        if stuck:
            self.signal("b", server, signal.SIGSTOP)
            self.pause()
        if victim == "client":
            since = self.kill("a", client, manner)
            self.within(PATIENCE if files else AT_ONCE, since, a.until(client, "ended"), "a killed client is gone")
            if stuck or step == "send":
                self.signal("b", server, signal.SIGCONT)
            if step in ("received", "body pulled", "replied", "event"):
                self.within(AT_ONCE, since, b.until(server, "disconnected"), "a server is told that its client is gone")
            self.ask(role, words[-1])
            self.signal("b", server, signal.SIGKILL)
        else:
            since = self.kill("b", server, manner)
            told = a.until(client, "failed", "broken", "ended")
            assert told["what"] == "failed", told
            assert told["error"] in ERRORS["files" if files else "messages"] or (step == "connect" and told["error"] == "ENOENT"), told
            self.within(AT_ONCE, since, told, "a client is told that its server is gone")
        b.until(server, "ended")
        if held:
            self.signal("a", held, signal.SIGKILL)
            a.until(held, "ended")


@contextmanager
def stage(two: Two, seed: int) -> Iterator[Stage]:
    with ExitStack() as stack:
        said = {}
        for node in "ab":
            said[node] = Said(stack.enter_context(two.cluster.running(node, sys.executable, str(PROGRAM))))
            stack.callback(said[node].end)
        yield Stage(two, random.Random(seed), said)


def zombies(two: Two) -> list[int]:
    found = []
    for pid in two.cluster.processes():
        with suppress(OSError), open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                found.append(pid)
    return found


@attrs.frozen
class Kept:
    """What two daemons keep."""

    descriptors: dict[str, int]
    threads: dict[str, int]
    counts: dict[str, dict[str, int]]

    @staticmethod
    def of(there: Stage) -> Kept:
        daemons = there.two.daemons
        return Kept(
            {node: daemon.descriptors() for node, daemon in daemons.items()},
            {node: daemon.threads() for node, daemon in daemons.items()},
            {node: there.figures(node) for node in daemons},
        )

    def no_more(self, there: Stage) -> None:
        """No more than this, soon."""

        def more() -> list[str]:
            now = Kept.of(there)
            grown = [
                f"{node}: {now.descriptors[node]} descriptors, {count} before"
                for node, count in self.descriptors.items()
                if now.descriptors[node] > count + SLACK
            ]
            grown += [
                f"{node}: {now.threads[node]} threads, {count} before"
                for node, count in self.threads.items()
                if now.threads[node] > count + SLACK
            ]
            for node, counts in self.counts.items():
                grown += [
                    f"{node}: {name} {now.counts[node][name]}, {count} before"
                    for name, count in counts.items()
                    if now.counts[node][name] > count + KEPT
                ]
            return grown + [f"zombie {pid}" for pid in zombies(there.two)]

        try:
            wait_for(lambda: not more())
        except AssertionError:
            raise AssertionError(f"left behind: {more()}") from None


def play(there: Stage, cases: list[tuple[str, str, str]], told: bool = False) -> None:
    before = None
    for case in [("open", "client", "killed"), ("received", "client", "killed"), *cases]:
        if told:
            print("; ".join(case), flush=True)
        try:
            there.case(*case)
        except AssertionError as error:
            raise AssertionError(f"{'; '.join(case)}: {error}") from error
        if before is None and case[0] == "received":
            before = Kept.of(there)
        elif before is not None and told:
            before.no_more(there)
    assert before is not None
    before.no_more(there)


@pytest.fixture(scope="module")
def there(two: Two) -> Iterator[Stage]:
    with stage(two, 1) as started:
        yield started


def test_a_spread_of_kills_at_every_step(there: Stage) -> None:
    """Each step once; the victims, the manners and the pauses are the seed's."""
    play(there, [(step, there.random.choice(VICTIMS), there.random.choice(MANNERS)) for step in (*MESSAGES, *FILES)])


@pytest.mark.parametrize("node", ["a", "b"])
def test_a_daemon_killed_alone(there: Stage, node: str) -> None:
    there.daemon_killed(node)
    assert not zombies(there.two)


def report(seed: int, rounds: int) -> None:
    print(f"seed {seed}")
    with two_nodes() as two, stage(two, seed) as there:
        for _ in range(rounds):
            resident = {node: daemon.resident() for node, daemon in two.daemons.items()}
            cases = list(STEPS)
            there.random.shuffle(cases)
            play(there, cases, told=True)
            print({node: two.daemons[node].resident() - before for node, before in resident.items()}, "bytes more")
        for node in "ab":
            print("daemon of", node, "killed", flush=True)
            there.daemon_killed(node)
        for what, seconds in there.waited.items():
            print(f"{what}: within {seconds * 1000:.0f} ms")


if __name__ == "__main__":
    report(int(sys.argv[1]) if len(sys.argv) > 1 else 1, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
