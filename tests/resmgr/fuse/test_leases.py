"""Leases in virtual time: what the kernel is told to believe, and what of that is taken back (docs/protocol/coherence.md)."""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Callable

import pytest
from attrs import evolve

from resmgr.channel import Message
from resmgr.fuse import changes, formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.lease import ABSENT_MAX
from resmgr.fuse.leases import WAITING_MAX
from resmgr.fuse.news import BURST, EVENTS_TURN
from resmgr.fuse.options import FuseOptions, Permissions
from resmgr.iofunc.events import QUEUE_MAX
from resmgr.iofunc.handle import Client
from resmgr.iomsg import EVENT, WATCH_NEXT, WatchEvent
from resmgr.testing.fuserig import Answer, Rig
from resmgr.testing.memfs import Fault, MemFs
from resmgr.testing.virtual import NodeView
from resmgr.turns import PendingCall

LEASE = 60


@pytest.fixture
def rig() -> Rig:
    """A tree whose directories are watched: d with f0 to f9, and d/sub."""
    return made(Rig())


def made(rig: Rig) -> Rig:
    rig.fs.watch()
    for number in range(10):
        rig.fs.add(b"d/f%d" % number, b"%d" % number)
    rig.fs.add(b"d/sub/x", b"x")
    return rig


def validity(answer: Answer) -> tuple[int, int]:
    """Whole seconds for which an entry and its attributes may be believed."""
    entry, attr = struct.unpack_from("=QQ", answer.body, 16)
    return entry, attr


def told(rig: Rig) -> tuple[set[int], set[tuple[int, bytes]]]:
    """Nodes and entries that the kernel was told to forget, since the last call."""
    nodes, entries = set(), set()
    for note in rig.notifications:
        if note.error == formats.NOTIFY_INVAL_INODE:
            nodes.add(struct.unpack_from("=Q", note.body)[0])
        elif note.error == formats.NOTIFY_INVAL_ENTRY:
            parent, length, _ = struct.unpack_from("=QII", note.body)
            entries.add((parent, note.body[16 : 16 + length]))
    rig.notifications.clear()
    return nodes, entries


def leased(rig: Rig) -> int:
    """The node of d, leased, and long enough ago for answers to be sure."""
    node = rig.walk(b"d")
    rig.run(0.001)
    return node


def test_what_is_watched_is_believed_for_long(rig: Rig) -> None:
    node = leased(rig)

    assert validity(rig.lookup(node, b"f1")) == (LEASE, LEASE)
    rig.messages()
    rig.run(30)
    # The kernel forgot it for want of memory, and asks: nobody else is asked.
    again = rig.lookup(node, b"f1")
    assert validity(again) == (30, 30)
    assert rig.messages() == {}
    assert rig.ask(Opcode.GETATTR, again.nodeid, bytes(16)).attr[1] == 1
    assert rig.messages() == {}
    rig.run(30.5)
    rig.lookup(node, b"f1")
    assert rig.messages()


def test_a_listing_that_is_read_ahead_begins_a_lease(rig: Rig) -> None:
    """d/s2 was found in the listing of d, which asks for no watch of it."""
    for directory in range(3):
        for number in range(6):
            rig.fs.add(b"d/s%d/x%d" % (directory, number), b"x")
    node = leased(rig)
    for name in (b"s0", b"s1"):
        rig.lookup(node, name)
    rig.messages()
    sub = rig.lookup(node, b"s2").nodeid
    assert rig.messages() == {}
    for name in (b"x0", b"x1"):
        assert validity(rig.lookup(sub, name)) == (1, 1)
    rig.messages()

    assert validity(rig.lookup(sub, b"x2")) == (LEASE, LEASE)
    assert rig.messages() == {}
    told(rig)
    rig.fs.add(b"d/s2/x2", b"longer")
    rig.run(0.01)
    assert told(rig)[0]


def test_without_a_watch_nothing_changes() -> None:
    rig = Rig()
    rig.fs.add(b"d/f", b"")
    node = leased(rig)

    assert validity(rig.lookup(node, b"f")) == (1, 1)


