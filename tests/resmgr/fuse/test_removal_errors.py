"""What becomes of removals that were told done and failed, or came late."""

from __future__ import annotations

import errno
import logging

import pytest

from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.removals import WARY
from resmgr.testing.fuserig import Rig
from resmgr.testing.memfs import Fault
from tests.resmgr.fuse.removing import SLOW, TRIP, behind, prepared, there, unlink


@pytest.fixture
def ready() -> tuple[Rig, int]:
    return prepared()


def test_an_error_is_told_once_by_the_next_removal(ready: tuple[Rig, int], caplog: pytest.LogCaptureFixture) -> None:
    rig, node = ready
    rig.fs.faults[:] = [Fault("remove", name=b"f1", code=errno.EPERM, delay=TRIP)]
    assert rig.answers[unlink(rig, node, b"f1")].error == 0
    with caplog.at_level(logging.ERROR):
        rig.run(TRIP + 0.001)
    assert "removal of '/d/f1' was said to be done and failed: Operation not permitted" in caplog.text
    assert rig.machine.drops["removals_failed"] == 1

    assert rig.ask(Opcode.UNLINK, node, b"f2\0").error == -errno.EPERM
    assert not there(rig, b"f2")
    assert rig.ask(Opcode.UNLINK, node, b"f8\0").error == 0
    assert rig.lookup(node, b"f1").error == 0

    rig.run(WARY - 0.5)
    rig.fs.faults[:] = SLOW
    for name in b"f3", b"f4":
        rig.lookup(node, name)
        assert not behind(rig, node, name)
        rig.run(TRIP + 0.001)
    rig.run(0.5)
    rig.lookup(node, b"f5")
    assert behind(rig, node, b"f5")


def failed(rig: Rig, node: int) -> None:
    """The removal of f1 was told done, and was not."""
    rig.fs.faults[:] = [Fault("remove", name=b"f1", code=errno.EPERM)]
    assert rig.answers[unlink(rig, node, b"f1")].error == 0
    rig.run(0.001)
    assert there(rig, b"f1")


