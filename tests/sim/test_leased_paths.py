"""What is leased on another node lies in its `/`, which is the path manager's there: whether everybody may go through it is asked of
its file server (docs/protocol/coherence.md). Whole nodes in virtual time; the rig plays the kernel of one."""

from __future__ import annotations

import errno
import struct

import pytest

from qnetpy.testing.node import SimNode
from qnetpy.testing.world import World
from resmgr.fuse import formats
from resmgr.fuse.above import EVERY
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import FuseOptions, Permissions
from resmgr.testing.fuserig import Answer
from resmgr.testing.memtree import Inode
from tests.sim.test_third_node import KernelOf

pytestmark = pytest.mark.sim
LEASE = 60
ATTRIB, IGNORED = 0x4, 0x8000


@pytest.fixture
def far() -> SimNode:
    """A node with dir/sub/x, watched."""
    world = World(3)
    world.start("a")
    node = world.start("b")
    node.files.watch()
    node.files.add(b"dir/sub/x", b"x")
    node.files.add(b"dir/y", b"y")
    assert world.until(world.settled)
    return node


def kernel_of(far: SimNode) -> KernelOf:
    world = far.world
    return KernelOf(world, world.nodes["a"], FuseOptions(permissions=Permissions.SERVER))


def validity(answer: Answer) -> tuple[int, int]:
    entry, attr = struct.unpack_from("=QQ", answer.body, 16)
    return entry, attr


def tell(far: SimNode, inode: Inode, kind: int) -> None:
    assert far.files.watching is not None
    for listener in far.files.watching.listeners.values():
        listener.tell(inode.ino, kind)


def asked(kernel: KernelOf) -> int:
    return kernel.machine.drops["lease_above"]


def test_everybody_is_answered_where_everybody_may_go(far: SimNode) -> None:
    kernel = kernel_of(far)
    sub = kernel.walk(b"b/dir/sub")
    far.world.run(0.1)

    assert validity(kernel.lookup(sub, b"x"))[0] >= LEASE - 1
    assert kernel.lookup(sub, b"none").nodeid == 0
    assert asked(kernel) == 2, "of dir, which the path manager found, and of /, which is its own"
    kernel.lookup(sub, b"x")
    before = kernel.machine.drops["lease_hits"]
    kernel.uid = 77
    kernel.ask(Opcode.GETATTR, kernel.lookup(sub, b"x").nodeid, bytes(16))
    assert kernel.machine.drops["lease_hits"] > before, "what another user was told"


def test_of_the_path_managers_own_directory_only_the_rights_are_believed(far: SimNode) -> None:
    kernel = kernel_of(far)
    kernel.walk(b"b/dir/sub")
    far.world.run(0.1)
    top = kernel.walk(b"b")

    assert validity(kernel.lookup(top, b"dir"))[0] == 1
    assert validity(kernel.lookup(1, b"b")) == (1, 1)
    assert validity(kernel.lookup(top, b"new"))[0] == 0
    far.files.add(b"new", b"")
    assert kernel.lookup(top, b"new").nodeid
    opened = kernel.ask(Opcode.OPENDIR, top, formats.OPEN_IN.pack(0, 0))
    assert not opened.open_flags & formats.FOPEN_CACHE_DIR


@pytest.mark.parametrize("where", ["/", "dir"])
@pytest.mark.parametrize("kind", [ATTRIB, IGNORED])
def test_what_is_not_for_everybody_any_more_is_taken_back(far: SimNode, where: str, kind: int) -> None:
    kernel = kernel_of(far)
    sub = kernel.walk(b"b/dir/sub")
    far.world.run(0.1)
    assert validity(kernel.lookup(sub, b"x"))[0] >= LEASE - 1
    kernel.notifications.clear()

    closed = far.files.root if where == "/" else far.files.find(b"dir")
    closed.mode &= ~0o077
    tell(far, closed, kind)
    far.world.run(0.1)

    entries = [note for note in kernel.notifications if note.error == formats.NOTIFY_INVAL_ENTRY]
    assert any(struct.unpack_from("=Q", note.body)[0] == sub and b"x" in note.body for note in entries)
    assert validity(kernel.lookup(sub, b"x"))[0] == 1
    kernel.uid = 77
    assert kernel.failing(b"b/dir" if where == "/" else b"b/dir/sub") == errno.EACCES


def test_it_is_certain_again_when_everybody_may_again(far: SimNode) -> None:
    kernel = kernel_of(far)
    sub = kernel.walk(b"b/dir/sub")
    far.world.run(0.1)
    far.files.root.mode &= ~0o077
    tell(far, far.files.root, ATTRIB)
    far.world.run(2)
    assert validity(kernel.lookup(sub, b"x"))[0] == 1

    far.files.root.mode |= 0o055
    tell(far, far.files.root, ATTRIB)
    far.world.run(2)
    kernel.walk(b"b/dir/sub")
    far.world.run(0.1)

    assert validity(kernel.lookup(sub, b"x"))[0] > 1


def test_what_its_server_does_not_watch_is_asked_for_now_and_then(far: SimNode, monkeypatch: pytest.MonkeyPatch) -> None:
    assert far.files.watching is not None
    add = far.files.watching.add
    monkeypatch.setattr(far.files.watching, "add", lambda client, inode: inode is not far.files.root and add(client, inode))
    kernel = kernel_of(far)
    for _ in range(5):
        sub = kernel.walk(b"b/dir/sub")
        far.world.run(1.1)

    assert validity(kernel.lookup(sub, b"x"))[0] == 1
    assert asked(kernel) == 2
    far.world.run(EVERY)
    kernel.walk(b"b/dir/sub")
    far.world.run(2)
    kernel.walk(b"b/dir")
    assert asked(kernel) == 3


def test_a_server_whose_root_is_another_directory_says_nothing_of_it(far: SimNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is attached deeper: what the path manager shows at `/` is somebody else's."""
    kernel = kernel_of(far)
    sub = kernel.walk(b"b/dir/sub")
    leases = kernel.machine.leases
    top = kernel.machine.nodes.get(kernel.walk(b"b"))
    assert top is not None
    top.ino += 1
    far.world.run(0.1)

    assert validity(kernel.lookup(sub, b"x"))[0] == 1
    assert all(lease.whole for lease in leases._leases.values())
