"""A short history of programs on real mounts, and that the checker sees when a mount believes for too long (tests/suites/history.py)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qnetpy.testing import cluster as kit
from tests.suites import history
from tests.suites.hammer import TOPOLOGY

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
SECONDS = 2.0
BELIEVES = "lease=0,entry_valid=30,attr_valid=30,negative_valid=30"


def test_what_is_seen_was_held(start_cluster: Callable[..., kit.Cluster]) -> None:
    cluster = start_cluster(TOPOLOGY)
    for node in cluster.nodes:
        cluster.run(node, "qnet", "nodes", "--wait", ",".join(other for other in cluster.nodes if other != node))
    seen = history.play(cluster, "/tmp/history", SECONDS, 3)
    assert not seen.wrong, "\n".join(seen.wrong)
    assert {"kept", "list", "mapped", "read", "stat"} <= set(seen.ages), seen.table()
    # Beside it the same programs where names are believed that have changed.
    points = {}
    for node in set(cluster.nodes) - {history.SERVER}:
        points[node] = "/tmp/believing"
        cluster.run(history.SERVER, "mkdir", "-p", "/tmp/believed")
        cluster.run(node, "mkdir", points[node])
        cluster.run(node, "qnet", "mount", "-o", BELIEVES, f"{history.SERVER}:/tmp/believed", points[node])
    for seed in range(3, 9):
        # On a busy machine nobody may look in the moment that shows it.
        there = {node: f"{point}/{seed}" for node, point in points.items()}
        stale = history.play(cluster, f"/tmp/believed/{seed}", SECONDS / 2, seed, there, settles=0.1)
        late = any("does not come to see" in wrong and "look_at_kept" in wrong for wrong in stale.wrong)
        if late and stale.oldest("kept") > 0.0:
            break
    assert late, stale.wrong
    assert stale.oldest("kept") > 0.0, stale.table()
    assert stale.oldest("read", "change") == 0.0, stale.table()
