"""Whole nodes behind their screens, in virtual time: the programs that the kernel would run are run on every frame.

What counts is that no frame of a node of the cluster is ever shed, whatever the nodes are doing, and that an enemy's are.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

import pytest

from qnetpy.link import wire
from qnetpy.link.session import RekeyPolicy
from qnetpy.parameters import QnetSettings
from qnetpy.testing.world import World
from resmgr.dispatch import Dispatch
from stack.core.screen import Screen
from stack.drivers.af_packet.filter import program, side_program
from stack.drivers.hub import Hub, HubPort
from stack.filter.bpf.assembler import WHOLE
from stack.filter.bpf.machine import run

ETHERTYPE = 0x88B5
X = bytes((2, 0xEE, 0, 0, 0, 1))
PRESSED = 32


class ScreenedPort(HubPort):
    """A port that screens, as the packet driver does it in the kernel."""

    def __init__(self, hub: Hub, dispatch: Dispatch, name: str, mac: bytes, mtu: int, told: Counter[str]) -> None:
        super().__init__(hub, dispatch, name, mac, mtu)
        self.told = told
        self.shed = 0
        self._screens: Mapping[int, Screen] = {}
        self._side: list[float] = []
        self._chance = random.Random(name)

    def screen(self, screens: Mapping[int, Screen]) -> None:
        self._screens = screens
        self._main_code = program(frozenset({ETHERTYPE}), screens)
        self._side_code = side_program(frozenset({ETHERTYPE}), screens)

    def _is_wanted(self, frame: bytes) -> bool:
        if not super()._is_wanted(frame):
            return False
        if ETHERTYPE not in self._screens:
            return True
        who = "enemy" if frame[6:12] == X else "node"
        if run(self._main_code, frame):
            self.told[f"{who} main"] += 1
            return True
        kept = run(self._side_code, frame, random=lambda: self._chance.getrandbits(32))
        if kept == WHOLE:
            self.told[f"{who} side"] += 1
            now = self._dispatch.now()
            self._side = [when for when in self._side if when > now - 0.004] + [now]
            if len(self._side) >= PRESSED:
                self._dispatch.call_soon(self._screens[ETHERTYPE].pressed)
            return True
        self.told[f"{who} shed"] += 1
        if kept:
            self.shed += self._screens[ETHERTYPE].sample_of
        return False


def screened(world: World) -> Counter[str]:
    """Have all nodes that start from now on screen. The frames of nodes and of the enemy, by where they went."""
    told: Counter[str] = Counter()
    hub = world.hub

    def port(name: str, mac: bytes, *, mtu: int = 1500, dispatch: Dispatch | None = None) -> HubPort:
        made = ScreenedPort(hub, world.dispatch if dispatch is None else dispatch, name, mac, mtu, told)
        hub.plug(made)
        return made

    hub.port = port  # type: ignore[method-assign]  # other ports than the hub's own
    return told


@pytest.mark.parametrize("seed", range(4))
def test_no_frame_of_a_node_is_shed_whatever_happens(seed: int) -> None:
    settings = QnetSettings(rekey=RekeyPolicy(after=0.7, stagger=0.2, grace=0.5))
    world = World(seed, fault="drop=5%,reorder=5%", settings=settings)
    told = screened(world)
    nodes = [world.start(name) for name in ("a", "b", "c")]
    assert world.until(world.settled, 5.0)
    for step in range(12):
        world.run(0.4)
        if step == 3:
            nodes[2].crash()
        if step == 6:
            world.start("c")
            nodes[0].qnet.set_suites(["chacha20-poly1305"])
    assert world.until(world.settled, 10.0)
    assert told["node main"] > 100
    assert told["node side"] > 20
    assert told["node shed"] == 0
    assert not any(node.qnet.screen.guard.times for node in nodes)


def test_a_flood_is_shed_and_a_node_gets_in() -> None:
    world = World(1)
    told = screened(world)
    a, b = world.start("a"), world.start("b")
    assert world.until(world.settled, 5.0)
    enemy = HubPort(world.hub, world.dispatch, "x", X, 1500)
    world.hub.plug(enemy)
    chance = random.Random(1)
    header = a.stack.interfaces[0].mac + X + ETHERTYPE.to_bytes(2, "big")
    good = wire.HandshakeFrame(wire.INITIATION, 7, 0, wire.PATTERN_XX, bytes((1, 0, 0, 0)), chance.randbytes(200)).pack()

    def burst() -> None:
        frames = [header + good + chance.randbytes(36) for _ in range(6)]
        frames += [header + wire.DATA_HEADER.pack(wire.DATA, 0, 40, chance.getrandbits(32), 5) + bytes(40) for _ in range(6)]
        enemy.transmit(list(frames))
        if world.now < end:
            world.at(world.now + 0.001, burst)

    end = world.now + 1.5
    burst()
    world.run(0.5)
    assert a.qnet.screen.guard.on
    assert not b.qnet.screen.guard.on
    c = world.start("c")
    assert world.until(lambda: a.sees("c") and c.sees("a"), 2.0)
    world.run(1.0)
    assert told["enemy shed"] > 10_000
    assert told["enemy main"] == 0
    assert told["node shed"] == 0
    assert a.qnet.screen.facts()["on"]
    world.run(8.0)
    assert a.qnet.screen.facts() == {"on": False, "times": 1, "repeated": 0, "shed": a.stack.shed()}
    assert abs(a.stack.shed() - told["enemy shed"]) < told["enemy shed"] * 0.5
    assert {node.starts for node in a.qnet.nodes} == {1}


def test_nothing_is_left_when_the_module_goes() -> None:
    world = World(1)
    screened(world)
    a = world.start("a")
    port = next(port for port in world.hub.ports if isinstance(port, ScreenedPort))
    world.run(1.0)
    assert port._screens
    a.qnet.detach()
    assert not port._screens
