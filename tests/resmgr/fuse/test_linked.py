"""A file with several names, of which somebody else gives one to another file: what is done by the others is done to it."""

from __future__ import annotations

import errno
from stat import S_ISDIR

import pytest

from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.testing.fuserig import Rig

CUT = formats.SETATTR_IN.pack(formats.FATTR_SIZE, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.fixture
def rig() -> Rig:
    """One file is d1/a, d2/a and d3/a."""
    return linked(Rig())


def linked(rig: Rig) -> Rig:
    file = rig.fs.add(b"d1/a", b"linked")
    for name in (b"d2", b"d3"):
        rig.fs.add(name + b"/other")
        rig.fs.enter(rig.fs.find(name), b"a", file)
    return rig


def replace(rig: Rig, path: bytes) -> None:
    rig.fs.remove(path)
    rig.fs.add(path, b"the other")


def contents(rig: Rig) -> list[bytes]:
    return [bytes(rig.fs.find(name + b"/a").data) for name in (b"d1", b"d2", b"d3")]


@pytest.mark.parametrize("first", [b"d1", b"d2"])
def test_it_goes_by_the_name_that_was_looked_up_last(rig: Rig, first: bytes) -> None:
    node = rig.walk(first + b"/a")
    assert rig.walk(b"d1/a") == rig.walk(b"d2/a") == node
    replace(rig, b"d1/a")

    assert rig.walk(b"d2/a") == node
    assert rig.ask(Opcode.SETATTR, node, CUT).error == 0
    assert contents(rig) == [b"the other", b"lin", b"lin"]
    assert rig.open(node).error == 0


@pytest.mark.parametrize(("one", "two"), [(b"d1/a", b"d2/a"), (b"d2/a", b"d1/a")])
def test_a_name_that_its_server_tells_of_is_not_the_one_it_goes_by(one: bytes, two: bytes) -> None:
    """The kernel believes the other name, and asks for none."""
    rig = linked(Rig())
    rig.fs.watch()
    node = rig.walk(one)
    assert rig.walk(two) == node
    rig.run(0.1)
    replace(rig, b"d1/a")
    rig.run(0.1)

    assert rig.ask(Opcode.SETATTR, node, CUT).error == 0
    assert contents(rig) == [b"the other", b"lin", b"lin"]


def test_an_open_by_a_name_that_leads_elsewhere_is_tried_again_by_the_path(rig: Rig) -> None:
    node = rig.walk(b"d1/a")
    assert rig.walk(b"d2/a") == rig.walk(b"d3/a") == rig.walk(b"d2/a") == node
    replace(rig, b"d2/a")
    replace(rig, b"d3/a")

    assert rig.open(node).error == -errno.ESTALE
    # The program came by d1/a, or by one of the others: each is found.
    assert rig.walk(b"d3/a") != node
    assert rig.walk(b"d2/a") != node
    assert rig.walk(b"d1/a") == node
    assert rig.read(node, rig.open(node).fh, 0, 10).body == b"linked"
    assert rig.read(rig.walk(b"d2/a"), rig.open(rig.walk(b"d2/a")).fh, 0, 10).body == b"the other"
    rig.run(2)
    opened = [handle for handle in rig.fs.manager.table.handles.values() if not S_ISDIR(rig.fs.inode_of(handle).mode)]
    assert len(opened) == 2, "what was opened by mistake is closed"


def test_a_name_that_is_gone_is_not_the_one_it_goes_by(rig: Rig) -> None:
    node = rig.walk(b"d1/a")
    assert rig.walk(b"d2/a") == node
    rig.fs.remove(b"d2/a")

    assert rig.open(node).error == 0, "by the other"
    assert rig.walk(b"d1/a") == node
    assert rig.open(node).error == 0
