"""Watched directories: which ones are, for whom, and what it may cost."""

from __future__ import annotations

import fcntl
import os
import struct
from collections import Counter

import pytest

from resmgr.access import Export, Scope
from resmgr.channel import ClientInfo, Credentials, Nd
from resmgr.hostfs import watching
from resmgr.hostfs.objects import HostClient
from resmgr.hostfs.watching import LISTENERS_PER_NODE
from resmgr.iofunc import events
from resmgr.iofunc.events import ANSWER_MAX, Listener
from resmgr.iofunc.handle import Client
from resmgr.iomsg import (
    EVENT,
    LOCK_SET,
    LOOKUP_WATCH,
    MKDIR_WATCH,
    REQUEST,
    SET_ATIME_NOW,
    SET_MODE,
    SET_MTIME_NOW,
    SETATTR_SURE,
    SURE,
    WANT_HANDLE,
    WATCH_CREATE,
    WATCH_IGNORED,
    WATCH_MODIFY,
    WATCH_NEXT,
    WATCH_OVERFLOW,
    WRITE_ATTR,
    Attr,
    Connect,
    Entry,
    Io,
    parse_events,
)
from resmgr.iorequest import ConnectRequest, SetAttr, pack_write
from resmgr.lockrequest import LOCK_END, LockRequest
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.ioclient import IoClient

ALICE, BOB = 4001, 4002


@pytest.fixture
def seen(host: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> HostDirectory:
    """The same, where the kernel is asked for changes. Virtual time has no descriptors: they are read by `look`."""
    monkeypatch.setattr(type(host.dispatch), "attach_fd", lambda *_: None)
    monkeypatch.setattr(type(host.dispatch), "detach_fd", lambda *_: None)
    host.fs.set_policy(host.policy((Export("/", ["read", "write"]),)))
    # What is done in threads, as for a disk that is slow at the moment, is not watched.
    host.fs.devices.root.kind = b"tmpfs"
    return host


def watched(client: IoClient, path: bytes) -> bool:
    return client.lookup(path, flags=LOOKUP_WATCH | WANT_HANDLE).watched


def queue(seen: HostDirectory, nd: int, of_node: Counter[int]) -> Listener[Client]:
    """The events of a client of node *nd*."""
    return Listener(Client(ClientInfo(Nd(nd), "b", frozenset(), Credentials(ALICE, ALICE), 1)), seen.dispatch, of_node)


def access_list(*, user: int) -> bytes:
    """0755, but not for *user*."""
    entries = ((1, 7, -1), (2, 0, user), (4, 5, -1), (16, 5, -1), (32, 5, -1))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, may, number & 0xFFFFFFFF) for tag, may, number in entries)


def test_what_users_of_a_node_see_differently_is_not_watched(seen: HostDirectory) -> None:
    for name in ("pub/secret/plans/open", "pub/common", "pub/hidden", "other"):
        (seen.root / name).mkdir(parents=True)
    exports = (
        Export("/", ["read", "write"]),
        Export("/pub/secret", []),
        Export("/pub/secret", ["read"], users=[str(ALICE)]),
        Export("/pub/secret/plans/open", ["read"]),
        Export("/other/for-another", ["read"], nodes=["c"], users=[str(ALICE)]),
        Export("/pub/common/hidden", []),
    )
    seen.fs.set_policy(seen.policy(exports))
    alice, bob = seen.remote("b", ALICE), seen.remote("b", BOB)

    for path in (b"", b"pub", b"pub/secret", b"pub/secret/plans"):
        assert not watched(alice, path), path
    for path in (b"", b"pub"):
        assert not watched(bob, path), path
    for client in (alice, bob):
        for path in (b"pub/secret/plans/open", b"pub/common", b"other"):
            assert watched(client, path), path
    assert watched(seen.client(0), b"pub")


def test_an_export_of_other_users_hides_and_pins_nothing(seen: HostDirectory) -> None:
    (seen.root / "pub").mkdir()
    policy = seen.policy((Export("/", ["read", "write"]), Export("/pub", ["read"], users=[str(ALICE)])))
    of = seen.remote("b", BOB).connection(seen.fs.target).info
    scope = policy.scope(of)
    assert not scope.pinned(b"pub")
    below = scope.step(b"pub")
    assert below is not None
    assert below.write
    assert policy.scope(seen.remote("b", ALICE).connection(seen.fs.target).info).pinned(b"pub")


