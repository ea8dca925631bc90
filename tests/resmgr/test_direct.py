"""Direct links between programs of a node: what the rows of tests/qnetpy/messages do not see. Real sockets, one daemon, Trio programs."""

from __future__ import annotations

import array
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from resmgr import directproto as proto
from resmgr import message as wire
from resmgr.aio import Process, open_process, send
from resmgr.channel import PULSE_DISCONNECT, Connection, Kernel, Message, Pulse
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError
from resmgr.runner import open_dispatch
from resmgr.testing.formats import refuses_cuts
from resmgr.transport.datagram import LENGTH, Assembler
from resmgr.transport.unix import UnixServer

pytestmark = pytest.mark.host


@asynccontextmanager
async def daemon(path: Path) -> AsyncIterator[UnixServer]:
    async with open_dispatch(spin=0) as dispatch:
        server = UnixServer(dispatch, Kernel(dispatch, "here"), path / "socket")
        try:
            yield server
        finally:
            server.close()


async def until(goal: object) -> None:
    assert callable(goal)
    with trio.fail_after(10):
        while not goal():  # noqa: ASYNC110  # there is no event for what a daemon does
            await trio.sleep(0.0005)


def echo(process: Process) -> tuple[int, int]:
    channel = process.kernel.channel(lambda message: message.reply(1, message.data))
    return channel.pid, channel.chid


async def test_one_link_for_all_connections_and_the_daemon_is_not_on_the_way(tmp_path: Path) -> None:
    async with daemon(tmp_path) as there, open_process(there.path) as server, open_process(there.path) as client:
        place = echo(server)
        first, second = (client.connect(0, *place) for _ in range(2))
        assert (await send(first, (b"x",), 10)).data == b"x"
        served = [peer.statistics().served for _, peer in there.peers()]
        for _ in range(10):
            assert (await send(second, (b"y",), 10)).data == b"y"
        assert [peer.statistics().served for _, peer in there.peers()] == served == [0, 0]
        assert (there.broker.links, there.broker.made) == (1, 1)
        assert client.direct is not None
        assert server.direct is not None
        assert (client.direct.counts, server.direct.counts) == ((1, 0), (0, 1))
        client.close()
        await until(lambda: there.broker.links == 0)
        assert server.direct.counts == (0, 0)


async def test_what_is_sent_before_the_link_is_there_keeps_its_order(tmp_path: Path) -> None:
    """Sends, pulses and the close of a connection whose way is not known yet; one send is let go, one's connection is closed."""
    heard: list[object] = []
    async with daemon(tmp_path) as there, open_process(there.path) as server, open_process(there.path) as client:

        def serve(message: Message) -> None:
            heard.append(bytes(message.data))
            message.reply()

        def pulsed(pulse: Pulse) -> None:
            heard.append(pulse.code)

        channel = server.kernel.channel(serve, on_pulse=pulsed)
        ends: list[tuple[str, int]] = []

        def submit(connection: Connection, name: bytes) -> object:
            return connection.submit((name,), 0, lambda status, reply: ends.append((name.decode(), status)))

        one, other = (client.connect(0, channel.pid, channel.chid) for _ in range(2))
        submit(one, b"a")
        assert one.pulse(1) == 0
        let_go = submit(one, b"never")
        submit(one, b"b")
        submit(other, b"closed")
        assert other.pulse(2) == 0
        let_go.unblock()  # type: ignore[attr-defined]  # it is under way
        other.close()
        assert ends == [("never", -errno.EINTR), ("closed", -errno.EBADF)]
        await until(lambda: len(ends) == 4 and PULSE_DISCONNECT in heard)
        assert ends[2:] == [("a", 0), ("b", 0)]
        assert heard == [b"a", 1, b"b", 2, PULSE_DISCONNECT]


async def test_without_room_it_goes_through_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proto, "LINKS_PER_SERVER", 8)
    async with daemon(tmp_path) as there, open_process(there.path) as server:
        place = echo(server)
        async with trio.open_nursery() as nursery:
            done: list[bytes] = []

            async def ask(number: int) -> None:
                async with open_process(there.path, direct=number != 3) as client:
                    done.append((await send(client.connect(0, *place), (b"%d" % number,), 10)).data)
                    await until(lambda: len(done) == 4)

            for number in range(4):
                nursery.start_soon(ask, number)
        assert sorted(done) == [b"0", b"1", b"2", b"3"]
        # A quarter of 8 is for one user; one client did not want any.
        assert there.broker.made == 2
        assert there.broker.refused == {os.strerror(errno.EAGAIN): 1}
        await until(lambda: there.broker.links == 0)


async def test_a_client_at_its_cap_closes_a_link_without_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proto, "LINKS_PER_CLIENT", 1)
    async with AsyncExitStack() as stack:
        there = await stack.enter_async_context(daemon(tmp_path))
        client, one, other = [await stack.enter_async_context(open_process(there.path)) for _ in range(3)]
        kept = client.connect(0, *echo(one))
        await send(kept)
        await send(client.connect(0, *echo(other)))
        assert there.broker.made == 1
        kept.close()
        await send(client.connect(0, *echo(other)))
        await until(lambda: there.broker.links == 0 or there.broker.made == 2)
        await send(client.connect(0, *echo(other)))
        assert there.broker.made == 2
        assert (one.direct is not None and one.direct.counts, there.broker.links) == ((0, 0), 1)


