"""The local socket server: datagrams, who a client is, descriptors, back-pressure, hostile clients, clients that die."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import select
import socket
import stat
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from resmgr import message as wire
from resmgr.aio import ReceiveChannel, open_process, send
from resmgr.channel import ND_LOCAL, PID_SYSTEM, PULSE_DISCONNECT, Credentials, Kernel, Message, Pulse
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError
from resmgr.runner import open_dispatch
from resmgr.transport.carrier import UnixCarrier
from resmgr.transport.datagram import DATAGRAM_MAX, LENGTH, MORE, Assembler, fragments
from resmgr.transport.peercred import peer_credentials
from resmgr.transport.unix import SYNTHETIC_PID, UnixServer

pytestmark = pytest.mark.host

ME = Credentials(os.geteuid(), os.getegid(), tuple(os.getgroups()), os.getpid())


class Node:
    def __init__(self, kernel: Kernel, server: UnixServer) -> None:
        self.kernel = kernel
        self.server = server
        self.path = server.path


@asynccontextmanager
async def node(path: Path) -> AsyncIterator[Node]:
    async with open_dispatch() as dispatch:
        kernel = Kernel(dispatch, "here")
        server = UnixServer(dispatch, kernel, path / "socket")
        try:
            yield Node(kernel, server)
        finally:
            server.close()
            assert not (path / "socket").exists()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110  # there is no event for what a daemon does
            await trio.sleep(0.001)


def raw(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(path)
    return sock


# ---- datagrams


def assembled(datagrams: list[list[Buffer]]) -> list[bytes]:
    assembler = Assembler()
    return [bytes(message) for datagram in datagrams for message in assembler.feed(b"".join(datagram))]


@pytest.mark.parametrize("size", [0, 1, DATAGRAM_MAX - 4, DATAGRAM_MAX - 3, 3 * DATAGRAM_MAX, 1_000_000])
def test_fragments_make_the_message_again(size: int) -> None:
    body = random.Random(size).randbytes(size)
    parts: list[Buffer] = [body[:10], memoryview(body)[10:70_000], b"", body[70_000:]]
    datagrams = fragments(parts, size)
    assert all(sum(map(len, datagram)) <= DATAGRAM_MAX for datagram in datagrams)
    assert assembled(datagrams) == ([body] if size else [])


def test_many_messages_in_one_datagram() -> None:
    assert assembled([[LENGTH.pack(1), b"a", LENGTH.pack(0), LENGTH.pack(2), b"bc"]]) == [b"a", b"", b"bc"]


@pytest.mark.parametrize(
    "datagrams",
    [
        [b"\0\0\0"],
        [LENGTH.pack(5) + b"four"],
        [LENGTH.pack(MORE)],
        [LENGTH.pack(60_000 | MORE) + bytes(60_000)] * 20,
        [LENGTH.pack(0x7FFFFFFF) + b"x"],
    ],
)
def test_bad_datagrams(datagrams: list[bytes]) -> None:
    assembler = Assembler()
    with pytest.raises(BadMessage):  # noqa: PT012  # the last of them raises
        for datagram in datagrams:
            assembler.feed(datagram)


def test_a_datagram_cut_at_every_length() -> None:
    whole = LENGTH.pack(3) + b"abc" + LENGTH.pack(2) + b"de"
    for length in range(len(whole)):
        if length in (0, 7):
            assert len(Assembler().feed(whole[:length])) == (1 if length else 0)
        else:
            with pytest.raises(BadMessage):
                Assembler().feed(whole[:length])


# ---- the server


async def test_the_socket_file(tmp_path: Path) -> None:
    async with node(tmp_path) as here:
        status = os.stat(here.path)
        assert stat.S_IMODE(status.st_mode) == 0o666
        assert os.listdir(tmp_path) == ["socket"]
    # A left-over socket is replaced, another file is not.
    left = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.bind(str(tmp_path / "socket"))
    left.close()
    async with node(tmp_path) as here:
        raw(here.path).close()
    (tmp_path / "socket").write_text("mine")
    async with open_dispatch() as dispatch:
        with pytest.raises(FileExistsError):
            UnixServer(dispatch, Kernel(dispatch, "x"), tmp_path / "socket")
    assert os.listdir(tmp_path) == ["socket"]


async def test_hello_and_credentials_from_the_socket(tmp_path: Path) -> None:
    infos: list[Message] = []

    def serve(message: Message) -> None:
        infos.append(message)
        message.reply()

    async with node(tmp_path) as here:
        channel = here.kernel.channel(serve)
        with raw(here.path) as sock:
            assert peer_credentials(sock).uid == ME.uid
            hello = Assembler().feed(await trio.to_thread.run_sync(sock.recv, 1000))[0]
            version, pid, first_chid, name = wire.parse_hello(hello)
            assert (version, pid, name) == (wire.VERSION, os.getpid(), "here")
            assert first_chid == 16
            # The client claims to be somebody else: nothing of it counts.
            lies = wire.ConnectBlock(0, PID_SYSTEM, channel.chid, 1, 12345, 12345, (0,), 77, "evil", ("admin",))
            head = wire.SEND_HEADER.pack(wire.SEND, wire.CONNECT, 10, 0, 1, 1, 0, 0)
            message = head + wire.pack_block(lies)
            sock.send(LENGTH.pack(len(message)) + message)
            await until(lambda: len(infos) == 1)
            info = infos[0].info
            assert info.credentials == ME
            assert (info.nd, info.node, info.roles) == (ND_LOCAL, "", frozenset())


async def test_links_of_one_process_share_its_pid_and_not_its_channel_ids(tmp_path: Path) -> None:
    async with node(tmp_path) as here, open_process(here.path) as first, open_process(here.path) as second:
        with ReceiveChannel(first.kernel) as one, ReceiveChannel(second.kernel) as two:
            assert one.channel.pid == two.channel.pid == os.getpid()
            assert one.channel.chid != two.channel.chid

            async def answer(channel: ReceiveChannel, text: bytes) -> None:
                async for item in channel:
                    if isinstance(item, Message):
                        item.reply(0, text)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, one, b"one")
                nursery.start_soon(answer, two, b"two")
                for channel, text in ((one.channel, b"one"), (two.channel, b"two")):
                    for kernel in (first.kernel, second.kernel, here.kernel):
                        connection = kernel.connect(ND_LOCAL, channel.pid, channel.chid, ME)
                        assert (await send(connection, (b"",), 10)).data == text
                        connection.close()
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize("inside", [True, False])
async def test_descriptors_travel_both_ways(tmp_path: Path, inside: bool) -> None:
    """To a server in the daemon, and through the daemon to one in another process's place."""
    read_end, write_end = os.pipe()
    pipe = f"pipe:[{os.fstat(read_end).st_ino}]"

    def held() -> int:
        """Descriptors of the pipe that are open here."""
        count = 0
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                count += os.readlink(f"/proc/self/fd/{fd}") == pipe
        return count

    async with node(tmp_path) as here, open_process(here.path) as client, open_process(here.path) as other:

        def serve(message: Message) -> None:
            assert len(message.descriptors) == 1
            os.write(message.descriptors[0], b"through " + bytes(message.data))
            message.reply(0, b"back", descriptors=(read_end,))

        channel = (here.kernel if inside else other.kernel).channel(serve)
        connection = client.connect(0, channel.pid, channel.chid)
        reply = await send(connection, (b"the pipe",), 10, descriptors=(write_end,))
        assert reply.data == b"back"
        assert os.read(reply.descriptors[0], 100) == b"through the pipe"
        os.close(reply.descriptors[0])
        with pytest.raises(ResmgrError) as raised:
            await send(connection, (b"x",), descriptors=[write_end] * 17)
        assert raised.value.errno == errno.EINVAL
    assert held() >= 2
    os.close(read_end)
    os.close(write_end)
    gc.collect()
    await until(lambda: held() == 0)


