"""What was locked since a node lost its locks."""

from __future__ import annotations

import random

import pytest

from resmgr.hostfs import claims
from resmgr.hostfs.claims import RANGES_MAX, Claims
from resmgr.iofunc.locks import END, READ, WRITE

FILE = (1, 2)
RANGES = (True, True, False)
FLOCK = (True, True, True)
READERS = (False, False, False)
"""Locks of those who may only read, which nobody else sees."""


def claimed(node: str = "a") -> Claims:
    made = Claims()
    made.lost(FILE, node, 0.0)
    return made


def test_only_what_was_lost_is_claimed() -> None:
    made = claimed()
    assert made.allows(FILE, RANGES, "a", WRITE, 0, END)
    assert not made.allows(FILE, RANGES, "b", READ, 0, 1)
    assert not made.allows((1, 3), RANGES, "a", READ, 0, 1)


@pytest.mark.parametrize("seed", range(20))
def test_what_conflicts_with_what_was_granted_since_is_refused(seed: int) -> None:
    """Against a table of every byte."""
    rng = random.Random(seed)
    made, bytes_ = claimed(), [0] * 40
    for _ in range(rng.randrange(8)):
        kind, start = rng.choice((READ, WRITE)), rng.randrange(39)
        end = rng.randrange(start + 1, 41)
        made.granted(FILE, RANGES, kind, start, end)
        bytes_[start:end] = [max(each, 1 + kind) for each in bytes_[start:end]]
    for start in range(40):
        for end in range(start + 1, 41):
            most = max(bytes_[start:end])
            assert made.allows(FILE, RANGES, "a", READ, start, end) is (most < 2)
            assert made.allows(FILE, RANGES, "a", WRITE, start, end) is (most < 1)
    assert made.allows(FILE, FLOCK, "a", WRITE, 0, END)


def test_what_was_had_again_and_lost_is_claimed_though_others_had_it_before() -> None:
    made = claimed()
    assert made.granted(FILE, RANGES, WRITE, 0, 20)
    made.lost_ranges(FILE, RANGES, "a", [(5, 10, WRITE)], 1.0)
    assert made.allows(FILE, RANGES, "a", WRITE, 5, 10)
    assert not made.allows(FILE, RANGES, "a", READ, 4, 5)
    made.lost(FILE, "a", 2.0)
    assert made.allows(FILE, RANGES, "a", WRITE, 0, END)


def test_who_grants_locks_himself_may_have_had_all() -> None:
    made = claimed()
    assert made.lent(FILE)
    assert not made.lent(FILE)
    assert not made.allows(FILE, RANGES, "a", READ, 0, 1)
    assert not made.allows(FILE, FLOCK, "a", READ, 0, END)
    assert made.allows(FILE, READERS, "a", READ, 0, 1)
    made.lost_ranges(FILE, RANGES, "a", [(0, 10, WRITE)], 1.0)
    assert made.allows(FILE, RANGES, "a", WRITE, 0, 10)
    assert not made.allows(FILE, RANGES, "a", WRITE, 0, 11)
    assert not made.granted(FILE, RANGES, READ, 3, 4)
    assert not made.allows(FILE, RANGES, "a", WRITE, 0, 10)
    assert not made.allows(FILE, FLOCK, "a", READ, 0, END)


def test_many_ranges_are_everything() -> None:
    made = claimed()
    for number in range(RANGES_MAX + 1):
        assert made.allows(FILE, RANGES, "a", READ, 5 * RANGES_MAX, END)
        made.granted(FILE, RANGES, READ, 2 * number, 2 * number + 1)
    assert not made.allows(FILE, RANGES, "a", READ, 5 * RANGES_MAX, END)


def test_untouched_are_those_that_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    made = claimed()
    made.lost((1, 3), "b", 0.0)
    assert list(made.untouched()) == [(1, 3, "b"), (1, 2, "a")]
    assert made.granted(FILE, READERS, READ, 0, 1)
    assert not made.granted(FILE, READERS, READ, 0, 1)
    assert list(made.untouched()) == [(1, 3, "b")]


def test_the_oldest_of_a_node_and_of_all_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "NODE_MAX", 2)
    monkeypatch.setattr(claims, "CLAIMS_MAX", 3)
    made = claimed()
    made.lost((1, 0), "b", 0.0)
    made.lost((1, 1), "b", 0.0)
    made.lost((1, 0), "b", 0.0)
    made.lost((1, 3), "b", 0.0)
    assert sorted(made.untouched()) == [(1, 0, "b"), (1, 2, "a"), (1, 3, "b")]
    made.lost((1, 3), "c", 0.0)
    assert sorted(made.untouched()) == [(1, 0, "b"), (1, 3, "b"), (1, 3, "c")]
    assert made.others((1, 3), "b", -1.0)
    assert not made.others((1, 3), "b", 0.0)
    assert not made.others((1, 0), "b", -1.0)
