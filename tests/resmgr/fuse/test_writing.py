"""Write-behind: what is answered before the server has it, what waits, and who is told of errors."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from stat import S_IFREG

import pytest

from resmgr.fuse import behind as accounts
from resmgr.fuse import formats
from resmgr.fuse.behind import OVERHEAD, Behind
from resmgr.fuse.formats import FATTR_MTIME, FATTR_SIZE, Opcode
from resmgr.fuse.options import Failure, FuseOptions
from resmgr.testing.fuserig import Rig
from resmgr.testing.memfs import Fault, MemFs
from tests.resmgr.fuse.written import FLUSH, FSYNC, events, later, opened, size_by_name, slow, write_in


def test_write_is_answered_at_once_and_close_waits(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 0.2)

    for number in range(3):
        assert rig.write(node, fh, 2 * number, b"ab").error == 0
    flush = later(rig, Opcode.FLUSH, node, FLUSH(fh, 0))
    assert rig.fs.find(b"f").data == b""
    rig.run(0.3)

    assert rig.answers[flush].error == 0
    assert rig.fs.find(b"f").data == b"ababab"
    assert rig.machine.held_bytes == rig.machine.behind_cost == 0


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (Opcode.READ, lambda fh: formats.READ_IN.pack(fh, 0, 4096, 0, 0, 0)),
        (Opcode.GETATTR, lambda fh: bytes(16)),
        (Opcode.OPEN, lambda fh: formats.OPEN_IN.pack(os.O_RDONLY, 0)),
        (Opcode.FSYNC, lambda fh: FSYNC(fh, 0)),
        (Opcode.FALLOCATE, lambda fh: formats.FALLOCATE_IN.pack(fh, 0, 1, 0)),
    ],
)
def test_what_must_see_the_writes_waits_for_them(rig: Rig, opcode: Opcode, body) -> None:  # type: ignore[no-untyped-def]  # a lambda per case
    node, fh = opened(rig)
    slow(rig, 0.2, times=1)
    rig.write(node, fh, 0, b"data")

    waiting = later(rig, opcode, node, body(fh))
    assert events(rig)["waited_for_writes"] == 1
    rig.run(0.3)

    answer = rig.answers[waiting]
    assert answer.error == 0
    if opcode == Opcode.READ:
        assert answer.body == b"data"
    if opcode == Opcode.GETATTR:
        assert answer.attr[1] == 4


def test_truncate_and_times_are_set_after_the_writes(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 0.2, times=1)
    rig.write(node, fh, 0, b"data" * 100)
    body = formats.SETATTR_IN.pack(FATTR_SIZE | FATTR_MTIME, 0, 3, 0, 0, 12345, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    later(rig, Opcode.SETATTR, node, body)

    rig.run(0.3)

    found = rig.fs.find(b"f")
    assert found.data == b"dat"
    assert found.mtime == 12345 * 10**9
    # The size before the cut is not told any more.
    assert size_by_name(rig.lookup(1, b"f")) == 3


def test_name_that_is_looked_up_meanwhile_has_the_size_that_the_program_wrote(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 0.2, times=1)
    rig.write(node, fh, 0, b"data")

    answer = rig.lookup(1, b"f")
    assert answer.nodeid == node
    assert size_by_name(answer) == 4
    nodeid, _, entry_s, attr_s, _, attr_ns, *_ = formats.ENTRY_OUT.parse(answer.body)
    assert (nodeid, entry_s) == (node, 1)
    # Time of change and the like are not known yet: not to be remembered.
    assert (attr_s, attr_ns) == (0, 0)

    rig.run(0.3)
    after = formats.ENTRY_OUT.parse(rig.lookup(1, b"f").body)
    assert after[3] == 1


def test_entry_that_was_asked_before_the_write_arrived_is_not_believed(rig: Rig) -> None:
    """The LOOKUP is answered by the server before the write, but comes back after it."""
    node, fh = opened(rig)
    slow(rig, 0.1, times=1)
    rig.fs.faults.append(Fault("lookup", delay=0.3, times=1))
    rig.write(node, fh, 0, b"data")
    lookup = rig.start(Opcode.LOOKUP, 1, b"f\0")
    rig.run(0.2)
    assert lookup not in rig.answers
    rig.fs.find(b"f").data[:] = b""

    rig.run(0.3)

    assert size_by_name(rig.answers[lookup]) == 4
    # What is asked afterwards is.
    assert size_by_name(rig.lookup(1, b"f")) == 0


def test_waiting_is_for_writes_that_came_before(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 0.1, times=1)
    rig.write(node, fh, 0, b"a")
    flush = later(rig, Opcode.FLUSH, node, FLUSH(fh, 0))
    rig.fs.faults.append(Fault("write", hang=True))
    rig.write(node, fh, 1, b"b")

    rig.run(0.2)

    assert rig.answers[flush].error == 0


def test_writes_that_overlap_keep_their_order(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 0.3, times=1)
    rig.write(node, fh, 0, b"first")
    second = later(rig, Opcode.WRITE, node, write_in(fh, 4, b"SECOND"))
    assert rig.write(node, fh, 20, b"elsewhere").error == 0

    rig.run(0.5)

    assert rig.answers[second].error == 0
    assert bytes(rig.fs.find(b"f").data) == b"firsSECOND".ljust(20, b"\0") + b"elsewhere"
    assert events(rig)["writes_overlapped"] == 1


def test_random_writes_through_two_files_end_as_if_one_after_another(rig: Rig) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    source = random.Random(seed)
    node, first = opened(rig)
    files = [first, rig.open(node, os.O_RDWR).fh]
    expected = bytearray(5000)
    rig.fs.find(b"f").data += expected
    waiting: int | None = None
    for _ in range(200):
        rig.fs.faults[:] = [Fault("write", delay=source.choice((0.0, 0.01, 0.05)))]
        start = source.randrange(4500)
        data = source.randbytes(source.randrange(1, 500))
        expected[start : start + len(data)] = data
        # The kernel lets one write(2) at a time into a file.
        waiting = rig.start(Opcode.WRITE, node, write_in(source.choice(files), start, data))
        while waiting not in rig.answers:
            rig.run(0.01)
        if source.random() < 0.1:
            read = rig.start(Opcode.READ, node, formats.READ_IN.pack(source.choice(files), 0, 5000, 0, 0, 0))
            while read not in rig.answers:
                rig.run(0.01)
            assert rig.answers[read].body == expected
    rig.run(1)
    assert rig.fs.find(b"f").data == expected


@pytest.mark.parametrize("flags", [os.O_DSYNC, os.O_SYNC, os.O_DIRECT, os.O_APPEND])
def test_programs_that_want_to_wait_do(rig: Rig, flags: int) -> None:
    node, fh = opened(rig, os.O_RDWR | flags)
    slow(rig, 0.1, times=1, code=errno.ENOSPC)

    write = later(rig, Opcode.WRITE, node, write_in(fh, 0, b"data", flags=os.O_RDWR | flags))
    rig.run(0.2)

    assert rig.answers[write].error == -errno.ENOSPC
    assert rig.ask(Opcode.FLUSH, node, FLUSH(fh, 0)).error == 0


def test_append_waits_for_writes_on_the_way(rig: Rig) -> None:
    node, fh = opened(rig)
    appender = rig.open(node, os.O_RDWR | os.O_APPEND).fh
    slow(rig, 0.2, times=1)
    rig.write(node, fh, 0, b"data")
    append = later(rig, Opcode.WRITE, node, write_in(appender, 0, b"end", flags=os.O_RDWR | os.O_APPEND))

    rig.run(0.3)

    assert rig.answers[append].error == 0
    assert rig.fs.find(b"f").data == b"dataend"


def test_flag_that_is_set_later_counts(rig: Rig) -> None:
    """fcntl(F_SETFL) reaches us only with the writes."""
    node, fh = opened(rig)
    slow(rig, 0.1, times=1)

    later(rig, Opcode.WRITE, node, write_in(fh, 0, b"x", flags=os.O_RDWR | os.O_APPEND))


def test_what_does_not_append_goes_to_its_place_though_the_file_was_opened_so(rig: Rig) -> None:
    """Pages of a mapping, and writes after fcntl(F_SETFL) without O_APPEND."""
    node, fh = opened(rig, os.O_RDWR | os.O_APPEND)
    appends = os.O_RDWR | os.O_APPEND
    assert rig.ask(Opcode.WRITE, node, write_in(fh, 0, b"0123456789", flags=appends)).error == 0
    assert rig.ask(Opcode.WRITE, node, write_in(fh, 2, b"page", how=formats.WRITE_CACHE)).error == 0
    assert rig.ask(Opcode.WRITE, node, write_in(fh, 8, b"X", flags=os.O_RDWR)).error == 0
    assert rig.ask(Opcode.WRITE, node, write_in(fh, 0, b"end", flags=appends)).error == 0
    assert rig.fs.find(b"f").data == b"01page67X9end"


def test_switched_off() -> None:
    rig = Rig(FuseOptions(write_behind=0))
    node, fh = opened(rig)
    slow(rig, 0.1)

    write = later(rig, Opcode.WRITE, node, write_in(fh, 0, b"data"))
    rig.run(0.2)

    assert rig.answers[write].error == 0


def test_program_is_slowed_to_the_servers_pace() -> None:
    data = bytes(100_000)
    cost = len(data) + OVERHEAD
    rig = Rig(FuseOptions(write_behind=2 * cost))
    node, fh = opened(rig)
    slow(rig, 0.1, times=1)
    slow(rig, 0.2, times=1)
    slow(rig, 0.3, times=1)

    assert rig.write(node, fh, 0, data).error == 0
    assert rig.write(node, fh, len(data), data).error == 0
    third = later(rig, Opcode.WRITE, node, write_in(fh, 2 * len(data), data))
    assert events(rig)["writes_throttled"] == 1
    rig.run(0.15)
    assert rig.answers[third].error == 0
    later(rig, Opcode.FLUSH, node, FLUSH(fh, 0))

    rig.run(0.4)
    assert len(rig.fs.find(b"f").data) == 3 * len(data)


def test_all_files_together_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resmgr.fuse.writing.TOTAL_MAX", 2 * (1 + OVERHEAD))
    rig.fs.add(b"a", b"")
    rig.fs.add(b"b", b"")
    slow(rig, 0.1)
    a, b = rig.walk(b"a"), rig.walk(b"b")
    first, second = rig.open(a, os.O_RDWR).fh, rig.open(b, os.O_RDWR).fh
    rig.write(a, first, 0, b"1")
    rig.write(a, first, 1, b"2")
    waiting = later(rig, Opcode.WRITE, b, write_in(second, 0, b"3"))

    rig.run(0.2)

    assert rig.answers[waiting].error == 0
    assert rig.machine.behind_cost == 0


def test_throttled_write_is_told_its_own_error() -> None:
    rig = Rig(FuseOptions(write_behind=1))
    node, fh = opened(rig)
    slow(rig, 0.1, code=errno.EDQUOT)

    write = later(rig, Opcode.WRITE, node, write_in(fh, 0, b"data"))
    rig.run(0.2)

    assert rig.answers[write].error == -errno.EDQUOT
    assert rig.ask(Opcode.FLUSH, node, FLUSH(fh, 0)).error == 0


# ---- errors


@pytest.mark.parametrize("teller", ["write", "flush", "fsync"])
def test_error_in_the_middle_is_told_once(rig: Rig, teller: str) -> None:
    node, fh = opened(rig)
    slow(rig, 0.1, times=1)
    slow(rig, 0.1, times=1, code=errno.EIO)
    slow(rig, 0.1, times=1)
    for number in range(3):
        assert rig.write(node, fh, number, b"x").error == 0
    rig.run(0.2)
    rig.fs.faults.clear()
    bodies = {
        "write": (Opcode.WRITE, write_in(fh, 3, b"x")),
        "flush": (Opcode.FLUSH, FLUSH(fh, 0)),
        "fsync": (Opcode.FSYNC, FSYNC(fh, 0)),
    }

    assert rig.ask(bodies[teller][0], node, bodies[teller][1]).error == -errno.EIO

    if teller == "flush":
        # Others may have the same open file, and close it as well.
        assert rig.ask(Opcode.WRITE, node, bodies["write"][1]).error == -errno.EIO
    for opcode, body in bodies.values():
        assert rig.ask(opcode, node, body).error == 0
    assert rig.release(node, fh).error == 0
    assert "writes_lost" not in events(rig)


def test_flush_that_waits_gets_the_error(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 0.1, code=errno.ENOSPC)
    rig.write(node, fh, 0, b"x")
    flush = later(rig, Opcode.FLUSH, node, FLUSH(fh, 0))

    rig.run(0.2)

    assert rig.answers[flush].error == -errno.ENOSPC


def test_each_process_that_closes_is_told(rig: Rig) -> None:
    """The first may be a child that inherited it, ends, and looks at nothing."""
    node, fh = opened(rig)
    slow(rig, 0.1, code=errno.ENOSPC, times=1)
    rig.write(node, fh, 0, b"x")
    rig.run(0.2)
    for owner in range(3):
        assert rig.ask(Opcode.FLUSH, node, FLUSH(fh, owner)).error == -errno.ENOSPC
    assert rig.ask(Opcode.FSYNC, node, FSYNC(fh, 0)).error == -errno.ENOSPC
    assert rig.ask(Opcode.FLUSH, node, FLUSH(fh, 0)).error == 0
    rig.release(node, fh)
    assert "writes_lost" not in events(rig)


def test_error_that_only_a_program_was_told_which_ended_is_logged(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 0.1, code=errno.ENOSPC, times=1)
    rig.write(node, fh, 0, b"x")
    rig.run(0.2)
    with subprocess.Popen(["true"]) as program:
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        rig.pid = program.pid
        assert rig.ask(Opcode.FLUSH, node, FLUSH(fh, 0)).error == -errno.ENOSPC
    rig.release(node, fh)
    assert events(rig)["writes_lost"] == 1


def test_an_fsync_that_nobody_hears_of_takes_no_error(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 0.1, code=errno.ENOSPC, times=1)
    rig.write(node, fh, 0, b"x")
    rig.fs.faults.append(Fault("sync", delay=3.0, times=1))
    fsync = later(rig, Opcode.FSYNC, node, FSYNC(fh, 0))
    rig.raw(formats.IN_HEADER.pack(48, Opcode.INTERRUPT, 1001, 0, 0, 0, 0, 0, 0) + formats.INTERRUPT_IN.pack(fsync))
    rig.run(5)
    assert rig.answers[fsync].error == -errno.EINTR
    assert rig.ask(Opcode.FSYNC, node, FSYNC(fh, 0)).error == -errno.ENOSPC


def test_an_fsync_that_waits_for_its_node_tells_the_error_in_the_end() -> None:
    rig = Rig(FuseOptions(failure=Failure.HARD))
    node, fh = opened(rig)
    slow(rig, 0.1, code=errno.ENOSPC, times=1)
    rig.write(node, fh, 0, b"x")
    rig.fs.faults.append(Fault("sync", code=errno.EHOSTDOWN, times=1))
    fsync = later(rig, Opcode.FSYNC, node, FSYNC(fh, 0))
    rig.run(1)
    assert events(rig)["kept"] == 1
    assert rig.answers[fsync].error == -errno.ENOSPC


def test_each_open_file_is_told_once(rig: Rig) -> None:
    node, writer = opened(rig)
    other = rig.open(node, os.O_RDWR).fh
    reader = rig.open(node, os.O_RDONLY).fh
    slow(rig, 0.1, code=errno.ENOSPC, times=1)
    rig.write(node, writer, 0, b"x")
    rig.run(0.2)
    newcomer = rig.open(node, os.O_RDWR).fh

    assert rig.read(node, reader, 0, 10).error == 0
    for fh in (writer, other, reader):
        assert rig.ask(Opcode.FSYNC, node, FSYNC(fh, 0)).error == -errno.ENOSPC
        assert rig.ask(Opcode.FSYNC, node, FSYNC(fh, 0)).error == 0
    assert rig.ask(Opcode.FSYNC, node, FSYNC(newcomer, 0)).error == 0


def test_error_that_nobody_waited_for_is_logged(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A program that is killed, for instance."""
    node, fh = opened(rig)
    before = len(rig.fs.manager.table.handles)
    slow(rig, 0.1, code=errno.ENOSPC)
    rig.write(node, fh, 0, b"x")
    assert rig.release(node, fh).error == 0
    rig.run(0.05)
    # The server's side stays open until the write is done.
    assert len(rig.fs.manager.table.handles) == before

    rig.run(0.1)

    assert len(rig.fs.manager.table.handles) == before - 1
    assert events(rig)["writes_lost"] == 1
    assert "'/f' are lost: No space left" in caplog.text


