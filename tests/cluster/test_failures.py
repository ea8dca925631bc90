"""Programs in the middle of every kind of operation on another node's files, while the way, the node or a daemon fails: what they are told,
in what time, whether they go on afterwards with what they had open, and whether what they were told is written is there.

A run of the tests has every fault once, half of them on a soft and half on a hard mount; which half, their order and lengths are the day's
(`drawn.py`). Every fault, or those named, in an order and with lengths of the seed:
python -m tests.cluster.test_failures [SEED [ROUNDS [MOUNT OPTIONS [FAULT...]]]]
"""

from __future__ import annotations

import errno
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from qnetpy.testing import cluster as kit
from tests.cluster.daemons import Two
from tests.cluster.drawn import seed_of_today, side_by_side
from tests.cluster.meshed import serving
from tests.cluster.working import SIZE, WORK, record

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
PROGRAM = Path(__file__).with_name("working.py")
TOPOLOGY = serving("a", "b", title="failures", path="/", tables='[config.qnet.mount]\noptions = "OPTIONS"\n')
PLACE = "/tmp/work"
DOWN = 3.0
"""Seconds of silence after which a node is down."""
SLOW = 3.0
"""Seconds for a busy machine."""
AGAIN = 30.0
"""Seconds in which everybody has to be at work again; that includes the start of a daemon on a busy machine."""
SETTLED = 0.5
"""Seconds after which files that were opened have tokens."""
GONE = {errno.EHOSTDOWN}
LOST = {errno.EHOSTDOWN, errno.ESTALE, errno.EIO}
NOT_TWICE = ("append", "rename")
"""What a hard mount does not do again when its answer was lost."""
BRIEF = {errno.ESTALE}
"""Of close, for what was written through a file that was open too briefly to be opened again."""
OWN = {errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.ENOTDIR, errno.EIO}
"""What is said while the own daemon is not there: the mount is dead, then gone."""


