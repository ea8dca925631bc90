"""An enemy on the cable who hears everything and sends what he likes, while two nodes work. docs/protocol/attacks.md lists what he gets.

Whole nodes in virtual time. The enemy has no key; he is a port of the hub. A seed decides what he does with each frame that he hears.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable

import pytest

from qnetpy.link import wire
from qnetpy.link.session import RekeyPolicy
from qnetpy.nodes import NodeState
from qnetpy.parameters import QnetSettings
from qnetpy.testing.node import SimNode
from qnetpy.testing.world import World
from resmgr.channel import PID_SYSTEM, Message
from resmgr.dispatch import Buffer
from stack.drivers.hub import HubPort

CHID = 77
HEAD = 14
KEPT = 2000
"""Frames that the enemy remembers."""
THINK = 0.01
"""Seconds between an answer and the next request."""


class Enemy:
    """Hears every frame of the hub, and may answer it with others."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.chance = random.Random(seed)
        self.port = world.hub.port("x", bytes((2, 0xEE, 0, 0, 0, 1)), dispatch=world.dispatch)
        self.heard: list[bytes] = []
        self.did: Counter[str] = Counter()
        self.acts: dict[str, Callable[[bytes], bytes | None]] = {}
        real = world.hub.spread

        def spread(sender: HubPort, frames: list[bytes]) -> None:
            real(sender, frames)
            if sender is not self.port:
                for frame in frames:
                    self._hear(frame)

        world.hub.spread = spread  # type: ignore[method-assign]  # the enemy's tap

    def _hear(self, frame: bytes) -> None:
        if len(self.heard) < KEPT:
            self.heard.append(frame)
        elif self.chance.random() < 0.1:
            self.heard[self.chance.randrange(KEPT)] = frame
        for name, act in self.acts.items():
            made = act(frame)
            if made is not None:
                self.did[name] += 1
                self.later(made, self.chance.choice([0.0, 0.0002, 0.01, 1.0]))

    def later(self, frame: bytes, delay: float) -> None:
        self.world.at(self.world.now + delay, lambda: self.port.transmit([frame]))

    def now_and_then(self, what: Callable[[bytes], bytes | None], part: float = 0.3) -> Callable[[bytes], bytes | None]:
        return lambda frame: what(frame) if self.chance.random() < part else None

    # What he does

    def repeat(self, frame: bytes) -> bytes:
        return frame

    def old(self, frame: bytes) -> bytes:
        """Something recorded, of any session and kind."""
        return self.chance.choice(self.heard)

    def reflect(self, frame: bytes) -> bytes:
        """Back to where it came from."""
        return frame[6:12] + frame[:6] + frame[12:]

    def cut(self, frame: bytes) -> bytes:
        return frame[: self.chance.randrange(HEAD, len(frame))].ljust(60, b"\0")

    def change(self, frame: bytes) -> bytes:
        """One to four bytes anywhere behind the Ethernet header, the header's fields as likely as the rest."""
        data = bytearray(frame)
        for _ in range(self.chance.randrange(1, 5)):
            end = self.chance.choice([min(len(data), HEAD + 20), len(data)])
            data[self.chance.randrange(HEAD, end)] ^= 1 << self.chance.randrange(8)
        return bytes(data)

    def spoof(self, frame: bytes) -> bytes:
        """The same from another address: his own, or one that nobody has."""
        return frame[:6] + self.chance.choice([self.port.mac, bytes((2,)) + self.chance.randbytes(5)]) + frame[12:]

    def group(self, frame: bytes) -> bytes:
        """As if it came from everybody."""
        return frame[:6] + bytes((3, 0, 0, 0, 0, 1)) + frame[12:]

    def noise(self, frame: bytes) -> bytes:
        return frame[:HEAD] + self.chance.randbytes(self.chance.randrange(46, 500))


ACTS = ("repeat", "old", "reflect", "cut", "change", "spoof", "group", "noise")


