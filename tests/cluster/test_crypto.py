"""Who does the ciphers changes at run time, under load, without losing anything; and /dev/crypto of another node."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import facts

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]
TOPOLOGY = """
title = "crypto"
users = [{ name = "alice", uid = 4001 }]
[config.qnet.timers]
rekey = 3600.0
[[config.access.exports]]
path = "/tmp"
verbs = ["read", "write"]
[nodes.n1]
[nodes.n2]
"""


def served(cluster: kit.Cluster, node: str) -> dict[str, int]:
    """Sessions by provider."""
    return {one["name"]: sum(one["sessions"].values()) for one in facts(cluster, node, "crypto")["providers"] if one["sessions"]}


def link(cluster: kit.Cluster, node: str) -> tuple[int, str, dict[str, int]]:
    (other,) = facts(cluster, node, "nodes")["nodes"]
    return other["starts"], other["state"], other["link"]["keys"]


def test_providers_change_under_load(start_cluster: Start) -> None:
    cluster = start_cluster(TOPOLOGY)
    cluster.run("n1", "qnet", "nodes", "--wait", "n2")
    starts, _, before = link(cluster, "n1")
    assert served(cluster, "n1") == {"openssl": 2}
    cluster.run("n1", "dd", "if=/dev/urandom", "of=/tmp/ours", "bs=1M", "count=8")
    loop = "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do cp /tmp/ours /net/n2/tmp/there && cmp /tmp/ours /net/n2/tmp/there || exit 1; done"
    with cluster.running("n1", "sh", "-c", loop) as copies:
        for number in range(6):
            for node in ("n1", "n2"):
                wanted = ("threads", "openssl")[number % 2]
                assert facts(cluster, node, "crypto", "use", wanted) == {"moved": 2, "stayed": 0}
                assert served(cluster, node) == {wanted: 2}
        # One that is another implementation altogether, for a moment: what it cannot do in time waits.
        assert facts(cluster, "n2", "crypto", "use", "reference", "--anyway")["moved"] == 2
        assert facts(cluster, "n2", "crypto", "use", "openssl")["moved"] == 2
        output, errors = copies.communicate(timeout=120)
    assert (copies.returncode, output, errors) == (0, b"", b"")
    assert link(cluster, "n1")[:2] == (starts, "up")
    for node in ("n1", "n2"):
        # Not one frame was refused, and no new keys were made: the ones that there were moved.
        keys = link(cluster, node)[2]
        assert (keys["bad_tag"], keys["replayed"]) == (0, 0)
        assert keys["sealed"] > 1000
    assert before["sealed"] < link(cluster, "n1")[2]["sealed"]
    told = cluster.run("n1", "qnet", "crypto").stdout
    assert "openssl" in told
    assert "2 aes-128-gcm" in told
    assert "ccmp-128" in told

    refused = cluster.run("n1", "qnet", "crypto", "use", "openssl", user="alice", check=False)
    assert refused.returncode == 1
    assert "only root" in refused.stderr
    assert cluster.run("n1", "qnet", "crypto", user="alice").stdout == cluster.run("n1", "qnet", "crypto").stdout
    for name, why in (("rot13", "there is no crypto provider rot13; there are"), ("reference", "is for tests"), ("afalg", "AF_ALG")):
        wrong = cluster.run("n1", "qnet", "crypto", "use", name, check=False)
        assert wrong.returncode == 1
        assert why in wrong.stderr
    assert served(cluster, "n1") == {"openssl": 2}
