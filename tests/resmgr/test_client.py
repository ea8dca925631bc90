"""The blocking client and its channels, against a real daemon in this process: the program runs in a thread, over a real socket."""

from __future__ import annotations

import errno
import gc
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from resmgr.aio import ReceiveChannel, open_process, send
from resmgr.channel import ND_LOCAL, PID_SYSTEM, PULSE_DISCONNECT, Channel, Credentials, Kernel, Message
from resmgr.channel import Pulse as KernelPulse
from resmgr.client import Client, Send
from resmgr.dispatch import Buffer
from resmgr.errors import Misuse, ResmgrError
from resmgr.ids import PULSE_COIDDEATH, PULSE_UNBLOCK
from resmgr.looking import Looking
from resmgr.runner import open_dispatch
from resmgr.server import Message as ServerMessage
from resmgr.server import Pulse
from resmgr.transport.unix import UnixServer

pytestmark = pytest.mark.host

T = TypeVar("T")
ME = Credentials(os.geteuid(), os.getegid(), tuple(os.getgroups()), os.getpid())
BODY = random.Random(1).randbytes(3_000_000)


class Node:
    def __init__(self, kernel: Kernel, server: UnixServer) -> None:
        self.kernel = kernel
        self.server = server
        self.path = server.path

    async def run(self, program: Callable[[Client], T]) -> T:
        """Run *program* in a thread, with a client of its own; afterwards the daemon must hold nothing of it."""

        def work() -> T:
            with Client(self.path) as client:
                return program(client)

        with trio.fail_after(20):
            result = await trio.to_thread.run_sync(work)
            while self.server.statistics().links:  # noqa: ASYNC110  # there is no event for what a daemon does
                await trio.sleep(0.001)
        return result

    def channel(self, handler: Callable[[Message], None]) -> Channel:
        return self.kernel.channel(handler)


@asynccontextmanager
async def node(path: Path) -> AsyncIterator[Node]:
    async with open_dispatch() as dispatch:
        kernel = Kernel(dispatch, "here")
        server = UnixServer(dispatch, kernel, path / "socket")
        try:
            yield Node(kernel, server)
        finally:
            server.close()


async def test_send_reply_errors_and_large_messages(tmp_path: Path) -> None:
    async with node(tmp_path) as here:

        def serve(message: Message) -> None:
            if message.data == b"error":
                message.error(errno.ENOENT)
            elif message.data == b"large":
                message.reply(2, BODY)
            elif message.data == b"write":
                message.write(3, b"xyz")
                message.reply(1, b"AB")
            elif message.msglen > 1_000_000:
                message.read(0, message.msglen, lambda status, data: message.reply(status, bytes(data)[::-1]))
            else:
                message.reply(9, b"you said ", message.data)

        channel = here.channel(serve)

        def program(client: Client) -> None:
            assert client.node == "here"
            assert client.pid == os.getpid()
            connection = client.connect(0, channel.pid, channel.chid)
            assert connection.send(b"hel", b"lo", reply_len=100) == (9, b"you said hello", ())
            assert connection.send(b"hello", reply_len=3).data == b"you"
            with pytest.raises(ResmgrError) as raised:
                connection.send(b"error")
            assert raised.value.errno == errno.ENOENT
            assert connection.send(b"large", reply_len=4_000_000).data == BODY
            assert connection.send(b"large", reply_len=2_000_000).data == BODY[:2_000_000]
            assert connection.send(b"write", reply_len=5).data == b"AB\0xy"
            assert connection.send(BODY, reply_len=4_000_000) == (len(BODY), BODY[::-1], ())
            with pytest.raises(ResmgrError) as raised:
                client.connect(0, channel.pid, 999).send(b"x")
            assert raised.value.errno == errno.EBADF
            with pytest.raises(ResmgrError) as raised:
                client.connect(5, 1, 1).send(b"x")
            assert raised.value.errno == errno.ENOTSUP

        await here.run(program)
        assert channel.held == {}


