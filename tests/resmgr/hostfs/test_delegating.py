"""Delegations of host files: who gets one, and what happens to those who open such a file for more."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from resmgr.access import Export
from resmgr.errors import ResmgrError
from resmgr.hostfs import breaks, grace, locks
from resmgr.hostfs.reopen import boot_id
from resmgr.iofunc import delegations
from resmgr.iofunc.delegations import AGAIN, PATIENCE, REST
from resmgr.iomsg import (
    DELEGATION_ASK,
    DELEGATION_LOCK,
    DELEGATION_LOCKS_MAX,
    LOCK_SET,
    LOOKUP_WATCH,
    OPEN_DELEGATE,
    REQUEST,
    SET_SIZE,
    WANT_HANDLE,
    WATCH_NEXT,
    WATCH_RECALL,
    Connect,
    Entry,
    Io,
    parse_events,
)
from resmgr.iorequest import ConnectRequest, SetAttr
from resmgr.lockrequest import LOCK_END, LockRequest, pack_delegation, pack_lock
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.ioclient import Begun, IoClient, fails

LONG = 60.0
"""Seconds that a test waits for another thread, which takes milliseconds."""


@attrs.define
class Leasing:
    """A served directory whose leases are the kernel's. Virtual time has no descriptors: they are read by `hear`."""

    host: HostDirectory
    readable: dict[int, Callable[[], None]]

    def client(self, node: str = "b", uid: int = 0) -> IoClient:
        client = self.host.remote(node, uid)
        assert client.lookup(b"d", flags=LOOKUP_WATCH | WANT_HANDLE).watched
        return client

    def open(self, client: IoClient, name: bytes = b"f", flags: int = os.O_RDONLY | OPEN_DELEGATE) -> Entry:
        return client.open(name, flags, handle=self.directory(client))

    def directory(self, client: IoClient) -> int:
        return client.lookup(b"d", flags=LOOKUP_WATCH | WANT_HANDLE).handle

    def begin(self, client: IoClient, request: ConnectRequest) -> Begun:
        request.handle = self.directory(client)
        return client.begin(self.host.fs.target, request.pack())

    def news(self, client: IoClient) -> Begun:
        return client.begin(self.host.fs.target, REQUEST.pack(Io.WATCH, WATCH_NEXT, 0, 0))

    def give_back(self, client: IoClient, entry: Entry) -> None:
        client.io(entry.target, Io.DELEGATION, entry.ocb)

    def hear(self) -> None:
        """Have the dispatch hear that somebody waits for a lease."""
        poll = select.poll()
        for fd in self.readable:
            poll.register(fd, select.POLLIN)
        heard = False
        while not heard:
            # Changes of names are there before the thread that hears of leases.
            ready = poll.poll(LONG * 1000)
            assert ready
            for fd, _ in ready:
                call = self.readable[fd]
                heard = heard or getattr(call, "__self__", None) is self.host.fs.delegations.breaks
                call()

    def count(self, what: str) -> int:
        return self.host.fs.counters["delegations_" + what]


@pytest.fixture
def leasing(host: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Leasing]:
    readable: dict[int, Callable[[], None]] = {}
    monkeypatch.setattr(type(host.dispatch), "attach_fd", lambda _, fd, call: readable.__setitem__(fd, call))
    monkeypatch.setattr(type(host.dispatch), "detach_fd", lambda _, fd: readable.pop(fd, None))
    host.fs.set_policy(host.policy((Export("/", ["read", "write"]),)))
    # What is done in threads, as for a disk that is slow at the moment, is not delegated.
    host.fs.devices.root.kind = b"tmpfs"
    # Who reads for the dispatch here may be late.
    host.fs.delegations.breaks.unheard = LONG
    (host.root / "d").mkdir()
    (host.root / "d/f").write_bytes(b"first")
    yield Leasing(host, readable)
    host.fs.destroy()