def test_a_directory_with_an_access_list_is_not_watched(seen: HostDirectory) -> None:
    (seen.root / "d").mkdir(mode=0o755)
    (seen.root / "shut").mkdir(mode=0o755)
    os.setxattr(seen.root / "shut", "system.posix_acl_access", access_list(user=BOB))
    alice = seen.remote("b", ALICE)
    assert not watched(alice, b"shut")
    assert watched(alice, b"d")

    os.setxattr(seen.root / "d", "system.posix_acl_access", access_list(user=BOB))
    assert not watched(alice, b"d")
    assert seen.fs.counters["watch_refused"] == 2


def test_a_node_hears_of_a_directory_by_few_connections(seen: HostDirectory) -> None:
    (seen.root / "d").mkdir(mode=0o755)
    clients = [seen.remote("b", ALICE) for _ in range(LISTENERS_PER_NODE + 1)]
    *first, last = [watched(client, b"d") for client in clients]
    assert all(first)
    assert not last
    assert watched(clients[0], b"d")
    assert watched(seen.client(BOB), b"d")
    assert seen.fs.counters["watch_full"] == 1
    (seen.root / "e").mkdir(mode=0o755)
    assert watched(clients[-1], b"e")

    clients[0].close_all()
    seen.dispatch.run_for(0.1)
    assert watched(clients[-1], b"d")


def test_a_user_leaves_room_for_others_of_its_node(seen: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "WATCHES_MAX", 16)
    for number in range(10):
        (seen.root / f"d{number}").mkdir(mode=0o755)
    alice, bob = seen.remote("b", ALICE), seen.remote("b", BOB)
    assert [watched(alice, b"d%d" % number) for number in range(7)] == [True] * 6 + [False]
    assert [watched(bob, b"d%d" % number) for number in range(7, 10)] == [True, True, False]


def test_a_storm_is_told_over_several_turns(seen: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "TELLS_MAX", 100)
    (seen.root / "d").mkdir(mode=0o755)
    clients = [seen.remote("b", ALICE) for _ in range(9)]
    assert all(watched(client, b"d") for client in clients)
    for number in range(100):
        (seen.root / "d" / f"f{number}").mkdir()

    seen.fs.watching.look()
    assert seen.fs.counters["watch_told"] == 10
    # No more in this turn, whoever asks.
    seen.fs.watching.look()
    assert seen.fs.counters["watch_told"] == 10
    seen.dispatch.run_for(0.1)
    assert seen.fs.counters["watch_told"] == 100


