"""Somebody without a certificate who says that he is another: by MAC address on a switch that learns, and over mDNS.

docs/protocol/attacks.md says what he gets. Names that are claimed with a certificate are in test_node_commands.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from qnetpy.link.calls import CALLS_MAX, STRANGERS_MAX
from qnetpy.testing import cluster as kit
from qnetpy.testing.attack import Program, Victim, drops_of, flooding, program
from qnetpy.testing.cluster import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]
TOPOLOGY = """
title = "An impostor"
[links.lan]
{second}
[nodes.n1]
[nodes.n2]
[nodes.n3]
links = ["lan"]
[nodes.x]
links = ["lan"]
boot = []
shutdown = []
"""
RATE = 5000
TICK = "0.0002"
"""One frame in another's name every fifth of a millisecond. A node answers about as fast, so that some of the answers still get through."""
ATTACK_SECONDS = 3.0
HEALED_MAX = 10.0
"""Seconds until everybody sees everybody again, beyond what it takes to ask everybody when nothing is wrong."""
LONGEST_MAX, LONGEST_TIMES = 1.0, 3.0
"""Seconds that the longest request may take, beyond so many times what it takes beside the same frames in the impostor's own name: those
cost the machine as much and draw nobody's frames."""
JOINED_MAX = 10.0
"""Seconds until a node that starts is up, beyond what it takes when nobody lies."""
STOLEN_MIN = 20
"""Frames for n2 that must come to the impostor, or the switch was not fooled."""
LIES_SECONDS = 6.0
LIES_FLOOD = 20_000
"""Lies a second."""
FLOOD_SHARE_MAX = 0.6
"""Of a core: a tenth for hearing them, twice that for 256 calls at once to nodes that are not there, and what the measurement costs; a
third more in nodes that were lied to just before."""
GROWTH_MAX = 32768
"""KiB: 1024 announcements, 256 calls at once, and above all the 10,000 records that python-zeroconf keeps at most."""


@pytest.fixture(scope="module")
def lan(_rights: None) -> Iterator[kit.Cluster]:
    """Three nodes and the impostor on one switch: what he did has passed when a test ends."""
    with kit.cluster(TOPOLOGY.format(second="")) as cluster:
        yield cluster


@contextmanager
def working(cluster: kit.Cluster) -> Iterator[tuple[Program, Program]]:
    """Numbered requests of n1 to n2: the server, the client."""
    with ExitStack() as stack:
        server = stack.enter_context(program(cluster, "n2", "numbered", "serve"))
        yield server, stack.enter_context(program(cluster, "n1", "numbered", "ask", "n2", "n1"))


def nodes(victim: Victim) -> dict[str, tuple[str, int]]:
    return {node["name"]: (node["state"], node["starts"]) for node in victim.status()["nodes"]}


def wait_until_up(cluster: kit.Cluster) -> None:
    for node, others in (("n1", ("n2", "n3")), ("n2", ("n1", "n3")), ("n3", ("n1", "n2"))):
        for other in others:
            cluster.run(node, "qnet", "nodes", "--wait", other, seconds=30.0)


def join(cluster: kit.Cluster) -> float:
    """Seconds in which n3 is started again and is up with the others."""
    cluster.run("n3", "qnet", "down")
    began = time.monotonic()
    cluster.run("n3", "qnet", "up")
    for other in ("n1", "n2"):
        cluster.run("n3", "qnet", "nodes", "--wait", other, seconds=30.0)
    return time.monotonic() - began


def until_answered(cluster: kit.Cluster, client: Program) -> float:
    """Seconds until everybody sees everybody and a request is answered."""
    began = time.monotonic()
    wait_until_up(cluster)
    answered = client.tell()["answered"]
    wait_for(lambda: client.tell()["answered"] != answered, 60.0, "somebody is answered")
    return time.monotonic() - began


def stolen(cluster: kit.Cluster) -> int:
    """Frames that the switch has sent to the impostor."""
    return int(cluster.run("x", "cat", "/sys/class/net/eth0/statistics/rx_packets").stdout)