async def test_a_client_that_never_reads_delays_only_itself(tmp_path: Path) -> None:
    async with node(tmp_path) as here, open_process(here.path) as good:
        body = bytes(500_000)
        channel = here.kernel.channel(lambda message: message.reply(0, body))
        with raw(here.path) as sock:
            sock.setblocking(False)
            block = wire.pack_block(wire.ConnectBlock(0, PID_SYSTEM, channel.chid, 0, 0, 0))
            sent = 0

            async def flood() -> None:
                nonlocal sent
                try:
                    for txn in range(1, 2000):
                        message = wire.SEND_HEADER.pack(wire.SEND, wire.CONNECT, 10, 0, txn, 1, 600_000, 0) + block
                        sock.send(LENGTH.pack(len(message)) + message)
                        sent += 1
                        await trio.lowlevel.checkpoint()
                except BlockingIOError:
                    pass

            await flood()
            await until(lambda: here.server.statistics().queued > 1 << 20)
            queued = here.server.statistics().queued
            assert queued < 16 << 20
            connection = good.connect(0, channel.pid, channel.chid)
            assert len((await send(connection, (b"",), 1 << 20)).data) == 500_000
            assert sent < 1900
            # It reads at last: everything it was owed comes.
            got = 0

            def drain() -> None:
                nonlocal got
                sock.setblocking(True)
                sock.settimeout(5)
                while got < 20:
                    for message in assembler.feed(sock.recv(DATAGRAM_MAX)):
                        got += message[0] == wire.REPLY

            assembler = Assembler()
            await trio.to_thread.run_sync(drain)
        await until(lambda: here.server.statistics().links == 1)
        assert here.server.statistics().queued == 0