class Opener:
    """A program of this machine that opens a file, in a thread of its own, and writes to it."""

    def __init__(self, path: str, data: bytes) -> None:
        self.opening = threading.Event()
        self.code = -1
        self._thread = threading.Thread(target=self._run, args=(path, data))
        self._thread.start()
        assert self.opening.wait(LONG)

    def _run(self, path: str, data: bytes) -> None:
        self.opening.set()
        fd = os.open(path, os.O_WRONLY)
        self.code = os.write(fd, data)
        os.close(fd)

    def over(self) -> bool:
        self._thread.join(LONG)
        return not self._thread.is_alive()

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()


def told(begun: Begun) -> list[int]:
    """Inode numbers of what is recalled by the answer."""
    return [event.ino for event in parse_events(begun.data) if event.kind == WATCH_RECALL]


def test_a_local_writer_waits_until_it_is_given_back(leasing: Leasing) -> None:
    client = leasing.client()
    entry = leasing.open(client)
    assert entry.delegated
    news = leasing.news(client)
    path = os.fspath(leasing.host.root / "d/f")
    # Readers are not held up, nor who only looks.
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    os.utime(path)
    with pytest.raises(BlockingIOError):
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    writer = Opener(path, b"second")
    leasing.hear()
    leasing.host.dispatch.run_for(0.1)
    assert told(news) == [os.stat(path).st_ino]
    assert writer.waits
    assert leasing.host.fs.delegations.facts() == [{"node": "b", "uid": 0, "ino": os.stat(path).st_ino, "seconds": 0.1}]
    leasing.give_back(client, entry)
    assert writer.over()
    assert client.read(entry.target, entry.ocb, 0, 100) == b"second"
    assert not leasing.open(client, flags=os.O_RDONLY).delegated
    assert leasing.open(client).delegated


@pytest.mark.parametrize("what", ["replaced", "moved", "removed"])
def test_another_client_that_takes_the_name_away_waits(leasing: Leasing, what: str) -> None:
    """Who opens it by its name afterwards finds what is there then."""
    client, other = leasing.client(), leasing.client("c")
    entry = leasing.open(client)
    assert entry.delegated
    news = leasing.news(client)
    (leasing.host.root / "d/new").write_bytes(b"new")
    handle = leasing.directory(other)
    request = {
        "replaced": ConnectRequest(Connect.RENAME, 0, handle, b"new", handle2=handle, path2=b"f"),
        "moved": ConnectRequest(Connect.RENAME, 0, handle, b"f", handle2=handle, path2=b"elsewhere"),
        "removed": ConnectRequest(Connect.UNLINK, 0, handle, b"f"),
    }[what]
    ino = os.stat(leasing.host.root / "d/f").st_ino
    begun = leasing.begin(other, request)
    leasing.host.dispatch.run_for(0.1)
    assert begun.status is None
    assert told(news) == [ino]
    leasing.give_back(client, entry)
    leasing.host.dispatch.run_for(0.01)
    assert begun.status == 0


def test_who_does_not_give_back_has_lost_it(leasing: Leasing) -> None:
    client = leasing.client()
    entry = leasing.open(client)
    writer = Opener(os.fspath(leasing.host.root / "d/f"), b"second")
    leasing.hear()
    leasing.host.dispatch.run_for(PATIENCE - 0.1)
    assert writer.waits
    assert client.read(entry.target, entry.ocb, 0, 5) == b"first"
    leasing.host.dispatch.run_for(0.2)
    assert writer.over()
    with fails(errno.EBADF):
        client.read(entry.target, entry.ocb, 0, 5)
    assert leasing.count("timed_out") == 1


def test_who_does_not_give_back_is_asked_for_all_at_once(leasing: Leasing) -> None:
    """A program that goes through many files does not wait for each."""
    names = [b"n%d" % number for number in range(5)]
    for name in names:
        (leasing.host.root / "d" / os.fsdecode(name)).write_bytes(b"first")
    client, again, other = leasing.client(), leasing.client(), leasing.client("b", 1000)
    assert all(leasing.open(client, name).delegated for name in names)
    assert leasing.open(other).delegated
    leasing.host.fs.delegations.table.recall_of(next(iter(leasing.host.fs.delegations.table._of_handle)))
    leasing.host.dispatch.run_for(PATIENCE + 0.1)
    assert leasing.count("timed_out") == 1
    assert leasing.count("recalled") == len(names) + 1
    leasing.host.dispatch.run_for(PATIENCE)
    assert not leasing.host.fs.delegations.leased
    # Nor by another connection; after a while it is believed once more.
    assert not leasing.open(again).delegated
    leasing.host.dispatch.run_for(REST)
    assert leasing.open(again).delegated