def test_and_none_is_asked_for_with_lease_0() -> None:
    rig = made(Rig(FuseOptions(lease=0)))
    node = leased(rig)

    assert validity(rig.lookup(node, b"f1")) == (1, 1)
    assert "watch" not in rig.messages()


def test_that_a_name_does_not_exist_is_believed_and_corrected(rig: Rig) -> None:
    node = leased(rig)
    answer = rig.lookup(node, b"new")
    assert answer.nodeid == 0
    assert struct.unpack_from("=Q", answer.body, 16)[0] >= LEASE - 1
    rig.messages()
    assert rig.lookup(node, b"new").nodeid == 0
    assert rig.messages() == {}
    told(rig)

    rig.fs.add(b"d/new", b"!")
    rig.run(0.005)

    nodes, entries = told(rig)
    assert node in nodes
    assert (node, b"new") in entries
    assert rig.lookup(node, b"new").nodeid


@pytest.mark.parametrize("change", ["written", "touched", "removed", "replaced"])
def test_a_change_there_is_told_to_the_kernel(rig: Rig, change: str) -> None:
    node = leased(rig)
    child = rig.lookup(node, b"f1").nodeid
    other = rig.lookup(node, b"f2").nodeid
    rig.run(1)
    told(rig)

    if change == "written":
        rig.fs.add(b"d/f1", b"longer")
    elif change == "touched":
        rig.fs.touch(rig.fs.find(b"d/f1"))
    elif change == "removed":
        rig.fs.remove(b"d/f1")
    else:
        rig.fs.remove(b"d/f1")
        rig.fs.add(b"d/f1", b"longer")
    rig.run(0.005)

    nodes, entries = told(rig)
    assert child in nodes
    assert other not in nodes
    assert ((node, b"f1") in entries) == (change in ("removed", "replaced"))
    answer = rig.lookup(node, b"f1")
    if change == "removed":
        assert answer.nodeid == 0
    else:
        assert answer.entry[1] == len(rig.fs.find(b"d/f1").data)


def test_an_answer_older_than_the_event_is_not_believed(rig: Rig) -> None:
    """The event overtakes the answer to a LOOKUP that the server handled before the change."""
    node = leased(rig)
    rig.fs.faults.append(Fault("lookup", b"f3", late=0.2, times=1))
    unique = rig.start(Opcode.LOOKUP, node, b"f3\0")
    rig.run(0.05)

    rig.fs.add(b"d/f3", b"much longer than before")
    rig.run(0.3)

    assert rig.answers[unique].entry[1] == 1
    assert struct.unpack_from("=QQII", rig.answers[unique].body, 16) == (0, 0, 0, 0)
    assert rig.lookup(node, b"f3").entry[1] == 23


@pytest.mark.parametrize("many", [False, True])
def test_that_a_name_does_not_exist_in_an_answer_older_than_the_event_is_not_believed(rig: Rig, many: bool) -> None:
    node = leased(rig)
    rig.fs.faults.append(Fault("lookup", b"new", delay=0.2, code=errno.ENOENT, times=1))
    unique = rig.start(Opcode.LOOKUP, node, b"new\0")
    rig.run(0.05)
    rig.fs.add(b"d/new", b"")
    if many:
        # More names than are remembered.
        for number in range(ABSENT_MAX + 1):
            rig.fs.add(b"d/more%d" % number, b"")
    rig.run(0.3)

    assert rig.answers[unique].error == -errno.ENOENT
    assert rig.lookup(node, b"new").nodeid


def test_an_event_that_overtakes_the_answer_that_begins_the_lease(rig: Rig) -> None:
    """The directory is watched, and a change of it is told before its client knows that it is watched."""
    other = rig.walk(b"d/sub")
    assert other
    rig.fs.add(b"e/f", b"")
    rig.fs.faults.append(Fault("lookup", b"e", late=0.2, times=1))
    unique = rig.start(Opcode.LOOKUP, 1, b"e\0")
    rig.run(0.05)
    rig.fs.add(b"e/g", b"")
    rig.run(0.3)

    node = rig.answers[unique].nodeid
    assert validity(rig.answers[unique]) == (1, 1)
    rig.run(0.001)
    # Asked once more, it is.
    assert rig.lookup(1, b"e").nodeid == node
    rig.run(0.001)
    assert validity(rig.lookup(node, b"f")) == (LEASE, LEASE)


