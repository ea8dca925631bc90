"""`/net/B/net/C/x`: a name that leads over B to C. Who is asked, who is believed, and what is refused. Whole nodes in virtual time."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable

import pytest

from qnetpy.testing.node import SimNode
from qnetpy.testing.world import World
from resmgr.access import Export, Policy
from resmgr.channel import ClientInfo, Connection, Credentials, Nd
from resmgr.dispatch import Buffer
from resmgr.errors import ResmgrError
from resmgr.fuse.formats import Opcode
from resmgr.fuse.machine import Machine
from resmgr.fuse.options import FuseOptions
from resmgr.fuse.servers import KernelResolver
from resmgr.iofunc.node import Directory, Elsewhere, Node, TreeManager
from resmgr.iomsg import Target
from resmgr.testing.fuserig import PID, Answer, Rig
from resmgr.testing.ioclient import IoClient
from resmgr.walk import Address, Found, walk

pytestmark = pytest.mark.sim
UID = 1234
Sight = tuple[str, str, int]
"""A message that a file manager got: at which node, from which node, from which user."""


@pytest.fixture
def world() -> World:
    world = World(3)
    for name in "abcd":
        node = world.start(name)
        node.files.add(b"who", name.encode())
        node.files.add(b"dir/who", name.encode())
    assert world.until(world.settled)
    return world


def watch(world: World) -> list[Sight]:
    """Every client that a file manager admits from now on."""
    seen: list[Sight] = []
    for node in world.live:
        manager = node.files.manager
        before = manager.channel.handler

        def handler(message: object, before: Callable[..., None] = before, here: str = node.name) -> None:
            info: ClientInfo = message.info  # type: ignore[attr-defined]  # a Message
            seen.append((here, info.node, info.credentials.uid))
            before(message)

        manager.channel.handler = handler
    return seen


def find(world: World, node: SimNode, path: bytes) -> Found:
    """Look *path* up as a program on *node* does."""
    steps = walk(path)
    connections: dict[Address, Connection] = {}
    question = next(steps)
    while True:
        address = question.address
        if address not in connections:
            connections[address] = node.system.kernel.connect(Nd(address[0]), address[1], address[2], Credentials(UID, UID))
        answers: list[tuple[int, Buffer]] = []

        def answered(status: int, reply: Buffer, answers: list[tuple[int, Buffer]] = answers) -> None:
            answers.append((status, bytes(reply)))

        connections[address].submit((question.message,), question.reply_len, answered)
        assert world.until(lambda answers=answers: bool(answers))  # type: ignore[misc]  # mypy: default of a lambda
        try:
            question = steps.send(answers[0])
        except StopIteration as end:
            found: Found = end.value
            return found


class KernelOf(Rig):
    """Plays the kernel of a node of the world: its mount of /net."""

    def __init__(self, world: World, node: SimNode, options: FuseOptions | None = None) -> None:
        self.whole = world
        self.world = world.dispatch
        self.kernel = node.system.kernel
        self.machine = Machine(node.view, KernelResolver(self.kernel), node.qnet.netfs.target, options, b"/net")
        self.dispatch = node.view
        self.answers = {}
        self.notifications = []
        self.uid = UID
        self.pid = PID
        self._uniques = itertools.count(2, 2)
        self.machine.on_output = self._collect

    def ask(self, opcode: int, node: int, body: bytes = b"") -> Answer:
        unique = self.start(opcode, node, body)
        assert self.whole.until(lambda: unique in self.answers), Opcode(opcode).name
        return self.answers[unique]

    def text(self, path: bytes) -> bytes:
        node = self.walk(path)
        return self.read(node, self.open(node).fh, 0, 100).body

    def failing(self, path: bytes) -> int:
        """The errno of the last name's lookup."""
        lead, _, name = path.rpartition(b"/")
        return -self.lookup(self.walk(lead), name).error


def test_a_program_gets_there_and_deals_with_the_third_node_itself(world: World) -> None:
    a = world.nodes["a"]
    for path, where in ((b"/net/b/net/c/who", "c"), (b"/net/b/net/c/net/d/dir/who", "d"), (b"/net/d/net/b/dir", "b")):
        seen = watch(world)
        found = find(world, a, path)
        assert found.address[0] == a.nd(where), path
        assert set(seen) == {(where, "a", UID)}, "only the last node is asked for files, and by a, as a's user"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (b"/net/b/net/a/who", errno.ELOOP),
        (b"/net/b/net/b/who", errno.ELOOP),
        (b"/net/b/net/c/net/b/who", errno.ELOOP),
        (b"/net/b/net/c/net/a/who", errno.ELOOP),
        (b"/net/b/net/c/net/d/net/b/net/c/who", errno.ELOOP),
        (b"/net/b/net/nobody/who", errno.ENOENT),
        (b"/net/b/net/c/none", errno.ENOENT),
    ],
)
def test_ways_that_end(world: World, path: bytes, code: int) -> None:
    with pytest.raises(ResmgrError) as caught:
        find(world, world.nodes["a"], path)
    assert caught.value.errno == code


