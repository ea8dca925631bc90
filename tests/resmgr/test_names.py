"""Names: attached by programs and by the node, found by walking, gone with their process; and the walk itself."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from resmgr import iomsg, walk
from resmgr.aio import Process, open_process, send
from resmgr.channel import CHID_NAMES, CHID_PATHMGR, ND_LOCAL, PID_SYSTEM, Credentials, Kernel, Message, Nd, Pulse, Remote
from resmgr.client import Client
from resmgr.errors import ResmgrError
from resmgr.iofunc.node import Directory, Elsewhere, TreeManager
from resmgr.iomsg import Target
from resmgr.names import protocol
from resmgr.names.aio import name_attach as name_attach_trio
from resmgr.names.aio import name_events as name_events_trio
from resmgr.names.aio import name_open as name_open_trio
from resmgr.names.client import name_attach, name_events, name_open
from resmgr.names.manager import EVERYBODY, GLOBAL_PER_USER, NAMES_PER_CONNECTION, NAMES_PER_USER, NameDirectory
from resmgr.names.reserved import ReservedName
from resmgr.pathmgr import PathManager
from resmgr.peer import Peer
from resmgr.runner import open_dispatch
from resmgr.server import Message as ServerMessage
from resmgr.testing.ioclient import IoClient
from resmgr.testing.memory import MemoryLink
from resmgr.testing.virtual import VirtualDispatch
from resmgr.transport.unix import UnixServer

T = TypeVar("T")
USER = Credentials(1000, 1000, (), 77)


class Machine:
    """A node's kernel with a path manager and names."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.paths = PathManager(kernel)
        self.names = NameDirectory(kernel)
        self.paths.attach(protocol.PREFIX, self.names.target)
        self.paths.attach(protocol.PREFIX_GLOBAL, self.names.globals.directory.target)


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[tuple[Machine, str]]:
    async with open_dispatch() as dispatch:
        machine = Machine(Kernel(dispatch, "here"))
        server = UnixServer(dispatch, machine.kernel, path / "socket")
        try:
            yield machine, server.path
        finally:
            server.close()


async def in_thread(work: Callable[[], T]) -> T:
    with trio.fail_after(20):
        return await trio.to_thread.run_sync(work)


@pytest.mark.host
async def test_a_name_goes_with_its_channel_though_the_program_stays(tmp_path: Path) -> None:
    async with running(tmp_path) as (machine, path):

        def gone(count: int) -> Callable[[], bool]:
            return lambda: len(list(machine.names.records())) == count

        def blocking() -> None:
            with Client(path) as client:
                attached = name_attach(client, "clock")
                assert len(list(machine.names.records())) == 1
                attached.channel.close()
                assert name_open_fails(client)

        def name_open_fails(client: Client) -> bool:
            with pytest.raises(ResmgrError) as raised:
                name_open(client, "clock")
            return raised.value.errno == errno.ENOENT

        await in_thread(blocking)
        async with open_process(path) as process:
            kernel, who = process.kernel, process.credentials
            pulses: list[Pulse] = []
            channel = kernel.channel(lambda message: message.reply(), on_pulse=pulses.append)
            for name in ("greeter", "host"):
                await name_attach_trio(kernel, who, name, channel.chid)
            assert gone(2)()
            channel.destroy()
            with trio.fail_after(5):
                while not gone(0)():  # noqa: ASYNC110  # there is no event for what a daemon does
                    await trio.sleep(0.001)
            assert pulses == []


@pytest.mark.host
async def test_a_program_s_own_error_is_not_hidden_by_the_end_of_the_daemon(tmp_path: Path) -> None:
    attached, ended = threading.Event(), threading.Event()

    def serve(path: str) -> None:
        with Client(path) as client:
            server = name_attach(client, "clock")
            attached.set()
            ended.wait(10)
            with pytest.raises(ValueError, match="its own"), server:
                raise ValueError("its own")
            server.close()

    async with trio.open_nursery() as nursery:
        async with running(tmp_path) as (_, path):
            nursery.start_soon(in_thread, lambda: serve(path))
            await trio.to_thread.run_sync(attached.wait)
        ended.set()


