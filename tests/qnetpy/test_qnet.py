"""lsm-qnet as one object: what ties stack, links, kernel and /net together. Whole nodes in virtual time."""

from __future__ import annotations

import errno
import logging

import pytest

from qnetpy.link.machine import BURST
from qnetpy.nodes import NODES_MAX, NodeState
from qnetpy.parameters import QnetSettings
from qnetpy.testing.node import SimNode
from qnetpy.testing.world import World
from resmgr.channel import PID_SYSTEM, Connection, Message, Nd
from resmgr.dispatch import Buffer
from resmgr.testing.ioclient import IoClient
from stack.frame import Frame

CHID = 50


class Sent:
    """A send and its result."""

    def __init__(self, connection: Connection, data: bytes = b"x", reply_len: int = 100) -> None:
        self.results: list[int] = []
        self.pending = connection.submit([data], reply_len, self._done)

    def _done(self, status: int, reply: Buffer) -> None:
        self.results.append(status)


@pytest.fixture
def world() -> World:
    world = World(5)
    world.start("a")
    world.start("b")
    assert world.until(world.settled)
    return world


def echo(node: SimNode) -> list[bytes]:
    got: list[bytes] = []

    def handle(message: Message) -> None:
        got.append(bytes(message.data))
        message.reply(7)

    node.system.kernel.channel(handle, chid=CHID)
    return got


def hold(node: SimNode) -> list[Message]:
    held: list[Message] = []
    node.system.kernel.channel(held.append, chid=CHID)
    return held


def test_an_ethertype_that_looks_like_a_tag_is_refused() -> None:
    for ethertype in (0x8100, 0x88A8, 0x9100, 0x1200):
        with pytest.raises(ValueError, match="VLAN"):
            QnetSettings(ethertype=ethertype)


def test_node_down_is_told_to_everybody_who_waits(world: World) -> None:
    a, b = world.nodes["a"], world.nodes["b"]
    hold(b)
    sends = [Sent(a.connect("b", PID_SYSTEM, CHID)) for _ in range(20)]
    world.run(0.1)
    b.crash()
    began = world.now
    assert world.until(lambda: all(send.results for send in sends), 5.0)
    assert [send.results for send in sends] == [[-errno.EHOSTDOWN]] * 20
    assert 2.5 < world.now - began < 3.3
    late = Sent(a.connect("b", PID_SYSTEM, CHID))
    assert late.results == [-errno.EHOSTDOWN], "a send to a node that is down must fail at once"


def test_a_node_never_met_is_unreachable(world: World) -> None:
    send = Sent(world.nodes["a"].system.kernel.connect(Nd(99), PID_SYSTEM, CHID, world.nodes["a"].connect("a", 1, 1).credentials))
    assert send.results == [-errno.EHOSTUNREACH]


def test_connections_of_an_earlier_boot_are_bad_and_new_ones_work(world: World) -> None:
    a, b = world.nodes["a"], world.nodes["b"]
    echo(b)
    connection = a.connect("b", PID_SYSTEM, CHID)
    first = Sent(connection)
    assert world.until(lambda: bool(first.results))
    b.crash()
    again = world.start("b")
    got = echo(again)
    began = world.now
    assert world.until(world.settled, 2.0)
    old = Sent(connection)
    assert old.results == [-errno.EBADF]
    new = Sent(a.connect("b", PID_SYSTEM, CHID), b"new")
    assert world.until(lambda: new.results == [7], 2.0)
    assert world.now - began < 2.0
    assert got == [b"new"]


