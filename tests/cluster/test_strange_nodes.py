"""Nodes with which something is wrong, on real networks: a name that two machines claim, a clock that is a day off."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import facts, states, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]
DAY = 86400
EXPORTS = """
[[config.access.exports]]
path = "/tmp"
verbs = ["read", "write"]
"""
BARE = 'boot = []\ncertificate = "none"\n'
CLOCK = "import os, time; real = time.time; time.time = lambda: real() + float(os.environ['CLOCK'])"
"""A `sitecustomize` that sets the clock of every Python program, before anything else is imported."""


def log(cluster: kit.Cluster, node: str) -> str:
    return cluster.run(node, "cat", "/run/qnet/log").stdout


def test_a_name_that_two_machines_claim_stays_with_the_one_that_is_up(start_cluster: Start) -> None:
    """Under load, which does not notice. Whoever is refused, and who refuses, sees the fingerprints of both keys."""
    cluster = start_cluster(f'{EXPORTS}[nodes.a]\n[nodes.b]\n[nodes.twin]\nnode = "b"\nboot = []\n')
    cluster.run("a", "qnet", "nodes", "--wait", "b")
    cluster.run("b", "sh", "-c", "echo the first > /tmp/who")
    cluster.run("a", "dd", "if=/dev/urandom", "of=/tmp/ours", "bs=1M", "count=16")
    loop = "for n in 1 2 3 4 5 6; do cp /tmp/ours /net/b/tmp/theirs && cmp /tmp/ours /net/b/tmp/theirs || exit 1; done"
    with cluster.running("a", "sh", "-c", loop) as copies:
        cluster.run("twin", "qnet", "up")
        wait_for(lambda: "two nodes with one name" in log(cluster, "a"), 20.0, "a says that b is claimed twice")
        output, errors = copies.communicate(timeout=120)
    assert (copies.returncode, output, errors) == (0, b"", b"")
    assert cluster.run("a", "cat", "/net/b/tmp/who").stdout == "the first\n"
    assert states(cluster, "a") == {"b": "up"}
    assert states(cluster, "twin").get("a") != "up"
    assert [one["starts"] for one in facts(cluster, "a", "nodes")["nodes"]] == [1]
    keys = {node: facts(cluster, node, "cert", "show")["key"] for node in ("b", "twin")}
    assert keys["b"] != keys["twin"]
    told = next(line for line in log(cluster, "a").splitlines() if "two nodes with one name" in line)
    assert keys["twin"] in told
    assert keys["b"] in told


def clocked(cluster: kit.Cluster, node: str, seconds: int, *argv: str) -> None:
    """Run a command, and what it starts, with a wall clock that is wrong."""
    cluster.run(node, "sh", "-c", f'mkdir -p /tmp/clock && echo "{CLOCK}" > /tmp/clock/sitecustomize.py')
    cluster.run(node, "env", "PYTHONPATH=/tmp/clock", f"CLOCK={seconds}", *argv)


def test_a_node_whose_clock_is_a_day_ahead_is_one_like_others(start_cluster: Start) -> None:
    cluster = start_cluster(f"{EXPORTS}[nodes.n1]\n{BARE}[nodes.n2]\n{BARE}[nodes.n3]\n{BARE}")
    cluster.run("n1", "qnet", "init", "home")
    cluster.run("n1", "qnet", "up")
    for node, seconds in (("n2", DAY), ("n3", 0)):
        code = str(facts(cluster, "n1", "invite")["code"])
        clocked(cluster, node, seconds, "qnet", "join", code)
        clocked(cluster, node, seconds, "qnet", "up")
    for node, others in (("n1", "n2,n3"), ("n2", "n1,n3")):
        cluster.run(node, "qnet", "nodes", "--wait", others)
    began = time.time()
    cluster.run("n1", "sh", "-c", "echo something > /net/n2/tmp/here")
    cluster.run("n3", "sh", "-c", "echo n3 > /tmp/who")
    assert cluster.run("n2", "cat", "/net/n3/tmp/who").stdout == "n3\n"
    modified = float(cluster.run("n1", "stat", "-c", "%Y", "/net/n2/tmp/here").stdout)
    assert abs(modified - began) < DAY / 2, "files have the time of their kernel"
    assert facts(cluster, "n2")["membership"]["warning"] == ""
    # A revocation by it is believed, and it believes one.
    cluster.run("n1", "qnet", "revoke", "n3")
    wait_for(lambda: states(cluster, "n2")["n3"] == "down", 5.0, "n2 ends its link with n3")


def test_a_node_whose_clock_is_a_day_late_hears_why_it_is_refused_and_is_let_in_when_it_is_right(start_cluster: Start) -> None:
    """Its own certificate, made today, is of tomorrow for it. Others go on meanwhile."""
    cluster = start_cluster(f"{EXPORTS}[nodes.a]\n[nodes.b]\n[nodes.late]\nboot = []\n")
    cluster.run("a", "qnet", "nodes", "--wait", "b")
    clocked(cluster, "late", -DAY, "qnet", "up")
    sentence = "one of the clocks is wrong"
    wait_for(lambda: sentence in log(cluster, "late") + log(cluster, "a") + log(cluster, "b"), 20.0, "somebody says that a clock is wrong")
    assert cluster.run("late", "ls", "/net").stdout == "late\n"
    assert states(cluster, "a").get("late") != "up"
    cluster.run("b", "sh", "-c", "echo b > /tmp/who")
    assert cluster.run("a", "cat", "/net/b/tmp/who").stdout == "b\n"
    cluster.run("late", "qnet", "down")
    cluster.run("late", "qnet", "up")
    for node, others in (("late", "a,b"), ("a", "b,late")):
        cluster.run(node, "qnet", "nodes", "--wait", others)
    assert cluster.run("a", "ls", "/net").stdout == "a\nb\nlate\n"
