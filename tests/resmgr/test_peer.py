"""Every primitive over every way a message can go: in one kernel, to a node, to a process, and through a daemon in between.

The carriers are in memory, keep order within a stream only, and mix streams by seed. After each test every table on every peer is empty.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence

import pytest

from resmgr import message as wire
from resmgr.channel import (
    GONE,
    ND_LOCAL,
    PID_SYSTEM,
    PULSE_DISCONNECT,
    Channel,
    ClientInfo,
    Connection,
    Credentials,
    Kernel,
    Message,
    Nd,
    Pulse,
    Remote,
)
from resmgr.dispatch import Buffer
from resmgr.ids import CHIDS_DAEMONS
from resmgr.peer import Peer
from resmgr.serving import Limits
from resmgr.testing.memory import MemoryLink
from resmgr.testing.virtual import VirtualDispatch

USER = Credentials(1000, 100, (4, 24), 4711)
ND_B = Nd(2)
ND_A = Nd(9)
PID_SERVER = 500
WAYS = ["local", "node", "process", "relay"]


class Towards:
    """A network of one node."""

    def __init__(self, nd: Nd, remote: Remote) -> None:
        self.nd = nd
        self.peer = remote

    def remote(self, nd: Nd) -> Remote | int:
        return self.peer if nd == self.nd else errno.EHOSTUNREACH


class World:
    """A client's kernel, a server's kernel, and what is between them in one of the ways."""

    def __init__(self, way: str, seed: int = 0, limits: Limits | None = None) -> None:
        self.way = way
        self.clock = VirtualDispatch(seed)
        self.links: list[MemoryLink] = []
        self.peers: list[Peer] = []
        self.pid = PID_SERVER if way in ("process", "relay") else PID_SYSTEM
        self.nd = ND_B if way in ("node", "relay") else ND_LOCAL
        self.client = Kernel(self.clock, "a")
        if way == "local":
            self.server = self.client
            return
        self.server = Kernel(self.clock.node("server"), "b")
        if way == "node":
            link = self.link(self.client, self.server)
            self.client.network = Towards(ND_B, self.peer(self.client, link.left, nd=ND_B, node="b"))
            self.peer(self.server, link.right, nd=ND_A, node="a", roles=frozenset({"user"}), limits=limits)
        elif way == "process":
            link = self.link(self.client, self.server)
            self.client.attach_process(PID_SERVER, self.peer(self.client, link.left, credentials=Credentials(5, 5), routes=True))
            self.server.uplink = self.peer(self.server, link.right, believes=True, limits=limits)
        else:
            daemon = Kernel(self.clock.node("daemon"), "b")
            far = self.link(self.client, daemon)
            near = self.link(daemon, self.server)
            self.client.network = Towards(ND_B, self.peer(self.client, far.left, nd=ND_B, node="b"))
            self.peer(daemon, far.right, nd=ND_A, node="a", roles=frozenset({"user"}), limits=limits)
            daemon.attach_process(PID_SERVER, self.peer(daemon, near.left, credentials=Credentials(5, 5), routes=True))
            self.server.uplink = self.peer(self.server, near.right, believes=True)

    def link(self, left: Kernel, right: Kernel) -> MemoryLink:
        link = MemoryLink(left.dispatch, right.dispatch, self.clock.random(f"link {len(self.links)}"))
        self.links.append(link)
        return link

    def peer(self, kernel: Kernel, end: object, **options: object) -> Peer:
        peer = Peer(kernel, end, **options)  # type: ignore[arg-type]  # options are passed through
        end.peer = peer  # type: ignore[attr-defined]  # either end of a MemoryLink
        self.peers.append(peer)
        return peer

    def channel(self, handler: Callable[[Message], None], **options: object) -> Channel:
        return self.server.channel(handler, pid=self.pid, **options)  # type: ignore[arg-type]  # options are passed through

    def connect(self, channel: Channel, credentials: Credentials = USER) -> Connection:
        return self.client.connect(self.nd, channel.pid, channel.chid, credentials)

    def run(self, seconds: float = 5.0) -> None:
        self.clock.run_for(seconds)

    def call(self, connection: Connection, *parts: Buffer, reply_len: int = 64) -> tuple[int, bytes]:
        """A whole send and its answer."""
        results: list[tuple[int, bytes]] = []
        connection.submit(parts, reply_len, lambda status, reply: results.append((status, bytes(reply))))
        self.run()
        assert len(results) == 1
        return results[0]

    def assert_empty(self) -> None:
        for peer in self.peers:
            counts = peer.statistics()
            assert (counts.outgoing, counts.incoming, counts.connections_out, counts.connections_in, counts.held) == (0, 0, 0, 0, 0)
            assert counts.dropped == {}


@pytest.fixture(params=WAYS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def test_send_receive_reply(world: World) -> None:
    seen: list[tuple[bytes, int, int, int]] = []

    def serve(message: Message) -> None:
        seen.append((bytes(message.data), message.msglen, message.reply_len, message.priority))
        message.reply(7, b"ans", b"wer")

    connection = world.connect(world.channel(serve))
    assert world.call(connection, b"ques", b"tion", reply_len=10) == (7, b"answer")
    assert world.call(connection, b"", reply_len=3) == (7, b"ans")
    assert seen == [(b"question", 8, 10, 10), (b"", 0, 3, 10)]
    connection.close()
    world.run()
    world.assert_empty()


def test_errors_and_unknown_channels(world: World) -> None:
    connection = world.connect(world.channel(lambda message: message.error(errno.ENOENT)))
    assert world.call(connection, b"x") == (-errno.ENOENT, b"")
    connection.close()
    nowhere = world.client.connect(world.nd, world.pid, 12345, USER)
    assert world.call(nowhere, b"x") == (-errno.EBADF, b"")
    assert world.call(nowhere, b"x") == (-errno.EBADF, b"")
    nowhere.close()
    world.run()
    world.assert_empty()


def test_who_the_client_is(world: World) -> None:
    infos: list[ClientInfo] = []

    def serve(message: Message) -> None:
        infos.append(message.info)
        message.reply()

    channel = world.channel(serve)
    first, second = world.connect(channel), world.connect(channel, Credentials(7, 8))
    world.call(first, b"")
    world.call(first, b"")
    world.call(second, b"")
    assert infos[0].credentials == USER
    assert infos[2].credentials == Credentials(7, 8)
    assert infos[0].scoid == infos[1].scoid != infos[2].scoid
    if world.way in ("node", "relay"):
        assert (infos[0].nd, infos[0].node, infos[0].roles) == (ND_A, "a", frozenset({"user"}))
    else:
        assert (infos[0].nd, infos[0].node, infos[0].roles) == (0, "", frozenset())
    first.close()
    second.close()
    world.run()
    world.assert_empty()


def test_a_large_message_is_pulled(world: World) -> None:
    body = random.Random(3).randbytes(3_000_000)
    firsts: list[int] = []
    pieces: list[bytes] = []

    def serve(message: Message) -> None:
        firsts.append(len(message.data))
        assert message.msglen == len(body)

        def got(status: int, data: Buffer) -> None:
            assert status == len(data)
            pieces.append(bytes(data))
            if len(pieces) == 1:
                message.read(len(body) - 10, 100, got)
            elif len(pieces) == 2:
                message.read(len(body) + 10, 100, got)
            elif len(pieces) == 3:
                message.read(10_000, 10_000, got)
            else:
                message.reply(len(pieces[0]))

        message.read(0, len(body), got)

    channel = world.channel(serve, first_part=100_000)
    connection = world.connect(channel)
    for round_ in range(2):
        pieces.clear()
        assert world.call(connection, body) == (len(body), b"")
        assert pieces == [body, body[-10:], b"", body[10_000:20_000]], round_
    if world.way != "local":
        assert firsts == [16384, 100_000]
    connection.close()
    world.run()
    world.assert_empty()


def test_large_replies_and_exact_writes(world: World) -> None:
    body = random.Random(4).randbytes(2_500_000)
    counts: list[int] = []

    def serve(message: Message) -> None:
        if message.data == b"write":
            counts.append(message.write(4, b"four"))
            counts.append(message.write(message.reply_len - 3, b"abcdef"))
            counts.append(message.write(message.reply_len, b"z"))
            counts.append(message.write(0, b"0123"))
            message.reply(1, b"AB")
        else:
            message.reply(2, body)

    connection = world.connect(world.channel(serve))
    assert world.call(connection, b"large", reply_len=1 << 22) == (2, body)
    assert world.call(connection, b"large", reply_len=1_200_000) == (2, body[:1_200_000])
    assert world.call(connection, b"large", reply_len=5) == (2, body[:5])
    assert world.call(connection, b"write", reply_len=12) == (1, b"AB23four\0abc")
    assert counts == [4, 3, 0, 4]
    connection.close()
    world.run()
    world.assert_empty()


def test_unblock(world: World) -> None:
    held: list[Message] = []
    asked: list[Message] = []

    def serve(message: Message) -> None:
        held.append(message)
        if message.data == b"careful":
            message.on_unblock = lambda: asked.append(message)

    connection = world.connect(world.channel(serve))
    results: list[tuple[int, bytes]] = []
    done = lambda status, reply: results.append((status, bytes(reply)))  # noqa: E731
    simple = connection.submit((b"simple",), 10, done)
    careful = connection.submit((b"careful",), 10, done)
    late = connection.submit((b"careful",), 10, done)
    world.run()
    assert results == []
    assert simple is not None
    assert careful is not None
    assert late is not None
    simple.unblock()
    world.run()
    assert results == [(-errno.EINTR, b"")]
    careful.unblock()
    careful.unblock()
    world.run()
    assert len(results) == 1
    by_data = [message for message in held if message.data == b"careful"]
    assert len(asked) == 1
    assert asked[0] in by_data
    other = next(message for message in by_data if message is not asked[0])
    # The answer may be quicker than the unblock: then it counts.
    other.reply(5, b"ready")
    late.unblock()
    world.run()
    asked[0].error(errno.EINTR)
    world.run()
    assert sorted(results[1:]) == [(-errno.EINTR, b""), (5, b"ready")]
    next(message for message in held if message.data == b"simple").reply(0, b"nobody waits")
    connection.close()
    world.run()
    world.assert_empty()


def test_pulses_in_order_and_disconnect(world: World) -> None:
    pulses: list[tuple[int, int, int]] = []
    channel = world.channel(
        lambda message: message.reply(), on_pulse=lambda pulse: pulses.append((pulse.code, pulse.value, pulse.priority))
    )
    connection = world.connect(channel)
    for value in range(20):
        assert connection.pulse(3, value - 10, 20) == 0
    world.run()
    assert pulses == [(3, value - 10, 20) for value in range(20)]
    assert world.call(connection, b"") == (0, b"")
    connection.pulse(127, 1 << 40)
    connection.close()
    world.run()
    assert [code for code, _, _ in pulses[20:]] == [127, PULSE_DISCONNECT]
    world.assert_empty()


def test_disconnect_comes_after_everything(world: World) -> None:
    """A connection closed right after many sends: the server sees each of them, then one disconnect, and nothing later."""
    order: list[str] = []

    def serve(message: Message) -> None:
        order.append("send")
        message.reply()

    channel = world.channel(
        serve,
        on_pulse=lambda pulse: order.append("disconnect" if pulse.code == PULSE_DISCONNECT else "pulse"),
    )
    connection = world.connect(channel)
    results: list[int] = []
    for _ in range(10):
        connection.submit((b"x",), 0, lambda status, reply: results.append(status))
    connection.pulse(1)
    connection.close()
    world.run()
    assert len(results) == 10
    assert order.count("send") == 10
    assert order.count("disconnect") == 1
    assert order[-1] == "disconnect"
    world.assert_empty()


def test_death_of_the_channel(world: World) -> None:
    held: list[Message] = []
    channel = world.channel(held.append)
    connection, idle = world.connect(channel), world.connect(channel)
    deaths: list[int] = []
    connection.on_death = lambda dead: deaths.append(dead.coid)
    results: list[int] = []
    connection.submit((b"1",), 0, lambda status, reply: results.append(status))
    world.run()
    held.pop().reply()
    connection.submit((b"2",), 0, lambda status, reply: results.append(status))
    world.run()
    channel.destroy()
    world.run()
    assert results == [0, -errno.ESRCH]
    assert deaths == [connection.coid]
    assert world.call(connection, b"3") == (-errno.EBADF, b"")
    assert connection.pulse(1) in (-errno.EBADF, 0)
    assert world.call(idle, b"4") == (-errno.EBADF, b"")
    held.pop().reply()
    connection.close()
    idle.close()
    world.run()
    world.assert_empty()


@pytest.mark.parametrize("way", ["node", "process", "relay"])
@pytest.mark.parametrize("cut", [0, -1])
def test_the_link_goes_down(way: str, cut: int) -> None:
    world = World(way)
    held: list[Message] = []
    pulses: list[Pulse] = []
    channel = world.channel(held.append, on_pulse=pulses.append)
    connection = world.connect(channel)
    deaths: list[int] = []
    connection.on_death = lambda dead: deaths.append(dead.coid)
    results: list[int] = []
    asked: list[str] = []
    for _ in range(3):
        connection.submit((bytes(50_000),), 100, lambda status, reply: results.append(status))
    world.run()
    held[0].on_unblock = lambda: asked.append("asked")
    reads: list[int] = []
    held[1].read(20_000, 30_000, lambda status, data: reads.append(status))
    code = errno.EHOSTDOWN if way == "node" else errno.ESRCH
    world.links[cut].cut(code)
    world.run()
    assert results == [-code] * 3
    assert deaths == [connection.coid]
    assert reads == [-errno.ESRCH]
    assert asked == ["asked"]
    assert pulses == [], "the server still holds a message"
    for message in held:
        message.reply(0, b"late")
    world.run()
    assert [pulse.code for pulse in pulses] == [PULSE_DISCONNECT]
    assert world.call(connection, b"x") == (-errno.EBADF, b"")
    assert connection.pulse(1) < 0 or way == "relay"
    connection.close()
    world.run()
    world.assert_empty()


def test_suspected_peers_let_go_at_once() -> None:
    world = World("node")
    held: list[Message] = []
    connection = world.connect(world.channel(held.append))
    results: list[int] = []
    pending = [connection.submit((b"x",), 10, lambda status, reply: results.append(status)) for _ in range(2)]
    world.run()
    for message in held:
        message.on_unblock = lambda: None
    assert pending[0] is not None
    assert pending[1] is not None
    pending[0].unblock()
    world.run()
    assert results == []
    world.peers[0].suspect(True)
    assert results == [-errno.EINTR]
    pending[1].unblock()
    assert results == [-errno.EINTR] * 2
    world.peers[0].suspect(False)
    for message in held:
        message.reply(0, b"late")
    connection.close()
    world.run()
    assert results == [-errno.EINTR] * 2
    world.assert_empty()


def test_channels_may_keep_other_nodes_out(world: World) -> None:
    channel = world.channel(lambda message: message.reply(), remote=False)
    connection = world.connect(channel)
    status, _ = world.call(connection, b"x")
    assert status == (-errno.EBADF if world.way in ("node", "relay") else 0)


def test_policy_is_asked_once_per_connection() -> None:
    world = World("node")
    asked: list[tuple[str, int, int]] = []

    def authorize(info: ClientInfo, pid: int, chid: int) -> int:
        asked.append((info.node, pid, chid))
        return errno.EACCES if info.credentials.uid == 7 else 0

    world.peers[1]._serving._authorize = authorize
    channel = world.channel(lambda message: message.reply())
    good, bad = world.connect(channel), world.connect(channel, Credentials(7, 7))
    assert world.call(good, b"")[0] == 0
    assert world.call(good, b"")[0] == 0
    assert world.call(bad, b"")[0] == -errno.EACCES
    assert asked == [("a", channel.pid, channel.chid)] * 2


def test_nodes_are_not_forwarded_to_nodes() -> None:
    world = World("node")
    sent: list[tuple[int, bytes]] = []
    world.links[0].right.send = lambda stream, parts, priority, route=0: sent.append((stream, b"".join(parts)))  # type: ignore[method-assign]  # a tap
    peer = Peer(world.server, world.links[0].right, nd=ND_A, node="a")
    block = wire.pack_block(wire.ConnectBlock(3, 1, 1, 0, 0, 0))
    peer.receive(wire.SEND_HEADER.pack(wire.SEND, wire.CONNECT, 10, 0, 1, 1, 0, 0) + block)
    assert wire.parse_reply(sent[0][1])[4] == -errno.EHOSTUNREACH


def test_no_process_is_brought_to_where_daemons_speak_to_each_other() -> None:
    world = World("node")
    heard: list[Credentials] = []

    def server(message: Message) -> None:
        heard.append(message.info.credentials)
        message.reply(0)

    numbers = (*CHIDS_DAEMONS, CHIDS_DAEMONS.stop)
    for number in numbers:
        world.server.channel(server, pid=PID_SYSTEM, chid=number)
    link = world.link(world.client, Kernel(world.clock.node("process"), "a"))
    sent: list[bytes] = []
    link.left.send = lambda stream, parts, priority, route=0: sent.append(b"".join(parts))  # type: ignore[method-assign]  # a tap
    process = Credentials(0, 0, (), 4711)
    world.peer(world.client, link.left, credentials=process, routes=True)
    for place, number in enumerate(numbers):
        block = wire.pack_block(wire.ConnectBlock(int(ND_B), PID_SYSTEM, number, 0, 0, 0))
        world.peers[-1].receive(wire.SEND_HEADER.pack(wire.SEND, wire.CONNECT, 10, 0, place, place, 0, 1) + block + b"x")
        world.run()
    assert [wire.parse_reply(one)[4] for one in sent] == [-errno.EPERM] * len(CHIDS_DAEMONS) + [0]
    assert heard == [process], "who the socket says, and not pid 0 as the process says"
    assert not process.of_daemon
    assert Credentials(0, 0).of_daemon


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([(262144, 262144), (100, 100)], 262244),
        ([(262144, 262144), (-errno.EIO, 0)], 262144),
        ([(-errno.EIO, 0)], -errno.EIO),
        ([(0, 0)], 0),
    ],
)
def test_a_client_that_has_less_than_it_said(answers: list[tuple[int, int]], expected: int) -> None:
    """A pull ends with the first short piece; pieces that come after it are nobody's."""
    world = World("node")
    asked: list[tuple[int, int, int]] = []

    class Tap:
        def send(self, stream: int, parts: Sequence[Buffer], priority: int, route: int = 0) -> None:
            view = b"".join(parts)
            if view[0] == wire.READ:
                _, number, length, offset = wire.parse_read(view)
                asked.append((number, length, offset))

    peer = Peer(world.server, Tap(), nd=ND_A, node="a")
    held: list[Message] = []
    channel = world.channel(held.append)
    block = wire.pack_block(wire.ConnectBlock(0, channel.pid, channel.chid, 0, 0, 0))
    peer.receive(wire.SEND_HEADER.pack(wire.SEND, wire.CONNECT, 10, 0, 1, 1, 0, 900_000) + block)
    results: list[tuple[int, int]] = []
    held[0].read(0, 900_000, lambda status, data: results.append((status, len(data))))
    for (number, _, _), (status, size) in zip(asked, answers, strict=False):
        peer.receive(wire.READ_DATA_HEADER.pack(wire.READ_DATA, 0, 0, 0, 1, number, status) + bytes(size))
    assert results == [(expected, max(expected, 0))]
    for number, length, _ in asked[len(answers) :]:
        peer.receive(wire.READ_DATA_HEADER.pack(wire.READ_DATA, 0, 0, 0, 1, number, length) + bytes(length))
    assert len(results) == 1
    held[0].reply()
    assert peer.statistics().dropped == {}


