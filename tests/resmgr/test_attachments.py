"""Managers in processes of their own: who may attach where, what becomes of it, who reaches it, and unions with them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from resmgr.access import Export, Grant, Policy, UserRule, Verb
from resmgr.aio import Process, open_process, send
from resmgr.attachments import ATTACHED_PER_CONNECTION, ATTACHED_PER_USER, Attachments, AttachRule
from resmgr.attachproto import ATTACH, DETACH, LIST, READ_ONLY, REQUEST, Row, pack_row, parse_rows
from resmgr.channel import CHID_PATHMGR, PID_SYSTEM, ClientInfo, Credentials, Nd
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError
from resmgr.ids import CHID_ATTACH
from resmgr.iofunc.node import Directory, Node, Setting, TreeManager, Value, local_or_nobody
from resmgr.iofunc.waiting import Later
from resmgr.iomsg import Connect, Entry, Target, parse_dirents
from resmgr.iorequest import ConnectRequest, pack_devctl, pack_read, pack_readdir, pack_write
from resmgr.manage import Managed, keep_serving, manager
from resmgr.pathspace import Attach
from resmgr.runner import open_dispatch
from resmgr.system import System
from resmgr.testing.devices import GET_ROOM, SET_ROOM, Pipe
from resmgr.testing.ioclient import IoClient, fails
from resmgr.testing.virtual import VirtualDispatch

FOREIGN = ClientInfo(Nd(5), "b", frozenset({"worker"}), Credentials(1000, 1000, (), 3), 1)


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[tuple[System, str]]:
    async with open_dispatch() as dispatch:
        system = System(dispatch, "here")
        socket = str(path / "socket")
        system.listen(socket)
        try:
            yield system, socket
        finally:
            system.close()


async def get(process: Process, path: str) -> bytes:
    """What a file says: OPEN from the path manager on, where redirects lead, then READ."""
    where, request = (0, PID_SYSTEM, CHID_PATHMGR), ConnectRequest(Connect.OPEN, os.O_RDONLY, 0, path.strip("/").encode())
    while True:
        connection = process.connect(*where)
        try:
            status, data, _ = await send(connection, (request.pack(),), 65536)
            entry = Entry.parse(data)
            where = (entry.target.nd, entry.target.pid, entry.target.chid)
            if not status:
                server = process.connect(*where)
                try:
                    return (await send(server, (pack_read(entry.ocb, 0, 1000),), 1000)).data
                finally:
                    server.close()
        finally:
            connection.close()
        request.handle, request.path = entry.handle, entry.rest or b""


def text(value: bytes) -> Value:
    return Value(lambda: value)


async def rows(process: Process) -> dict[str, Row]:
    connection = process.connect(0, PID_SYSTEM, CHID_ATTACH)
    count, data, _ = await send(connection, (REQUEST.pack(LIST, 0, 0),), 65536)
    connection.close()
    found = parse_rows(data)
    assert len(found) == count
    return {row.path.decode(): row for row in found}


async def test_a_directory_and_a_device_come_and_go(tmp_path: Path) -> None:
    async with running(tmp_path) as (system, socket), open_process(socket) as user:
        async with manager(socket, "/dev/tree", Directory({b"x": text(b"in the tree\n")})):
            async with manager(socket, ["/dev/one", "/dev/two"], text(b"one thing\n"), local=True):
                assert await get(user, "/dev/tree/x") == b"in the tree\n"
                assert await get(user, "/dev/one") == await get(user, "/dev/two") == b"one thing\n"
                listed = await rows(user)
                assert listed["/dev/tree"].pid == listed["/dev/one"].pid == os.getpid()
                assert listed["/dev/one"].flags == Attach.EXACT | Attach.LOCAL
                assert listed["/dev/tree"].uid == os.geteuid()
                assert listed["/dev/name/local"].pid == PID_SYSTEM
            with fails(errno.ENOENT):
                await get(user, "/dev/one")
        assert set(await rows(user)) == {"/dev/name/local", "/dev/name/global"}
        assert system.managers is not None
        assert system.managers.counters["reaped"] == 3


async def test_a_manager_is_back_at_the_next_daemon(tmp_path: Path) -> None:
    state = {"reads": 0}

    def read() -> bytes:
        state["reads"] += 1
        return b"%d" % state["reads"]

    ready: list[Managed] = []
    pipe = Pipe()
    device = Directory({b"count": Value(read), b"pipe": pipe})
    async with trio.open_nursery() as nursery:
        for boot in range(3):
            async with running(tmp_path) as (_, socket):
                if not boot:
                    nursery.start_soon(partial(keep_serving, socket, "/dev/kept", device, ready=ready.append))
                with trio.fail_after(10):
                    while len(ready) <= boot:  # noqa: ASYNC110  # it is seen by nothing else
                        await trio.sleep(0.002)
                async with open_process(socket) as user:
                    assert await get(user, "/dev/kept/count") == b"%d" % (boot + 1)
                ready[-1].enter(lambda: pipe.data.extend(b"x"))
        nursery.cancel_scope.cancel()
    assert pipe.data == b"xxx"


async def test_a_manager_that_never_attached_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await keep_serving(str(tmp_path / "none"), "/dev/kept", text(b""))


MANAGER = """
import sys
from resmgr.iofunc.nodes import Value
from resmgr.manage import serve
serve(sys.argv[1], "/dev/x", Value(lambda: b"here"), ready=lambda managed: print(managed.path, flush=True))
"""


@pytest.mark.host
async def test_it_goes_with_its_process_however_that_ends(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, socket), open_process(socket) as user:
        program = subprocess.Popen([sys.executable, "-c", MANAGER, socket], stdout=subprocess.PIPE)  # noqa: ASYNC220  # a start takes no time
        assert program.stdout is not None
        assert await trio.to_thread.run_sync(program.stdout.readline) == b"/dev/x\n"
        assert await get(user, "/dev/x") == b"here"
        assert (await rows(user))["/dev/x"].pid == program.pid
        program.kill()
        program.communicate()
        with trio.fail_after(5):
            while "/dev/x" in await rows(user):  # noqa: ASYNC110  # it is another program's end that is waited for
                await trio.sleep(0.002)
        with fails(errno.ENOENT):
            await get(user, "/dev/x")


async def test_a_task_that_changes_nodes_and_a_thread_that_has_news(tmp_path: Path) -> None:
    pipe = Pipe()
    async with running(tmp_path) as (_, socket), open_process(socket) as user, manager(socket, "/dev/pipe", pipe) as managed:
        assert managed.path == "/dev/pipe"
        got: list[bytes] = []

        async def read() -> None:
            got.append(await get(user, "/dev/pipe"))

        def put() -> None:
            pipe.data += b"news"
            pipe.notify()

        for tell in (managed.enter, managed.call):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                with trio.fail_after(5):
                    while pipe.waiters is None or not pipe.waiters.queue:  # noqa: ASYNC110  # another part of the program
                        await trio.sleep(0.001)
                if tell == managed.enter:
                    tell(put)
                else:
                    await trio.to_thread.run_sync(tell, put)
        assert got == [b"news", b"news"]
        assert managed.counters["parked"] == 2


class Asking(Node):
    """Each read asks an async function."""

    mode = 0o100444

    def __init__(self) -> None:
        self.managed: list[Managed] = []
        self.cancelled = 0

    def read(self, state: object | None, offset: int, size: int) -> Later[Buffer]:
        return self.managed[0].later(self.find, size)

    async def find(self, size: int) -> Buffer:
        try:
            await trio.sleep(0 if size == 1000 else 60)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.cancelled:
            raise OSError(errno.ENODATA, "no more")
        return b"found"


async def test_an_async_answer(tmp_path: Path) -> None:
    node = Asking()
    async with running(tmp_path) as (_, socket), open_process(socket) as user, manager(socket, "/dev/asking", node) as managed:
        node.managed.append(managed)
        assert await get(user, "/dev/asking") == b"found"
        where = (await rows(user))["/dev/asking"]
        connection = user.connect(0, where.pid, where.chid)
        opened = Entry.parse((await send(connection, (ConnectRequest(Connect.OPEN, os.O_RDONLY, 0, b"").pack(),), 4096)).data)
        with trio.move_on_after(0.01) as scope:
            await send(connection, (pack_read(opened.ocb, 0, 5),), 5)
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert node.cancelled == 1
        with fails(errno.ENODATA):
            await get(user, "/dev/asking")
        connection.close()


async def test_the_end_of_the_daemon_is_told(tmp_path: Path) -> None:
    async with running(tmp_path) as (system, socket), manager(socket, "/dev/x", text(b"")) as managed:
        system.close()
        with fails(errno.ENOTCONN):
            await managed.ended()


async def test_union(tmp_path: Path) -> None:
    async with running(tmp_path) as (system, socket), open_process(socket) as user:
        disk = TreeManager(system.kernel, Directory({b"d": Directory({b"a": text(b"disk a"), b"b": text(b"disk b")})}), name="disk")
        system.attach(b"", disk.channel)
        assert await get(user, "/d/a") == b"disk a"
        async with manager(socket, "/d", Directory({b"c": text(b"first c"), b"e": text(b"first e")})):
            # Over what the disk has: that is hidden.
            assert await get(user, "/d/c") == b"first c"
            with fails(errno.ENOENT):
                await get(user, "/d/a")
            # One more over it: asked first, then the older.
            async with manager(socket, "/d", Directory({b"c": text(b"newer c")})):
                assert await get(user, "/d/c") == b"newer c"
                assert await get(user, "/d/e") == b"first e"
            # And one under it.
            async with manager(socket, "/d", Directory({b"c": text(b"last c"), b"f": text(b"last f")}), flags=Attach.AFTER):
                assert await get(user, "/d/c") == b"first c"
                assert await get(user, "/d/f") == b"last f"
        # Under what the disk has.
        async with manager(socket, "/d", Directory({b"a": text(b"under a"), b"z": text(b"under z")}), flags=Attach.AFTER):
            assert await get(user, "/d/a") == b"disk a"
            assert await get(user, "/d/z") == b"under z"
            with fails(errno.ENOENT):
                await get(user, "/d/none")


async def names(process: Process, path: str) -> list[bytes]:
    """A listing: what `ls` shows, names that occur twice included."""
    connection = process.connect(0, PID_SYSTEM, CHID_PATHMGR)
    asked = ConnectRequest(Connect.OPEN, os.O_RDONLY | os.O_DIRECTORY, 0, path.strip("/").encode())
    entry = Entry.parse((await send(connection, (asked.pack(),), 65536)).data)
    assert (entry.target.pid, entry.target.chid) == (PID_SYSTEM, CHID_PATHMGR)
    found: list[bytes] = []
    cookie = 0
    while more := parse_dirents((await send(connection, (pack_readdir(entry.ocb, cookie, 4096),), 4096)).data, False):
        found += [one.name for one in more]
        cookie = more[-1].cookie
    connection.close()
    return found


async def test_a_union_of_managers_is_listed(tmp_path: Path) -> None:
    one = Directory({b"a": text(b""), b"b": text(b"b of one")})
    two = Directory({b"b": text(b"b of two"), b"c": text(b"")})
    async with running(tmp_path) as (system, socket), open_process(socket) as user:
        disk = TreeManager(system.kernel, Directory({b"d": Directory({b"c": text(b""), b"e": text(b"")})}), name="disk")
        system.attach(b"", disk.channel)
        async with manager(socket, "/d", one, flags=Attach.AFTER), manager(socket, "/d", two, flags=Attach.AFTER):
            assert await names(user, "/d") == [b"c", b"e", b"a", b"b"]
            assert await get(user, "/d/b") == b"b of one"
        async with manager(socket, "/x", one), manager(socket, "/x", two):
            assert await names(user, "/x") == [b"b", b"c", b"a"]
            assert await get(user, "/x/b") == b"b of two"
        async with manager(socket, "/y", text(b"older")), manager(socket, "/y", text(b"newer")):
            assert await get(user, "/y") == b"newer"


# ---- rules, in virtual time


class Machine:
    def __init__(self) -> None:
        self.dispatch = VirtualDispatch(1)
        self.system = System(self.dispatch, "here")
        self.managers = self.system.managers = Attachments(
            self.system.kernel, self.system.paths, self.system.accounts, lambda: self.system.policy, lambda: self.system.attach_rules
        )

    def client(self, uid: int, pid: int = 77, info: ClientInfo | None = None) -> IoClient:
        client = IoClient(self.system.kernel, Credentials(uid, uid, (), pid), target=Target(0, PID_SYSTEM, CHID_ATTACH))
        if info is not None:
            client.connection(client.root).info = info
        return client


@pytest.fixture
def machine() -> Machine:
    return Machine()


def attach(client: IoClient, path: bytes, flags: int = 0, chid: int = 20, operation: int = ATTACH) -> None:
    client.send(client.root, (REQUEST.pack(operation, flags, chid) + path,))


def test_who_may_attach(machine: Machine) -> None:
    root, nobody = machine.client(0), machine.client(65534)
    name = machine.system.accounts.user(65534)
    assert name is not None
    attach(root, b"/dev/a")
    attach(root, b"etc/motd", int(Attach.EXACT | Attach.AFTER))
    attach(nobody, b"dev/user/" + name.name.encode() + b"/a/b")
    for path in (b"/dev/b", b"/dev/user", b"dev/user/root/a", b"dev/user/" + name.name.encode(), b"tmp"):
        with fails(errno.EPERM):
            attach(nobody, path)
    machine.system.attach_rules = (AttachRule("/dev/led", frozenset({65534})), AttachRule("/srv", frozenset({1})))
    attach(nobody, b"/dev/led")
    attach(nobody, b"/dev/led/2")
    for path in (b"/dev/leds", b"/srv"):
        with fails(errno.EPERM):
            attach(nobody, path)
    for path in (b"/net", b"/net/b", b"/dev/name/local", b"/dev/name"):
        with fails(errno.EPERM):
            attach(root, path)
    for path in (b"", b"/", b"/dev/../a", b"/dev/a\0b", b"/dev/" + b"x" * 256, b"a/" * 40):
        with fails(errno.EINVAL):
            attach(root, path)
    with fails(errno.EINVAL):
        attach(root, b"/dev/c", int(Attach.TRANSIT))
    with fails(errno.EEXIST):
        attach(root, b"dev//a/")
    with fails(errno.EPERM):
        attach(machine.client(0, info=FOREIGN), b"/dev/d")
    with fails(errno.ENOSYS):
        attach(root, b"/dev/d", operation=9)
    with fails(errno.EINVAL):
        root.send(root.root, (b"\0",))
    assert machine.managers.counters["refused"] == 11


def test_caps_and_the_end_of_a_client(machine: Machine) -> None:
    root = machine.client(0)
    for number in range(ATTACHED_PER_CONNECTION):
        attach(root, b"dev/n%d" % number)
    with fails(errno.EAGAIN):
        attach(root, b"dev/more")
    attach(root, b"dev/n1", operation=DETACH)
    attach(root, b"dev/more")
    with fails(errno.ENOENT):
        attach(machine.client(0), b"dev/n2", operation=DETACH)
    root.close_all()
    assert machine.managers.counters["reaped"] == ATTACHED_PER_CONNECTION
    assert not machine.managers._by_channel
    assert not machine.managers._of_user
    assert not list(machine.managers.rows())


def test_a_user_attaches_so_much_however_many_connections_he_has(machine: Machine) -> None:
    for connection in range(ATTACHED_PER_USER // ATTACHED_PER_CONNECTION):
        client = machine.client(0)
        for number in range(ATTACHED_PER_CONNECTION):
            attach(client, b"dev/n%d/%d" % (connection, number))
    with fails(errno.EAGAIN):
        attach(machine.client(0), b"dev/more")
    assert machine.managers.counters["full"] == 1
    attach(client, b"dev/n%d/0" % connection, operation=DETACH)
    attach(machine.client(0), b"dev/more")


def test_what_clients_of_other_nodes_are_and_see(machine: Machine) -> None:
    system = machine.system
    root = machine.client(0)
    assert system.admit(FOREIGN, 77, 20) == errno.EACCES
    attach(root, b"dev/a", chid=20)
    attach(root, b"dev/b", int(Attach.LOCAL), chid=21)
    attach(root, b"srv/c", chid=22)
    accounts = system.accounts
    exports = (Export("/dev", ["read"]), Export("/srv", ["read", "write"], nodes=["b"]))
    system.set_policy(Policy(accounts, users=(UserRule("all:root"),), exports=exports, grants=(Grant(Verb.SEND.value),)))
    reading = system.admit(FOREIGN, 77, 20)
    assert isinstance(reading, ClientInfo)
    assert reading.credentials.uid == 0
    assert reading.roles == {"worker", READ_ONLY}
    writing = system.admit(FOREIGN, 77, 22)
    assert isinstance(writing, ClientInfo)
    assert writing.roles == {"worker"}
    # The verb send opens other channels, not those of managers whose path is not exported.
    assert system.admit(FOREIGN, 77, 21) == errno.EACCES
    assert system.admit(FOREIGN, 77, 99) == 0
    system.set_policy(Policy(accounts, users=(UserRule("none"),), exports=exports))
    assert system.admit(FOREIGN, 77, 20) == errno.EPERM
    far = machine.client(0, info=FOREIGN)
    _, data = far.send(far.root, (REQUEST.pack(LIST, 0, 0),))
    assert [row.path for row in parse_rows(data)] == [b"/dev/a", b"/srv/c"]
    _, data = root.send(root.root, (REQUEST.pack(LIST, 0, 1),), 40)
    assert [row.path for row in parse_rows(data)] == [b"/dev/b"]
    with fails(errno.EINVAL):
        root.send(root.root, (REQUEST.pack(LIST, 0, 0),), 5)


def test_a_client_that_may_only_read_changes_nothing(machine: Machine) -> None:
    pipe = Pipe()

    def may_change(info: ClientInfo) -> bool:
        return READ_ONLY not in info.roles

    nodes: dict[bytes, Node] = {b"p": pipe, b"s": Setting(lambda: b"x", lambda value: None, 0o666)}
    tree = TreeManager(machine.system.kernel, Directory(nodes), name="t", user=local_or_nobody, may_change=may_change)
    far = IoClient(machine.system.kernel, Credentials(0, 0), target=tree.target)
    far.connection(tree.target).info = ClientInfo(Nd(5), "b", frozenset({READ_ONLY}), Credentials(0, 0), 900)
    assert far.get(b"s") == b"x"
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        with fails(errno.EROFS):
            far.open(b"s", flags)
    ocb = far.open(b"p").ocb
    far.send(tree.target, (pack_devctl(ocb, GET_ROOM.number),))
    with fails(errno.EROFS):
        far.send(tree.target, (pack_devctl(ocb, SET_ROOM.number, bytes(4)),))
    with fails(errno.EBADF):
        far.send(tree.target, (pack_write(ocb, 0, 1), b"x"))


def test_rows() -> None:
    some = [Row(b"/dev/a", 1, 2, 3, 4, "name"), Row(b"/", 5, 6, 7, 0, "")]
    packed = b"".join(map(pack_row, some))
    assert parse_rows(packed) == some
    first = len(pack_row(some[0]))
    for length in range(1, len(packed)):
        if length != first:
            with pytest.raises(BadMessage):
                parse_rows(packed[:length])


async def test_an_attachment_that_is_refused_says_why(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, socket):
        with pytest.raises(ResmgrError, match="/net/x: this user may not attach"):
            async with manager(socket, "/net/x", text(b"")):
                pass


def test_refused_attachments_leave_nothing() -> None:
    system = System(VirtualDispatch(1), "here")
    managers = Attachments(system.kernel, system.paths, system.accounts, lambda: system.policy, lambda: ())
    got: list[int] = []

    def attach(user: int, path: bytes) -> None:
        connection = system.kernel.connect(Nd(0), PID_SYSTEM, CHID_ATTACH, Credentials(user, user, (), 99))
        connection.submit((REQUEST.pack(ATTACH, 0, 77), path), 0, lambda status, reply: got.append(status))
        connection.close()

    for number in range(100):
        attach(1000, b"not/mine")
        attach(0, b"mine/%d" % number)

    assert got == [-errno.EPERM, 0] * 100
    assert not managers._held
    managers.destroy()
