"""Descriptors of hostile users: they cost whoever sent them, and neither the node's table of open files nor its time."""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from resmgr import message as wire
from resmgr.channel import PID_SYSTEM, Credentials, Kernel, Message
from resmgr.client import Client
from resmgr.errors import ResmgrError
from resmgr.runner import open_dispatch
from resmgr.server import Message as BlockingMessage
from resmgr.transport.carrier import DESCRIPTORS_WAITING, discard
from resmgr.transport.datagram import LENGTH, Assembler
from resmgr.transport.descriptors import Keeper
from resmgr.transport.unix import UnixServer

pytestmark = pytest.mark.host

SURE = 700
"""Messages that do not all fit, whatever the kernel takes of them."""


@asynccontextmanager
async def node(path: Path) -> AsyncIterator[UnixServer]:
    async with open_dispatch() as dispatch:
        server = UnixServer(dispatch, Kernel(dispatch, "here"), path / "socket")
        yield server
        server.close()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110  # there is no event for what a daemon does
            await trio.sleep(0.001)


async def link(server: UnixServer) -> tuple[socket.socket, int, int]:
    """A link, its pid and its first channel id."""
    return await trio.to_thread.run_sync(_link, server)


def _link(server: UnixServer) -> tuple[socket.socket, int, int]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(5)
    sock.connect(server.path)
    _, pid, chid, _ = wire.parse_hello(sock.recv(65536)[4:])
    return sock, pid, chid