def test_what_is_changed_from_here_is_asked_for_again(rig: Rig) -> None:
    node = leased(rig)
    child = rig.lookup(node, b"f1").nodeid
    fh = rig.open(child, os.O_RDWR).fh
    rig.write(child, fh, 0, b"changed")
    rig.run(0.1)
    rig.messages()

    assert rig.ask(Opcode.GETATTR, child, bytes(16)).attr[1] == 7
    assert rig.messages()
    rig.ask(Opcode.UNLINK, node, b"f2\0")
    assert rig.lookup(node, b"f2").nodeid == 0


def test_files_with_two_names_are_not_leased(rig: Rig) -> None:
    rig.fs.enter(rig.fs.find(b"d"), b"second", rig.fs.find(b"d/f1"))
    node = leased(rig)

    entry, attr = validity(rig.lookup(node, b"second"))

    assert (entry, attr) == (LEASE, 1)


def test_where_the_kernel_does_not_check_others_are_not_shown_what_they_may_not_search() -> None:
    rig = made(Rig(FuseOptions(permissions=Permissions.SERVER)))
    rig.fs.add(b"closed/f", b"secret")
    rig.fs.find(b"closed").mode &= ~0o077
    rig.ask(Opcode.OPENDIR, 1, formats.OPEN_IN.pack(0, 0))
    rig.ask(Opcode.GETATTR, 1, bytes(16))
    everybody, closed = leased(rig), rig.walk(b"closed")
    rig.run(0.001)

    assert validity(rig.lookup(everybody, b"f1")) == (LEASE, LEASE)
    assert validity(rig.lookup(closed, b"f")) == (1, 1)
    assert struct.unpack_from("=Q", rig.lookup(closed, b"none").body, 16)[0] == 0
    rig.run(10)
    rig.messages()
    assert rig.lookup(closed, b"f").nodeid
    assert rig.lookup(closed, b"none").nodeid == 0
    assert rig.messages() == {}
    rig.uid = 77
    assert rig.lookup(closed, b"f").error == -errno.EACCES
    assert rig.messages()


def test_rights_that_change_are_asked_for_again(rig: Rig) -> None:
    """Who has searched a directory is not let in on the strength of that when its mode has changed."""
    rig.uid = 77
    node = leased(rig)
    assert rig.lookup(node, b"f1").nodeid
    watching = rig.fs.watching
    assert watching is not None
    rig.fs.find(b"d").mode &= ~0o077
    for listener in watching.listeners.values():
        listener.tell(rig.fs.find(b"d").ino, 0x4)
    rig.run(0.005)

    assert rig.lookup(node, b"f1").error == -errno.EACCES


def test_a_silent_node_ends_the_belief_and_a_heard_one_begins_it_anew(rig: Rig) -> None:
    node = leased(rig)
    child = rig.lookup(node, b"f1").nodeid
    assert rig.lookup(node, b"none").nodeid == 0
    rig.run(1)
    told(rig)

    rig.machine.leases.silent(0, True)

    nodes, entries = told(rig)
    assert {node, child} <= nodes
    assert {(node, b"f1"), (node, b"none")} <= entries
    rig.run(0.001)
    assert validity(rig.lookup(node, b"f1")) == (1, 1)
    # What changed meanwhile is seen, although no event was waited for.
    rig.run(1)
    rig.machine.leases.silent(0, False)
    rig.run(0.001)
    rig.messages()
    assert validity(rig.lookup(node, b"f1")) == (LEASE, LEASE)
    assert rig.messages()