@pytest.mark.parametrize("node", [True, False])
def test_a_node_that_does_not_take_its_answers_gets_no_more_of_them(node: bool) -> None:
    """Else it could ask for reads without end, and every answer would wait in our memory. A process is not read from instead."""
    statuses: list[int] = []
    full = False

    class Tap:
        def send(self, stream: int, parts: Sequence[Buffer], priority: int, route: int = 0) -> None:
            statuses.append(wire.parse_reply(b"".join(parts))[4])

    world = World("local")
    served: list[Message] = []

    def serve(message: Message) -> None:
        served.append(message)
        message.reply(0, b"answer")

    channel = world.channel(serve)
    whose: dict[str, object] = {"nd": ND_A, "node": "a"} if node else {"credentials": USER}
    peer = Peer(world.server, Tap(), congested=lambda: full, **whose)  # type: ignore[arg-type]  # either way
    block = wire.pack_block(wire.ConnectBlock(0, channel.pid, channel.chid, 0, 0, 0))

    def send(txn: int, flags: int = 0) -> None:
        peer.receive(wire.SEND_HEADER.pack(wire.SEND, flags, 10, 0, txn, 1, 64, 0) + (block if flags else b""))

    send(1, wire.CONNECT)
    full = True
    send(2)
    full = False
    send(3)
    assert statuses == [0, -errno.EAGAIN if node else 0, 0]
    assert len(served) == 3 - node


