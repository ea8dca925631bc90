"""The simulator as a product: what docs/howto/simulate.md promises to people who test their own servers with it."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from qnetpy.nodes import NodeState
from qnetpy.testing.node import SimNode
from qnetpy.testing.world import World
from resmgr.channel import PID_SYSTEM, Message
from resmgr.dispatch import Buffer
from resmgr.errors import Misuse

CHID = 77


def serve(node: SimNode, answers: list[bytes] | None = None) -> None:
    """A server that says its node's name."""

    def handle(message: Message) -> None:
        if answers is not None:
            answers.append(bytes(message.data))
        message.reply(0, node.name.encode() + b":" + bytes(message.data))

    node.system.kernel.channel(handle, chid=CHID)


def ask(client: SimNode, to: str, text: bytes, limit: float = 5.0) -> tuple[int, bytes]:
    got: list[tuple[int, bytes]] = []

    def done(status: int, reply: Buffer) -> None:
        got.append((status, bytes(reply)))

    client.connect(to, PID_SYSTEM, CHID).submit([text], 100, done)
    assert client.world.until(lambda: bool(got), limit)
    return got[0]


def test_the_life_of_a_small_cluster() -> None:
    world = World(7, fault="drop=5%,reorder=5%")
    a, b = world.start("a"), world.start("b")
    serve(b)
    assert world.until(world.settled, 2.0)
    assert ask(a, "b", b"hello") == (0, b"b:hello")

    began = world.now
    b.crash()
    assert world.until(lambda: not a.sees("b") and a.qnet.nodes.get("b") is not None, 5.0)
    assert world.until(lambda: a.qnet.remote(a.nd("b")) == errno.EHOSTDOWN, 5.0)
    assert world.now - began < 3.3
    assert ask(a, "b", b"anybody?")[0] == -errno.EHOSTDOWN
    assert world.settled()

    again = world.start("b")
    serve(again)
    assert world.until(world.settled, 2.0)
    assert ask(a, "b", b"hello") == (0, b"b:hello")
    node = a.qnet.nodes.get("b")
    assert node is not None
    assert node.starts == 2


def test_a_clean_stop_is_known_in_half_a_second() -> None:
    world = World(1)
    a, b = world.start("a"), world.start("b")
    assert world.until(world.settled)
    b.stop()
    world.run(0.5)
    node = a.qnet.nodes.get("b")
    assert node is not None
    assert (node.state, node.reason) == (NodeState.DOWN, "left")


def test_nodes_find_each_other_in_two_seconds() -> None:
    for seed in range(20):
        world = World(seed, fault="drop=5%")
        for name in ("a", "b", "c"):
            world.start(name)
        assert world.until(world.settled, 2.0), f"seed {seed}"


def test_a_late_joiner_that_nobody_expected_is_taken_in() -> None:
    world = World(1)
    a = world.start("a")
    world.run(5.0)
    c = world.start("c")
    assert world.until(world.settled, 2.0)
    assert a.sees("c")
    assert c.sees("a")


def test_two_cables_and_the_loss_of_one() -> None:
    world = World(3, links=("lan", "san"))
    a, b = world.start("a"), world.start("b")
    assert list(a.cables) == ["en0", "en1"]
    serve(b)
    assert world.until(world.settled)
    world.run(3.0)
    for interface in ("en0", "en1"):
        a.cables[interface].set_carrier(False)
        began = world.now
        assert ask(a, "b", b"x") == (0, b"b:x")
        assert world.now - began < 0.1
        a.cables[interface].set_carrier(True)
        world.run(1.0)
    assert {node.starts for node in a.qnet.nodes} == {1}


def test_a_node_may_be_on_one_of_the_cables_only_and_know_only_some() -> None:
    world = World(3, links=("lan", "san"))
    world.join("a", "b", "c")
    a = world.start("a", links=("lan",), call=("b",))
    b = world.start("b", call=())
    c = world.start("c", links=("san",), call=("b",))
    assert world.until(lambda: b.sees("a") and b.sees("c") and a.sees("b") and c.sees("b"), 3.0)
    world.run(3.0)
    assert not a.sees("c")
    assert list(c.cables) == ["en1"]


def test_faults_can_be_changed_while_it_runs() -> None:
    world = World(1, fault="cut")
    a, b = world.start("a"), world.start("b")
    serve(b)
    assert not world.until(world.settled, 5.0)
    for node in (a, b):
        node.fault.cut = False
    assert world.until(world.settled, 8.0)
    a.set_fault("drop=100%")
    assert world.until(lambda: not a.sees("b"), 2.0)
    a.set_fault("")
    assert world.until(lambda: a.sees("b") and b.sees("a"), 3.0)


def test_a_clock_that_is_wrong_by_minutes_does_not_matter_and_by_months_it_does() -> None:
    world = World(1)
    a, b, c = world.start("a", skew=-100.0), world.start("b", skew=100.0), world.start("c", skew=90 * 86400.0)
    assert world.until(lambda: a.sees("b") and b.sees("a"), 2.0)
    world.run(5.0)
    assert not a.sees("c")
    assert not c.sees("a")


def test_large_frames_are_used_where_they_pass() -> None:
    world = World(1)
    a, b = world.start("a", mtu=9000), world.start("b", mtu=9000)
    serve(b)
    assert world.until(world.settled)
    world.run(2.0)
    link = a.qnet.machine.links["b"]
    assert link.transport.statistics().paths[next(iter(link.paths))].payload > 8000
    for node in (a, b):
        node.set_fault("mtu=1500")
    assert ask(a, "b", b"z" * 50)[0] == 0
    assert {node.starts for node in a.qnet.nodes} == {1}


def test_switching_on_what_is_on_is_a_mistake_and_so_is_asking_for_the_unknown() -> None:
    world = World(1)
    a = world.start("a")
    with pytest.raises(Misuse):
        world.start("a")
    with pytest.raises(LookupError):
        a.nd("nobody")
    assert a.nd("a") == 0


def test_every_boot_is_another_and_a_dead_node_does_nothing() -> None:
    world = World(1)
    a, b = world.start("a"), world.start("b")
    assert world.until(world.settled)
    first = b.qnet.boot_id
    b.crash()
    frames = b.fault.statistics["tx"].get("frames", 0)
    world.run(10.0)
    assert b.fault.statistics["tx"].get("frames", 0) == frames
    again = world.start("b")
    assert again.qnet.boot_id != first
    assert again.boot > b.boot
    assert world.until(world.settled)
    assert a.qnet.nodes.get("b") is not None


def test_a_trace_shows_turns_and_frames() -> None:
    def trace(seed: int) -> list[str]:
        world = World(seed, trace=True)
        world.start("a")
        world.start("b")
        world.run(2.0)
        assert world.dispatch.trace is not None
        return world.dispatch.trace

    assert trace(1) == trace(1)
    assert trace(1) != trace(2)
    assert any(" INITIATION " in line for line in trace(1))
    assert any(" a timers=" in line for line in trace(1))


def test_the_world_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "simulate.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    exec(program, names)
    world = names["world"]
    assert isinstance(world, World)
    assert world.until(world.settled), "the node that was started again is seen"
