"""Processes across real nodes: lists, signals, programs on one node, on some, on all. One cluster for the whole file."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from qnetpy.testing import cluster as kit

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
TOPOLOGY = """
title = "processes"
users = [{ name = "alice", uid = 4001 }]
[config.access.spawn]
nodes = ["a", "b"]
[nodes.a]
[nodes.b]
roles = ["build"]
[nodes.c]
"""


@pytest.fixture(scope="module")
def three() -> Iterator[kit.Cluster]:
    lacking = kit.missing(fuse=True)
    if lacking:
        pytest.skip(f"needs namespaces: {lacking}")
    with kit.cluster(TOPOLOGY) as running:
        for node in running.nodes:
            running.run(node, "qnet", "nodes", "--wait", ",".join(other for other in running.nodes if other != node))
        yield running


def test_processes_of_one_of_several_and_of_all_nodes(three: kit.Cluster) -> None:
    pid = three.run("a", "qnet", "on", "-d", "b", "--", "sleep", "4242", user="alice").stdout.strip()
    row = json.loads(three.run("a", "qnet", "pidin", "-n", "b", "--json", pid).stdout)
    assert [(one["node"], one["user"], one["arguments"]) for one in row] == [("b", "alice", ["sleep", "4242"])]
    listed = three.run("a", "qnet", "pidin", "-n", "a,b", "sleep", user="alice").stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [["NODE", "PID"], ["b", pid]]
    told = three.run("a", "qnet", "pidin", "--all", "--json", "sleep")
    assert json.loads(told.stdout) == row
    assert told.stderr == ""

    refused = three.run("c", "qnet", "pidin", "--all", "sleep", check=False)
    assert refused.returncode == 1
    assert "a does not let you see or end its processes; try: [access.spawn] in a's configuration" in refused.stderr

    # Root of one node is nobody on another: it may see, and end nothing that is not nobody's.
    refused = three.run("a", "qnet", "slay", "-n", "b", "sleep", check=False)
    assert (refused.returncode, refused.stderr) == (1, f"qnet slay: b: {pid} sleep (alice): not yours\n")
    assert three.run("a", "qnet", "slay", "--all", "sleep", user="alice").stdout == f"b: {pid} sleep (alice): SIGTERM\n"
    assert three.run("a", "qnet", "pidin", "-n", "b", "sleep", check=False).returncode == 1


def test_nodes_are_chosen_by_what_they_say_of_themselves(three: kit.Cluster) -> None:
    nodes = json.loads(three.run("a", "qnet", "sin", "net", "--json", check=False).stdout)
    assert [(one["node"], one["roles"]) for one in nodes] == [("a", []), ("b", ["build"]), ("c", [])]
    assert [one["node"] for one in json.loads(three.run("a", "qnet", "sin", "info", "--json", "--where", "roles=build").stdout)] == ["b"]
    assert "no node that is up fits" in three.run("a", "qnet", "pidin", "--where", "cpus >= 4000", check=False).stderr


def test_figures_of_another_node(three: kit.Cluster) -> None:
    lines = dict(line.split(" ", 1) for line in three.run("a", "cat", "/net/b/proc/qnetstats").stdout.splitlines())
    assert (lines["node"], lines["nd_up"], lines["nd_down"], lines["node.a"]) == ("b", "2", "0", "up")
    assert int(lines["rx_pkts"]) > 0
    assert int(lines["spawn_refused.not_granted"]) >= 0
    assert json.loads(three.run("a", "cat", "/net/b/proc/qnetstats.json").stdout)["node"] == "b"