async def test_a_client_that_makes_its_queue_grow_is_disconnected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resmgr.transport.carrier.OUTPUT_MAX", 3 << 20)
    held: list[Message] = []
    async with node(tmp_path) as here:
        channel = here.kernel.channel(held.append)
        with raw(here.path) as sock:
            block = wire.pack_block(wire.ConnectBlock(0, PID_SYSTEM, channel.chid, 0, 0, 0))
            for txn in range(1, 11):
                message = wire.SEND_HEADER.pack(wire.SEND, wire.CONNECT, 10, 0, txn, 1, 1 << 20, 0) + block
                sock.send(LENGTH.pack(len(message)) + message)
            await until(lambda: len(held) == 10)

            def answer() -> None:
                for message in held:
                    message.reply(0, bytes(1 << 20))

            here.kernel.dispatch.call_soon(answer)
            await until(lambda: here.server.statistics().closed == {"reads too little": 1})


async def test_hostile_bytes_only_end_their_own_link(tmp_path: Path) -> None:
    generator = random.Random(5)
    async with node(tmp_path) as here, open_process(here.path) as good:
        channel = here.kernel.channel(lambda message: message.reply(0, b"fine"))
        block = wire.pack_block(wire.ConnectBlock(0, PID_SYSTEM, channel.chid, 0, 0, 0))
        real = wire.SEND_HEADER.pack(wire.SEND, wire.CONNECT, 10, 0, 1, 1, 10, 5) + block + b"hello"
        real = LENGTH.pack(len(real)) + real
        for _ in range(60):
            with raw(here.path) as sock:
                sock.settimeout(5)
                try:
                    for _ in range(10):
                        changed = bytearray(real)
                        for _ in range(generator.randint(0, 3)):
                            changed[generator.randrange(len(changed))] = generator.randrange(256)
                        sock.send(bytes(changed[: generator.randint(1, len(changed))]))
                        sock.send(generator.randbytes(generator.randint(1, 300)))
                except (BrokenPipeError, ConnectionResetError):
                    pass
                await trio.lowlevel.checkpoint()
        await until(lambda: here.server.statistics().links == 1)
        connection = good.connect(0, channel.pid, channel.chid)
        assert (await send(connection, (b"",), 10)).data == b"fine"
        assert sum(here.server.statistics().closed.values()) == 60


async def test_descriptors_of_a_hostile_client_do_not_stay(tmp_path: Path) -> None:
    async with node(tmp_path) as here:
        before = len(os.listdir("/proc/self/fd"))
        with raw(here.path) as sock:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("3i", 0, 0, 0))]
            unblock = wire.HEADER.pack(wire.UNBLOCK, 0, 0, 0, 9)
            for _ in range(50):
                sock.sendmsg([LENGTH.pack(len(unblock)), unblock], rights)
            sock.sendmsg([LENGTH.pack(5 | MORE), b"never"], rights)
            await until(lambda: here.server.statistics().links == 1)
            await trio.sleep(0.01)
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2 + 3)
        await until(lambda: here.server.statistics().links == 0)
        gc.collect()
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


@pytest.mark.parametrize("step", range(4))
async def test_a_client_that_dies_at_each_step_leaves_nothing(tmp_path: Path, step: int) -> None:
    held: list[Message] = []
    pulses: list[Pulse] = []
    async with node(tmp_path) as here:
        channel = here.kernel.channel(held.append, on_pulse=pulses.append)
        pid = os.fork()
        if pid == 0:
            sock = raw(here.path)
            block = wire.pack_block(wire.ConnectBlock(0, PID_SYSTEM, channel.chid, 0, 0, 0))
            head = wire.SEND_HEADER.pack(wire.SEND, wire.CONNECT, 10, 0, 1, 1, 0, 40_000) + block + bytes(10_000)
            if step >= 1:
                sock.send(LENGTH.pack(len(head)) + head)
            if step >= 2:
                sock.send(LENGTH.pack(len(head) + 10 | MORE) + head)
            os.read(os.open("/dev/zero", os.O_RDONLY), 1)
            if step >= 3:
                sock.recv(100000)
                sock.recv(100000)
            sock.recv(100000)
            os.kill(os.getpid(), 9)
        if step:
            await until(lambda: len(held) == 1)
        reads: list[int] = []
        if step == 3:
            here.kernel.dispatch.call_soon(lambda: held[0].read(0, 40_000, lambda status, data: reads.append(status)))
        else:
            await until(lambda: here.server.statistics().accepted == 1)
            os.kill(pid, 9)
        await trio.to_thread.run_sync(os.waitpid, pid, 0)
        await until(lambda: here.server.statistics().links == 0 and here.server.statistics().accepted == 1)
        if step:
            assert not held[0].client_waits
            held[0].reply()
            assert [pulse.code for pulse in pulses] == [PULSE_DISCONNECT]
        if step == 3:
            assert reads == [-errno.ESRCH]
        assert channel.held == {}


