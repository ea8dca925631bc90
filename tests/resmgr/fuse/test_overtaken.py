"""Writes that come while the file is emptied, or after a program has given something up that its server is still busy with."""

from __future__ import annotations

import errno
import os

import pytest

from resmgr.fuse import formats
from resmgr.fuse.formats import FATTR_SIZE, Opcode
from resmgr.testing.fuserig import Rig
from resmgr.testing.memfs import Fault
from tests.resmgr.fuse.written import FLUSH, later, opened, slow, write_in

EMPTIED = formats.SETATTR_IN.pack(FATTR_SIZE, *(0,) * 14)


def interrupt(rig: Rig, unique: int) -> None:
    rig.raw(formats.IN_HEADER.pack(48, Opcode.INTERRUPT, 1001, 0, 0, 0, 0, 0, 0) + formats.INTERRUPT_IN.pack(unique))


def test_writes_that_overlap_keep_their_order_though_the_file_is_emptied_meanwhile(rig: Rig) -> None:
    """The kernel holds no lock of the file while another program opens it so."""
    node, fh = opened(rig)
    rig.write(node, fh, 0, b"before")
    rig.run(0.1)
    rig.fs.faults.append(Fault("open", delay=0.2, times=1))
    later(rig, Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_WRONLY | os.O_TRUNC, 0))
    rig.run(0.1)
    slow(rig, 0.5, times=1)
    assert rig.write(node, fh, 0, b"first").error == 0
    rig.run(0.2)
    assert rig.fs.find(b"f").data == b"", "it is emptied"
    second = later(rig, Opcode.WRITE, node, write_in(fh, 0, b"second"))
    flush = later(rig, Opcode.FLUSH, node, FLUSH(fh, 0))
    rig.run(1)
    assert (rig.answers[second].error, rig.answers[flush].error) == (0, 0)
    assert rig.fs.find(b"f").data == b"second"


@pytest.mark.parametrize("what", ["write", "truncate", "space"])
def test_what_was_given_up_at_the_server_is_not_overtaken(rig: Rig, what: str) -> None:
    node, fh = opened(rig)
    rig.write(node, fh, 0, b"before")
    rig.run(0.1)
    operation = {"write": "write", "truncate": "setattr", "space": "space"}[what]
    rig.fs.faults.append(Fault(operation, delay=2.5, times=1, deaf=True))
    if what == "write":
        given_up = later(rig, Opcode.WRITE, node, write_in(fh, 0, b"stale", flags=os.O_RDWR | os.O_DSYNC))
    elif what == "truncate":
        given_up = later(rig, Opcode.SETATTR, node, EMPTIED)
    else:
        given_up = later(rig, Opcode.FALLOCATE, node, formats.FALLOCATE_IN.pack(fh, 0, 6, 3))
    interrupt(rig, given_up)
    rig.run(2)
    assert rig.answers[given_up].error == -errno.EINTR
    next_one = rig.start(Opcode.WRITE, node, write_in(fh, 0, b"fresh"))
    flush = rig.start(Opcode.FLUSH, node, FLUSH(fh, 0))
    rig.run(2)
    assert (rig.answers[next_one].error, rig.answers[flush].error) == (0, 0)
    assert rig.fs.find(b"f").data[:5] == b"fresh"
    assert rig.machine.held_bytes == rig.machine.behind_cost == 0


def test_what_was_given_up_before_it_was_sent_holds_nothing_up(rig: Rig) -> None:
    """While the way to its directory was looked for."""
    rig.fs.add(b"d/f", b"before")
    directory = rig.walk(b"d")
    node = rig.lookup(directory, b"f").nodeid
    rig.run(0.1)
    known = rig.machine.nodes.get(directory)
    assert known is not None
    rig.machine.handles.drop_all(known)
    rig.fs.faults.append(Fault("lookup", delay=2.5, times=1, deaf=True))
    given_up = later(rig, Opcode.SETATTR, node, EMPTIED)
    interrupt(rig, given_up)
    rig.run(2)
    assert rig.answers[given_up].error == -errno.EINTR
    rig.run(1)
    assert rig.machine.drops["given_up_at_server"] == 0
    fh = rig.open(node, os.O_RDWR).fh
    assert rig.write(node, fh, 0, b"fresh").error == 0
    assert rig.ask(Opcode.FLUSH, node, FLUSH(fh, 0)).error == 0
    assert rig.fs.find(b"d/f").data == b"freshe"