def test_while_a_node_is_suspect_operations_wait_and_can_be_interrupted_at_once(world: World) -> None:
    a, b = world.nodes["a"], world.nodes["b"]
    got = echo(b)
    connection = a.connect("b", PID_SYSTEM, CHID)
    a.fault.set_carrier(False)
    node = a.qnet.nodes.get("b")
    assert node is not None
    assert node.state is NodeState.SUSPECT
    waits, gives_up = Sent(connection, b"waits"), Sent(connection, b"gives up")
    world.run(1.0)
    assert waits.results == gives_up.results == []
    assert gives_up.pending is not None
    gives_up.pending.unblock()
    assert gives_up.results == [-errno.EINTR]
    a.fault.set_carrier(True)
    assert world.until(lambda: waits.results == [7], 1.0)
    assert got.count(b"waits") == 1


def test_what_a_listing_of_net_shows_follows_the_states(world: World) -> None:
    a, b = world.nodes["a"], world.nodes["b"]
    client = IoClient(a.system.kernel, a.connect("a", 1, 1).credentials, run=None)  # nothing may have to wait
    assert client.names(b"net") == {b"a", b"b"}
    b.crash()
    world.run(1.5)
    assert client.names(b"net") == {b"a", b"b"}
    world.run(2.0)
    assert client.names(b"net") == {b"a"}
    world.start("b")
    assert world.until(world.settled)
    assert client.names(b"net") == {b"a", b"b"}


def test_a_node_that_is_announced_again_is_connecting_until_it_answers_or_does_not(world: World) -> None:
    a, b = world.nodes["a"], world.nodes["b"]
    b.crash()
    world.run(60.0)
    node = a.qnet.nodes.get("b")
    assert node is not None
    assert f"{node.state.value} {node.reason}" == "down silent"
    for _ in range(100):
        a.qnet.machine.hint(("en0", world.mac("b", "lan")), world.now)
        a.qnet.flush_later()
        if node.state is NodeState.CONNECTING:
            break
        world.run(0.1)
    assert node.state.value == "connecting"
    assert Sent(a.connect("b", PID_SYSTEM, CHID)).results == [-errno.EHOSTDOWN]
    world.run(10.0)
    assert node.state.value == "down"
    assert "does not answer" in node.reason


def test_detach_leaves_nothing_and_says_so(world: World) -> None:
    a, b = world.nodes["a"], world.nodes["b"]
    hold(a)
    hold(b)
    sends = [Sent(a.connect("b", PID_SYSTEM, CHID)), Sent(b.connect("a", PID_SYSTEM, CHID))]
    world.run(0.1)
    a.qnet.detach()
    a.qnet.detach()
    assert sends[0].results == [-errno.EHOSTDOWN]
    world.run(0.1)
    assert sends[1].results == [-errno.EHOSTDOWN]
    assert set(a.qnet.sizes().values()) == {0}
    assert a.system.kernel.network is None
    frames = world.hub.frames
    a.qnet.flush_later()
    world.run(0.001)
    assert world.hub.frames == frames
    assert Sent(a.connect("b", PID_SYSTEM, CHID)).results == [-errno.ENOTSUP]
    client = IoClient(a.system.kernel, a.connect("a", 1, 1).credentials)
    assert b"net" not in client.names()