def test_who_takes_a_nodes_address_on_a_switch_disturbs_its_link_and_no_more(lan: kit.Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = lan
    wait_until_up(cluster)
    one, two = Victim(cluster, "n1"), Victim(cluster, "n2")
    third = nodes(one)["n3"]
    with working(cluster) as (server, client):
        calm = until_answered(cluster, client)
        before = stolen(cluster)
        with flooding(one, "x", b"", ["noise"], RATE, "--from", two.mac, "--tick", TICK):
            time.sleep(ATTACK_SECONDS)
            got = stolen(cluster) - before
            states = [dict(nodes(one)), dict(nodes(two))]
        assert got > STOLEN_MIN
        assert states[0]["n3"] == third
        healed = until_answered(cluster, client)
        asked, served = client.end(), server.end()
    with capsys.disabled():
        print(f"\n{got} frames went to the impostor; n1 sees {states[0]}, n2 sees {states[1]}; {asked}")
        print(f"healed in {healed:.1f} s; all are asked in {calm:.1f} s when nothing is wrong")
    assert healed < calm + HEALED_MAX
    assert asked["wrong"] == served["wrong"] == served["twice"] == 0
    assert set(asked["failed"]) <= {"Host is down", "Stale file handle", "Bad file descriptor"}
    assert asked["answered"] <= served["delivered"]["n1"] <= asked["asked"]
    assert "Traceback" not in one.log() + two.log()


def test_with_a_second_path_nothing_fails(start_cluster: Start, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = start_cluster(TOPOLOGY.format(second="[links.san]"))
    wait_until_up(cluster)
    one, two = Victim(cluster, "n1"), Victim(cluster, "n2")

    def usable() -> list[str]:
        link = next(node["link"] for node in one.status()["nodes"] if node["name"] == "n2")
        return sorted(path["interface"] for path in link["paths"] if path["state"] == "usable")

    def wait(wanted: list[str]) -> None:
        wait_for(lambda: usable() == wanted, 15.0, f"paths {wanted}")

    wait(["eth0", "eth1"])
    with working(cluster) as (server, client):
        before = stolen(cluster)
        with flooding(one, "x", b"", ["noise"], RATE, "--tick", TICK):
            time.sleep(ATTACK_SECONDS)
            harmless = stolen(cluster) - before
        control, _ = client.end(), server.end()
    with working(cluster) as (server, client):
        before = stolen(cluster)
        with flooding(one, "x", b"", ["noise"], RATE, "--from", two.mac, "--tick", TICK):
            time.sleep(ATTACK_SECONDS)
            got = stolen(cluster) - before
        wait(["eth0", "eth1"])
        asked, served = client.end(), server.end()
    with capsys.disabled():
        print(f"\n{got} frames went to the impostor, {harmless} without a lie; {asked}")
        print(f"the longest request {asked['longest']:.3f} s, without a lie {control['longest']:.3f} s")
    assert got > STOLEN_MIN
    assert asked["failed"] == {}
    assert asked["asked"] == asked["answered"] == served["delivered"]["n1"]
    assert asked["wrong"] == served["wrong"] == served["twice"] == 0
    assert asked["longest"] < LONGEST_TIMES * control["longest"] + LONGEST_MAX
    assert nodes(one)["n2"] == ("up", 1)


def test_lies_about_where_nodes_are_show_nobody_and_keep_nobody_out(lan: kit.Cluster) -> None:
    cluster = lan
    wait_until_up(cluster)
    one, two = Victim(cluster, "n1"), Victim(cluster, "n2")
    calm = join(cluster)
    before, memory = nodes(one), one.memory()
    with program(cluster, "x", "liar", "--address", cluster.address("x"), "--victim", one.mac, "--other", two.mac) as liar:
        time.sleep(LIES_SECONDS)
        share, _ = one.share(1.0)
        joined = join(cluster)
        status = one.status()
        shown = json.loads(cluster.run("n1", "qnet", "nodes", "--json").stdout)["nodes"]
        said = liar.end()
    discovery: dict[str, Any] = status["discovery"]
    print(f"{said}: {share:.1%} of a core; a node starts and is up in {joined:.1f} s, {calm:.1f} s before; {discovery}, {drops_of(status)}")
    assert said["sent"] > 500
    assert min(said[kind] for kind in ("invented", "victim", "other", "group", "nonsense", "goodbye")) > 0
    assert {node["name"] for node in shown} == {"n2", "n3"}
    assert cluster.run("n1", "ls", "/net").stdout.split() == ["n1", "n2", "n3"]
    assert nodes(one)["n2"] == before["n2"]
    assert joined < calm + JOINED_MAX
    assert discovery["bad_txt"] > 0
    assert discovery["crowded_mac"] > 0
    assert discovery["announced"] <= 1024
    sizes = status["sizes"]
    assert sizes["hints"] <= STRANGERS_MAX
    assert sizes["calls"] <= CALLS_MAX + 16
    assert one.memory() - memory < GROWTH_MAX
    assert "Traceback" not in one.log() + two.log()


def test_a_flood_of_lies_takes_its_share_of_the_processor_and_no_more(lan: kit.Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = lan
    wait_until_up(cluster)
    one, two = Victim(cluster, "n1"), Victim(cluster, "n2")
    memory = one.memory()
    rate = ("--rate", str(LIES_FLOOD))
    with program(cluster, "x", "liar", "--address", cluster.address("x"), "--victim", one.mac, "--other", two.mac, *rate) as liar:
        time.sleep(LIES_SECONDS)
        share, _ = one.share(2.0)
        grown = one.memory() - memory
        said = liar.end()
    with capsys.disabled():
        print(f"\n{said['sent']} lies: {share:.1%} of a core, memory {grown:+} KiB, {one.status()['discovery']}")
    assert said["sent"] > 2000
    assert share < FLOOD_SHARE_MAX
    assert grown < GROWTH_MAX
    wait_until_up(cluster)
    wait_for(lambda: "heard_per_thousand" not in one.status()["discovery"], 15.0, "it listens again")
    assert "Traceback" not in one.log() + two.log()
