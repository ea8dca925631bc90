"""/net through a kernel: what it lists, where it leads, and who may look."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from stat import S_ISDIR

import attrs
import pytest

from qnetpy.netfs.manager import NetFs
from qnetpy.netfs.told import NODES_MAX, VALUE_MAX, Told, Way
from qnetpy.nodes import NodeState, NodeTable
from qnetpy.testing.world import World
from resmgr.access import Export, Policy
from resmgr.channel import CHID_PATHMGR, PID_SYSTEM, Credentials, Kernel, Nd
from resmgr.errors import ResmgrError
from resmgr.iomsg import (
    LENGTH,
    STATUS_REDIRECT,
    XATTR_GET,
    XATTR_LIST,
    XATTR_OF_NAME,
    XATTR_REMOVE,
    XATTR_SET,
    XATTR_SIZE_MAX,
    Connect,
    Entry,
    Target,
)
from resmgr.iorequest import ConnectRequest, XattrRequest
from resmgr.testing.ioclient import IoClient
from resmgr.testing.virtual import VirtualDispatch


def fails(code: int) -> pytest.RaisesExc[ResmgrError]:
    return pytest.raises(ResmgrError, match=os.strerror(code))


@attrs.define
class Rig:
    dispatch: VirtualDispatch
    kernel: Kernel
    nodes: NodeTable
    fs: NetFs
    sought: list[str]
    """Names that were asked for and are no node's."""

    def client(self) -> IoClient:
        """Nothing runs the dispatch for it: whatever is not answered at once fails."""
        return IoClient(self.kernel, Credentials(1000, 1000), target=self.fs.target)

    def node(self, name: str, *states: NodeState) -> Nd:
        node = self.nodes.add(name, 1.0)
        assert node is not None
        for state in states:
            self.nodes.enter(node, state, 1.0)
        return node.nd

    def redirect(self, path: bytes, kind: Connect = Connect.LOOKUP) -> Entry:
        status, reply = self.client().send(self.fs.target, (ConnectRequest(kind, 0, 0, path).pack(),))
        assert status == STATUS_REDIRECT
        return Entry.parse(reply)


def route_by(text: str) -> int:
    """Two choices, and what a real node says to others."""
    if text not in ("preferred:en1", "redundant"):
        raise OSError(errno.EINVAL, "no policy")
    return 0x0183 if text == "preferred:en1" else 0x81


@pytest.fixture
def rig() -> Rig:
    dispatch = VirtualDispatch(1)
    kernel = Kernel(dispatch, "a")
    nodes = NodeTable()
    sought: list[str] = []
    return Rig(dispatch, kernel, nodes, NetFs(kernel, nodes, route_by, lambda info: True, sought.append, tell(nodes)), sought)


def tell(nodes: NodeTable) -> Callable[[str], Told | None]:
    """What the table says, of links nothing."""

    def of(name: str) -> Told | None:
        if name == "a":
            return Told("up", 0.0)
        node = nodes.get(name)
        return None if node is None else Told.of(node, 86400.0, "loadbalance", (), "", "")

    return of


def attributes(rig: Rig, request: XattrRequest, name: bytes | None = None) -> bytes:
    """Of /net itself, or as a program of this node gets those of a name."""
    client = rig.client()
    if name is None:
        handle = client.lookup(b"").handle
        status, reply = client.send(rig.fs.target, (request.pack(handle),))
    else:
        status, reply = client.send(rig.fs.target, (attrs.evolve(request, flags=request.flags | XATTR_OF_NAME).pack(0, name),))
    if status < 0:
        raise ResmgrError(-status)
    assert status == 0
    return bytes(reply)


def test_lists_this_node_and_those_that_can_be_reached(rig: Rig) -> None:
    rig.node("up", NodeState.UP)
    rig.node("suspect", NodeState.UP, NodeState.SUSPECT)
    rig.node("known")
    rig.node("calling", NodeState.CONNECTING)
    rig.node("down", NodeState.UP, NodeState.DOWN)
    assert rig.client().names() == {b"a", b"up", b"suspect"}


