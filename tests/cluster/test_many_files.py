"""Large trees are walked in bounded memory (tests/suites/millions.py walks larger ones)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.daemons import two_nodes
from tests.cluster.meshed import needs_net
from tests.suites.millions import Millions

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
COUNT = 15_000
LISTED = 400
KNOWN = 1500
"""Bytes that an entry may take at most: one that is only listed, and one that the kernel holds. The daemons' own growth by work of any
kind, a few MiB, counts here, too: of a million entries each takes half as much (docs/posix.md)."""


@pytest.fixture(scope="module")
def millions() -> Iterator[Millions]:
    needs_net()
    with two_nodes() as two:
        millions = Millions(two, COUNT)
        millions.make()
        yield millions


@pytest.mark.parametrize("name", ["list", "find", "seek"])
def test_a_walk_takes_little_memory(millions: Millions, name: str) -> None:
    walk = millions.walk(name, getattr(millions, name))
    for node in ("a", "b"):
        assert walk.most[node] - walk.before[node] < LISTED * COUNT


def test_what_the_kernel_gave_back_is_used_again(millions: Millions) -> None:
    first = millions.walk("find_sizes", millions.find_sizes)
    second = millions.walk("find_sizes", millions.find_sizes)
    assert first.most["a"] - first.before["a"] < KNOWN * COUNT
    assert second.most["a"] - first.most["a"] < KNOWN // 10 * COUNT