@pytest.mark.host
async def test_who_opens_a_name_may_say_whose_it_has_to_be(tmp_path: Path) -> None:
    me = os.geteuid()

    def blocking(path: str) -> None:
        with Client(path) as client, name_attach(client, "clock"):
            name_open(client, "clock", owner=me).close()
            with pytest.raises(ResmgrError, match=f"the name is user {me}'s, not user 77's") as raised:
                name_open(client, "clock", owner=77, wait=5.0)
            assert raised.value.errno == errno.EACCES

    async with running(tmp_path) as (machine, path):
        await in_thread(lambda: blocking(path))
        channel = machine.kernel.channel(lambda message: message.reply())
        assert machine.names.attach(b"own", channel) == 0
        (await name_open_trio(machine.kernel, USER, "own", owner=0)).close()
        with pytest.raises(ResmgrError) as raised:
            await name_open_trio(machine.kernel, USER, "own", owner=77, wait=True)
        assert raised.value.errno == errno.EACCES


@pytest.mark.host
async def test_a_program_is_found_by_another(tmp_path: Path) -> None:
    async with running(tmp_path) as (machine, path):

        def serve() -> None:
            with Client(path) as client, name_attach(client, "clock") as server:
                with pytest.raises(ResmgrError) as raised:
                    name_attach(client, "clock")
                assert raised.value.errno == errno.EEXIST
                message = server.channel.receive(timeout=10)
                assert isinstance(message, ServerMessage)
                message.reply(0, b"noon")

        def ask() -> None:
            with Client(path) as client:
                connection = name_open(client, "clock")
                assert connection.send(b"time?", reply_len=10, timeout=10).data == b"noon"
                with pytest.raises(ResmgrError) as raised:
                    name_open(client, "no such")
                assert raised.value.errno == errno.ENOENT

        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, serve)
            while b"clock" not in machine.names.names():  # noqa: ASYNC110  # attached by the thread
                await trio.sleep(0.001)
            await in_thread(ask)
        assert list(machine.names.names()) == []


@pytest.mark.host
async def test_a_name_goes_with_its_process(tmp_path: Path) -> None:
    async with running(tmp_path) as (machine, path):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            attached = name_attach(Client(path), "doomed")
            os.write(writer, b"%d" % attached.channel.chid)
            attached.channel.receive()
            os._exit(0)
        os.close(writer)
        await in_thread(lambda: os.read(reader, 10))
        os.close(reader)
        async with open_process(path) as process:
            connection = await name_open_trio(process.kernel, process.credentials, "doomed")
            assert connection.pid == pid
            os.kill(pid, 9)
            await in_thread(lambda: os.waitpid(pid, 0))
            while list(machine.names.names()):  # noqa: ASYNC110  # the daemon's business
                await trio.sleep(0.001)
            with pytest.raises(ResmgrError) as raised:
                await send(connection, (b"x",))
            assert raised.value.errno == errno.EBADF


@pytest.mark.host
async def test_on_trio(tmp_path: Path) -> None:
    async with running(tmp_path) as (machine, path), open_process(path) as process:
        channel = process.kernel.channel(lambda message: message.reply(0, b"hello"))
        name = await name_attach_trio(process.kernel, process.credentials, "greeter", channel.chid)
        for kernel in (machine.kernel, process.kernel):
            connection = await name_open_trio(kernel, USER, "greeter")
            assert (await send(connection, (b"",), 10)).data == b"hello"
        name.close()
        with pytest.raises(ResmgrError):
            await name_open_trio(process.kernel, USER, "greeter")


def call(kernel: Kernel, body: bytes, credentials: Credentials = USER) -> int:
    results: list[int] = []
    connection = kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_NAMES, credentials)
    connection.submit((body,), 0, lambda status, reply: results.append(status))
    return results[0]