def test_through_a_mount(world: World) -> None:
    """Name by name, as the kernel asks, and from the root again where handles were lost."""
    kernel = KernelOf(world, world.nodes["a"])
    seen = watch(world)
    assert kernel.text(b"b/net/c/dir/who") == b"c"
    assert {sight for sight in seen if sight[0] == "c"} == {("c", "a", UID)}
    assert kernel.text(b"b/net/c/net/d/who") == b"d"
    for path in (b"b/net/a", b"b/net/b", b"b/net/c/net/b", b"b/net/c/net/a"):
        assert kernel.failing(path) == errno.ELOOP, path
    assert kernel.lookup(kernel.walk(b"b/net"), b"nobody").nodeid == 0, "no such name, as FUSE says it"
    hurried = KernelOf(world, world.nodes["a"], FuseOptions(handles_max=1))
    nodes = {path: hurried.walk(path) for path in (b"b/net/c/dir", b"d/dir", b"b/net/c/net/d/dir", b"d/net/b/dir")}
    for path, node in nodes.items():
        assert hurried.lookup(node, b"who").error == 0, path
    assert hurried.machine.statistics().events["walks"] > 0


def test_nothing_is_listed_there_so_nobody_walks_the_cluster_by_accident(world: World) -> None:
    kernel = KernelOf(world, world.nodes["a"])
    net = kernel.walk(b"b/net")
    opened = kernel.ask(Opcode.OPENDIR, net, os.O_RDONLY.to_bytes(4, "little") + bytes(4))
    assert opened.error == 0
    listing = kernel.ask(Opcode.READDIR, net, opened.fh.to_bytes(8, "little") + bytes(8) + (4096).to_bytes(4, "little") + bytes(20))
    assert listing.body.replace(b"\0", b"").count(b"..") <= 1
    assert b"c" not in listing.body


def test_a_third_node_that_is_down_is_down(world: World) -> None:
    a, c = world.nodes["a"], world.nodes["c"]
    kernel = KernelOf(world, a)
    assert kernel.text(b"b/net/c/who") == b"c"
    c.crash()
    assert world.until(lambda: not a.sees("c"))
    with pytest.raises(ResmgrError) as caught:
        find(world, a, b"/net/b/net/c/who")
    assert caught.value.errno == errno.EHOSTDOWN


def test_what_the_third_node_allows_is_what_it_allows_the_caller(world: World) -> None:
    """Going over b makes no difference: c is asked by a, and lets a do what it lets a do. b decides about its own /net."""
    a, b, c = world.nodes["a"], world.nodes["b"], world.nodes["c"]
    c.system.set_policy(Policy(c.system.accounts, exports=(Export("/net", ("read",), nodes=("b",)),)))
    with pytest.raises(ResmgrError) as caught:
        find(world, a, b"/net/b/net/c/net/d/who")
    assert caught.value.errno == errno.ENOENT, "c shows its /net to b, and it is a who asks"
    assert find(world, b, b"/net/c/net/d/who").address[0] == b.nd("d")
    b.system.set_policy(Policy(b.system.accounts, exports=(Export("/dir", ("read",)),)))
    with pytest.raises(ResmgrError) as caught:
        find(world, a, b"/net/b/net/d/who")
    assert caught.value.errno == errno.ENOENT, "b does not show a its /net"


class Liar(Directory):
    """Everything here is said to be node number *nd*'s."""

    def __init__(self, nd: int) -> None:
        super().__init__()
        self._nd = nd

    def lookup(self, name: bytes) -> Node | None:
        return Elsewhere(Target(self._nd, 1, 1)) if name != b"dir" else self


@pytest.mark.parametrize("name", [b"tmp/who", b"tmp/c", b"tmp/dir/who"])
def test_a_node_cannot_send_users_of_another_where_it_likes(world: World, name: bytes) -> None:
    """b claims that what is below its /tmp is another node's, by any number, c's of a's among them, or that a's own files are."""
    a, b = world.nodes["a"], world.nodes["b"]
    a.files.add(b"tmp/who", b"a's own")
    for nd in (int(a.nd("c")), int(b.nd("c")), int(b.nd("a")), 77):
        liar = TreeManager(b.system.kernel, Liar(nd), name="liar")
        attached = b.system.paths.attach(b"tmp", liar.target)
        b.system.guard(liar.channel)
        seen = watch(world)
        with pytest.raises(ResmgrError) as caught:
            find(world, a, b"/net/b/" + name)
        assert caught.value.errno in (errno.EREMOTE, errno.ENOENT)
        kernel = KernelOf(world, a)
        for opcode, node, tail in ((Opcode.LOOKUP, kernel.walk(b"b/tmp"), b"who"), (Opcode.UNLINK, kernel.walk(b"b/tmp"), b"who")):
            assert -kernel.ask(opcode, node, tail + b"\0").error in (errno.EREMOTE, errno.ENOENT, errno.EROFS)
        assert {sight[0] for sight in seen} <= {"a", "b"}, "nobody else was asked anything"
        assert IoClient(a.system.kernel, Credentials(0, 0)).lookup(b"tmp/who").attr is not None
        b.system.paths.detach(attached)
