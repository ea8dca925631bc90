"""Locks as they are to be set again, and that noting them takes no time that grows with them."""

from __future__ import annotations

import itertools
import random

import pytest

from resmgr.fuse.held import Held
from resmgr.iofunc.locks import END, READ, UNLOCK, WRITE
from resmgr.iomsg import LOCK_SET
from resmgr.lockrequest import LockRequest


def lock(kind: int, start: int, end: int, owner: int = 1, pid: int = 5, whole: bool = False) -> LockRequest:
    return LockRequest(LOCK_SET, kind, start, end, owner, pid, whole)


@pytest.mark.parametrize("seed", range(50))
def test_against_a_table_of_every_byte(seed: int) -> None:
    rng = random.Random(seed)
    held, bytes_ = Held(), {owner: [UNLOCK] * 30 for owner in (1, 2)}
    for _ in range(60):
        kind, owner, start = rng.choice((READ, WRITE, UNLOCK)), rng.choice((1, 2)), rng.randrange(29)
        end = rng.randrange(start + 1, 31)
        within = held.within(lock(kind, start, end, owner))
        assert all(start <= one.start < one.end <= end and one.owner == owner for one in within)
        assert [next((one.kind for one in within if one.start <= byte < one.end), UNLOCK) for byte in range(start, end)] == (
            bytes_[owner][start:end]
        )
        held.note(lock(kind, start, end, owner))
        bytes_[owner][start:end] = [kind] * (end - start)
        for who, kinds in bytes_.items():
            ranges = [one for one in held if one.owner == who]
            assert ranges == sorted(ranges, key=lambda one: one.start)
            # Alike neighbours are one range.
            assert all(one.end < two.start or one.kind != two.kind for one, two in itertools.pairwise(ranges))
            assert [next((one.kind for one in ranges if one.start <= byte < one.end), UNLOCK) for byte in range(30)] == kinds
        assert bool(held) is any(kind != UNLOCK for kinds in bytes_.values() for kind in kinds)
        assert len(held) == len(list(held))


def test_flock_and_ranges_of_one_owner_are_apart() -> None:
    held = Held()
    held.note(lock(WRITE, 0, END, whole=True))
    held.note(lock(READ, 5, 10))
    held.note(lock(UNLOCK, 0, END))
    assert list(held) == [lock(WRITE, 0, END, whole=True)]
    held.clear()
    assert not held


def test_neighbours_of_two_processes_are_two() -> None:
    held = Held()
    held.note(lock(READ, 0, 5, pid=1))
    held.note(lock(READ, 5, 9, pid=2))
    assert list(held) == [lock(READ, 0, 5, pid=1), lock(READ, 5, 9, pid=2)]
