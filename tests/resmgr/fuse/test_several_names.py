"""A file that others give a further name, or another one, while it is known here: one inode is one node (docs/protocol/fuse.md)."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.testing.fuserig import Rig
from resmgr.testing.memtree import Inode
from tests.resmgr.fuse.test_leases import leased, told


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.fs.add(b"d/f", b"old")
    return rig


def link(rig: Rig, old: bytes, new: bytes) -> Inode:
    """A program of the server gives what is *old* in d the name *new* there."""
    inode = rig.fs.find(b"d/" + old)
    rig.fs.enter(rig.fs.find(b"d"), new, inode)
    return inode


def rename(rig: Rig, old: bytes, new: bytes) -> Inode:
    inode = link(rig, old, new)
    rig.fs.remove(b"d/" + old)
    return inode


def size(rig: Rig, node: int) -> int:
    """By a name of it."""
    return rig.ask(Opcode.GETATTR, node, bytes(16)).attr[1]


def test_a_second_name_of_what_is_open_leads_to_its_node(rig: Rig) -> None:
    node = rig.walk(b"d/f")
    fh = rig.open(node, os.O_RDWR).fh
    link(rig, b"f", b"g")

    assert rig.walk(b"d/g") == node
    other = rig.open(node)
    rig.write(node, fh, 0, b"written")
    assert rig.walk(b"d/f") == node
    assert rig.read(node, other.fh, 0, 10).body == b"written"


@pytest.mark.parametrize("watched", [False, True])
def test_so_does_another_name(rig: Rig, watched: bool) -> None:
    if watched:
        rig.fs.watch()
    directory = leased(rig)
    node = rig.walk(b"d/f")
    fh = rig.open(node, os.O_RDWR).fh
    told(rig)
    rename(rig, b"f", b"g")

    assert rig.walk(b"d/g") == node
    # It has one name only, so the earlier one is taken back.
    rig.run(0.1)
    assert (directory, b"f") in told(rig)[1]
    rig.write(node, fh, 0, b"written")
    assert rig.lookup(directory, b"g").entry[1] == len(b"written")
    assert rig.lookup(directory, b"f").nodeid == 0
    assert rig.walk(b"d/g") == node


def test_what_nobody_has_open_is_another_file_when_its_number_is_told_again(rig: Rig) -> None:
    node = rig.walk(b"d/f")
    inode = rig.fs.find(b"d/f")
    rig.fs.remove(b"d/f")
    rig.fs.add(b"d/g", b"new").ino = inode.ino

    assert rig.walk(b"d/g") != node


def test_nor_is_what_was_open_when_its_server_went_away(rig: Rig) -> None:
    """Its number may have been used again."""
    node = rig.walk(b"d/f")
    rig.open(node)
    inode = rig.fs.find(b"d/f")
    for file in rig.machine.files.values():
        file.dead = True
    rig.fs.remove(b"d/f")
    rig.fs.add(b"d/g", b"new").ino = inode.ino

    assert rig.walk(b"d/g") != node


def test_two_names_met_before_it_is_opened(rig: Rig) -> None:
    node = rig.walk(b"d/f")
    link(rig, b"f", b"g")

    assert rig.walk(b"d/g") == node
    assert rig.walk(b"d/f") == node


def test_it_goes_by_the_name_that_was_told_last(rig: Rig) -> None:
    """The other one has been given to another file since, and nobody has said so."""
    node = rig.walk(b"d/f")
    link(rig, b"f", b"g")
    assert rig.walk(b"d/g") == node
    assert rig.walk(b"d/f") == node
    rig.fs.remove(b"d/g")
    another = rig.fs.add(b"d/g", b"another")
    before = another.mode

    chmod(rig, node)

    assert another.mode == before
    assert rig.fs.find(b"d/f").mode != before


def test_back_to_the_name_of_before(rig: Rig) -> None:
    """The earlier name still has the node of before, which nobody has open."""
    before = rig.walk(b"d/f")
    rename(rig, b"f", b"g")
    node = rig.walk(b"d/g")
    assert node != before
    rig.open(node)
    rename(rig, b"g", b"f")

    assert rig.walk(b"d/f") == node


def test_what_was_opened_later_than_another_node_was_made(rig: Rig) -> None:
    """d/f is believed to be there until its name is given back, and is opened then."""
    node = rig.walk(b"d/f")
    rename(rig, b"f", b"g")
    other = rig.walk(b"d/g")
    assert other != node
    rename(rig, b"g", b"f")
    rig.open(node)
    link(rig, b"f", b"h")

    assert rig.walk(b"d/h") == node


def test_a_listing_shows_the_same(rig: Rig) -> None:
    directory = rig.walk(b"d")
    node = rig.walk(b"d/f")
    rig.open(node)
    rename(rig, b"f", b"g")
    fh = rig.ask(Opcode.OPENDIR, directory, bytes(8)).fh

    body = rig.ask(Opcode.READDIRPLUS, directory, struct.pack("=QQIIQII", fh, 2, 4096, 0, 0, 0, 0)).body

    assert struct.unpack_from("=Q", body)[0] == node
    assert rig.walk(b"d/g") == node


def test_who_may_use_it_is_asked_again_by_the_other_name(rig: Rig) -> None:
    """Exports are of paths. The events of the change are not there yet."""
    watch = rig.fs.watch()
    directory = leased(rig)
    node = rig.lookup(directory, b"f").nodeid
    rig.open(node)
    may_read = struct.pack("=II", os.R_OK, 0)
    assert rig.ask(Opcode.ACCESS, node, may_read).error == 0
    watch.muted = True
    rename(rig, b"f", b"g")
    rig.messages()
    assert rig.ask(Opcode.ACCESS, node, may_read).error == 0
    assert rig.messages() == {}

    assert rig.lookup(directory, b"g").nodeid == node
    rig.messages()
    assert rig.ask(Opcode.ACCESS, node, may_read).error == 0
    assert rig.messages() == {"access": 1}


@pytest.mark.parametrize("how", [Opcode.LOOKUP, Opcode.READDIRPLUS])
def test_a_listing_of_before_does_not_undo_what_was_done_by_the_other_name(rig: Rig, how: Opcode) -> None:
    for name in (b"a", b"b"):
        rig.fs.add(b"d/" + name, name)
    directory = rig.walk(b"d")
    node = rig.walk(b"d/f")
    fh = rig.open(node, os.O_RDWR).fh
    rename(rig, b"f", b"g")
    rig.run(0.01)
    listing = rig.ask(Opcode.OPENDIR, directory, bytes(8)).fh
    if how == Opcode.READDIRPLUS:
        rig.ask(how, directory, struct.pack("=QQIIQII", listing, 0, 4 * 160, 0, 0, 0, 0))
    else:
        # Which has the rest read ahead.
        for name in (b"a", b"b"):
            rig.lookup(directory, name)
    rig.run(0.01)
    chmod(rig, node, fh)

    if how == Opcode.LOOKUP:
        found = rig.lookup(directory, b"g")
        assert (found.nodeid, found.entry[9] & 0o777) == (node, 0o600)
    else:
        body = rig.ask(Opcode.READDIRPLUS, directory, struct.pack("=QQIIQII", listing, 4, 4096, 0, 0, 0, 0)).body
        assert b"g\0" in body
        assert struct.unpack_from("=Q", body)[0] == 0


def chmod(rig: Rig, node: int, fh: int = 0) -> None:
    valid = formats.FATTR_MODE | (formats.FATTR_FH if fh else 0)
    assert rig.ask(Opcode.SETATTR, node, formats.SETATTR_IN.pack(valid, fh, *[0] * 8, 0o600, *[0] * 4)).error == 0


@pytest.mark.parametrize("gone", [b"f", b"g"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
@pytest.mark.parametrize("watched", [False, True])
def test_one_of_its_names_is_not_there_any_more(rig: Rig, gone: bytes, how: str, watched: bool) -> None:
    """The kernel says which node it means, not by which name: by one that leads elsewhere nothing is known of it."""
    left = b"d/" + {b"f": b"g", b"g": b"f"}[gone]
    node = with_two_names(rig, watched)
    rig.run(2)
    rig.fs.remove(b"d/" + gone)
    if how == "replaced":
        rig.fs.add(b"d/" + gone, b"another file")
    rig.run(0.1)

    assert size(rig, node) == len(b"old")
    opened = rig.open(node)
    if opened.error:
        # The kernel tries again, by the path.
        assert opened.error == -errno.ESTALE
        assert rig.walk(left) == node
        opened = rig.open(node)
    assert rig.read(node, opened.fh, 0, 20).body == b"old"


@pytest.mark.parametrize("gone", [b"f", b"g"])
def test_what_has_one_of_its_names_now_is_left_as_it_is(rig: Rig, gone: bytes) -> None:
    left = b"d/" + {b"f": b"g", b"g": b"f"}[gone]
    node = with_two_names(rig, True)
    rig.fs.remove(b"d/" + gone)
    rig.fs.add(b"d/" + gone, b"another file")
    rig.run(0.1)

    chmod(rig, node)

    assert rig.fs.find(left).mode & 0o777 == 0o600
    assert rig.fs.find(b"d/" + gone).mode & 0o777 != 0o600


def with_two_names(rig: Rig, watched: bool) -> int:
    """The node of d/f, which is also d/g; both are known."""
    if watched:
        rig.fs.watch()
    link(rig, b"f", b"g")
    leased(rig)
    node = rig.walk(b"d/f")
    assert rig.walk(b"d/g") == node
    return node