@pytest.mark.parametrize("step", range(4))
async def test_a_server_process_that_dies_at_each_step_frees_its_clients(tmp_path: Path, step: int) -> None:
    """Killed with the message unread, read, pulled from, and half answered."""
    async with node(tmp_path) as here, open_process(here.path) as client:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            sock = raw(here.path)
            hello = Assembler().feed(sock.recv(1000))[0]
            os.write(writer, bytes(hello))
            if step >= 1:
                txn = wire.parse_send(Assembler().feed(sock.recv(DATAGRAM_MAX))[0])[3]
            else:
                while not select.select([sock], [], [], 1)[0]:
                    pass
            if step >= 2:
                message = wire.READ_HEADER.pack(wire.READ, 0, 0, 0, txn, 1, 10_000, 20_000)
                sock.send(LENGTH.pack(len(message)) + message)
                sock.recv(DATAGRAM_MAX)
            if step >= 3:
                message = wire.WRITE_HEADER.pack(wire.WRITE, 0, 0, 0, txn, 0) + b"half"
                sock.send(LENGTH.pack(len(message)) + message)
                sock.send(LENGTH.pack(100 | MORE) + wire.REPLY_HEADER.pack(wire.REPLY, 1, 0, 0, txn, 0, 4) + bytes(80))
            os.kill(os.getpid(), 9)
        _, server_pid, first_chid, _ = wire.parse_hello(await trio.to_thread.run_sync(os.read, reader, 100))
        os.close(reader)
        os.close(writer)
        assert server_pid == pid
        connection = client.connect(0, pid, first_chid)
        deaths: list[int] = []
        connection.on_death = lambda dead: deaths.append(dead.coid)
        with pytest.raises(ResmgrError) as raised:
            await send(connection, (bytes(40_000),), 10)
        assert raised.value.errno == errno.ESRCH
        with pytest.raises(ResmgrError) as raised:
            await send(connection, (b"x",), 10)
        assert raised.value.errno == errno.EBADF
        await until(lambda: deaths == [connection.coid])
        await trio.to_thread.run_sync(os.waitpid, pid, 0)
        assert client.peer.statistics().outgoing == 0


async def test_the_end_of_the_daemon(tmp_path: Path) -> None:
    async with open_dispatch() as dispatch:
        kernel = Kernel(dispatch, "here")
        held: list[Message] = []
        channel = kernel.channel(held.append)
        server = UnixServer(dispatch, kernel, tmp_path / "socket")
        async with open_process(server.path) as client:
            connection = client.connect(0, channel.pid, channel.chid)
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    with pytest.raises(ResmgrError) as raised:
                        await send(connection, (b"x",), 10)
                    assert raised.value.errno == errno.ENOTCONN

                nursery.start_soon(ask)
                await until(lambda: len(held) == 1)
                server.close()
            await client.gone.wait()
            assert client.failure == "closed"
            held[0].reply()
            with pytest.raises(ResmgrError):
                await send(connection)


async def test_too_many_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resmgr.transport.unix.LINKS_PER_USER", 3)
    async with node(tmp_path) as here:
        socks = [raw(here.path) for _ in range(5)]
        await until(lambda: here.server.statistics().refused == {"too many links": 2})
        assert here.server.statistics().links == 3
        for sock in socks:
            sock.close()
        await until(lambda: here.server.statistics().links == 0)
        with raw(here.path):
            await until(lambda: here.server.statistics().links == 1)


async def test_a_client_without_a_pid_of_ours_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resmgr.transport.peercred.peer_credentials", lambda sock: Credentials(5, 5, (), 0))
    async with node(tmp_path) as here, open_process(here.path) as one, open_process(here.path) as two:
        assert one.kernel.pid > SYNTHETIC_PID
        assert two.kernel.pid > SYNTHETIC_PID
        assert one.kernel.pid != two.kernel.pid


async def test_large_messages_through_a_real_socketpair() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    generator = random.Random(8)
    bodies = [generator.randbytes(generator.choice((0, 5, 3000, 70_000, 900_000))) for _ in range(60)]
    got: list[bytes] = []
    async with open_dispatch() as dispatch:
        sender = UnixCarrier(dispatch, left, lambda reason: None)
        receiver = UnixCarrier(dispatch, right, lambda reason: None)
        receiver.on_message = lambda view, stream, priority, descriptors: got.append(bytes(view))
        for body in bodies:
            sender.send(0, (body[:7], body[7:]), 0)
        await until(lambda: len(got) == len(bodies))
        assert got == bodies
        assert sender.queued == 0
        sender.close()
        receiver.close()
