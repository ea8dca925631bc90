"""A man in the middle of two cables, with three whole nodes at work through him: what each of his acts gets. docs/protocol/attacks.md.

n1 and n3 are on one side of him, n2 on the other, reached by n1 over two cables and by n3 over one; all frames of both pass a process of
his, and those between n1 and n3 are heard by him. New keys are made every second, so that he has handshakes to work on.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.attack import Program, Victim, drops_of, program
from qnetpy.testing.tamper import ACTS

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
TOPOLOGY = """
title = "Between two sides"
[links.lan]
learning = false
[links.lanx]
learning = false
[links.san]
learning = false
[links.sanx]
learning = false
[config.qnet.timers]
rekey = 1.0
[nodes.n1]
links = ["lan", "san"]
[nodes.n2]
links = ["lanx", "sanx"]
boot = [["ip", "address", "add", "10.77.0.2/24", "dev", "eth0"], ["qnet", "up"]]
[nodes.n3]
links = ["lan"]
[nodes.x]
links = ["lan", "lanx", "san", "sanx"]
boot = []
shutdown = []
"""
"""n2's second address is in the others' network, so that mDNS passes the man in the middle like any frame."""
SECONDS, BRIEFLY = 1.2, 0.7
"""For which he acts: the longer where what he waits for is rare."""
ROUNDS = 30
"""At most: he goes on until the counters have told of him, for what the screen sheds is counted by samples, one frame in 256, and a bit of
the header of which a counter tells may not have been its turn."""
RARE = ("drop", "late", "old", "corrupt", "session", "handshakes", "everything")
ENOUGH = 40
"""Frames on which he must have acted, or it was no attack. Where he keeps most of them back there are few."""
HEALED = 3.0
"""Seconds until everybody is answered again when he stops, of which most is that a busy machine has other things to do."""
GROWTH_MAX = 8192
"""KiB, over all of his acts, of a node that works all the time."""

COUNTERS: dict[str, tuple[str, ...]] = {
    "drop": (),
    "delay": (),
    "reorder": (),
    "repeat": ("replayed|screened out",),
    "late": ("replayed|screened out",),
    "old": ("replayed|screened out|unknown_session",),
    "reflect": ("unknown_session|screened out",),
    "echo": ("unknown_session|screened out",),
    "cut": ("bad_tag", "malformed"),
    "header": ("bad_tag", "unknown_session|screened out"),
    "body": ("bad_tag",),
    "type": ("malformed|screened out",),
    "corrupt": ("bad_tag",),
    "session": ("bad_tag|unknown_session|screened out",),
    "direction": ("bad_tag|replayed|unknown_session|screened out",),
    "path": ("bad_tag|replayed",),
    "cable": ("unknown_session|screened out|unknown_path|spoofed_path",),
    "spoof": ("replayed|screened out",),
    "moved": (),
    "group": ("replayed|screened out",),
    "handshakes": ("bad_handshake|screened out", "bad_mac|screened out", "unknown_index|screened out", "replayed_initiation|screened out"),
    "noise": ("malformed|screened out",),
    "everything": ("bad_tag",),
}
"""By act, the counters of which each group must rise at one of the nodes. None where what comes is real, and only late, less or from
elsewhere: that is used, not dropped."""
ENDS_LINKS = ("silence", "one-way")


class Scene:
    """The cluster, the man in the middle, and work through him."""

    def __init__(self, cluster: kit.Cluster, stack: ExitStack) -> None:
        self.cluster = cluster
        self.man = self._program(stack, "x", "middleman", "--cable", "eth0:eth1", "--cable", "eth2:eth3")
        for node in ("n1", "n3"):
            cluster.run(node, "qnet", "nodes", "--wait", "n2")
        self.nodes = [Victim(cluster, node) for node in ("n1", "n2", "n3")]
        self._wait_for_two_paths()
        self.servers = [self._program(stack, node, "numbered", "serve") for node in ("n1", "n2")]
        self.clients = [
            self._program(stack, node, "numbered", "ask", to, name)
            for node, to, name in (("n1", "n2", "there"), ("n2", "n1", "back"), ("n3", "n2", "third"))
        ]
        self.first_memory = self.memory()
        self.seen = self.look()
        """What n1 and n2 told of themselves last."""

    def _program(self, stack: ExitStack, machine: str, name: str, *argv: str) -> Program:
        return stack.enter_context(program(self.cluster, machine, name, *argv))

    def _wait_for_two_paths(self) -> None:
        end = time.monotonic() + 15.0
        while self.usable_paths() != 2:
            assert time.monotonic() < end, "n1 and n2 have not two paths"
            time.sleep(0.1)

    def usable_paths(self) -> int:
        nodes = json.loads(self.cluster.run("n1", "qnet", "nodes", "--json").stdout)["nodes"]
        link = next(node["link"] for node in nodes if node["name"] == "n2")
        return sum(path["state"] == "usable" for path in link["paths"]) if link else 0

    def memory(self) -> list[int]:
        return [node.memory() for node in self.nodes]

    def look(self) -> list[dict[str, Any]]:
        return [node.status() for node in self.nodes[:2]]

    def tallies(self) -> list[dict[str, Any]]:
        return [client.tell() for client in self.clients]

    def answered(self) -> list[int]:
        return [tally["answered"] for tally in self.tallies()]

    def act(self, name: str) -> tuple[int, Counter[str]]:
        """Do it for a while, or several where a busy machine has few frames. On how many frames he acted, and what was counted of them."""
        did, before = 0, self.seen
        for _ in range(ROUNDS):
            self.man.tell(name)
            time.sleep(SECONDS if name in RARE else BRIEFLY)
            done = self.man.tell("honest")
            assert not done.get("missed"), "frames were lost in the attacker's queue: the machine is too busy for this"
            did += int(done["did"])
            self.seen = self.look()
            seen = gained(before, self.seen)
            if did > ENOUGH and not untold(name, seen):
                break
        return did, seen

    def told(self) -> str:
        """What the daemons said, for somebody who must find out why."""
        return "\n".join(f"{node.node}: {node.log()[-4000:]}" for node in self.nodes)

    def heal(self) -> float:
        """Seconds until each client has had an answer."""
        began = time.monotonic()
        before = self.answered()
        while not all(now > then for now, then in zip(self.answered(), before, strict=True)):
            assert time.monotonic() < began + 20.0, "it does not heal"
            time.sleep(0.02)
        return time.monotonic() - began


@pytest.fixture(scope="module")
def scene(_rights: None) -> Iterator[Scene]:
    with kit.cluster(TOPOLOGY) as cluster, ExitStack() as stack:
        yield Scene(cluster, stack)


def gained(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Counter[str]:
    """By all counters, of all nodes."""
    total: Counter[str] = Counter()
    for old, new in zip(before, after, strict=True):
        total += drops_of(new) - drops_of(old)
    return total


def untold(act: str, seen: Counter[str]) -> list[str]:
    """The groups of counters that have not risen and should have."""
    return [group for group in COUNTERS[act] if not any(seen[name] for name in group.split("|"))]


def starts(seen: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(node["state"], node["starts"]) for one in seen for node in one["nodes"]]


def test_every_act_is_tried() -> None:
    assert set(ACTS) == {*COUNTERS, *ENDS_LINKS}


@pytest.mark.parametrize("act", COUNTERS)
def test_an_act_is_counted_and_the_link_goes_on(scene: Scene, act: str, capsys: pytest.CaptureFixture[str]) -> None:
    before, answered = scene.seen, scene.answered()
    did, seen = scene.act(act)
    healed = scene.heal()
    tallies = scene.tallies()
    with capsys.disabled():
        worked = [tally["answered"] - then for tally, then in zip(tallies, answered, strict=True)]
        print(f"\n{act}: {did} frames, meanwhile {worked} answers; healed in {healed:.2f} s; {dict(seen)}")
    assert did > ENOUGH
    assert not untold(act, seen), "no counter tells of it"
    assert starts(scene.seen) == starts(before), f"a link ended by it: {scene.told()}"
    assert [tally["failed"] for tally in tallies] == [{}, {}, {}]
    assert healed < HEALED


def test_every_request_was_answered_once_and_nothing_else_came_of_it(scene: Scene) -> None:
    asked = [client.end() for client in scene.clients]
    served = [server.end() for server in scene.servers]
    delivered = {name: count for one in served for name, count in one["delivered"].items()}
    assert [one["wrong"] for one in asked] == [0, 0, 0]
    assert [(one["twice"], one["wrong"]) for one in served] == [(0, 0), (0, 0)]
    for name, one in zip(("there", "back", "third"), asked, strict=True):
        assert one["answered"] == one["asked"] == delivered[name]
    for node, grown in zip(scene.nodes, (now - then for now, then in zip(scene.memory(), scene.first_memory, strict=True)), strict=True):
        assert grown < GROWTH_MAX, f"{node.node} grew by {grown} KiB"
        assert node.status()["pid"] == node.pid
        assert "Traceback" not in node.log()


@pytest.mark.parametrize("act", ENDS_LINKS)
def test_who_stops_all_frames_ends_the_link_until_he_lets_them_pass(scene: Scene, act: str) -> None:
    """The last in this file: the requests of the others would fail by it."""
    scene.man.tell(act)
    end = time.monotonic() + 10.0
    while scene.nodes[0].link("n2")[0] != "down":
        assert time.monotonic() < end, "nobody noticed"
        time.sleep(0.1)
    assert scene.nodes[0].link("n3")[0] == "up"
    scene.man.tell("honest")
    began = time.monotonic()
    scene.cluster.run("n1", "qnet", "nodes", "--wait", "n2")
    scene.cluster.run("n3", "qnet", "nodes", "--wait", "n2")
    assert time.monotonic() - began < 6.0
    assert scene.cluster.run("n1", "cat", "/net/n2/etc/hostname").stdout == "n2\n"
    assert "Traceback" not in "".join(node.log() for node in scene.nodes)
