"""Where a row of docs/reference/message-passing.md is run: a client, a server, and what is between them in one of the settings.

    kernel    both in one kernel
    socket    two programs on one node, a daemon between them, over real local sockets
    direct    the same with a direct link between them
    blocking  the same with programs that have no Trio (blocking.py)
    clean     two programs on two simulated nodes, in virtual time, over a good cable
    lossy     the same over a cable that loses, repeats, reorders and spoils frames

Every send of a row goes through `Rig.send`, so that whoever runs it can say that each ended exactly once.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from qnetpy.testing.node import SimNode
from qnetpy.testing.world import World
from resmgr.aio import Process, ReceiveChannel, Reply, open_process, send
from resmgr.channel import ND_LOCAL, Channel, Connection, Credentials, Kernel, Message, Nd, Pending
from resmgr.dispatch import Buffer
from resmgr.errors import ResmgrError
from resmgr.peer import Peer
from resmgr.runner import open_dispatch
from resmgr.serving import Limits
from resmgr.testing.memory import MemoryLink
from resmgr.testing.virtual import VirtualDispatch
from resmgr.transport.unix import UnixServer

SETTINGS = ("kernel", "socket", "direct", "blocking", "clean", "lossy")
COLUMNS = {
    "kernel": "one process",
    "socket": "one node",
    "direct": "one node",
    "blocking": "one node",
    "clean": "away",
    "lossy": "away",
}
LOSS = "drop=5%,dup=5%,reorder=10%,corrupt=1%"
ME = Credentials(os.geteuid(), os.getegid(), tuple(os.getgroups()), os.getpid())
ROOT = Credentials(0, 0, (), 700)
CONNECTIONS_MAX = 40
PENDING_MAX = 32
STEP = 0.02


class TooLate(Exception):
    """What a row waits for does not come."""


def name_of(status: int) -> str:
    """A status as the page writes it."""
    return f"status {status}" if status >= 0 else errno.errorcode[-status]


@attrs.define(eq=False)
class Sent:
    """A send of a row."""

    connection: Connection
    statuses: list[int] = attrs.field(factory=list)
    reply: bytes = b""
    pending: Pending | None = None

    @property
    def ended(self) -> bool:
        return bool(self.statuses)

    @property
    def result(self) -> str:
        """How it ended, as the page writes it."""
        assert len(self.statuses) == 1, f"a send ended {len(self.statuses)} times"
        return name_of(self.statuses[0])

    def unblock(self) -> None:
        if self.pending is not None:
            self.pending.unblock()


class Rig:
    """See the head of this file. `client` and `server` are the kernels of the two programs."""

    def __init__(self, setting: str) -> None:
        self.setting = setting
        self.sent: list[Sent] = []
        self.channels: list[Channel] = []
        self.nd = self.nd_back = ND_LOCAL
        self.credentials = ME
        self.client: Kernel
        self.server: Kernel

    @property
    def away(self) -> bool:
        return self.setting in ("clean", "lossy")

    @property
    def client_is_dead(self) -> bool:
        """The client lost power: it sees no end of its sends."""
        return False

    # What rows do

    def channel(self, handler: Callable[[Message], None], **options: Any) -> Channel:  # passed through to Kernel.channel
        channel = self.server.channel(handler, **options)
        self.channels.append(channel)
        return channel

    def connect(self, channel: Channel) -> Connection:
        return self.to(channel.pid, channel.chid)

    def to(self, pid: int, chid: int, nd: Nd | None = None) -> Connection:
        return self.client.connect(self.nd if nd is None else nd, pid, chid, self.credentials)

    def send(self, connection: Connection, *parts: Buffer, reply_len: int = 64, priority: int | None = None) -> Sent:
        sent = Sent(connection)
        self.sent.append(sent)

        def done(status: int, reply: Buffer) -> None:
            # In another thread, if programs are threads: who sees that it has ended sees the reply.
            sent.reply = bytes(reply)
            sent.statuses.append(status)

        sent.pending = connection.submit(parts or (b"",), reply_len, done, priority)
        return sent

    async def call(self, connection: Connection, *parts: Buffer, reply_len: int = 64, priority: int | None = None) -> Sent:
        """A send and its end."""
        sent = self.send(connection, *parts, reply_len=reply_len, priority=priority)
        await self.until(lambda: sent.ended)
        return sent

    async def until(self, goal: Callable[[], bool], limit: float = 30.0) -> None:
        raise NotImplementedError

    async def quiet(self) -> None:
        """Until what is under way has arrived."""
        raise NotImplementedError

    async def stop(self) -> None:
        """The end of the setting."""

    # What tasks do in them

    @contextmanager
    def receiving(self) -> Iterator[ReceiveChannel]:
        """A channel of the server whose messages it receives one after the other."""
        with ReceiveChannel(self.server) as channel:
            yield channel

    async def send_as_server(self, connection: Connection) -> None:
        """The server sends, while it works for whom it received from last."""
        await send(connection, (b"",), 0)

    async def awaited(self, connection: Connection, seconds: float | None) -> str:
        """A send that the client waits for: with a deadline in *seconds*; None: with one that gives up when the server has its message."""
        ends: list[str] = []
        scope = trio.CancelScope()
        deadline = None if seconds is None else self.now() + seconds

        async def client() -> None:
            with scope:
                try:
                    reply: Reply = await send(connection, (b"x",), 10, deadline=deadline)
                    ends.append(name_of(reply.status))
                except ResmgrError as error:
                    ends.append(name_of(-(error.errno or 0)))
            if scope.cancelled_caught:
                ends.append("cancelled")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            await self.quiet()
            if seconds is None:
                scope.cancel()
            await self.until(lambda: bool(ends))
        return ends[0]

    def now(self) -> float:
        return self.client.dispatch.now()

    # What happens to it

    async def kill_server(self) -> None:
        """The server's process dies."""
        raise NotImplementedError

    async def kill_client(self) -> None:
        """The client's process dies."""
        raise NotImplementedError

    async def end_daemon(self) -> None:
        """The daemon between two programs of one node ends."""
        raise NotImplementedError


