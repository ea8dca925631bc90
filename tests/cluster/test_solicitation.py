"""Machines without any IP address find each other on an Ethernet; who is told not to look for others says nothing; and a flood of it."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qnetpy.link import wire
from qnetpy.link.constants import GROUP
from qnetpy.testing import cluster as kit
from qnetpy.testing.attack import Victim, flooding, read_pcap
from qnetpy.testing.cluster import facts, states, wait_for
from qnetpy.testing.enemy import pack_recording
from stack.wire.ethernet import HEADER_SIZE

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]

BARE = "for one in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > $one; done; ip address flush dev eth0"
NODE = f'boot = [["sh", "-c", "{BARE}"], ["qnet", "up"]]\n'
LATER = f'boot = [["sh", "-c", "{BARE}"]]\n'
SOON = 10.0
NANOSECONDS = 0xA1B23C4D
"""How a recording begins whose times are so fine."""
STRANGERS = ["solicitation-made-up"]
LISTENERS = ["solicitation", "solicitation-spoofed"]
RATE = 20_000
ALLOWED = 0.15
GROWTH_MAX = 4096
"""KiB, as tests/cluster/test_flood.py has it."""


def timed(file: Path) -> list[tuple[float, bytes]]:
    """Frames of a recording and when they passed, all ethertypes."""
    data = file.read_bytes()
    fraction = 1e9 if struct.unpack_from("=I", data)[0] == NANOSECONDS else 1e6
    frames, at = [], 24
    while at + 16 <= len(data):
        seconds, rest, length = struct.unpack_from("=III", data, at)
        frames.append((seconds + rest / fraction, data[at + 16 : at + 16 + length]))
        at += 16 + length
    return frames


def mac(cluster: kit.Cluster, node: str) -> bytes:
    return bytes.fromhex(cluster.run(node, "cat", "/sys/class/net/eth0/address").stdout.strip().replace(":", ""))


def discovery(cluster: kit.Cluster, node: str) -> dict[str, Any]:
    found: dict[str, Any] = facts(cluster, node)["discovery"]
    return found


def without_ip(cluster: kit.Cluster, node: str) -> bool:
    return cluster.run(node, "ip", "-oneline", "address", "show", "dev", "eth0").stdout == ""


def test_three_machines_without_ip_find_each_other_and_a_fourth_later(
    start_cluster: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = start_cluster(f"[links.lan]\n[nodes.n1]\n{NODE}[nodes.n2]\n{NODE}[nodes.n3]\n{NODE}[nodes.n4]\n{LATER}")
    names = ("n1", "n2", "n3")
    for node in names:
        cluster.run(node, "qnet", "nodes", "--wait", ",".join(other for other in names if other != node), "--timeout", str(SOON))
    assert all(without_ip(cluster, node) for node in (*names, "n4"))
    assert cluster.run("n1", "cat", "/net/n2/etc/hostname").stdout == "n2\n"
    assert cluster.run("n3", "cat", "/net/n1/etc/hostname").stdout == "n1\n"

    file = tmp_path / "start.pcap"
    with cluster.capture("lan", file):
        cluster.run("n4", "qnet", "up")
        cluster.run("n4", "qnet", "nodes", "--wait", "n1,n2,n3", "--timeout", str(SOON))
    own = mac(cluster, "n4")
    passed = [(when, frame) for when, frame in timed(file) if own in (frame[:6], frame[6:12]) or frame[:6] == GROUP]
    asked = next(when for when, frame in passed if frame[6:12] == own and frame[HEADER_SIZE] == wire.SOLICITATION)
    met = [
        min(when for when, frame in passed if frame[:12] == own + other and frame[HEADER_SIZE] == wire.DATA)
        for other in [mac(cluster, name) for name in names]
    ]
    with capsys.disabled():
        print(f"\nfrom its first word to the first packet of each of three nodes: {[round(when - asked, 4) for when in met]} s")
    assert min(met) - asked > 0.0
    assert max(met) - asked < 2.0
    for node in (*names, "n4"):
        told = discovery(cluster, node)
        assert told["solicitations_sent"] > 0
        assert set(told) <= {"solicitations_sent", "soliciting", "announced", "solicitation_repeated"}, "nothing was refused"
    assert cluster.run("n4", "cat", "/net/n3/etc/hostname").stdout == "n3\n"


def test_a_machine_without_ip_that_is_killed_and_started_is_back_before_it_is_missed(start_cluster: Start) -> None:
    cluster = start_cluster(f"[links.lan]\n[nodes.n1]\n{NODE}[nodes.n2]\n{NODE}")
    cluster.run("n1", "qnet", "nodes", "--wait", "n2", "--timeout", str(SOON))
    cluster.kill("n2")
    cluster.start("n2")
    cluster.run("n2", "qnet", "nodes", "--wait", "n1", "--timeout", str(SOON))
    wait_for(lambda: states(cluster, "n1") == {"n2": "up"}, SOON, "n1 sees the new boot of n2")
    assert without_ip(cluster, "n2")
    assert cluster.run("n1", "cat", "/net/n2/etc/hostname").stdout == "n2\n"

    cluster.link_down("n2")
    wait_for(lambda: states(cluster, "n1")["n2"] == "down", SOON, "n1 misses n2")
    cluster.link_up("n2")
    cluster.run("n1", "qnet", "nodes", "--wait", "n2", "--timeout", str(SOON))


def test_who_has_only_its_list_sends_nothing_to_find_others(start_cluster: Start, tmp_path: Path) -> None:
    quiet = '[nodes.n1.config.qnet]\ndiscovery = "static"\npeers = [{mac = "02:00:00:00:00:99", interface = "eth9"}]\n'
    cluster = start_cluster(f"[links.lan]\n[nodes.n1]\n{LATER}{quiet}[nodes.n2]\n{LATER}")
    file = tmp_path / "quiet.pcap"
    with cluster.capture("lan", file):
        cluster.run("n1", "qnet", "up")
        cluster.run("n2", "qnet", "up")
        # As often n1 would have asked, if it did.
        wait_for(lambda: facts(cluster, "n1")["drops"].get("solicitations_unheard", 0) >= 3, SOON, "n2 has asked three times")
    sent = [frame for _, frame in timed(file)]
    first, second = (mac(cluster, name) for name in ("n1", "n2"))
    assert [frame for frame in sent if frame[6:12] == first] == []
    others = [frame for frame in sent if frame[6:12] == second]
    assert len(others) >= 3
    assert {(frame[:6], frame[HEADER_SIZE]) for frame in others} == {(GROUP, wire.SOLICITATION)}
    assert discovery(cluster, "n1") == {}
    assert states(cluster, "n2") == {}


def test_a_flood_of_solicitations_takes_little_and_keeps_nobody_out(
    start_cluster: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = start_cluster(f"[links.lan]\nlearning = false\n[nodes.n1]\n{NODE}[nodes.n2]\n{NODE}[nodes.n3]\n{LATER}[nodes.x]\nboot = []\n")
    cluster.run("n1", "qnet", "nodes", "--wait", "n2", "--timeout", str(SOON))
    file = tmp_path / "listened.pcap"

    def join() -> float:
        began = time.monotonic()
        cluster.run("n3", "qnet", "up")
        cluster.run("n3", "qnet", "nodes", "--wait", "n1,n2", "--timeout", "30")
        joined = time.monotonic() - began
        cluster.run("n3", "qnet", "down")
        return joined

    def refused() -> int:
        count: int = discovery(cluster, "n2").get("solicitation_bad_mac", 0)
        return count

    def arrives(before_it: int) -> None:
        wait_for(lambda: refused() > before_it, SOON, "the flood has come")

    with cluster.capture("lan", file):
        alone = [join(), join()]
    recording = pack_recording(read_pcap(file))
    victim = Victim(cluster, "n2")
    idle, _ = victim.share(1.5)
    memory, before = victim.memory(), victim.link("n1")
    for kinds in (STRANGERS, LISTENERS):
        before_it = refused()
        with flooding(victim, "x", recording, kinds, RATE):
            arrives(before_it)
            share, arrived = victim.share(2.0)
            joined = join()
        told = discovery(cluster, "n2")
        with capsys.disabled():
            print(f"\n{'+'.join(kinds)}: {arrived:.0f} frames/s take {share - idle:.1%} of a core")
            print(f"a node starts and is up in {joined:.1f} s, without in {[round(seconds, 1) for seconds in alone]}; {told}")
        assert arrived > 4000, "this was no flood"
        assert share - idle < ALLOWED
        assert told.get("solicitation_bad_mac", 0) > 0
        assert told["soliciting"] <= 3
        assert joined < max(alone) + 10.0
    assert victim.link("n1") == before
    assert victim.memory() - memory < GROWTH_MAX
