"""Removals that programs are told are done before the server has them: when, what waits for them, and what becomes of their errors."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

import pytest

from resmgr.fuse import formats, handover
from resmgr.fuse.alone import KEPT, NOT_AGAIN, QUIET
from resmgr.fuse.arrivals import Arrivals
from resmgr.fuse.awake import BEAT
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import FuseOptions
from resmgr.fuse.removals import BURST, LINGER
from resmgr.iomsg import WATCH_ATTRIB
from resmgr.testing.fuserig import Rig
from resmgr.testing.memfs import Fault
from tests.resmgr.fuse.removing import CREATE, SLOW, TRIP, behind, prepared, there, unlink


@pytest.fixture
def ready() -> tuple[Rig, int]:
    return prepared()


# ---- when


def test_removals_travel_together(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    began = rig.dispatch.now()

    for number in range(8):
        assert rig.answers[unlink(rig, node, b"f%d" % number)].error == 0
    assert rig.dispatch.now() == began
    assert there(rig, b"f0")
    assert there(rig, b"f7")
    rig.run(TRIP + 0.001)

    assert rig.messages() == {"remove": 8}
    assert not there(rig, b"f0")
    assert not there(rig, b"f7")
    assert rig.machine.removals.count == 0
    assert rig.machine.drops["removed_behind"] == 8


def test_what_is_removed_is_known_to_be_gone(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    unlink(rig, node, b"f1")
    rig.run(TRIP + 0.001)

    assert rig.lookup(node, b"f1").nodeid == 0
    assert rig.messages() == {"remove": 1}


def test_the_first_ones_in_a_directory_are_waited_for() -> None:
    rig = Rig()
    rig.fs.watch().spares = True
    rig.fs.delegate()
    for name in b"a", b"b", b"c":
        rig.fs.add(b"d/" + name, b"")
    node = rig.walk(b"d")
    rig.run(0.001)
    for name in b"a", b"b", b"c":
        rig.lookup(node, name)
    rig.fs.faults += SLOW

    assert not behind(rig, node, b"a")
    rig.run(TRIP + 0.001)
    assert not behind(rig, node, b"b")
    rig.run(TRIP + 0.001)
    assert behind(rig, node, b"c")
    assert rig.machine.drops["alone"] == 1


def test_one_by_itself_is_waited_for(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    rig.run(BURST + 0.001)
    for number in range(3):
        rig.lookup(node, b"f%d" % number)
    assert not behind(rig, node, b"f0")
    rig.run(TRIP + 0.001)
    assert behind(rig, node, b"f1")
    assert behind(rig, node, b"f2")


def test_who_has_made_something_may_remove_something(ready: tuple[Rig, int]) -> None:
    rig, _ = ready
    made = rig.ask(Opcode.MKDIR, 1, formats.MKDIR_IN.pack(0o755, 0) + b"made\0").nodeid
    rig.run(0.001)
    for name in b"a", b"b", b"c":
        created = rig.ask(Opcode.CREATE, made, CREATE + name + b"\0")
        rig.release(created.nodeid, struct.unpack_from("=Q", created.body, formats.ENTRY_OUT.size)[0])
        rig.run(0.001)
        rig.lookup(made, name)
    for name in b"a", b"b":
        assert not behind(rig, made, name)
        rig.run(TRIP + 0.001)
    assert behind(rig, made, b"c")


def test_a_refusal_is_told_and_the_next_one_asked() -> None:
    rig = Rig()
    rig.fs.watch().spares = True
    rig.fs.delegate()
    rig.fs.add(b"d/a", b"")
    rig.fs.add(b"d/b", b"")
    node = rig.walk(b"d")
    rig.run(0.001)
    rig.lookup(node, b"a")
    rig.lookup(node, b"b")
    rig.fs.faults.append(Fault("unlink", code=errno.EPERM, delay=TRIP))

    for name in b"a", b"b":
        unique = unlink(rig, node, name)
        assert unique not in rig.answers
        rig.run(TRIP + 0.001)
        assert rig.answers[unique].error == -errno.EPERM


def test_another_user_is_asked_for_himself(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    rig.uid = 1000
    assert not behind(rig, node, b"f1")


def test_what_is_open_has_two_names_or_is_not_known_is_waited_for(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    opened = rig.open(rig.lookup(node, b"f1").nodeid)
    assert not behind(rig, node, b"f1")
    rig.release(rig.walk(b"d/f2"), opened.fh)

    fixed = formats.LINK_IN.pack(rig.walk(b"d/f3"))
    assert rig.ask(Opcode.LINK, node, fixed + b"g3\0").error == 0
    rig.lookup(node, b"f3")
    assert not behind(rig, node, b"f3")
    rig.run(TRIP + 0.001)

    rig.fs.add(b"d/new", b"")
    assert not behind(rig, node, b"new")


def test_what_somebody_else_has_changed_is_waited_for(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    rig.fs.add(b"d/f1", b"another one")
    rig.run(0.1)
    assert not behind(rig, node, b"f1")


def test_when_the_rights_of_the_directory_change_the_next_one_is_waited_for(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    assert rig.fs.watching is not None
    rig.fs.watching.name(rig.fs.find(b"d"), b"", WATCH_ATTRIB)
    rig.run(0.1)
    assert not behind(rig, node, b"f1")


def test_in_a_sticky_directory_all_are_waited_for(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    fixed = formats.SETATTR_IN.pack(formats.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o41777, 0, 0, 0, 0)
    assert rig.ask(Opcode.SETATTR, node, fixed).error == 0
    rig.run(NOT_AGAIN)
    rig.messages()
    for name in b"f1", b"f2", b"f3":
        rig.lookup(node, name)
        assert not behind(rig, node, name)
        rig.run(TRIP + 0.001)
    assert "delegation" not in rig.messages()


def test_a_silent_node_is_waited_for(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    rig.machine.leases.silent(0, True)
    assert not behind(rig, node, b"f1")


def test_no_more_than_the_option_says() -> None:
    rig, node = prepared(FuseOptions(removals=2))
    assert behind(rig, node, b"f0")
    assert behind(rig, node, b"f1")
    assert not behind(rig, node, b"f2")


def test_the_option_switches_it_off() -> None:
    rig, node = prepared(FuseOptions(removals=0))
    assert not behind(rig, node, b"f0")


# ---- who else is there


def test_whoever_else_looks_finds_gone_what_was_removed(ready: tuple[Rig, int]) -> None:
    """Another client's question waits until what is on the way has arrived; then the directory is not this one's alone."""
    rig, node = ready
    unlink(rig, node, b"f1")
    rig.uid = 1000
    found = rig.start(Opcode.LOOKUP, 1, b"d\0")
    rig.run(TRIP / 2)
    assert found not in rig.answers
    rig.run(TRIP)
    assert rig.answers[found].error == 0
    assert rig.lookup(rig.answers[found].nodeid, b"f1").nodeid == 0
    assert rig.machine.drops["alone_recalled"] == 1

    rig.uid = 0
    for name in b"f2", b"f3", b"f4":
        assert not behind(rig, node, name)
        rig.run(TRIP + 0.001)


def test_of_two_who_remove_a_file_one_is_told_that_it_did(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    rig.fs.find(b"d").mode |= 0o022
    unlink(rig, node, b"f1")
    rig.uid = 1000
    other = unlink(rig, node, b"f1")
    rig.run(3 * TRIP)
    assert rig.answers[other].error == -errno.ENOENT


def test_a_directory_in_which_others_are_is_not_asked_for_in_vain(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    rig.uid = 1000
    found = rig.start(Opcode.LOOKUP, 1, b"d\0")
    rig.run(0.1)
    rig.lookup(rig.answers[found].nodeid, b"f0")
    rig.uid = 0
    rig.run(NOT_AGAIN)
    rig.messages()
    for number in range(5):
        rig.lookup(node, b"f%d" % number)
        assert not behind(rig, node, b"f%d" % number)
        rig.run(TRIP + 0.001)
    assert rig.messages().get("delegation") == 1


def test_where_the_server_s_programs_work_all_are_waited_for(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    rig.fs.add(b"d/other", b"")
    rig.run(0.1)
    rig.messages()
    for number in range(5):
        rig.lookup(node, b"f%d" % number)
        assert not behind(rig, node, b"f%d" % number)
        rig.run(TRIP + 0.001)
    assert "delegation" not in rig.messages()
    rig.run(QUIET)
    for number in range(5, 7):
        rig.lookup(node, b"f%d" % number)
        assert not behind(rig, node, b"f%d" % number)
        rig.run(TRIP + 0.001)
    rig.lookup(node, b"f7")
    assert behind(rig, node, b"f7")


def test_what_is_not_used_is_given_back(ready: tuple[Rig, int]) -> None:
    rig, _ = ready
    assert len(rig.machine.alone) == 1
    rig.run(KEPT + 2 * BEAT)
    assert len(rig.machine.alone) == 0
    assert rig.fs.delegations is not None
    assert not rig.fs.delegations.alone


def test_a_daemon_that_was_stopped_has_nothing_to_itself(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    slept = 0.0
    rig.machine.awake.asleep = lambda: slept
    assert behind(rig, node, b"f0")
    slept = 5.0
    assert not behind(rig, node, b"f1")


# ---- what waits


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (Opcode.LOOKUP, b"f1\0"),
        (Opcode.UNLINK, b"f1\0"),
        (Opcode.CREATE, CREATE + b"f1\0"),
        (Opcode.CREATE, CREATE + b"other\0"),
        (Opcode.MKDIR, formats.MKDIR_IN.pack(0o755, 0) + b"f1\0"),
        (Opcode.MKNOD, formats.MKNOD_IN.pack(0o100644, 0, 0, 0) + b"f1\0"),
        (Opcode.SYMLINK, b"f1\0text\0"),
        (Opcode.GETATTR, bytes(16)),
        (Opcode.OPENDIR, bytes(8)),
        (Opcode.STATFS, b""),
        (Opcode.SETATTR, formats.SETATTR_IN.pack(formats.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 0, 0, 0, 0)),
    ],
)
def test_what_could_notice_waits(ready: tuple[Rig, int], opcode: Opcode, body: bytes) -> None:
    rig, node = ready
    unlink(rig, node, b"f1")
    rig.messages()

    unique = rig.start(opcode, node, body)
    rig.run(TRIP / 2)
    assert unique not in rig.answers
    assert set(rig.messages()) <= {"remove", "unlink"}
    rig.run(2 * TRIP)
    assert unique in rig.answers
    assert rig.machine.drops["waited_for_removals"] == 1


def test_who_waits_does_not_wait_for_later_ones(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    unlink(rig, node, b"f1")
    asked = rig.start(Opcode.GETATTR, node, bytes(16))
    for number in range(2, 9):
        rig.run(TRIP / 4)
        unlink(rig, node, b"f%d" % number)
        if asked in rig.answers:
            break
    assert number < 8


def test_other_names_do_not_wait(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    unlink(rig, node, b"f1")
    assert rig.lookup(node, b"f2").error == 0
    assert rig.ask(Opcode.ACCESS, node, struct.pack("=II", 1, 0)).error == 0


# Of a file, its directory and what is open of it: operation, node, body.
SIGNS: dict[str, Callable[[int, int, int], tuple[Opcode, int, bytes]]] = {
    "lock": lambda file, place, fh: (Opcode.SETLK, file, formats.LK_IN.pack(fh, 7, 0, 99, 1, 5, 0)),
    "unlock": lambda file, place, fh: (Opcode.SETLK, file, formats.LK_IN.pack(fh, 7, 0, 99, 2, 5, 0)),
    "close": lambda file, place, fh: (Opcode.FLUSH, file, formats.FLUSH_IN.pack(fh, 7)),
    "sync": lambda file, place, fh: (Opcode.FSYNC, file, formats.FSYNC_IN.pack(fh, 0)),
    "empty": lambda file, place, fh: (Opcode.OPEN, file, formats.OPEN_IN.pack(os.O_WRONLY | os.O_TRUNC, 0)),
    "append": lambda file, place, fh: (Opcode.WRITE, file, formats.WRITE_IN.pack(fh, 0, 1, 0, 0, os.O_APPEND) + b"x"),
    "write through": lambda file, place, fh: (Opcode.WRITE, file, formats.WRITE_IN.pack(fh, 0, 1, 0, 0, os.O_DSYNC) + b"x"),
    "rename": lambda file, place, fh: (Opcode.RENAME2, place, formats.RENAME2_IN.pack(place, 0) + b"f\0g\0"),
    "make": lambda file, place, fh: (Opcode.MKDIR, place, formats.MKDIR_IN.pack(0o755, 0) + b"new\0"),
}


@pytest.mark.parametrize("sign", SIGNS)
def test_what_others_take_for_a_sign_waits(ready: tuple[Rig, int], sign: str) -> None:
    """Whoever gets a lock, or finds what was made, moved, written through or closed, finds what was removed before gone."""
    rig, node = ready
    rig.fs.add(b"e/f", b"data")
    file, place = rig.walk(b"e/f"), rig.walk(b"e")
    read, written = rig.open(file).fh, rig.open(file, os.O_RDWR).fh
    rig.write(file, written, 0, b"x")
    rig.run(0.1)
    rig.lookup(node, b"f0")
    unlink(rig, node, b"f0")
    rig.run(TRIP + 0.001)
    rig.lookup(node, b"f1")
    assert behind(rig, node, b"f1")
    assert rig.ask(Opcode.FLUSH, file, formats.FLUSH_IN.pack(read, 9)).error == 0
    assert rig.open(file, os.O_RDWR).error == 0
    assert rig.write(file, written, 0, b"x").error == 0
    assert there(rig, b"f1")

    unique = rig.start(*SIGNS[sign](file, place, written))
    rig.run(TRIP / 2)
    assert unique not in rig.answers
    rig.run(TRIP)
    assert rig.answers[unique].error == 0
    assert not there(rig, b"f1")


def test_the_last_close_of_what_was_locked_waits(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    rig.fs.add(b"e/f", b"data")
    file = rig.walk(b"e/f")
    opened = rig.open(file, os.O_RDWR).fh
    assert rig.ask(Opcode.SETLK, file, formats.LK_IN.pack(opened, 7, 0, 99, 1, 5, 0)).error == 0
    rig.run(0.1)
    rig.lookup(node, b"f0")
    unlink(rig, node, b"f0")
    rig.run(TRIP + 0.001)
    rig.lookup(node, b"f1")
    assert behind(rig, node, b"f1")
    unique = rig.start(Opcode.RELEASE, file, formats.RELEASE_IN.pack(opened, 0, 0, 0))
    rig.run(TRIP / 2)
    assert unique not in rig.answers
    rig.run(TRIP)
    assert rig.answers[unique].error == 0


def test_a_close_that_waited_longer_than_any_may_is_done_all_the_same() -> None:
    """The kernel says it once."""
    rig, node = prepared(FuseOptions(deadline=1.0))
    file = rig.lookup(node, b"f8").nodeid
    opened = rig.open(file, os.O_RDWR).fh
    assert rig.ask(Opcode.SETLK, file, formats.LK_IN.pack(opened, 7, 0, 9, 1, 70, 0)).error == 0
    rig.fs.faults[:] = [Fault("remove", delay=5.0)]
    assert behind(rig, node, b"f1")
    unique = rig.start(Opcode.RELEASE, file, formats.RELEASE_IN.pack(opened, 0, 0, 0))
    rig.run(2)
    assert rig.answers[unique].error < 0
    rig.run(5)
    assert not rig.machine.files
    assert not any(one.files for one in rig.machine.nodes)


@pytest.mark.parametrize("resends", [False, True])
@pytest.mark.parametrize("answered", [False, True])
def test_a_close_that_waits_when_the_mount_is_handed_over_is_not_forgotten(resends: bool, answered: bool) -> None:
    """The next daemon does not hear of it, unless the kernel has it still and says it again."""
    rig, node = prepared(FuseOptions(deadline=1.0))
    rig.machine.resends = resends
    file = rig.lookup(node, b"f8").nodeid
    opened = rig.open(file, os.O_RDWR).fh
    assert rig.ask(Opcode.SETLK, file, formats.LK_IN.pack(opened, 7, 0, 9, 1, 70, 0)).error == 0
    rig.fs.faults[:] = [Fault("remove", hang=True, deaf=True)]
    assert behind(rig, node, b"f1")
    unique = rig.start(Opcode.RELEASE, file, formats.RELEASE_IN.pack(opened, 0, 0, 0))
    rig.run(2 if answered else 0.1)
    assert (unique in rig.answers) is answered
    handover.give_up(rig.machine)
    said_again = resends and not answered
    assert (unique in rig.answers) is not said_again
    told = handover.state_of(rig.machine, lambda nd: None)
    assert [one.fh for one in told.files] == ([opened] if said_again else [])


def test_rmdir_waits_for_what_was_in_it(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    for number in range(9):
        unlink(rig, node, b"f%d" % number)
    unique = rig.start(Opcode.RMDIR, 1, b"d\0")
    assert unique not in rig.answers
    rig.run(TRIP + 0.001)
    assert rig.answers[unique].error == 0


@pytest.mark.parametrize("into", [True, False])
def test_rename_waits_in_both_directories(ready: tuple[Rig, int], into: bool) -> None:
    rig, node = ready
    rig.fs.add(b"e/f2", b"")
    other = rig.walk(b"e")
    unlink(rig, node, b"f1")
    old, new = (other, node) if into else (node, other)
    unique = rig.start(Opcode.RENAME2, old, formats.RENAME2_IN.pack(new, 0) + b"f2\0f1\0")
    rig.run(TRIP / 2)
    assert unique not in rig.answers
    rig.run(TRIP)
    assert rig.answers[unique].error == 0


def test_who_looks_up_a_forgotten_directory_finds_gone_what_was_removed(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    unlink(rig, node, b"f1")
    for one in list(rig.machine.nodes)[1:]:
        rig.raw(formats.IN_HEADER.pack(48, Opcode.FORGET, 0, one.nodeid, 0, 0, 0, 0, 0) + struct.pack("=Q", one.lookups))
    found = rig.start(Opcode.LOOKUP, 1, b"d\0")
    rig.run(TRIP / 2)
    asked = rig.start(Opcode.LOOKUP, rig.answers[found].nodeid, b"f1\0")
    rig.run(TRIP)
    assert rig.answers[asked].nodeid == 0
    rig.raw(formats.IN_HEADER.pack(48, Opcode.FORGET, 0, rig.answers[found].nodeid, 0, 0, 0, 0, 0) + struct.pack("=Q", 1))
    assert len(rig.machine.nodes) == 1


def test_a_forgotten_directory_is_let_go_when_all_have_arrived(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    unlink(rig, node, b"f1")
    for one in list(rig.machine.nodes)[1:]:
        rig.raw(formats.IN_HEADER.pack(48, Opcode.FORGET, 0, one.nodeid, 0, 0, 0, 0, 0) + struct.pack("=Q", one.lookups))
    assert len(rig.machine.nodes) == 2
    rig.run(TRIP + 0.001)
    assert len(rig.machine.nodes) == 1
    assert not there(rig, b"f1")


def test_a_directory_whose_handle_was_let_go_is_given_back_at_once(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    assert rig.fs.delegations is not None
    (connection,) = rig.machine.servers.root.connections.values()
    directory = rig.machine.nodes.get(node)
    assert directory is not None
    rig.machine.handles.drop(directory, connection)
    for name in b"f1", b"f2":
        assert not behind(rig, node, name)
        rig.run(TRIP + 0.001)
    assert not rig.fs.delegations.alone


# ---- the end


def test_the_next_daemon_does_not_wait_for_ever(ready: tuple[Rig, int], caplog: pytest.LogCaptureFixture) -> None:
    rig, node = ready
    assert not handover.restless(rig.machine)
    unlink(rig, node, b"f1")
    assert handover.restless(rig.machine)
    handover.give_up(rig.machine)
    assert "removal of '/d/f1' was said to be done and failed: Host is down" in caplog.text


def test_what_has_no_room_when_the_mount_ends_is_given_up(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    rig.fs.faults[:] = [Fault("remove", code=errno.EAGAIN)]
    unlink(rig, node, b"f1")
    rig.machine.close()
    rig.run(LINGER + 1)
    assert not rig.machine.servers.root.connections
    assert rig.machine.removals.count == 0
    assert rig.machine.drops["removals_failed"] == 1


def test_an_unmount_waits_for_what_is_on_the_way(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    unlink(rig, node, b"f1")
    rig.machine.close()
    rig.run(TRIP + 0.001)
    assert not there(rig, b"f1")
    assert not rig.fs.manager.table.handles


def test_an_unmount_does_not_wait_for_ever(ready: tuple[Rig, int]) -> None:
    rig, node = ready
    rig.fs.faults[:] = [Fault("remove", hang=True, deaf=True)]
    unlink(rig, node, b"f1")
    (connection,) = rig.machine.servers.root.connections.values()
    rig.machine.close()
    rig.run(LINGER - 0.1)
    assert not connection.closed
    rig.run(0.2)
    assert connection.closed
    assert not rig.machine.servers.root.connections


def test_who_waits_for_what_arrives_meanwhile() -> None:
    """Who begins something while others are let go on is not let go on before that has arrived."""
    arrivals, order = Arrivals(), list[str]()
    assert arrivals.number() == 1

    def first() -> None:
        order.append("first")
        assert arrivals.number() == 2
        arrivals.wait(lambda: order.append("second"))

    arrivals.wait(first)
    arrivals.arrived(0)
    assert order == ["first"]
    arrivals.arrived(0)
    assert order == ["first", "second"]
