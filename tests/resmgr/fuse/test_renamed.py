"""Questions by a name that a program of this mount gives to another file before they are answered."""

from __future__ import annotations

import errno
import os
import struct
from stat import S_IFLNK

import pytest

from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.testing.fuserig import Rig
from resmgr.testing.memfs import Fault
from tests.resmgr.fuse.written import later


def rename(rig: Rig, old: bytes, new: bytes) -> None:
    assert rig.ask(Opcode.RENAME2, 1, struct.pack("=QII", 1, 0, 0) + old + b"\0" + new + b"\0").error == 0


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.fs.add(b"f", b"first")
    return rig


@pytest.mark.parametrize("replaced", [False, True])
def test_an_open_does_not_take_the_new_name_away(rig: Rig, replaced: bool) -> None:
    """Others have it open: there must not be a second node of it."""
    node = rig.walk(b"f")
    fh = rig.open(node, os.O_RDWR).fh
    rig.fs.faults.append(Fault("open", delay=0.1, times=1))
    asked = later(rig, Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_RDONLY, 0))
    rename(rig, b"f", b"g")
    if replaced:
        rig.fs.add(b"f", b"second")
    rig.run(0.2)
    assert rig.answers[asked].error == -errno.ESTALE
    assert rig.lookup(1, b"g").nodeid == node
    assert rig.open(node).error == 0
    assert rig.read(node, fh, 0, 10).body == b"first"
    other = rig.lookup(1, b"f")
    assert (other.error == 0 and other.nodeid not in (0, node)) is replaced


def test_what_has_its_old_name_is_not_taken_for_it(rig: Rig) -> None:
    node = rig.walk(b"f")
    rig.run(5)
    rig.fs.faults.append(Fault("lookup", delay=0.1, times=1))
    asked = later(rig, Opcode.GETATTR, node, formats.GETATTR_IN.pack(0, 0))
    rename(rig, b"f", b"g")
    rig.fs.add(b"f", b"longer")
    rig.run(0.2)
    assert rig.answers[asked].error == -errno.ESTALE
    assert rig.ask(Opcode.GETATTR, node, formats.GETATTR_IN.pack(0, 0)).attr[1] == 5
    assert rig.lookup(1, b"g").nodeid == node
    assert rig.lookup(1, b"f").nodeid != node


def test_attributes_that_came_with_open_are_not_older_than_what_was_told_since(rig: Rig) -> None:
    """Another client has written to it."""
    node = rig.walk(b"f")
    rig.run(5)
    rig.fs.faults.append(Fault("open", late=0.1, times=1))
    asked = later(rig, Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_RDONLY, 0))
    rig.fs.add(b"f", b"longer")
    rig.run(0.05)
    size = rig.ask(Opcode.GETATTR, node, formats.GETATTR_IN.pack(0, 0)).attr[1]
    assert size == 6
    rig.run(0.1)
    assert rig.answers[asked].error == 0
    assert rig.ask(Opcode.GETATTR, node, formats.GETATTR_IN.pack(0, 0)).attr[1] == 6


@pytest.mark.parametrize("how", ["replaced", "made anew", "made"])
def test_an_answer_that_is_overtaken_by_the_one_to_a_change_of_the_name(rig: Rig, how: str) -> None:
    """The kernel asks where a known name leads without the lock of its directory. There must not be a second node of an open file."""
    old = rig.walk(b"f")
    made = formats.CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o644, 0, 0)
    new = rig.ask(Opcode.CREATE, 1, made + b"new\0").nodeid if how == "replaced" else 0
    rig.run(5)
    rig.fs.faults.append(Fault("lookup", delay=0.1, code=errno.ENOENT) if how == "made" else Fault("lookup", late=0.1))
    asked = later(rig, Opcode.LOOKUP, 1, b"f\0")
    rig.run(0.01)
    rig.fs.faults.clear()
    if how == "replaced":
        rename(rig, b"new", b"f")
    else:
        assert rig.ask(Opcode.UNLINK, 1, b"f\0").error == 0
        new = rig.ask(Opcode.CREATE, 1, made + b"f\0").nodeid
    rig.run(0.2)
    assert rig.answers[asked].nodeid == new != old
    assert rig.lookup(1, b"f").nodeid == new
    assert rig.machine.drops["looked_up_again"] == 1


def test_the_text_of_a_link_that_has_its_old_name(rig: Rig) -> None:
    rig.fs.add(b"a", b"there", mode=S_IFLNK | 0o777)
    node = rig.walk(b"a")
    rig.fs.faults.append(Fault("readlink", delay=0.1, times=1))
    asked = later(rig, Opcode.READLINK, node, b"")
    rename(rig, b"a", b"b")
    rig.fs.add(b"a", b"elsewhere", mode=S_IFLNK | 0o777)
    rig.run(0.2)
    assert rig.answers[asked].error == -errno.ESTALE
    assert rig.ask(Opcode.READLINK, node).body == b"there"


@pytest.mark.parametrize("above", [False, True])
def test_a_directory_that_is_renamed_while_the_way_to_it_is_looked_for(rig: Rig, above: bool) -> None:
    """A program has it open: the kernel does not ask by another path then."""
    rig.fs.add(b"d/e/f", b"")
    place = rig.walk(b"d")
    node = rig.walk(b"d/e")
    rig.run(5)
    for one in (place, node):
        known = rig.machine.nodes.get(one)
        assert known is not None
        rig.machine.handles.drop_all(known)
    rig.fs.faults.append(Fault("lookup", delay=0.1, times=1))
    asked = later(rig, Opcode.GETATTR, node, formats.GETATTR_IN.pack(0, 0))
    if above:
        rename(rig, b"d", b"g")
    else:
        assert rig.ask(Opcode.RENAME2, place, struct.pack("=QII", place, 0, 0) + b"e\0g\0").error == 0
    rig.run(0.2)
    assert rig.answers[asked].error == 0


@pytest.mark.parametrize("leased", [False, True])
def test_a_change_of_attributes_that_was_given_up_and_is_made_under_another_name(rig: Rig, leased: bool) -> None:
    if leased:
        rig.fs.watch()
    rig.fs.add(b"d/f", b"")
    place = rig.walk(b"d")
    node = rig.walk(b"d/f")
    fh = rig.open(node, os.O_RDWR).fh
    rig.fs.faults.append(Fault("setattr", delay=2.5, times=1, deaf=True))
    mode = formats.SETATTR_IN.pack(formats.FATTR_MODE | formats.FATTR_FH, fh, *(0,) * 8, 0o600, *(0,) * 4)
    given_up = later(rig, Opcode.SETATTR, node, mode)
    rig.raw(formats.IN_HEADER.pack(48, Opcode.INTERRUPT, 1001, 0, 0, 0, 0, 0, 0) + formats.INTERRUPT_IN.pack(given_up))
    rig.run(1.5)
    assert rig.answers[given_up].error == -errno.EINTR
    assert rig.ask(Opcode.RENAME2, place, struct.pack("=QII", place, 0, 0) + b"f\0g\0").error == 0
    rig.notifications.clear()
    rig.run(0.98)
    # The server looks before, and the answer comes after.
    rig.fs.faults.append(Fault("lookup", late=0.1, times=1))
    before = later(rig, Opcode.LOOKUP, place, b"g\0")
    rig.run(0.2)
    assert rig.answers[before].entry[9] & 0o777 != 0o600
    assert any(one.error == formats.NOTIFY_INVAL_INODE for one in rig.notifications)
    assert rig.lookup(place, b"g").entry[9] & 0o777 == 0o600
