"""A program does one of everything on another node's files, and at one frame on the wire, the next one each time, something fails: what the
program was told is so, nothing hangs, and the next program works.

Frames that a node sends are counted in it by a packet socket, so what happens after the same frame happens at the same step, give or take
what else is on the wire. A run of the tests has a dozen of frames and faults, six on a soft and six on a hard mount, which are the day's
(`drawn.py`). Every frame, in an order and with the faults of the seed:
python -m tests.cluster.test_boundaries [SEED [ROUNDS [MOUNT OPTIONS]]]
"""

from __future__ import annotations

import errno
import json
import random
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest

from qnetpy.testing import cluster as kit
from tests.cluster.daemons import Two
from tests.cluster.drawn import seed_of_today, side_by_side
from tests.cluster.test_failures import DOWN, SLOW, TOPOLOGY

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
PROGRAM = Path(__file__).with_name("stepping.py")
PLACE = "/tmp/steps"
LEAST = 90
"""Bytes of a frame that is counted: not what only acknowledges."""
COUNTER = """
import os, socket, subprocess, sys
number, what, pid = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
print("counting", flush=True)
while number:
    frame, where = sock.recvfrom(65535)
    if where[2] == 4 and where[0] != "lo" and len(frame) >= LEAST:
        number -= 1
if what == "carrier":
    links = [one for one in os.listdir("/sys/class/net") if one != "lo"]
    [subprocess.run(["ip", "link", "set", one, "down"], check=True) for one in links]
else:
    os.kill(pid, int(what))
print("done", flush=True)
""".replace("LEAST", str(LEAST))
MAY = {0, errno.EHOSTDOWN, errno.ESTALE, errno.EIO}
"""What a step may say; and EEXIST, ENOENT of the steps after one that was told EHOSTDOWN."""
AFTER = {errno.EEXIST, errno.ENOENT, errno.ENOTEMPTY}
OWN = {errno.ENOTCONN, errno.ECONNABORTED, errno.ENOTDIR}
UNCERTAIN = 20.0
"""Seconds that the whole program may take beside its waiting: the start of a daemon on a busy machine, and the grace period of locks."""

EACH = 6
"""Frames of a mount in a run of the tests."""
BRIEF, LONGER = (0.0, 0.1, 1.0), 4.0
"""Seconds that a fault lasts: the node stays up, if its daemon lives; the node is down."""


@attrs.frozen
class Fault:
    node: str
    """Whose frames are counted, and to whom it happens."""
    what: str
    back: str = ""
    """A command that mends it; empty: the daemon is started."""


FAULTS = {
    "server's daemon killed": Fault("b", str(int(signal.SIGKILL))),
    "client's daemon killed": Fault("a", str(int(signal.SIGKILL))),
    "server's daemon ended": Fault("b", str(int(signal.SIGTERM))),
    "server stopped": Fault("b", str(int(signal.SIGSTOP)), "kill -CONT $(cat /run/qnet/lock)"),
    "server's carrier": Fault("b", "carrier", "for one in /sys/class/net/*; do ip link set ${one##*/} up; done"),
}


@attrs.define
class Stage:
    two: Two
    hard: bool
    number: int = 0

    def play(self, name: str, frame: int, pause: float) -> bool:
        """One fault at one frame. False if the program ended before it."""
        fault = FAULTS[name]
        cluster = self.two.cluster
        self.number += 1
        place = f"{PLACE}/{self.number}"
        cluster.run("b", "mkdir", "-p", place)
        pid = cluster.run(fault.node, "cat", "/run/qnet/lock").stdout.strip()
        what = f"{name} at frame {frame}"
        with (
            cluster.running(fault.node, sys.executable, "-c", COUNTER, str(frame), fault.what, pid) as counter,
            cluster.running("a", sys.executable, str(PROGRAM), f"/net/b{place}") as program,
        ):
            assert counter.stdout is not None
            assert program.stdout is not None
            assert counter.stdout.readline() == b"counting\n"
            began = time.monotonic()
            while not (done := select.select([counter.stdout], [], [], 0.02)[0]) and program.poll() is None:
                assert time.monotonic() - began < UNCERTAIN + SLOW, f"{what}: neither comes to an end"
            # On a busy machine who counts may be late.
            if not done and not select.select([counter.stdout], [], [], 0.5)[0]:
                told = json.loads(program.stdout.read())["told"]
                assert told, what
                assert not any(code for _, code in told), f"{what}: before it came, {told}"
                return False
            time.sleep(pause)
            self._mend(fault)
            lines = program.stdout.read()
        took = time.monotonic() - began
        journal = json.loads(lines)
        failed = False
        for step, code in journal["told"]:
            may = MAY | (OWN if fault.node == "a" else set()) | (AFTER if failed else set())
            assert code in may, f"{what}: {step}: {errno.errorcode.get(code, code)}"
            failed = failed or bool(code)
        assert took < DOWN * len([one for one in journal["told"] if one[1]]) + pause + UNCERTAIN + SLOW, f"{what}: took {took:.1f} s"
        wrong = json.loads(cluster.run("b", sys.executable, str(PROGRAM), "check", place, json.dumps(journal)).stdout)
        assert not wrong, f"{what}: {wrong}; it was told {journal['told']}"
        # Who comes next is served.
        self.two.find()
        assert cluster.run("a", "timeout", "20", "cat", "/net/b/etc/hostname").stdout == "b\n", what
        return True

    def _mend(self, fault: Fault) -> None:
        cluster = self.two.cluster
        if fault.back:
            cluster.run(fault.node, "sh", "-c", fault.back)
        else:
            kit.wait_for(lambda: cluster.run(fault.node, "qnet", "up", check=False).returncode == 0, 20.0, "qnet up")


@contextmanager
def stage(options: str = "soft") -> Iterator[Stage]:
    with kit.cluster(TOPOLOGY.replace("OPTIONS", options)) as running:
        two = Two(running)
        two.find()
        yield Stage(two, options == "hard")


def draw(rng: random.Random, count: int, pauses: Sequence[float]) -> list[tuple[str, int, float]]:
    """Faults in turn, each at a frame, and how long it lasts."""
    names = rng.sample(list(FAULTS), len(FAULTS))
    return [(names[number % len(names)], rng.randrange(1, 45), rng.choice(pauses)) for number in range(count)]


def play_all(there: Stage, steps: Sequence[tuple[str, int, float]]) -> None:
    for step in steps:
        print(f"{'hard' if there.hard else 'soft'}: {step}", flush=True)
        there.play(*step)


@pytest.mark.usefixtures("_rights")
def test_some_boundaries() -> None:
    rng = random.Random(seed_of_today())
    with ExitStack() as stack:
        jobs = [partial(play_all, stack.enter_context(stage(options)), draw(rng, EACH, BRIEF)) for options in ("soft", "hard")]
        side_by_side(jobs)


def report(seed: int, rounds: int, options: str) -> None:
    print(f"seed {seed}, {rounds} rounds, {options}", flush=True)
    rng = random.Random(seed)
    with stage(options) as there:
        for _ in range(rounds):
            for name, frame, pause in draw(rng, len(FAULTS), (*BRIEF, LONGER)):
                came = there.play(name, frame, pause)
                print(f"{name} at frame {frame}: {'told what is so' if came else 'the program was done before'}", flush=True)


if __name__ == "__main__":
    arguments = [*sys.argv[1:], *("1", "1", "soft")[len(sys.argv) - 1 :]]
    report(int(arguments[0]), int(arguments[1]), arguments[2])