def test_full_disk_cuts_a_write_and_says_why(rig: Rig) -> None:
    node, fh = opened(rig)
    rig.fs.size_max = 6
    slow(rig, 0.1)
    rig.write(node, fh, 0, b"data")
    rig.write(node, fh, 4, b"more")
    flush = later(rig, Opcode.FLUSH, node, FLUSH(fh, 0))

    rig.run(0.5)

    assert rig.fs.find(b"f").data == b"datamo"
    assert rig.answers[flush].error == -errno.ENOSPC


def test_server_without_room_for_messages_is_asked_again(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 0.001, times=3, code=errno.EAGAIN)
    rig.write(node, fh, 0, b"data")
    flush = later(rig, Opcode.FLUSH, node, FLUSH(fh, 0))

    rig.run(0.5)

    assert rig.answers[flush].error == 0
    assert rig.fs.find(b"f").data == b"data"
    assert events(rig)["writes_again"] == 3


def test_server_that_never_has_room_is_an_error(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 0.0, code=errno.EAGAIN)
    write = rig.start(Opcode.WRITE, node, write_in(fh, 0, b"data"))
    flush = rig.start(Opcode.FLUSH, node, FLUSH(fh, 0))

    rig.run(10)

    assert rig.answers[write].error == 0
    assert rig.answers[flush].error == -errno.EAGAIN