def test_the_names_messages() -> None:
    machine = Machine(Kernel(VirtualDispatch(0), "here"))
    attach = protocol.REQUEST.pack(protocol.ATTACH, 0, 20)
    assert call(machine.kernel, attach + b"good") == 0
    assert call(machine.kernel, attach + b"good") == -errno.EEXIST
    for bad in (b"", b".", b"..", b"a/b", b"a\0b", b"x" * 256):
        assert call(machine.kernel, attach + bad) == -errno.EINVAL
    for length in range(len(attach)):
        assert call(machine.kernel, attach[:length]) == -errno.EINVAL
    assert call(machine.kernel, protocol.REQUEST.pack(9, 0, 20) + b"x") == -errno.ENOSYS
    # Only the connection that attached a name takes it back.
    assert call(machine.kernel, protocol.REQUEST.pack(protocol.DETACH, 0, 0) + b"good") == -errno.ENOENT
    channel = machine.kernel.channel(lambda message: message.reply())
    assert machine.names.attach(b"own", channel) == 0
    assert machine.names.attach(b"own", channel) == errno.EEXIST
    assert sorted(machine.names.names()) == [b"good", b"own"]
    assert machine.names.detach(b"own") == 0
    assert machine.names.detach(b"own") == errno.ENOENT


def test_names_of_one_connection_are_capped() -> None:
    machine = Machine(Kernel(VirtualDispatch(0), "here"))
    connection = machine.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_NAMES, USER)
    results: list[int] = []
    for number in range(NAMES_PER_CONNECTION + 1):
        body = protocol.REQUEST.pack(protocol.ATTACH, 0, 20) + b"n%d" % number
        connection.submit((body,), 0, lambda status, reply: results.append(status))
    assert results == [0] * NAMES_PER_CONNECTION + [-errno.EAGAIN]
    connection.close()
    assert list(machine.names.names()) == []


def test_who_may_attach_global_names() -> None:
    machine = Machine(Kernel(VirtualDispatch(0), "here"))
    attach = protocol.REQUEST.pack(protocol.ATTACH_GLOBAL, 0, 20) + b"clock"
    assert call(machine.kernel, attach) == -errno.EPERM
    machine.names.announcers = frozenset({1000})
    assert call(machine.kernel, attach) == 0
    assert call(machine.kernel, attach) == -errno.EEXIST, "this channel has it"
    assert call(machine.kernel, protocol.REQUEST.pack(protocol.ATTACH_GLOBAL, 0, 21) + b"clock") == 0, "another may have it, too"
    machine.names.announcers = EVERYBODY
    assert call(machine.kernel, attach, Credentials(5, 5, (), 78)) == 0
    assert call(machine.kernel, protocol.REQUEST.pack(protocol.DETACH_GLOBAL, 0, 20) + b"clock") == -errno.ENOENT, "another connection"


def test_reserved_names_are_for_their_users() -> None:
    machine = Machine(Kernel(VirtualDispatch(0), "here"))
    machine.names.announcers = EVERYBODY
    machine.names.reserved = (
        ReservedName("clock*", frozenset({1000})),
        ReservedName("clock.*", frozenset({2000})),
        ReservedName("root?", frozenset()),
    )

    def attach(name: bytes, uid: int, operation: int = protocol.ATTACH) -> int:
        return call(machine.kernel, protocol.REQUEST.pack(operation, 0, 20) + name, Credentials(uid, uid, (), 78))

    assert [attach(b"clock", uid) for uid in (5, 2000, 1000)] == [-errno.EPERM, -errno.EPERM, 0]
    assert [attach(b"clock.utc", uid) for uid in (5, 2000)] == [-errno.EPERM, 0], "any rule that names the user is enough"
    assert [attach(b"root1", uid) for uid in (1000, 0)] == [-errno.EPERM, 0]
    assert attach(b"cloc", 5) == 0
    assert attach(b"roots", 5, protocol.ATTACH_GLOBAL) == -errno.EPERM


def test_a_name_with_a_lease_goes_when_nobody_renews_it() -> None:
    machine = Machine(Kernel(VirtualDispatch(0), "here"))
    machine.names.announcers = EVERYBODY
    clock = machine.kernel.dispatch
    assert isinstance(clock, VirtualDispatch)
    connection = machine.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_NAMES, USER)

    def ask(operation: int, lease: int = 0, name: bytes = b"") -> int:
        results: list[int] = []
        connection.submit((protocol.REQUEST.pack(operation, lease, 20) + name,), 0, lambda status, reply: results.append(status))
        return results[0]

    assert ask(protocol.ATTACH_GLOBAL, 0, b"kept") == 0
    assert ask(protocol.RENEW) == -errno.ENOENT
    assert ask(protocol.ATTACH, 5, b"leased") == 0
    clock.run_for(4.9)
    assert ask(protocol.RENEW) == 0
    clock.run_for(4.9)
    assert list(machine.names.names()) == [b"leased"]
    clock.run_for(0.2)
    assert list(machine.names.records()) == [], "all of that connection"
    assert machine.names.expired == 1
    assert ask(protocol.RENEW) == -errno.ENOENT
    assert ask(protocol.ATTACH, 5, b"leased") == 0
    assert ask(protocol.DETACH, 0, b"leased") == 0
    clock.run_for(10)
    assert machine.names.expired == 1


