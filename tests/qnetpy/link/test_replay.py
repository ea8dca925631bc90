"""Replay window against a model that remembers everything."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnetpy.link.constants import REPLAY_WINDOW
from qnetpy.link.replay import ReplayWindow


class Model:
    def __init__(self, size: int) -> None:
        self.size = size
        self.seen: set[int] = set()

    def fresh(self, number: int) -> bool:
        return number not in self.seen and (not self.seen or number > max(self.seen) - self.size)

    def accept(self, number: int) -> bool:
        good = self.fresh(number)
        if good:
            self.seen.add(number)
        return good


@given(st.lists(st.integers(0, 60), max_size=80), st.sampled_from([1, 2, 16, 64]))
def test_agrees_with_the_model(numbers: list[int], size: int) -> None:
    window, model = ReplayWindow(size), Model(size)
    for number in numbers:
        assert [window.fresh(n) for n in range(70)] == [model.fresh(n) for n in range(70)]
        assert window.accept(number) == model.accept(number)
        assert window.highest == max(model.seen)
        assert not any(model.fresh(n) for n in range(window.oldest_fresh))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), max_size=20))
def test_runs_equal_single_numbers(runs: list[tuple[int, int]]) -> None:
    """accept_run is a shorter way to accept each."""
    one, two = ReplayWindow(32), ReplayWindow(32)
    for gap, count in runs:
        first = one.highest + 1 + gap
        one.accept_run(first, count)
        assert all(two.accept(number) for number in range(first, first + count))
        assert one.highest == two.highest
        probe = range(max(0, one.highest - 80), one.highest + 3)
        assert [one.fresh(n) for n in probe] == [two.fresh(n) for n in probe]


@pytest.mark.parametrize("seed", range(20))
def test_lossy_reordering_stream(seed: int) -> None:
    chance = random.Random(seed)
    numbers = [n for n in range(30_000) if chance.random() > 0.05]
    numbers.sort(key=lambda n: n + chance.random() * 50)
    window = ReplayWindow()
    assert all(window.accept(number) for number in numbers), seed
    assert not any(window.accept(number) for number in numbers[-REPLAY_WINDOW:]), seed
    assert not any(window.accept(number) for number in numbers[:100]), seed
    assert window.holes < REPLAY_WINDOW * 0.08, seed


def test_exact_edge_of_the_window() -> None:
    window = ReplayWindow()
    window.accept(REPLAY_WINDOW)
    assert window.fresh(1)
    assert not window.fresh(0)
    assert window.accept(1)
    assert not window.accept(1)


def test_a_window_may_start_anywhere() -> None:
    """A new session's first number is where the one before it stopped; numbers just below may arrive late."""
    window = ReplayWindow()
    assert window.accept(10**12)
    assert window.holes == 1
    assert window.accept(10**12 - 5)
    assert not window.accept(10**12 - 5)
    assert not window.accept(10**12 - REPLAY_WINDOW)


def test_the_worst_sender_does_not_fill_memory() -> None:
    """Every second number, and jumps of any size."""
    window = ReplayWindow()
    for number in range(0, 100_000, 2):
        assert window.accept(number)
    assert window.holes <= REPLAY_WINDOW // 2
    for number in (10**9, 10**15, 2**62):
        assert window.accept(number)
        assert window.holes <= 1