async def test_several_sends_under_way_pulses_and_select(tmp_path: Path) -> None:
    held: list[Message] = []
    pulses: list[tuple[int, int]] = []
    async with node(tmp_path) as here:
        channel = here.kernel.channel(held.append, on_pulse=lambda pulse: pulses.append((pulse.code, pulse.value)))

        def answer() -> None:
            for message in reversed(held):
                message.reply(0, message.data)

        def program(client: Client) -> None:
            connection = client.connect(0, channel.pid, channel.chid)
            finished: list[Send] = []
            sends = [connection.submit(b"%d" % number, reply_len=10, done=finished.append) for number in range(20)]
            connection.pulse(4, -5)
            with pytest.raises(Misuse):
                sends[0].result()
            assert not client.pump(0)
            assert select.select([client], [], [], 0)[0] == []
            while len(held) < 20:
                time.sleep(0.001)
            here.kernel.dispatch.call_from_thread(answer)
            while not sends[0].finished:
                assert select.select([client], [], [], 5)[0] == [client]
                client.pump(0)
            assert [bytes(send_.wait().data) for send_ in sends] == [b"%d" % number for number in range(20)]
            assert [send_.txn for send_ in finished] == sorted((send_.txn for send_ in sends), reverse=True)
            with pytest.raises(ResmgrError):
                connection.pulse(-33)
            connection.close()
            with pytest.raises(ResmgrError) as raised:
                connection.send(b"x")
            assert raised.value.errno == errno.EBADF

        await here.run(program)
        assert pulses[0] == (4, -5)
        assert pulses[1][0] == PULSE_DISCONNECT


async def test_timeout_unblock_and_close_under_way(tmp_path: Path) -> None:
    asked: list[bytes] = []
    held: list[Message] = []
    disconnected = threading.Event()
    async with node(tmp_path) as here:

        def serve(message: Message) -> None:
            held.append(message)

            def unblock() -> None:
                asked.append(bytes(message.data))
                message.reply(5, b"after all")

            if message.data != b"simple":
                message.on_unblock = unblock

        channel = here.kernel.channel(serve, on_pulse=lambda pulse: disconnected.set())

        def program(client: Client) -> None:
            connection = client.connect(0, channel.pid, channel.chid)
            began = time.monotonic()
            with pytest.raises(ResmgrError) as raised:
                connection.send(b"simple", timeout=0.01)
            assert raised.value.errno == errno.ETIMEDOUT
            assert time.monotonic() - began >= 0.01
            # A server that answers in spite of the deadline: the answer counts.
            assert connection.send(b"careful", reply_len=20, timeout=0.01) == (5, b"after all", ())
            waiting = connection.submit(b"simple")
            waiting.unblock()
            waiting.unblock()
            with pytest.raises(ResmgrError) as raised:
                waiting.wait()
            assert raised.value.errno == errno.EINTR
            waiting = connection.submit(b"simple")
            connection.close()
            with pytest.raises(ResmgrError) as raised:
                waiting.wait()
            assert raised.value.errno == errno.EBADF
            # The server hears of the close while the program lives on.
            while not disconnected.wait(0):
                client.pump(0.01)

        await here.run(program)
        assert asked == [b"careful"]


async def test_death_of_the_servers_channel(tmp_path: Path) -> None:
    async with node(tmp_path) as here:
        held: list[Message] = []
        channel = here.channel(held.append)

        def program(client: Client) -> None:
            deaths: list[int] = []
            connection = client.connect(0, channel.pid, channel.chid)
            connection.on_death = lambda dead: deaths.append(dead.number)
            waiting = connection.submit(b"x")
            while not held:
                time.sleep(0.001)
            here.kernel.dispatch.call_from_thread(channel.destroy)
            with pytest.raises(ResmgrError) as raised:
                waiting.wait()
            assert raised.value.errno == errno.ESRCH
            with pytest.raises(ResmgrError) as raised:
                connection.send(b"x")
            assert raised.value.errno == errno.EBADF
            while not deaths:
                client.pump(1)

        await here.run(program)


