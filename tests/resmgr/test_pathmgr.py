"""The path manager in front of a host file system, a small tree and servers elsewhere."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from resmgr.access import Export, Policy, UserRule
from resmgr.channel import ClientInfo, Credentials, Kernel, Message, Nd
from resmgr.hostfs.device import FOREVER
from resmgr.hostfs.manager import HostFs
from resmgr.iofunc.node import Directory, Elsewhere, TreeManager, Value
from resmgr.iomsg import WANT_HANDLE, Connect, Entry, Io, Target
from resmgr.iorequest import ConnectRequest
from resmgr.pathmgr import PathManager
from resmgr.pathspace import Attach
from resmgr.testing.ioclient import IoClient, fails
from resmgr.testing.virtual import VirtualDispatch
from resmgr.users import Accounts


@attrs.define
class Machine:
    """A node with `/` from a directory, `/net` and `/dev/name/local` from trees."""

    root: Path
    dispatch: VirtualDispatch
    kernel: Kernel
    paths: PathManager
    fs: HostFs
    net: TreeManager
    names: TreeManager

    def client(self, uid: int = 0) -> IoClient:
        return IoClient(self.kernel, Credentials(uid, uid), run=lambda goal: self._run(goal))

    def _run(self, goal: Callable[[], bool]) -> None:
        self.dispatch.run_until(goal)

    def remote(self, node: str = "c") -> IoClient:
        client = self.client()
        for target in (self.paths.target, self.fs.target, self.net.target, self.names.target):
            connection = client.connection(target)
            connection.info = ClientInfo(Nd(4), node, frozenset(), Credentials(0, 0), connection.coid)
        return client

    def handles(self) -> int:
        return sum(len(one.manager.table.handles) for one in (self.paths, self.fs, self.net, self.names))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    dispatch = VirtualDispatch(1)
    kernel = Kernel(dispatch, "b")
    for name in ("etc", "dev", "home/u", "net"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/hostname").write_bytes(b"b\n")
    (tmp_path / "dev/disk").write_bytes(b"")
    (tmp_path / "net/hidden").write_bytes(b"")
    paths = PathManager(kernel)
    policy = Policy(Accounts(dispatch.now), users=[UserRule("all:root")], exports=[Export("/", ["read", "write"])])
    fs = HostFs(kernel, policy, root=str(tmp_path))
    net = TreeManager(kernel, Directory({b"self": Value(lambda: b"b")}), name="net")
    names = TreeManager(kernel, Directory({b"server": Value(lambda: b"1:17")}), name="names")
    paths.attach(b"/", fs.target)
    paths.attach(b"/net", net.target, Attach.TRANSIT)
    paths.attach(b"/dev/name/local", names.target, Attach.LOCAL)
    yield Machine(tmp_path, dispatch, kernel, paths, fs, net, names)
    fs.destroy()


def test_one_message_finds_the_server(machine: Machine) -> None:
    user = machine.client()
    entry = user.open(b"etc/hostname", prefetch=100)
    assert entry.target == machine.fs.target
    assert bytes(entry.data) == b"b\n"
    assert user.read(entry.target, entry.ocb, 0, 10) == b"b\n"
    assert user.lookup(b"net").target == machine.net.target
    assert user.get(b"net/self") == b"b"
    assert user.get(b"dev/name/local/server") == b"1:17"
    etc = user.lookup(b"etc")
    assert etc.target == machine.fs.target
    assert user.lookup(b"hostname", etc.handle, etc.target).attr is not None
    assert machine.paths.counters["handed_on"] == 5
    assert machine.paths.counters["redirected"] == 0


def test_merged_directories_list_both(machine: Machine) -> None:
    user = machine.client()
    for slow in (False, True):
        if slow:
            machine.fs.devices.root.blocking_until = FOREVER
        assert sorted(entry.name for entry in user.list()) == [b"dev", b"etc", b"home", b"net"]
        assert sorted(entry.name for entry in user.list(b"dev")) == [b"disk", b"name"]
        assert sorted(entry.name for entry in user.list(b"", size=64)) == [b"dev", b"etc", b"home", b"net"]
        assert user.names(b"dev/name") == {b"local"}
        assert user.names(b"net") == {b"self"}
        assert {entry.name for entry in user.list(b"dev", attrs=True) if entry.attr and entry.attr.mode} == {b"disk"}
        root = user.lookup(b"")
        assert root.target == machine.paths.target
        assert root.attr is not None
        assert root.attr.ino == os.stat(machine.root).st_ino
        assert user.stat(root.target, root.handle) == root.attr
        dev = user.lookup(b"dev", root.handle)
        assert dev.target == machine.paths.target
        assert user.lookup(b"disk", dev.handle, dev.target).target == machine.fs.target
        made = user.lookup(b"name", dev.handle, dev.target)
        assert made.attr is not None
        assert made.attr.mode & 0o170000 == 0o040000
        assert user.stat(made.target, made.handle) == made.attr
        for entry in (root, dev, made):
            user.close(entry.target, entry.handle)
        assert machine.handles() == 0


def test_a_listing_resumes_at_any_cookie(machine: Machine) -> None:
    for number in range(300):
        (machine.root / f"file-{number}").touch()
    user = machine.client()
    entry = user.open(b"", os.O_DIRECTORY)
    everything = user.readdir(entry.target, entry.ocb, 0, 1 << 20)
    everything += user.readdir(entry.target, entry.ocb, everything[-1].cookie, 1 << 20)
    names = [item.name for item in everything]
    assert len(names) == len(set(names)) == 304
    for index in (0, 1, 2, 50, 303):
        after = user.readdir(entry.target, entry.ocb, everything[index].cookie, 1 << 20)
        assert [item.name for item in after] == (names[index + 1 :] if index > 1 else names[index + 1 : 2] or names[2:])
    with fails(errno.EINVAL):
        user.readdir(entry.target, entry.ocb, (3 << 62) + (1 << 40), 1 << 20)


def test_names_of_the_path_manager_cannot_be_moved_or_removed(machine: Machine) -> None:
    user = machine.client()
    for name in (b"", b"dev", b"dev/name"):
        for kind in (Connect.RMDIR, Connect.UNLINK):
            with fails(errno.EBUSY):
                user.name(kind, name)
        with fails(errno.EEXIST):
            user.name(Connect.MKDIR, name)
        with fails(errno.EISDIR):
            user.open(name, os.O_WRONLY)
        user.name(Connect.ACCESS, name, mode=4)
        user.name(Connect.STATFS, name)
    with fails(errno.EROFS):
        user.name(Connect.RMDIR, b"net")
    with fails(errno.EBUSY):
        user.two(Connect.RENAME, b"dev", b"dev2")
    with fails(errno.EBUSY):
        user.two(Connect.RENAME, b"etc", b"dev")
    with fails(errno.ENOENT):
        user.lookup(b"net/hidden")
    assert (machine.root / "net/hidden").exists()


def test_rename_and_link_between_base_handles_of_two_servers(machine: Machine) -> None:
    user = machine.client()
    root, home = user.lookup(b""), user.lookup(b"home")
    (machine.root / "f").write_bytes(b"f")
    user.two(Connect.RENAME, b"f", b"u/g", handle=root.handle, handle2=home.handle)
    assert (machine.root / "home/u/g").read_bytes() == b"f"
    user.two(Connect.LINK, b"u/g", b"back", handle=home.handle, handle2=root.handle)
    assert (machine.root / "back").read_bytes() == b"f"
    user.two(Connect.RENAME, b"etc/hostname", b"etc/name")
    with fails(errno.EXDEV):
        user.two(Connect.RENAME, b"etc/name", b"net/x")
    with fails(errno.EBADF):
        machine.client(1234).two(Connect.RENAME, b"u/g", b"x", handle=home.handle)
    with fails(errno.EBADF):
        user.lookup(b"u", home.handle, machine.paths.target)
    kept = user.lookup(b"etc/name", flags=WANT_HANDLE)
    user.two(Connect.LINK, b"", b"again", handle=kept.handle)
    assert (machine.root / "again").exists()


def test_servers_elsewhere_are_told_as_redirects(machine: Machine) -> None:
    far = Target(0, 77, 3)
    machine.paths.attach(b"/proc", far)
    machine.paths.attach(b"/net/c", Target(9, 1, 1))
    user = machine.client()
    for path, target, rest in ((b"proc/1/maps", far, b"1/maps"), (b"proc", far, b""), (b"net/c/etc", Target(9, 1, 1), b"etc")):
        status, reply = user.send(machine.paths.target, (ConnectRequest(Connect.LOOKUP, 0, 0, path).pack(),))
        assert status == 1
        entry = Entry.parse(reply)
        assert (entry.redirect, entry.target, entry.rest) == (True, target, rest)
    assert user.names(b"net") == {b"c", b"self"}
    assert machine.paths.counters["redirected"] == 3


def test_what_other_nodes_do_not_see(machine: Machine) -> None:
    far = machine.remote()
    assert far.names() == {b"dev", b"etc", b"home"}
    assert far.names(b"dev") == {b"disk"}
    for path in (b"net", b"net/self", b"net/c/net/b/net", b"dev/name/local/server"):
        with fails(errno.ENOENT):
            far.lookup(path)
    with fails(errno.ENOENT):
        far.lookup(b"dev/name")
    for kind in (Connect.RMDIR, Connect.UNLINK):
        with fails(errno.EBUSY):
            far.name(kind, b"dev")
    assert far.get(b"etc/hostname") == b"b\n"
    machine.paths.transit = lambda info: True
    assert far.get(b"net/self") == b"b"
    assert isinstance(machine.net.root, Directory)
    machine.net.root.nodes[b"again"] = Elsewhere(machine.paths.target)
    with fails(errno.ELOOP):
        far.lookup(b"net/again/" * 20 + b"net/self")


def test_unions_are_tried_in_order(machine: Machine, tmp_path: Path) -> None:
    first = TreeManager(machine.kernel, Directory({b"a": Value(lambda: b"1a"), b"b": Value(lambda: b"1b")}), name="1")
    second = TreeManager(machine.kernel, Directory({b"b": Value(lambda: b"2b"), b"c": Value(lambda: b"2c")}), name="2")
    machine.paths.attach(b"/opt", first.target)
    after = machine.paths.attach(b"/opt", second.target, Attach.AFTER)
    user = machine.client()
    assert [user.get(b"opt/" + name) for name in (b"a", b"b", b"c")] == [b"1a", b"1b", b"2c"]
    assert sorted(entry.name for entry in user.list(b"opt")) == [b"a", b"b", b"c"]
    assert sorted(entry.name for entry in user.list(b"opt", size=40)) == [b"a", b"b", b"c"]
    with fails(errno.ENOENT):
        user.lookup(b"opt/d")
    machine.paths.detach(after)
    machine.paths.attach(b"/opt", second.target)
    assert user.get(b"opt/b") == b"2b"
    assert machine.handles() == 0


def test_a_client_that_leaves_lets_go_of_what_a_server_lent_before_it_was_detached(machine: Machine) -> None:
    server = TreeManager(machine.kernel, Directory({b"a": Value(lambda: b"1")}), name="1")
    attached = machine.paths.attach(b"/opt", server.target)
    user = machine.client()
    user.open(b"opt/a")
    assert len(server.manager.table.handles) == 1
    machine.paths.detach(attached)
    user.connection(machine.paths.target).close()
    assert len(server.manager.table.handles) == 0
    server.manager.destroy()
    last = machine.client()
    last.lookup(b"etc")
    last.connection(machine.paths.target).close()
    assert not machine.paths._left


def test_handles_of_a_client_that_leaves(machine: Machine) -> None:
    user = machine.client()
    user.lookup(b"etc")
    held = user.open(b"etc/hostname")
    user.open(b"", os.O_DIRECTORY)
    user.lookup(b"net")
    assert user.read(held.target, held.ocb, 0, 1) == b"b"
    assert machine.handles() == 5
    user.connection(machine.paths.target).close()
    assert machine.handles() == 1, "only what was adopted by the other connection"
    assert user.read(held.target, held.ocb, 0, 1) == b"b"
    user.connection(machine.fs.target).close()
    assert machine.handles() == 0


def test_nobody_serves_and_wrong_handles(machine: Machine) -> None:
    empty = PathManager(Kernel(machine.dispatch, "e"))
    user = IoClient(empty.manager.kernel, Credentials(0, 0))
    with fails(errno.ENOENT):
        user.lookup(b"etc")
    with fails(errno.ENOENT):
        user.lookup(b"")
    empty.attach(b"/a/b", Target(0, 9, 9))
    assert user.names() == {b"a"}
    local = machine.client()
    for kind in (Io.STAT, Io.READDIR, Io.CLOSE):
        with fails(errno.EBADF):
            local.io(machine.paths.target, kind, 999)
    root = local.lookup(b"")
    with fails(errno.EBADF):
        local.readdir(root.target, root.handle)
    with fails(errno.EBADF):
        local.lookup(b"etc", 12345)
    deep = local.lookup(b"dev")
    with fails(errno.ENAMETOOLONG):
        local.lookup(b"/".join([b"x" * 250] * 17)[:4094], deep.handle)


def test_unblock_reaches_the_server_behind(machine: Machine) -> None:
    held: list[Message] = []
    asked: list[str] = []

    def keep(message: Message) -> None:
        def unblock() -> None:
            asked.append("unblock")
            message.error(errno.EINTR)

        message.on_unblock = unblock
        held.append(message)

    silent = machine.kernel.channel(keep)
    machine.paths.attach(b"/slow", Target(0, 1, silent.chid))
    machine.paths.attach(b"/slow/x", machine.net.target)
    user = machine.client()
    answers: list[int] = []
    for path in (b"slow/name", b"slow"):
        pending = user.connection(machine.paths.target).submit(
            (ConnectRequest(Connect.LOOKUP, 0, 0, path).pack(),), 1000, lambda status, reply: answers.append(status)
        )
        assert pending is not None
        pending.unblock()
    assert answers == [-errno.EINTR, -errno.EINTR]
    assert asked == ["unblock"] * 2