@pytest.mark.parametrize("leaver", ["client", "server"])
async def test_who_leaves_the_node_has_no_link_even_if_he_keeps_its_socket(tmp_path: Path, leaver: str) -> None:
    async with daemon(tmp_path) as there, open_process(there.path) as server, open_process(there.path) as client:
        heard: list[int] = []
        deaths: list[int] = []
        held: list[Message] = []

        def serve(message: Message) -> None:
            held.append(message)
            message.on_unblock = message.reply

        channel = server.kernel.channel(serve, on_pulse=lambda pulse: heard.append(pulse.code))
        connection = client.connect(0, channel.pid, channel.chid)
        connection.on_death = lambda dead: deaths.append(dead.coid)
        ended: list[int] = []
        connection.submit((b"x",), 0, lambda status, reply: ended.append(status))
        await until(lambda: bool(held))
        process = client if leaver == "client" else server
        process._carrier.close()  # the socket to the daemon, and nothing else: a program of ours does not do that
        if leaver == "client":
            await until(lambda: heard == [PULSE_DISCONNECT])
        else:
            await until(lambda: ended == [-errno.ESRCH] and bool(deaths))
        assert there.broker.links == 0


async def test_the_daemon_ends_and_the_server_is_heard_first(tmp_path: Path) -> None:
    """The client does not see its own socket's end before the link's; the reason is the daemon's end all the same."""
    async with daemon(tmp_path) as there, open_process(there.path) as server, open_process(there.path) as client:
        held: list[Message] = []
        channel = server.kernel.channel(held.append)
        ended: list[int] = []
        client.connect(0, channel.pid, channel.chid).submit((b"x",), 0, lambda status, reply: ended.append(status))
        await until(lambda: bool(held))
        assert server.direct is not None
        server.direct.down(errno.ENOTCONN, farewell=True)
        await until(lambda: ended == [-errno.ENOTCONN])


async def test_a_server_that_does_not_read_is_eagain_and_delays_nobody(tmp_path: Path) -> None:
    async with daemon(tmp_path) as there, open_process(there.path) as client, open_process(there.path) as quick:
        place = echo(quick)
        with Raw(there.path) as stopped:
            await stopped.hello()
            stopped.say(proto.pack_bare(proto.OFFER, 8))
            connection = client.connect(0, stopped.pid, stopped.first_chid)
            ended: list[int] = []
            for _ in range(400):
                connection.submit((bytes(16384),), 0, lambda status, reply: ended.append(status))
            await until(lambda: there.broker.links == 1 and -errno.EAGAIN in ended)
            waiting = 400 - len(ended)
            assert 1 << 20 <= waiting * 16384 < 4 << 20
            assert (await send(client.connect(0, *place), (b"x",), 10)).data == b"x"
        await until(lambda: len(ended) == 400)
        assert set(ended) == {-errno.EAGAIN, -errno.ESRCH}


