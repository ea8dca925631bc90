"""Watched directories: which ones are, for whom, and what it may cost."""

from __future__ import annotations

import os
import struct

import pytest

from resmgr.access import Export
from resmgr.hostfs import watching
from resmgr.hostfs.watching import LISTENERS_PER_NODE
from resmgr.iomsg import LOOKUP_WATCH, WANT_HANDLE
from resmgr.testing.hostdir import HostDirectory
from resmgr.testing.ioclient import IoClient

ALICE, BOB = 4001, 4002


@pytest.fixture
def seen(host: HostDirectory, monkeypatch: pytest.MonkeyPatch) -> HostDirectory:
    """The same, where the kernel is asked for changes. Virtual time has no descriptors: they are read by `look`."""
    monkeypatch.setattr(type(host.dispatch), "attach_fd", lambda *_: None)
    monkeypatch.setattr(type(host.dispatch), "detach_fd", lambda *_: None)
    host.fs.set_policy(host.policy((Export("/", ["read", "write"]),)))
    return host


def watched(client: IoClient, path: bytes) -> bool:
    return client.lookup(path, flags=LOOKUP_WATCH | WANT_HANDLE).watched


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