def test_caps_answer_eagain() -> None:
    world = World("node", limits=Limits(pending=3, connections=2, held=40_000))
    held: list[Message] = []
    channel = world.channel(held.append)
    connections = [world.connect(channel) for _ in range(3)]
    results: list[int] = []
    for _ in range(5):
        connections[0].submit((b"x",), 0, lambda status, reply: results.append(status))
    world.run()
    assert results == [-errno.EAGAIN] * 2
    for message in held:
        message.reply()
    world.run()
    results.clear()
    for _ in range(3):
        connections[0].submit((bytes(12_000),), 0, lambda status, reply: results.append(status))
    world.run()
    assert results == [-errno.EAGAIN]
    for message in held[3:]:
        message.reply()
    world.run()
    results.clear()
    for connection in connections[1:]:
        connection.submit((b"x",), 0, lambda status, reply: results.append(status))
    world.run()
    assert results == [-errno.EAGAIN]
    for message in held:
        if not message.answered:
            message.reply()
    for connection in connections:
        connection.close()
    world.run()
    assert world.peers[1].statistics().refused == 4
    world.assert_empty()


def test_one_user_of_a_node_leaves_room_for_others() -> None:
    """Connections, messages and bytes that servers hold: three quarters are one user's at most, and are given back."""
    world = World("node", limits=Limits(pending=8, connections=4, held=40_000))
    held: list[Message] = []
    channel = world.channel(held.append)
    other = Credentials(77, 77)
    refused: list[Connection] = []
    results: list[int] = []
    for _ in range(2):
        mine = [world.connect(channel) for _ in range(4)]
        refused.clear()
        results.clear()
        for connection in mine:
            connection.submit((b"x",), 0, lambda status, reply, one=connection: refused.append(one))  # type: ignore[misc]  # its own
        world.run()
        assert len(refused) == 1
        mine.remove(refused[0])
        refused[0].close()
        theirs = world.connect(channel, other)
        for connection in (mine[0], mine[0], mine[1], mine[2], theirs, theirs):
            connection.submit((b"x",), 0, lambda status, reply: results.append(status))
        world.run()
        # Six of mine, two of the other's: all eight, and one too many of mine.
        assert results == [-errno.EAGAIN]
        for message in held:
            message.reply()
        world.run()
        held.clear()
        results.clear()
        for connection in (*mine, mine[0], theirs):
            connection.submit((bytes(9_000),), 0, lambda status, reply: results.append(status))
        world.run()
        assert results == [-errno.EAGAIN]
        for message in held:
            message.reply()
        held.clear()
        for connection in (*mine, theirs):
            connection.close()
        world.run()
        world.assert_empty()


