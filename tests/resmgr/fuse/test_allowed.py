"""access(2) and chdir(2) in leased directories: asked once, and again when rights may be others."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from stat import S_IFREG

import pytest

from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.iomsg import WATCH_ATTRIB
from resmgr.testing.fuserig import Rig


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.fs.watch()
    rig.fs.add(b"d/f", b"x")
    rig.fs.add(b"d/g", b"x", mode=S_IFREG | 0o600)
    rig.fs.add(b"d/sub/x", b"x")
    rig.walk(b"d/f")
    rig.walk(b"d/sub/x")
    rig.messages()
    return rig


def access(rig: Rig, path: bytes, mask: int) -> tuple[int, int]:
    """The answer, and how many messages it took."""
    node = rig.walk(path)
    rig.messages()
    error = rig.ask(Opcode.ACCESS, node, formats.ACCESS_IN.pack(mask) + bytes(4)).error
    return error, rig.messages().get("access", 0)


def test_who_was_told_that_he_may_use_a_file_is_told_so_again(rig: Rig) -> None:
    assert access(rig, b"d/f", os.R_OK) == (0, 1)
    assert access(rig, b"d/f", os.R_OK) == (0, 0)
    assert access(rig, b"d/f", os.R_OK | os.W_OK) == (0, 1)
    assert access(rig, b"d/f", os.W_OK) == (0, 0)
    assert access(rig, b"d/g", os.R_OK) == (0, 1)


def test_another_user_is_asked_for(rig: Rig) -> None:
    assert access(rig, b"d/g", os.R_OK) == (0, 1)
    rig.uid = 5
    assert access(rig, b"d/g", os.R_OK) == (-errno.EACCES, 1)
    assert access(rig, b"d/g", os.R_OK) == (-errno.EACCES, 1), "a refusal is not remembered"


def changed_there(rig: Rig) -> None:
    inode = rig.fs.find(b"d/f")
    inode.mode = S_IFREG | 0o600
    rig.fs.touch(inode)


def changed_here(rig: Rig) -> None:
    fields = [formats.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o600, 0, 0, 0, 0]
    assert rig.ask(Opcode.SETATTR, rig.walk(b"d/f"), formats.SETATTR_IN.pack(*fields)).error == 0


def replaced_here(rig: Rig) -> None:
    node = rig.walk(b"d")
    assert rig.ask(Opcode.RENAME, node, formats.RENAME_IN.pack(node) + b"g\0f\0").error == 0


def silent(rig: Rig) -> None:
    rig.machine.leases.silent(0, True)


@pytest.mark.parametrize("change", [changed_there, changed_here, replaced_here, silent])
def test_it_is_asked_again_when_it_may_be_otherwise(rig: Rig, change: Callable[[Rig], None]) -> None:
    assert access(rig, b"d/f", os.R_OK) == (0, 1)
    change(rig)
    rig.run(0.2)
    assert access(rig, b"d/f", os.R_OK)[1] == 1


def test_a_change_while_it_is_asked_counts(rig: Rig) -> None:
    """The event comes before the answer, which may be of before."""
    node = rig.walk(b"d/f")
    unique = rig.start(Opcode.ACCESS, node, formats.ACCESS_IN.pack(os.R_OK) + bytes(4))
    assert rig.answers[unique].error == 0
    changed_there(rig)
    rig.run(0.2)
    assert access(rig, b"d/f", os.R_OK)[1] == 1


def test_it_lasts_as_long_as_the_lease_says(rig: Rig) -> None:
    assert access(rig, b"d/f", os.R_OK) == (0, 1)
    rig.run(rig.machine.options.lease + 1)
    assert access(rig, b"d/f", os.R_OK) == (0, 1)


def test_who_searched_a_directory_may_search_it(rig: Rig) -> None:
    assert access(rig, b"d", os.X_OK) == (0, 0)
    assert access(rig, b"d", os.W_OK) == (0, 1)
    assert access(rig, b"d", os.R_OK) == (0, 1), "nobody has opened it"
    fh = rig.ask(Opcode.OPENDIR, rig.walk(b"d"), formats.OPEN_IN.pack(0, 0))
    assert fh.error == 0
    assert access(rig, b"d", os.R_OK | os.X_OK) == (0, 0)
    assert rig.fs.watching is not None
    rig.fs.watching.name(rig.fs.find(b"d"), b"", WATCH_ATTRIB)
    rig.run(0.2)
    assert rig.ask(Opcode.ACCESS, rig.lookup(1, b"d").nodeid, formats.ACCESS_IN.pack(os.X_OK) + bytes(4)).error == 0
    assert rig.messages()["access"] == 1


def test_what_is_open_and_has_no_name_is_asked_about_as_it_is_open() -> None:
    """access(2) of /proc/PID/fd, as `test -r /dev/stdin`."""
    rig = Rig()
    rig.fs.add(b"f", b"x")
    node = rig.walk(b"f")
    rig.open(node)
    assert rig.ask(Opcode.UNLINK, 1, b"f\0").error == 0
    assert rig.ask(Opcode.ACCESS, node, formats.ACCESS_IN.pack(os.R_OK)).error == 0
    rig.fs.add(b"f", b"another", mode=S_IFREG)
    assert rig.ask(Opcode.ACCESS, node, formats.ACCESS_IN.pack(os.R_OK)).error == 0