def test_a_server_that_ends_ends_its_leases(rig: Rig) -> None:
    node = leased(rig)
    child = rig.lookup(node, b"f1").nodeid
    told(rig)

    rig.fs.destroy()
    rig.run(0.1)

    nodes, entries = told(rig)
    assert child in nodes
    assert (node, b"f1") in entries
    assert len(rig.machine.leases) == 0
    assert rig.lookup(node, b"f1").error


def test_a_restarted_server_is_asked(rig: Rig) -> None:
    leased(rig)
    channel, root = rig.fs.manager.channel, rig.fs.root
    rig.fs.destroy()
    rig.fs = MemFs(rig.kernel, chid=channel.chid)
    rig.fs.root = root
    rig.fs.watch()
    rig.fs.add(b"d/f1", b"of the new one")
    rig.run(0.1)

    node = rig.walk(b"d")
    assert rig.lookup(node, b"f1").entry[1] == 14
    rig.run(0.001)
    assert min(validity(rig.lookup(node, b"f2"))) >= LEASE - 1


def test_too_many_events_are_told_as_all(rig: Rig) -> None:
    node = leased(rig)
    child = rig.lookup(node, b"f1").nodeid
    rig.run(1)
    watching = rig.fs.watching
    assert watching is not None
    told(rig)

    (listener,) = watching.listeners.values()
    for number in range(QUEUE_MAX + 10):
        listener.tell(rig.fs.find(b"d").ino, 0x100, b"n%d" % number)
    assert listener.lost == 1
    rig.run(0.5)

    nodes, _ = told(rig)
    assert child in nodes
    rig.messages()
    assert validity(rig.lookup(node, b"f1")) == (LEASE, LEASE)
    assert rig.messages()


def test_names_remembered_are_bounded(rig: Rig) -> None:
    node = leased(rig)
    for number in range(ABSENT_MAX + 50):
        rig.lookup(node, b"none%d" % number)
    lease = rig.machine.nodes.root.children[b"d"].lease
    assert lease is not None
    assert len(lease.absent) == ABSENT_MAX
    for number in range(ABSENT_MAX + 50):
        rig.machine.logs.changed(lease.node, b"other%d" % number, rig.dispatch.now())
    assert len(rig.machine.logs.of(lease.node)[0]) <= changes.NAMES_MAX
    assert validity(rig.lookup(node, b"f1")) == (1, 1)


def test_a_forgotten_directory_is_not_watched_any_more(rig: Rig) -> None:
    node = leased(rig)
    watching = rig.fs.watching
    assert watching is not None
    (listener,) = watching.listeners.values()
    assert listener.watched

    rig.raw(formats.IN_HEADER.pack(48, Opcode.FORGET, 0, node, 0, 0, 0, 0, 0) + struct.pack("=Q", 1))
    rig.run(1.5)

    assert not listener.watched
    assert len(rig.machine.leases) == 0
    # And if it comes again at the moment at which the server is told, it is not believed on the strength of the old watch.
    node = rig.walk(b"d")
    rig.run(0.001)
    assert listener.watched
    assert validity(rig.lookup(node, b"f1")) == (LEASE, LEASE)


def test_a_listing_at_home_is_for_who_could_open_it(rig: Rig) -> None:
    node = leased(rig)
    opened = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0))
    assert opened.open_flags & formats.FOPEN_CACHE_DIR
    assert not opened.open_flags & formats.FOPEN_KEEP_CACHE
    end = read_all(rig, node, opened.fh)
    rig.messages()

    again = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0))
    assert rig.messages() == {}
    assert again.open_flags & formats.FOPEN_KEEP_CACHE
    # The kernel lost the pages: it goes on somewhere in the middle.
    middle = rig.ask(Opcode.READDIR, node, formats.READ_IN.pack(again.fh, end - 3, 4096, 0, 0, 0))
    assert len(middle.body) > 24
    rig.uid = 77
    rig.fs.find(b"d").mode &= ~0o077
    assert rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).error == -errno.EACCES


