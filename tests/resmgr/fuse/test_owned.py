"""What is done from here in leased directories: what of it is believed without another question, and what speaks against that."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from resmgr.fuse import changing, formats, known, stuck
from resmgr.fuse.formats import Opcode
from resmgr.fuse.inode import Node
from resmgr.fuse.moves import LAG, MOVES_MAX, Moves
from resmgr.iomsg import Io
from resmgr.testing.fuserig import Answer, Rig
from resmgr.testing.memfs import Fault


@pytest.fixture
def rig() -> Rig:
    """A tree whose directories are watched, each change told to all but who made it: d with f0 to f9."""
    rig = Rig()
    rig.fs.watch().spares = True
    for number in range(10):
        rig.fs.add(b"d/f%d" % number, b"%d" % number)
    return rig


def leased(rig: Rig) -> int:
    """The node of d, leased, and long enough ago for answers to be sure."""
    node = rig.walk(b"d")
    rig.run(0.001)
    return node


def made(rig: Rig, name: bytes = b"new") -> int:
    """The node of a directory that was made in d from here."""
    answer = rig.ask(Opcode.MKDIR, leased(rig), formats.MKDIR_IN.pack(0o755, 0o022) + name + b"\0")
    assert answer.error == 0
    rig.run(0.001)
    rig.messages()
    return answer.nodeid


def create(rig: Rig, node: int, name: bytes) -> tuple[int, int]:
    """Node and open file of a new file."""
    answer = rig.ask(Opcode.CREATE, node, formats.CREATE_IN.pack(os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, 0, 0) + name + b"\0")
    assert answer.error == 0
    return answer.nodeid, struct.unpack_from("=Q", answer.body, formats.ENTRY_OUT.size)[0]


def rename(rig: Rig, node: int, old: bytes, new: bytes) -> Answer:
    return rig.ask(Opcode.RENAME2, node, formats.RENAME2_IN.pack(node, 0) + old + b"\0" + new + b"\0")


def touch(rig: Rig, node: int, mtime: int) -> Answer:
    return rig.ask(Opcode.SETATTR, node, formats.SETATTR_IN.pack(formats.FATTR_MTIME, 0, 0, 0, 0, mtime, 0, 0, 0, 0, 0, 0, 0, 0, 0))


def size(rig: Rig, node: int) -> int:
    return int(rig.ask(Opcode.GETATTR, node, bytes(16)).attr[1])


def inside(rig: Rig, *path: bytes) -> Node:
    node = rig.machine.nodes.root
    for name in path:
        node = node.children[name]
    return node


# ---- names


def test_in_a_directory_made_here_a_new_name_is_not_asked_for(rig: Rig) -> None:
    node = made(rig)

    assert rig.lookup(node, b"first").nodeid == 0
    assert rig.messages() == {}
    create(rig, node, b"first")
    assert rig.messages() == {"open": 1}
    assert rig.lookup(node, b"second").nodeid == 0
    assert rig.messages() == {}
    # What is there is known, too.
    assert rig.lookup(node, b"first").nodeid
    # Each kind of thing that can be made in it.
    for number, (opcode, body) in enumerate(
        (
            (Opcode.MKDIR, formats.MKDIR_IN.pack(0o755, 0) + b"a\0"),
            (Opcode.MKNOD, formats.MKNOD_IN.pack(0o100644, 0, 0, 0) + b"b\0"),
            (Opcode.SYMLINK, b"c\0text\0"),
            (Opcode.LINK, formats.LINK_IN.pack(rig.walk(b"d/f1")) + b"e\0"),
        )
    ):
        rig.messages()
        assert rig.lookup(node, b"other%d" % number).nodeid == 0
        assert rig.ask(opcode, node, body).error == 0
        assert sum(rig.messages().values()) == 1


def test_a_name_that_is_too_long_is_not_absent(rig: Rig) -> None:
    node = made(rig)

    assert rig.lookup(node, b"n" * 255).nodeid == 0
    assert rig.messages() == {}
    assert rig.lookup(node, b"n" * 256).error == -errno.ENAMETOOLONG


def test_until_somebody_else_has_been_there(rig: Rig) -> None:
    """They may tell a program of ours what they have made before we are told: what was never asked for is asked for."""
    node = made(rig)
    rig.fs.add(b"d/new/theirs", b"")
    rig.run(0.01)

    assert rig.lookup(node, b"theirs").nodeid
    rig.messages()
    assert rig.lookup(node, b"another").nodeid == 0
    assert rig.messages() == {"lookup": 1}


def test_that_it_was_empty_is_for_who_made_it_and_for_a_minute(rig: Rig) -> None:
    node = made(rig)
    rig.uid = 77
    assert rig.lookup(node, b"x").nodeid == 0
    assert rig.messages()
    rig.uid = 0
    rig.run(60)

    assert rig.lookup(node, b"y").nodeid == 0
    assert rig.messages()


def test_something_made_there_before_its_answer_came_ends_it(rig: Rig) -> None:
    """The event is here before the answer that says that the directory was empty."""
    leased(rig)
    node = rig.walk(b"d")
    rig.fs.faults.append(Fault("mkdir", b"new", late=0.2, times=1))
    unique = rig.start(Opcode.MKDIR, node, formats.MKDIR_IN.pack(0o755, 0) + b"new\0")
    rig.run(0.05)
    rig.fs.add(b"d/new/x", b"")
    rig.run(0.3)

    assert rig.lookup(rig.answers[unique].nodeid, b"x").nodeid


def test_names_of_directories_made_here_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "NAMES_MAX", 5)
    monkeypatch.setattr(known, "TOTAL_MAX", 8)
    first, second, third = (made(rig, name) for name in (b"x", b"y", b"z"))
    for node, count in ((first, 4), (second, 4), (third, 1)):
        for number in range(count):
            create(rig, node, b"n%d" % number)
    assert kept(rig) == [False, True, True]
    for number in range(4):
        create(rig, third, b"m%d" % number)
    assert kept(rig) == [False, False, True]
    create(rig, third, b"last")
    assert kept(rig) == [False, False, False]
    assert rig.machine.leases._known.count == 0


def kept(rig: Rig) -> list[bool]:
    """Of which of x, y and z all names are known."""
    leases = [inside(rig, b"d", name).lease for name in (b"x", b"y", b"z")]
    return [lease is not None and lease.names is not None for lease in leases]


def test_what_was_removed_here_is_not_asked_for(rig: Rig) -> None:
    node = leased(rig)
    rig.lookup(node, b"f1")
    assert rig.ask(Opcode.UNLINK, node, b"f1\0").error == 0
    rig.messages()

    assert rig.lookup(node, b"f1").nodeid == 0
    assert rig.messages() == {}
    rig.fs.add(b"d/f1", b"again")
    rig.run(0.01)
    assert rig.lookup(node, b"f1").nodeid


def test_a_moved_file_has_left_its_old_name(rig: Rig) -> None:
    node = leased(rig)
    rig.lookup(node, b"f1")
    assert rename(rig, node, b"f1", b"moved").error == 0
    rig.messages()

    assert rig.lookup(node, b"f1").nodeid == 0
    assert rig.messages() == {}
    assert rig.lookup(node, b"moved").nodeid


def test_what_was_written_before_a_move_is_told_by_the_old_name(rig: Rig) -> None:
    node = leased(rig)
    file = rig.lookup(node, b"f1").nodeid
    fh = rig.open(file).fh
    rig.read(file, fh, 0, 1)
    rig.run(0.2)
    rig.fs.add(b"d/f1", b"much longer than that")
    assert rename(rig, node, b"f1", b"moved").error == 0
    rig.notifications.clear()

    rig.run(0.02)
    assert formats.inval_pages(file)[16:] in [note.body for note in rig.notifications]
    # Once: what is told of that name later is not about it.
    rig.run(5.0)
    rig.notifications.clear()
    rig.fs.add(b"d/f1", b"another")
    rig.run(0.2)
    assert formats.inval_pages(file)[16:] not in [note.body for note in rig.notifications]


def test_what_was_moved_is_remembered_for_so_many_and_so_long(rig: Rig) -> None:
    leased(rig)
    directory, file = inside(rig, b"d"), rig.machine.nodes.get(rig.walk(b"d/f1"))
    assert file is not None
    moves = Moves()
    for number in range(2 * MOVES_MAX):
        moves.note(directory, b"m%d" % number, file, 1.0)
    assert len(moves) == MOVES_MAX
    assert moves.of(directory, b"m%d" % (MOVES_MAX - 1), 1.0) is None
    assert moves.of(directory, b"m%d" % MOVES_MAX, 1.0 + LAG) is file
    assert moves.of(directory, b"m%d" % MOVES_MAX, 1.1 + LAG) is None
    moves.note(directory, b"last", file, 1.1 + LAG)
    assert len(moves) == 1


def test_two_names_of_one_file_stay_both(rig: Rig) -> None:
    """rename(2) of one to the other does nothing, and says that it is done."""
    rig.fs.enter(rig.fs.find(b"d"), b"second", rig.fs.find(b"d/f1"))
    node = leased(rig)
    rig.lookup(node, b"f1")
    assert rename(rig, node, b"f1", b"second").error == 0

    assert rig.lookup(node, b"f1").nodeid


@pytest.mark.parametrize("between", ["event", "request"])
def test_what_is_heard_of_a_name_meanwhile_speaks_against_it(rig: Rig, between: str) -> None:
    node = leased(rig)
    rig.lookup(node, b"f1")
    rig.fs.faults.append(Fault("unlink", b"f1", delay=0.2, times=1))
    unique = rig.start(Opcode.UNLINK, node, b"f1\0")
    rig.run(0.05)
    if between == "event":
        rig.fs.remove(b"d/f1")
        rig.fs.add(b"d/f1", b"another")
    else:
        other = rig.start(Opcode.UNLINK, node, b"f1\0")
    rig.run(0.3)
    if between == "request":
        # One of them found nothing.
        assert {rig.answers[unique].error, rig.answers[other].error} == {0, -errno.ENOENT}
    rig.messages()

    assert rig.lookup(node, b"f1").nodeid == 0
    assert rig.messages()


def test_a_request_that_was_given_up_may_yet_be_carried_out(rig: Rig) -> None:
    node = leased(rig)
    rig.lookup(node, b"f1")
    rig.fs.faults.append(Fault("unlink", b"f1", delay=0.2, times=1))
    unique = rig.start(Opcode.UNLINK, node, b"f1\0")
    rig.machine.error(rig.machine.outstanding[unique], errno.EINTR)
    lease = inside(rig, b"d").lease
    assert lease is not None
    assert list(lease.own) == [b"f1"]
    # Meanwhile it is removed and made again: what that one's answer says is true for a moment only.
    assert rig.ask(Opcode.UNLINK, node, b"f1\0").error == 0
    create(rig, node, b"f1")
    rig.run(0.3)
    assert not lease.own

    assert rig.lookup(node, b"f1").nodeid == 0


# ---- attributes


def test_what_a_write_makes_of_a_file_is_not_asked_for(rig: Rig) -> None:
    directory = leased(rig)
    assert rig.lookup(directory, b"new").nodeid == 0
    node, fh = create(rig, directory, b"new")
    rig.write(node, fh, 0, b"12345")
    rig.release(node, fh)
    rig.run(0.1)
    rig.messages()

    assert size(rig, node) == 5
    assert rig.lookup(directory, b"new").entry[1] == 5
    assert rig.messages() == {}
    rig.fs.add(b"d/new", b"1234567")
    rig.run(0.01)
    assert size(rig, node) == 7


def test_nor_what_setattr_does(rig: Rig) -> None:
    directory = leased(rig)
    node = rig.lookup(directory, b"f1").nodeid
    assert touch(rig, node, 1000).error == 0
    rig.messages()

    assert rig.ask(Opcode.GETATTR, node, bytes(16)).attr[4] == 1000
    assert rig.lookup(directory, b"f1").entry[4] == 1000
    assert rig.messages() == {}


def test_a_lock_shows_what_was_written_before_it_though_its_event_is_on_the_way(rig: Rig) -> None:
    """Lock, look where the end is, write there: who is told an old end writes over what others wrote."""
    file = rig.lookup(leased(rig), b"f1").nodeid
    fh = rig.open(file, os.O_RDWR).fh
    assert size(rig, file) == 1
    rig.fs.manager._io[Io.LOCK] = lambda message, client, handle, flags: message.reply(0)
    rig.fs.find(b"d/f1").data += b"more"

    assert rig.ask(Opcode.SETLKW, file, formats.LK_IN.pack(fh, 7, 0, 9, 1, 5, 0)).error == 0
    assert size(rig, file) == 5


def test_nor_is_what_open_said_told_after_fallocate(rig: Rig) -> None:
    file = rig.lookup(leased(rig), b"f1").nodeid
    rig.fs.add(b"d/f1", b"22")
    rig.run(0.1)
    fh = rig.open(file, os.O_RDWR).fh

    assert rig.ask(Opcode.FALLOCATE, file, formats.FALLOCATE_IN.pack(fh, 0, 100, 0)).error == 0
    assert size(rig, file) == 100


@pytest.mark.parametrize("what", ["fallocate", "chmod", "unlink"])
def test_what_was_told_between_a_change_that_was_given_up_and_its_end_is_taken_back(rig: Rig, what: str) -> None:
    """The server tells its maker of no change, so the late answer has to do, for the kernel, too."""
    directory = leased(rig)
    file = rig.lookup(directory, b"f1").nodeid
    fh = rig.open(file, os.O_RDWR).fh
    rig.fs.faults.append(Fault("*", delay=1.0, deaf=True, times=1))
    unique = {
        "fallocate": lambda: rig.start(Opcode.FALLOCATE, file, formats.FALLOCATE_IN.pack(fh, 0, 100, 0)),
        "chmod": lambda: rig.start(
            Opcode.SETATTR, file, formats.SETATTR_IN.pack(formats.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o600, 0, 0, 0, 0)
        ),
        "unlink": lambda: rig.start(Opcode.UNLINK, directory, b"f1\0"),
    }[what]()
    assert stuck.abort(rig.machine, unique, errno.EINTR)
    rig.run(0.1)
    assert rig.lookup(directory, b"f1").nodeid == file
    rig.notifications.clear()
    rig.run(1.0)

    kinds = {note.error for note in rig.notifications}
    found = rig.lookup(directory, b"f1")
    assert kinds == {formats.NOTIFY_INVAL_INODE} | ({formats.NOTIFY_INVAL_ENTRY} if what == "unlink" else set())
    if what == "unlink":
        assert found.error == -errno.ENOENT or not found.nodeid
    else:
        assert (found.entry[1], found.entry[9] & 0o777) == ((100, 0o644) if what == "fallocate" else (1, 0o600))


def test_writes_that_are_on_the_way_together_leave_it_open(rig: Rig) -> None:
    """Which of them the server has carried out when it answers is not known."""
    node, fh = create(rig, leased(rig), b"new")
    rig.fs.faults.append(Fault("write", b"new", delay=0.1, times=2))
    for offset in 0, 5:
        rig.write(node, fh, offset, b"12345")
    rig.run(0.3)
    rig.messages()

    assert size(rig, node) == 10
    assert rig.messages()


def test_another_change_from_here_meanwhile_leaves_it_open(rig: Rig) -> None:
    """Its answer may come first although the server carried it out later."""
    node, fh = create(rig, leased(rig), b"new")
    rig.fs.faults.append(Fault("write", b"new", delay=0.1, times=1))
    rig.write(node, fh, 0, b"12345")
    changing.written(rig.machine, inside(rig, b"d", b"new"))
    rig.run(0.3)
    rig.messages()

    assert size(rig, node) == 5
    assert rig.messages()


@pytest.mark.parametrize("what", ["written", "moved"])
def test_what_others_do_to_it_meanwhile_is_seen(rig: Rig, what: str) -> None:
    node, fh = create(rig, leased(rig), b"new")
    rig.fs.faults.append(Fault("write", b"new", delay=0.1, times=1))
    rig.write(node, fh, 0, b"12345")
    if what == "written":
        rig.fs.add(b"d/new", b"much longer than that")
    else:
        rig.fs.add(b"e/x", b"")
        inode, _ = rig.fs.find(b"d").entries[b"new"]
        rig.fs.drop(rig.fs.find(b"d"), b"new")
        rig.fs.enter(rig.fs.find(b"e"), b"new", inode)
    rig.run(0.3)
    if what == "moved":
        # Not told of it where it is now: whatever a later write's answer says holds for that moment.
        rig.write(node, fh, 0, b"54321")
        rig.run(0.1)
        rig.fs.add(b"e/new", b"much longer than that")

    assert size(rig, node) == 21


def test_another_name_of_it_may_be_changed_unseen(rig: Rig) -> None:
    rig.fs.enter(rig.fs.find(b"d"), b"second", rig.fs.find(b"d/f1"))
    node = rig.lookup(leased(rig), b"f1").nodeid
    touch(rig, node, 1000)
    rig.messages()

    rig.ask(Opcode.GETATTR, node, bytes(16))

    assert rig.messages()


def test_a_file_changed_from_here_leaves_the_listing_as_it_is(rig: Rig) -> None:
    directory = leased(rig)
    node = rig.lookup(directory, b"f1").nodeid
    fh = rig.ask(Opcode.OPENDIR, directory, formats.OPEN_IN.pack(0, 0)).fh
    first = rig.ask(Opcode.READDIR, directory, formats.READ_IN.pack(fh, 0, 65536, 0, 0, 0)).body
    assert rig.ask(Opcode.READDIR, directory, formats.READ_IN.pack(fh, 12, 65536, 0, 0, 0)).body == b""
    assert b"f9" in first
    touch(rig, node, 1000)

    assert rig.ask(Opcode.OPENDIR, directory, formats.OPEN_IN.pack(0, 0)).open_flags & formats.FOPEN_KEEP_CACHE


@pytest.mark.parametrize("fields", [(formats.FATTR_MTIME, 0), (formats.FATTR_MODE, 0o755)])
def test_a_directory_changed_from_here_stays_leased(rig: Rig, fields: tuple[int, int]) -> None:
    node = made(rig)
    valid, mode = fields
    body = formats.SETATTR_IN.pack(valid, 0, 0, 0, 0, 1000, 0, 0, 0, 0, mode, 0, 0, 0, 0)
    assert rig.ask(Opcode.SETATTR, node, body).error == 0
    rig.messages()
    # Its rights may be what was changed: then it is seen whether they let the user in still.
    assert rig.lookup(node, b"x").nodeid == 0
    assert rig.messages() == ({} if valid == formats.FATTR_MTIME else {"lookup": 1})
    assert inside(rig, b"d", b"new").lease is not None
