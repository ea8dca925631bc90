"""Locks of other nodes' programs over a restart of the daemon that serves the files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from resmgr.access import Export
from resmgr.hostfs import grace
from resmgr.hostfs.claims import Claims
from resmgr.hostfs.grace import GRACE, TIDY_AFTER
from resmgr.hostfs.manager import HostFs
from resmgr.hostfs.reopen import boot_id
from resmgr.iofunc.locks import READ, UNLOCK, WRITE
from resmgr.iomsg import LOCK_SET, LOCK_TEST, LOCK_WAIT, Connect, Entry, Io
from resmgr.iorequest import ConnectRequest
from resmgr.lockrequest import LOCK_END, LockRequest, pack_lock
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.ioclient import IoClient
from resmgr.testing.virtual import VirtualDispatch


def asks(kind: int, start: int = 0, end: int = LOCK_END, *, operation: int = LOCK_SET, again: bool = False) -> LockRequest:
    return LockRequest(operation, kind, start, end, 1, 0, False, again)


def opened(client: IoClient, name: bytes) -> Entry:
    return client.open(name, os.O_RDWR)


@attrs.define
class Restarts:
    """A directory that one daemon after the other serves."""

    host: HostDirectory
    record: Path

    def start(self) -> None:
        policy = self.host.policy(exports=(Export("/", ["read", "write"]),))
        key = self.host.fs.reopening.key
        self.host.fs.destroy()
        self.host.fs = HostFs(self.host.kernel, policy, root=str(self.host.root))
        self.host.fs.reopening.key = key
        self.host.fs.remember_locks(str(self.record), grace.read(str(self.record), boot_id()))

    def locked(self, node: str, name: bytes = b"f") -> bytes:
        """A client of *node* locks the first ten bytes of a file; the token of the file."""
        client = self.host.remote(node)
        entry = opened(client, name)
        client.lock(entry.target, entry.ocb, asks(WRITE, 0, 10))
        return bytes(client.io(entry.target, Io.IDENTIFY, entry.ocb))

    def reopened(self, node: str, token: bytes, name: bytes = b"f") -> tuple[IoClient, Entry]:
        client = self.host.remote(node)
        return client, Entry.parse(client.connect(ConnectRequest(Connect.REOPEN, os.O_RDWR, 0, name, path2=token)))


@pytest.fixture
def restarts(host: HostDirectory, tmp_path: Path) -> Restarts:
    (host.root / "f").write_bytes(b"")
    (host.root / "g").write_bytes(b"")
    (host.root / "h").write_bytes(b"")
    made = Restarts(host, tmp_path / "record")
    made.start()
    return made


def test_who_had_a_lock_gets_it_before_others(restarts: Restarts) -> None:
    host = restarts.host
    token = restarts.locked("owner")
    restarts.start()
    # Also before another program of his node, and one of this node.
    at = [(client, opened(client, b"f")) for client in (host.remote("other"), host.remote("owner"), host.client())]
    begun = [client.begin(one.target, pack_lock(one.ocb, asks(WRITE, 5, 20))) for client, one in at]
    other, one = at[0]
    waiting = other.begin(one.target, pack_lock(one.ocb, asks(READ, 0, 1, operation=LOCK_WAIT)))
    # What nobody had is free at once, and what is given up needs no grace.
    elsewhere = opened(other, b"g")
    other.lock(elsewhere.target, elsewhere.ocb, asks(WRITE))
    other.lock(one.target, one.ocb, asks(UNLOCK))
    host.dispatch.run_for(GRACE / 2)
    assert [each.status for each in (*begun, waiting)] == [None] * 4
    client, again = restarts.reopened("owner", token)
    client.lock(again.target, again.ocb, asks(WRITE, 0, 10, again=True))
    host.dispatch.run_for(GRACE / 2 + 0.1)
    assert [each.status for each in (*begun, waiting)] == [-errno.EAGAIN] * 3 + [None]
    assert host.fs.counters["locks_grace"] == 4
    client.close_all()
    host.dispatch.run_for(0.1)
    assert waiting.status == 0


def test_who_does_not_come_back_is_not_waited_for(restarts: Restarts) -> None:
    host = restarts.host
    restarts.locked("owner")
    restarts.start()
    other = host.remote("other")
    entry = opened(other, b"f")
    begun = other.begin(entry.target, pack_lock(entry.ocb, asks(WRITE)))
    host.dispatch.run_for(GRACE + 0.1)
    assert begun.status == 0
    # Nor by the daemon after that.
    other.lock(entry.target, entry.ocb, asks(UNLOCK))
    host.dispatch.run_for(TIDY_AFTER + 0.1)
    assert not restarts.record.exists()
    restarts.start()
    third = host.remote("third")
    again = opened(third, b"f")
    third.lock(again.target, again.ocb, asks(WRITE))


def test_who_had_no_lock_is_no_owner_though_he_opens_again(restarts: Restarts) -> None:
    host = restarts.host
    restarts.locked("owner")
    other = host.remote("other")
    entry = opened(other, b"f")
    token = bytes(other.io(entry.target, Io.IDENTIFY, entry.ocb))
    restarts.start()
    client, again = restarts.reopened("other", token)
    begun = client.begin(again.target, pack_lock(again.ocb, asks(WRITE)))
    assert begun.status is None
    # Nor if he says that he had it.
    assert refused(lambda: client.lock(again.target, again.ocb, asks(WRITE, again=True)))
    assert host.fs.counters["reclaims_refused"] == 1
    host.dispatch.run_for(GRACE + 0.1)
    assert begun.status == 0


def refused(call: Callable[[], object]) -> bool:
    """Whether *call* is EAGAIN."""
    try:
        call()
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False


def test_who_had_another_lock_of_the_file_waits_too(restarts: Restarts) -> None:
    """A program of one of two nodes takes nothing that one of the other had, before that has claimed it."""
    host = restarts.host
    tokens = []
    for node, start in ("one", 0), ("two", 10):
        client = host.remote(node)
        entry = opened(client, b"f")
        client.lock(entry.target, entry.ocb, asks(WRITE, start, start + 10))
        tokens.append(bytes(client.io(entry.target, Io.IDENTIFY, entry.ocb)))
    host.dispatch.run_for(0.1)
    restarts.start()
    one, at = restarts.reopened("one", tokens[0])
    one.lock(at.target, at.ocb, asks(WRITE, 0, 10, again=True))
    begun = one.begin(at.target, pack_lock(at.ocb, asks(WRITE, 10, 20)))
    assert begun.status is None
    two, there = restarts.reopened("two", tokens[1])
    two.lock(there.target, there.ocb, asks(WRITE, 10, 20, again=True))
    # Now that it asks for more it has what it had.
    two.lock(there.target, there.ocb, asks(READ, 30, 40))
    assert begun.status == -errno.EAGAIN
    one.lock(at.target, at.ocb, asks(READ, 30, 40))


def test_who_had_all_locks_of_a_file_goes_on_at_once(restarts: Restarts) -> None:
    token = restarts.locked("owner")
    restarts.start()
    client, again = restarts.reopened("owner", token)
    client.lock(again.target, again.ocb, asks(WRITE, 0, 10, again=True))
    client.lock(again.target, again.ocb, asks(WRITE, 20, 30))
    assert restarts.host.fs.counters["locks_grace"] == 0


@pytest.mark.parametrize("how", ["restart", "link", "two restarts", "link and restart"])
@pytest.mark.parametrize(("kind", "start", "keeps"), [(None, 0, True), (WRITE, 10, True), (WRITE, 9, False), (READ, 0, False)])
def test_a_lock_is_set_again_if_nobody_had_it_meanwhile(restarts: Restarts, how: str, kind: int | None, start: int, keeps: bool) -> None:
    host = restarts.host
    owner = host.remote("owner")
    entry = opened(owner, b"f")
    owner.lock(entry.target, entry.ocb, asks(WRITE, 0, 10))
    token = bytes(owner.io(entry.target, Io.IDENTIFY, entry.ocb))
    if "link" in how:
        owner.close_all()
        host.dispatch.run_for(TIDY_AFTER + 0.1)
    for _ in range(how.count("restart") + ("two" in how)):
        restarts.start()
        host.dispatch.run_for(GRACE + 0.1)
    if kind is not None:
        other = host.remote("other")
        one = opened(other, b"f")
        other.lock(one.target, one.ocb, asks(kind, start, 20))
        other.lock(one.target, one.ocb, asks(UNLOCK))
    client, again = restarts.reopened("owner", token)
    assert refused(lambda: client.lock(again.target, again.ocb, asks(WRITE, 0, 10, again=True))) is not keeps


def test_what_was_had_meanwhile_is_known_after_a_restart(restarts: Restarts) -> None:
    host = restarts.host
    owner = host.remote("owner")
    entry = opened(owner, b"f")
    owner.lock(entry.target, entry.ocb, asks(WRITE, 0, 10))
    token = bytes(owner.io(entry.target, Io.IDENTIFY, entry.ocb))
    owner.close_all()
    other = host.remote("other")
    one = opened(other, b"f")
    other.lock(one.target, one.ocb, asks(WRITE, 0, 10))
    host.dispatch.run_for(0.1)
    restarts.start()
    client, again = restarts.reopened("owner", token)
    assert refused(lambda: client.lock(again.target, again.ocb, asks(WRITE, 0, 10, again=True)))


def test_only_a_lock_can_be_set_again(restarts: Restarts) -> None:
    client = restarts.host.remote("owner")
    entry = opened(client, b"f")
    for request in asks(UNLOCK, again=True), asks(WRITE, again=True, operation=LOCK_WAIT), asks(WRITE, again=True, operation=LOCK_TEST):
        with pytest.raises(OSError, match=os.strerror(errno.EBADMSG)):
            client.lock(entry.target, entry.ocb, request)


def test_what_waits_for_the_grace_period_is_taken_back_and_closed(restarts: Restarts) -> None:
    host = restarts.host
    restarts.locked("owner")
    restarts.start()
    other = host.remote("other")
    one, two = opened(other, b"f"), opened(other, b"f")
    unblocked, closed = (other.begin(each.target, pack_lock(each.ocb, asks(WRITE))) for each in (one, two))
    unblocked.unblock()
    assert unblocked.status == -errno.EINTR
    other.close(two.target, two.ocb)
    third = host.remote("third")
    gone = opened(third, b"f")
    third.begin(gone.target, pack_lock(gone.ocb, asks(WRITE)))
    third.close_all()
    host.dispatch.run_for(GRACE + 0.1)
    assert closed.status == -errno.EBADF
    last = host.remote("last")
    again = opened(last, b"f")
    last.lock(again.target, again.ocb, asks(WRITE))


def test_locks_of_this_machine_and_of_another_boot_have_no_grace_period(restarts: Restarts) -> None:
    host = restarts.host
    local = host.client()
    entry = opened(local, b"f")
    local.lock(entry.target, entry.ocb, asks(WRITE))
    assert not restarts.record.exists()
    local.close_all()
    status = os.stat(host.root / "f")
    restarts.record.write_text(f'["00", {status.st_dev}, {status.st_ino}, "owner"]\n[1]\n{{}}\nnonsense\n')
    restarts.start()
    other = host.remote("other")
    one = opened(other, b"f")
    other.lock(one.target, one.ocb, asks(WRITE))


def test_the_record_is_bounded_and_not_written_for_each_lock(restarts: Restarts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grace, "ENTRIES_MAX", 1)
    host = restarts.host
    client = host.remote("owner")
    entry, other = opened(client, b"f"), opened(client, b"g")
    for _ in range(3):
        client.lock(entry.target, entry.ocb, asks(WRITE))
        client.lock(other.target, other.ocb, asks(WRITE))
        client.lock(entry.target, entry.ocb, asks(UNLOCK))
        client.lock(other.target, other.ocb, asks(UNLOCK))
    assert len(restarts.record.read_bytes().splitlines()) == 1
    host.dispatch.run_for(TIDY_AFTER + 0.1)
    assert not restarts.record.exists()


def test_a_node_that_locks_much_takes_no_room_of_others(restarts: Restarts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grace, "NODE_MAX", 1)
    host = restarts.host
    restarts.locked("greedy", b"f")
    restarts.locked("greedy", b"g")
    restarts.locked("owner", b"h")
    host.dispatch.run_for(0.1)
    assert {entry[2] for entry in grace.read(str(restarts.record), boot_id())} == {"greedy", "owner"}
    assert len(restarts.record.read_bytes().splitlines()) == 2
    # The record that is written anew, too, and what the next daemon takes over.
    restarts.start()
    host.dispatch.run_for(GRACE + TIDY_AFTER + 0.1)
    restarts.locked("greedy", b"g")
    restarts.locked("greedy", b"f")
    host.dispatch.run_for(0.1)
    assert sum(locked for *_, locked in grace.read(str(restarts.record), boot_id())) == 1


def test_what_is_noted_while_a_thread_writes_is_written_in_its_order(tmp_path: Path) -> None:
    dispatch = VirtualDispatch(0)
    record = str(tmp_path / "record")
    noted = grace.Grace(dispatch, record, b"boot", [], Claims())
    noted.took("a", 1, 1, "a")
    dispatch.run_for(0.1)
    due = dispatch.now() + TIDY_AFTER
    # Added to while it is written anew, both while another one is added.
    dispatch.call_at(due, lambda: noted.took("b", 1, 2, "b"))
    noted.gave("a")
    dispatch.call_at(due, lambda: noted.took("c", 1, 3, "c"))
    dispatch.run_for(TIDY_AFTER + 0.1)
    assert grace.read(record, b"boot") == {(1, 2, "b", True), (1, 3, "c", True)}


def test_the_record_is_whole_while_it_is_written_anew(restarts: Restarts, monkeypatch: pytest.MonkeyPatch) -> None:
    restarts.locked("b", b"f")
    client = restarts.host.remote("b")
    entry = opened(client, b"g")
    client.lock(entry.target, entry.ocb, asks(WRITE, 0, 10))
    restarts.host.dispatch.run_for(0.1)
    before = grace.read(str(restarts.record), boot_id())
    assert len(before) == 2

    found = []

    def write(fd: int, data: bytes) -> int:
        found.append(grace.read(str(restarts.record), boot_id()))
        return written(fd, data)

    written = os.write
    monkeypatch.setattr(os, "write", write)
    client.lock(entry.target, entry.ocb, asks(UNLOCK))
    restarts.host.dispatch.run_for(TIDY_AFTER + 0.1)
    assert found == [before]
    assert len(grace.read(str(restarts.record), boot_id())) == 1


def test_what_does_not_parse_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "record"
    boot = bytes(16).hex().encode()
    good = b'["%s", 1, 2, "b"]\n["%s", 1, 3, "b", false]\n' % (boot, boot)
    path.write_bytes(b"[" * 100000 + b"\nnull\n{}\n\xff\n" + good + b'["00", 1, 2, "b"]\n')
    assert grace.read(str(path), bytes(16)) == {(1, 2, "b", True), (1, 3, "b", False)}
