"""A bad link costs time, never bytes: copies in both directions at once end with the right checksum."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import facts

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]
MIB = 24


def test_copies_both_ways_over_a_lossy_link(start_cluster: Start) -> None:
    cluster = start_cluster("lossy")
    for node, other in (("n1", "n2"), ("n2", "n1")):
        cluster.run(node, "qnet", "nodes", "--wait", other)
        cluster.run(node, "dd", "if=/dev/urandom", "of=/tmp/ours", "bs=1M", f"count={MIB}")
    with (
        cluster.running("n1", "cp", "/tmp/ours", "/net/n2/tmp/from-n1") as there,
        cluster.running("n2", "cp", "/tmp/ours", "/net/n1/tmp/from-n2") as back,
    ):
        for copy in (there, back):
            output, errors = copy.communicate(timeout=120)
            assert (copy.returncode, output, errors) == (0, b"", b"")

    sums = {node: cluster.run(node, "sh", "-c", "sha256sum /tmp/ours /tmp/from-*").stdout.split()[::2] for node in ("n1", "n2")}

    assert sums["n1"] == sums["n2"][::-1]
    assert sums["n1"][0] != sums["n1"][1]
    link = facts(cluster, "n1")["nodes"][0]["link"]
    assert link["keys"]["bad_tag"] > 0, "no frame was corrupted: this was no bad link"
    assert link["keys"]["replayed"] > 0, "no frame came twice"
    assert link["paths"][0]["lost"] > 0, "no frame was lost"
