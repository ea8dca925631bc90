"""Whole nodes for tests: a cluster that is started from a topology and is gone afterwards, whatever happened to the test.

    with cluster(Path("clusters/three")) as nodes:
        assert nodes.run("n1", "cat", "/net/n2/etc/hostname").stdout == "n2\\n"

`missing` says why clusters cannot run here, for a skip.
"""

from __future__ import annotations

from qnetpy.cluster import rights
from qnetpy.cluster.handle import Cluster
from qnetpy.cluster.handle import running as cluster

__all__ = ["Cluster", "cluster", "missing"]


def missing(fuse: bool = True) -> str:
    """Why clusters cannot run here, for a skip; empty when they can."""
    return "; ".join(rights.missing(fuse))
