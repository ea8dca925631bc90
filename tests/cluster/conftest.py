"""Clusters for tests: `cluster` is the plain one (no Qnet), `start_cluster` starts any topology. Both are gone after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qnetpy.testing import cluster as kit
from tests.cluster.daemons import Two, two_nodes
from tests.cluster.meshed import needs_net, seen

CLUSTERS = Path(__file__).parents[2] / "clusters"
PROGRAMS = """
title = "processes"
users = [{ name = "alice", uid = 4001 }]
[config.access.spawn]
nodes = ["a", "b"]
[nodes.a]
[nodes.b]
roles = ["build"]
[nodes.c]
"""
Start = Callable[..., kit.Cluster]


@pytest.fixture(scope="session")
def _rights() -> None:
    lacking = kit.missing(fuse=False)
    if lacking:
        pytest.skip(f"needs namespaces: {lacking}")


@pytest.fixture
def start_cluster(_rights: None) -> Iterator[Start]:
    """Starts the topology of clusters/NAME, of a path, or of a TOML text."""
    with ExitStack() as stack:

        def start(source: Path | str, writable: tuple[Path, ...] = ()) -> kit.Cluster:
            if isinstance(source, str) and "\n" not in source:
                source = CLUSTERS / source
            return stack.enter_context(kit.cluster(source, writable))

        yield start


@pytest.fixture(scope="session")
def cluster(_rights: None) -> Iterator[kit.Cluster]:
    """Three plain machines on one switch, shared by the whole run: leave them as you found them."""
    with kit.cluster(CLUSTERS / "plain") as running:
        yield running


@pytest.fixture(scope="session")
def three() -> Iterator[kit.Cluster]:
    """a, b and c, which is nobody's friend: programs of a and b may be started anywhere. alice is on all. Shared by several files."""
    with seen(PROGRAMS) as running:
        yield running


@pytest.fixture(scope="session")
def two() -> Iterator[Two]:
    """a and b with their daemons, for tests that look at what daemons keep. Shared by several files."""
    needs_net()
    with two_nodes() as there:
        yield there