def test_an_error_is_told_by_rmdir(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    failed(rig, node)
    for code in errno.EPERM, errno.ENOTEMPTY:
        assert rig.ask(Opcode.RMDIR, 1, b"d\0").error == -code
    assert rig.ask(Opcode.UNLINK, node, b"f3\0").error == 0


def test_an_error_is_told_by_fsync(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    failed(rig, node)
    opened = rig.ask(Opcode.OPENDIR, node, bytes(8))
    fsync = formats.FSYNC_IN.pack(opened.fh, 0)
    assert rig.ask(Opcode.FSYNCDIR, node, fsync).error == -errno.EPERM
    assert rig.ask(Opcode.FSYNCDIR, node, fsync).error == 0


def test_an_error_that_nobody_asked_for_is_forgotten(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    failed(rig, node)
    rig.run(WARY + 1)
    assert rig.ask(Opcode.UNLINK, node, b"f2\0").error == 0
    assert rig.ask(Opcode.RMDIR, 1, b"d\0").error == -errno.ENOTEMPTY


@pytest.mark.parametrize("another", [False, True])
def test_no_error_is_told_of_what_is_gone_by_now(ready: tuple[Rig, int], another: bool) -> None:
    rig, node = ready
    failed(rig, node)
    rig.fs.remove(b"d/f1")
    if another:
        rig.fs.add(b"d/f1", b"another one")
    rig.run(0.1)
    assert rig.ask(Opcode.UNLINK, node, b"f2\0").error == 0
    assert not there(rig, b"f2")


def test_what_is_removed_after_all_is_no_error(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    failed(rig, node)
    rig.messages()
    assert rig.ask(Opcode.UNLINK, node, b"f1\0").error == 0
    assert rig.ask(Opcode.UNLINK, node, b"f2\0").error == 0
    assert rig.messages() == {"unlink": 2}


def test_an_error_of_its_own_comes_first(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    failed(rig, node)
    rig.fs.faults[:] = [Fault("unlink", code=errno.EROFS, times=1)]
    for code in errno.EROFS, errno.EPERM, 0:
        assert rig.ask(Opcode.UNLINK, node, b"f%d\0" % (2 if code else 3)).error == -code


def test_a_directory_that_is_empty_after_all_is_removed(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    failed(rig, node)
    for name in list(rig.fs.find(b"d").entries):
        rig.fs.remove(b"d/" + name)
    rig.run(0.1)
    assert rig.ask(Opcode.RMDIR, 1, b"d\0").error == 0


def test_who_has_a_signal_is_told_what_became_of_his(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    failed(rig, node)
    rig.fs.faults[:] = [Fault("lookup", hang=True, times=1)]
    unique = unlink(rig, node, b"f2")
    rig.run(0.1)
    assert unique not in rig.answers
    rig.start(Opcode.INTERRUPT, 0, formats.INTERRUPT_IN.pack(unique))
    rig.run(1)
    assert rig.answers[unique].error == 0
    assert not there(rig, b"f2")
    assert rig.ask(Opcode.UNLINK, node, b"f3\0").error == -errno.EPERM


def test_an_error_is_told_to_the_user_who_made_it(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    rig.fs.faults[:] = [Fault("remove", code=errno.EPERM)]
    unlink(rig, node, b"f1")
    rig.run(0.001)
    rig.uid = 1000
    other = unlink(rig, node, b"f2")
    rig.run(0.001)
    assert rig.answers[other].error == -errno.EACCES
    rig.uid = 0
    assert rig.ask(Opcode.UNLINK, node, b"f3\0").error == -errno.EPERM


def test_a_late_message_removes_no_other_file(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    unlink(rig, node, b"f1")
    directory = rig.fs.find(b"d")
    rig.fs.drop(directory, b"f1")
    rig.fs.add(b"d/f1", b"another one")
    rig.run(TRIP + 0.001)
    assert there(rig, b"f1")
    assert rig.lookup(node, b"f1").nodeid
    assert rig.machine.drops["removals_failed"] == 0


def test_a_late_message_removes_no_file_that_was_given_the_same_number(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    unlink(rig, node, b"f1")
    directory = rig.fs.find(b"d")
    ino = rig.fs.find(b"d/f1").ino
    rig.fs.drop(directory, b"f1")
    rig.fs.add(b"d/f1", b"another one").ino = ino
    rig.run(TRIP + 0.001)
    assert there(rig, b"f1")
    assert rig.lookup(node, b"f1").nodeid
    assert rig.machine.drops["removals_failed"] == 0


def test_one_that_comes_after_the_directory_was_lost_is_not_sent_again(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    rig.fs.faults[:] = [Fault("remove", code=errno.EBADF, times=1)]
    assert rig.answers[unlink(rig, node, b"f1")].error == 0
    rig.run(TRIP + 0.001)
    assert there(rig, b"f1")
    assert rig.messages()["remove"] == 1
    assert rig.ask(Opcode.UNLINK, node, b"f2\0").error == -errno.ESTALE


def test_a_server_that_cannot_tell_files_apart_is_waited_for(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    rig.fs.faults[:] = [Fault("remove", code=errno.ENOSYS), Fault("unlink", delay=TRIP)]
    unlink(rig, node, b"f1")
    rig.run(TRIP + 0.001)
    assert not there(rig, b"f1")
    assert rig.machine.drops["removals_failed"] == 0
    rig.messages()
    assert not behind(rig, node, b"f2")
    rig.run(TRIP + 0.001)
    assert rig.messages() == {"unlink": 1}


def test_who_is_quicker_makes_no_error(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    unlink(rig, node, b"f1")
    rig.fs.drop(rig.fs.find(b"d"), b"f1")
    rig.run(TRIP + 0.001)
    assert rig.machine.drops["removals_failed"] == 0
    assert rig.lookup(node, b"f1").nodeid == 0


def test_a_server_without_room_is_asked_again(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    rig.fs.faults[:] = [Fault("remove", code=errno.EAGAIN, times=3)]
    unlink(rig, node, b"f1")
    rig.run(0.2)
    assert rig.machine.drops["removals_again"] == 3
    assert not there(rig, b"f1")
    assert rig.machine.drops["removals_failed"] == 0


def test_where_others_were_let_in_none_is_sent_again(ready: tuple[Rig, int], caplog: pytest.LogCaptureFixture) -> None:
    """The server took the directory away, and the handle with it."""
    rig, node = ready
    rig.fs.faults[:] = [Fault("remove", code=errno.EBADF, delay=TRIP, times=1)]
    unlink(rig, node, b"f1")
    rig.run(10 * TRIP)
    assert rig.messages() == {"remove": 1}
    assert there(rig, b"f1")
    assert "Stale file handle" in caplog.text