def test_descriptors_do_not_cross_nodes() -> None:
    world = World("node")

    def serve(message: Message) -> None:
        message.reply(0, descriptors=(0,))

    connection = world.connect(world.channel(serve))
    results: list[int] = []
    connection.submit_descriptors((b"",), (0,), 0, lambda status, reply, descriptors: results.append(status))
    connection.submit_descriptors((b"",), (), 0, lambda status, reply, descriptors: results.append(status))
    world.run()
    assert results == [-errno.ENOTSUP] * 2


def test_wrong_arguments_of_clients(world: World) -> None:
    if world.way == "local":
        return
    connection = world.connect(world.channel(lambda message: message.reply()))
    assert connection.pulse(-33) == -errno.EINVAL
    assert connection.pulse(128) == -errno.EINVAL
    assert connection.pulse(1, 1 << 63) == -errno.EINVAL
    assert connection.pulse(1, 0, 64) == -errno.EINVAL
    assert world.call(connection, b"x", reply_len=1 << 32) == (-errno.EMSGSIZE, b"")


@pytest.mark.parametrize("seed", range(40))
def test_hostile_bytes_never_raise(seed: int) -> None:
    """A stranger's bytes, some of them changed copies of real traffic, into a peer that serves; what comes out is only counters."""
    generator = random.Random(seed)
    world = World("node", seed)
    held: list[Message] = []

    def serve(message: Message) -> None:
        choice = generator.random()
        if choice < 0.5:
            message.reply(0, b"reply")
        elif choice < 0.7:
            message.read(0, 1 << 20, lambda status, data: None)
            held.append(message)
        else:
            message.write(0, b"push")
            held.append(message)

    channel = world.channel(serve)
    real: list[bytes] = []
    world.links[0].tap = real.append
    connection = world.connect(channel)
    for _ in range(20):
        connection.submit((bytes(generator.randrange(40_000)),), 100, lambda status, reply: None)
    connection.pulse(4)
    world.run()
    for peer in world.peers:
        for _ in range(800):
            changed = bytearray(generator.choice(real))
            for _ in range(generator.randint(1, 3)):
                changed[generator.randrange(min(len(changed), 60))] = generator.randrange(256)
            peer.receive(bytes(changed[: generator.randint(1, len(changed))]))
        for _ in range(200):
            peer.receive(generator.randbytes(generator.randint(0, 80)))
        world.run(1)
    assert sum(world.peers[1].statistics().dropped.values()) > 100
    world.links[0].cut(errno.EHOSTDOWN)
    for message in held:
        if not message.answered:
            message.reply()
    world.run()
    for peer in world.peers:
        counts = peer.statistics()
        assert (counts.outgoing, counts.incoming, counts.connections_out, counts.connections_in, counts.held) == (0, 0, 0, 0, 0)


