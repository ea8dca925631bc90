"""What a message and a file cost in Python alone: two whole nodes in one process, under virtual time, without kernel, driver or waiting.

    python bench/simulated.py [--rounds N]

Prints what runs (Python source or compiled modules: QNETPY_COMPILED) and, for each operation, the quickest of ten rounds in µs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence

from qnetpy.testing.world import World
from resmgr import compiled
from resmgr.channel import CHID_PATHMGR, PID_SYSTEM, Credentials, Descriptors, ReadDone
from resmgr.dispatch import Buffer
from resmgr.iomsg import Target
from resmgr.testing.ioclient import IoClient

UNKNOWN_REQUEST = b"\xff\xff" + bytes(62)
"""To the far process manager: a type it does not know. It is looked up and answered ENOSYS."""


class Answers:
    """Counts replies; an `Answerer` that gives and takes nothing else."""

    def __init__(self) -> None:
        self.count = 0

    def answer(self, status: int, parts: Sequence[Buffer], descriptors: Descriptors) -> None:
        self.count += 1

    def pull(self, offset: int, length: int, done: ReadDone) -> None:
        done(0, b"")

    def push(self, offset: int, data: Buffer) -> None:
        """The reply has no data."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=300, metavar="N", help="operations per round")
    rounds: int = parser.parse_args().rounds
    world = World(seed=1)
    near, _ = world.start("near"), world.start("far")
    assert world.until(world.settled)
    world.run(1)
    kernel, connection, answers = near.system.kernel, near.connect("far", PID_SYSTEM, 1), Answers()

    def message() -> None:
        wanted = answers.count + 1

        def ask() -> None:
            kernel.relay(connection, UNKNOWN_REQUEST, 64, 4096, 10, answers)

        near.view.call_soon(ask)
        assert world.dispatch.run_until(lambda: answers.count >= wanted, limit=1)

    def until(enough: Callable[[], bool]) -> None:
        assert world.dispatch.run_until(enough, limit=1)

    client = IoClient(kernel, Credentials(0, 0), run=until)
    nd = near.nd("far")
    root = Target(nd, PID_SYSTEM, CHID_PATHMGR)

    def opened(flags: int = os.O_RDONLY) -> tuple[Target, int]:
        entry = client.open(b"file", flags, target=root)
        return Target(nd, entry.target.pid, entry.target.chid), entry.ocb

    client.close(*opened(os.O_CREAT | os.O_RDWR))

    def lookup() -> None:
        client.lookup(b"file", target=root)

    def small() -> None:
        server, ocb = opened()
        client.read(server, ocb, 0, 1024)
        client.close(server, ocb)

    print(compiled.describe(len(compiled.running())))
    for name, once in (("message and reply", message), ("look a name up", lookup), ("open, read, close", small)):
        once()
        best = float("inf")
        for _ in range(10):
            begin = time.perf_counter()
            for _ in range(rounds):
                once()
            best = min(best, (time.perf_counter() - begin) / rounds)
        print(f"{name:20}{best * 1e6:8.1f} µs")


if __name__ == "__main__":
    main()
