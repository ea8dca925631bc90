"""Files opened ahead, without a kernel: which are, what is handed out, and what ends it."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator

import pytest

from resmgr.fuse import formats, openahead, sequence
from resmgr.fuse.formats import Opcode
from resmgr.fuse.openahead import OPEN_MAX, PASSED_MAX, REFUSED_MAX, RUNS_MAX, VALID
from resmgr.fuse.options import FuseOptions
from resmgr.fuse.sequence import Order
from resmgr.iomsg import WATCH_MOVED_TO
from resmgr.testing.memfault import Fault
from tests.resmgr.fuse.test_delegated import Delegating

FILES = 40
SLOW = Fault("open", late=0.01)


class Reading(Delegating):
    """A mount of a directory `e` of files f00 to f39, each with its name in it, which a thread has open unless *listed* is false."""

    def __init__(self, options: FuseOptions | None = None, *, listed: bool = True) -> None:
        super().__init__(options)
        for number in range(FILES):
            self.fs.add(b"e/f%02d" % number, b"f%02d" % number)
        self.machine.delegated.quiet = 0.0
        self.directory = self.walk(b"e")
        if listed:
            self.list()

    def list(self) -> int:
        """Open the directory, and have the kernel know all that is in it."""
        fh = self.ask(Opcode.OPENDIR, self.directory, formats.OPEN_IN.pack(0, 0)).fh
        self.ask(Opcode.READDIRPLUS, self.directory, formats.READ_IN.pack(fh, 0, 1 << 16, 0, 0, 0))
        self.run(0.001)
        return fh

    def file(self, number: int) -> int:
        return self.walk(b"e/f%02d" % number)

    def see(self, number: int) -> bytes:
        """Open, read and close a file; the data, by READ or as pages."""
        node = self.file(number)
        self.notifications.clear()
        unique = self.start(Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_RDONLY, 0))
        self.world.run_until(lambda: unique in self.answers, limit=30.0)
        answer = self.answers[unique]
        assert answer.error == 0
        data = self.read(node, answer.fh, 0, 100).body
        self.release(node, answer.fh)
        return data

    def event(self, name: str) -> int:
        return self.machine.drops["open_ahead_" + name]

    def ocbs(self) -> int:
        """Files that are open at the server."""
        return sum(self.fs.opens(one) and self.fs.inode_of(one).data[:1] == b"f" for one in self.fs.manager.table.handles.values())


@pytest.fixture
def rig() -> Iterator[Reading]:
    made = Reading()
    yield made
    made.machine.close()


def test_a_thread_that_has_the_directory_open_waits_for_its_first_file_only(rig: Reading) -> None:
    rig.machine.delegated.quiet = 0.0
    for number in range(FILES):
        assert rig.see(number) == b"f%02d" % number
    assert rig.event("hits") == FILES - 1
    assert rig.event("asked") == FILES - 1
    assert rig.event("unused") == 0
    rig.run(0.1)
    assert rig.given() == 0, "nothing is kept of what was read once"
    assert rig.ocbs() == 0


def test_another_thread_begins_with_its_third_file() -> None:
    rig = Reading(listed=False)
    rig.pid += 1
    fh = rig.list()
    rig.ask(Opcode.RELEASEDIR, rig.directory, formats.RELEASE_IN.pack(fh, 0, 0, 0))
    for number in range(3):
        assert rig.event("asked") == 0
        rig.see(number)
    assert rig.event("asked") == 2
    rig.machine.close()


def test_what_does_not_follow_is_not_expected(rig: Reading) -> None:
    for number in (0, 1, 2):
        rig.see(number)
    asked = rig.event("asked")
    for number in (20, 9, 33, 5):
        rig.see(number)
    assert rig.event("asked") == asked
    assert rig.event("unused") == asked - 2
    rig.run(0.1)
    assert rig.given() == 0


def test_directories_and_files_of_several_names_are_passed_over() -> None:
    rig = Reading(listed=False)
    rig.fs.add(b"e/f00a/x", b"x")
    inode = rig.fs.find(b"e/f01")
    inode.nlink = 2
    rig.list()
    rig.see(0)
    rig.see(2)
    rig.see(3)
    assert rig.event("hits") == 2
    rig.machine.close()


@pytest.mark.parametrize("between", [PASSED_MAX, PASSED_MAX + 1])
def test_no_more_than_so_many_are_passed_over(between: int) -> None:
    """Each costs a look, and a directory may have thousands of them."""
    rig = Reading(listed=False)
    names = [b"a0", b"a1", b"a2", *(b"b%02d" % number for number in range(between)), b"c"]
    for name in names:
        rig.fs.add(b"p/" + name + b"/x" * name.startswith(b"b"), b"f")
    rig.directory = rig.walk(b"p")
    rig.list()
    for name in names[:3]:
        node = rig.walk(b"p/" + name)
        rig.release(node, rig.open(node).fh)
    assert [name for _, name in rig.machine.open_ahead.places] == [b"c"] * (between <= PASSED_MAX)
    rig.machine.close()


def test_by_inode_number_as_cp_does_it() -> None:
    rig = Reading(listed=False)
    numbers = list(range(FILES))
    random.Random(3).shuffle(numbers)
    for number in numbers:
        inode = rig.fs.find(b"e/f%02d" % number)
        inode.ino = 1000 + numbers.index(number)
    rig.list()
    for number in numbers:
        assert rig.see(number) == b"f%02d" % number
    assert rig.event("hits") > FILES * 0.8
    rig.machine.close()


@pytest.mark.parametrize("by", list(Order))
def test_a_large_directory_is_gone_through_in_parts(monkeypatch: pytest.MonkeyPatch, by: Order) -> None:
    monkeypatch.setattr(sequence, "NAMES_MAX", 20)
    monkeypatch.setattr(sequence, "PART", 8)
    rig = Reading(listed=False)
    numbers = list(range(FILES))
    random.Random(3).shuffle(numbers)
    for place, number in enumerate(numbers):
        rig.fs.add(b"p/f%02d" % number, b"f").ino = 1000 + place * 7 % FILES
    rig.directory = rig.walk(b"p")
    rig.list()
    if by is Order.NAME:
        numbers.sort()
    elif by is Order.INODE:
        numbers.sort(key=lambda number: rig.fs.find(b"p/f%02d" % number).ino)
    for number in numbers:
        node = rig.walk(b"p/f%02d" % number)
        rig.release(node, rig.open(node).fh)
    assert rig.event("hits") > FILES * 0.8
    rig.machine.close()


def test_who_reads_out_of_order_has_names_looked_through_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "NAMES_MAX", 4)
    monkeypatch.setattr(sequence, "PART", 2)
    monkeypatch.setattr(openahead, "NAMES_PER_OPEN", 1)
    rig = Reading()
    numbers = list(range(FILES))
    random.Random(3).shuffle(numbers)
    seen = set()
    for number in numbers:
        rig.see(number)
        seen.add(next(iter(rig.machine.open_ahead._runs.values())).listed)
    assert len(seen) <= 4
    rig.machine.close()


def test_the_window_grows_while_the_program_waits(rig: Reading) -> None:
    rig.fs.faults.append(SLOW)
    began = rig.dispatch.now()
    for number in range(FILES):
        assert rig.see(number) == b"f%02d" % number
    assert rig.event("hits") == FILES - 1
    assert rig.dispatch.now() - began < 0.01 * FILES / 4
    assert max(rig.event("unused"), rig.event("refused")) == 0
    rig.machine.close()


def test_no_more_than_the_option_says() -> None:
    rig = Reading(FuseOptions(open_ahead=3))
    rig.fs.faults.append(SLOW)
    for number in range(20):
        rig.see(number)
        assert len(rig.machine.open_ahead) <= 3
    assert rig.event("hits") > 10
    rig.machine.close()
    rig = Reading(FuseOptions(open_ahead=0))
    for number in range(5):
        rig.see(number)
    assert rig.event("asked") == 0
    rig.machine.close()


def test_bounded_in_all_threads() -> None:
    rig = Reading(FuseOptions(open_ahead=16, delegations=256), listed=False)
    for folder in range(10):
        for number in range(FILES):
            rig.fs.add(b"r%d/f%02d" % (folder, number), b"f")
        rig.directory = rig.walk(b"r%d" % folder)
        rig.list()
    rig.fs.faults.append(Fault("open", late=0.03))
    most = 0
    for number in range(FILES // 2):
        for folder in range(10):
            node = rig.walk(b"r%d/f%02d" % (folder, number))
            unique = rig.start(Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_RDONLY, 0))
            most = max(most, len(rig.machine.open_ahead))
            rig.world.run_until(lambda unique=unique: unique in rig.answers, limit=30.0)  # type: ignore[misc]
    assert most == OPEN_MAX
    rig.machine.close()


def test_who_read_longest_ago_is_forgotten() -> None:
    rig = Reading(FuseOptions(open_ahead=1), listed=False)
    for folder in range(RUNS_MAX + 1):
        for number in range(2):
            rig.fs.add(b"r%02d/f%02d" % (folder, number), b"f")
        rig.directory = rig.walk(b"r%02d" % folder)
        rig.list()
        rig.ask(Opcode.OPEN, rig.walk(b"r%02d/f00" % folder), formats.OPEN_IN.pack(os.O_RDONLY, 0))
    assert rig.event("asked") == RUNS_MAX + 1
    assert rig.event("unused") == 1
    assert len(rig.machine.open_ahead) == RUNS_MAX
    rig.machine.close()


# ---- what ends it


def begin(rig: Reading) -> None:
    """f00 was read, f01 and f02 are opened ahead."""
    rig.see(0)
    rig.run(0.001)
    assert len(rig.machine.open_ahead) == 2
    assert rig.given() == 2


def test_who_opens_one_for_writing_waits_for_a_message(rig: Reading) -> None:
    begin(rig)
    assert rig.fs.delegations is not None
    inode = rig.fs.find(b"e/f01")

    def change() -> None:
        inode.data[:] = b"new"
        rig.fs.touch(inode, data=True)

    rig.fs.delegations.locally(inode, change)
    rig.run(0.001)
    assert bytes(inode.data) == b"new"
    assert rig.given() == 1
    assert rig.see(1) == b"new"


def test_a_change_while_it_is_on_the_way(rig: Reading) -> None:
    rig.fs.faults.append(Fault("open", name=b"f01", late=0.01, times=1))
    rig.see(0)
    inode = rig.fs.find(b"e/f01")
    inode.data[:] = b"new"
    rig.fs.touch(inode, data=True)
    # It was opened, and read, before that.
    assert rig.see(1) == b"new"


def test_a_recall_that_overtakes_the_answer(rig: Reading) -> None:
    rig.fs.faults.append(Fault("open", name=b"f01", late=0.05, times=1))
    rig.see(0)
    rig.run(0.01)
    assert rig.fs.delegations is not None
    inode = rig.fs.find(b"e/f01")
    rig.fs.delegations.locally(inode, lambda: inode.data.__setitem__(slice(None), b"new"))
    rig.run(0.05)
    assert bytes(inode.data) == b"new", "the writer has waited for the answer and no longer"


def test_another_file_under_its_name(rig: Reading) -> None:
    begin(rig)
    other = rig.fs.add(b"e/other", b"other")
    directory = rig.fs.find(b"e")
    directory.entries[b"f01"] = (other, directory.entries[b"f01"][1])
    assert rig.fs.watching is not None
    rig.fs.watching.name(directory, b"f01", WATCH_MOVED_TO)
    rig.run(0.001)
    assert rig.see(1) == b"other"


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR | os.O_TRUNC])
def test_a_write_from_here_is_not_held_up(rig: Reading, flags: int) -> None:
    begin(rig)
    node = rig.file(1)
    answer = rig.open(node, flags)
    assert answer.error == 0
    rig.release(node, answer.fh)
    # What was handed out and closed, but is not closed yet at the server, too.
    rig.see(2)
    assert rig.open(rig.file(2), flags).error == 0
    assert rig.fs.manager.counters["delegations_waits"] == 0


def test_a_write_is_not_held_up_by_what_turned_out_not_to_follow(rig: Reading) -> None:
    begin(rig)
    rig.see(20)
    assert len(rig.machine.open_ahead) == 0
    assert rig.open(rig.file(1), os.O_WRONLY).error == 0
    assert rig.fs.manager.counters["delegations_waits"] == 0
    assert rig.given() == 0


def test_who_changes_another_file_leaves_the_closes_for_later(rig: Reading) -> None:
    begin(rig)
    rig.see(20)
    given = rig.given()
    assert rig.open(rig.file(30), os.O_WRONLY).error == 0
    assert rig.given() == given > 0


@pytest.mark.parametrize("what", ["chmod", "unlink", "rename"])
def test_a_change_from_here_ends_it(rig: Reading, what: str) -> None:
    begin(rig)
    if what == "chmod":
        body = formats.SETATTR_IN.pack(formats.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o600, 0, 0, 0, 0)
        rig.start(Opcode.SETATTR, rig.file(1), body)
    elif what == "unlink":
        rig.start(Opcode.UNLINK, rig.directory, b"f01\0")
    else:
        rig.start(Opcode.RENAME, rig.directory, formats.RENAME_IN.pack(rig.directory) + b"f30\0f01\0")
    assert len(rig.machine.open_ahead) == 1
    rig.run(0.01)
    assert rig.given() == 1


def test_another_user_is_not_handed_it(rig: Reading) -> None:
    begin(rig)
    rig.uid = 1000
    hits = rig.event("hits")
    assert rig.see(1) == b"f01"
    assert rig.event("hits") == hits


def test_what_nobody_comes_for_is_closed(rig: Reading) -> None:
    begin(rig)
    rig.run(VALID + 1.0)
    assert len(rig.machine.open_ahead) == 0
    assert rig.given() == 0
    assert rig.ocbs() == 0
    assert rig.see(1) == b"f01"


def test_what_hangs_and_nobody_comes_for_is_given_up(rig: Reading) -> None:
    rig.fs.faults.append(Fault("open", name=b"f01", hang=True))
    rig.see(0)
    assert len(rig.fs.hanging) == 1
    rig.run(2 * VALID + 0.1)
    assert len(rig.machine.open_ahead) == 0
    assert not rig.fs.hanging


def test_what_is_too_old_is_not_handed_out(rig: Reading) -> None:
    begin(rig)
    rig.run(VALID - 0.1)
    rig.fs.faults.append(Fault("open", name=b"f02", late=1.0))
    rig.run(0.15)
    hits = rig.event("hits")
    assert rig.see(1) == b"f01"
    assert rig.event("hits") == hits


def test_what_is_on_the_way_for_too_long_is_not_waited_for(rig: Reading) -> None:
    rig.fs.faults.append(Fault("open", name=b"f01", late=0.9, times=1))
    rig.see(0)
    rig.run(VALID + 0.05)
    began = rig.dispatch.now()
    assert rig.see(1) == b"f01"
    assert rig.dispatch.now() - began < 0.1
    rig.run(2.0)
    assert rig.given() == 0
    assert rig.ocbs() == 0


def test_who_keeps_all_open_has_no_more_of_them_delegated_than_the_option_says() -> None:
    rig = Reading(FuseOptions(delegations=5))
    most = 0
    for number in range(FILES):
        assert rig.open(rig.file(number)).error == 0
        rig.run(0.001)
        most = max(most, rig.given())
    assert rig.event("hits") >= 5
    assert most <= 5 + 5 + 2
    assert len(rig.machine.delegated) <= 10
    rig.machine.close()


def test_after_many_files_it_is_tried_again(rig: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openahead, "REFUSED_OPENS", 10)
    delegations, rig.fs.delegations = rig.fs.delegations, None
    for number in range(10):
        rig.see(number)
    rig.fs.delegations = delegations
    assert rig.event("hits") == 0
    for number in range(10, FILES):
        rig.see(number)
    assert rig.event("hits") > FILES / 3


def test_four_that_are_not_delegated_end_it(rig: Reading) -> None:
    rig.fs.delegations = None
    for number in range(FILES):
        rig.see(number)
    assert rig.event("hits") == 0
    assert rig.event("refused") <= REFUSED_MAX + 1
    rig.run(0.1)
    assert rig.ocbs() == 0


def test_who_waits_for_what_is_refused_asks_himself(rig: Reading) -> None:
    rig.fs.faults.append(Fault("open", name=b"f01", delay=0.01, code=errno.EIO, times=1))
    rig.see(0)
    assert rig.see(1) == b"f01"
    assert rig.event("refused") == 1


@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.parametrize("most", [0, 16])
def test_a_signal_while_it_is_on_the_way(deaf: bool, most: int) -> None:
    """As without: the server is asked to end it, and not waited for if it does not."""
    rig = Reading(FuseOptions(open_ahead=most))
    rig.fs.faults.append(Fault("open", name=b"f01", hang=True, deaf=deaf))
    rig.see(0)
    unique = rig.start(Opcode.OPEN, rig.file(1), formats.OPEN_IN.pack(os.O_RDONLY, 0))
    rig.raw(formats.IN_HEADER.pack(48, Opcode.INTERRUPT, 1, 0, 0, 0, 0, 0, 0) + unique.to_bytes(8, "little"))
    rig.run(rig.machine.options.interrupt_delay + 0.01)
    assert (unique in rig.answers) == (not deaf)
    rig.run(rig.machine.options.interrupt_patience)
    assert rig.answers[unique].error == -errno.EINTR
    assert rig.machine.drops["unblocked"] == 1
    rig.machine.close()


@pytest.mark.parametrize("most", [0, 16])
def test_a_server_that_says_nothing_meets_the_deadline(most: int) -> None:
    rig = Reading(FuseOptions(open_ahead=most, deadline=2.0))
    rig.fs.faults.append(Fault("open", name=b"f01", hang=True))
    rig.see(0)
    unique = rig.start(Opcode.OPEN, rig.file(1), formats.OPEN_IN.pack(os.O_RDONLY, 0))
    rig.run(3.0)
    assert rig.answers[unique].error == -errno.ETIMEDOUT
    assert all(message.answered for message in rig.fs.hanging), "the server was asked to end it"
    rig.machine.close()


def test_the_server_goes_away(rig: Reading) -> None:
    begin(rig)
    rig.restart()
    rig.run(0.1)
    assert len(rig.machine.open_ahead) == 0
    assert rig.see(1) == b"f01"


def test_it_goes_away_while_somebody_waits() -> None:
    errors = []
    for most in 0, 16:
        rig = Reading(FuseOptions(open_ahead=most))
        rig.fs.faults.append(Fault("open", name=b"f01", hang=True))
        rig.see(0)
        unique = rig.start(Opcode.OPEN, rig.file(1), formats.OPEN_IN.pack(os.O_RDONLY, 0))
        assert unique not in rig.answers
        rig.restart()
        rig.world.run_until(lambda unique=unique, rig=rig: unique in rig.answers, limit=30.0)  # type: ignore[misc]
        errors.append(rig.answers[unique].error)
        assert rig.see(1) == b"f01"
        rig.machine.close()
    assert errors[0] == errors[1], "as without"


def test_the_mount_goes_away_while_somebody_waits(rig: Reading) -> None:
    rig.fs.faults.append(Fault("open", name=b"f01", late=0.01))
    rig.see(0)
    unique = rig.start(Opcode.OPEN, rig.file(1), formats.OPEN_IN.pack(os.O_RDONLY, 0))
    rig.machine.close()
    rig.run(0.1)
    assert unique not in rig.answers


def test_a_daemon_that_was_stopped_hands_out_nothing(rig: Reading) -> None:
    begin(rig)
    hits = rig.event("hits")
    rig.machine.awake.asleep = lambda: 5.0
    assert rig.see(1) == b"f01"
    assert rig.event("hits") == hits
    rig.run(0.1)
    assert rig.given() <= 2


def test_a_file_that_is_read_again_and_again_is_kept(rig: Reading) -> None:
    for _ in range(3):
        for number in range(FILES):
            rig.see(number)
    assert len(rig.machine.delegated) == FILES
    rig.messages()
    for number in range(FILES):
        rig.see(number)
    assert "open" not in rig.messages()