class Raw:
    """A program that speaks bytes. With a descriptor it keeps what it was given."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.path = path
        self.fds: list[int] = []
        self.pid = self.first_chid = 0

    def __enter__(self) -> Raw:
        self.socket.connect(self.path)
        self.socket.settimeout(10)
        return self

    async def hello(self) -> None:
        _, self.pid, self.first_chid, _ = wire.parse_hello(await self.hear(wire.HELLO))

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        for fd in self.fds:
            os.close(fd)

    def say(self, message: bytes) -> None:
        self.socket.send(LENGTH.pack(len(message)) + message)

    async def hear(self, kind: int) -> Buffer:
        while True:
            datagram, ancillary, _, _ = await trio.to_thread.run_sync(self.socket.recvmsg, 65536, socket.CMSG_SPACE(64))
            for _, _, data in ancillary:
                self.fds.extend(array.array("i", data))
            for message in Assembler().feed(datagram):
                if message[0] == kind:
                    return message


async def test_a_hostile_client_reaches_only_the_server_and_as_itself(tmp_path: Path) -> None:
    """Over its link it lies about who it is, asks for others' channels and nodes, and sends what makes no sense."""
    asked: list[Message] = []
    async with daemon(tmp_path) as there, open_process(there.path) as server:
        place = server.kernel.channel(asked.append)
        other = there.kernel.channel(asked.append)
        with Raw(there.path) as client:
            await client.hello()
            client.say(proto.pack_direct(7, place.pid, place.chid))
            assert proto.parse_linked(await client.hear(proto.LINKED)) == (7, 0)
            client.say(proto.pack_direct(7, place.pid, place.chid))  # dropped: 7 is a link
            link = socket.socket(fileno=client.fds.pop())
            link.settimeout(10)
            with link:

                async def ask(number: int, nd: int, pid: int, chid: int) -> int:
                    block = wire.pack_block(wire.ConnectBlock(nd, pid, chid, 1, 12345, 0, (0,), 3, "elsewhere", ("admin",)))
                    message = wire.SEND_HEADER.pack(wire.SEND, wire.CONNECT, 10, 0, number, number, 10, 1) + block + b"x"
                    link.send(LENGTH.pack(len(message)) + message)
                    (reply,) = Assembler().feed(await trio.to_thread.run_sync(link.recv, 65536))
                    return wire.parse_reply(reply)[4]

                assert await ask(1, 0, other.pid, other.chid) == -errno.EBADF
                assert await ask(2, 0, 1, 1) == -errno.EBADF
                assert await ask(3, 5, 1, 1) == -errno.EHOSTUNREACH
                for junk in (b"", b"\0", proto.pack_bare(proto.OFFER, 3), wire.HEADER.pack(wire.DEATH, 0, 0, 0, 9), b"\xff" * 50):
                    link.send(LENGTH.pack(len(junk)) + junk)
                block = wire.pack_block(wire.ConnectBlock(0, place.pid, place.chid, 1, 12345, 0, (0,)))
                message = wire.SEND_HEADER.pack(wire.SEND, wire.CONNECT, 10, 0, 4, 4, 10, 1) + block + b"x"
                link.send(LENGTH.pack(len(message)) + message)
                await until(lambda: bool(asked))
                who = asked[0].info
                assert (who.nd, who.node, who.roles, who.credentials.uid, who.credentials.pid) == (
                    0,
                    "",
                    frozenset(),
                    os.geteuid(),
                    client.pid,
                )
                link.send(b"\xff\xff\xff\xffjunk")  # not a datagram: the end of the link, and of nothing else
                await until(lambda: there.broker.links == 0)
        assert there.kernel.find_channel(other.pid, other.chid) is other
        assert len(asked) == 1


async def test_a_server_cannot_send_back_over_the_link(tmp_path: Path) -> None:
    """A connect block from the server's side is not for this client: what it reaches, it reaches by its own connections."""
    async with daemon(tmp_path) as there:
        with Raw(there.path) as server:
            await server.hello()
            server.say(proto.pack_bare(proto.OFFER, 8))
            async with open_process(there.path) as client:
                heard: list[Message] = []
                own = client.kernel.channel(heard.append)
                connection = client.connect(0, server.pid, server.first_chid)
                with trio.move_on_after(5) as scope:
                    async with trio.open_nursery() as nursery:

                        async def ask() -> None:
                            with pytest.raises(ResmgrError) as raised:
                                await send(connection)
                            assert raised.value.errno == errno.ENOENT

                        nursery.start_soon(ask)
                        link, who = proto.parse_accept(await server.hear(proto.ACCEPT))
                        assert (who.uid, who.gid, who.client_pid, link) == (os.geteuid(), os.getegid(), os.getpid(), 1)
                        with socket.socket(fileno=server.fds.pop()) as sock:
                            (request,) = Assembler().feed(await trio.to_thread.run_sync(sock.recv, 65536))
                            txn = wire.parse_send(request)[3]
                            block = wire.pack_block(wire.ConnectBlock(0, own.pid, own.chid, 0, 0, 0))
                            bad = wire.SEND_HEADER.pack(wire.SEND, wire.CONNECT, 10, 0, 1, 1, 10, 1) + block + b"x"
                            answer = wire.REPLY_HEADER.pack(wire.REPLY, 0, 0, 0, txn, 0, -errno.ENOENT)
                            for message in (bad, wire.HEADER.pack(wire.DETACH, 0, 0, 0, 1), answer):
                                sock.send(LENGTH.pack(len(message)) + message)
                            await until(lambda: not nursery.child_tasks)
                assert not scope.cancelled_caught
                assert not heard


def test_formats() -> None:
    direct = proto.pack_direct(5, 1000, 0x100010)
    assert direct == bytes.fromhex("0d00000000000005000003e800100010")
    assert proto.parse_direct(direct) == (5, 1000, 0x100010)
    linked = proto.pack_linked(5, -errno.EAGAIN)
    assert linked == bytes.fromhex("0e00000000000005fffffff5")
    assert proto.parse_linked(linked) == (5, -errno.EAGAIN)
    assert proto.pack_linked(5, 0)[3] == 1
    accept = proto.pack_accept(9, 700, 1000, 100, (4, 27))
    assert proto.parse_accept(accept) == (9, wire.ConnectBlock(0, 0, 0, 700, 1000, 100, (4, 27)))
    for whole, parse in ((direct, proto.parse_direct), (linked, proto.parse_linked), (accept, proto.parse_accept)):
        refuses_cuts(parse, whole)
        with pytest.raises(BadMessage):
            parse(whole + b"x")
    with pytest.raises(BadMessage):
        proto.parse_linked(proto.pack_linked(5, 1))
    assert proto.links_offered(1024) == 256
    assert proto.links_offered(64) == 16
