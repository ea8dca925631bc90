"""Default handlers: a small tree of values, handles and their owners, and failures that do not kill the server."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable

import pytest

from resmgr.access import MappedUser
from resmgr.channel import ND_LOCAL, PULSE_DISCONNECT, ClientInfo, Credentials, Kernel, Message, Nd, Pulse
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, Misuse
from resmgr.iofunc.handle import Client, Handle
from resmgr.iofunc.handletable import HandleTable
from resmgr.iofunc.manager import Manager
from resmgr.iofunc.node import Directory, Elsewhere, Link, Node, Setting, TreeManager, Value
from resmgr.iofunc.permission import READ, SEARCH, WRITE, may
from resmgr.iofunc.static import Tree, tree
from resmgr.iofunc.waiting import Later
from resmgr.iomsg import REQUEST, SET_MODE, SET_SIZE, Connect, Io, Target
from resmgr.iorequest import ConnectRequest, SetAttr, pack_devctl, pack_write
from resmgr.testing.ioclient import IoClient, fails
from resmgr.testing.virtual import VirtualDispatch


@pytest.fixture
def kernel() -> Kernel:
    return Kernel(VirtualDispatch(1), "test")


def client(kernel: Kernel, target: Target, uid: int = 0) -> IoClient:
    return IoClient(kernel, Credentials(uid, uid), target=target)


def test_a_directory_of_live_statistics(kernel: Kernel) -> None:
    count = [0]

    def drops() -> bytes:
        count[0] += 1
        return b"%d\n" % count[0]

    content: dict[str, Callable[[], bytes] | Tree] = {"net": {"drops": drops}, "name": lambda: b"here\n"}
    stats = tree(kernel, content, name="stats")
    user = client(kernel, stats.target, 1000)
    assert user.names() == {b"net", b"name"}
    assert user.names(b"net") == {b"drops"}
    assert user.get(b"net/drops") == b"1\n"
    entry = user.open(b"net/drops")
    assert user.read(entry.target, entry.ocb, 0, 1) + user.read(entry.target, entry.ocb, 1, 9) == b"2\n"
    content["later"] = lambda: b"x"
    assert user.get(b"later") == b"x"
    listed = {item.name: item for item in user.list(attrs=True)}
    assert stat.S_ISDIR(listed[b"net"].mode)
    assert listed[b"name"].ino == listed[b"name"].attr.ino if listed[b"name"].attr else False
    assert user.lookup(b"name").attr == listed[b"name"].attr
    for code, path in ((errno.ENOENT, b"none"), (errno.ENOENT, b"net/none"), (errno.ENOTDIR, b"name/x"), (errno.ENOENT, b"\xff")):
        with fails(code):
            user.lookup(path)
    with fails(errno.EACCES):
        user.open(b"name", os.O_RDWR)
    for kind in (Connect.MKDIR, Connect.MKNOD):
        with fails(errno.EEXIST):
            user.name(kind, b"net")
    for kind in (Connect.MKDIR, Connect.UNLINK, Connect.RMDIR):
        with fails(errno.EROFS):
            user.name(kind, b"new")
    with fails(errno.EPERM):
        user.setattr_path(b"name", SetAttr(SET_MODE, 0o777))
    with fails(errno.EISDIR):
        user.open(b"net", os.O_WRONLY)


def test_a_one_value_device(kernel: Kernel) -> None:
    value = [b"off\n"]

    def put(text: bytes) -> None:
        if text.strip() not in (b"on", b"off"):
            raise OSError(errno.EINVAL, "on or off")
        value[0] = text

    manager = TreeManager(kernel, Directory({b"led": Setting(lambda: value[0], put)}), name="led")
    root, user = client(kernel, manager.target), client(kernel, manager.target, 1000)
    entry = root.open(b"led", os.O_WRONLY | os.O_TRUNC | os.O_CREAT)
    assert root.write(entry.target, entry.ocb, 0, b"on\n") == 3
    assert user.get(b"led") == b"on\n"
    with fails(errno.EINVAL):
        root.write(entry.target, entry.ocb, 0, b"perhaps\n")
    with fails(errno.EACCES):
        user.open(b"led", os.O_WRONLY)
    with fails(errno.EACCES):
        user.setattr_path(b"led", SetAttr(SET_SIZE))
    with fails(errno.EBADF):
        root.read(entry.target, entry.ocb, 0, 10)
    with fails(errno.EMSGSIZE):
        root.write(entry.target, entry.ocb, 0, bytes(100_000))
    with fails(errno.EBADMSG):
        root.send(entry.target, (pack_write(entry.ocb, 0, 10), b"x"))
    with fails(errno.ENOTTY):
        root.send(entry.target, (pack_devctl(entry.ocb, 5, b""),))
    with fails(errno.ENOSYS):
        root.io(entry.target, Io.SPACE, entry.ocb)


class Device(Node):
    """Counts who has it open."""

    mode = 0o020666
    opens = 0

    def open(self, user: MappedUser, flags: int) -> object | None:
        self.opens += 1
        return user

    def devctl(self, state: object | None, command: int, data: Buffer) -> tuple[int, Buffer] | Later[tuple[int, Buffer]]:
        if command == 1:
            return 7, bytes(data)[::-1]
        if command == 2:
            raise ZeroDivisionError("a bug\nin two lines")
        return super().devctl(state, command, data)

    def close(self, state: object | None) -> None:
        self.opens -= 1


def test_handles_are_reaped_and_bugs_are_eio(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    device = Device()
    manager = TreeManager(kernel, Directory({b"dev": device}), name="dev")
    one, two = client(kernel, manager.target, 1), client(kernel, manager.target, 2)
    entry, other = one.open(b"dev", os.O_RDWR), two.open(b"dev")
    assert device.opens == 2
    status, back = one.send(entry.target, (pack_devctl(entry.ocb, 1, b"abc"),))
    assert (status, bytes(back)) == (7, b"cba")
    with caplog.at_level(logging.ERROR), fails(errno.EIO):
        one.send(entry.target, (pack_devctl(entry.ocb, 2, b""),))
    assert len(caplog.records) == 1
    assert "ZeroDivisionError" in caplog.text
    assert manager.counters["failed"] == 1
    with fails(errno.EBADF):
        two.stat(entry.target, entry.ocb)
    two.close(other.target, other.ocb)
    assert device.opens == 1
    one.close_all()
    assert device.opens == 0
    three = client(kernel, manager.target)
    three.open(b"dev")
    manager.destroy()
    assert device.opens == 0


def test_links_and_names_served_elsewhere(kernel: Kernel) -> None:
    far = tree(kernel, {"etc": {"hostname": lambda: b"b\n"}}, name="far")
    net = TreeManager(kernel, Directory({b"b": Elsewhere(far.target), b"me": Link(b"b")}), name="net")
    user = client(kernel, net.target)
    assert user.get(b"b/etc/hostname") == b"b\n"
    assert user.names(b"b") == {b"etc"}
    entry = user.lookup(b"b")
    assert entry.target == far.target
    assert bytes(user.name(Connect.READLINK, b"me")) == b"b"
    with fails(errno.ELOOP):
        user.lookup(b"me/etc")
    with fails(errno.EROFS):
        user.name(Connect.UNLINK, b"b/etc/none")
    with fails(errno.EEXIST):
        user.name(Connect.MKDIR, b"b")
    with fails(errno.EXDEV):
        user.two(Connect.RENAME, b"b/etc/hostname", b"b/x")
    root = Directory()
    loop = TreeManager(kernel, root, name="loop")
    root.nodes[b"x"] = Elsewhere(loop.target)
    root.nodes[b"y"] = Elsewhere(loop.target, 0)
    assert client(kernel, loop.target).lookup(b"x/y/x/y").attr is not None
    with fails(errno.ELOOP):
        client(kernel, loop.target).lookup(b"/".join([b"x"] * 20))


def test_a_lent_handle_is_adopted_and_outlives_the_lender(kernel: Kernel) -> None:
    manager = TreeManager(kernel, Directory({b"v": Value(lambda: b"text")}), name="v")
    lender = kernel.channel(lambda message: manager.channel.handler(message), on_pulse=lambda pulse: None)
    through = Target(0, 1, lender.chid)
    user, stranger = client(kernel, through, 5), client(kernel, manager.target, 6)
    for adopt in (True, False):
        entry = user.open(b"v")
        assert entry.target == manager.target
        with fails(errno.EBADF):
            stranger.read(entry.target, entry.ocb, 0, 10)
        if adopt:
            assert user.read(entry.target, entry.ocb, 0, 10) == b"text"
        lent = user.connection(through)
        assert manager.channel.on_pulse is not None
        manager.channel.on_pulse(Pulse(PULSE_DISCONNECT, 0, 10, lent.info))
        if adopt:
            assert user.read(entry.target, entry.ocb, 0, 10) == b"text"
        else:
            with fails(errno.EBADF):
                user.read(entry.target, entry.ocb, 0, 10)


def test_a_client_adopts_no_more_than_it_may_have(kernel: Kernel) -> None:
    manager = TreeManager(kernel, Directory({b"v": Value(lambda: b"text")}), name="v")
    manager.manager.table.handles_per_client = 3
    lender = kernel.channel(lambda message: manager.channel.handler(message), on_pulse=lambda pulse: None)
    user = client(kernel, Target(0, 1, lender.chid), 5)
    for _ in range(6):
        entry = user.open(b"v")
        assert user.read(entry.target, entry.ocb, 0, 10) == b"text"
        if len(manager.manager.table.handles) == 6:
            break
    sizes = sorted(len(one.handles) for one in manager.manager.table.clients.values())
    assert sizes == [3, 3]
    with fails(errno.EMFILE):
        user.open(b"v")


def test_no_node_and_no_user_takes_all_clients() -> None:
    most = 64
    table: HandleTable[Client] = HandleTable(1, 10, most)

    def take(nd: int, uid: int) -> int:
        """Connections as long as there is room; how many there were."""
        count = 0
        while not table.crowded(info := ClientInfo(Nd(nd), "", frozenset(), Credentials(uid, uid), len(table.clients))):
            table.admit(Client(info))
            count += 1
        return count

    # One user of a node, the rest of his node, another node, users here, root here.
    assert [take(1, 5), take(1, 5), take(1, 6), take(1, 0), take(2, 5), take(3, 5)] == [24, 0, 8, 0, 24, 0]
    assert [take(0, 5), take(0, 6), take(0, 0)] == [4, 0, 4]
    table.close_all()
    assert take(0, 5) == 24
    table.close_all()
    assert take(0, 0) == most
    table.close_all()
    assert not table._clients_of_node
    assert not table._clients_of_user


def test_caps_on_clients(kernel: Kernel) -> None:
    def lookup(message: Message, client: Client, request: ConnectRequest, base: Handle | None) -> None:
        if request.path == b"twice":
            message.reply(0)
            message.reply(0)
        if request.path == b"bad":
            raise BadMessage("no")
        message.reply(0, b"ok")

    manager: Manager[Client] = Manager(kernel, name="m", make_client=Client, connect={Connect.LOOKUP: lookup}, io={}, clients_max=2)
    target = Target(0, 1, manager.channel.chid)
    first, second, third = (client(kernel, target) for _ in range(3))
    ask = ConnectRequest(Connect.LOOKUP, 0, 0, b"x").pack()
    assert first.send(target, (ask,)) == (0, b"ok")
    assert second.send(target, (ask,)) == (0, b"ok")
    with fails(errno.ENFILE):
        third.send(target, (ask,))
    assert manager.counters["clients_full"] == 1
    second.close_all()
    assert third.send(target, (ask,)) == (0, b"ok")
    with fails(errno.EBADMSG):
        first.send(target, (ConnectRequest(Connect.LOOKUP, 0, 0, b"bad").pack(),))
    with fails(errno.EBADMSG):
        first.send(target, (b"\0",))
    assert first.send(target, (ConnectRequest(Connect.LOOKUP, 0, 0, b"twice").pack(),)) == (0, b"")
    assert manager.counters["failed"] == 1, str(Misuse)
    with fails(errno.ENOSYS):
        first.send(target, (REQUEST.pack(Io.READ, 0, 0, 1),))


def test_a_client_that_gives_up_is_let_go(kernel: Kernel) -> None:
    finished: list[str] = []

    def wait(message: Message, client: Client, request: ConnectRequest, base: Handle | None) -> None:
        manager.background(message, client, (), lambda: "result", finished.append, lambda result: finished.append("discarded"))

    manager: Manager[Client] = Manager(kernel, name="m", make_client=Client, connect={Connect.LOOKUP: wait}, io={})
    connection = kernel.connect(ND_LOCAL, 1, manager.channel.chid, Credentials(0, 0))
    answers: list[int] = []
    pending = connection.submit((ConnectRequest(Connect.LOOKUP, 0, 0, b"x").pack(),), 100, lambda status, reply: answers.append(status))
    assert pending is not None
    pending.unblock()
    assert answers == [-errno.EINTR]
    dispatch = kernel.dispatch
    assert isinstance(dispatch, VirtualDispatch)
    dispatch.run_for(1)
    assert finished == ["discarded"]


def test_permission_bits() -> None:
    owner, member, other, root = MappedUser(5, 6), MappedUser(7, 8, (9, 60)), MappedUser(7, 8), MappedUser(0, 0)
    for user, bits in ((owner, 6), (member, 4), (other, 1)):
        for want in range(8):
            assert may(0o100641, 5, 60, user, want) == (bits & want == want)
    assert may(0o100000, 5, 60, root, READ | WRITE)
    assert not may(0o100666, 5, 60, root, SEARCH)
    assert may(0o040000, 5, 60, root, SEARCH)
    assert not may(0o100077, 5, 60, owner, READ), "the owner's bits decide for the owner"
