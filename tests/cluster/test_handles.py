"""Thousands of open handles on real nodes: who gets how many, what is said beyond, and that all are given back.

Figures of a longer run: python -m tests.cluster.test_handles
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import pytest

from qnetpy.testing.cluster import wait_for
from tests.cluster.daemons import SLACK, Two, two_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
OPENER = """
import os, resource, sys, threading
path, count, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
files, errors = [], []
def opens():
    for _ in range(count // threads):
        try:
            files.append(os.open(path, os.O_RDONLY))
        except OSError as error:
            return errors.append(error.errno)
workers = [threading.Thread(target=opens) for _ in range(threads)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(len(files), *set(errors), flush=True)
sys.stdin.readline()
assert not files or os.pread(files[-1], 1, 0)
for file in files:
    os.close(file)
print("closed", flush=True)
sys.stdin.readline()
"""


@attrs.frozen
class Holder:
    stdin: int
    stdout: int

    def close_all(self) -> None:
        os.write(self.stdin, b"\n")
        assert os.read(self.stdout, 100) == b"closed\n"


@contextmanager
def holding(two: Two, node: str, path: str, count: int, threads: int, user: str | None = None) -> Iterator[tuple[int, set[int], Holder]]:
    """A program that has opened *path* that often: how often it could, with which errors, and it."""
    with two.cluster.running(node, sys.executable, "-c", OPENER, path, str(count), str(threads), user=user) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        opened, *errors = map(int, program.stdout.readline().split())
        yield opened, set(errors), Holder(program.stdin.fileno(), program.stdout.fileno())


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    """Without delegations: with them a file that is opened again and again is opened once at its server."""
    with two_nodes("delegations=0") as there:
        yield there


def test_ten_thousand_at_home_and_what_a_killed_program_leaves(two: Two) -> None:
    daemon = two.daemons["a"]
    before = daemon.descriptors()
    grown: list[int] = []
    for count, killed in (10_000, False), (2_000, True):
        resident = daemon.resident()
        with holding(two, "a", "/net/a/etc/hostname", count, 1) as (opened, errors, program):
            assert (opened, errors) == (count, set())
            assert daemon.descriptors() >= before + count
            grown.append(daemon.resident() - resident)
            if not killed:
                program.close_all()
                daemon.idle_again(before)
        daemon.idle_again(before)
    assert grown[0] < 10_000 * 2048
    assert grown[1] < 2 << 20, "what the first ones took serves the next ones"


def test_of_two_users_of_another_node(two: Two) -> None:
    daemon = two.daemons["b"]
    before = daemon.descriptors()
    with holding(two, "a", "/net/b/etc/hostname", 1000, 8, "alice") as (opened, errors, program):
        assert (opened, errors) == (1000, set())
        with holding(two, "a", "/net/b/etc/hostname", 400, 8) as (opened, errors, _):
            assert (opened, errors) == (400, set())
            assert daemon.descriptors() >= before + 1400
        wait_for(lambda: daemon.descriptors() <= before + 1000 + SLACK, what="those of the killed program are given back")
        program.close_all()
    daemon.idle_again(before)


def report() -> None:
    """A table of what each open costs."""
    print("| where | opened | each, µs | bytes of each | closed or program killed: descriptors more than before | after, s |")
    with two_nodes("delegations=0") as two:
        for node, path, threads in (
            ("a", "/net/a/etc/hostname", 1),
            ("a", "/net/b/etc/hostname", 1),
            ("a", "/net/b/etc/hostname", 16),
            ("a", "/net/b/proc/qnetstats", 16),
        ):
            daemon = two.daemons[path[5]]
            before, resident, began = daemon.descriptors(), daemon.resident(), time.monotonic()
            with holding(two, node, path, 10_000, threads) as (opened, errors, _):
                each = (time.monotonic() - began) / opened * 1e6
                grown = (daemon.resident() - resident) / opened
            back = daemon.idle_again(before)
            why = "".join(f", then {errno.errorcode[code]}" for code in errors)
            print(
                f"| {path}, {threads} threads | {opened}{why} | {each:.0f} | {grown:.0f} | {daemon.descriptors() - before} | {back:.1f} |"
            )


if __name__ == "__main__":
    report()
