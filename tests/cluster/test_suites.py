"""Ciphers change at run time, under load, without losing anything."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import facts, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]
TOPOLOGY = """
title = "suites"
users = [{ name = "alice", uid = 4001 }]
[[config.access.exports]]
path = "/tmp"
verbs = ["read", "write"]
[nodes.n1]
[nodes.n2]
"""
SECONDS = 20.0


def told(cluster: kit.Cluster, node: str) -> tuple[str, int, str]:
    """The cipher of the link, how often the other node came up, and its reason."""
    (other,) = facts(cluster, node, "nodes")["nodes"]
    return other["link"]["suite"], other["starts"], other["state"]


def ciphers_are(cluster: kit.Cluster, wanted: str) -> bool:
    return {told(cluster, node)[0] for node in ("n1", "n2")} == {wanted}


def test_ciphers_change_under_load(start_cluster: Start) -> None:
    cluster = start_cluster(TOPOLOGY)
    cluster.run("n1", "qnet", "nodes", "--wait", "n2")
    first, starts, _ = told(cluster, "n1")
    cluster.run("n1", "dd", "if=/dev/urandom", "of=/tmp/ours", "bs=1M", "count=8")
    loop = "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do cp /tmp/ours /net/n2/tmp/there && cmp /tmp/ours /net/n2/tmp/there || exit 1; done"
    with cluster.running("n1", "sh", "-c", loop) as copies:
        for wanted in ("chacha20-poly1305", "aes-256-gcm"):
            assert wanted != first
            cluster.run("n2", "qnet", "suites", wanted)
            wait_for(partial(ciphers_are, cluster, wanted), SECONDS, f"both use {wanted}")
        output, errors = copies.communicate(timeout=120)
    assert (copies.returncode, output, errors) == (0, b"", b"")
    assert told(cluster, "n1")[1:] == (starts, "up")
    assert facts(cluster, "n2", "suites") == {"suites": ["aes-256-gcm"], "links": {"n1": "aes-256-gcm"}}
    assert "aes-256-gcm" in cluster.run("n1", "qnet", "suites").stdout

    refused = cluster.run("n1", "qnet", "suites", "aes-128-gcm", user="alice", check=False)
    assert refused.returncode == 1
    assert "only root" in refused.stderr
    wrong = cluster.run("n1", "qnet", "suites", "rot13", check=False)
    assert wrong.returncode == 2
    assert "'rot13' is no cipher" in wrong.stderr