def test_listing_asks_nobody(rig: Rig) -> None:
    """With attributes, too: a node that hangs must not hang the listing."""
    rig.node("suspect", NodeState.UP, NodeState.SUSPECT)
    entries = rig.client().list(attrs=True)
    assert {entry.name for entry in entries} == {b"a", b"suspect"}
    assert all(S_ISDIR(entry.mode) for entry in entries)
    # And it makes no attributes up that a client would keep: what is there, the node itself tells.
    assert [entry.attr.mode for entry in entries if entry.attr is not None] == [0, 0]


def test_a_path_below_a_node_leads_to_its_path_manager(rig: Rig) -> None:
    nd = rig.node("b", NodeState.UP)
    entry = rig.redirect(b"b/etc/hostname")
    assert (entry.target, entry.rest) == (Target(nd, PID_SYSTEM, CHID_PATHMGR), b"etc/hostname")
    assert rig.redirect(b"b").rest == b""
    for kind in (Connect.OPEN, Connect.UNLINK, Connect.MKDIR, Connect.READLINK, Connect.STATFS, Connect.SETATTR):
        if kind is not Connect.SETATTR:
            assert rig.redirect(b"b/x", kind).target.nd == nd


def test_the_own_name_leads_home(rig: Rig) -> None:
    assert rig.redirect(b"a/etc").target == Target(0, PID_SYSTEM, CHID_PATHMGR)


def test_a_suspect_node_still_leads_there(rig: Rig) -> None:
    nd = rig.node("b", NodeState.UP, NodeState.SUSPECT)
    assert rig.redirect(b"b/x").target.nd == nd


@pytest.mark.parametrize("states", [(NodeState.UP, NodeState.DOWN), (NodeState.CONNECTING,), ()])
def test_a_node_that_cannot_be_reached_is_down(rig: Rig, states: tuple[NodeState, ...]) -> None:
    rig.node("b", *states)
    for path in (b"b", b"b/etc/hostname"):
        with fails(errno.EHOSTDOWN):
            rig.client().lookup(path)
        with fails(errno.EHOSTDOWN):
            rig.client().open(path)


def test_a_name_that_nobody_ever_had_does_not_exist(rig: Rig) -> None:
    for path in (b"nobody", b"nobody/etc", b"\xff\xfe", b"B"):
        with fails(errno.ENOENT):
            rig.client().lookup(path)


def test_a_name_that_nobody_ever_had_is_told_to_who_looks_for_nodes(rig: Rig) -> None:
    rig.node("b", NodeState.UP)
    rig.node("c", NodeState.UP, NodeState.DOWN)
    for path in (b"b/etc", b"a"):
        rig.redirect(path)
    for path in (b"c", b"d", b"e/etc", b"d~redundant", b".git"):
        with pytest.raises(ResmgrError):
            rig.client().lookup(path)
    assert rig.sought == ["d", "e", "d", ".git"]


def test_nothing_can_be_made_or_removed_there(rig: Rig) -> None:
    rig.node("b", NodeState.UP)
    for kind in (Connect.MKDIR, Connect.UNLINK, Connect.RMDIR):
        with pytest.raises(ResmgrError) as caught:
            rig.client().name(kind, b"new")
        assert caught.value.errno in (errno.EPERM, errno.EROFS, errno.ENOENT, errno.EACCES)
    assert rig.client().names() == {b"a", b"b"}


def test_its_times_move_on_and_listeners_hear_when_a_node_comes_or_goes(rig: Rig) -> None:
    heard: list[bytes] = []
    rig.fs.listeners.append(heard.append)
    before = rig.client().lookup(b"").attr
    rig.dispatch.run_for(5.0)
    rig.fs.changed("b")
    after = rig.client().lookup(b"").attr
    assert before is not None
    assert after is not None
    assert after.mtime >= before.mtime + 5_000_000_000
    assert after.change != before.change
    assert heard == [b"b"]


def test_it_is_not_there_for_clients_of_other_nodes_that_may_not_read_it() -> None:
    world = World(1)
    a, b = world.start("a"), world.start("b")
    assert world.until(world.settled)
    b.system.set_policy(Policy(b.system.accounts, exports=(Export("/srv", ("read",)),)))
    client = IoClient(a.system.kernel, Credentials(0, 0), run=lambda goal: (world.until(goal), None)[1])
    nd = a.nd("b")
    target = b.qnet.netfs.target
    with fails(errno.ENOENT):
        client.lookup(b"c", target=Target(nd, target.pid, target.chid))
    there = Target(nd, PID_SYSTEM, CHID_PATHMGR)
    for name in (b"net", b"net/a", b"net/c"):
        with fails(errno.ENOENT):
            client.lookup(name, target=there)
    root = client.open(b"", os.O_RDONLY | os.O_DIRECTORY, target=there)
    assert b"net" not in {entry.name for entry in client.readdir(there, root.ocb, 0, 65536)}
    assert b"net" in client.names()
    assert client.names(b"net") == {b"a", b"b"}