@pytest.mark.parametrize("how", ["close", "end", "policy"])
def test_what_ends_with_its_open_file_holds_up_nobody(leasing: Leasing, how: str) -> None:
    client = leasing.client()
    entry = leasing.open(client)
    writer = Opener(os.fspath(leasing.host.root / "d/f"), b"second")
    leasing.hear()
    assert writer.waits
    if how == "close":
        client.close(entry.target, entry.ocb)
    elif how == "end":
        client.close_all()
    else:
        leasing.host.fs.set_policy(leasing.host.policy((Export("/", ["read"]),)))
    leasing.host.dispatch.run_for(0.1)
    assert writer.over()
    assert not leasing.host.fs.delegations.leased


def test_another_client_waits_for_it_and_is_never_told_eagain(leasing: Leasing) -> None:
    client, other = leasing.client(), leasing.client("c", 0)
    entry = leasing.open(client)
    assert leasing.open(other, flags=os.O_RDONLY).ocb
    news = leasing.news(client)
    opening = leasing.begin(other, ConnectRequest(Connect.OPEN, os.O_WRONLY, 0, b"f"))
    leasing.hear()
    leasing.host.dispatch.run_for(0.5)
    assert opening.status is None
    assert len(told(news)) == 1
    # Meanwhile nobody gets a new one.
    assert not leasing.open(client).delegated
    leasing.give_back(client, entry)
    leasing.host.dispatch.run_for(0)
    assert opening.status == 0
    # Now that a writer has it open there is none.
    assert not leasing.open(client).delegated
    assert leasing.count("waits") == 1


def test_a_client_that_waits_can_give_up(leasing: Leasing) -> None:
    client, other = leasing.client(), leasing.client("c", 0)
    leasing.open(client)
    opening = leasing.begin(other, ConnectRequest(Connect.OPEN, os.O_WRONLY, 0, b"f"))
    opening.unblock()
    assert opening.status == -errno.EINTR
    leasing.host.dispatch.run_for(AGAIN * 3)
    assert not leasing.host.fs.delegations.table._since


def test_no_more_wait_than_may(leasing: Leasing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegations, "WAITING_OF_NODE", 3)
    client, other = leasing.client(), leasing.client("c", 0)
    entry = leasing.open(client)
    waiting = [leasing.begin(other, ConnectRequest(Connect.OPEN, os.O_WRONLY, 0, b"f")) for _ in range(4)]
    assert [one.status for one in waiting] == [None, None, None, -errno.EAGAIN]
    waiting[0].unblock()
    leasing.host.dispatch.run_for(AGAIN * 3)
    waiting.append(leasing.begin(other, ConnectRequest(Connect.OPEN, os.O_WRONLY, 0, b"f")))
    assert leasing.count("waits_full") == 1
    # This machine's own programs have places of their own.
    assert leasing.host.client().begin(leasing.host.fs.target, ConnectRequest(Connect.OPEN, os.O_WRONLY, 0, b"d/f").pack()).status is None
    leasing.give_back(client, entry)
    leasing.host.dispatch.run_for(0)
    assert [one.status for one in waiting[1:]] == [0, 0, -errno.EAGAIN, 0]


def test_truncate_by_name_waits_without_holding_up_the_server(leasing: Leasing) -> None:
    client, other = leasing.client(), leasing.client("c", 0)
    entry = leasing.open(client)
    change = SetAttr(SET_SIZE, size=0)
    cutting = leasing.begin(other, ConnectRequest(Connect.SETATTR, 0, 0, b"f", change=change))
    assert cutting.status is None
    assert leasing.count("recalled") == 1
    leasing.give_back(client, entry)
    leasing.host.dispatch.run_for(0)
    assert cutting.status == 0
    assert os.stat(leasing.host.root / "d/f").st_size == 0