def test_local_and_global_names_of_one_connection_share_its_cap() -> None:
    machine = Machine(Kernel(VirtualDispatch(0), "here"))
    machine.names.announcers = EVERYBODY
    connection = machine.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_NAMES, USER)
    results: list[int] = []
    for number in range(NAMES_PER_CONNECTION + 1):
        body = protocol.REQUEST.pack(protocol.ATTACH + 2 * (number % 2), 0, 20) + b"n%d" % number
        connection.submit((body,), 0, lambda status, reply: results.append(status))
    assert results == [0] * NAMES_PER_CONNECTION + [-errno.EAGAIN]
    connection.close()
    assert list(machine.names.records()) == []


def test_names_of_one_user_are_capped() -> None:
    machine = Machine(Kernel(VirtualDispatch(0), "here"))
    machine.names.announcers = EVERYBODY
    for operation, cap in ((protocol.ATTACH, NAMES_PER_USER), (protocol.ATTACH_GLOBAL, GLOBAL_PER_USER)):
        connections = []
        results: list[int] = []
        for number in range(cap + 1):
            if number % NAMES_PER_CONNECTION == 0:
                connections.append(machine.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_NAMES, USER))
            body = protocol.REQUEST.pack(operation, 0, 20) + b"n%d" % number
            connections[-1].submit((body,), 0, lambda status, reply: results.append(status))  # noqa: B023  # called at once
        assert results == [0] * cap + [-errno.EAGAIN]
        body = protocol.REQUEST.pack(operation, 0, 20) + b"other's"
        assert call(machine.kernel, body, Credentials(5, 5, (), 78)) == 0
        connections[0].close()
        assert call(machine.kernel, protocol.REQUEST.pack(operation, 0, 20) + b"n0") == 0


def test_names_of_a_channel_of_the_node_end_with_it() -> None:
    machine = Machine(Kernel(VirtualDispatch(0), "here"))
    pulses: list[Pulse] = []
    first, second = (machine.kernel.channel(lambda message: message.reply(), on_pulse=pulses.append) for _ in range(2))
    for channel, names in ((first, (b"a", b"b")), (second, (b"c",))):
        for name in names:
            assert machine.names.attach(name, channel) == machine.names.attach_global(name, channel) == 0
    assert machine.names.detach(b"b") == machine.names.detach_global(b"b") == 0
    assert pulses == [], "its server hears nothing of that"
    first.destroy()
    assert {record.name for record in machine.names.records()} == {b"c"}
    assert machine.names.attach(b"a", second) == 0
    second.destroy()
    assert list(machine.names.records()) == []


def test_global_names_are_listed_and_opened() -> None:
    machine = Machine(Kernel(VirtualDispatch(0), "here"))
    machine.names.announcers = EVERYBODY
    assert call(machine.kernel, protocol.REQUEST.pack(protocol.ATTACH_GLOBAL, 0, 20) + b"x") == 0
    client = IoClient(machine.kernel, USER)
    assert [entry.name for entry in client.list(b"dev/name")] == [b"global", b"local"]
    assert [entry.name for entry in client.list(b"dev/name/global")] == [b"x"]
    for path in (b"x", b"x@here", b"x~roundrobin", b"x~leastload"):
        entry = client.lookup(b"dev/name/global/" + path)
        assert entry.target == Target(0, USER.pid, 20)
    for path, code in ((b"y", errno.ENOENT), (b"x@there", errno.ENOENT), (b"x~best", errno.EINVAL)):
        with pytest.raises(OSError) as raised:
            client.lookup(b"dev/name/global/" + path)
        assert raised.value.errno == code
    facts = machine.names.facts()
    assert (facts["node"], facts["global"], facts["generation"]) == ("here", 1, 1)