def test_a_full_table_of_nodes_turns_the_next_one_away(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a = world.nodes["a"]
    for number in range(NODES_MAX - 1):
        assert a.qnet.nodes.add(f"x{number}", 0.0) is not None
    c = world.start("c")
    with caplog.at_level(logging.ERROR):
        world.run(1.0)
    assert "table of nodes is full" in caplog.text
    assert a.qnet.counters["node_table_full"] >= 1
    assert a.sees("b")
    assert not a.sees("c")
    assert c.sees("b")
    assert a.qnet.sizes()["peers"] == 1


@pytest.mark.mistakes
def test_a_server_that_raises_does_not_lose_what_came_with_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a, b = world.nodes["a"], world.nodes["b"]
    got: list[bytes] = []

    def handle(message: Message) -> None:
        got.append(bytes(message.data))
        if message.data == b"bad":
            raise RuntimeError("a bug")
        message.reply(0)

    b.system.kernel.channel(handle, chid=CHID)
    connection = a.connect("b", PID_SYSTEM, CHID)
    sends = [Sent(connection, data) for data in (b"one", b"bad", b"two", b"three")]
    with caplog.at_level(logging.ERROR):
        world.run(0.5)
    assert sorted(got) == [b"bad", b"one", b"three", b"two"]
    assert [send.results for send in sends] == [[0], [-errno.EIO], [0], [0]]
    assert sum(b.system.shield.failures.values()) == 1
    assert caplog.text.count("RuntimeError: a bug") == 1


def test_frames_with_a_vlan_tag_are_taken(world: World) -> None:
    a, b = world.nodes["a"], world.nodes["b"]
    interface = b.stack.interfaces[0]
    plain: list[bytes] = []
    got = echo(b)
    send = Sent(a.connect("b", PID_SYSTEM, CHID), b"tagged")
    b.fault.cut = True
    hub = world.hub
    spread = hub.spread

    def tap(sender: object, frames: list[bytes]) -> None:
        plain.extend(frame for frame in frames if frame[:6] == b.fault.mac)
        spread(sender, frames)  # type: ignore[arg-type]  # as it came

    hub.spread = tap  # type: ignore[method-assign]  # a tap on the cable
    world.run(0.3)
    assert plain
    b.fault.cut = False
    tagged: list[Frame] = [frame[:12] + b"\x81\x00\x00\x05" + frame[12:] for frame in plain]
    b.stack.received(interface, [*tagged, plain[0]])
    assert world.until(lambda: send.results == [7], 1.0)
    assert got == [b"tagged"]


def test_a_large_backlog_leaves_in_turns_that_others_can_use(world: World) -> None:
    a, b = world.nodes["a"], world.nodes["b"]
    b.system.kernel.channel(lambda message: message.reply(0), chid=CHID, first_part=1 << 20)
    connection = a.connect("b", PID_SYSTEM, CHID)
    warm = [Sent(connection, b"w" * 900_000) for _ in range(8)]
    assert world.until(lambda: all(send.results for send in warm), 20.0)
    sizes: list[int] = []
    spread = world.hub.spread
    state = {"frames": 0, "turn": -1}

    def tap(sender: object, frames: list[bytes]) -> None:
        if getattr(sender, "mac", b"") == a.fault.mac:
            if state["turn"] != world.dispatch.turns:
                state["turn"], state["frames"] = world.dispatch.turns, 0
            state["frames"] += len(frames)
            sizes.append(state["frames"])
        spread(sender, frames)  # type: ignore[arg-type]  # as it came

    world.hub.spread = tap  # type: ignore[method-assign]  # a tap on the cable
    sends = [Sent(connection, b"v" * 900_000) for _ in range(8)]
    assert world.until(lambda: all(send.results for send in sends), 20.0)
    assert 32 < max(sizes) <= BURST + 8


def test_only_the_interfaces_that_are_named_are_used() -> None:
    world = World(1, links=("lan", "san"), settings=QnetSettings(interfaces=frozenset({"en1"})))
    a, _ = world.start("a"), world.start("b")
    assert world.until(world.settled)
    world.run(1.0)
    assert world.hubs["lan"].frames == 0
    assert {path.address[0] for path in a.qnet.machine.links["b"].paths.values()} == {"en1"}


def test_an_interface_that_is_unloaded_leaves_the_link_on_the_other() -> None:
    world = World(1, links=("lan", "san"))
    a, b = world.start("a"), world.start("b")
    echo(b)
    assert world.until(world.settled)
    world.run(3.0)
    a.stack.unload(a.stack.loaded[0])
    assert [interface.name for interface in a.stack.interfaces] == ["en1"]
    send = Sent(a.connect("b", PID_SYSTEM, CHID))
    assert world.until(lambda: send.results == [7], 0.5)
    assert {node.starts for node in b.qnet.nodes} == {1}