def test_a_directory_that_is_opened_to_be_synced_costs_one_message(rig: Rig) -> None:
    """From the second time on; whoever lists it then gets all of it."""
    node = leased(rig)

    def opened() -> int:
        answer = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0))
        assert not answer.error
        return answer.fh

    def synced(fh: int) -> dict[str, int]:
        rig.messages()
        assert rig.ask(Opcode.FSYNCDIR, node, formats.FSYNC_IN.pack(fh, 0)).error == 0
        return rig.messages()

    def released(fh: int) -> None:
        rig.ask(Opcode.RELEASEDIR, node, formats.RELEASE_IN.pack(fh, 0, 0, 0))
        rig.run(1)
        rig.messages()

    first = opened()
    assert rig.messages()["open"] == 1
    assert synced(first) == {"sync": 1}
    released(first)
    for _ in range(2):
        fh = opened()
        assert rig.messages() == {}
        assert synced(fh) == {"sync": 1}
        rig.ask(Opcode.RELEASEDIR, node, formats.RELEASE_IN.pack(fh, 0, 0, 0))
        rig.run(1)
        assert rig.messages() == {}
    # A server that syncs only what is open says so.
    rig.fs.faults.append(Fault("sync", code=errno.EBADF, times=1))
    fh = opened()
    assert synced(fh) == {"sync": 2, "open": 1}
    released(fh)
    # An error of the sync itself is told: a second one would not say it again.
    rig.fs.faults.append(Fault("sync", code=errno.EIO, times=1))
    fh = opened()
    assert rig.ask(Opcode.FSYNCDIR, node, formats.FSYNC_IN.pack(fh, 0)).error == -errno.EIO
    released(fh)
    # Another user, and one who lists it.
    rig.uid = 77
    released(opened())
    rig.uid = 0
    fh = opened()
    rig.fs.add(b"d/zz", b"")
    rig.run(0.01)
    assert b"zz" in rig.ask(Opcode.READDIR, node, formats.READ_IN.pack(fh, 0, 65536, 0, 0, 0)).body
    rig.messages()
    opened()
    assert rig.messages()["open"] == 1


def test_a_changed_listing_is_read_again(rig: Rig) -> None:
    node = leased(rig)
    first = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).fh
    read_all(rig, node, first)
    rig.run(0.1)
    rig.fs.add(b"d/zz", b"")
    rig.run(0.005)

    opened = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0))
    assert not opened.open_flags & formats.FOPEN_KEEP_CACHE
    # Rewound, the one that was open does not show what it was then.
    body = rig.ask(Opcode.READDIR, node, formats.READ_IN.pack(first, 0, 65536, 0, 0, 0)).body
    assert b"zz" in body


def read_all(rig: Rig, node: int, fh: int) -> int:
    """Read a directory to its end; the last position."""
    position = 0
    while True:
        body = rig.ask(Opcode.READDIRPLUS, node, formats.READ_IN.pack(fh, position, 65536, 0, 0, 0)).body
        if not body:
            return position
        offset = 0
        while offset < len(body):
            _, position, length, _ = struct.unpack_from("=QQII", body, offset + 128)
            offset += 128 + 24 + (length + 7 & ~7)


def test_entries_are_not_told_while_a_request_has_their_directory(rig: Rig) -> None:
    """A thread that waits in the kernel for a request of a silent server could not be killed."""
    node = leased(rig)
    rig.lookup(node, b"f1")
    fault = Fault("lookup", b"new", hang=True)
    rig.fs.faults.append(fault)
    waiting = rig.start(Opcode.LOOKUP, node, b"new\0")
    told(rig)
    rig.machine.leases.silent(0, True)
    nodes, entries = told(rig)
    assert node in nodes
    assert not entries
    rig.run(0.01)
    later = rig.start(Opcode.LOOKUP, node, b"new\0")
    rig.machine.leases.silent(0, True)
    for unique in waiting, later:
        assert not told(rig)[1]
        rig.machine.error(rig.machine.outstanding[unique], errno.EINTR)
        rig.run(0.01)
    assert (node, b"f1") in told(rig)[1]