class OneKernel(Rig):
    def __init__(self) -> None:
        super().__init__("kernel")
        self.clock = VirtualDispatch(1)
        self.client = self.server = Kernel(self.clock, "a")

    async def until(self, goal: Callable[[], bool], limit: float = 30.0) -> None:
        last = self.clock.time + limit
        while not goal():
            if self.clock.time > last:
                raise TooLate
            self.clock.run_for(STEP)
            await trio.lowlevel.checkpoint()

    async def quiet(self) -> None:
        for _ in range(5):
            self.clock.run_for(STEP)
            await trio.lowlevel.checkpoint()


class LocalSockets(Rig):
    def __init__(self, setting: str, daemon: UnixServer, client: Process, server: Process) -> None:
        super().__init__(setting)
        self.daemon = daemon
        self.client_process, self.server_process = client, server
        self.client, self.server = client.kernel, server.kernel
        self._echoes = [kernel.channel(lambda message: message.reply()) for kernel in (self.client, self.server)]

    async def until(self, goal: Callable[[], bool], limit: float = 30.0) -> None:
        with trio.move_on_after(limit):
            while not goal():  # noqa: ASYNC110  # there is no event for what a daemon does
                await trio.sleep(0.0005)
            return
        raise TooLate

    async def quiet(self) -> None:
        """A socket keeps order: when a round trip is over, what was sent before it has arrived."""
        for _ in range(2):
            for kernel, channel in zip((self.server, self.client), self._echoes, strict=True):
                connection = kernel.connect(ND_LOCAL, channel.pid, channel.chid, ME)
                ended: list[int] = []
                connection.submit((b"",), 0, lambda status, reply, ended=ended: ended.append(status))  # type: ignore[misc]  # bound at once
                await self.until(lambda ended=ended: bool(ended))  # type: ignore[misc]  # as above
                connection.close()

    async def kill_server(self) -> None:
        self.server_process.close()

    async def kill_client(self) -> None:
        self.client_process.close()

    def used_direct(self) -> bool:
        """Whether a direct link was made."""
        return self.daemon.broker.made > 0

    async def end_daemon(self) -> None:
        self.daemon.close()

    def now(self) -> float:
        return time.monotonic()


