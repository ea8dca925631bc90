"""Two links between two machines: pulled under load, silent in one direction, limited in rate, shrunk; real kernels, real interfaces.

A link goes silent without losing its carrier by a token bucket on its interface that lets nothing through, and shrinks by one that takes
no large frame: both are in front of the wire and nobody is told.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable

import pytest

from qnetpy.testing import cluster as kit

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]

TWO = """
title = "Two switches"
[links.lan]
{options}
[links.san]
{options}
[[config.access.exports]]
path = "/tmp"
verbs = ["read", "write"]
[nodes.n1]
[nodes.n2]
"""
SILENT = ("tbf", "rate", "8bit", "burst", "60", "latency", "1ms")
"""Takes frames of up to 60 bytes, and of these one a minute."""
SMALL = ("tbf", "rate", "10gbit", "burst", "1300", "latency", "50ms")
"""Takes no frame above 1300 bytes."""
ROUND_TRIPS = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o644)
end = time.monotonic() + float(sys.argv[2])
times = []
while (before := time.monotonic()) < end:
    os.pwrite(fd, b"x" * 64, 0)
    os.fsync(fd)
    times.append(time.monotonic() - before)
times.sort()
print(len(times), times[len(times) // 2], times[-1])
"""
"""Writes 64 bytes and waits for the far end, again and again: how often, the usual time, the longest."""


def paths(cluster: kit.Cluster, node: str, other: str) -> dict[str, dict[str, object]]:
    """The paths of a node to another, by interface."""
    told = json.loads(cluster.run(node, "qnet", "ls", "--json").stdout)
    (link,) = (entry["link"] for entry in told["nodes"] if entry["name"] == other)
    return {path["interface"]: path for path in link["paths"]}


def states(cluster: kit.Cluster, node: str, other: str) -> dict[str, object]:
    return {interface: path["state"] for interface, path in paths(cluster, node, other).items()}


def wait(cluster: kit.Cluster, wanted: dict[str, str], seconds: float = 20.0) -> None:
    """Until both nodes see the paths so."""
    end = time.monotonic() + seconds
    while (seen := [states(cluster, *pair) for pair in (("n1", "n2"), ("n2", "n1"))]) != [wanted, wanted]:
        assert time.monotonic() < end, f"{seen} instead of {wanted}"
        time.sleep(0.1)


BOTH = {"eth0": "usable", "eth1": "usable"}


def two(start_cluster: Start, options: str = "") -> kit.Cluster:
    cluster = start_cluster(TWO.format(options=options))
    cluster.run("n1", "qnet", "nodes", "--wait", "n2")
    wait(cluster, BOTH)
    return cluster


def traffic(cluster: kit.Cluster, node: str, interface: str, *bucket: str) -> None:
    """Put a token bucket in front of an interface, or take it away."""
    if bucket:
        cluster.run(node, "tc", "qdisc", "replace", "dev", interface, "root", *bucket)
    else:
        cluster.run(node, "tc", "qdisc", "del", "dev", interface, "root")


def busiest(cluster: kit.Cluster) -> str:
    """The interface that n1 uses most."""
    told = paths(cluster, "n1", "n2")
    return max(told, key=lambda interface: float(str(told[interface]["share"])))


def stall(cluster: kit.Cluster, seconds: float, trouble: Callable[[], None]) -> tuple[int, float, float]:
    """Round trips while *trouble* happens after a second: count, median, longest."""
    argv = ("python3", "-c", ROUND_TRIPS, "/net/n2/tmp/stall", str(seconds))
    with cluster.running("n1", *argv) as process:
        time.sleep(1.0)
        trouble()
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    count, median, longest = output.split()
    return int(count), float(median), float(longest)