def test_a_lease_of_another_program_is_waited_for_too(leasing: Leasing) -> None:
    """As Samba has them: a client is told EAGAIN only when that program takes very long."""
    path = leasing.host.root / "d/f"
    program = os.open(path, os.O_RDONLY)
    own = breaks.Breaks(leasing.host.dispatch, lambda _: None)
    assert own.take(program)
    client = leasing.client()
    opening = leasing.begin(client, ConnectRequest(Connect.OPEN, os.O_WRONLY, 0, b"f"))
    leasing.host.dispatch.run_for(1)
    assert opening.status is None
    own.give(program)
    leasing.host.dispatch.run_for(AGAIN * 2)
    assert opening.status == 0
    client.close(leasing.host.fs.target, Entry.parse(opening.data).ocb)
    assert own.take(program)
    again = leasing.begin(client, ConnectRequest(Connect.OPEN, os.O_WRONLY, 0, b"f"))
    leasing.host.dispatch.run_for(PATIENCE + 2)
    assert again.status == -errno.EAGAIN
    own.close()
    os.close(program)


def test_truncate_by_name_waits_for_other_programs_outside_the_kernel(leasing: Leasing) -> None:
    """A lease is anybody's who owns the file, and the kernel waits for him 45 s."""
    path = leasing.host.root / "d/f"
    program = os.open(path, os.O_RDONLY)
    own = breaks.Breaks(leasing.host.dispatch, lambda _: None)
    own.unheard = 100.0
    assert own.take(program)
    client = leasing.client()
    cutting = leasing.begin(client, ConnectRequest(Connect.SETATTR, 0, 0, b"f", change=SetAttr(SET_SIZE, size=2)))
    assert os.stat(path).st_size == 5
    assert cutting.status is None
    own.give(program)
    leasing.host.dispatch.run_for(AGAIN * 2)
    assert cutting.status == 0
    assert os.stat(path).st_size == 2
    own.close()
    os.close(program)


def test_not_everything_is_delegated(leasing: Leasing, monkeypatch: pytest.MonkeyPatch) -> None:
    client = leasing.client()
    # The directory itself, what is open for writing, what has two names, and where nothing is told.
    assert not leasing.open(client, b"", os.O_RDONLY | os.O_DIRECTORY | OPEN_DELEGATE).delegated
    writing = leasing.open(client, flags=os.O_RDWR | OPEN_DELEGATE)
    assert not writing.delegated
    assert not leasing.open(client).delegated
    client.close(writing.target, writing.ocb)
    os.link(leasing.host.root / "d/f", leasing.host.root / "d/g")
    assert not leasing.open(client).delegated
    os.unlink(leasing.host.root / "d/g")
    stranger = leasing.host.remote("c")
    assert not stranger.open(b"f", os.O_RDONLY | OPEN_DELEGATE, handle=stranger.lookup(b"d", flags=WANT_HANDLE).handle).delegated
    assert not client.open(b"d/f", os.O_RDONLY | OPEN_DELEGATE).delegated
    monkeypatch.setattr(delegations, "OF_CLIENT", 2)
    assert [leasing.open(client).delegated for _ in range(3)] == [True, True, False]


def test_what_was_written_before_the_lease_was_there_is_not_believed(leasing: Leasing, monkeypatch: pytest.MonkeyPatch) -> None:
    take = breaks.Breaks.take
    path = leasing.host.root / "d/f"

    def late(self: breaks.Breaks, fd: int, *, write: bool = False) -> bool:
        path.write_bytes(b"meanwhile")
        return take(self, fd, write=write)

    monkeypatch.setattr(breaks.Breaks, "take", late)
    client = leasing.client()
    assert not leasing.open(client).delegated
    path.write_bytes(b"nobody is held up")


def test_a_daemon_that_hears_nothing_lets_go(leasing: Leasing) -> None:
    """It may wait in the kernel for this very lease. Who had it is asked for it when it hears again."""
    leasing.host.fs.delegations.breaks.unheard = 0.05
    client = leasing.client()
    entry = leasing.open(client)
    news = leasing.news(client)
    writer = Opener(os.fspath(leasing.host.root / "d/f"), b"second")
    assert writer.over()
    leasing.hear()
    leasing.host.dispatch.run_for(0.1)
    assert len(told(news)) == 1
    leasing.give_back(client, entry)
    assert leasing.open(client).delegated