async def test_descriptors(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    async with node(tmp_path) as here:

        def serve(message: Message) -> None:
            os.write(message.descriptors[0], b"through")
            message.reply(0, descriptors=(reader,))

        channel = here.channel(serve)

        def program(client: Client) -> None:
            connection = client.connect(0, channel.pid, channel.chid)
            reply = connection.send(b"", descriptors=(writer,))
            assert os.read(reply.descriptors[0], 20) == b"through"
            os.close(reply.descriptors[0])

        before = len(os.listdir("/proc/self/fd"))
        await here.run(program)
        gc.collect()
        with trio.fail_after(10):
            while len(os.listdir("/proc/self/fd")) > before:  # noqa: ASYNC110  # threads close them
                await trio.sleep(0.001)
    os.close(reader)
    os.close(writer)


async def test_a_blocking_server(tmp_path: Path) -> None:
    """All of a server's calls, from a client in the daemon; the program is the server."""
    seen: list[object] = []
    chids: list[int] = []

    def program(client: Client) -> None:
        channel = client.channel()
        chids.append(channel.chid)
        assert channel.pid == client.pid
        while True:
            item = channel.receive()
            if isinstance(item, Pulse):
                seen.append(item.code)
                if item.code == 9:
                    return
                continue
            assert isinstance(item, ServerMessage)
            data = bytes(item.data)
            seen.append((item.info.uid, item.info.gid, item.info.groups, item.info.nd, item.info.node))
            if data == b"error":
                item.error(errno.EACCES)
            elif data == b"write":
                assert item.write(2, b"abcdef") == 4
                wrong: list[Any] = [(-1,), ("0",), (0, "X"), (0, b"", 7)]
                for answer in wrong:
                    with pytest.raises(Misuse):
                        item.reply(*answer)
                item.reply(3, b"X")
            elif data == b"large":
                item.reply(0, BODY)
            elif item.msglen > 1_000_000:
                whole = item.read(0, item.msglen)
                assert bytes(item.read(5, 10)) == bytes(whole[5:15])
                item.reply(len(whole), whole)
                with pytest.raises(Misuse):
                    item.reply()
                with pytest.raises(ResmgrError):
                    item.read(0, item.msglen)
                with pytest.raises(ResmgrError):
                    item.write(0, b"x")
            else:
                item.reply(1, b"yes, ", data)

    async with node(tmp_path) as here, trio.open_nursery() as nursery:
        nursery.start_soon(here.run, program)
        while not chids:  # noqa: ASYNC110  # set by the thread
            await trio.sleep(0.001)
        connection = here.kernel.connect(ND_LOCAL, os.getpid(), chids[0], ME)
        assert (await send(connection, (b"hello",), 20)).data == b"yes, hello"
        assert (await send(connection, (b"write",), 6)).data == b"X\0abcd"
        assert (await send(connection, (b"large",), 1 << 22)).data == BODY
        assert (await send(connection, (BODY,), 1 << 22)) == (len(BODY), BODY, ())
        with pytest.raises(ResmgrError) as raised:
            await send(connection, (b"error",))
        assert raised.value.errno == errno.EACCES
        connection.pulse(3)
        connection.close()
        last = here.kernel.connect(ND_LOCAL, os.getpid(), chids[0], ME)
        nobody = here.kernel.connect(ND_LOCAL, os.getpid(), chids[0] + 1, ME)
        with pytest.raises(ResmgrError) as raised:
            await send(nobody, (b"x",))
        assert raised.value.errno == errno.EBADF
        last.pulse(9)
    assert seen[0] == (ME.uid, ME.gid, ME.groups, 0, "")
    assert seen[-3:] == [3, PULSE_DISCONNECT, 9]


async def test_a_program_without_channels_refuses_messages(tmp_path: Path) -> None:
    ready = threading.Event()

    def program(client: Client) -> None:
        ready.set()
        assert client.pump(5)

    async with node(tmp_path) as here, trio.open_nursery() as nursery:
        nursery.start_soon(here.run, program)
        await trio.to_thread.run_sync(ready.wait)
        connection = here.kernel.connect(ND_LOCAL, os.getpid(), 16, ME)
        with pytest.raises(ResmgrError) as raised:
            await send(connection, (b"x",))
        assert raised.value.errno == errno.EBADF


@pytest.mark.parametrize("careful", [False, True])
async def test_unblock_in_a_blocking_server(tmp_path: Path, careful: bool) -> None:
    chids: list[int] = []
    seen: list[str] = []

    def program(client: Client) -> None:
        channel = client.channel(unblock=careful)
        chids.append(channel.chid)
        message = channel.receive()
        assert isinstance(message, ServerMessage)
        item = channel.receive()
        assert isinstance(item, Pulse)
        if careful:
            assert (item.code, item.value) == (PULSE_UNBLOCK, message.number)
            seen.append("asked")
        else:
            assert item.code == 1
            assert message.gone
            with pytest.raises(ResmgrError):
                message.write(0, b"x")
        message.reply(6, b"late")
        while True:
            item = channel.receive()
            assert isinstance(item, Pulse)
            if item.code == PULSE_DISCONNECT:
                return

    async with node(tmp_path) as here, trio.open_nursery() as nursery:
        nursery.start_soon(here.run, program)
        while not chids:  # noqa: ASYNC110  # set by the thread
            await trio.sleep(0.001)
        connection = here.kernel.connect(ND_LOCAL, os.getpid(), chids[0], ME)
        if careful:
            reply = await send(connection, (b"x",), 10, deadline=here.kernel.dispatch.now() + 0.01)
            assert reply == (6, b"late", ())
        else:
            with pytest.raises(ResmgrError) as raised:
                await send(connection, (b"x",), 10, deadline=here.kernel.dispatch.now() + 0.01)
            assert raised.value.errno == errno.ETIMEDOUT
        connection.pulse(1)
        connection.close()


async def test_a_client_that_gives_up_while_it_is_read_from(tmp_path: Path) -> None:
    """The READ is never answered, the unblock comes first: the server's read must end all the same."""
    chids: list[int] = []
    pulled: list[int] = []

    class Silent:
        def answer(self, status: int, parts: object, descriptors: object) -> None:
            pulled.append(status)

        def pull(self, offset: int, length: int, done: object) -> None:
            pulled.append(offset)

        def push(self, offset: int, data: object) -> None:
            """Nothing is written."""

    def program(client: Client) -> None:
        channel = client.channel()
        chids.append(channel.chid)
        message = channel.receive()
        assert isinstance(message, ServerMessage)
        with pytest.raises(ResmgrError) as raised:
            message.read(0, 1000)
        assert raised.value.errno == errno.ESRCH
        message.reply()

    async with node(tmp_path) as here, trio.open_nursery() as nursery:
        nursery.start_soon(here.run, program)
        while not chids:  # noqa: ASYNC110  # set by the thread
            await trio.sleep(0.001)
        connection = here.kernel.connect(ND_LOCAL, os.getpid(), chids[0], ME)
        pending = here.kernel.relay(connection, b"", 1000, 0, 10, Silent())
        assert pending is not None
        while not pulled:  # noqa: ASYNC110  # the callback is not a task
            await trio.sleep(0.001)
        pending.unblock()
    assert pulled == [0, -errno.EINTR]


async def test_closing_a_channel_and_channels_that_keep_nodes_out(tmp_path: Path) -> None:
    chids: list[int] = []
    gate = threading.Event()

    def program(client: Client) -> None:
        channel = client.channel(remote=False)
        chids.append(channel.chid)
        while not (message := channel.receive()):
            pass
        channel.close()
        channel.close()
        with pytest.raises(ResmgrError) as raised:
            channel.receive()
        assert raised.value.errno == errno.ESRCH
        assert isinstance(message, ServerMessage)
        message.reply()
        while not gate.is_set():
            client.pump(0.005)

    async with node(tmp_path) as here, trio.open_nursery() as nursery:
        nursery.start_soon(here.run, program)
        while not chids:  # noqa: ASYNC110  # set by the thread
            await trio.sleep(0.001)
        connection = here.kernel.connect(ND_LOCAL, os.getpid(), chids[0], ME)
        for expected in (errno.ESRCH, errno.EBADF):
            with pytest.raises(ResmgrError) as raised:
                await send(connection, (b"x",))
            assert raised.value.errno == expected
        gate.set()


@pytest.mark.parametrize("end", ["channel", "process"])
async def test_a_server_s_death_is_a_pulse(tmp_path: Path, end: str) -> None:
    """Programs that wait at their channel hear of it there, blocking and with Trio."""

    def blocking(path: str) -> None:
        with Client(path) as client, Client(path) as other:
            server, mine, deaf = other.channel(), client.channel(coid_death=True), client.channel()
            used, closed = (client.connect(0, server.pid, server.chid) for _ in range(2))
            for connection in (used, closed):
                connection.pulse(1)
            closed.close()
            assert server.receive(5) is not None
            if end == "channel":
                server.close()
            else:
                other.close()
            pulse = mine.receive(5)
            assert isinstance(pulse, Pulse)
            assert (pulse.code, pulse.value, pulse.info.pid) == (PULSE_COIDDEATH, used.number, client.pid)
            assert mine.receive(0) is None
            assert deaf.receive(0) is None

    async with node(tmp_path) as here:
        await trio.to_thread.run_sync(blocking, here.server.path)
        async with open_process(here.server.path) as process:
            other = await trio.to_thread.run_sync(Client, here.server.path)
            with other, ReceiveChannel(process.kernel, coid_death=True) as mine:
                server = other.channel()
                connection = process.connect(0, server.pid, server.chid)
                connection.pulse(1)
                assert await trio.to_thread.run_sync(server.receive, 5.0) is not None
                server.close()
                with trio.fail_after(5):
                    pulse = await mine.receive()
                assert isinstance(pulse, KernelPulse)
                assert (pulse.code, pulse.value) == (PULSE_COIDDEATH, connection.coid)


async def test_ctrl_c_unblocks(tmp_path: Path) -> None:
    """A real program, killed by SIGINT in a send: the server is asked, and the program ends."""
    asked: list[Message] = []
    async with node(tmp_path) as here:
        held: list[Message] = []

        def serve(message: Message) -> None:
            held.append(message)

            def unblock() -> None:
                asked.append(message)
                message.error(errno.EINTR)

            message.on_unblock = unblock

        channel = here.channel(serve)
        code = f"from resmgr.client import Client\nClient({here.path!r}).connect(0, {channel.pid}, {channel.chid}).send(b'x')\n"
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)  # noqa: ASYNC220  # it only starts
        with trio.fail_after(20):
            while not held:  # noqa: ASYNC110  # the callback is not a task
                await trio.sleep(0.001)
            process.send_signal(signal.SIGINT)
            _, errors = await trio.to_thread.run_sync(process.communicate)
        assert b"KeyboardInterrupt" in errors
        assert len(asked) == 1
        assert channel.held == {}


