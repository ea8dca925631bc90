"""Requests that wait: how they are told, and that each can be ended."""

from __future__ import annotations

import errno
import os

import pytest

from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.stuck import abort, unwritten
from resmgr.iorequest import parse_connect
from resmgr.testing.fuserig import PID, Rig
from resmgr.testing.memfs import Fault
from tests.resmgr.fuse.test_status import NOT_HERE, UNANSWERED, requests

AT_ONCE = (
    *(Opcode.GETLK, Opcode.SETLK, Opcode.SETLKW, Opcode.POLL, Opcode.IOCTL, Opcode.READDIR, Opcode.READDIRPLUS),
    *NOT_HERE,
)
"""What memfs does not have, and a listing that came with its opening: nobody waits."""


def test_a_request_is_told_with_its_name_and_who_waits(rig: Rig) -> None:
    rig.fs.add(b"d/f", b"")
    directory = rig.walk(b"d")
    rig.fs.faults.append(Fault("lookup", hang=True))
    unique = rig.start(Opcode.LOOKUP, directory, b"other\0")
    rig.run(2.5)

    (one,) = rig.machine.status()
    assert (one.unique, one.operation, one.path, one.pid, one.uid) == (unique, "LOOKUP", "/d/other", PID, 0)
    assert one.age == pytest.approx(2.5)
    assert one.server == (rig.fs.target.nd, rig.fs.target.pid, rig.fs.target.chid)


def test_one_that_waits_for_writes_is_as_old_as_its_question(rig: Rig) -> None:
    rig.fs.add(b"f", b"")
    node = rig.walk(b"f")
    fh = rig.open(node, os.O_RDWR).fh
    rig.fs.faults.append(Fault("write", delay=2.0, times=1))
    rig.fs.faults.append(Fault("sync", hang=True))
    rig.write(node, fh, 0, b"abc")
    rig.start(Opcode.FSYNC, node, formats.FSYNC_IN.pack(fh, 0))
    assert unwritten(rig.machine) == {0: (1, 3)}
    rig.run(3.0)

    (one,) = rig.machine.status()
    assert one.age == pytest.approx(3.0)
    assert unwritten(rig.machine) == {}


@pytest.mark.parametrize("opcode", [opcode for opcode in requests(1, 1, 1, 1, 1) if opcode not in UNANSWERED], ids=lambda one: one.name)
def test_every_operation_can_be_ended(rig: Rig, opcode: Opcode) -> None:
    rig.fs.add(b"d/f", b"123")
    rig.fs.add(b"d/e/x")
    rig.ask(Opcode.SYMLINK, rig.walk(b"d"), b"l\0text\0")
    directory, leaf, link = rig.walk(b"d"), rig.walk(b"d/f"), rig.walk(b"d/l")
    opened = rig.open(leaf, os.O_RDWR).fh
    listed = rig.ask(Opcode.OPENDIR, directory, bytes(8)).fh
    rig.run(5)
    handles = len(rig.fs.manager.table.handles)
    rig.fs.faults.append(Fault("*", hang=True, deaf=True))
    if opcode == Opcode.FLUSH:
        rig.write(leaf, opened, 0, b"waits")
    node, body = requests(directory, leaf, link, listed, opened)[opcode]
    unique = rig.start(opcode, node, body)
    assert (unique in rig.answers) == (opcode in AT_ONCE)
    if opcode in AT_ONCE:
        return

    assert abort(rig.machine, unique, errno.EHOSTDOWN)
    assert rig.answers[unique].error == -errno.EHOSTDOWN
    assert not abort(rig.machine, unique, errno.EHOSTDOWN), "it is over"
    assert rig.machine.status() == []

    rig.fs.faults.clear()
    while rig.fs.hanging:
        rig.fs.hanging.pop().error(errno.EINTR)
    rig.run(5)
    assert len(rig.fs.manager.table.handles) <= handles


def test_what_an_ended_open_brings_later_is_closed(rig: Rig) -> None:
    rig.fs.add(b"f", b"123")
    node = rig.walk(b"f")
    fs = rig.fs
    fs.faults.append(Fault("open", hang=True, deaf=True, times=1))
    unique = rig.start(Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_RDONLY, 0))
    assert abort(rig.machine, unique, errno.ECANCELED)
    assert rig.answers[unique].error == -errno.ECANCELED

    fs._open(fs.hanging[0], next(iter(fs.manager.table.clients.values())), parse_connect(fs.hanging[0].data), None)
    assert len(fs.manager.table.handles) == 1
    rig.run(3)
    assert rig.machine.statistics().events["late_replies"] == 1
    assert len(fs.manager.table.handles) == 0