@pytest.mark.parametrize("again", [False, True])
def test_server_dies_with_writes_on_the_way(rig: Rig, again: bool) -> None:
    node, fh = opened(rig)
    slow(rig, 1.0)
    rig.write(node, fh, 0, b"x")
    rig.write(node, fh, 1, b"y")
    waiting = later(rig, Opcode.READ, node, formats.READ_IN.pack(fh, 0, 10, 0, 0, 0))
    flush = later(rig, Opcode.FLUSH, node, FLUSH(fh, 0))

    chid = rig.fs.target.chid
    rig.fs.manager.destroy()
    if again:
        rig.fs = MemFs(rig.kernel, chid=chid)
    rig.run(0.1)

    assert rig.answers[waiting].error < 0
    assert rig.answers[flush].error == -errno.EIO
    assert rig.machine.held_bytes == rig.machine.behind_cost == 0


def test_mount_ends_with_writes_on_the_way(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 1.0)
    rig.write(node, fh, 0, b"x")
    later(rig, Opcode.FLUSH, node, FLUSH(fh, 0))

    rig.machine.close()
    rig.run(2)

    assert rig.machine.held_bytes == 0


@pytest.mark.parametrize("how", [0, os.O_DSYNC])
def test_a_write_that_was_given_up_before_it_was_sent_is_not_sent(rig: Rig, how: int) -> None:
    node, fh = opened(rig)
    slow(rig, 3.0, times=1)
    rig.write(node, fh, 0, b"aaaa")
    given_up = later(rig, Opcode.WRITE, node, write_in(fh, 2, b"bbbb", flags=os.O_RDWR | how))
    rig.raw(formats.IN_HEADER.pack(48, Opcode.INTERRUPT, 1001, 0, 0, 0, 0, 0, 0) + formats.INTERRUPT_IN.pack(given_up))
    rig.run(2)
    assert rig.answers[given_up].error == -errno.EINTR
    assert rig.write(node, fh, 4, b"cccc").error == 0

    rig.run(3)

    assert rig.fs.find(b"f").data == b"aaaacccc"
    assert rig.machine.held_bytes == rig.machine.behind_cost == 0
    assert rig.ask(Opcode.FLUSH, node, FLUSH(fh, 0)).error == 0


