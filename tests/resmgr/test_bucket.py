"""A token bucket gives what its rate and burst say, however the times of asking fall."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resmgr.bucket import TokenBucket


def test_a_burst_then_the_rate() -> None:
    bucket = TokenBucket(rate=10.0, burst=3.0)
    assert [bucket.take(5.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(5.09)
    assert bucket.take(5.11)
    assert not bucket.take(5.11)


def test_a_long_pause_gives_no_more_than_the_burst() -> None:
    bucket = TokenBucket(rate=10.0, burst=3.0)
    assert sum(bucket.take(1e6) for _ in range(10)) == 3


def test_it_says_when_the_next_can_be_taken() -> None:
    bucket = TokenBucket(rate=4.0, burst=2.0)
    assert bucket.ready_at() == 0.0
    assert bucket.take(10.0)
    assert bucket.ready_at() == 10.0
    assert bucket.take(10.0)
    assert bucket.ready_at() == 10.25
    assert not bucket.take(10.125)
    assert bucket.ready_at() == 10.25, "asking in vain costs nothing"
    assert bucket.take(10.25)


def test_it_is_full_again_after_the_time_of_a_burst() -> None:
    bucket = TokenBucket(rate=2.0, burst=4.0)
    assert bucket.full(0.0)
    assert bucket.take(1.0)
    assert not bucket.full(1.25)
    assert bucket.full(1.5)


@given(st.lists(st.floats(0.0, 5.0), max_size=200), st.sampled_from([0.5, 1.0, 32.0]), st.sampled_from([1.0, 6.0, 64.0]))
def test_no_span_of_time_gives_more_than_burst_and_rate(gaps: list[float], rate: float, burst: float) -> None:
    bucket, now = TokenBucket(rate, burst), 100.0
    taken: list[float] = []
    for gap in gaps:
        now += gap
        if bucket.take(now):
            taken.append(now)
    for first, begin in enumerate(taken):
        for last, end in enumerate(taken[first:], first):
            assert last - first + 1 <= burst + rate * (end - begin) + 1e-6


@given(st.floats(0.0, 1e6), st.floats(0.01, 1000.0), st.floats(1.0, 100.0), st.integers(1, 200))
def test_who_comes_when_told_to_gets_one(now: float, rate: float, burst: float, times: int) -> None:
    bucket = TokenBucket(rate, burst)
    for _ in range(times):
        if not bucket.take(now):
            now = bucket.ready_at()
            assert bucket.take(now)


@pytest.mark.parametrize("rate", [0.5, 3.0, 100.0])
def test_a_steady_caller_gets_the_rate(rate: float) -> None:
    bucket = TokenBucket(rate, burst=1.0)
    step = 1.0 / rate / 8
    assert sum(bucket.take(step * count) for count in range(801)) == pytest.approx(101, abs=1)