def random_run(way: str, seed: int) -> World:
    """Random operations of two clients and a server; every send ends exactly once, with the right bytes or an error that fits."""
    generator = random.Random(seed)
    world = World(way, seed)
    kill = generator.random() < 0.4
    held: list[Message] = []
    finished: dict[int, int] = {}
    expected: dict[int, bytes] = {}

    def answer(message: Message) -> None:
        if message in held:
            held.remove(message)
        if message.answered:
            return
        key = int(bytes(message.data[:8]))
        if generator.random() < 0.2:
            message.error(errno.EIO)
            return
        if generator.random() < 0.3:
            message.write(0, bytes(20))
        message.reply(key, expected[key])

    def serve(message: Message) -> None:
        held.append(message)
        choice = generator.random()
        if choice < 0.3:
            answer(message)
        elif choice < 0.6:

            def got(status: int, data: Buffer) -> None:
                if status < 0:
                    assert status == -errno.ESRCH
                else:
                    assert bytes(data[:8]) == bytes(message.data[:8])
                    assert status == message.msglen
                answer(message)

            message.read(0, message.msglen, got)
        elif choice < 0.8:
            message.on_unblock = lambda: answer(message)

    channels = [world.channel(serve, first_part=generator.choice((64, 16384, 200_000))) for _ in range(2)]
    connections: list[Connection] = []
    number = 10_000_000

    def done_for(key: int) -> Callable[[int, Buffer], None]:
        def done(status: int, reply: Buffer) -> None:
            assert key not in finished
            finished[key] = status
            if status >= 0:
                assert status == key
                assert bytes(reply[: len(expected[key])]) == expected[key]

        return done

    pendings = []
    for _ in range(80):
        choice = generator.random()
        if choice < 0.25 or not connections:
            connections.append(world.connect(generator.choice(channels)))
        elif choice < 0.65:
            number += 1
            size = generator.choice((8, 1000, 20_000, 600_000))
            expected[number] = generator.randbytes(generator.choice((0, 5, 3000, 1_100_000 if seed % 10 == 0 else 10)))
            pending = generator.choice(connections).submit(
                (b"%d" % number, bytes(size - 8)), max(20, len(expected[number])), done_for(number), generator.randint(0, 63)
            )
            if pending is not None:
                pendings.append(pending)
        elif choice < 0.72:
            generator.choice(connections).pulse(generator.randint(0, 127))
        elif choice < 0.82 and pendings:
            generator.choice(pendings).unblock()
        elif choice < 0.88:
            generator.choice(connections).close()
        elif choice < 0.94 and held:
            answer(generator.choice(held))
        elif choice < 0.95:
            generator.choice(channels).destroy()
        world.run(generator.random() * 0.02)
    if kill and world.links:
        generator.choice(world.links).cut(errno.ESRCH)
    world.run()
    while held:
        answer(held[0])
        world.run(0.1)
    for connection in connections:
        connection.close()
    world.run()
    assert set(finished) == set(expected)
    assert not any(channel.held for channel in channels)
    return world


