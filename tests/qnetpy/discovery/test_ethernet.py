"""Whole nodes that know of nobody, on a cable in virtual time: they find each other by solicitations alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from qnetpy.discovery.ethernet import EthernetDiscovery
from qnetpy.discovery.solicitor import BEAT, JITTER
from qnetpy.link import wire
from qnetpy.link.constants import GROUP
from qnetpy.nodes import NodeState
from qnetpy.parameters import QnetSettings
from qnetpy.testing.node import SimNode
from qnetpy.testing.world import World
from resmgr.channel import Credentials
from resmgr.errors import ResmgrError
from resmgr.testing.ioclient import IoClient
from stack.drivers.hub import Hub, HubPort
from stack.frame import Frame
from stack.wire.ethernet import HEADER_SIZE

SETTINGS = QnetSettings(solicit=True)


class Ear:
    """A port that hears what is sent to groups."""

    def __init__(self, world: World) -> None:
        hub = world.hubs["lan"]
        assert isinstance(hub, Hub)
        self.heard: list[bytes] = []
        self.port: HubPort = hub.port("ear", bytes.fromhex("02ee00000002"))
        self.port.start(self)
        self.port.accept(None)

    def deliver(self, frames: list[Frame]) -> None:
        self.heard += map(bytes, frames)

    def changed(self) -> None: ...

    def count(self, reason: str, number: int = 1) -> None: ...


def kinds(world: World, call: Sequence[SimNode]) -> Counter[str]:
    """Of the trace: how many frames of each kind these nodes sent."""
    counted: Counter[str] = Counter()
    for line in world.dispatch.trace or ():
        words = line.split()
        if len(words) > 3 and words[1] == "lan" and words[2] in {node.name for node in call}:
            for place, word in enumerate(words):
                if word in ("INITIATION", "SOLICITATION"):
                    counted[word] += int(words[place - 1]) if words[place - 1].isdecimal() else 1
    return counted


def alone(world: World, name: str, **changes: object) -> SimNode:
    return world.start(name, call=[], settings=SETTINGS, **changes)  # type: ignore[arg-type]  # names are checked by `start`


def ethernet(node: SimNode) -> EthernetDiscovery:
    assert node.qnet.ethernet is not None
    return node.qnet.ethernet


def test_nodes_that_know_of_nobody_find_each_other_at_once() -> None:
    world = World(1)
    nodes = [alone(world, name) for name in ("a", "b", "c")]
    began = world.now
    assert world.until(world.settled, 1.0)
    assert world.now - began < 0.05
    late = alone(world, "d")
    began = world.now
    assert world.until(world.settled, 1.0)
    assert world.now - began < 0.05
    world.run(60.0)
    for node in (*nodes, late):
        facts = ethernet(node).facts()
        assert 8 < facts.pop("solicitations_sent") < 20
        assert facts == {"soliciting": facts["soliciting"]}, "nothing was refused"
        assert node.qnet.machine.handshake_counters["established"] < 10


def test_they_say_nothing_of_themselves_but_that_they_are_there() -> None:
    world = World(2)
    ear = Ear(world)
    a = alone(world, "alpha")
    world.run(20.0)
    assert len(ear.heard) == ethernet(a).facts()["solicitations_sent"]
    for frame in ear.heard:
        assert frame[:6] == GROUP
        assert frame[6:12] == world.mac("alpha", "lan")
        assert frame[HEADER_SIZE] == wire.SOLICITATION
        assert b"alpha" not in frame


def test_a_restart_is_noticed_at_once_and_not_when_the_old_boot_is_missed() -> None:
    world = World(3)
    _, b = alone(world, "a"), alone(world, "b")
    assert world.until(world.settled)
    world.run(20.0)
    b.crash()
    began = world.now
    b = alone(world, "b")
    a = world.nodes["a"]
    assert world.until(lambda: b.sees("a"), 1.0)
    assert world.now - began < 0.1
    node = a.qnet.nodes.get("b")
    assert node is not None
    assert (node.state, node.starts) == (NodeState.UP, 2)


@pytest.mark.parametrize("off", [1.0 + number * 0.7 for number in range(12)])
def test_who_comes_back_while_it_is_called_in_vain_is_called_at_once(off: float) -> None:
    world = World(13)
    a, b = alone(world, "a"), alone(world, "b")
    assert world.until(world.settled)
    world.run(20.0)
    b.stop()
    world.run(off)
    began = world.now
    alone(world, "b")
    assert world.until(world.settled, 3.0)
    assert world.now - began < 0.6
    assert a.sees("b")


def test_who_was_told_twice_calls_once() -> None:
    """By a list and by a solicitation, of both ends."""
    world = World(4, trace=True)
    world.join("a", "b")
    a = world.start("a", settings=SETTINGS)
    world.run(0.5)
    b = world.start("b", settings=SETTINGS)
    assert world.until(world.settled, 1.0)
    world.run(30.0)
    assert kinds(world, [a, b])["INITIATION"] <= 14 + 4, "a's to nobody for half a second, and then one handshake or two that crossed"
    assert [node.qnet.machine.handshake_counters["established"] for node in (a, b)] == [1, 1]


def test_who_does_not_look_so_is_silent_and_counts_those_who_do() -> None:
    world = World(5)
    quiet = world.start("quiet", call=[])
    ear = Ear(world)
    world.run(60.0)
    assert world.hub.frames == 0
    assert not ear.heard
    alone(world, "other")
    world.run(1.0)
    assert quiet.qnet.machine.drops() == {"solicitations_unheard": 3}
    assert not quiet.qnet.machine.links


def test_segments_that_are_joined_find_each_other_without_any_carrier_changing() -> None:
    world = World(6)
    world.hub.severed = {("a", "b"), ("b", "a")}
    alone(world, "a"), alone(world, "b")
    world.run(100.0)
    world.hub.severed = set()
    began = world.now
    assert world.until(world.settled, 30.0)
    assert world.now - began <= BEAT * (1.0 + JITTER) + 0.1


def test_a_name_that_is_asked_for_is_looked_for_now() -> None:
    world = World(7)
    world.hub.severed = {("a", "b"), ("b", "a")}
    a, b = alone(world, "a"), alone(world, "b")
    world.run(100.0)
    world.hub.severed = set()
    client = IoClient(a.system.kernel, Credentials(0, 0), target=a.qnet.netfs.target, run=lambda goal: (world.until(goal), None)[1])
    sent = ethernet(a).facts()["solicitations_sent"]
    for name in (b".git", b"autorun.inf"):
        with pytest.raises(ResmgrError):
            client.lookup(name)
    assert ethernet(a).facts()["solicitations_sent"] == sent, "no node has such a name"
    try:
        client.lookup(b"b")
    except ResmgrError:
        began = world.now
        assert world.until(lambda: a.sees("b") and b.sees("a"), 1.0)
        assert world.now - began < 0.05
    else:
        raise AssertionError("b was known already")


def test_carrier_that_comes_back_is_a_beginning() -> None:
    world = World(8)
    a = alone(world, "a")
    a.cable("en0").set_carrier(False)
    alone(world, "b")
    world.run(100.0)
    sent = ethernet(a).facts()["solicitations_sent"]
    assert sent <= 1
    a.cable("en0").set_carrier(True)
    began = world.now
    assert world.until(world.settled, 1.0)
    assert world.now - began < 0.05


def test_another_card_is_known_by_its_own_word() -> None:
    world = World(9)
    a = alone(world, "a")
    alone(world, "b")
    assert world.until(world.settled)
    a.exchange("en0", 7)
    began = world.now
    b = world.nodes["b"]

    def reached() -> bool:
        link = b.qnet.machine.links.get("a")
        return link is not None and any(path.address[1] == world.other_mac("a", "lan", 7) for path in link.paths.values())

    assert world.until(reached, 1.0)
    assert world.now - began < 0.5
    assert b.qnet.nodes.get("a").starts == 1  # type: ignore[union-attr]  # it was met


def test_who_is_off_for_long_is_withdrawn() -> None:
    world = World(10)
    a, b = alone(world, "a"), alone(world, "b")
    assert world.until(world.settled)
    b.stop()
    world.run(61.0)
    assert ethernet(a).facts()["soliciting"] == 0
    frames = world.hub.frames
    world.run(600.0)
    calls = (world.hub.frames - frames) / 10
    assert calls < 25, "a call a minute, and ours"


def test_who_is_on_a_list_as_well_stands_when_it_is_silent() -> None:
    world = World(12)
    world.join("a", "b")
    a = world.start("a", settings=SETTINGS)
    world.run(5.0)
    b = alone(world, "b")
    assert world.until(world.settled)
    assert ethernet(a).facts()["soliciting"] == 1
    b.crash()
    world.run(70.0)
    assert ethernet(a).facts()["soliciting"] == 0
    frames = world.hub.frames
    world.run(120.0)
    assert world.hub.frames - frames > 80, "it is called every few seconds, not once a minute"


def test_when_a_node_ends_it_is_silent() -> None:
    world = World(11)
    a = alone(world, "a")
    world.run(5.0)
    a.stop()
    frames = world.hub.frames
    world.run(60.0)
    assert world.hub.frames == frames
