"""Direct links of blocking programs: both ends blocking, and each with a Trio program at the other end. One daemon, in this thread."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from resmgr.aio import Process, ReceiveChannel, open_process, pulse
from resmgr.aio import send as trio_send
from resmgr.channel import Kernel
from resmgr.channel import Message as TrioMessage
from resmgr.client import Client
from resmgr.errors import ResmgrError
from resmgr.ids import PULSE_DISCONNECT, PULSE_UNBLOCK
from resmgr.runner import open_dispatch
from resmgr.server import Message, Pulse
from resmgr.transport.unix import UnixServer

pytestmark = pytest.mark.host

T = TypeVar("T")
BODY = random.Random(1).randbytes(3_000_000)


@asynccontextmanager
async def daemon(path: Path) -> AsyncIterator[UnixServer]:
    async with open_dispatch(spin=0) as dispatch:
        server = UnixServer(dispatch, Kernel(dispatch, "here"), path / "socket")
        try:
            yield server
        finally:
            server.close()


async def until(goal: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not goal():  # noqa: ASYNC110  # there is no event for what a daemon does
            await trio.sleep(0.0005)


async def thread(work: Callable[[], T]) -> T:
    with trio.fail_after(20):
        return await trio.to_thread.run_sync(work)


class Served:
    """A blocking server in a thread: `work` with each item, until it returns True."""

    def __init__(self, there: UnixServer, work: Callable[[Message | Pulse], bool | None], *, unblock: bool = False) -> None:
        self.place = (0, 0)
        self.ready = threading.Event()

        def run() -> None:
            with Client(there.path) as client:
                channel = client.channel(unblock=unblock)
                self.place = channel.pid, channel.chid
                self.ready.set()
                while True:
                    item = channel.receive()
                    assert item is not None
                    if work(item):
                        return

        self.run = run

    async def started(self, nursery: trio.Nursery) -> tuple[int, int]:
        nursery.start_soon(thread, self.run)
        await thread(self.ready.wait)
        return self.place


def every_kind(item: Message | Pulse) -> bool | None:
    """What a server can do, by what it is asked."""
    if isinstance(item, Pulse):
        return item.code == 9
    data = bytes(item.data[:10])
    assert (item.info.nd, item.info.uid, item.info.pid) == (0, os.geteuid(), os.getpid())
    if data == b"error":
        item.error(errno.EACCES)
    elif data == b"write":
        assert item.write(2, b"abcdef") == 4
        item.reply(3, b"X")
    elif data == b"large":
        item.reply(0, BODY)
    elif data == b"descriptor":
        os.write(item.descriptors[0], b"through")
        item.reply(0, b"", descriptors=(item.descriptors[0],))
    elif item.msglen > 100_000:
        item.reply(1, bytes(item.read(0, item.msglen))[::-1])
    else:
        item.reply(1, b"yes, ", item.data)
    return None


async def test_blocking_client_and_server(tmp_path: Path) -> None:
    async with daemon(tmp_path) as there, trio.open_nursery() as nursery:
        place = await Served(there, every_kind).started(nursery)

        def ask() -> None:
            with Client(there.path) as client:
                connection = client.connect(0, *place)
                assert connection.send(b"hello", reply_len=20).data == b"yes, hello"
                assert connection.send(b"write", reply_len=6).data == b"X\0abcd"
                assert connection.send(b"large", reply_len=1 << 22).data == BODY
                assert connection.send(BODY, reply_len=1 << 22).data == BODY[::-1]
                reader, writer = os.pipe()
                back = connection.send(b"descriptor", descriptors=(writer,)).descriptors
                assert len(back) == 1
                for fd in (writer, *back):
                    os.close(fd)
                assert os.read(reader, 100) == b"through"
                assert os.read(reader, 100) == b"", "all copies are closed"
                os.close(reader)
                with pytest.raises(ResmgrError) as raised:
                    connection.send(b"error")
                assert raised.value.errno == errno.EACCES
                with pytest.raises(ResmgrError) as raised:
                    client.connect(0, place[0], place[1] + 5).send(b"x")
                assert raised.value.errno == errno.EBADF
                connection.pulse(9)

        await thread(ask)
        assert there.broker.made == 1
        assert [peer.statistics().served for _, peer in there.peers() if peer.statistics().served] == []
        await until(lambda: there.broker.links == 0)


async def test_blocking_client_of_a_trio_server(tmp_path: Path) -> None:
    async with daemon(tmp_path) as there, open_process(there.path) as process:
        heard: list[int] = []
        held: list[TrioMessage] = []

        def serve(message: TrioMessage) -> None:
            if message.data == b"wait":
                held.append(message)
                message.on_unblock = lambda: message.reply(4)
            elif message.msglen > 100_000:
                message.read(0, message.msglen, lambda status, data: message.reply(1, bytes(data)[::-1]))
            else:
                message.reply(2, message.data)

        channel = process.kernel.channel(serve, on_pulse=lambda pulse: heard.append(pulse.code))

        def ask() -> None:
            with Client(there.path) as client:
                connection = client.connect(0, channel.pid, channel.chid)
                assert connection.send(b"x", reply_len=10).data == b"x"
                assert connection.send(BODY, reply_len=1 << 22).data == BODY[::-1]
                assert connection.send(b"wait", timeout=0.01).status == 4
                connection.pulse(7)
                connection.close()
                with pytest.raises(ResmgrError) as raised:
                    connection.send(b"x")
                assert raised.value.errno == errno.EBADF
                deaths: list[int] = []
                last = client.connect(0, channel.pid, channel.chid)
                last.on_death = lambda dead: deaths.append(dead.number)
                waiting = last.submit(b"wait")
                while len(held) < 2:
                    client.pump(0.001)
                process.dispatch.call_from_thread(channel.destroy)
                with pytest.raises(ResmgrError) as raised:
                    waiting.wait()
                assert raised.value.errno == errno.ESRCH
                while not deaths:
                    client.pump(1)

        await thread(ask)
        assert there.broker.made == 1
        assert heard == [7, PULSE_DISCONNECT]


async def test_trio_client_of_a_blocking_server(tmp_path: Path) -> None:
    async with daemon(tmp_path) as there, trio.open_nursery() as nursery, open_process(there.path) as process:
        connection = process.connect(0, *await Served(there, every_kind).started(nursery))
        assert (await trio_send(connection, (b"hello",), 20)).data == b"yes, hello"
        assert (await trio_send(connection, (b"large",), 1 << 22)).data == BODY
        assert (await trio_send(connection, (BODY,), 1 << 22)).data == BODY[::-1]
        assert there.broker.made == 1
        pulse(connection, 9)


@pytest.mark.parametrize("careful", [False, True])
async def test_the_client_dies_with_a_message_at_the_server(tmp_path: Path, careful: bool) -> None:
    heard: list[object] = []
    held: list[Message] = []

    def work(item: Message | Pulse) -> bool | None:
        if isinstance(item, Message):
            held.append(item)
            return None
        heard.append(item.code)
        if item.code == PULSE_UNBLOCK:
            assert item.value == held[0].number
            with pytest.raises(ResmgrError) as raised:
                held[0].write(0, b"x")
            assert raised.value.errno == errno.ESRCH
            held[0].reply(1)
        return item.code == PULSE_DISCONNECT

    async with daemon(tmp_path) as there, trio.open_nursery() as nursery:
        place = await Served(there, work, unblock=careful).started(nursery)

        def ask() -> None:
            with Client(there.path) as client:
                client.connect(0, *place).submit(b"x", reply_len=10)
                while not held:
                    client.pump(0.001)

        await thread(ask)
    assert heard == ([PULSE_UNBLOCK, PULSE_DISCONNECT] if careful else [PULSE_DISCONNECT])


@pytest.mark.parametrize("end", ["server", "daemon", "answers"])
async def test_ends_that_a_waiting_client_sees(tmp_path: Path, end: str) -> None:
    gate = threading.Event()

    def work(item: Message | Pulse) -> bool | None:
        if isinstance(item, Message) and item.data == b"wait":
            gate.set()
            if end == "answers":
                item.reply(1)
            return end != "daemon"
        if isinstance(item, Message):
            item.reply()
        return None

    async with daemon(tmp_path) as there:
        result: list[object] = []
        gone: list[str] = []

        async def serve(run: Callable[[], None]) -> None:
            try:
                await thread(run)
            except ResmgrError:
                gone.append("the daemon is")

        async with trio.open_nursery() as nursery:
            served = Served(there, work)
            nursery.start_soon(serve, served.run)
            await thread(served.ready.wait)

            def ask() -> None:
                with Client(there.path) as client:
                    connection = client.connect(0, *served.place)
                    connection.send(b"ready")
                    try:
                        result.append(connection.send(b"wait").status)
                    except ResmgrError as error:
                        result.append(error.errno)
                    if end == "server":
                        with pytest.raises(ResmgrError) as raised:
                            connection.send(b"x")
                        assert raised.value.errno == errno.EBADF

            nursery.start_soon(thread, ask)
            await thread(gate.wait)
            if end == "daemon":
                there.close()
        assert bool(gone) == (end == "daemon")
        assert result == [{"server": errno.ESRCH, "daemon": errno.ENOTCONN, "answers": 1}[end]]


async def test_a_client_that_does_not_read_delays_only_itself(tmp_path: Path) -> None:
    """It asks for 40 MB and reads nothing; the server answers it and another; then it reads, and all is there."""
    async with daemon(tmp_path) as there, trio.open_nursery() as nursery:
        place = await Served(there, every_kind).started(nursery)
        gate = threading.Event()

        def slow() -> None:
            with Client(there.path) as client:
                connection = client.connect(0, *place)
                connection.send(b"x", reply_len=10)
                sends = [connection.submit(b"large", reply_len=1 << 22) for _ in range(13)]
                gate.wait(10)
                assert all(sent.wait(10).data == BODY for sent in sends)
                connection.pulse(9)

        def quick() -> float:
            with Client(there.path) as client:
                connection = client.connect(0, *place)
                began = time.monotonic()
                for _ in range(20):
                    connection.send(b"x", reply_len=10)
                took = time.monotonic() - began
                gate.set()
                return took

        nursery.start_soon(thread, slow)
        await until(lambda: there.broker.made == 1)
        assert await thread(quick) < 5


async def test_a_server_that_does_not_read_is_eagain(tmp_path: Path) -> None:
    gate = threading.Event()

    def work(item: Message | Pulse) -> bool | None:
        if isinstance(item, Message):
            item.reply()
            gate.wait(10)
        return True

    async with daemon(tmp_path) as there, trio.open_nursery() as nursery:
        place = await Served(there, work).started(nursery)

        def ask() -> None:
            with Client(there.path) as client:
                connection = client.connect(0, *place)
                connection.send(b"x")
                sends = [connection.submit(bytes(16384)) for _ in range(300)]
                refused = [sent for sent in sends if sent.finished]
                assert {sent.status for sent in refused} == {-errno.EAGAIN}
                assert 1 << 20 <= (len(sends) - len(refused)) * 16384 < 2 << 20
                with pytest.raises(ResmgrError) as raised:
                    connection.pulse(1)
                assert raised.value.errno == errno.EAGAIN
                gate.set()
                for sent in sends:
                    with pytest.raises(ResmgrError):
                        sent.wait(10)

        await thread(ask)


async def test_several_tasks_and_a_blocking_client_of_one_receive_channel(tmp_path: Path) -> None:
    async with daemon(tmp_path) as there, open_process(there.path) as process, trio.open_nursery() as nursery:

        async def serve(own: Process) -> None:
            with ReceiveChannel(own.kernel) as channel:
                places.append((channel.channel.pid, channel.channel.chid))
                async for item in channel:
                    if isinstance(item, TrioMessage):
                        item.reply(len(item.data), item.data)

        places: list[tuple[int, int]] = []
        nursery.start_soon(serve, process)
        await until(lambda: bool(places))

        def ask() -> list[int]:
            with Client(there.path) as client:
                connection = client.connect(0, *places[0])
                return [connection.send(bytes(number), reply_len=1000).status for number in range(100)]

        assert await thread(ask) == list(range(100))
        nursery.cancel_scope.cancel()


async def test_what_waits_on_several_links_is_received_by_priority(tmp_path: Path) -> None:
    """Each client has a link of its own, one sends more than once, and the server was busy: the highest priority first all the same."""
    gate = threading.Event()
    order: list[int] = []

    def work(item: Message | Pulse) -> bool | None:
        if isinstance(item, Pulse):
            return None
        order.append(item.priority)
        item.reply()
        if item.data == b"busy":
            gate.wait(10)
        return len(order) == 9

    async with daemon(tmp_path) as there, trio.open_nursery() as nursery:
        place = await Served(there, work).started(nursery)

        def ask() -> None:
            clients = [Client(there.path) for _ in range(3)]
            connections = [client.connect(0, *place) for client in clients]
            for connection in connections:
                connection.send(b"ready")
            connections[0].send(b"busy")
            sends = []
            for number, priority in ((0, 5), (1, 40), (2, 20), (0, 3), (0, 50)):
                connections[number].priority = priority
                sends.append(connections[number].submit(b"x"))
            time.sleep(0.002)
            gate.set()
            for sent in sends:
                sent.wait(10)
            for client in clients:
                client.close()

        await thread(ask)
    assert order == [10, 10, 10, 10, 50, 40, 20, 5, 3]
