"""up, down, status and nodes on whole nodes, and bad input: each mistake is one clear line, and the others go on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import facts, states, wait_for
from resmgr.compiled import describe

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]
SPAWN = """
[config.access.spawn]
nodes = ["a"]
[nodes.a]
[nodes.b]
"""


@pytest.fixture(scope="module")
def nodes(_rights: None) -> Iterator[kit.Cluster]:
    """a and b, for all tests after which both are up as before."""
    with kit.cluster("[nodes.a]\n[nodes.b]\n") as running:
        yield running


def refused(cluster: kit.Cluster, node: str, *argv: str) -> str:
    """Standard error, one line, of a command that must fail."""
    result = cluster.run(node, *argv, check=False)
    assert result.returncode not in (0, 124), result
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.strip()


def test_a_node_starts_tells_about_itself_and_stops(nodes: kit.Cluster) -> None:
    nodes.run("a", "qnet", "nodes", "--wait", "b")
    nodes.run("b", "qnet", "nodes", "--wait", "a")

    status = facts(nodes, "a")
    assert (status["node"], status["cluster"], status["mount"]) == ("a", nodes.name, "/net")
    number = status["compiled_modules"]
    assert isinstance(number, int)
    assert (number > 0) == (os.environ["QNETPY_COMPILED"] == "on")
    for row in ("node:", "NODE", "b     up", "established ", "dropped: ", describe(number)):
        assert row in nodes.run("a", "qnet", "status").stdout
    assert "b     up" in nodes.run("a", "qnet", "ls").stdout
    assert "is up already" in refused(nodes, "a", "qnet", "up")

    # By its number another process may be meant there.
    for word in "down", "restart":
        assert "in another pid namespace" in refused(nodes, "b", "unshare", "--pid", "--fork", "--kill-child", "qnet", word)
        assert nodes.run("b", "ls", "/net").stdout.split() == ["a", "b"]

    begin = time.monotonic()
    assert nodes.run("b", "qnet", "down").stdout == "node is down\n"
    took = time.monotonic() - begin + wait_for(lambda: states(nodes, "a") == {"b": "down"}, 5.0)
    assert took < 3.0, "it did not say goodbye: the others waited for the silence"
    assert nodes.run("b", "qnet", "down").stdout == "this node is not up\n"
    assert refused(nodes, "b", "qnet", "status") == "qnet status: this node is not up; try: qnet up"
    assert nodes.run("b", "cat", "/proc/mounts").stdout.count(" /net ") == 0
    assert "not up within 0.1 s: b" in refused(nodes, "a", "qnet", "nodes", "--wait", "b", "--timeout", "0.1")

    nodes.run("b", "qnet", "up")
    nodes.run("a", "qnet", "nodes", "--wait", "b")
    assert nodes.run("a", "cat", "/net/b/etc/hostname").stdout == "b\n"


def test_a_message_to_nobody_says_what_is_missing(nodes: kit.Cluster) -> None:
    nodes.run("a", "qnet", "nodes", "--wait", "b")

    assert refused(nodes, "a", "qnet", "send", "b/clock", "x") == (
        "qnet send: nobody has attached the name 'clock' on node b; try: qnet name, there, which lists them"
    )
    assert refused(nodes, "a", "qnet", "send", "c/clock", "x") == "qnet send: no node c is up; try: qnet ls"
    assert refused(nodes, "a", "qnet", "send", "b/", "x").startswith("qnet send: 'b/' is no server's name")


def test_a_daemon_that_was_killed_is_followed_by_another(start_cluster: Start) -> None:
    """It leaves a dead mount, its lock file and its socket. One of several that are started at once wins, the others say so."""
    more = '[[nodes.b.config.qnet.mounts]]\npoint = "/tmp/more"\nsource = "a:/"\n'
    cluster = start_cluster(f"[nodes.a]\n[nodes.b]\n{more}")
    cluster.run("b", "qnet", "nodes", "--wait", "a")

    cluster.run("b", "sh", "-c", "kill -9 $(cat /run/qnet/lock)")
    wait_for(lambda: "not connected" in cluster.run("b", "ls", "/net", check=False).stderr, 5.0)
    assert refused(cluster, "b", "qnet", "status") == "qnet status: this node is not up; try: qnet up"
    result = cluster.run("b", "sh", "-c", "for i in 1 2 3; do qnet up & done; wait")
    assert result.stdout.count("node is up: process ") == 1, result
    others = result.stderr.splitlines()
    assert len(others) == 2
    assert all("up already" in line or "is running already" in line for line in others), others
    cluster.run("b", "qnet", "nodes", "--wait", "a")
    assert cluster.run("b", "cat", "/net/a/etc/hostname").stdout == "a\n"
    assert cluster.run("b", "grep", "-c", " /net ", "/proc/mounts").stdout == "1\n"
    wait_for(lambda: cluster.run("b", "cat", "/tmp/more/etc/hostname", check=False).stdout == "a\n", 5.0)
    assert cluster.run("b", "grep", "-c", " /tmp/more ", "/proc/mounts").stdout == "1\n"


def test_what_is_mounted_on_a_running_node_is_seen_by_the_others(nodes: kit.Cluster) -> None:
    """As on machines, whose mounts are shared with the daemon's namespace; and /net itself, mounted again elsewhere, is not served in a
    circle."""
    nodes.run("a", "qnet", "nodes", "--wait", "b")
    nodes.run("b", "qnet", "nodes", "--wait", "a")

    nodes.run("b", "sh", "-c", "mkdir /tmp/disk && mount -t tmpfs -o mode=0755 none /tmp/disk && echo there >/tmp/disk/file")
    assert nodes.run("a", "cat", "/net/b/tmp/disk/file").stdout == "there\n"

    nodes.run("b", "sh", "-c", "mkdir /tmp/again && mount --bind /net /tmp/again")
    assert nodes.run("b", "ls", "/tmp/again").stdout == "a\nb\n"
    assert nodes.run("a", "timeout", "5", "ls", "-A", "/net/b/tmp/again").stdout == ""
    assert nodes.run("a", "timeout", "5", "cat", "/net/b/etc/hostname").stdout == "b\n"
    assert nodes.run("b", "timeout", "5", "cat", "/net/a/etc/hostname").stdout == "a\n"
    nodes.run("b", "umount", "-l", "/tmp/again", "/tmp/disk")


def test_a_node_that_cannot_start_says_why(start_cluster: Start, tmp_path: Path) -> None:
    cluster = start_cluster('[nodes.a]\nboot = []\n[nodes.b]\nboot = []\ncertificate = "none"\n')

    assert "there is no network interface eth7" in refused(cluster, "a", "qnet", "up", "--interface", "eth7")
    assert "drop=lots" in refused(cluster, "a", "qnet", "up", "--fault", "drop=lots")
    assert refused(cluster, "b", "qnet", "up").endswith("try: qnet init CLUSTER, or qnet join CODE")
    cluster.run("a", "sh", "-c", "printf '[qnet]\\nethertyp = 1\\n' >/tmp/bad.toml")
    assert "qnet.ethertyp: unknown key; did you mean 'ethertype'?" in refused(cluster, "a", "qnet", "up", "--config", "/tmp/bad.toml")
    cluster.run("a", "chmod", "644", "/etc/qnet/node.key")
    assert "/etc/qnet/node.key" in refused(cluster, "a", "qnet", "up")
    cluster.run("a", "chmod", "600", "/etc/qnet/node.key")
    hidden = "mount --bind /dev/null /dev/fuse && qnet up"
    assert "/dev/fuse" in refused(cluster, "a", "unshare", "-m", "sh", "-c", hidden)
    cluster.run("a", "qnet", "up")
    assert cluster.run("a", "ls", "/net").stdout == "a\n"


def test_wrong_certificates_are_refused_counted_and_harm_nobody(start_cluster: Start) -> None:
    cluster = start_cluster(
        '[nodes.a]\n[nodes.b]\n[nodes.stranger]\ncluster = "other"\n[nodes.old]\ncertificate = "expired"\n[nodes.twin]\nnode = "b"\n'
    )
    cluster.run("a", "qnet", "nodes", "--wait", "b")

    def counted() -> dict[str, int]:
        handshake = facts(cluster, "a")["handshake"]
        assert isinstance(handshake, dict)
        return handshake

    wait_for(lambda: counted().get("bad_mac", 0) > 0, 10.0)
    wait_for(lambda: any(name.startswith("bad_certificate") for name in counted()), 10.0)
    wait_for(lambda: "duplicate_name" in json.dumps(facts(cluster, "a")) or "duplicate_name" in json.dumps(facts(cluster, "b")), 10.0)
    (line,) = [line for line in cluster.run("a", "qnet", "status").stdout.splitlines() if line.startswith("handshakes:")]
    assert "bad_mac" in line
    assert "bad_certificate_expired" in line
    assert states(cluster, "a")["b"] == "up"
    assert not {"stranger", "old"} & set(states(cluster, "a"))
    assert cluster.run("stranger", "ls", "/net").stdout == "stranger\n"
    assert cluster.run("a", "ls", "/net").stdout == "a\nb\n"
    for node in cluster.nodes:
        assert "Traceback" not in cluster.run(node, "cat", "/run/qnet/log").stdout


def test_a_program_has_the_limits_it_would_have_at_home(start_cluster: Start) -> None:
    """The caller's, and not those that the daemon gave itself."""
    cluster = start_cluster(SPAWN)
    cluster.run("b", "qnet", "down")
    cluster.run("b", "sh", "-c", "ulimit -Sn 1000; nohup nice -n -3 qnet up")
    cluster.run("a", "qnet", "nodes", "--wait", "b")
    pid = cluster.run("b", "cat", "/run/qnet/lock").stdout.strip()
    daemon = cluster.run("b", "sh", "-c", f"grep 'open files' /proc/{pid}/limits; cut -d' ' -f19 /proc/{pid}/stat").stdout.split()
    assert daemon[3] == daemon[4] != "1000", "the daemon has all it can get"
    assert daemon[-1] == "-3"
    show = "ulimit -Sn; ulimit -Hn; umask; nice"
    at_home = cluster.run("b", "sh", "-c", f"ulimit -Sn 1000; {show}").stdout
    assert cluster.run("a", "sh", "-c", f"ulimit -Sn 1000; qnet on b -- sh -c '{show}'").stdout == at_home
    assert int(cluster.run("a", "qnet", "on", "b", "--", "grep", "SigIgn", "/proc/self/status").stdout.split()[1], 16) & 1 == 0


