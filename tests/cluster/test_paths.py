"""Two links between two machines: pulled under load, silent in one direction, limited in rate, shrunk; real kernels, real interfaces.

A link goes silent without losing its carrier by a token bucket on its interface that lets nothing through, and shrinks by one that takes
no large frame: both are in front of the wire and nobody is told.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.attack import Victim
from qnetpy.testing.cluster import facts, states, wait_for

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
def once():
    before = time.monotonic()
    os.pwrite(fd, b"x" * 64, 0)
    os.fsync(fd)
    return time.monotonic() - before
times = [once() for _ in range(200)]
print("begun", flush=True)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    times.append(once())
times.sort()
print(len(times), times[len(times) // 2], times[-1])
"""
"""Writes 64 bytes and waits for the far end, again and again: how often, the usual time, the longest. Says when it is in the middle."""


def paths(cluster: kit.Cluster, node: str, other: str) -> dict[str, dict[str, object]]:
    """The paths of a node to another, by interface."""
    (link,) = (entry["link"] for entry in facts(cluster, node, "ls")["nodes"] if entry["name"] == other)
    return {path["interface"]: path for path in link["paths"]}


def path_states(cluster: kit.Cluster, node: str, other: str) -> dict[str, object]:
    return {interface: path["state"] for interface, path in paths(cluster, node, other).items()}


def wait(cluster: kit.Cluster, wanted: dict[str, str], seconds: float = 20.0) -> None:
    """Until both nodes see the paths so."""
    pairs = (("n1", "n2"), ("n2", "n1"))
    wait_for(lambda: all(path_states(cluster, *pair) == wanted for pair in pairs), seconds, f"paths are {wanted}")


def wait_unusable(cluster: kit.Cluster, *interfaces: str) -> None:
    """Until n1 has left these paths."""
    wait_for(lambda: "usable" not in {path_states(cluster, "n1", "n2")[one] for one in interfaces}, 10.0, f"{interfaces} are left")


def wait_copied(cluster: kit.Cluster, size: int) -> None:
    """Until n2 has so much of the file that n1 copies there."""
    command = ("stat", "-c", "%s", "/tmp/theirs")
    wait_for(lambda: int(cluster.run("n2", *command, check=False).stdout or 0) >= size, 30.0, f"{size} bytes are copied")


IDLE = 0.02
"""Of a core: twice the target, for a machine that is shared."""
OUTAGE = 0.7
"""Seconds for which links stay pulled after they were left."""
BOTH = {"eth0": "usable", "eth1": "usable"}


def two(start_cluster: Start, options: str = "") -> kit.Cluster:
    cluster = start_cluster(TWO.format(options=options))
    cluster.run("n1", "qnet", "nodes", "--wait", "n2")
    wait(cluster, BOTH)
    return cluster


@pytest.fixture(scope="module")
def pair(_rights: None) -> Iterator[kit.Cluster]:
    """Two nodes with both paths, for all tests that give them back so."""
    with kit.cluster(TWO.format(options="")) as cluster:
        cluster.run("n1", "qnet", "nodes", "--wait", "n2")
        yield cluster


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
    """Round trips while *trouble* happens, and so many seconds after: count, median, longest."""
    argv = ("python3", "-c", ROUND_TRIPS, "/net/n2/tmp/stall", str(seconds))
    with cluster.running("n1", *argv) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        trouble()
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    count, median, longest = output.split()
    return int(count), float(median), float(longest)


