"""/net through a kernel: what it lists, where it leads, and who may look."""

from __future__ import annotations

import errno
import os
from stat import S_ISDIR

import attrs
import pytest

from qnetpy.netfs.manager import NetFs
from qnetpy.nodes import NodeState, NodeTable
from qnetpy.testing.world import World
from resmgr.access import Export, Policy
from resmgr.channel import CHID_PATHMGR, PID_SYSTEM, Credentials, Kernel, Nd
from resmgr.errors import ResmgrError
from resmgr.iomsg import STATUS_REDIRECT, Connect, Entry, Target
from resmgr.iorequest import ConnectRequest
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
    return Rig(dispatch, kernel, nodes, NetFs(kernel, nodes, route_by, lambda info: True, sought.append), sought)


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
