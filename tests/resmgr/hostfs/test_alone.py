"""Directories that one node has to itself: who gets one, and who has to wait then."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest

from resmgr.access import Export
from resmgr.hostfs import alone
from resmgr.hostfs.device import FOREVER
from resmgr.iofunc.delegations import LATE, PATIENCE, REST
from resmgr.iomsg import (
    DELEGATION_ASK,
    LOOKUP_WATCH,
    REQUEST,
    UNLINK_DIRECTORY,
    WANT_HANDLE,
    WATCH_NEXT,
    WATCH_RECALL,
    Connect,
    Entry,
    Io,
    parse_events,
)
from resmgr.iorequest import ConnectRequest
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.ioclient import Begun, IoClient, fails

Begin = Callable[[HostDirectory, IoClient], Begun]


@pytest.fixture
def tree(host: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostDirectory]:
    # Virtual time has no descriptors to wait for.
    monkeypatch.setattr(type(host.dispatch), "attach_fd", lambda _, fd, call: None)
    monkeypatch.setattr(type(host.dispatch), "detach_fd", lambda _, fd: None)
    host.fs.set_policy(host.policy((Export("/", ["read", "write"]),)))
    host.fs.devices.root.kind = b"tmpfs"
    for name in "d", "d/sub", "e":
        (host.root / name).mkdir()
    for name in "d/f", "g":
        (host.root / name).write_bytes(b"")
    yield host
    host.fs.destroy()


def met(host: HostDirectory, node: str = "b", name: bytes = b"d") -> tuple[IoClient, int]:
    """A client of *node*, and its base handle of a directory, watched."""
    client = host.remote(node)
    entry = client.lookup(name, flags=LOOKUP_WATCH | WANT_HANDLE)
    assert entry.watched
    return client, entry.handle


def ask(host: HostDirectory, client: IoClient, handle: int) -> int:
    return client.send(host.fs.target, (REQUEST.pack(Io.DELEGATION, 0, DELEGATION_ASK, handle),))[0]


def begin(host: HostDirectory, client: IoClient, request: ConnectRequest) -> Begun:
    return client.begin(host.fs.target, request.pack())


def give_back(host: HostDirectory, client: IoClient, handle: int) -> None:
    client.send(host.fs.target, (REQUEST.pack(Io.DELEGATION, 0, 0, handle),))


WAITS: dict[str, Begin] = {
    "look-up": lambda host, other: begin(host, other, ConnectRequest(Connect.LOOKUP, WANT_HANDLE, 0, b"d")),
    "listing": lambda host, other: begin(host, other, ConnectRequest(Connect.OPEN, os.O_DIRECTORY, 0, b"d")),
    "look-up in it": lambda host, other: begin(host, other, ConnectRequest(Connect.LOOKUP, 0, 0, b"d/f")),
    "open in it": lambda host, other: begin(host, other, ConnectRequest(Connect.OPEN, os.O_RDONLY, 0, b"d/f")),
    "removal in it": lambda host, other: begin(host, other, ConnectRequest(Connect.UNLINK, 0, 0, b"d/f")),
    "making in it": lambda host, other: begin(host, other, ConnectRequest(Connect.MKDIR, 0, 0, b"d/new", mode=0o755)),
    "moving it": lambda host, other: begin(host, other, ConnectRequest(Connect.RENAME, 0, 0, b"d", path2=b"d2")),
    "moving over it": lambda host, other: begin(host, other, ConnectRequest(Connect.RENAME, 2, 0, b"e", path2=b"d")),
    "moving into it": lambda host, other: begin(host, other, ConnectRequest(Connect.RENAME, 0, 0, b"e", path2=b"d/e")),
    "second name in it": lambda host, other: begin(host, other, ConnectRequest(Connect.LINK, 0, 0, b"g", path2=b"d/g")),
    "below it": lambda host, other: begin(host, other, ConnectRequest(Connect.LOOKUP, WANT_HANDLE, 0, b"d/sub")),
}


@pytest.mark.parametrize("what", WAITS)
def test_others_wait_until_it_is_given_back(tree: HostDirectory, what: str) -> None:
    client, handle = met(tree)
    news = client.begin(tree.fs.target, REQUEST.pack(Io.WATCH, WATCH_NEXT, 0, 0))
    assert ask(tree, client, handle) == 1
    other = tree.remote("c")
    begun = WAITS[what](tree, other)
    tree.dispatch.run_for(0.1)
    assert begun.status is None
    recalls = [event.ino for event in parse_events(news.data) if event.kind == WATCH_RECALL]
    assert recalls == [os.stat(tree.root / "d").st_ino]
    assert [fact["node"] for fact in tree.fs.delegations.facts()] == ["b"]

    give_back(tree, client, handle)
    tree.dispatch.run_for(0.01)
    assert begun.status is not None
    assert begun.status >= 0
    assert not tree.fs.delegations.alone


def test_who_does_not_give_back_has_lost_it(tree: HostDirectory) -> None:
    client, handle = met(tree)
    assert ask(tree, client, handle) == 1
    begun = WAITS["look-up in it"](tree, tree.remote("c"))
    tree.dispatch.run_for(PATIENCE - 0.1)
    assert begun.status is None
    tree.dispatch.run_for(0.2)
    assert begun.status == 0
    with fails(errno.EBADF):
        client.lookup(b"f", handle)


def test_who_gives_back_late_and_asks_again_holds_nobody_up_for_long(tree: HostDirectory) -> None:
    client, handle = met(tree)
    other = tree.remote("c")
    (tree.root / "d2").mkdir()
    handles = handle, client.lookup(b"d2", flags=LOOKUP_WATCH | WANT_HANDLE).handle
    assert [ask(tree, client, one) for one in handles] == [1, 1]
    begun = begin(tree, other, ConnectRequest(Connect.RENAME, 2, 0, b"d", path2=b"d2"))
    assert [fact["node"] for fact in tree.fs.delegations.facts()] == ["b", "b"]

    tree.dispatch.run_for(LATE - 0.1)
    for one in handles:
        give_back(tree, client, one)
        assert ask(tree, client, one) == 0
    tree.dispatch.run_for(0.01)
    assert begun.status is not None
    assert begun.status >= 0
    tree.dispatch.run_for(alone.HELD_OFF)
    assert ask(tree, client, handle) == 1
    assert tree.fs.counters["delegations_late"] == 0


def test_who_gives_back_late_gets_none_for_a_while(tree: HostDirectory) -> None:
    client, handle = met(tree)
    assert ask(tree, client, handle) == 1
    begun = WAITS["look-up in it"](tree, tree.remote("c"))
    tree.dispatch.run_for(LATE + 0.1)
    assert begun.status is None
    give_back(tree, client, handle)
    tree.dispatch.run_for(REST - 0.1)
    assert begun.status == 0
    assert ask(tree, client, handle) == 0
    tree.dispatch.run_for(0.2)
    assert ask(tree, client, handle) == 1
    assert tree.fs.counters["delegations_late"] == 1


def test_a_path_waits_for_what_it_leads_through(tree: HostDirectory) -> None:
    client, handle = met(tree)
    (tree.root / "e" / "x" / "y").mkdir(parents=True)
    within = client.lookup(b"e/x", flags=LOOKUP_WATCH | WANT_HANDLE).handle
    assert [ask(tree, client, one) for one in (handle, within)] == [1, 1]
    other = tree.remote("c")
    assert other.lookup(b"e", flags=WANT_HANDLE).handle
    other.connect(ConnectRequest(Connect.SYMLINK, 0, 0, b"e/link", path2=b"../d"))
    with fails(errno.ELOOP):
        other.lookup(b"e/link/f")
    assert not tree.fs.delegations.facts()
    begun = begin(tree, other, ConnectRequest(Connect.LOOKUP, 0, 0, b"e/x/y"))
    assert begun.status is None
    assert [fact["ino"] for fact in tree.fs.delegations.facts()] == [os.stat(tree.root / "e" / "x").st_ino]
    assert tree.fs.counters["delegations_recalled_unseen"] == 0


def test_who_asks_all_the_time_does_not_take_the_daemon_s(tree: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    client, handle = met(tree)
    monkeypatch.setattr(alone, "LOOK_REST", alone.LOOK_AHEAD)
    met(tree, "c", b"e")
    for _ in range(2):
        assert ask(tree, client, handle) == 1
        give_back(tree, client, handle)
    assert ask(tree, client, handle) == 0
    tree.dispatch.run_for(alone.LOOK_AHEAD)
    assert ask(tree, client, handle) == 1


def test_a_directory_that_replaces_another_has_both_recalled_at_once(tree: HostDirectory) -> None:
    client, handle = met(tree)
    (tree.root / "d2").mkdir()
    second = client.lookup(b"d2", flags=LOOKUP_WATCH | WANT_HANDLE).handle
    assert [ask(tree, client, one) for one in (handle, second)] == [1, 1]
    begun = begin(tree, tree.remote("c"), ConnectRequest(Connect.RENAME, 0, 0, b"d", path2=b"d2"))
    assert begun.status is None
    assert len(tree.fs.delegations.facts()) == 2


def test_what_is_elsewhere_does_not_wait(tree: HostDirectory) -> None:
    client, handle = met(tree)
    assert ask(tree, client, handle) == 1
    other = tree.remote("c")
    assert other.lookup(b"e", flags=WANT_HANDLE).handle
    other.name(Connect.MKDIR, b"new", mode=0o755)
    other.connect(ConnectRequest(Connect.SYMLINK, 0, 0, b"link", path2=b"d/f"))
    other.connect(ConnectRequest(Connect.RENAME, 0, 0, b"link", path2=b"moved"))
    other.connect(ConnectRequest(Connect.RMDIR, 0, 0, b"new"))
    assert other.names() >= {b"d", b"e", b"moved"}
    assert len(tree.fs.delegations.table) == 1


@pytest.mark.parametrize(("subtype", "flags"), [(Connect.RMDIR, 0), (Connect.UNLINK, UNLINK_DIRECTORY)])
def test_who_removes_it_finds_gone_what_was_in_it(tree: HostDirectory, subtype: Connect, flags: int) -> None:
    client, handle = met(tree)
    assert ask(tree, client, handle) == 1
    begun = begin(tree, tree.remote("c"), ConnectRequest(subtype, flags, 0, b"d"))
    tree.dispatch.run_for(0.1)
    assert begun.status is None
    client.connect(ConnectRequest(Connect.UNLINK, 0, handle, b"f"))
    client.connect(ConnectRequest(Connect.RMDIR, 0, handle, b"sub"))
    give_back(tree, client, handle)
    tree.dispatch.run_for(0.01)
    assert begun.status == 0


def test_where_names_cannot_be_looked_at_all_are_asked(tree: HostDirectory) -> None:
    client, handle = met(tree)
    assert ask(tree, client, handle) == 1
    tree.fs.devices.root.blocking_until = FOREVER
    begun = begin(tree, tree.remote("c"), ConnectRequest(Connect.RENAME, 0, 0, b"g", path2=b"h"))
    tree.dispatch.run_for(0.1)
    assert begun.status is None
    assert len(tree.fs.delegations.facts()) == 1
    assert tree.fs.counters["delegations_recalled_unseen"] == 1


def test_its_own_node_does_not_wait(tree: HostDirectory) -> None:
    client, handle = met(tree)
    assert ask(tree, client, handle) == 1
    assert client.names(b"d") == {b"f", b"sub"}
    assert tree.remote("b", 1000).lookup(b"d/f").attr is not None
    client.connect(ConnectRequest(Connect.UNLINK, 0, handle, b"f"))
    assert len(tree.fs.delegations.table) == 1


def test_it_is_not_given_where_others_are(tree: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    client, handle = met(tree)
    other, its = met(tree, "c")
    assert ask(tree, client, handle) == 0
    other.close(tree.fs.target, its)
    monkeypatch.setattr(alone, "HANDLES_LOOKED_AT", 0)
    opened = Entry.parse(other.connect(ConnectRequest(Connect.OPEN, os.O_RDONLY, 0, b"d/f")))
    assert ask(tree, client, handle) == 0
    monkeypatch.undo()
    assert ask(tree, client, handle) == 1
    assert opened.ocb


def test_it_ends_with_its_client_and_its_handle(tree: HostDirectory) -> None:
    client, handle = met(tree)
    assert ask(tree, client, handle) == 1
    client.close(tree.fs.target, handle)
    assert not tree.fs.delegations.alone
    handle = client.lookup(b"d", flags=LOOKUP_WATCH | WANT_HANDLE).handle
    assert ask(tree, client, handle) == 1
    client.close_all()
    tree.dispatch.run_for(0.01)
    assert not tree.fs.delegations.alone


def test_not_every_directory_is_given(tree: HostDirectory) -> None:
    client = tree.remote("b")
    # Not watched: nobody could be told of a recall.
    assert ask(tree, client, client.lookup(b"e", flags=WANT_HANDLE).handle) == 0
    twice, handle = met(tree)
    assert ask(tree, twice, handle) == 1
    assert ask(tree, twice, handle) == 0