def test_a_choice_of_paths_behind_a_name_is_in_the_descriptor_and_is_not_listed(rig: Rig) -> None:
    nd = rig.node("up", NodeState.UP)
    entry = rig.redirect(b"up~preferred:en1/etc/hostname")
    assert entry.target == Target(nd | 0x0183 << 16, PID_SYSTEM, CHID_PATHMGR)
    assert entry.rest == b"etc/hostname"
    assert rig.redirect(b"up~redundant").target.nd == nd | 0x81 << 16
    assert rig.redirect(b"a~redundant").target.nd == 0
    assert rig.client().names() == {b"a", b"up"}
    heard: list[bytes] = []
    rig.fs.listeners.append(heard.append)
    rig.fs.changed("up")
    assert heard == [b"up", b"up~preferred:en1", b"up~redundant"]


@pytest.mark.parametrize("name", [b"up~", b"up~best", b"up~preferred", b"up~preferred:en1~redundant"])
def test_a_choice_that_says_nothing_is_refused(rig: Rig, name: bytes) -> None:
    rig.node("up", NodeState.UP)
    with fails(errno.EINVAL):
        rig.redirect(name)


def test_a_choice_on_the_way_to_a_third_node_is_the_client_s() -> None:
    world = World(1, links=("lan", "san"))
    a = world.start("a")
    world.start("b", links=("lan",))
    world.start("c")
    assert world.until(world.settled)
    client = IoClient(a.system.kernel, Credentials(0, 0), run=lambda goal: (world.until(goal), None)[1])
    there = Target(a.nd("b"), PID_SYSTEM, CHID_PATHMGR)
    for name in (b"net/c", b"net/c~preferred:en1", b"net/c~nonsense"):  # en1 is no interface of b's; a's own /net tells sense from nonsense
        status, _ = client.send(there, (ConnectRequest(Connect.LOOKUP, 0, 0, name).pack(),))
        assert status == STATUS_REDIRECT
    for name in (b"net/a~redundant", b"net/b~redundant"):
        with fails(errno.ELOOP):
            client.lookup(name, target=there)


LIST = XattrRequest(XATTR_LIST, size=XATTR_SIZE_MAX)


def get(name: bytes, size: int = 64) -> XattrRequest:
    return XattrRequest(XATTR_GET, name, size=size)


def test_a_name_tells_what_is_known_of_its_node(rig: Rig) -> None:
    rig.node("b", NodeState.UP, NodeState.SUSPECT)
    assert attributes(rig, get(b"user.qnet.state"), b"b") == b"suspect"
    assert attributes(rig, get(b"user.qnet.since"), b"b") == b"1970-01-02T00:00:00Z"
    assert attributes(rig, get(b"user.qnet.state"), b"a") == b"up"
    assert set(attributes(rig, LIST, b"b").split(b"\0")) == {
        b"",
        *(b"user.qnet." + word for word in (b"state", b"since", b"policy", b"starts")),
    }, "nothing is listed of which nothing is known"
    with fails(errno.ENODATA):
        attributes(rig, get(b"user.qnet.rtt"), b"b")
    with fails(errno.ENOENT):
        attributes(rig, LIST, b"nobody")


def test_net_itself_tells_of_every_node_also_of_those_that_are_down(rig: Rig) -> None:
    rig.node("b", NodeState.UP)
    rig.node("gone", NodeState.UP, NodeState.DOWN)
    assert attributes(rig, LIST) == b"user.qnet.node.a\0user.qnet.node.b\0user.qnet.node.gone\0"
    assert attributes(rig, get(b"user.qnet.node.gone")) == b"state=down since=1970-01-02T00:00:00Z"
    with fails(errno.ENODATA):
        attributes(rig, get(b"user.qnet.node.nobody"))