@pytest.mark.parametrize("opcode", [Opcode.FSYNCDIR, Opcode.WRITE])
def test_nor_while_a_directory_is_synced_nor_pages_that_are_being_written(rig: Rig, opcode: Opcode) -> None:
    node = leased(rig)
    file = rig.lookup(node, b"f1").nodeid
    fh = rig.open(file, os.O_RDWR).fh
    listing = rig.ask(Opcode.OPENDIR, node, bytes(8)).fh
    rig.fs.faults.append(Fault("*", hang=True, times=1))
    if opcode == Opcode.WRITE:
        unique = rig.start(opcode, file, formats.WRITE_IN.pack(fh, 0, 1, 0, 0, os.O_SYNC) + b"x")
    else:
        unique = rig.start(opcode, node, formats.FSYNC_IN.pack(listing, 0))
    rig.notifications.clear()
    rig.fs.add(b"d/f1" if opcode == Opcode.WRITE else b"d/new", b"longer")
    rig.run(0.1)
    whom = file if opcode == Opcode.WRITE else node

    def waits_for_it() -> list[Answer]:
        """What was told of the directory's entries, and of the file's pages."""
        return [
            note for note in rig.notifications if note.error == formats.NOTIFY_INVAL_ENTRY or note.body == formats.inval_pages(whom)[16:]
        ]

    assert unique in rig.machine.outstanding
    assert not waits_for_it()
    rig.machine.error(rig.machine.outstanding[unique], errno.EINTR)
    rig.run(0.01)
    assert waits_for_it()


def test_a_watch_that_nobody_took_is_given_back(rig: Rig) -> None:
    """The answer that told of it came when its request had been given up; or an event tells of it."""
    watching = rig.fs.watching
    assert watching is not None
    other = rig.walk(b"d/sub")
    assert other
    rig.fs.add(b"e/f", b"")
    rig.fs.faults.append(Fault("lookup", b"e", late=0.2, times=1))
    unique = rig.start(Opcode.LOOKUP, 1, b"e\0")
    rig.machine.error(rig.machine.outstanding[unique], errno.EINTR)
    rig.run(0.1)
    (listener,) = watching.listeners.values()
    directory = rig.fs.find(b"e")
    assert directory.ino in listener.watched
    rig.run(2)
    assert directory.ino not in listener.watched

    (client,) = watching.listeners
    watching.add(client, directory)
    rig.fs.add(b"e/g", b"")
    rig.run(2)

    assert directory.ino not in listener.watched


def test_who_may_list_but_not_search_is_told_no_attributes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = rig.fs.find(b"d")
    directory.mode = 0o040744
    node = leased(rig)
    rig.lookup(node, b"f1")
    attr = rig.fs.attr
    monkeypatch.setattr(rig.fs, "attr", lambda inode: attr(inode) if inode is directory else evolve(attr(inode), mode=0))
    rig.uid = 77
    assert rig.lookup(node, b"f1").error == -errno.EACCES
    read_all(rig, node, rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).fh)

    assert rig.lookup(node, b"f1").error == -errno.EACCES


@pytest.fixture
def unsure() -> Rig:
    """Nobody but the server checks, and the root is not watched: it is not certain that everybody may see d."""
    return made(Rig(FuseOptions(permissions=Permissions.SERVER)))


