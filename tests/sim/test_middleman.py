"""A man in the middle of a cable in virtual time: n1 and n3 on one side of him, n2 on the other, and keys that are renewed every second.

What each of his acts gets is in tests/cluster/test_middleman.py, on a real bridge. Here acts follow each other as a seed wills, of any
length, over cables of several kinds: none of it ends a link or lets a node fall silent.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from qnetpy.link.session import RekeyPolicy
from qnetpy.nodes import NodeState
from qnetpy.parameters import QnetSettings
from qnetpy.testing.tamper import ACTS, Tamper
from qnetpy.testing.world import World
from resmgr.channel import PID_SYSTEM, Connection
from resmgr.dispatch import Buffer
from stack.drivers.hub import HubPort

pytestmark = pytest.mark.sim
CHID = 77
THINK = 0.01
CABLES = ("", "delay=2ms,jitter=4ms", "delay=15ms,jitter=30ms", "drop=5%")
MILD = tuple(act for act in ACTS if act not in ("silence", "one-way"))


class Middle:
    """He holds the cable between *far* and all others."""

    def __init__(self, world: World, far: bytes, seed: int) -> None:
        self.world = world
        self.tamper = Tamper(1, seed)
        self._far = far
        world.hub.spread = self._spread  # type: ignore[method-assign]  # the cable goes through him

    def _side(self, end: int, but: HubPort | None = None) -> list[HubPort]:
        return [port for port in self.world.hub.ports if port is not but and (port.mac == self._far) == (end == 1)]

    def _spread(self, sender: HubPort, frames: list[bytes]) -> None:
        end = int(sender.mac == self._far)
        near = self._side(end, sender)
        for port in near:
            self._arrive(port, frames)
        stations = {port.mac for port in near}
        for frame in frames:
            if frame[:6] not in stations:
                for sending in self.tamper.heard(end, frame):
                    out = partial(self._out, sending.end, sending.frame)
                    if sending.delay:
                        self.world.at(self.world.now + sending.delay, out)
                    else:
                        out()

    def _out(self, end: int, frame: bytes) -> None:
        for port in self._side(end):
            self._arrive(port, [frame])

    @staticmethod
    def _arrive(port: HubPort, frames: list[bytes]) -> None:
        port.arrive([frame for frame in frames if frame[0] & 1 or frame[:6] == port.mac])


def ask(world: World, connection: Connection, told: Callable[[int], None]) -> None:
    def done(status: int, reply: Buffer) -> None:
        told(status)
        world.at(world.now + THINK, partial(ask, world, connection, told))

    connection.submit([b"q" * 100], 4096, done)


@pytest.mark.parametrize("seed", range(6))
def test_no_sequence_of_acts_ends_a_link(seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    world = World(seed, fault=CABLES[seed % len(CABLES)], settings=QnetSettings(rekey=RekeyPolicy(after=1.0)))
    nodes = [world.start(name) for name in ("n1", "n2", "n3")]
    (far,) = nodes[1].stack.interfaces
    middle = Middle(world, far.mac, seed)
    for node in nodes:
        node.system.kernel.channel(lambda message: message.reply(0, b"a"), chid=CHID)
    assert world.until(world.settled, 10.0)
    told: Counter[tuple[str, int]] = Counter()

    def count(name: str, status: int) -> None:
        told[name, status] += 1

    for near, to in ((0, 1), (1, 0), (2, 1)):
        ask(world, nodes[near].connect(nodes[to].name, PID_SYSTEM, CHID), partial(count, nodes[near].name))
    for _ in range(5):
        # Changing where everything comes from is what keeps a handshake from its end: often.
        middle.tamper.act = act = chance.choice([*MILD, "moved", "moved", "moved"])
        world.run(chance.uniform(0.5, 4.5))
        if chance.random() < 0.5:
            middle.tamper.act = "honest"
            world.run(chance.uniform(0.05, 1.0))
        for node in nodes:
            assert {(one.state, one.starts) for one in node.qnet.nodes} == {(NodeState.UP, 1)}, f"{node.name} after {act}"
    assert {status for _, status in told} == {0}
    assert sum(told.values()) > 100
