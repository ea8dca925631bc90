"""Whole nodes for tests: a cluster that is started from a topology and is gone afterwards, whatever happened to the test.

    with cluster(Path("clusters/three")) as nodes:
        assert nodes.run("n1", "cat", "/net/n2/etc/hostname").stdout == "n2\\n"

`missing` says why clusters cannot run here, for a skip; `facts`, `states` and `wait_for` are what tests of nodes ask all the time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from qnetpy.cluster import rights
from qnetpy.cluster.handle import Cluster
from qnetpy.cluster.handle import running as cluster

__all__ = ["Cluster", "cluster", "facts", "missing", "states", "wait_for"]

POLL, POLL_MAX = 0.1, 0.5
"""Seconds between looks. Each commonly starts two programs, so a shorter pause takes a core from what is waited for; where a look takes
longer itself, since the machine is busy, the pause is as long."""


def missing(fuse: bool = True) -> str:
    """Why clusters cannot run here, for a skip; empty when they can."""
    return "; ".join(rights.missing(fuse))


def facts(on: Cluster, node: str, *words: str) -> dict[str, Any]:
    """What `qnet WORDS --json` prints on *node*; of `qnet status` without words."""
    told = json.loads(on.run(node, "qnet", *(words or ("status",)), "--json").stdout)
    assert isinstance(told, dict)
    return told


def states(on: Cluster, node: str) -> dict[str, str]:
    """The states of the other nodes as *node* sees them."""
    return {one["name"]: one["state"] for one in facts(on, node, "nodes")["nodes"]}


def wait_for(condition: Callable[[], bool], seconds: float = 10.0, what: str = "what was waited for") -> float:
    """Look until *condition* holds; returns the seconds that it took. AssertionError when it does not within *seconds*."""
    began = looked = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now - began < seconds, f"did not happen within {seconds:g} s: {what}"
        time.sleep(min(max(POLL, now - looked), POLL_MAX))
        looked = time.monotonic()
    return time.monotonic() - began
