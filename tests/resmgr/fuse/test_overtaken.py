"""Writes that come while the file is emptied, or after a program has given something up that its server is still busy with."""

from __future__ import annotations

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


@pytest.mark.parametrize("by", ["open", "given up"])
def test_writes_that_overlap_keep_their_order_though_the_file_is_emptied_meanwhile(rig: Rig, by: str) -> None:
    """The kernel holds no lock of the file while another program opens it so."""
    node, fh = opened(rig)
    rig.write(node, fh, 0, b"before")
    rig.run(0.1)
    rig.fs.faults.append(Fault("open" if by == "open" else "setattr", delay=2.0, times=1, deaf=True))
    if by == "open":
        later(rig, Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_WRONLY | os.O_TRUNC, 0))
    else:
        given_up = later(rig, Opcode.SETATTR, node, EMPTIED)
        interrupt(rig, given_up)
    rig.run(1.9)
    slow(rig, 0.5, times=1)
    assert rig.write(node, fh, 0, b"first").error == 0
    rig.run(0.2)
    assert rig.fs.find(b"f").data == b"", "it is emptied"
    second = later(rig, Opcode.WRITE, node, write_in(fh, 0, b"second"))
    flush = later(rig, Opcode.FLUSH, node, FLUSH(fh, 0))
    rig.run(1)
    assert (rig.answers[second].error, rig.answers[flush].error) == (0, 0)
    assert rig.fs.find(b"f").data == b"second"
