"""Copies between two other nodes, by real programs: on a the user copies from b to c, and from b to d, which b does not see."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from qnetpy.testing import cluster as kit
from tests.cluster.meshed import needs_net

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
ANNA, BERT = 4001, 4002
SERVES = 'exports = [{ path = "/tmp", verbs = ["read", "write"] }, { path = "/proc", verbs = ["read"] }]'
TOPOLOGY = f"""
title = "copies between nodes"
users = [{{ name = "anna", uid = {ANNA} }}, {{ name = "bert", uid = {BERT} }}]
[links.one]
[links.two]
[nodes.a]
links = ["one", "two"]
[nodes.b]
links = ["one"]
[nodes.b.config.access]
users = [{{ mapping = "identity" }}]
{SERVES}
[nodes.c]
links = ["one"]
[nodes.c.config.access]
users = [{{ mapping = "table", users = {{ {ANNA} = "bert" }} }}]
{SERVES}
[nodes.d]
links = ["two"]
[nodes.d.config.access]
users = [{{ mapping = "identity" }}]
{SERVES}
"""
COPY = """
import errno, os, sys
source, there = sys.argv[1:]
one = os.open(source, os.O_RDONLY)
two = os.open(there, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
while count := os.copy_file_range(one, two, 1 << 30):
    pass
os.fsync(two)
"""
SIZE = 40_000_003


@pytest.fixture(scope="module")
def nodes() -> Iterator[kit.Cluster]:
    needs_net()
    with kit.cluster(TOPOLOGY) as running:
        running.run("a", "qnet", "nodes", "--wait", "b,c,d")
        running.run("c", "qnet", "nodes", "--wait", "b")
        for node in ("b", "c", "d"):
            running.run(node, "chmod", "1777", "/tmp")
        running.run("b", "sh", "-c", f"head -c {SIZE} /dev/urandom > /tmp/x; chown {ANNA} /tmp/x; chmod 600 /tmp/x")
        yield running


def as_user(nodes: kit.Cluster, node: str, user: str, *argv: str, check: bool = True) -> str:
    result = nodes.run(node, "setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *argv, check=check)
    return result.stdout + result.stderr


def counters(nodes: kit.Cluster, node: str) -> dict[str, int]:
    """What the node serves to others."""
    counted: dict[str, int] = json.loads(nodes.run(node, "qnet", "status", "--json").stdout)["files"]
    return counted


def mounted(nodes: kit.Cluster, node: str, name: str) -> int:
    """A counter of its mounts of /net."""
    return sum(mount["events"].get(name, 0) for mount in json.loads(nodes.run(node, "qnet", "status", "--json").stdout)["mounts"])


def sums(nodes: kit.Cluster, *files: tuple[str, str]) -> set[str]:
    return {nodes.run(node, "sha256sum", path).stdout.split()[0] for node, path in files}


def received(nodes: kit.Cluster, node: str) -> int:
    return sum(one["rx_bytes"] for one in json.loads(nodes.run(node, "qnet", "status", "--json").stdout)["interfaces"])


def test_two_nodes_copy_between_themselves(nodes: kit.Cluster) -> None:
    before = received(nodes, "a")
    as_user(nodes, "a", "anna", "python3", "-c", COPY, "/net/b/tmp/x", "/net/c/tmp/x")
    assert received(nodes, "a") - before < SIZE // 10, "the data did not come here"
    assert len(sums(nodes, ("b", "/tmp/x"), ("c", "/tmp/x"))) == 1
    # As whom c says that anna is there.
    assert nodes.run("c", "stat", "-c", "%u %s", "/tmp/x").stdout.split() == [str(BERT), str(SIZE)]
    assert mounted(nodes, "a", "copies_between") >= 2
    assert counters(nodes, "b")["takes"] >= SIZE >> 20
    assert counters(nodes, "c")["fetches"] >= 2
    # And what a knew of it before is not shown.
    assert as_user(nodes, "a", "anna", "sha256sum", "/net/c/tmp/x").split()[0] in sums(nodes, ("b", "/tmp/x"))


def test_cp_does_it_so(nodes: kit.Cluster) -> None:
    before = counters(nodes, "c")["fetches"]
    as_user(nodes, "a", "anna", "cp", "/net/b/tmp/x", "/net/c/tmp/by-cp")
    assert len(sums(nodes, ("b", "/tmp/x"), ("c", "/tmp/by-cp"))) == 1
    assert counters(nodes, "c")["fetches"] > before


def test_who_may_not_read_gets_nothing(nodes: kit.Cluster) -> None:
    offers = counters(nodes, "b")["offers"]
    assert "Permission denied" in as_user(nodes, "a", "bert", "cp", "/net/b/tmp/x", "/net/d/tmp/stolen", check=False)
    assert counters(nodes, "b")["offers"] == offers


def test_nodes_that_do_not_see_each_other_are_copied_between_all_the_same(nodes: kit.Cluster) -> None:
    as_user(nodes, "a", "anna", "python3", "-c", COPY, "/net/b/tmp/x", "/net/d/tmp/x")
    assert len(sums(nodes, ("b", "/tmp/x"), ("d", "/tmp/x"))) == 1
    assert counters(nodes, "d")["fetches_no_way"] >= 1
    assert mounted(nodes, "a", "copies_refused") >= 1


def test_a_mount_of_one_s_own_does_it_so(nodes: kit.Cluster) -> None:
    nodes.run("a", "sh", "-c", "chmod 666 /dev/fuse; mkdir -p /tmp/own; chown anna /tmp/own")
    before = counters(nodes, "c")["fetches"]
    as_user(nodes, "a", "anna", "qnet", "mount", "--own", "/tmp/own", "--", "cp", "/tmp/own/b/tmp/x", "/tmp/own/c/tmp/own")
    assert len(sums(nodes, ("b", "/tmp/x"), ("c", "/tmp/own"))) == 1
    assert counters(nodes, "c")["fetches"] > before