def test_messages_that_make_no_sense(leasing: Leasing) -> None:
    client = leasing.client()
    entry = leasing.open(client)
    with fails(errno.EBADMSG):
        client.io(entry.target, Io.DELEGATION, entry.ocb, 2)
    with pytest.raises(ResmgrError):
        client.io(entry.target, Io.DELEGATION, 12345)
    # Given back twice.
    leasing.give_back(client, entry)
    leasing.give_back(client, entry)


# ---- files that one client has alone


def test_who_may_not_open_it_again_does_not_have_it_alone(leasing: Leasing) -> None:
    """He has it open since he made it, or since its mode was another one; opens are answered from what he has."""
    os.chmod(leasing.host.root / "d", 0o777)
    client = leasing.client(uid=1000)
    made = client.open(b"m", os.O_CREAT | os.O_RDWR, 0o444, handle=leasing.directory(client))
    with fails(errno.EACCES):
        leasing.open(client, b"m", os.O_RDWR)
    assert ask(client, made) == 0
    os.chmod(leasing.host.root / "d/m", 0o666)
    assert ask(client, made) == 1
    leasing.give_back(client, made)
    client.close(made.target, made.ocb)
    # For writing only, he needs no more than that.
    os.chmod(leasing.host.root / "d/m", 0o222)
    assert ask(client, leasing.open(client, b"m", os.O_WRONLY)) == 1