@pytest.mark.parametrize("how", ["carrier", "silence", "one way", "the other way"])
def test_a_link_that_fails_in_use_is_left_and_comes_back(pair: kit.Cluster, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = pair
    wait(cluster, BOTH)
    cluster.run("n1", "sh", "-c", "for i in 1 2 3 4; do dd if=/dev/urandom of=/net/n2/tmp/warm bs=64k count=8 2>/dev/null; done")
    interface = busiest(cluster)
    link = {"eth0": "lan", "eth1": "san"}[interface]
    quiet = [name for name, when in (("n1", ("silence", "one way")), ("n2", ("silence", "the other way"))) if how in when]

    def trouble() -> None:
        if how == "carrier":
            cluster.link_down("n2", link)
        for name in quiet:
            traffic(cluster, name, interface, *SILENT)

    count, median, longest = stall(cluster, 3.0, trouble)
    with capsys.disabled():
        print(f"\n{how}: {count} round trips, median {median * 1e3:.2f} ms, longest {longest * 1e3:.0f} ms")
    assert longest < 0.5 + 20 * median
    left = path_states(cluster, "n1", "n2")
    assert left.pop(interface) in ("suspect", "down", "peer down")
    assert list(left.values()) == ["usable"]
    cluster.link_up("n2", link)
    for name in quiet:
        traffic(cluster, name, interface)
    wait(cluster, BOTH)
    assert states(cluster, "n1") == {"n2": "up"}


def test_a_copy_survives_each_link_being_pulled_and_both_together(start_cluster: Start) -> None:
    cluster = two(start_cluster, 'fault = "rate=40M"')
    cluster.run("n1", "dd", "if=/dev/urandom", "of=/tmp/ours", "bs=1M", "count=64")
    with cluster.running("n1", "cp", "/tmp/ours", "/net/n2/tmp/theirs") as copy:
        for step, links in enumerate(({"lan": "eth0"}, {"san": "eth1"}, {"lan": "eth0", "san": "eth1"}), 1):
            wait_copied(cluster, step * 8 << 20)
            for link in links:
                cluster.link_down("n2", link)
            wait_unusable(cluster, *links.values())
            time.sleep(OUTAGE)
            assert copy.poll() is None, "it was over before the links came back"
            for link in links:
                cluster.link_up("n2", link)
        output, errors = copy.communicate(timeout=60)
    assert (copy.returncode, output, errors) == (0, b"", b"")
    ours, theirs = (cluster.run(node, "sha256sum", path).stdout.split()[0] for node, path in (("n1", "/tmp/ours"), ("n2", "/tmp/theirs")))
    assert ours == theirs
    wait(cluster, BOTH)


def test_a_copy_over_three_links_survives_whatever_happens_to_two_of_them(start_cluster: Start) -> None:
    """One is pulled, one falls silent, one takes no large frame any more, two at a time; at last all are pulled and given back."""
    cluster = start_cluster(TWO.format(options='fault = "rate=100M"') + '[links.dmz]\nfault = "rate=100M"\n')
    cluster.run("n1", "qnet", "nodes", "--wait", "n2")
    every = {"eth0": "usable", "eth1": "usable", "eth2": "usable"}
    wait(cluster, every)
    cluster.run("n1", "dd", "if=/dev/urandom", "of=/tmp/ours", "bs=1M", "count=96")
    with cluster.running("n1", "cp", "/tmp/ours", "/net/n2/tmp/theirs") as copy:
        wait_for(lambda: "theirs" in cluster.run("n2", "ls", "/tmp").stdout, 10.0, "the copy has begun")
        cluster.link_down("n2", "lan")
        traffic(cluster, "n1", "eth1", *SILENT)
        wait_unusable(cluster, "eth0", "eth1")
        cluster.link_up("n2", "lan")
        traffic(cluster, "n2", "eth2", *SILENT)
        wait_unusable(cluster, "eth1", "eth2")
        traffic(cluster, "n1", "eth1")
        traffic(cluster, "n1", "eth0", *SMALL)
        traffic(cluster, "n2", "eth2")
        for link in ("lan", "san", "dmz"):
            cluster.link_down("n2", link)
        wait_unusable(cluster, "eth0", "eth1", "eth2")
        for link in ("lan", "san", "dmz"):
            cluster.link_up("n2", link)
        output, errors = copy.communicate(timeout=120)
    assert (copy.returncode, output, errors) == (0, b"", b"")
    ours, theirs = (cluster.run(node, "sha256sum", path).stdout.split()[0] for node, path in (("n1", "/tmp/ours"), ("n2", "/tmp/theirs")))
    assert ours == theirs
    wait(cluster, every)
    (told,) = facts(cluster, "n1", "nodes")["nodes"]
    assert told["starts"] == 1


def test_the_sum_of_two_limited_links_is_used(start_cluster: Start, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = two(start_cluster, 'fault = "rate=20M"')
    cluster.run("n1", "dd", "if=/dev/zero", "of=/tmp/ours", "bs=1M", "count=8")
    seconds = {}
    for name in ("n2~exclusive:eth0", "n2~exclusive:eth1", "n2"):
        cluster.run("n1", "dd", "if=/dev/zero", f"of=/net/{name}/tmp/warm", "bs=1M", "count=3")
        began = time.monotonic()
        cluster.run("n1", "cp", "/tmp/ours", f"/net/{name}/tmp/theirs")
        seconds[name] = time.monotonic() - began
    one = min(seconds["n2~exclusive:eth0"], seconds["n2~exclusive:eth1"])
    with capsys.disabled():
        print(f"\n8 MiB over one 20 Mbit/s link {one:.2f} s, over two {seconds['n2']:.2f} s: {one / seconds['n2']:.2f} times")
    assert one / seconds["n2"] >= 1.6
    shares = {interface: float(str(path["share"])) for interface, path in paths(cluster, "n1", "n2").items()}
    assert min(shares.values()) > 0.3


def test_a_link_that_shrinks_without_a_word_goes_on(start_cluster: Start) -> None:
    cluster = two(start_cluster)
    cluster.link_down("n2", "san")
    cluster.run("n1", "dd", "if=/dev/urandom", "of=/tmp/ours", "bs=1M", "count=32")
    with cluster.running("n1", "cp", "/tmp/ours", "/net/n2/tmp/theirs") as copy:
        wait_copied(cluster, 1)
        traffic(cluster, "n1", "eth0", *SMALL)
        assert copy.wait(60) == 0
    ours, theirs = (cluster.run(node, "sha256sum", path).stdout.split()[0] for node, path in (("n1", "/tmp/ours"), ("n2", "/tmp/theirs")))
    assert ours == theirs
    cluster.run("n1", "cp", "/tmp/ours", "/net/n2/tmp/again")
    assert int(str(paths(cluster, "n1", "n2")["eth0"]["payload"])) < 1300


def test_names_with_a_choice_of_paths(pair: kit.Cluster) -> None:
    cluster = pair
    wait(cluster, BOTH)
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


def test_an_idle_node_with_two_paths_costs_less_than_a_hundredth_of_a_core(pair: kit.Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    wait(pair, BOTH)
    node = Victim(pair, "n1")
    wait_for(lambda: node.share(1.0)[0] < IDLE, 20.0, "what there is to do after a start is done")
    share, _ = node.share(8.0)
    with capsys.disabled():
        print(f"\nidle with two paths: {share:.2%} of a core")
    assert share < IDLE


def test_missing_tools_are_noticed() -> None:
    assert subprocess.run(["tc", "-V"], capture_output=True, check=False).returncode == 0