@pytest.mark.parametrize("way", WAYS)
def test_random_operations_leave_nothing(way: str) -> None:
    for seed in range(50):
        try:
            random_run(way, seed).assert_empty()
        except BaseException:
            print("seed", seed)
            raise


def test_gone_is_an_answerer() -> None:
    results: list[int] = []
    GONE.answer(0, (), ())
    GONE.push(0, b"x")
    GONE.pull(0, 1, lambda status, data: results.append(status))
    assert results == [-errno.ESRCH]


def test_events_that_nobody_registered_are_dropped_where_they_come_to() -> None:
    """Whoever carries the connection may send EVENTs of any number; only what was registered on it arrives, and for as long as that."""
    world = World("node")
    pulses: list[Pulse] = []
    own = world.client.channel(lambda message: None, on_pulse=pulses.append)
    channel = world.channel(lambda message: message.reply())
    first, second = world.connect(channel), world.connect(channel)
    world.call(first, b"")
    world.call(second, b"")
    handle = first.register_event(own, 1, 2, 3)
    other = second.register_event(own, 4)
    second.unregister_event(other)
    numbers = sorted(world.peers[0]._sending.outlets)
    for number in (*numbers, 77):
        for tried in (handle, handle + 1, 1 << 63):
            world.peers[0].receive(wire.pack_event(number, tried, 63))
    assert [(pulse.code, pulse.value, pulse.priority) for pulse in pulses] == [(1, 2, 3)]
    assert world.peers[0].statistics().dropped == {"EVENT that is not registered": 4, "event taken back": 1}
    first.close()
    second.close()
    world.run()
    world.peers[0].receive(wire.pack_event(numbers[0], handle, 10))
    assert len(pulses) == 1
