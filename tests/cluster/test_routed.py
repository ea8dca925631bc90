"""Nodes that no Ethernet joins: the UDP bearer on whole nodes, through routers and translators, over IPv4 and IPv6."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import facts, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]

PATIENCE = 20.0
MASQUERADE = (
    "echo 1 >/proc/sys/net/ipv4/ip_forward; nft add table ip nat;"
    "nft add chain ip nat post '{ type nat hook postrouting priority 100; }'; nft add rule ip nat post oifname eth1 masquerade"
)


def node(cluster: kit.Cluster, on: str, name: str) -> dict[str, Any]:
    found = facts(cluster, on, "nodes")["nodes"]
    (one,) = [one for one in found if one["name"] == name] or [{"state": "unknown", "link": None, "starts": 0}]
    assert isinstance(one, dict)
    return one


def endpoint(cluster: kit.Cluster, on: str, name: str) -> str:
    """The first at which *name* is reached; "" if it is not."""
    return next((str(path["endpoint"]) for path in usable(cluster, on, name)), "")


def usable(cluster: kit.Cluster, on: str, name: str) -> list[dict[str, Any]]:
    """The paths to *name* that work."""
    link = node(cluster, on, name)["link"]
    return [] if link is None else [path for path in link["paths"] if path["state"] == "usable"]


def interface(cluster: kit.Cluster, on: str, name: str = "udp0") -> dict[str, Any]:
    found = facts(cluster, on)["interfaces"]
    (one,) = [one for one in found if one["name"] == name]
    assert isinstance(one, dict)
    return one


def all_up(cluster: kit.Cluster, *names: str) -> None:
    for one in names:
        others = ",".join(other for other in names if other != one)
        cluster.run(one, "qnet", "nodes", "--wait", others, "--timeout", str(PATIENCE))


def test_one_seed_joins_three_networks_and_is_not_needed_afterwards(start_cluster: Start) -> None:
    cluster = start_cluster("routed")
    all_up(cluster, "a", "b", "c")
    assert endpoint(cluster, "b", "c") == "10.77.2.4:34997"
    assert endpoint(cluster, "c", "b") == "10.77.1.3:34997"
    assert cluster.run("b", "cat", "/net/c/etc/hostname").stdout == "c\n"

    cluster.run("c", "sh", "-c", "head -c 33554432 /dev/urandom >/tmp/big")
    sums = [cluster.run(on, "sha256sum", path).stdout.split()[0] for on, path in (("b", "/net/c/tmp/big"), ("c", "/tmp/big"))]
    assert sums[0] == sums[1]
    assert node(cluster, "c", "b")["link"]["paths"][0]["payload"] == 1500 - 28 - 32, "the path's size was not found"
    assert interface(cluster, "c")["info"]["sent in segments"] > 1000

    cluster.kill("a")
    wait_for(lambda: node(cluster, "b", "a")["state"] == "down", PATIENCE, "the seed is down")
    assert node(cluster, "b", "c")["state"] == "up"
    cluster.run("b", "qnet", "down")
    cluster.run("b", "qnet", "up")
    cluster.start("a")
    all_up(cluster, "a", "b", "c")


def test_a_node_behind_a_translator_joins_and_is_followed_when_that_forgets(start_cluster: Start) -> None:
    """c can only dial out. b hears of it by gossip, and is called by it; and what it is translated to changes in the middle."""
    cluster = start_cluster(
        f"""
        [links.home]
        [links.world]
        [config.qnet]
        bearers = ["udp"]
        discovery = "static"
        peers = [{{address = "10.77.1.2"}}]
        [nodes.gate]
        boot = [["sh", "-c", "{MASQUERADE}"]]
        shutdown = []
        [nodes.a]
        links = ["world"]
        [nodes.b]
        links = ["world"]
        [nodes.c]
        links = ["home"]
        boot = [["ip", "route", "add", "default", "via", "10.77.0.1"], ["qnet", "up"]]
        """
    )
    all_up(cluster, "a", "b", "c")
    before = endpoint(cluster, "a", "c")
    assert before.startswith("10.77.1.1:")
    assert endpoint(cluster, "b", "c").startswith("10.77.1.1:")
    assert cluster.run("b", "cat", "/net/c/etc/hostname").stdout == "c\n"

    # The kernel forgets what was masqueraded on an interface that goes down.
    again = (
        "nft flush chain ip nat post; nft add rule ip nat post oifname eth1 masquerade random; ip link set eth1 down; ip link set eth1 up"
    )
    cluster.run("gate", "sh", "-c", again)
    wait_for(lambda: endpoint(cluster, "a", "c") not in ("", before), PATIENCE, "c is reached at its new endpoint")
    all_up(cluster, "a", "b", "c")
    assert [node(cluster, on, "c")["starts"] for on in "ab"] == [1, 1], "the links went on"
    assert cluster.run("a", "cat", "/net/c/etc/hostname").stdout == "c\n"


def test_two_nodes_behind_translators_open_them_for_each_other(start_cluster: Start) -> None:
    """Both call what the seed told them of the other. The translators keep ports and answer nobody themselves, as those at homes do."""
    gate = MASQUERADE.replace("add chain", "add chain ip nat in '{ type filter hook input priority 0; policy drop; }'; nft add chain", 1)
    home = 'links = ["{0}"]\nboot = [["ip", "route", "add", "default", "via", "10.77.{1}.{2}"], ["qnet", "up"]]'
    cluster = start_cluster(
        f"""
        [links.left]
        [links.world]
        [links.right]
        [config.qnet]
        bearers = ["udp"]
        discovery = "static"
        peers = [{{address = "10.77.1.3"}}]
        [nodes.gate1]
        links = ["left", "world"]
        boot = [["sh", "-c", "{gate}"]]
        shutdown = []
        [nodes.gate2]
        links = ["right", "world"]
        boot = [["sh", "-c", "{gate}"]]
        shutdown = []
        [nodes.seed]
        links = ["world"]
        [nodes.c]
        {home.format("left", 0, 1)}
        [nodes.d]
        {home.format("right", 2, 2)}
        """
    )
    all_up(cluster, "seed", "c", "d")
    assert endpoint(cluster, "c", "d") == "10.77.1.2:34997"
    assert cluster.run("c", "cat", "/net/d/etc/hostname").stdout == "d\n"


def test_a_change_of_address_keeps_the_connection(start_cluster: Start) -> None:
    cluster = start_cluster("routed")
    all_up(cluster, "a", "b", "c")
    change = "ip addr add 10.77.1.33/24 dev eth0; ip addr del 10.77.1.3/24 dev eth0; ip addr replace 10.77.1.33/24 dev eth0;"
    # In this order the other end hears of the change as soon as packets can leave.
    cluster.run("b", "sh", "-c", change + "ip route replace default via 10.77.1.1")
    for other in "ac":
        wait_for(lambda other=other: endpoint(cluster, other, "b") == "10.77.1.33:34997", PATIENCE, "the other end follows")  # type: ignore[misc]
        assert node(cluster, other, "b")["starts"] == 1, "the connection was made anew"
    assert cluster.run("a", "cat", "/net/b/etc/hostname").stdout == "b\n"


def test_without_ipv4_nodes_find_each_other_by_link_local_addresses(start_cluster: Start) -> None:
    boot = 'boot = [["ip", "-4", "addr", "flush", "dev", "eth0"], ["qnet", "up"]]'
    cluster = start_cluster(f'ipv6 = true\n[config.qnet]\nbearers = ["udp"]\n[nodes.a]\n{boot}\n[nodes.b]\n{boot}\n')
    all_up(cluster, "a", "b")
    assert endpoint(cluster, "a", "b").startswith("[fe80::")
    assert "%" in endpoint(cluster, "a", "b")
    assert cluster.run("a", "cat", "/net/b/etc/hostname").stdout == "b\n"
    assert interface(cluster, "a")["mtu"] == 1500 - 48


def test_ipv6_through_a_router(start_cluster: Start) -> None:
    def boot(net: int, host: int) -> str:
        commands = [
            f"ip -6 addr add fd00:{net}::{host}/64 dev eth0 nodad",
            f"ip -6 route add default via fd00:{net}::1",
            "ip -4 addr flush dev eth0",
            "qnet up",
        ]
        return f"boot = {json.dumps([command.split() for command in commands])}"

    gate = "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding;" + "".join(
        f"ip -6 addr add fd00:{net}::1/64 dev eth{net} nodad;" for net in (0, 1)
    )
    cluster = start_cluster(
        f"""
        ipv6 = true
        [links.red]
        [links.green]
        [config.qnet]
        bearers = ["udp"]
        [nodes.gate]
        boot = [["sh", "-c", "{gate}"]]
        shutdown = []
        [nodes.a]
        links = ["red"]
        {boot(0, 2)}
        [nodes.b]
        links = ["green"]
        {boot(1, 3)}
        config = {{qnet = {{peers = [{{address = "[fd00::2]:34997"}}]}}}}
        [nodes.c]
        links = ["red"]
        {boot(0, 4)}
        """
    )
    all_up(cluster, "a", "b", "c")
    assert endpoint(cluster, "b", "a") == "[fd00::2]:34997"
    assert endpoint(cluster, "b", "c") == "[fd00::4]:34997"
    assert cluster.run("c", "cat", "/net/b/etc/hostname").stdout == "b\n"


def test_udp_takes_over_from_ethernet_and_back(start_cluster: Start) -> None:
    """Two links: frames on the first, datagrams on the second."""
    cluster = start_cluster(
        """
        [links.lan]
        [links.wan]
        [config.stack]
        drivers = [{driver = "packet", options = "ifname=eth0"}, {driver = "udp"}]
        [nodes.a]
        boot = [["ip", "-4", "addr", "flush", "dev", "eth0"], ["qnet", "up"]]
        [nodes.b]
        boot = [["ip", "-4", "addr", "flush", "dev", "eth0"], ["qnet", "up"]]
        config = {qnet = {peers = [{address = "10.77.1.1"}, {mac = "02:71:6e:00:00:01", interface = "eth0"}]}}
        """
    )
    all_up(cluster, "a", "b")

    def used() -> set[str]:
        return {path["interface"] for path in usable(cluster, "b", "a")}

    wait_for(lambda: used() == {"eth0", "udp0"}, PATIENCE, "the node has a path on both bearers")
    for broken, other in (("lan", "udp0"), ("wan", "eth0")):
        cluster.link_down("a", broken)
        wait_for(lambda other=other: used() == {other} and node(cluster, "b", "a")["state"] == "up", PATIENCE, f"{other} takes over")  # type: ignore[misc]
        assert cluster.run("b", "cat", "/net/a/etc/hostname").stdout == "a\n"
        assert node(cluster, "b", "a")["starts"] == 1, "the connection was made anew"
        cluster.link_up("a", broken)
        wait_for(lambda: used() == {"eth0", "udp0"}, PATIENCE, "both paths work again")


FLOOD = """
import os, random, socket, struct, time
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
end, sent, rng = time.monotonic() + 4, 0, random.Random(1)
while time.monotonic() < end:
    body = bytes((rng.choice((0, 1, 2, 3, 9)), 1)) + rng.randbytes(rng.choice((0, 30, 300, 1300)))
    source = bytes((10, 77, 0, rng.randrange(3, 250)))
    udp = struct.pack("!HHHH", rng.randrange(1, 65536), 34997, 8 + len(body), 0)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(body), 0, 0, 64, 17, 0, source, bytes((10, 77, 0, 1)))
    raw.sendto(head + udp + body, ("10.77.0.1", 0))
    sent += 1
print(sent)
"""


def test_a_flood_of_invented_sources_harms_no_link(start_cluster: Start) -> None:
    cluster = start_cluster('[config.qnet]\nbearers = ["udp"]\n[nodes.a]\n[nodes.b]\n[nodes.mallory]\nboot = []\nshutdown = []\n')
    all_up(cluster, "a", "b")
    daemon = cluster.run("a", "cat", "/run/qnet/lock").stdout.strip()

    def memory() -> int:
        status = cluster.run("a", "cat", f"/proc/{daemon}/status").stdout
        return int(status.split("VmRSS:")[1].split()[0])

    before = memory()
    with cluster.running("mallory", "python3", "-c", FLOOD) as flood:
        while flood.poll() is None:
            assert cluster.run("b", "timeout", "5", "cat", "/net/a/etc/hostname").stdout == "a\n"
        assert flood.stdout is not None
        sent = int(flood.stdout.read())
    assert sent > 5000
    assert (node(cluster, "b", "a")["state"], node(cluster, "b", "a")["starts"]) == ("up", 1)
    info = interface(cluster, "a")["info"]
    assert info["heard"] <= 1024
    assert info["used"] == 0, "strangers were answered"
    assert memory() - before < 12_000, "memory grew"
