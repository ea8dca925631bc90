"""Three machines hammer one tree, for a short while (tests/suites/hammer.py runs it for longer)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qnetpy.testing import cluster as kit
from tests.suites import hammer

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
SECONDS = 12.0


def test_nothing_is_torn_lost_or_comes_back(start_cluster: Callable[..., kit.Cluster]) -> None:
    cluster = start_cluster(hammer.TOPOLOGY)
    for node in cluster.nodes:
        cluster.run(node, "qnet", "nodes", "--wait", ",".join(other for other in cluster.nodes if other != node))
    did = hammer.hammer(cluster, SECONDS, 7)
    assert did["tokens"] > 1
    assert all(did[name] for name in ("append", "read_log", "publish", "peek", "contest", "count", "move", "change_own", "look_at_other"))