class Workers:
    """The programs on node a, and what they said."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self.said: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))

    def heard(self) -> list[dict[str, Any]]:
        while not self._lines.empty():
            self.said.append(self._lines.get())
        return self.said

    def wait_until_all_work(self, since: float) -> None:
        """Each has done something that it began after *since*."""

        def idle() -> set[str]:
            done = {one["op"] for one in self.heard() if one.get("error") == 0 and one["at"] - one["took"] > since}
            return set(WORK) - done

        deadline = time.monotonic() + AGAIN
        while left := idle():
            last = {one["op"]: one for one in self.said if one["op"] in left}
            assert time.monotonic() < deadline, f"not at work again: {last or left}"
            time.sleep(0.05)

    def end(self) -> dict[str, dict[str, Any]]:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._reader.join()
        return {one["op"]: one for one in self.heard() if "error" not in one}


@attrs.define
class Fault:
    """What is done and undone on the two nodes; what may be told meanwhile, and whether what is open stays so."""

    begin: Callable[[Two], None]
    end: Callable[[Two], None]
    seconds: tuple[float, float]
    may: frozenset[int] = frozenset()
    longest: float = DOWN
    """Seconds that one operation may take."""


def _signal(node: str, what: signal.Signals) -> Callable[[Two], None]:
    return lambda two: os.kill(two.daemons[node].pid, what)


def _run(node: str, *argv: str) -> Callable[[Two], None]:
    def run(two: Two) -> None:
        two.cluster.run(node, *argv)

    return run


def _up(node: str) -> Callable[[Two], None]:
    def up(two: Two) -> None:
        # One that was killed may be at its end for a moment yet.
        kit.wait_for(lambda: two.cluster.run(node, "qnet", "up", check=False).returncode == 0, 20.0, "qnet up")
        two.find()

    return up


def _reboot(two: Two) -> None:
    two.cluster.start("b")
    two.spaces.clear()
    two.find()


def _silent(nodes: str, what: str) -> Callable[[Two], None]:
    """Silence: frames are lost on their way out of *nodes*."""
    script = "for one in /sys/class/net/*; do n=${one##*/}; [ $n = lo ] || tc qdisc " + what + " || exit 1; done"

    def change(two: Two) -> None:
        for node in nodes:
            two.cluster.run(node, "sh", "-c", script)

    return change


ADD, DELETE = "add dev $n root blackhole", "del dev $n root"
SHORT, LONG = (0.3, 1.8), (3.4, 5.0)
FAULTS: dict[str, Fault] = {
    "carrier pulled, back in time": Fault(lambda two: two.cluster.link_down("b"), lambda two: two.cluster.link_up("b"), SHORT),
    "carrier pulled": Fault(lambda two: two.cluster.link_down("b"), lambda two: two.cluster.link_up("b"), LONG, frozenset(GONE)),
    "silent link, back in time": Fault(_silent("ab", ADD), _silent("ab", DELETE), SHORT),
    "silent link": Fault(_silent("ab", ADD), _silent("ab", DELETE), LONG, frozenset(GONE)),
    "one-way loss": Fault(_silent("b", ADD), _silent("b", DELETE), LONG, frozenset(GONE)),
    "peer stopped, back in time": Fault(_signal("b", signal.SIGSTOP), _signal("b", signal.SIGCONT), SHORT),
    "peer stopped": Fault(_signal("b", signal.SIGSTOP), _signal("b", signal.SIGCONT), LONG, frozenset(GONE)),
    "peer's daemon killed": Fault(_signal("b", signal.SIGKILL), _up("b"), SHORT, frozenset(GONE)),
    "upgrade": Fault(_run("b", "qnet", "down"), _up("b"), (0.0, 0.5), frozenset(GONE)),
    "power": Fault(lambda two: two.cluster.kill("b"), _reboot, SHORT, frozenset(LOST)),
    "own daemon restarted": Fault(_run("a", "qnet", "restart"), lambda two: two.find(), (0.0, 0.5), frozenset(GONE), 10.0),
    "own daemon killed": Fault(_signal("a", signal.SIGKILL), _up("a"), SHORT, frozenset(OWN)),
}


@attrs.define
class Stage:
    two: Two
    workers: Workers
    random: random.Random
    hard: bool = False
    longest: dict[str, float] = attrs.field(factory=dict)

    def play(self, name: str) -> None:
        """One fault, from work to work; what was told meanwhile is checked."""
        fault = FAULTS[name]
        self.workers.wait_until_all_work(time.monotonic())
        time.sleep(SETTLED)  # what they have just opened can be opened again
        self.workers.wait_until_all_work(time.monotonic())
        first = len(self.workers.heard())
        began = time.monotonic()
        fault.begin(self.two)
        time.sleep(self.random.uniform(*fault.seconds))
        fault.end(self.two)
        # Back in time, if those who pull and plug were not late themselves.
        late = fault.seconds == SHORT and not fault.may and time.monotonic() - began > DOWN - 1.0
        may_be = frozenset(GONE) if late else fault.may
        self.workers.wait_until_all_work(time.monotonic())
        told = [one for one in self.workers.heard()[first:] if "error" in one]
        for one in told:
            if (self.hard or name == "own daemon restarted") and one["op"] not in NOT_TWICE and may_be == GONE:
                assert not one["error"], f"{name}: {one['op']}: {errno.errorcode[one['error']]} on a hard mount"
            may = {0, *may_be, *(BRIEF if one["op"] == "append" and may_be else ())}
            assert one["error"] in may, f"{name}: {one['op']}: {errno.errorcode[one['error']]}"
            limit = AGAIN if self.hard else fault.longest + SLOW
            assert one["took"] <= limit, f"{name}: {one['op']} took {one['took']} s"
        self.longest[name] = max([self.longest.get(name, 0.0), *(one["took"] for one in told)])

    def play_all(self, names: Sequence[str]) -> None:
        """One fault after another, and then what is there."""
        for name in names:
            self.play(name)
        self.check()

    def check(self) -> dict[str, int]:
        """What was said to be written is there."""
        sure = self.workers.end()
        assert set(sure) == set(WORK)
        read = f"import sys; sys.stdout.buffer.write(open('{PLACE}/' + sys.argv[1], 'rb').read())"
        journal = self._read("journal", read)
        for number in range(sure["write"]["sure"]):
            assert journal[number * SIZE : (number + 1) * SIZE] == record(number), (
                f"record {number} of {sure['write']['sure']} is not there"
            )
        log = self._read("log", read)
        assert len(log) % SIZE == 0
        found = [int.from_bytes(log[at : at + 8], "big") for at in range(0, len(log), SIZE)]
        assert all(log[at * SIZE : (at + 1) * SIZE] == record(number) for at, number in enumerate(found))
        assert len(set(found)) == len(found), "something was appended twice"
        missing = set(sure["append"]["sure"]) - set(found)
        assert not missing, f"appended and not there: {missing}"
        assert set(found) <= {*sure["append"]["sure"], *sure["append"]["unsure"]}
        return {"fsynced": sure["write"]["sure"], "appended": len(found), "unsure": len(sure["append"]["unsure"])}

    def _read(self, name: str, program: str) -> bytes:
        with self.two.cluster.running("b", sys.executable, "-c", program, name) as process:
            return process.communicate()[0]


@contextmanager
def stage(seed: int, options: str = "soft") -> Iterator[Stage]:
    with kit.cluster(TOPOLOGY.replace("OPTIONS", options)) as running:
        two = Two(running)
        two.find()
        running.run("b", sys.executable, str(PROGRAM), "prepare", PLACE)
        with running.running("a", sys.executable, str(PROGRAM), f"/net/b{PLACE}") as process:
            workers = Workers(process)
            try:
                yield Stage(two, workers, random.Random(seed), options == "hard")
            finally:
                if process.poll() is None:
                    workers.end()


@pytest.mark.usefixtures("_rights")
def test_every_fault() -> None:
    seed = seed_of_today()
    names = sorted(FAULTS)
    random.Random(seed).shuffle(names)
    half = len(names) // 2
    with ExitStack() as stack:
        soft, hard = (stack.enter_context(stage(seed, options)) for options in ("soft", "hard"))
        side_by_side([lambda: soft.play_all(names[:half]), lambda: hard.play_all(names[half:])])


def report(seed: int, rounds: int, options: str, faults: list[str]) -> None:
    for number in range(rounds):
        print(f"seed {seed + number}, {options}", flush=True)
        with stage(seed + number, options) as there:
            names = faults or list(FAULTS)
            there.random.shuffle(names)
            for name in names:
                there.play(name)
                print(f"{name}: the longest operation {there.longest[name]:.2f} s", flush=True)
            print(there.check(), flush=True)


if __name__ == "__main__":
    arguments = [*sys.argv[1:], *("1", "1", "soft")[len(sys.argv) - 1 :]]
    report(int(arguments[0]), int(arguments[1]), arguments[2], arguments[3:])
