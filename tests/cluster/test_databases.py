"""A client's daemon, its machine, its way and the server's daemon end in the middle of SQLite transactions, while another client works in
the same database: what COMMIT answered for is there, no transaction is there in part, and the database is whole, at every look and at
the end.

    python -m tests.cluster.test_databases [SEED [ROUNDS [FAULT...]]]
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest

from qnetpy.testing import cluster as kit
from tests.cluster.banking import ACCOUNTS, EACH
from tests.cluster.drawn import seed_of_today
from tests.cluster.meshed import needs_net, serving

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
PROGRAM = str(Path(__file__).with_name("banking.py"))
MOUNTED = """
[[nodes.b.config.qnet.mounts]]
point = "/tmp/untold"
source = "s:/"
options = "lease=0"
"""
TOPOLOGY = serving("a", "b", "s", title="databases", path="/") + MOUNTED
PLACE = "/tmp/bank"
JOURNALS = {"delete": ("/net/s", "/tmp/untold"), "truncate": ("/net/s", "/net/s"), "persist": ("/net/s", "/tmp/untold")}
"""SQLite's rollback journals (a write-ahead log is for one machine), and by which mounts a and b have theirs. Who is not told of
changes has to ask for them when it is granted a lock."""
AGAIN = 40.0
"""Seconds in which everybody has to have committed again: the start of a daemon on a busy machine, and waits for locks of who is gone."""


LEFT = 1.0
"""Seconds for what it still says."""


class Teller:
    """The program on a client, and what it said."""

    def __init__(self, cluster: kit.Cluster, node: str, journal: str) -> None:
        self.cluster, self.node, self.journal = cluster, node, journal
        self.mount = JOURNALS[journal]["ab".index(node)]
        self.begun = 0
        self.done: list[int] = []
        self.errors: list[str] = []
        self._last = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        self._last = ""
        words = (sys.executable, "-P", PROGRAM, self.journal, f"{self.mount}{PLACE}-{self.journal}", self.node, str(self.begun))
        self._process = subprocess.Popen(
            self.cluster.command(self.node, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            word, _, rest = line.decode().rstrip("\n").partition(" ")
            if word == "begun":
                self.begun = int(rest)
            elif word == "done":
                self.done.append(int(rest))
            else:
                self.errors.append(rest)

    def reaches(self, goal: int) -> None:
        """Wait until so many of its transactions are done."""
        kit.wait_for(
            lambda: len(self.done) >= goal or bool(self.ended()), AGAIN, f"{self.node} ({self.journal}) commits; {self.errors[-1:]}"
        )
        assert not (said := self.ended()), f"{self.node} ({self.journal}): {said}"

    def ended(self) -> str:
        """What it said at its end; empty while it works."""
        assert self._process is not None
        if self._process.poll() is None:
            return ""
        assert self._process.stderr is not None
        if not self._last:
            self._last = self._process.stderr.read().decode() or f"exit status {self._process.returncode}"
        return self._last

    def kill(self) -> None:
        """Whatever it does. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        # What entered the node; the program in there ends by its input, unless it waits for a lock.
        process.kill()
        process.wait()
        if self._reader is not None:
            self._reader.join(LEFT)
            if self._reader.is_alive():
                # It would be waited for.
                return
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def end(self, killed: bool = False) -> None:
        """Let it end its transaction and end; it must not have found anything wrong."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        assert self._reader is not None
        self._process.stdin.close()
        self._process.wait(AGAIN)
        self._reader.join()
        said = self._process.stderr.read().decode()
        self.kill()
        assert killed or not said, f"{self.node} ({self.journal}): {said}"


@attrs.define
class Bank:
    cluster: kit.Cluster
    random: random.Random
    tellers: list[Teller] = attrs.field(factory=list)

    def daemon(self, node: str) -> int:
        """Its pid in that node."""
        return int(self.cluster.run(node, "cat", "/run/qnet/lock").stdout)

    def play(self, name: str) -> None:
        """One fault in the middle of something, and work again, in the middle of which the next may come."""
        time.sleep(self.random.uniform(0.0, 0.2))  # somewhere within transactions that take some ten ms
        FAULTS[name](self)
        self.all_work()

    def all_work(self) -> None:
        """Wait until each has done what it is at, and a transaction more."""
        goals = [len(teller.done) + 2 for teller in self.tellers]
        for teller, goal in zip(self.tellers, goals, strict=True):
            teller.reaches(goal)

    def kill_daemon(self, node: str) -> None:
        self.cluster.run(node, "kill", f"-{int(signal.SIGKILL)}", str(self.daemon(node)))
        kit.wait_for(lambda: self.cluster.run(node, "qnet", "up", check=False).returncode == 0, 20.0, "qnet up")

    def kill_machine(self, node: str) -> None:
        self.cluster.kill(node)
        gone = [teller for teller in self.tellers if teller.node == node]
        for teller in gone:
            teller.end(killed=True)
        self.cluster.start(node)
        self.cluster.run(node, "qnet", "nodes", "--wait", "s")
        for teller in gone:
            teller.start()

    def lose_way(self, node: str) -> None:
        self.cluster.link_down(node)
        time.sleep(self.random.uniform(3.2, 4.0))  # longer than a node may be silent
        self.cluster.link_up(node)

    def check(self) -> dict[str, int]:
        """All there that must be, and nothing in part."""
        for teller in self.tellers:
            teller.end()
        for journal in JOURNALS:
            words = (sys.executable, "-P", PROGRAM, "check", journal, f"{PLACE}-{journal}")
            found = json.loads(self.cluster.run("s", *words).stdout)
            assert (found["integrity"], found["sum"]) == ("ok", ACCOUNTS * EACH), journal
            for teller in self.tellers:
                if teller.journal == journal:
                    lost = set(teller.done) - set(found["done"].get(teller.node, []))
                    assert not lost, f"{teller.node} ({journal}): committed and not there: {sorted(lost)}"
                    assert max(found["done"][teller.node]) <= teller.begun
        return {f"{teller.node} {teller.journal}": len(teller.done) for teller in self.tellers}


FAULTS: dict[str, Callable[[Bank], None]] = {
    "client's daemon killed": lambda bank: bank.kill_daemon("a"),
    "client's machine killed": lambda bank: bank.kill_machine("a"),
    "client's way lost": lambda bank: bank.lose_way("a"),
    "server's daemon killed": lambda bank: bank.kill_daemon("s"),
}


@contextmanager
def bank(seed: int) -> Iterator[Bank]:
    with kit.cluster(TOPOLOGY) as cluster, ExitStack() as stack:
        there = Bank(cluster, random.Random(seed))
        for node in "ab":
            cluster.run(node, "qnet", "nodes", "--wait", "s")
        for journal in JOURNALS:
            cluster.run("s", sys.executable, "-P", PROGRAM, "prepare", journal, f"{PLACE}-{journal}")
            for node in "ab":
                teller = Teller(cluster, node, journal)
                teller.start()
                stack.callback(teller.kill)
                there.tellers.append(teller)
        there.all_work()
        yield there


def test_transactions_survive_who_makes_them() -> None:
    needs_net()
    seed = seed_of_today()
    names = random.Random(seed).sample(sorted(FAULTS), len(FAULTS))
    with bank(seed) as there:
        for name in names:
            there.play(name)
        there.check()


def report(seed: int, rounds: int, faults: Sequence[str]) -> None:
    print(f"seed {seed}, {rounds} rounds", flush=True)
    with bank(seed) as there:
        for number in range(rounds):
            for name in there.random.sample(list(faults), len(faults)):
                began = time.monotonic()
                there.play(name)
                print(f"{number}: {name}: {time.monotonic() - began:.1f} s", flush=True)
        print(there.check(), flush=True)
        print({text for teller in there.tellers for text in teller.errors}, flush=True)


if __name__ == "__main__":
    arguments = [*sys.argv[1:], *("1", "1")[len(sys.argv) - 1 :]]
    report(int(arguments[0]), int(arguments[1]), arguments[2:] or list(FAULTS))