def test_interrupted_close_is_not_answered_at_once(rig: Rig) -> None:
    """Signals come for all kinds of reasons, and a close that says EINTR says nothing of the data."""
    node, fh = opened(rig)
    slow(rig, 0.5)
    rig.write(node, fh, 0, b"x")
    flush = later(rig, Opcode.FLUSH, node, FLUSH(fh, 0))
    rig.raw(formats.IN_HEADER.pack(48, Opcode.INTERRUPT, 1001, 0, 0, 0, 0, 0, 0) + formats.INTERRUPT_IN.pack(flush))

    rig.run(1.0)

    assert rig.answers[flush].error == 0


# ---- the account


def test_account_of_a_node() -> None:
    account = Behind()
    ran: list[str] = []
    account.after(lambda: ran.append("nothing to wait for"))
    one = account.begin(0, 10, 0.0)
    two = account.begin(10, 20, 0.0)
    account.after(lambda: ran.append("both"))
    three = account.begin(30, 40, 0.0)

    assert account.cost == 30 + 3 * OVERHEAD
    assert [account.overlaps(*spot) for spot in ((0, 1), (9, 11), (19, 30), (20, 30), (25, 35), (40, 50))] == [
        True,
        True,
        True,
        False,
        True,
        False,
    ]
    account.finish(two, 1.0)
    assert ran == ["nothing to wait for"]
    account.finish(one, 2.0)
    assert ran == ["nothing to wait for", "both"]
    assert account.outdates(5.0)
    account.finish(three, 3.0)
    assert account.outdates(2.5)
    assert not account.outdates(3.0)
    attr = (1, S_IFREG, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0)
    assert account.adjusted(attr)[6] == 40
    assert account.adjusted((*attr[:6], 100, *attr[7:]))[6] == 100
    account.begin(0, 5, 4.0)
    assert account.end == 5
    assert accounts.TOTAL_MAX > 0
