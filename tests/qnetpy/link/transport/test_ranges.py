"""RangeSet against a plain set of integers."""

from __future__ import annotations

from random import Random

import pytest

from qnetpy.link.transport.ranges import RangeSet


@pytest.mark.parametrize("seed", range(30))
def test_against_a_set(seed: int) -> None:
    random = Random(seed)
    ranges = RangeSet()
    model: set[int] = set()
    for _ in range(300):
        start = random.randrange(100)
        stop = start + random.randrange(1, 20)
        span = set(range(start, stop))
        action = random.random()
        if action < 0.5:
            assert ranges.add(start, stop) == len(span - model)
            model |= span
        elif action < 0.8:
            ranges.remove(start, stop)
            model -= span
        else:
            missing = ranges.missing(start, stop)
            assert {value for low, high in missing for value in range(low, high)} == span - model
            assert all(low < high for low, high in missing)
        assert {value for low, high in ranges for value in range(low, high)} == model
        assert ranges.bounds == sorted(set(ranges.bounds)), "ranges touch or overlap"
        assert ranges.total() == len(model)
        assert all((value in ranges) == (value in model) for value in range(125))


def test_drop_oldest() -> None:
    ranges = RangeSet()
    for start in range(0, 100, 10):
        ranges.add(start, start + 5)

    ranges.drop_oldest(3)

    assert list(ranges) == [(70, 75), (80, 85), (90, 95)]