def test_the_list_of_a_large_cluster_is_as_long_as_linux_takes(rig: Rig) -> None:
    names = [f"{number:063}" for number in range(NODES_MAX + 50)]
    for name in names:
        rig.node(name, NodeState.UP, NodeState.DOWN)
    rig.node("up", NodeState.UP)
    listed = attributes(rig, LIST)
    assert len(listed) <= XATTR_SIZE_MAX
    assert listed.count(b"\0") == NODES_MAX + 1
    assert listed.startswith(b"user.qnet.node.a\0user.qnet.node.up\0"), "nodes that are up first"
    # Who is not listed can be asked for all the same.
    assert attributes(rig, get(b"user.qnet.node." + names[-1].encode())).startswith(b"state=down")


def test_lengths_and_room(rig: Rig) -> None:
    rig.node("b", NodeState.UP)
    assert attributes(rig, get(b"user.qnet.state", 0), b"b") == LENGTH.pack(2)
    with fails(errno.ERANGE):
        attributes(rig, get(b"user.qnet.state", 1), b"b")


def test_what_is_known_cannot_be_set(rig: Rig) -> None:
    rig.node("b", NodeState.UP)
    for request in (XattrRequest(XATTR_SET, b"user.qnet.state", b"down"), XattrRequest(XATTR_REMOVE, b"user.qnet.state")):
        for name in (b"b", None):
            with fails(errno.EPERM):
                attributes(rig, request, name)


def test_without_the_flag_attributes_are_the_node_s(rig: Rig) -> None:
    nd = rig.node("b", NodeState.UP)
    status, reply = rig.client().send(rig.fs.target, (get(b"user.x").pack(0, b"b"),))
    assert status == STATUS_REDIRECT
    assert Entry.parse(reply).target.nd == nd


def test_clients_of_other_nodes_are_told_nothing() -> None:
    world = World(1)
    a, b = world.start("a"), world.start("b")
    world.start("c")
    assert world.until(world.settled)
    client = IoClient(a.system.kernel, Credentials(0, 0), run=lambda goal: (world.until(goal), None)[1])
    there = Target(a.nd("b"), PID_SYSTEM, CHID_PATHMGR)
    target = attrs.evolve(b.qnet.netfs.target, nd=there.nd)
    handle = client.lookup(b"net", target=there).handle
    assert client.send(target, (LIST.pack(handle),)) == (0, b"")
    status, _ = client.send(target, (attrs.evolve(LIST, flags=XATTR_OF_NAME).pack(handle, b"c"),))
    assert status == STATUS_REDIRECT


def test_a_real_link_is_told() -> None:
    world = World(1)
    a, b = world.start("a"), world.start("b")
    assert world.until(world.settled)
    client = IoClient(a.system.kernel, Credentials(1000, 1000))

    def all_of(name: bytes) -> dict[bytes, bytes]:
        asked = attrs.evolve(LIST, flags=XATTR_OF_NAME)
        _, names = client.send(a.qnet.netfs.target, (asked.pack(0, name),))
        found = {}
        for one in bytes(names).split(b"\0")[:-1]:
            got = attrs.evolve(get(one, VALUE_MAX), flags=XATTR_OF_NAME)
            found[one.removeprefix(b"user.qnet.")] = bytes(client.send(a.qnet.netfs.target, (got.pack(0, name),))[1])
        return found

    found = all_of(b"b")
    assert {b"state", b"since", b"boot", b"address", b"rtt", b"paths", b"suites", b"version", b"policy", b"starts"} <= set(found)
    assert found[b"boot"] == b.qnet.boot_id.hex().encode()
    assert found[b"policy"] == b"loadbalance"
    assert 0 < float(found[b"rtt"]) < 1
    assert found[b"paths"].startswith(found[b"address"] + b" usable ")
    assert all_of(b"b~redundant")[b"policy"] == b"redundant"
    assert all_of(b"a")[b"boot"] == a.qnet.boot_id.hex().encode()


def test_long_values_are_cut_at_a_line() -> None:
    ways = [Way(f"en{number} 02:00:00:00:00:01", "usable", 0.001) for number in range(300)]
    value = Told("up", 0.0, ways=ways).values()[b"user.qnet.paths"]
    assert VALUE_MAX - 100 < len(value) <= VALUE_MAX
    assert value.endswith(b" usable 0.001000")