def rights(fds: list[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]


def statuses(sock: socket.socket, count: int) -> list[int]:
    """Of the next replies."""
    found: list[int] = []
    assembler = Assembler()
    while len(found) < count:
        found += [wire.parse_reply(message)[4] for message in assembler.feed(sock.recv(65536))]
    return found


def ask(server: UnixServer, chid: int) -> bytes:
    """What an honest program is answered."""
    with Client(server.path, timeout=5) as client:
        return bytes(client.connect(0, PID_SYSTEM, chid).send(b"", reply_len=10, timeout=5).data)


@contextmanager
def lingering() -> Iterator[socket.socket]:
    """A socket whose last close waits for data that nobody reads, until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        trap = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    trap.setblocking(False)
    try:
        while True:
            trap.send(bytes(65536))
    except BlockingIOError:
        pass
    trap.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    try:
        yield trap
    finally:
        trap.close()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()  # a reset: whoever waits in close goes on


async def test_a_server_that_never_reads_keeps_few_descriptors(tmp_path: Path) -> None:
    async with node(tmp_path) as server:
        channel = server.kernel.channel(lambda message: message.reply(0, b"fine"))
        deaf, pid, first = await link(server)
        client, _, _ = await link(server)
        null = os.open(os.devnull, os.O_RDONLY)
        before = len(os.listdir("/proc/self/fd"))
        block = wire.pack_block(wire.ConnectBlock(0, pid, first, 0, 0, 0))

        def flood() -> list[int]:
            found: list[int] = []
            for txn in range(1, 1000):
                message = wire.SEND_HEADER.pack(wire.SEND, wire.CONNECT, 10, 16, txn, 1, 0, 0) + block
                client.sendmsg([LENGTH.pack(len(message)), message], rights([null] * 16))
                if txn > SURE:  # the first wait in the server's socket, and in the daemon
                    found += statuses(client, 1)
            return found

        assert set(await trio.to_thread.run_sync(flood)) <= {-errno.EAGAIN, -errno.EMFILE}
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before + DESCRIPTORS_WAITING)
        assert await trio.to_thread.run_sync(ask, server, channel.chid) == b"fine"
        os.close(null)
        for sock in (deaf, client):
            sock.close()


async def test_a_users_messages_with_descriptors_are_refused_before_the_nodes_are_used_up(tmp_path: Path) -> None:
    async with node(tmp_path) as server:
        held: list[Message] = []
        channel = server.kernel.channel(held.append)
        keeper = server._keepers[os.geteuid()] = Keeper(64)
        client, _, _ = await link(server)
        block = wire.pack_block(wire.ConnectBlock(0, PID_SYSTEM, channel.chid, 0, 0, 0))
        for txn in range(1, 7):
            message = wire.SEND_HEADER.pack(wire.SEND, wire.CONNECT, 10, 16, txn, 1, 0, 0) + block
            client.sendmsg([LENGTH.pack(len(message)), message], rights([0] * 16))

        assert await trio.to_thread.run_sync(statuses, client, 2) == [-errno.EMFILE] * 2
        assert len(held) == 4
        assert keeper.held >= 64
        while held:
            held.pop().reply()
        await until(lambda: keeper.held == 0)
        client.close()


@pytest.mark.parametrize("way", ["unknown", "unread", "refused"])
async def test_a_descriptor_that_does_not_close_delays_nobody(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with lingering() as trap:
        async with node(tmp_path) as server:
            channel = server.kernel.channel(lambda message: message.reply(0, b"fine"))
            if way == "refused":
                monkeypatch.setattr("resmgr.transport.unix.LINKS_PER_USER", 0)
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                sock.connect(server.path)
            else:
                sock, _, _ = await link(server)
            kind = wire.HEADER.pack(99, 0, 0, 0, 0)
            if way == "unread":
                sock.send(b"")  # the end, as the daemon sees it
            sock.sendmsg([LENGTH.pack(len(kind)), kind], rights([trap.fileno()]))
            trap.close()
            if way != "unknown":
                await until(lambda: bool(server.statistics().closed or server.statistics().refused))
            monkeypatch.undo()

            began = time.monotonic()
            assert await trio.to_thread.run_sync(ask, server, channel.chid) == b"fine"
            assert time.monotonic() - began < 5
            await until(lambda: server._keepers[os.geteuid()].held > 0)
            sock.close()


@pytest.mark.parametrize("direct", [False, True])
async def test_nor_does_it_delay_a_blocking_server(tmp_path: Path, direct: bool) -> None:
    async with node(tmp_path) as daemon:
        with lingering() as trap:

            def run() -> float:
                with Client(daemon.path, direct=direct) as server, Client(daemon.path, direct=direct) as client:
                    channel = server.channel()
                    connection = client.connect(0, server.pid, channel.chid)
                    send = connection.submit(b"x", descriptors=(trap.fileno(),))
                    message = channel.receive(5)
                    assert isinstance(message, BlockingMessage)
                    trap.close()
                    began = time.monotonic()
                    message.reply(1)
                    assert send.wait(5).status == 1
                    return time.monotonic() - began

            assert await trio.to_thread.run_sync(run) < 5


async def test_a_user_who_sends_what_does_not_close_is_not_heard_until_it_is_closed(tmp_path: Path) -> None:
    async with node(tmp_path) as server:
        keeper = server._keepers[os.geteuid()] = Keeper(64)
        ours = keeper.take([os.open(os.devnull, os.O_RDONLY) for _ in range(127)])
        sock, _, _ = await link(server)
        waiting = await link(server)
        more = keeper.take([os.open(os.devnull, os.O_RDONLY)])
        assert keeper.is_full
        goes, _, _ = waiting
        goes.send(LENGTH.pack(1) + b"x")
        goes.close()
        await until(lambda: server.statistics().closed == {"closed": 1})
        sock.send(LENGTH.pack(5) + b"12345")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as late:
            late.connect(server.path)
            await until(lambda: server.statistics().refused == {"too many descriptors": 1})
        (peer,) = (peer for _, peer in server.peers())
        assert not peer.statistics().dropped
        del ours, more
        await until(lambda: peer.statistics().dropped == {"unknown kind": 1})
        (await link(server))[0].close()
        sock.close()


async def test_root_finds_the_door_open_when_others_have_taken_all_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resmgr.transport.unix.LINKS_MAX", 4)
    monkeypatch.setattr("resmgr.transport.unix.RESERVED", 1)
    who = [Credentials(5000 + number, 5000, (), 70 + number) for number in range(4)]
    async with node(tmp_path) as server:
        with monkeypatch.context() as patch:
            patch.setattr("resmgr.transport.peercred.peer_credentials", lambda sock: who.pop(0))
            socks = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(4)]
            for sock in socks:
                sock.connect(server.path)
            await until(lambda: server.statistics().links == 3 and server.statistics().refused == {"too many links": 1})
        (await link(server))[0].close()
        for sock in socks:
            sock.close()


async def test_link_numbers_of_a_process_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resmgr.transport.unix.LINK_INDEX_MAX", 3)
    async with node(tmp_path) as server:
        stays, _, kept = await link(server)
        numbers = []
        for number in range(9):
            sock, _, chid = await link(server)
            numbers.append(chid >> 20)
            sock.close()
            await until(lambda: server.statistics().links == 1)
            assert chid != kept, number
        assert numbers == [1, 2, 3] * 3
        others = [(await link(server))[0] for _ in range(3)]
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as late:
            late.connect(server.path)
            await until(lambda: server.statistics().refused == {"channel ids used up": 1})
        for sock in (stays, *others):
            sock.close()


def test_a_program_waits_while_the_queue_of_the_socket_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(tmp_path / "socket"))
    listening.listen(0)
    waiting = []
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        waiting.append(sock)
        sock.setblocking(False)
        try:
            sock.connect(str(tmp_path / "socket"))
        except BlockingIOError:
            break
    full = waiting.pop()
    full.close()
    accepted: list[socket.socket] = []

    def serve() -> None:
        for _ in range(len(waiting) + 1):
            accepted.append(listening.accept()[0])
        hello = wire.pack_hello(5, 16, "here")
        accepted[-1].send(LENGTH.pack(len(hello)) + hello)

    server = threading.Thread(target=serve)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        if not pauses:
            server.start()
        pauses.append(seconds)
        assert len(pauses) < 10**6

    monkeypatch.setattr("resmgr.clientlink.time.sleep", sleep)
    with Client(tmp_path / "socket", timeout=5) as client:
        assert client.node == "here"
    assert pauses
    server.join()
    for sock in (listening, *waiting, *accepted):
        sock.close()


def test_a_keeper_counts_until_it_has_closed() -> None:
    keeper = Keeper(4)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    owned = keeper.take([os.dup(0) for _ in range(3)])
    assert keeper.has_room(1)
    assert not keeper.has_room(2)
    discard(left, keeper)
    assert right.recv(1) == b""
    del owned
    end = time.monotonic() + 10
    while keeper.held and time.monotonic() < end:
        time.sleep(0)
    assert keeper.held == 0
    right.close()


def test_a_reply_that_lost_descriptors_is_an_error(tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(tmp_path / "socket"))
    listening.listen(1)

    def serve() -> None:
        with listening.accept()[0] as sock:
            hello = wire.pack_hello(5, 16, "here")
            sock.send(LENGTH.pack(len(hello)) + hello)
            for sent in (1, 2):
                assert sock.recv(65536)
                reply = wire.REPLY_HEADER.pack(wire.REPLY, 0, 0, 2, sent, 0, 0)
                sock.sendmsg([LENGTH.pack(len(reply)), reply], rights([0] * sent))
            assert not sock.recv(65536)

    server = threading.Thread(target=serve)
    server.start()
    before = len(os.listdir("/proc/self/fd"))
    with Client(tmp_path / "socket", timeout=5, direct=False) as client:
        connection = client.connect(0, 1, 1)
        with pytest.raises(ResmgrError) as raised:
            connection.send(b"", timeout=5)
        assert raised.value.errno == errno.EMFILE
        whole = connection.send(b"", timeout=5).descriptors
        assert len(whole) == 2
        for fd in whole:
            os.close(fd)
    server.join()
    end = time.monotonic() + 10
    while (left := len(os.listdir("/proc/self/fd"))) > before and time.monotonic() < end:
        time.sleep(0)  # a thread closes those of the reply that lost some
    assert left == before
    listening.close()


def test_the_thread_of_a_keeper_ends_with_the_last_descriptor_when_nothing_more_comes() -> None:
    before = set(threading.enumerate())
    keeper = Keeper()
    owned = keeper.take((os.open("/dev/null", os.O_RDONLY),))
    (thread,) = set(threading.enumerate()) - before
    keeper.end()
    thread.join(0.05)
    assert thread.is_alive(), "something is held"
    del owned
    thread.join(2.0)
    assert not thread.is_alive()
    assert keeper.held == 0