class Program:
    """A program on a simulated node: a kernel of its own, and a carrier to its daemon that keeps no order between streams."""

    def __init__(self, world: World, node: SimNode, pid: int) -> None:
        self.node = node
        self.pid = pid
        self.view = world.dispatch.node(f"{node.name}/{pid}")
        self.kernel = Kernel(self.view, node.name)
        self.link = MemoryLink(node.view, self.view, world.dispatch.random(f"program {node.boot} {pid}"), delay_max=0.0001)
        limits = Limits(connections=CONNECTIONS_MAX, pending=PENDING_MAX)
        self.daemon_side = Peer(node.system.kernel, self.link.left, credentials=Credentials(0, 0, (), pid), routes=True, limits=limits)
        self.own_side = Peer(self.kernel, self.link.right, believes=True)
        self.link.left.peer, self.link.right.peer = self.daemon_side, self.own_side
        node.system.kernel.attach_process(pid, self.daemon_side)
        self.kernel.uplink = self.own_side
        self.kernel.become(pid, 16)

    def die(self) -> None:
        """The process ends; its daemon sees the end of its socket."""
        self.view.stop()
        self.link.down = True
        self.node.system.kernel.detach_process(self.pid)
        self.daemon_side.down(errno.ESRCH)


class TwoNodes(Rig):
    def __init__(self, setting: str, seed: int) -> None:
        super().__init__(setting)
        self.credentials = ROOT
        self.world = World(seed, fault=LOSS if setting == "lossy" else "", watch=False)
        self.world.join("a", "b")
        self.a, self.b = self.world.start("a"), self.world.start("b")
        assert self.world.until(self.world.settled)
        self.client_program = Program(self.world, self.a, 700)
        self.server_program = Program(self.world, self.b, 800)
        self.client, self.server = self.client_program.kernel, self.server_program.kernel
        self.nd, self.nd_back = self.a.nd("b"), self.b.nd("a")
        self.patience = 30.0

    async def until(self, goal: Callable[[], bool], limit: float = 30.0) -> None:
        last = self.world.now + min(limit, self.patience)
        while not goal():
            if self.world.now > last:
                raise TooLate
            self.world.run(STEP)
            await trio.lowlevel.checkpoint()

    async def quiet(self) -> None:
        for _ in range(5):
            self.world.run(5 * STEP)
            await trio.lowlevel.checkpoint()

    async def kill_server(self) -> None:
        self.server_program.die()

    async def kill_client(self) -> None:
        self.client_program.die()

    @property
    def client_is_dead(self) -> bool:
        return self.client_program.view.stopped

    # Of nodes only

    def crash(self, name: str) -> None:
        """Power off, with all that runs there."""
        node, program = (self.a, self.client_program) if name == "a" else (self.b, self.server_program)
        program.view.stop()
        program.link.down = True
        node.crash()

    async def restart_server(self) -> None:
        """The server's node comes back, and the server is started again."""
        self.b = self.world.start("b")
        await self.until(self.world.settled)
        self.server_program = Program(self.world, self.b, 800)
        self.server = self.server_program.kernel
        self.nd = self.a.nd("b")

    def assert_empty(self, dead: str) -> None:
        """The node that is left, and its program, hold nothing that has to do with the dead one."""
        if dead == "b":
            for peer in (self.client_program.own_side, self.client_program.daemon_side):
                counts = peer.statistics()
                assert (counts.outgoing, counts.incoming, counts.held) == (0, 0, 0)
        else:
            peer = self.server_program.daemon_side
            assert peer.statistics().connections_out <= len(self.channels_held())
        node = self.a if dead == "b" else self.b
        assert node.qnet.counters["handler_failed"] == 0

    def channels_held(self) -> list[Message]:
        """What servers hold and have not answered."""
        return [message for channel in self.channels for message in channel.held]

    def cut(self, cut: bool) -> None:
        """The cable between the nodes; nobody is told."""
        self.b.fault.cut = cut


@asynccontextmanager
async def rig(setting: str, folder: Path, seed: int = 1) -> AsyncIterator[Rig]:
    """A setting for one row."""
    if setting == "kernel":
        yield OneKernel()
    elif setting == "blocking":
        from tests.qnetpy.messages.blocking import blocking_programs

        async with blocking_programs(folder) as programs:
            yield programs
    elif setting in ("socket", "direct"):
        async with AsyncExitStack() as stack:
            dispatch = await stack.enter_async_context(open_dispatch(spin=0))
            limits = Limits(connections=CONNECTIONS_MAX, pending=PENDING_MAX)
            daemon = UnixServer(dispatch, Kernel(dispatch, "a"), folder / "socket", limits=limits)
            stack.callback(daemon.close)
            direct = setting == "direct"
            client = await stack.enter_async_context(open_process(daemon.path, spin=0, direct=direct, limits=limits))
            server = await stack.enter_async_context(open_process(daemon.path, spin=0, direct=direct, limits=limits))
            yield LocalSockets(setting, daemon, client, server)
    else:
        yield TwoNodes(setting, seed)