@pytest.mark.parametrize("how", ["carrier", "silence", "one way", "the other way"])
def test_a_link_that_fails_in_use_is_left_and_comes_back(start_cluster: Start, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = two(start_cluster)
    cluster.run("n1", "sh", "-c", "for i in 1 2 3 4; do dd if=/dev/urandom of=/net/n2/tmp/warm bs=64k count=8 2>/dev/null; done")
    interface = busiest(cluster)
    link = {"eth0": "lan", "eth1": "san"}[interface]
    quiet = [name for name, when in (("n1", ("silence", "one way")), ("n2", ("silence", "the other way"))) if how in when]

    def trouble() -> None:
        if how == "carrier":
            cluster.link_down("n2", link)
        for name in quiet:
            traffic(cluster, name, interface, *SILENT)

    count, median, longest = stall(cluster, 4.0, trouble)
    with capsys.disabled():
        print(f"\n{how}: {count} round trips, median {median * 1e3:.2f} ms, longest {longest * 1e3:.0f} ms")
    assert longest < 0.5 + 20 * median
    left = states(cluster, "n1", "n2")
    assert left.pop(interface) in ("suspect", "down", "peer down")
    assert list(left.values()) == ["usable"]
    cluster.link_up("n2", link)
    for name in quiet:
        traffic(cluster, name, interface)
    wait(cluster, BOTH)
    assert {entry["state"] for entry in json.loads(cluster.run("n1", "qnet", "ls", "--json").stdout)["nodes"]} == {"up"}


def test_a_copy_survives_each_link_being_pulled_and_both_together(start_cluster: Start) -> None:
    cluster = two(start_cluster, 'fault = "rate=100M"')
    cluster.run("n1", "dd", "if=/dev/urandom", "of=/tmp/ours", "bs=1M", "count=64")
    with cluster.running("n1", "cp", "/tmp/ours", "/net/n2/tmp/theirs") as copy:
        for links in (("lan",), ("san",), ("lan", "san")):
            time.sleep(0.5)
            for link in links:
                cluster.link_down("n2", link)
            time.sleep(1.0)
            for link in links:
                cluster.link_up("n2", link)
        output, errors = copy.communicate(timeout=60)
    assert (copy.returncode, output, errors) == (0, b"", b"")
    ours, theirs = (cluster.run(node, "sha256sum", path).stdout.split()[0] for node, path in (("n1", "/tmp/ours"), ("n2", "/tmp/theirs")))
    assert ours == theirs
    wait(cluster, BOTH)


def test_the_sum_of_two_limited_links_is_used(start_cluster: Start, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = two(start_cluster, 'fault = "rate=20M"')
    cluster.run("n1", "dd", "if=/dev/zero", "of=/tmp/ours", "bs=1M", "count=12")
    seconds = {}
    for name in ("n2~exclusive:eth0", "n2~exclusive:eth1", "n2"):
        cluster.run("n1", "cp", "/tmp/ours", f"/net/{name}/tmp/warm")
        began = time.monotonic()
        cluster.run("n1", "cp", "/tmp/ours", f"/net/{name}/tmp/theirs")
        seconds[name] = time.monotonic() - began
    one = min(seconds["n2~exclusive:eth0"], seconds["n2~exclusive:eth1"])
    with capsys.disabled():
        print(f"\n12 MiB over one 20 Mbit/s link {one:.2f} s, over two {seconds['n2']:.2f} s: {one / seconds['n2']:.2f} times")
    assert one / seconds["n2"] >= 1.6
    shares = {interface: float(str(path["share"])) for interface, path in paths(cluster, "n1", "n2").items()}
    assert min(shares.values()) > 0.3


def test_a_link_that_shrinks_without_a_word_goes_on(start_cluster: Start) -> None:
    cluster = two(start_cluster)
    cluster.link_down("n2", "san")
    cluster.run("n1", "dd", "if=/dev/urandom", "of=/tmp/ours", "bs=1M", "count=32")
    with cluster.running("n1", "cp", "/tmp/ours", "/net/n2/tmp/theirs") as copy:
        time.sleep(0.05)
        traffic(cluster, "n1", "eth0", *SMALL)
        assert copy.wait(60) == 0
    ours, theirs = (cluster.run(node, "sha256sum", path).stdout.split()[0] for node, path in (("n1", "/tmp/ours"), ("n2", "/tmp/theirs")))
    assert ours == theirs
    cluster.run("n1", "cp", "/tmp/ours", "/net/n2/tmp/again")
    assert int(str(paths(cluster, "n1", "n2")["eth0"]["payload"])) < 1300


def test_names_with_a_choice_of_paths(start_cluster: Start) -> None:
    cluster = two(start_cluster)
    cluster.run("n2", "sh", "-c", "echo there > /tmp/file")
    for choice in ("loadbalance", "redundant", "preferred:eth1", "exclusive:eth0"):
        assert cluster.run("n1", "cat", f"/net/n2~{choice}/tmp/file").stdout == "there\n"
    for choice, why in (("best", "Invalid argument"), ("preferred", "Invalid argument"), ("preferred:eth9", "No such device or address")):
        failed = cluster.run("n1", "cat", f"/net/n2~{choice}/tmp/file", check=False)
        assert failed.returncode != 0
        assert why in failed.stderr
    long = cluster.run("n1", "qnet", "ls", "-l").stdout
    assert "SHARE" in long
    assert long.count("usable") == 2


def test_an_idle_node_with_two_paths_costs_less_than_a_hundredth_of_a_core(
    start_cluster: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = two(start_cluster)
    pid = json.loads(cluster.run("n1", "qnet", "status", "--json").stdout)["pid"]

    def used() -> float:
        fields = cluster.run("n1", "cat", f"/proc/{pid}/stat").stdout.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    time.sleep(2.0)
    before, began = used(), time.monotonic()
    time.sleep(20.0)
    share = (used() - before) / (time.monotonic() - began)
    with capsys.disabled():
        print(f"\nidle with two paths: {share:.2%} of a core")
    assert share < 0.02, "twice the target, for a machine that is shared"


def test_missing_tools_are_noticed() -> None:
    assert subprocess.run(["tc", "-V"], capture_output=True, check=False).returncode == 0