def test_events_that_nobody_fetches_take_little_memory(seen: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients of one node share what is queued for them; those of another are told on."""
    monkeypatch.setattr(events, "BYTES_MAX", 20_000)
    monkeypatch.setattr(events, "NODE_BYTES_MAX", 100_000)
    of_node: Counter[int] = Counter()
    silent = [queue(seen, 1, of_node) for _ in range(20)]
    for number in range(60):
        silent[0].tell(1, WATCH_CREATE, b"%0250d" % number)
    assert silent[0].lost == 1
    assert of_node[1] <= 20_000

    for number in range(60):
        for listener in silent:
            listener.tell(1, WATCH_CREATE, b"%0250d" % number)
    assert all(listener.lost for listener in silent)
    assert of_node[1] <= 100_000 + len(silent) * (EVENT.size + events.EVENT_COST)
    other = queue(seen, 2, of_node)
    other.tell(1, WATCH_CREATE, b"name")
    assert not other.lost
    for listener in (*silent, other):
        listener.end()
    assert not of_node


def test_what_is_fetched_makes_room(seen: HostDirectory) -> None:
    (seen.root / "d").mkdir(mode=0o755)
    alice = seen.remote("b", ALICE)
    assert watched(alice, b"d")
    queued = seen.fs.watching._queued
    for number in range(1000):
        (seen.root / "d" / f"{number:0200}").mkdir()
    for _ in range(6):
        seen.fs.watching.look()
        asked = alice.begin(alice.root, REQUEST.pack(Io.WATCH, WATCH_NEXT, 0, 0), ANSWER_MAX)
        seen.dispatch.run_for(0.1)
        if asked.status is None:
            break
    assert asked.status is None
    assert not queued


def test_an_end_that_is_lost_ends_all(seen: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """OVERFLOW says that the watches stand: not where the end of one was among what is lost."""
    monkeypatch.setattr(events, "QUEUE_MAX", 10)
    (seen.root / "d").mkdir(mode=0o755)
    (seen.root / "e").mkdir(mode=0o755)
    for ended, kind in ((False, WATCH_OVERFLOW), (True, WATCH_IGNORED)):
        alice = seen.remote("b", ALICE)
        assert watched(alice, b"d")
        assert watched(alice, b"e")
        if ended:
            (seen.root / "e").chmod(0o700)
        for number in range(20):
            (seen.root / "d" / f"{kind}-{number}").mkdir()
        seen.fs.watching.look()
        asked = alice.begin(alice.root, REQUEST.pack(Io.WATCH, WATCH_NEXT, 0, 0), ANSWER_MAX)
        seen.dispatch.run_for(0.1)
        first = parse_events(asked.data)[0]
        assert (first.ino, first.kind) == (0, kind)


def test_what_may_not_be_listed_is_not_watched(seen: HostDirectory) -> None:
    """The names that events tell are a listing."""
    for name in ("drop/in", "shown"):
        (seen.root / name).mkdir(parents=True)
    seen.fs.set_policy(seen.policy((Export("/drop", ["write"]), Export("/shown", ["read"]))))
    client = seen.remote("b", ALICE)
    assert not watched(client, b"drop")
    assert not watched(client, b"drop/in")
    assert watched(client, b"shown")
    assert watched(client, b"")
    assert not watched(seen.remote("b", BOB), b"drop")


# ---- what their makers are answered


def make(client: IoClient, name: bytes, mode: int, flags: int) -> Entry:
    return Entry.parse(client.name(Connect.MKDIR, name, mode=mode, flags=flags))


def test_a_directory_just_made_is_watched_since_nothing_was_in_it(seen: HostDirectory) -> None:
    seen.root.chmod(0o777)
    alice = seen.remote("b", ALICE)
    entry = make(alice, b"made", 0o755, MKDIR_WATCH)
    assert entry.watched
    assert entry.empty
    # Who may not search what he has made is not told so, nor who has not asked.
    assert not make(alice, b"shut", 0o600, MKDIR_WATCH).empty
    plain = make(alice, b"plain", 0o755, 0)
    assert not plain.watched
    assert not plain.empty


def test_a_directory_in_which_somebody_was_first_is_not_empty(seen: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    seen.root.chmod(0o777)
    add = seen.fs.watching.add

    def late(client: HostClient, fd: int, scope: Scope) -> bool:
        os.close(os.open("theirs", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        return add(client, fd, scope)

    monkeypatch.setattr(seen.fs.watching, "add", late)
    assert not make(seen.remote("b", ALICE), b"made", 0o777, MKDIR_WATCH).empty


def test_a_rename_says_whether_the_old_name_is_gone(seen: HostDirectory) -> None:
    for name in ("one", "other"):
        (seen.root / name).touch()
    os.link(seen.root / "one", seen.root / "second")
    client = seen.client(0)

    def renamed(old: bytes, new: bytes, flags: int = 0) -> bytes:
        return bytes(client.two(Connect.RENAME, old, new, flags=flags))

    assert renamed(b"one", b"second") == b""
    assert renamed(b"second", b"third") == SURE
    assert renamed(b"third", b"other", 2) == b""


@pytest.mark.parametrize("by", ["name", "file"])
def test_attributes_that_were_changed_are_sure_for_who_is_told_the_rest(seen: HostDirectory, by: str) -> None:
    (seen.root / "d").mkdir(mode=0o777)
    (seen.root / "d").chmod(0o777)
    alice, bob = seen.remote("b", ALICE), seen.remote("c", BOB)
    with open(seen.root / "d/f", "wb"):
        os.chmod(seen.root / "d/f", 0o666)
    now = SetAttr(SET_ATIME_NOW | SET_MTIME_NOW)
    for client in alice, bob:
        seen.fs.watching.look()
        base = client.lookup(b"d", flags=LOOKUP_WATCH | WANT_HANDLE if client is alice else WANT_HANDLE)
        assert base.watched == (client is alice)
        ocb = client.open(b"f", os.O_RDWR, handle=base.handle).ocb
        if by == "file":
            written = client.send(seen.fs.target, (pack_write(ocb, 0, 3, WRITE_ATTR), b"123"))
            assert written[0] == 3
            reply = bytes(written[1])
        else:
            reply = bytes(client.connect(ConnectRequest(Connect.SETATTR, SETATTR_SURE, base.handle, b"f", change=now)))
        assert reply.endswith(SURE) == (client is alice)
        if client is alice:
            assert Attr.parse(reply).mtime == os.stat(seen.root / "d/f").st_mtime_ns
            sure = client.send(seen.fs.target, (REQUEST.pack(Io.SETATTR, 0, SETATTR_SURE, ocb) + now.pack(),))[1]
            assert bytes(sure).endswith(SURE)
    # What nobody asked to hear is not said.
    assert alice.send(seen.fs.target, (pack_write(alice.open(b"d/f", os.O_RDWR).ocb, 0, 3), b"123"))[1] == b""


def test_who_changes_a_directory_goes_on_watching_it_if_he_may(seen: HostDirectory) -> None:
    seen.root.chmod(0o777)
    alice = seen.remote("b", ALICE)
    handle = make(alice, b"made", 0o755, MKDIR_WATCH).handle

    def told(change: SetAttr) -> int:
        """Kinds of events that its maker gets of it."""
        alice.connect(ConnectRequest(Connect.SETATTR, SETATTR_SURE, handle, b"", change=change))
        seen.fs.watching.look()
        news = alice.begin(seen.fs.target, REQUEST.pack(Io.WATCH, WATCH_NEXT, 0, 0))
        seen.dispatch.run_for(0.1)
        kinds = 0
        for event in [] if news.status is None else parse_events(news.data):
            kinds |= event.kind
        news.unblock()
        return kinds

    assert told(SetAttr(SET_MTIME_NOW)) == 0
    assert told(SetAttr(SET_MODE, mode=0o700)) == 0
    assert told(SetAttr(SET_MODE, mode=0o300)) & WATCH_IGNORED


def test_who_locks_and_unlocks_is_told_nothing(seen: HostDirectory) -> None:
    """The kernel's lock is held by an open file of its own, whose closing it tells as the end of writing."""
    (seen.root / "d").mkdir()
    (seen.root / "d/f").touch()
    (seen.root / "d/f").chmod(0o666)
    alice = seen.remote("b", ALICE)
    base = alice.lookup(b"d", flags=LOOKUP_WATCH | WANT_HANDLE)
    ocb = alice.open(b"f", os.O_RDWR, handle=base.handle).ocb
    news = alice.begin(seen.fs.target, REQUEST.pack(Io.WATCH, WATCH_NEXT, 0, 0))

    for kind in fcntl.F_WRLCK, fcntl.F_UNLCK:
        alice.lock(seen.fs.target, ocb, LockRequest(LOCK_SET, kind, 0, LOCK_END, owner=1))
    seen.fs.watching.look()
    seen.dispatch.run_for(0.1)

    assert news.status is None
    (seen.root / "d/f").write_bytes(b"theirs")
    seen.fs.watching.look()
    seen.dispatch.run_for(0.1)
    assert news.status is not None


@pytest.mark.parametrize("looked", [True, False])
def test_a_write_does_not_hide_what_a_local_program_wrote_just_before(seen: HostDirectory, looked: bool) -> None:
    """The kernel makes one event of two that are alike and not read."""
    (seen.root / "d").mkdir()
    (seen.root / "d/f").write_bytes(bytes(1000))
    (seen.root / "d/f").chmod(0o666)
    alice = seen.remote("b", ALICE)
    base = alice.lookup(b"d", flags=LOOKUP_WATCH | WANT_HANDLE)
    ocb = alice.open(b"f", os.O_RDWR, handle=base.handle).ocb
    news = alice.begin(seen.fs.target, REQUEST.pack(Io.WATCH, WATCH_NEXT, 0, 0))
    fd = os.open(seen.root / "d/f", os.O_WRONLY)
    try:
        os.pwrite(fd, b"local", 500)
        if looked:
            seen.fs.watching.look()
        alice.send(seen.fs.target, (pack_write(ocb, 0, 3, WRITE_ATTR), b"123"))
        seen.dispatch.run_for(0.1)
        assert [(event.name, event.kind) for event in parse_events(news.data)] == [(b"f", WATCH_MODIFY)]
    finally:
        os.close(fd)
