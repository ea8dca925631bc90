"""The search for the largest packet, driven without a path."""

from __future__ import annotations

from random import Random

import pytest

from qnetpy.link.transport.constants import BASE_PAYLOAD
from qnetpy.link.transport.mtu import BLACK_HOLE_PACKETS, STEP, MtuSearch


def settle(search: MtuSearch, limit: int, now: float, random: Random | None = None) -> int:
    """Answer probes as a path with *limit* does until there are no more; returns how many there were."""
    probes = 0
    while search.due():
        sizes = []
        while search.due():
            sizes.append(search.probe())
        for size in sizes:
            probes += 1
            if size <= limit and (random is None or random.random() > 0.05):
                search.on_acked(size, now)
            else:
                search.on_lost(size, now)
    return probes


@pytest.mark.parametrize("maximum", [1201, 1400, 1444, 8944, 65000])
@pytest.mark.parametrize("limit", [1200, 1244, 1400, 1444, 1500, 4000, 8944])
def test_finds_the_largest(maximum: int, limit: int) -> None:
    search = MtuSearch(maximum, 30.0, True)
    probes = settle(search, limit, 1.0)

    best = min(maximum, limit)
    assert best - STEP <= search.payload <= best
    assert probes <= 60
    assert (search.retry_at is None) == (search.payload == maximum)


def test_interface_and_ethernet_size_are_tried_at_once() -> None:
    search = MtuSearch(8944, 30.0, True)
    sizes = []
    while search.due():
        sizes.append(search.probe())

    assert sizes == [1444, 8944]


def test_retry_finds_what_grew() -> None:
    search = MtuSearch(8944, 30.0, True)
    settle(search, 1444, 1.0)
    assert search.retry_at == 31.0

    search.on_retry()
    settle(search, 8944, 31.0)

    assert search.payload == 8944


@pytest.mark.parametrize("seed", range(20))
def test_random_loss_rarely_hides_the_size(seed: int) -> None:
    search = MtuSearch(8944, 30.0, True)
    settle(search, 8944, 0.0, Random(seed))

    assert search.payload >= 8944 - STEP


def test_black_hole_falls_back_and_searches_below() -> None:
    search = MtuSearch(8944, 30.0, True)
    settle(search, 9000, 0.0)
    assert not search.on_large_lost(BLACK_HOLE_PACKETS - 1, 1.0)
    assert search.on_large_lost(1, 1.0)
    assert search.payload == BASE_PAYLOAD

    settle(search, 1300, 1.0)

    assert 1300 - STEP <= search.payload <= 1300


def test_lost_at_the_base_is_no_black_hole() -> None:
    search = MtuSearch(1200, 30.0, True)

    assert not search.due()
    assert not search.on_large_lost(100, 1.0)


def test_late_answer_after_a_fall_back_does_not_raise_beyond_what_failed() -> None:
    search = MtuSearch(8944, 30.0, True)
    settle(search, 4000, 0.0)
    payload = search.payload

    assert not search.on_acked(8944, 1.0)
    assert search.payload == payload
