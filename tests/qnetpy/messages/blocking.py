"""The setting `blocking`: the rows between two programs without Trio (`resmgr.client`, `resmgr.server`), a daemon between them.

Each program is a thread with a `Client` of its own, as it would be a process, and the daemon is a third. Rows are written for kernels; what
is here gives them a program's `Client` in that form: a completion is called where the program waits, a handler where it has received.
Nothing is added to what the two modules do, so what a row sees is what they did.
"""

from __future__ import annotations

import select
import signal
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast
from unittest.mock import patch

import trio

from resmgr import client as client_side
from resmgr import server as server_side
from resmgr.channel import ND_LOCAL, ClientInfo, Connection, Credentials, Kernel, Pulse
from resmgr.client import Client
from resmgr.dispatch import Buffer
from resmgr.errors import ResmgrError
from resmgr.ids import PULSE_UNBLOCK
from resmgr.runner import open_dispatch
from resmgr.serving import Limits
from resmgr.transport.unix import UnixServer
from tests.qnetpy.messages.rig import CONNECTIONS_MAX, ME, PENDING_MAX, Rig, TooLate, name_of

T = TypeVar("T")
PATIENCE = 20.0


class Thread:
    """A program: a thread with a client, which does what it is told and serves its channels in between."""

    def __init__(self, path: str) -> None:
        self.client: Client
        self.channels: list[ServerChannel] = []
        self.messages: dict[int, ServerMessage] = {}
        self.failures: list[BaseException] = []
        self._orders: deque[Callable[[], None]] = deque()
        self._told, self._tell = socket.socketpair()
        self._ending = False
        self._joined = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(path,))
        self._thread.start()
        assert self._joined.wait(PATIENCE)

    def do(self, work: Callable[[], T]) -> T:
        """Let the program do this; waits for it."""
        if threading.current_thread() is self._thread:
            return work()
        done = threading.Event()
        results: list[T] = []
        errors: list[BaseException] = []

        def order() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)
            done.set()

        self._orders.append(order)
        self._tell.send(b"x")
        if not done.wait(PATIENCE):
            raise TooLate
        if errors:
            raise errors[0]
        return results[0]

    @property
    def lives(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        """The process ends."""

        def leave() -> None:
            self.client.close()
            self._ending = True

        if self.lives:
            self.do(leave)
            self._thread.join(PATIENCE)
        self._told.close()
        self._tell.close()

    @contextmanager
    def borrowed(self) -> Iterator[Client]:
        """The client, for the calling thread."""
        held, back = threading.Event(), threading.Event()

        def lend() -> None:
            held.set()
            back.wait(PATIENCE)

        self._orders.append(lend)
        self._tell.send(b"x")
        assert held.wait(PATIENCE)
        try:
            yield self.client
        finally:
            back.set()

    def _run(self, path: str) -> None:
        self.client = Client(path)
        self._joined.set()
        connected = True
        while not self._ending:
            select.select([self._told.fileno(), *([self.client.fileno()] if connected else [])], [], [])
            try:
                while connected and self.client.pump(0):
                    pass
                self._serve()
            except ResmgrError:
                connected = False  # the daemon is gone
            except BaseException as error:
                self.failures.append(error)
            while self._orders:
                self._told.recv(1)
                self._orders.popleft()()
                self._serve()
            connected = connected and not self._ending

    def _serve(self) -> None:
        """The first channel last: it says that the others have been served."""
        for channel in reversed(self.channels):
            while channel.handler is not None and channel.own.waiting:
                channel.take(channel.own.receive(0))


def _info(sender: server_side.Sender) -> Any:
    who = Credentials(sender.uid, sender.gid, sender.groups, sender.pid)
    return SimpleNamespace(nd=sender.nd, node=sender.node, roles=sender.roles, credentials=who, scoid=sender.scoid)


def _pulse(own: server_side.Pulse) -> Pulse:
    return Pulse(own.code, own.value, own.priority, cast(ClientInfo, _info(own.info)))


class ServerMessage:
    """A `resmgr.server.Message` in the form of a kernel's."""

    def __init__(self, channel: ServerChannel, own: server_side.Message) -> None:
        self.own = own
        self.info = _info(own.info)
        self.data = own.data
        self.descriptors = own.descriptors
        self._channel = channel
        self._on_unblock: Callable[[], None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    @property
    def on_unblock(self) -> Callable[[], None] | None:
        return self._on_unblock

    @on_unblock.setter
    def on_unblock(self, callback: Callable[[], None]) -> None:
        """The server is one that wants to be asked."""
        self._on_unblock = callback
        self._channel.own.unblock = True
        self._channel.program.messages[self.own.number] = self

    def reply(self, status: int = 0, *parts: Buffer, descriptors: tuple[int, ...] = ()) -> None:
        self._channel.program.do(lambda: self.own.reply(status, *parts, descriptors=descriptors))

    def error(self, code: int) -> None:
        self._channel.program.do(lambda: self.own.error(code))

    def read(self, offset: int, length: int, done: Callable[[int, Buffer], None]) -> None:
        def read() -> None:
            try:
                data = self.own.read(offset, length)
            except ResmgrError as error:
                done(-(error.errno or 0), b"")
            else:
                done(len(data), data)

        self._channel.program.do(read)

    def write(self, offset: int, data: Buffer) -> int:
        return self._channel.program.do(lambda: _status(lambda: self.own.write(offset, data)))

    def deliver_event(self, handle: int) -> int:
        return self._channel.program.do(lambda: _status(lambda: self.own.deliver_event(handle)))


def _status(call: Callable[[], int | None]) -> int:
    try:
        return call() or 0
    except ResmgrError as error:
        return -(error.errno or 0)


class ServerChannel:
    """A `resmgr.server.Channel` with a handler, as a kernel's has one."""

    def __init__(self, program: Thread, own: server_side.Channel, handler: Callable[[Any], None] | None, on_pulse: Any) -> None:
        self.program = program
        self.own = own
        self.chid = own.chid
        self.pid = own.pid
        self.handler = handler
        self._on_pulse = on_pulse

    def take(self, item: server_side.Message | server_side.Pulse | None) -> None:
        if isinstance(item, server_side.Message):
            assert self.handler is not None
            self.handler(ServerMessage(self, item))
        elif item is not None and item.code == PULSE_UNBLOCK:
            callback = self.program.messages[item.value].on_unblock
            assert callback is not None
            callback()
        elif item is not None and self._on_pulse is not None:
            self._on_pulse(_pulse(item))

    def destroy(self) -> None:
        self.program.do(self.own.close)


class ClientConnection:
    """A `resmgr.client.Connection` in the form of a kernel's."""

    def __init__(self, program: Thread, own: client_side.Connection) -> None:
        self.program = program
        self.own = own
        self.coid = own.number
        self.pid, self.chid = own.pid, own.chid
        own.on_death = self._dead
        self.on_death: Callable[[ClientConnection], None] | None = None

    @property
    def closed(self) -> bool:
        return self.own.closed

    def _dead(self, own: client_side.Connection) -> None:
        if self.on_death is not None:
            self.on_death(self)

    def submit(
        self, parts: Sequence[Buffer], reply_len: int, done: Callable[[int, Buffer], None], priority: int | None = None
    ) -> SimpleNamespace | None:
        return self._start(parts, reply_len, priority, (), lambda status, reply, descriptors: done(status, reply))

    def submit_descriptors(
        self, parts: Sequence[Buffer], descriptors: Sequence[int], reply_len: int, done: Callable[[int, Buffer, Any], None]
    ) -> SimpleNamespace | None:
        return self._start(parts, reply_len, None, descriptors, done)

    def _start(
        self,
        parts: Sequence[Buffer],
        reply_len: int,
        priority: int | None,
        descriptors: Sequence[int],
        done: Callable[[int, Buffer, Any], None],
    ) -> SimpleNamespace | None:
        def ended(send: client_side.Send) -> None:
            reply = send.result() if send.status >= 0 else client_side.Reply(send.status, b"")
            done(*reply)

        def start() -> SimpleNamespace | None:
            try:
                send = self.own.submit(*parts, reply_len=reply_len, descriptors=descriptors, done=ended, priority=priority)
            except ResmgrError as error:
                done(-(error.errno or 0), b"", ())
                return None
            return SimpleNamespace(unblock=lambda: self.program.do(send.unblock))

        return self.program.do(start)

    def pulse(self, code: int, value: int = 0, priority: int | None = None) -> int:
        return self.program.do(lambda: _status(lambda: self.own.pulse(code, value, priority)))

    def register_event(self, channel: ServerChannel, code: int, value: int = 0, priority: int | None = None, *, once: bool = False) -> int:
        return self.program.do(lambda: self.own.register_event(channel.own, code, value, priority, once=once))

    def unregister_event(self, handle: int) -> None:
        self.program.do(lambda: self.own.unregister_event(handle))

    def close(self) -> None:
        self.program.do(self.own.close)


class ProgramKernel:
    """A program in the form of a kernel."""

    def __init__(self, program: Thread) -> None:
        self.program = program

    def channel(self, handler: Callable[[Any], None] | None, *, on_pulse: Any = None, **options: Any) -> ServerChannel:
        own = self.program.do(lambda: self.program.client.channel(**options))
        channel = ServerChannel(self.program, own, handler, on_pulse)
        self.program.channels.append(channel)
        return channel

    def connect(self, nd: int, pid: int, chid: int, credentials: Credentials, *, priority: int | None = None) -> ClientConnection:
        return ClientConnection(self.program, self.program.do(lambda: self.program.client.connect(nd, pid, chid, priority=priority)))


class Received:
    """`resmgr.aio.ReceiveChannel` for such a program."""

    def __init__(self, channel: ServerChannel) -> None:
        self.channel = channel

    async def receive(self) -> Any:
        item = self.channel.program.do(lambda: self.channel.own.receive(PATIENCE))
        if item is None:
            raise TooLate
        return ServerMessage(self.channel, item) if isinstance(item, server_side.Message) else _pulse(item)


class BlockingPrograms(Rig):
    def __init__(self, daemon: UnixServer, token: trio.lowlevel.TrioToken, client: Thread, server: Thread) -> None:
        super().__init__("blocking")
        self.daemon = daemon
        self._token = token
        self.client_program, self.server_program = client, server
        self._client, self._server = ProgramKernel(client), ProgramKernel(server)
        self.client, self.server = cast(Kernel, self._client), cast(Kernel, self._server)
        self._echoes = [kernel.channel(lambda message: message.reply()) for kernel in (self._client, self._server)]

    async def until(self, goal: Callable[[], bool], limit: float = 30.0) -> None:
        with trio.move_on_after(min(limit, PATIENCE)):
            while not goal():  # there is no event for what a daemon does
                for program in (self.client_program, self.server_program):
                    if program.failures:
                        raise program.failures.pop()
                await trio.sleep(0.0005)
            return
        raise TooLate

    async def quiet(self) -> None:
        """A socket keeps order: when a round trip is over, what was sent before it has arrived."""
        kernels = [kernel for kernel in (self._server, self._client) if kernel.program.lives]
        echoes = [channel for channel in self._echoes if channel.program.lives]
        for _ in range(2):
            for kernel, channel in zip(kernels, echoes, strict=True):
                connection = kernel.connect(ND_LOCAL, channel.pid, channel.chid, ME)
                ended: list[int] = []
                connection.submit((b"",), 0, lambda status, reply, ended=ended: ended.append(status))  # type: ignore[misc]  # bound at once
                await self.until(lambda ended=ended: bool(ended))  # type: ignore[misc]  # as above
                connection.close()

    async def kill_server(self) -> None:
        await self._kill(self.server_program)

    async def kill_client(self) -> None:
        await self._kill(self.client_program)

    async def _kill(self, program: Thread) -> None:
        """Until the daemon has seen it, which hears of it from another socket than of what others do next."""
        before = self.daemon.statistics().links
        lived = program.lives
        program.end()
        if lived:
            await self.until(lambda: self.daemon.statistics().links < before)

    async def end_daemon(self) -> None:
        await trio.to_thread.run_sync(lambda: trio.from_thread.run_sync(self.daemon.close, trio_token=self._token))

    @contextmanager
    def receiving(self) -> Iterator[Any]:
        received = Received(self._server.channel(None))
        yield received
        received.channel.destroy()

    async def send_as_server(self, connection: Any) -> None:
        self.server_program.do(connection.own.send)

    async def awaited(self, connection: Connection, seconds: float | None) -> str:
        """*seconds*: of a deadline; None: Ctrl-C as soon as the server has the message."""
        own = cast(ClientConnection, connection).own
        main = threading.main_thread().ident
        assert main is not None
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
        with self.client_program.borrowed():
            try:
                if seconds is None:
                    timer.start()
                return name_of(own.send(b"x", reply_len=10, timeout=seconds).status)
            except KeyboardInterrupt:
                return "KeyboardInterrupt"
            except ResmgrError as error:
                return name_of(-(error.errno or 0))
            finally:
                timer.cancel()
                signal.signal(signal.SIGINT, before)


@asynccontextmanager
async def blocking_programs(folder: Path) -> AsyncIterator[BlockingPrograms]:
    """Two programs and their daemon, each in a thread."""
    ready = threading.Event()
    daemons: list[tuple[UnixServer, trio.lowlevel.TrioToken, trio.Event]] = []

    async def run() -> None:
        async with open_dispatch(spin=0) as dispatch:
            limits = Limits(connections=CONNECTIONS_MAX, pending=PENDING_MAX)
            daemon = UnixServer(dispatch, Kernel(dispatch, "a"), folder / "socket", limits=limits)
            enough = trio.Event()
            daemons.append((daemon, trio.lowlevel.current_trio_token(), enough))
            ready.set()
            await enough.wait()
            daemon.close()

    thread = threading.Thread(target=trio.run, args=(run,))
    thread.start()
    assert ready.wait(PATIENCE)
    daemon, token, enough = daemons[0]
    programs = [Thread(daemon.path) for _ in range(2)]
    try:
        # A direct link has the caps of its server's program, which are its own to choose no more than a daemon's are.
        with (
            patch.object(server_side, "CONNECTIONS_MAX", CONNECTIONS_MAX),
            patch.object(server_side, "PENDING_MAX", PENDING_MAX),
        ):
            yield BlockingPrograms(daemon, token, *programs)
    finally:
        for program in programs:
            program.end()
        token.run_sync_soon(enough.set)
        thread.join(PATIENCE)
        assert not thread.is_alive()