async def test_the_daemon_goes_away(tmp_path: Path) -> None:
    async with node(tmp_path) as here:
        held: list[Message] = []
        channel = here.channel(held.append)

        def program() -> None:
            client = Client(here.path)
            connection = client.connect(0, channel.pid, channel.chid)
            with pytest.raises(ResmgrError) as raised:
                connection.send(b"x")
            assert raised.value.errno == errno.ENOTCONN
            with pytest.raises(ResmgrError) as raised:
                client.connect(0, 1, 1).send(b"x")
            assert raised.value.errno == errno.ENOTCONN
            client.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, program)
            while not held:  # noqa: ASYNC110  # the callback is not a task
                await trio.sleep(0.001)
            here.server.close()
    with pytest.raises(FileNotFoundError):
        Client(tmp_path / "nothing")


async def test_random_traffic_between_two_programs_and_the_daemon(tmp_path: Path) -> None:
    """Server and client are both programs: all of it is forwarded, in both directions, with every kind of answer."""
    chids: list[int] = []

    def serve(client: Client) -> int:
        channel = client.channel(first_part=50_000)
        chids.append(channel.chid)
        served = 0
        while True:
            item = channel.receive()
            if isinstance(item, Pulse):
                if item.code == 1:
                    return served
                continue
            assert isinstance(item, ServerMessage)
            served += 1
            whole = bytes(item.read(0, item.msglen))
            if served % 7 == 0:
                item.error(errno.EIO)
            else:
                item.reply(len(whole) & 0xFF, whole)

    def ask(client: Client) -> None:
        generator = random.Random(2)
        connection = client.connect(0, os.getpid(), chids[0])
        waiting: list[tuple[Send, bytes]] = []
        errors = 0
        for _ in range(300):
            body = generator.randbytes(generator.choice((0, 64, 10_000, 200_000)))
            waiting.append((connection.submit(body, reply_len=300_000), body))
            while len(waiting) > generator.randint(0, 8):
                sent, expected = waiting.pop(0)
                try:
                    data: Buffer = sent.wait(10).data
                except ResmgrError:
                    assert sent.status == -errno.EIO
                    errors += 1
                else:
                    assert data == expected
        for sent, _ in waiting:
            try:
                sent.wait(10)
            except ResmgrError:
                errors += 1
        assert errors == 300 // 7
        connection.pulse(1)

    async with node(tmp_path) as here, trio.open_nursery() as nursery:
        nursery.start_soon(here.run, serve)
        while not chids:  # noqa: ASYNC110  # set by the thread
            await trio.sleep(0.001)
        await here.run(ask)