class Work:
    """Numbered requests from each node to the other, one after the other, and a check of everything that comes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes = [world.start("a"), world.start("b")]
        self.served: Counter[tuple[str, bytes]] = Counter()
        self.answered: list[bytes] = []
        self.running = True
        self.crashed = ""
        """The node that was crashed: what it was asked last may fail."""
        for node in self.nodes:
            node.system.kernel.channel(self._server(node), chid=CHID)
        assert world.until(world.settled, 10.0)
        for node, other in zip(self.nodes, reversed(self.nodes), strict=True):
            self._ask(node, other.name, 0)

    def _server(self, node: SimNode) -> Callable[[Message], None]:
        def handle(message: Message) -> None:
            data = bytes(message.data)
            self.served[node.name, data] += 1
            message.reply(0, data[::-1])

        return handle

    def _ask(self, node: SimNode, to: str, number: int) -> None:
        text = f"{node.name} {number} ".encode() * (1 + number % 40)

        def done(status: int, reply: Buffer) -> None:
            if to == self.crashed and status == -errno.EHOSTDOWN:
                return
            assert (status, bytes(reply)) == (0, text[::-1])
            self.answered.append(text)
            if self.running:
                self.world.at(self.world.now + THINK, lambda: self._ask(node, to, number + 1))

        node.connect(to, PID_SYSTEM, CHID).submit([text], 4096, done)


def check(world: World, work: Work, minimum: int) -> None:
    """Every answer was right (see `done`), nothing was served twice, the nodes are up and were up all the time."""
    work.running = False
    world.run(3.0)
    assert len(work.answered) > minimum
    assert set(work.served.values()) == {1}
    assert sum(work.served.values()) == len(work.answered)
    for node in work.nodes:
        assert [(other.state, other.starts) for other in node.qnet.nodes] == [(NodeState.UP, 1)]
        sizes = node.qnet.sizes()
        assert sizes["half_open"] <= 8
        assert sizes["sessions"] <= 2


@pytest.mark.parametrize("act", ACTS)
def test_one_attack_on_a_link_at_work(act: str) -> None:
    for seed in range(2):
        world = World(seed, settings=QnetSettings(rekey=RekeyPolicy(after=1.0, stagger=0.0, grace=0.5)))
        enemy = Enemy(world, seed)
        enemy.acts[act] = enemy.now_and_then(getattr(enemy, act))
        work = Work(world)
        world.run(2.5)
        assert enemy.did[act] > 200
        check(world, work, 200)


def test_all_attacks_at_once_over_a_bad_cable() -> None:
    for seed in range(3):
        world = World(100 + seed, fault="drop=5%,reorder=5%", settings=QnetSettings(rekey=RekeyPolicy(after=1.0, stagger=0.5, grace=0.5)))
        enemy = Enemy(world, seed)
        for act in ACTS:
            enemy.acts[act] = enemy.now_and_then(getattr(enemy, act), 0.15)
        work = Work(world)
        world.run(4.0)
        assert min(enemy.did[act] for act in ACTS) > 50
        check(world, work, 40)


def test_the_attacks_are_seen_for_what_they_are() -> None:
    """The counters name them: an attack that leaves none would not have arrived."""
    world = World(1)
    enemy = Enemy(world, 1)
    for act in ACTS:
        enemy.acts[act] = enemy.now_and_then(getattr(enemy, act), 0.2)
    work = Work(world)
    world.run(3.0)
    (node, _) = work.nodes
    session = node.qnet.machine.links["b"].sessions.current
    assert session is not None
    assert session.counters.bad_tag > 0
    assert session.counters.replayed > 0
    assert node.qnet.machine.counters["malformed"] > 0
    assert node.qnet.machine.counters["unknown_session"] > 0
    # Handshake frames: he waits for none, he sends what he has.
    for kind in (wire.INITIATION, wire.RESPONSE, wire.FINAL, wire.CONFIRM):
        for frame in [one for one in enemy.heard if one[HEAD] == kind]:
            for made in (frame, enemy.spoof(frame), enemy.reflect(frame), enemy.group(frame), enemy.change(frame)):
                enemy.later(made, 0.001)
    world.run(1.0)
    seen = Counter[str]()
    for one in work.nodes:
        seen += one.qnet.machine.handshake_counters
        seen["group_source"] += one.qnet.machine.counters["group_source"]
    assert min(seen[name] for name in ("bad_mac", "unknown_index", "replayed_initiation", "group_source")) > 0, seen
    check(world, work, 50)


def test_a_node_that_starts_under_attack_gets_in() -> None:
    """With recordings of its own last life thrown at it and at the other."""
    world = World(5)
    enemy = Enemy(world, 5)
    work = Work(world)
    world.run(1.0)
    work.running = False
    work.crashed = "a"
    work.nodes[0].crash()
    for act in ("old", "change", "spoof", "reflect", "noise"):
        enemy.acts[act] = enemy.now_and_then(getattr(enemy, act), 0.5)
    for number in range(4000):
        enemy.later(enemy.chance.choice(enemy.heard), number / 1000)
    world.run(1.0)
    again = world.start("a")
    assert world.until(lambda: again.sees("b") and work.nodes[1].sees("a"), 10.0)
    world.run(2.0)
    assert again.sees("b")


@pytest.mark.parametrize("kind", [wire.FINAL, wire.CONFIRM])
def test_a_handshake_that_ends_from_elsewhere_leaves_no_address(kind: int) -> None:
    """Whoever is between them gives the last words of their first handshake another source: neither looks for the other there."""
    world = World(3)
    real = world.hub.spread
    moved: list[bytes] = []

    def spread(sender: HubPort, frames: list[bytes]) -> None:
        for place, frame in enumerate(frames):
            if frame[HEAD] == kind and len(moved) < 2:
                moved.append(frame)
                frames[place] = frame[:6] + bytes((2, 0xEE, 0, 0, 0, 9)) + frame[12:]
        real(sender, frames)

    world.hub.spread = spread  # type: ignore[method-assign]  # he holds the cable
    nodes = [world.start(name) for name in ("a", "b")]
    assert world.until(world.settled)
    world.run(5.0)
    assert moved
    for node, other in (nodes, nodes[::-1]):
        (link,) = node.qnet.machine.links.values()
        assert [(path.address[1], path.number) for path in link.paths.values()] == [(other.cable("en0").mac, 0)]
        assert node.qnet.machine._calls.addresses(other.name) == [link.paths[0].address]