def test_locks_that_stand_are_let_go_together(leasing: Leasing, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many owners share an open file, its end costs the same, and so does that of its client."""
    calls: list[int] = []
    set_range = locks._range

    def counting(fd: int, kind: int, start: int, end: int) -> None:
        calls.append(kind)
        set_range(fd, kind, start, end)

    monkeypatch.setattr(locks, "_range", counting)
    client, other = leasing.client(), leasing.client("c")
    path = leasing.host.root / "d/f"
    many = [standing(READ, 2 * number, 2 * number + 1, number) for number in range(DELEGATION_LOCKS_MAX)]
    for how in ("close", "end"):
        who = client if how == "close" else other
        entry = leasing.open(who, flags=os.O_RDWR)
        assert ask(who, entry) == 1
        with fails(errno.EBADMSG):
            who.send(entry.target, (pack_delegation(entry.ocb, [*many, standing(READ, 1, 2, 1)]),))
        who.send(entry.target, (pack_delegation(entry.ocb, many),))
        program = Locker(path)
        assert not program.may(fcntl.F_WRLCK, 100, 1)
        calls.clear()
        if how == "close":
            who.close(entry.target, entry.ocb)
        else:
            who.close_all()
        assert calls == [fcntl.F_UNLCK]
        assert program.may(fcntl.F_WRLCK, 0, 0)
        os.close(program.fd)


def test_what_is_left_between_ranges() -> None:
    held = [(10, 20, READ), (0, 5, READ), (12, 15, READ), (30, 40, WRITE)]
    assert locks.without(3, 35, held) == [(5, 10), (20, 30)]
    assert locks.without(12, 18, held) == []
    assert locks.without(50, 60, held) == [(50, 60)]
    # Of as many as a client may have: in a moment.
    assert len(locks.without(0, LOCK_END, [(2 * number, 2 * number + 1, READ) for number in range(100000)])) == 100000


class Locker:
    """A program of this machine that has the file open, in whose way locks may be."""

    def __init__(self, path: os.PathLike[str]) -> None:
        self.fd = os.open(path, os.O_RDWR)

    def may(self, kind: int, start: int, length: int) -> bool:
        """Whether it gets such a lock, which it gives up again."""
        try:
            fcntl.fcntl(self.fd, F_OFD_SETLK, struct.pack("@hhqqi4x", kind, os.SEEK_SET, start, length, 0))
        except BlockingIOError:
            return False
        fcntl.fcntl(self.fd, F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, start, length, 0))
        return True

    def may_flock(self, kind: int) -> bool:
        try:
            fcntl.flock(self.fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return True


F_OFD_SETLK = 37
READ, WRITE = 0, 1


def standing(kind: int, start: int, end: int, owner: int, *, whole: bool = False) -> LockRequest:
    return LockRequest(LOCK_SET, kind, start, end, owner, 100 + owner, whole)


def ask(client: IoClient, entry: Entry) -> int:
    return client.send(entry.target, (REQUEST.pack(Io.DELEGATION, 0, DELEGATION_ASK, entry.ocb),))[0]


def test_locks_that_stand_are_there_before_a_local_program_is(leasing: Leasing) -> None:
    client = leasing.client()
    entry = leasing.open(client, flags=os.O_RDWR)
    assert ask(client, entry) == 1
    path = leasing.host.root / "d/f"
    with pytest.raises(BlockingIOError):
        # Also for reading: nobody else has it open at all.
        os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    leasing.hear()
    whole = (0, LOCK_END)
    locks = [
        standing(WRITE, 0, 10, 1),
        standing(READ, 10, 30, 1),
        standing(READ, 20, 40, 2),
        standing(WRITE, 50, 60, 2),
        standing(READ, *whole, 3, whole=True),
        standing(READ, *whole, 4, whole=True),
    ]
    client.send(entry.target, (pack_delegation(entry.ocb, locks),))
    program = Locker(path)
    taken = [program.may(fcntl.F_RDLCK, start, 1) for start in (0, 10, 25, 35, 45, 55)]
    assert taken == [False, True, True, True, True, False]
    assert [program.may(fcntl.F_WRLCK, start, 1) for start in (10, 25, 35, 45)] == [False, False, False, True]
    assert program.may_flock(fcntl.LOCK_SH)
    assert not program.may_flock(fcntl.LOCK_EX)
    # What one owner gives up, others of the same client still have.
    client.lock(entry.target, entry.ocb, standing(2, 10, 30, 1))
    assert [program.may(fcntl.F_WRLCK, start, 1) for start in (15, 25, 35)] == [True, False, False]
    client.lock(entry.target, entry.ocb, standing(2, *whole, 3, whole=True))
    assert not program.may_flock(fcntl.LOCK_EX)
    client.lock(entry.target, entry.ocb, standing(2, *whole, 4, whole=True))
    assert program.may_flock(fcntl.LOCK_EX)
    # Another owner of the same client, by an open file of his own.
    with fails(errno.EAGAIN):
        client.lock(entry.target, entry.ocb, standing(WRITE, 55, 70, 5))
    client.lock(entry.target, entry.ocb, standing(WRITE, 70, 80, 5))
    assert not program.may(fcntl.F_RDLCK, 75, 1)
    # What was read may be written, and more be had.
    client.lock(entry.target, entry.ocb, standing(WRITE, 20, 45, 2))
    assert not program.may(fcntl.F_RDLCK, 42, 1)
    assert not ask(client, entry)
    client.close(entry.target, entry.ocb)
    assert program.may(fcntl.F_WRLCK, 0, 1000)
    os.close(program.fd)
    assert not leasing.host.fs.locks._carriers


def test_when_nobody_gets_a_file_alone(leasing: Leasing) -> None:
    client, other = leasing.client(), leasing.client("c", 0)
    path = leasing.host.root / "d/f"
    entry = leasing.open(client, flags=os.O_RDWR)
    local = os.open(path, os.O_RDONLY)
    assert not ask(client, entry)
    os.close(local)
    theirs = leasing.open(other, flags=os.O_RDONLY)
    assert not ask(client, entry)
    other.close(theirs.target, theirs.ocb)
    client.lock(entry.target, entry.ocb, standing(WRITE, 0, 10, 1))
    assert not ask(client, entry)
    client.lock(entry.target, entry.ocb, standing(2, 0, 10, 1))
    assert ask(client, entry)
    client.close(entry.target, entry.ocb)
    appending = leasing.open(client, flags=os.O_RDWR | os.O_APPEND)
    assert not ask(client, appending)
    client.close(appending.target, appending.ocb)
    reading = leasing.open(client, flags=os.O_RDONLY)
    assert not ask(client, reading)


def test_a_lock_that_crosses_the_answer_waits(leasing: Leasing) -> None:
    client = leasing.client()
    entry = leasing.open(client, flags=os.O_RDWR)
    assert ask(client, entry)
    news = leasing.news(client)
    lock = client.begin(entry.target, pack_lock(entry.ocb, standing(WRITE, 0, 10, 1)))
    # That nothing is locked, and nothing is to be unlocked, is true.
    client.lock(entry.target, entry.ocb, standing(2, 0, 10, 1))
    leasing.host.dispatch.run_for(0.2)
    assert lock.status is None
    assert len(told(news)) == 1
    client.send(entry.target, (pack_delegation(entry.ocb, [standing(WRITE, 10, 20, 2)]),))
    leasing.host.dispatch.run_for(0)
    assert lock.status == 0
    program = Locker(leasing.host.root / "d/f")
    assert not program.may(fcntl.F_WRLCK, 0, 20)
    os.close(program.fd)


def test_another_client_finds_the_locks(leasing: Leasing) -> None:
    client, other = leasing.client(), leasing.client("c", 0)
    entry = leasing.open(client, flags=os.O_RDWR)
    assert ask(client, entry)
    opening = leasing.begin(other, ConnectRequest(Connect.OPEN, os.O_RDWR, 0, b"f"))
    assert opening.status is None
    client.send(entry.target, (pack_delegation(entry.ocb, [standing(WRITE, 0, 10, 1)]),))
    leasing.host.dispatch.run_for(0)
    assert opening.status == 0
    theirs = Entry.parse(opening.data)
    with fails(errno.EAGAIN):
        other.lock(theirs.target, theirs.ocb, standing(READ, 5, 6, 1))
    client.lock(entry.target, entry.ocb, standing(2, 0, 10, 1))
    other.lock(theirs.target, theirs.ocb, standing(READ, 5, 6, 1))


def test_locks_of_who_is_not_asked_in_time(leasing: Leasing) -> None:
    client = leasing.client()
    entry = leasing.open(client, flags=os.O_RDWR)
    assert ask(client, entry)
    writer = Opener(os.fspath(leasing.host.root / "d/f"), b"second")
    leasing.hear()
    leasing.host.dispatch.run_for(PATIENCE + 0.1)
    assert writer.over()
    with fails(errno.EBADF):
        client.send(entry.target, (pack_delegation(entry.ocb, [standing(WRITE, 0, 10, 1)]),))


def test_nobody_is_quicker_than_the_holder_after_a_restart(leasing: Leasing, tmp_path: Path) -> None:
    """The daemon does not know what is locked of a file that is delegated: it holds up others as if all was."""
    leasing.host.fs.remember_locks(str(tmp_path / "record"), [])
    client = leasing.client("owner")
    entry = leasing.open(client, flags=os.O_RDWR)
    assert ask(client, entry)
    leasing.host.dispatch.run_for(0.1)
    status = os.stat(leasing.host.root / "d/f")
    assert grace.read(str(tmp_path / "record"), boot_id()) == {(status.st_dev, status.st_ino, "owner", True)}
    leasing.give_back(client, entry)
    leasing.host.dispatch.run_for(grace.TIDY_AFTER + 0.1)
    assert not grace.read(str(tmp_path / "record"), boot_id())


def test_locks_that_make_no_sense(leasing: Leasing) -> None:
    client = leasing.client()
    entry = leasing.open(client, flags=os.O_RDWR)
    with fails(errno.EINVAL):
        client.send(entry.target, (pack_delegation(entry.ocb, [standing(WRITE, 0, 10, 1)]),))
    assert ask(client, entry)
    for tail in (
        b"x",
        DELEGATION_LOCK.pack(2, 0, 1, 1, 1, 0),
        DELEGATION_LOCK.pack(0, 5, 1, 1, 1, 1),
        DELEGATION_LOCK.pack(0, 0, 1, 1, 1, 2),
    ):
        with fails(errno.EBADMSG):
            client.send(entry.target, (REQUEST.pack(Io.DELEGATION, 0, 0, entry.ocb) + tail,))
    # Two of them conflict: what its programs think that they have is not so.
    with fails(errno.EAGAIN):
        client.send(entry.target, (pack_delegation(entry.ocb, [standing(WRITE, 0, 10, 1), standing(READ, 5, 6, 2)]),))
    with fails(errno.EBADF):
        client.stat(entry.target, entry.ocb)