def test_the_choice_between_looking_and_sleeping() -> None:
    for better in (True, False):
        waiting = Looking()
        looked = [waiting.look()]
        waiting.took(looked[0], 10e-6 if looked[0] == better else 30e-6)
        for _ in range(640):
            look = waiting.look()
            looked.append(look)
            waiting.took(look, 10e-6 if look == better else 30e-6)
        assert sum(look == better for look in looked) > 600


def test_it_starts_quickly() -> None:
    """No Trio, no attrs: what a small program pays before its first send."""
    code = "import sys, resmgr.client; print(sorted({'trio', 'attrs', 'attr', 'asyncio', 'cryptography'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


assert PID_SYSTEM == 1


async def test_events_of_blocking_programs(tmp_path: Path) -> None:
    """A blocking client registers, a blocking server delivers; and both with the other kind of program at the other end."""
    async with node(tmp_path) as here:
        kept: list[tuple[Message, int]] = []

        def keep(message: Message) -> None:
            kept.append((message, int(bytes(message.data))))
            message.reply()
            assert message.deliver_event(kept[-1][1]) == 0

        daemon = here.channel(keep)

        def program(client: Client) -> None:
            with Client(here.path) as other:
                channel = other.channel()
                own = client.channel()
                connection = client.connect(0, channel.pid, channel.chid)
                handle = connection.register_event(own, 9, 1 << 40, 21)
                once = connection.register_event(own, 10, once=True)
                sent = connection.submit(b"%d" % handle)
                asked = channel.receive(5)
                assert isinstance(asked, ServerMessage)
                asked.reply()
                sent.wait(5)
                for number in (handle, once, once, 77):
                    asked.deliver_event(number)
                first, second = own.receive(5), own.receive(5)
                assert isinstance(first, Pulse)
                assert isinstance(second, Pulse)
                assert (first.code, first.value, first.priority, first.info.scoid) == (9, 1 << 40, 21, connection.number)
                assert second.code == 10
                assert own.receive(0.01) is None
                connection.close()
                assert isinstance(channel.receive(5), Pulse)
                with pytest.raises(ResmgrError) as raised:
                    channel.deliver_event(asked.info, handle)
                assert raised.value.errno == errno.ESRCH
                with pytest.raises(ResmgrError):
                    connection.register_event(own, 1)
                node_connection = client.connect(0, daemon.pid, daemon.chid)
                node_connection.send(b"%d" % node_connection.register_event(own, 3))
                third = own.receive(5)
                assert isinstance(third, Pulse)
                assert third.code == 3

        await here.run(program)


async def test_a_blocking_server_receives_by_priority_and_sends_on_with_it(tmp_path: Path) -> None:
    async with node(tmp_path) as here:
        seen: list[int] = []

        def behind(message: Message) -> None:
            seen.append(message.priority)
            message.reply()

        last = here.channel(behind)

        def program(client: Client) -> None:
            channel = client.channel()
            onward, fixed = client.connect(0, last.pid, last.chid), client.connect(0, last.pid, last.chid, priority=11)
            with Client(here.path) as other:
                sends = [other.connect(0, channel.pid, channel.chid, priority=priority).submit(b"") for priority in (5, 40, 20)]
                while len(channel.waiting) < 3:
                    client.pump(5)
                order: list[int] = []
                for _ in range(3):
                    message = channel.receive(5)
                    assert isinstance(message, ServerMessage)
                    order.append(message.priority)
                    onward.send(b"")
                    fixed.send(b"")
                    message.reply()
                for send_ in sends:
                    send_.wait(5)
                assert order == [40, 20, 5]
                assert channel.receive(0) is None
                onward.send(b"")

        await here.run(program)
        assert seen == [40, 11, 20, 11, 5, 11, 10]