def test_a_third_node_through_a_second_one(start_cluster: Start) -> None:
    """`/net/b/net/c` is c, which a reaches itself: as the same user, and also while b takes no part any more."""
    cluster = start_cluster("[nodes.a]\n[nodes.b]\n[nodes.c]\n")
    for one in "abc":
        for other in "abc".replace(one, ""):
            cluster.run(one, "qnet", "nodes", "--wait", other)

    assert cluster.run("a", "cat", "/net/b/net/c/etc/hostname").stdout == "c\n"
    assert cluster.run("a", "cat", "/net/b/net/c/net/b/etc/hostname", check=False).stderr.endswith("Too many levels of symbolic links\n")
    assert cluster.run("a", "stat", "-c", "%F", "/net/c/net/b/net").stdout == "directory\n"
    for path in ("b/net/a", "b/net/b", "c/net/b/net/c"):
        result = cluster.run("a", "ls", f"/net/{path}", check=False)
        assert "Too many levels of symbolic links" in result.stderr, path
    assert "No such file" in cluster.run("a", "ls", "/net/b/net/nobody", check=False).stderr
    assert cluster.run("a", "ls", "/net/b/net").stdout == ""

    wait_for(lambda: cluster.run("a", "sh", "-c", "exec 3</net/b/net/c/etc/hostname; cat <&3").stdout == "c\n", 5.0)
    cluster.run("c", "qnet", "down")
    wait_for(lambda: "down" in cluster.run("a", "cat", "/net/b/net/c/etc/hostname", check=False).stderr, 5.0)
