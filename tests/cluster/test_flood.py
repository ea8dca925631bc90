"""Under a flood from somebody on the same wire: sessions go on, memory does not grow, and a node of the cluster still gets in.

What the flood takes is measured as the daemon's share of a core, which others on this machine do not disturb. Throughput beside the
undisturbed one: bench/flood.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.attack import TOPOLOGY, Victim, flooding, record

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]
STRANGERS = ["noise", "bad-mac", "bad-mac-spoofed", "data-unknown"]
"""What somebody can send who hears nothing."""
LISTENERS = ["initiation", "initiation-spoofed", "data"]
"""And somebody who recorded the cluster's traffic."""
RATE, HIGH_RATE = 20_000, 100_000
ALLOWED = 0.15
GROWTH_MAX = 4096
"""KiB. Filling every table of the daemon takes less."""


@pytest.fixture
def trial(start_cluster: Start, tmp_path: Path) -> tuple[Victim, bytes]:
    cluster = start_cluster(f"{TOPOLOGY}[nodes.n3]\n")
    cluster.run("n1", "qnet", "nodes", "--wait", "n2")
    recording = record(cluster, "n1", "n2", tmp_path)
    cluster.run("n3", "qnet", "nodes", "--wait", "n2")
    return Victim(cluster, "n2"), recording


def write_some(victim: Victim) -> None:
    """Bytes through the link, to the last."""
    script = "head -c 4000000 /dev/urandom > /tmp/here && cp /tmp/here /net/n2/tmp/there && cmp /tmp/here /net/n2/tmp/there"
    victim.cluster.run("n1", "sh", "-c", script, seconds=60.0)


def test_a_flood_takes_little_and_ends_no_link(trial: tuple[Victim, bytes]) -> None:
    victim, recording = trial
    write_some(victim)
    idle, _ = victim.share(1.5)
    before = {node: victim.link(node) for node in ("n1", "n3")}
    memory = victim.memory()
    for kinds in (STRANGERS, LISTENERS):
        for rate in (RATE, HIGH_RATE):
            with flooding(victim, "x", recording, kinds, rate):
                time.sleep(1.5)
                share, arrived = victim.share(2.0)
                write_some(victim)
            print(f"{'+'.join(kinds)}: {arrived:.0f} frames/s take {share - idle:.1%} of a core (idle {idle:.1%})")
            assert arrived > 4000, "this was no flood"
            if rate == RATE:
                assert share - idle < ALLOWED
            assert {node: victim.link(node) for node in before} == before
    assert victim.memory() - memory < GROWTH_MAX
    assert victim.status()["flood"]["times"] > 0
    assert victim.status()["interfaces"][0]["info"]["screened out"] > 10_000


def test_a_node_gets_in_while_the_flood_lasts(trial: tuple[Victim, bytes]) -> None:
    victim, recording = trial
    cluster = victim.cluster

    def join() -> float:
        cluster.run("n3", "qnet", "down")
        began = time.monotonic()
        cluster.run("n3", "qnet", "up")
        cluster.run("n3", "qnet", "nodes", "--wait", "n2", seconds=30.0)
        return time.monotonic() - began

    alone = join()
    with flooding(victim, "x", recording, [*STRANGERS, *LISTENERS], HIGH_RATE):
        time.sleep(1.5)
        _, arrived = victim.share(1.0)
        flooded = join()
    print(f"to start and be up: {alone:.2f} s alone, {flooded:.2f} s with {arrived:.0f} frames/s")
    assert arrived > 4000
    assert flooded < alone + 10.0
    assert victim.link("n1")[0] == "up"
