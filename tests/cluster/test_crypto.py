"""Who does the ciphers changes at run time, under load, without losing anything; and /dev/crypto of another node."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import facts, wait_for

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
[[config.access.exports]]
path = "/dev/crypto"
verbs = ["read", "write"]
nodes = ["n1"]
[nodes.n1]
[nodes.n2]
[nodes.n3]
"""
SWAPS = 10
"""On each of the two nodes."""
ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from qnetpy.cli import daemon
from resmgr.errors import ResmgrError
from stack.cryptodev.client import CryptoDevice
with daemon.connect() as client:
    try:
        device = CryptoDevice(client, sys.argv[2], timeout=20)
        session = device.aead("chacha20-poly1305", bytes(32))
        items = [bytes([number % 251]) * 3000 for number in range(1500)]
        nonces = [number.to_bytes(12, "big") for number in range(1500)]
        sealed = session.seal_many(nonces, items, [b""] * 1500)
        print(session.open_many(nonces, sealed, [b""] * 1500) == items, sealed[7][:4].hex(), flush=True)
    except ResmgrError as error:
        sys.exit(f"{error.errno} {error.strerror}")
    sys.stdin.read()
"""


def served(cluster: kit.Cluster, node: str) -> dict[str, int]:
    """Sessions by provider."""
    return {one["name"]: sum(one["sessions"].values()) for one in facts(cluster, node, "crypto")["providers"] if one["sessions"]}


def link(cluster: kit.Cluster, node: str) -> tuple[int, str, dict[str, int]]:
    other = next(one for one in facts(cluster, node, "nodes")["nodes"] if one["name"] == {"n1": "n2", "n2": "n1"}[node])
    return other["starts"], other["state"], other["link"]["keys"]


def test_providers_change_under_load(start_cluster: Start) -> None:
    cluster = start_cluster(TOPOLOGY)
    cluster.run("n1", "qnet", "nodes", "--wait", "n2,n3")
    starts, _, before = link(cluster, "n1")
    assert served(cluster, "n1") == {"openssl": 4}
    loop = """
        dd if=/dev/urandom of=/tmp/ours bs=512k count=1 2>/dev/null
        until test -e /tmp/enough; do
            cp /tmp/ours /net/$1/tmp/from$2 && cmp /tmp/ours /net/$1/tmp/from$2 || exit 1
            echo round
            sleep 0.1
        done
    """
    with (
        cluster.running("n1", "sh", "-c", loop, "sh", "n2", "1") as copies,
        cluster.running("n2", "sh", "-c", loop, "sh", "n1", "2") as back,
    ):
        for number in range(SWAPS):
            for node in ("n1", "n2"):
                wanted = ("threads", "openssl")[number % 2]
                assert facts(cluster, node, "crypto", "use", wanted) == {"moved": 4, "stayed": 0}
        assert served(cluster, "n1") == served(cluster, "n2") == {wanted: 4}
        # One that is another implementation altogether, for a moment: what it cannot do in time waits.
        assert facts(cluster, "n2", "crypto", "use", "reference", "--anyway")["moved"] == 4
        assert facts(cluster, "n2", "crypto", "use", "openssl")["moved"] == 4
        for one, node in ((copies, "n1"), (back, "n2")):
            cluster.run(node, "touch", "/tmp/enough")
            output, errors = one.communicate(timeout=120)
            assert (one.returncode, errors) == (0, b"")
            assert output.count(b"round") > 3, "nothing went on meanwhile"
    assert link(cluster, "n1")[:2] == (starts, "up")
    for node in ("n1", "n2"):
        # Not one frame was refused, and no new keys were made: the ones that there were moved.
        keys = link(cluster, node)[2]
        assert (keys["bad_tag"], keys["replayed"]) == (0, 0)
        assert keys["sealed"] > 1000
    assert before["sealed"] < link(cluster, "n1")[2]["sealed"]
    told = cluster.run("n1", "qnet", "crypto").stdout
    assert f"use {4 * SWAPS}" in told
    assert "openssl" in told
    assert "4 aes-128-gcm" in told
    assert "ccmp-128" in told

    refused = cluster.run("n1", "qnet", "crypto", "use", "openssl", user="alice", check=False)
    assert refused.returncode == 1
    assert "only root" in refused.stderr
    assert cluster.run("n1", "qnet", "crypto", user="alice").stdout == cluster.run("n1", "qnet", "crypto").stdout
    for name, why in (("rot13", "there is no crypto provider rot13; there are"), ("reference", "is for tests"), ("afalg", "AF_ALG")):
        wrong = cluster.run("n1", "qnet", "crypto", "use", name, check=False)
        assert wrong.returncode == 1
        assert why in wrong.stderr
    assert served(cluster, "n1") == {"openssl": 4}

    device_of_another_node(cluster)


def device_of_another_node(cluster: kit.Cluster) -> None:
    """n1 may use n2's ciphers; n3 may not. What n1's program had there ends with it."""
    words = (sys.executable, "-P", "-c", PROGRAM, str(ROOT))
    with cluster.running("n1", *words, "n2") as program:
        assert program.stdout is not None
        assert program.stdout.readline().startswith(b"True ")
        (openssl,) = (one for one in facts(cluster, "n2", "crypto")["providers"] if one["name"] == "openssl")
        assert openssl["sessions"] == {"aes-128-gcm": 4, "chacha20-poly1305": 1}
        program.kill()
    wait_for(lambda: served(cluster, "n2") == {"openssl": 4}, 20.0, "the program's session is gone")
    with cluster.running("n3", *words, "n2") as refused:
        _, errors = refused.communicate(timeout=60)
    assert (refused.returncode, errors.split()[0]) in ((1, b"2"), (1, b"13"))
    assert cluster.run("n1", "sh", "-c", "head -n 1 /net/n2/dev/crypto").stdout.startswith("aead aes-128-gcm key 16 16 nonce 12 tag 16 by")