def test_what_one_user_was_told_is_not_told_another(unsure: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server shows f1 to user 0 only, and new to user 77 only."""
    node = leased(unsure)
    assert validity(unsure.lookup(node, b"f1")) == (1, 1)
    assert unsure.lookup(node, b"f2").nodeid
    absent = unsure.lookup(node, b"new")
    assert struct.unpack_from("=Q", absent.body, 16)[0] == 0
    unsure.messages()
    assert unsure.lookup(node, b"f1").nodeid
    assert unsure.lookup(node, b"new").nodeid == 0
    assert unsure.messages() == {}

    d = unsure.fs.find(b"d")
    monkeypatch.setitem(d.entries, b"new", d.entries[b"f3"])
    monkeypatch.delitem(d.entries, b"f1")
    unsure.uid = 77
    assert unsure.lookup(node, b"f2").nodeid
    assert unsure.lookup(node, b"f1").nodeid == 0
    assert unsure.lookup(node, b"new").nodeid
    unsure.uid = 0
    unsure.messages()
    child = unsure.lookup(node, b"f2").nodeid
    unsure.uid = 77
    unsure.messages()
    unsure.run(2)
    unsure.ask(Opcode.GETATTR, child, bytes(16))
    assert unsure.messages()


def test_a_listing_of_one_user_is_not_for_another(unsure: Rig) -> None:
    node = leased(unsure)
    opened = unsure.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0))
    assert opened.open_flags & formats.FOPEN_CACHE_DIR
    unsure.uid = 77

    assert not unsure.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).open_flags & formats.FOPEN_CACHE_DIR


@pytest.mark.parametrize("how", ["chmod", "event", "unwatched"])
def test_what_is_below_is_not_certain_longer_than_what_it_is_in(unsure: Rig, how: str) -> None:
    unsure.ask(Opcode.OPENDIR, 1, formats.OPEN_IN.pack(0, 0))
    unsure.ask(Opcode.GETATTR, 1, bytes(16))
    node = leased(unsure)
    sub = unsure.lookup(node, b"sub").nodeid
    unsure.run(0.001)
    assert validity(unsure.lookup(sub, b"x")) == (LEASE, LEASE)
    told(unsure)

    if how == "chmod":
        fields = (formats.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o700, 0, 0, 0, 0)
        assert not unsure.ask(Opcode.SETATTR, node, formats.SETATTR_IN.pack(*fields)).error
    else:
        watching = unsure.fs.watching
        assert watching is not None
        directory = unsure.fs.find(b"d")
        directory.mode &= ~0o077
        for listener in watching.listeners.values():
            listener.tell(directory.ino, 0x4 if how == "event" else 0x8000)
    unsure.run(0.01)

    assert (sub, b"x") in told(unsure)[1]
    assert validity(unsure.lookup(sub, b"x")) == (1, 1)


def flooded(rig: Rig, monkeypatch: pytest.MonkeyPatch, names: int) -> list[int]:
    """The server answers each question for news at once, with 500 events about d's names. One number for each question."""
    leased(rig)
    rig.run(0.1)
    assert rig.fs.watching is not None
    ino = rig.fs.find(b"d").ino
    turns: list[int] = []
    counter = itertools.count()

    def news(message: Message, client: Client, subtype: int) -> None:
        if subtype != WATCH_NEXT:
            message.reply(0)
            return
        drops = rig.machine.drops
        rig.dispatch.call_soon(lambda: turns.append(drops["lease_events"]))
        events = ((b"f%d" % (next(counter) % names)) for _ in range(500))
        message.reply(0, b"".join(EVENT.pack(ino, 0x100, 0, len(name)) + name for name in events))

    monkeypatch.setattr(rig.fs.watching, "message", news)
    rig.fs.add(b"d/first", b"")
    return turns


def test_a_server_with_events_without_end_is_asked_slowly(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = flooded(rig, monkeypatch, 10)
    rig.run(0.1)

    assert 10 <= len(turns) <= 21 + BURST
    before = len(turns)
    rig.run(0.1)
    assert 10 <= len(turns) - before <= 21


def test_a_long_answer_leaves_others_their_turn(rig: Rig) -> None:
    node = leased(rig)
    lease = rig.machine.nodes.root.children[b"d"].lease
    assert lease is not None
    events = [WatchEvent(lease.ino, 2, 0, b"f1")] * (EVENTS_TURN + 100)
    rig.machine.leases._news._handle(lease.connection, events)
    assert rig.machine.drops["lease_events"] == EVENTS_TURN
    assert rig.lookup(node, b"f2").nodeid
    rig.run(0.001)

    assert rig.machine.drops["lease_events"] == len(events)


def test_an_event_is_told_once_more_for_each_name_only(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    flooded(rig, monkeypatch, 10)
    node = rig.walk(b"d")
    rig.lookup(node, b"f1")
    lease = rig.machine.nodes.root.children[b"d"].lease
    assert lease is not None
    rig.run(0.02)

    assert 0 < len(lease.again) <= 11


def test_what_was_to_be_told_once_more_is_not_when_the_mount_ends(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[PendingCall] = []
    call_at = type(rig.dispatch).call_at

    def noted(view: NodeView, when: float, call: Callable[[], None]) -> PendingCall:
        timers.append(call_at(view, when, call))
        return timers[-1]

    monkeypatch.setattr(NodeView, "call_at", noted)
    flooded(rig, monkeypatch, 10)
    rig.lookup(rig.walk(b"d"), b"f1")
    rig.run(0.02)
    assert any(timer.call is not None and timer.when > rig.dispatch.now() for timer in timers)

    rig.machine.close()
    left = [timer.call for timer in timers if timer.call is not None and timer.when > rig.dispatch.now()]
    assert [call for call in left if "fuse" in call.__module__] == []


def test_who_tells_more_than_the_kernel_takes_is_not_believed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread waits for the lock of d, which a program holds that waits for that server."""
    monkeypatch.setattr(rig.machine, "tell_kernel", lambda messages, done: None)
    flooded(rig, monkeypatch, 10**6)
    rig.run(0.2)
    node = rig.machine.nodes.root.children[b"d"]

    assert rig.machine.drops["lease_flood"]
    assert node.lease is None
    assert rig.machine.telling.queued(node) < WAITING_MAX + 100
    rig.walk(b"d")
    assert node.lease is None


def test_what_others_change_now_is_read_past_the_cache(rig: Rig) -> None:
    """While events come the kernel may not take over the size that it is answered, so nothing may go by it."""
    node = leased(rig)
    file = rig.lookup(node, b"f1").nodeid
    assert not rig.open(file).open_flags & formats.FOPEN_DIRECT_IO
    # The open comes before the event of the change.
    rig.fs.find(b"d/f1").data[:] = b"other, and longer"
    assert rig.open(file).open_flags & formats.FOPEN_DIRECT_IO
    assert not rig.open(file, os.O_RDWR).open_flags & formats.FOPEN_DIRECT_IO

    # And after it, for as long as there may be more.
    rig.fs.add(b"d/f1", b"yet another")
    rig.run(0.05)
    file = rig.lookup(node, b"f1").nodeid
    assert rig.open(file).open_flags & formats.FOPEN_DIRECT_IO
    rig.run(1)
    assert not rig.open(file).open_flags & formats.FOPEN_DIRECT_IO


@pytest.mark.parametrize("how", ["removed", "replaced", "moved"])
def test_what_is_open_and_lost_its_name_is_not_believed_for_long(rig: Rig, how: str) -> None:
    """Nobody tells of its changes."""
    node = leased(rig)
    file = rig.lookup(node, b"f1").nodeid
    fh = rig.open(file).fh
    inode = rig.fs.find(b"d/f1")
    if how == "moved":
        rig.fs.enter(rig.fs.find(b"d/sub"), b"other", inode)
    rig.fs.remove(b"d/f1")
    if how == "replaced":
        rig.fs.add(b"d/f1", b"new")
    rig.run(0.1)

    by_file = formats.GETATTR_IN.pack(formats.GETATTR_FH, fh)
    for body in (by_file, bytes(16)):
        answer = rig.ask(Opcode.GETATTR, file, body)
        assert answer.error == 0
        assert struct.unpack_from("=Q", answer.body)[0] <= 1
    inode.data[:] = b"longer"
    rig.fs.touch(inode, data=True)
    rig.run(0.1)
    assert rig.ask(Opcode.GETATTR, file, by_file).attr[1] == len(b"longer")
    # Of one that has its name it is.
    other = rig.lookup(node, b"f2").nodeid
    fh = rig.open(other).fh
    rig.fs.touch(rig.fs.find(b"d/f2"))
    rig.run(0.1)
    answer = rig.ask(Opcode.GETATTR, other, formats.GETATTR_IN.pack(formats.GETATTR_FH, fh))
    assert struct.unpack_from("=Q", answer.body)[0] >= LEASE - 1
