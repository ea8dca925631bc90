"""The Trio face: awaiting sends, cancellation as unblock, deadlines, channels served by tasks, programs that join a node."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from resmgr.aio import ReceiveChannel, open_process, send
from resmgr.channel import ND_LOCAL, Channel, Connection, Credentials, Kernel, Message, Pulse
from resmgr.errors import ResmgrError
from resmgr.runner import open_dispatch
from resmgr.transport.unix import UnixServer

USER = Credentials(1000, 1000)


def connect(kernel: Kernel, channel: Channel) -> Connection:
    return kernel.connect(ND_LOCAL, channel.pid, channel.chid, USER)


async def test_send_and_errors_in_one_kernel() -> None:
    async with open_dispatch() as dispatch:
        kernel = Kernel(dispatch, "here")

        def serve(message: Message) -> None:
            if message.data == b"later":
                dispatch.call_at(dispatch.now() + 0.002, lambda: message.reply(3, b"late"))
            elif message.data == b"bad":
                message.error(errno.ENOENT)
            else:
                message.reply(1, b"now")

        connection = connect(kernel, kernel.channel(serve))
        assert await send(connection, (b"x",), 10) == (1, b"now", ())
        assert await send(connection, (b"lat", b"er"), 10) == (3, b"late", ())
        with pytest.raises(ResmgrError) as raised:
            await send(connection, (b"bad",))
        assert raised.value.errno == errno.ENOENT


async def test_cancellation_waits_for_a_server_that_wants_to_finish() -> None:
    async with open_dispatch() as dispatch:
        kernel = Kernel(dispatch, "here")
        held: list[Message] = []
        asked: list[float] = []

        def serve(message: Message) -> None:
            held.append(message)
            if message.data == b"careful":
                message.on_unblock = lambda: asked.append(dispatch.now())

        connection = connect(kernel, kernel.channel(serve))
        with trio.move_on_after(0.005) as scope:
            await send(connection, (b"simple",), 10)
        assert scope.cancelled_caught
        held.pop().reply()

        with trio.move_on_after(0.005) as scope:
            async with trio.open_nursery() as nursery:

                async def finish() -> None:
                    with trio.CancelScope(shield=True):
                        while not asked:  # noqa: ASYNC110  # the callback is not a task
                            await trio.sleep(0.001)
                        held.pop().error(errno.EINTR)

                nursery.start_soon(finish)
                await send(connection, (b"careful",), 10)
        assert scope.cancelled_caught
        assert len(asked) == 1

        # The answer comes in spite of the cancellation: it counts, and the cancellation strikes at the next checkpoint.
        results: list[bytes] = []
        asked.clear()
        with trio.move_on_after(0.005) as scope:
            async with trio.open_nursery() as nursery:

                async def answer() -> None:
                    with trio.CancelScope(shield=True):
                        while not asked:  # noqa: ASYNC110  # the callback is not a task
                            await trio.sleep(0.001)
                        held.pop().reply(0, b"done")

                nursery.start_soon(answer)
                results.append((await send(connection, (b"careful",), 10)).data)
        assert results == [b"done"]


async def test_an_answer_given_inside_the_unblock() -> None:
    async with open_dispatch() as dispatch:
        kernel = Kernel(dispatch, "here")

        def serve(message: Message) -> None:
            message.on_unblock = lambda: message.reply(7, b"just so")

        connection = connect(kernel, kernel.channel(serve))
        results: list[int] = []
        with trio.move_on_after(0.002):
            results.append((await send(connection, (b"",), 10)).status)
        assert results == [7]


async def test_deadline() -> None:
    async with open_dispatch() as dispatch:
        kernel = Kernel(dispatch, "here")
        held: list[Message] = []
        connection = connect(kernel, kernel.channel(held.append))
        began = dispatch.now()
        with pytest.raises(ResmgrError) as raised:
            await send(connection, (b"x",), deadline=began + 0.003)
        assert raised.value.errno == errno.ETIMEDOUT
        assert dispatch.now() - began >= 0.003
        held.pop().reply()
        assert dispatch.statistics().timers == 0
        cancelled = trio.CancelScope()
        cancelled.cancel()
        with cancelled:
            await send(connection, (b"never sent",))
        assert held == []


async def test_channel_served_by_tasks() -> None:
    async with open_dispatch() as dispatch:
        kernel = Kernel(dispatch, "here")
        channel = ReceiveChannel(kernel)
        pulses: list[int] = []

        async def serve() -> None:
            async for item in channel:
                if isinstance(item, Pulse):
                    pulses.append(item.code)
                else:
                    await trio.lowlevel.checkpoint()
                    item.reply(0, bytes(item.data)[::-1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            nursery.start_soon(serve)
            connection = connect(kernel, channel.channel)

            async def ask(number: int) -> None:
                assert (await send(connection, (b"%03d" % number,), 10)).data == (b"%03d" % number)[::-1]

            async with trio.open_nursery() as clients:
                for number in range(50):
                    clients.start_soon(ask, number)
            connection.pulse(5)
            connection.close()
            await trio.testing.wait_all_tasks_blocked(0.01)
            channel.close()
        assert pulses == [5, -33]


async def test_messages_nobody_received_are_not_delivered_after_an_unblock() -> None:
    async with open_dispatch() as dispatch:
        kernel = Kernel(dispatch, "here")
        with ReceiveChannel(kernel) as channel:
            connection = connect(kernel, channel.channel)
            with pytest.raises(ResmgrError):
                await send(connection, (b"impatient",), deadline=dispatch.now())
            connection.pulse(1)
            item = await channel.receive()
            assert isinstance(item, Pulse)
            assert channel.channel.held == {}
            with trio.move_on_after(0.002) as scope:
                await channel.receive()
            assert scope.cancelled_caught
        with pytest.raises(ResmgrError) as raised:
            await channel.receive()
        assert raised.value.errno == errno.ESRCH


@pytest.mark.host
async def test_a_program_joins_a_node(tmp_path: Path) -> None:
    async with open_dispatch() as dispatch:
        kernel = Kernel(dispatch, "here")
        server = UnixServer(dispatch, kernel, tmp_path / "socket")
        inside = kernel.channel(lambda message: message.reply(0, b"from the daemon"))
        async with open_process(server.path) as process:
            assert process.node == "here"
            connection = process.connect(0, inside.pid, inside.chid)
            assert (await send(connection, (b"",), 100)).data == b"from the daemon"
            async with trio.open_nursery() as nursery:
                with ReceiveChannel(process.kernel) as channel:

                    async def serve() -> None:
                        async for item in channel:
                            if isinstance(item, Message):
                                item.reply(0, b"from the program")

                    nursery.start_soon(serve)
                    back = connect(kernel, channel.channel)
                    assert (await send(back, (b"",), 100)).data == b"from the program"
                    back.close()
        server.close()


@pytest.mark.host
async def test_not_a_daemon(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.listen()

        def pretend() -> None:
            accepted, _ = sock.accept()
            accepted.send(b"\0\0\0\5hello")
            accepted.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, pretend)
            with pytest.raises(ResmgrError) as raised:
                async with open_process(tmp_path / "socket"):
                    pass
            assert raised.value.errno == errno.EPROTO
    with pytest.raises(FileNotFoundError):
        async with open_process(tmp_path / "nothing"):
            pass


async def test_a_reply_whose_descriptors_find_no_room_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_dispatch() as dispatch:
        kernel = Kernel(dispatch, "here")
        connection = connect(kernel, kernel.channel(lambda message: message.reply(0, b"x", descriptors=(0, 1, 2))))
        real = os.dup
        made: list[int] = []

        def dup(fd: int) -> int:
            if len(made) == 2:
                raise OSError(errno.EMFILE, "no room")
            made.append(real(fd))
            return made[-1]

        monkeypatch.setattr(os, "dup", dup)
        with trio.fail_after(5), pytest.raises(ResmgrError) as raised:
            await send(connection, (b"",), 10)
        monkeypatch.undo()
        assert raised.value.errno == errno.EMFILE
        for fd in made:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