@pytest.mark.host
async def test_programs_wait_for_names_and_hear_of_them(tmp_path: Path) -> None:
    async with running(tmp_path) as (machine, path):
        machine.names.announcers = EVERYBODY
        opened = threading.Event()

        def ask() -> list[str]:
            with Client(path) as client:
                with pytest.raises(ResmgrError) as raised:
                    name_open(client, "later", scope="global", wait=0.05)
                assert raised.value.errno == errno.ENOENT
                with name_events(client, "lat*") as events:
                    heard = [event.kind.name for event in events.read()]
                    assert events.read(0) == []
                    connection = name_open(client, "later", scope="global", wait=10)
                    assert connection.send(b"", reply_len=10, timeout=10).data == b"here"
                    while len(heard) < 3:
                        heard += [f"{event.kind.name} {event.name}" for event in events.read(10)]
                return heard

        def serve() -> None:
            with Client(path) as client, name_attach(client, "later", scope="global", lease=60) as server:
                server.renew()
                message = server.channel.receive(timeout=10)
                assert isinstance(message, ServerMessage)
                message.reply(0, b"here")
                assert opened.wait(10)

        async def hear(process: Process, heard: list[str]) -> None:
            with name_events_trio(process.kernel, process.credentials, scope="both") as events:
                async for event in events:
                    heard.append(f"{event.kind.name} {event.name}")
                    if len(heard) == 3:
                        return

        found: list[list[str]] = []

        async def run_ask() -> None:
            found.append(await in_thread(ask))

        heard: list[str] = []
        async with open_process(path) as process, trio.open_nursery() as nursery:
            nursery.start_soon(hear, process, heard)
            nursery.start_soon(run_ask)
            while len(machine.names.watches) < 3:  # noqa: ASYNC110  # the thread and the task
                await trio.sleep(0.001)
            nursery.start_soon(in_thread, serve)
            with trio.fail_after(10):
                connection = await name_open_trio(process.kernel, process.credentials, "later", scope="global", wait=True)
            connection.close()
            opened.set()
        assert found == [["CURRENT", "APPEARED later", "WITHDRAWN later"]]
        assert heard == ["CURRENT ", "APPEARED later", "WITHDRAWN later"]
        while len(machine.names.watches):  # noqa: ASYNC110  # the daemon's business
            await trio.sleep(0.001)


def test_names_are_listed_and_have_attributes() -> None:
    machine = Machine(Kernel(VirtualDispatch(0), "here"))
    assert call(machine.kernel, protocol.REQUEST.pack(protocol.ATTACH, 0, 20) + b"x") == 0
    client = IoClient(machine.kernel, USER)
    assert [entry.name for entry in client.list(b"dev/name/local")] == [b"x"]
    entry = client.lookup(b"dev/name/local/x")
    assert entry.target == Target(0, USER.pid, 20)
    assert entry.attr is not None
    assert (entry.attr.mode, entry.attr.uid) == (0o140666, 1000)


# ---- walking


class Pair:
    """Two nodes on a link in memory, each with a path manager; `/net/b` on the first leads to the second."""

    def __init__(self) -> None:
        self.clock = VirtualDispatch(0)
        self.a = Machine(Kernel(self.clock, "a"))
        self.b = Machine(Kernel(self.clock.node("b"), "b"))
        link = MemoryLink(self.a.kernel.dispatch, self.b.kernel.dispatch, self.clock.random("link"))
        link.left.peer = Peer(self.a.kernel, link.left, nd=Nd(7), node="b")
        link.right.peer = Peer(self.b.kernel, link.right, nd=Nd(3), node="a")
        self.a.kernel.network = _To(link.left.peer)
        net = Directory({b"b": Elsewhere(Target(7, PID_SYSTEM, CHID_PATHMGR))})
        self.a.paths.attach(b"net", TreeManager(self.a.kernel, net, name="net", remote=False).target)

    def walk(self, path: bytes) -> walk.Found:
        steps = walk.walk(path)
        question = next(steps)
        while True:
            nd, pid, chid = question.address
            connection = self.a.kernel.connect(Nd(nd), pid, chid, USER)
            answers: list[tuple[int, bytes]] = []
            connection.submit((question.message,), question.reply_len, lambda status, reply: answers.append((status, bytes(reply))))  # noqa: B023
            self.clock.run_for(1)
            connection.close()
            try:
                question = steps.send(answers[0])
            except StopIteration as end:
                found: walk.Found = end.value
                return found


