"""lsm-qnet is unloaded and loaded at run time, under traffic of another node: /net goes and comes, and nothing is left behind.

`LOADS=1000` makes it as many times as the issue wants.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import states, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]
LOADS = int(os.environ.get("LOADS", "20"))
MEMORY_MAX = 20 << 10
"""Kilobytes that allocators may keep: 13 MB after 1000 loads, 4 MB of them without traffic, and no object of Python's more."""
THREADS_MAX = 8
"""Workers that the dispatch may have started meanwhile: it keeps as many as were once busy together."""
TWO = "[nodes.a]\n[nodes.b]\n"
SPAWN = '[config.access.spawn]\nnodes = ["b"]\n'

ADMINISTERED = """
[nodes.a]
[nodes.a.config.access]
users = [{ mapping = "identity", root = "root" }]
administer = { nodes = ["b"] }
[nodes.b]
"""

RELOAD = """
import json, os, sys, time
from qnetpy.cli.iopkt import ask_at

SOCKET = "/run/qnet/socket"

def state():
    # The least of some readings: what a request under way holds for a moment does not count.
    readings = []
    for _ in range(20):
        readings.append(reading())
        time.sleep(0.05)
    return {name: min(one[name] for one in readings) for name in readings[0]}

def reading():
    pid = open("/run/qnet/lock").read().strip()
    status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
    with open(f"/proc/{pid}/mounts") as mounts:
        return {
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": int(status["Threads"]),
            "mounts": len(mounts.readlines()),
            "memory": int(status["VmRSS"].split()[0]),
        }

def modules():
    return ask_at(SOCKET, "facts")["modules"]

def again():
    (options,) = (one["options"] for one in modules() if one["name"] == "qnet")
    ask_at(SOCKET, "umount", what="lsm-qnet.so")
    assert "qnet" not in [one["name"] for one in modules()], modules()
    assert not os.path.ismount("/net")
    ask_at(SOCKET, "mount", module="lsm-qnet.so", options=options)
    assert os.path.ismount("/net")

for _ in range(10):
    again()
before = state()
for _ in range(int(sys.argv[1])):
    again()
print(json.dumps([before, state(), modules()]))
"""

READ = """
import os, time
until = time.monotonic() + 3600
read = failed = 0
print("reading", flush=True)
while not os.path.exists("/tmp/enough") and time.monotonic() < until:
    try:
        with open("/net/a/etc/hostname") as file:
            assert file.read() == "a\\n"
        read += 1
    except OSError:
        failed += 1
        time.sleep(0.01)
print(read, failed)
"""


def test_qnet_comes_and_goes_under_traffic(start_cluster: Start) -> None:
    cluster = start_cluster(SPAWN + TWO)
    cluster.run("b", "qnet", "nodes", "--wait", "a")
    with cluster.running("b", sys.executable, "-c", READ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"reading\n"
        told = cluster.run("a", sys.executable, "-c", RELOAD, str(LOADS), seconds=60 + 2 * LOADS)
        cluster.run("b", "qnet", "nodes", "--wait", "a")
        cluster.run("b", "touch", "/tmp/enough")
        out, _ = reader.communicate(timeout=30)
    read, failed = map(int, out.split())
    before, after, modules = json.loads(told.stdout)

    assert read > 0
    assert failed > 0, "nothing was under way while the module was gone"
    print(before, after, f"{read} reads, {failed} refused")
    grown = after.pop("memory") - before.pop("memory")
    assert after.pop("threads") - before.pop("threads") <= THREADS_MAX
    assert after.pop("descriptors") - before.pop("descriptors") <= 2, "the asker's connection and a program's end come and go"
    assert after == before
    assert grown < MEMORY_MAX, f"{grown / LOADS:.1f} kB each time"
    assert not any(one["failures"] for one in modules)
    assert "behind" not in cluster.run("a", "cat", "/run/qnet/log").stdout
    assert states(cluster, "b") == {"a": "up"}
    assert cluster.run("a", "cat", "/net/b/etc/hostname").stdout == "b\n"
    assert cluster.run("b", "qnet", "on", "a", "hostname").stdout == "a\n"


def test_the_driver_of_a_node_comes_and_goes(start_cluster: Start) -> None:
    """Qnet sees the interface go and come; what was open on the other node waits, as for a carrier that was lost."""
    cluster = start_cluster(TWO)
    cluster.run("a", "qnet", "nodes", "--wait", "b")
    (one,) = json.loads(cluster.run("a", "qnet", "ifconfig", "--json").stdout)
    cluster.run("a", "qnet", "ifconfig", one["name"], "destroy")
    wait_for(lambda: states(cluster, "b") == {"a": "down"}, 10.0)
    made = cluster.run("a", "qnet", "mount", "-T", "io-pkt", "-o", f"ifname={one['name']}", "/lib/dll/devnp-packet.so").stdout
    assert made.startswith("driver packet is loaded as #")
    cluster.run("a", "qnet", "nodes", "--wait", "b")
    assert cluster.run("b", "cat", "/net/a/etc/hostname").stdout == "a\n"

    assert cluster.run("a", "qnet", "ifconfig", one["name"], "down").stdout == ""
    wait_for(lambda: states(cluster, "b") == {"a": "down"}, 10.0)
    cluster.run("a", "qnet", "ifconfig", one["name"], "up")
    cluster.run("a", "qnet", "nodes", "--wait", "b")
    assert "status: active" in cluster.run("a", "qnet", "ifconfig", one["name"]).stdout


def test_another_node_administers_by_the_access_rules(start_cluster: Start) -> None:
    cluster = start_cluster(ADMINISTERED)
    cluster.run("b", "qnet", "nodes", "--wait", "a")

    told = json.loads(cluster.run("b", "qnet", "ifconfig", "-n", "a", "--json").stdout)
    assert [one["name"] for one in told] == ["eth0"]
    cluster.run("b", "qnet", "mount", "-n", "a", "-o", "port=4001", "udp")
    assert "udp0" in cluster.run("a", "qnet", "netstat").stdout
    cluster.run("b", "qnet", "umount", "-n", "a", "udp")
    refused = cluster.run("a", "qnet", "netstat", "-n", "b", check=False)
    assert (refused.returncode, refused.stderr) == (1, "qnet netstat: node a may not administer this one ([access] administer) (EACCES)\n")
    refused = cluster.run("a", "qnet", "netstat", "-n", "c", check=False)
    assert refused.returncode == 1
    # What is unloaded carries the answer: it cannot come, and the node says so by going.
    cluster.run("b", "qnet", "umount", "-n", "a", "lsm-qnet.so", check=False)
    wait_for(lambda: states(cluster, "b") == {"a": "down"}, 10.0)
    assert cluster.run("a", "qnet", "mount").stdout.count("driver") == 1