class _To:
    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def remote(self, nd: Nd) -> Remote | int:
        return self._peer


def test_a_name_of_another_node() -> None:
    pair = Pair()
    channel = pair.b.kernel.channel(lambda message: message.reply(0, message.info.node.encode()))
    assert pair.b.names.attach(b"far", channel) == 0
    found = pair.walk(protocol.name_path("far", "b"))
    assert found.address == (7, PID_SYSTEM, channel.chid)
    connection = pair.a.kernel.connect(Nd(found.address[0]), found.address[1], found.address[2], USER)
    replies: list[bytes] = []
    connection.submit((b"",), 10, lambda status, reply: replies.append(bytes(reply)))
    pair.clock.run_for(1)
    assert replies == [b"a"]
    with pytest.raises(ResmgrError) as raised:
        pair.walk(b"/net/b/dev/name/local/none")
    assert raised.value.errno == errno.ENOENT


def test_a_name_on_another_node_that_is_held_by_a_process_there() -> None:
    pair = Pair()
    assert call(pair.b.kernel, protocol.REQUEST.pack(protocol.ATTACH, 0, 20) + b"program") == 0
    assert pair.walk(b"/net/b/dev/name/local/program").address == (7, USER.pid, 20)


def test_walks_that_go_wrong() -> None:
    def redirect(target: Target) -> tuple[int, bytes]:
        return 1, iomsg.Entry(target, 0, 0, None, rest=b"more").pack()

    steps = walk.walk(b"/x")
    next(steps)
    for _ in range(walk.HOPS_MAX - 1):
        steps.send(redirect(Target(0, 1, 1)))
    with pytest.raises(ResmgrError) as raised:
        steps.send(redirect(Target(0, 1, 1)))
    assert raised.value.errno == errno.ELOOP

    steps = walk.walk(b"/x")
    next(steps)
    assert steps.send(redirect(Target(5, 1, 9))).address == (5, 1, 9)
    with pytest.raises(ResmgrError) as raised:
        steps.send(redirect(Target(6, 1, 1)))
    assert raised.value.errno == errno.EREMOTE, "only a path manager is asked by the whole name"

    def onward(answer: tuple[int, bytes]) -> walk.Question:
        """What comes after the path manager of node 5 has said that the name is a third node's, and home has given *answer*."""
        steps = walk.walk(b"/x")
        next(steps)
        assert steps.send(redirect(Target(5, 1, 1))).address == (5, 1, 1)
        home = steps.send(redirect(Target(6, 1, 1)))
        assert (home.address, home.message[16:]) == ((0, 1, 1), b"more"), "the same name, at home"
        return steps.send(answer)

    assert onward(redirect(Target(8, 1, 1))).address == (8, 1, 1)
    there = iomsg.Entry(Target(0, 1, 3), 1, 0, iomsg.Attr(*range(13))).pack()
    for answer, code in (
        ((0, there), errno.EREMOTE),
        (redirect(Target(5, 1, 1)), errno.ELOOP),
        (redirect(Target(0, 1, 1)), errno.ELOOP),
        ((-errno.EHOSTDOWN, b""), errno.EHOSTDOWN),
    ):
        with pytest.raises(ResmgrError) as raised:
            onward(answer)
        assert raised.value.errno == code

    steps = walk.walk(b"/x")
    next(steps)
    with pytest.raises(ResmgrError) as raised:
        steps.send((0, b"short"))
    assert raised.value.errno == errno.EBADMSG

    with pytest.raises(ResmgrError) as raised:
        next(walk.walk(b"/" + b"x/" * 5000))
    assert raised.value.errno == errno.ENAMETOOLONG


def test_remote_clients_attach_no_names() -> None:
    pair = Pair()
    results: list[int] = []
    connection = pair.a.kernel.connect(Nd(7), PID_SYSTEM, CHID_NAMES, USER)
    connection.submit((protocol.REQUEST.pack(protocol.ATTACH, 0, 20) + b"evil",), 0, lambda status, reply: results.append(status))
    pair.clock.run_for(1)
    assert results == [-errno.EBADF]
    message_type: type[Message] = Message
    assert message_type is Message
