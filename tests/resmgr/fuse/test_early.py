"""What is said of objects before anybody asked for them, and watches that nobody wants: of one node only, and bounded."""

from __future__ import annotations

import itertools

import pytest

from resmgr.channel import Connection, Credentials, Kernel, Message, Nd
from resmgr.fuse.early import EARLY_MAX, Early
from resmgr.fuse.unwanted import DROP_AFTER
from resmgr.ids import CHID_PATHMGR
from resmgr.iofunc.handle import Client
from resmgr.iomsg import EVENT, WATCH_CREATE, WATCH_NEXT
from resmgr.testing.fuserig import Rig
from resmgr.testing.virtual import VirtualDispatch


def connections() -> tuple[Connection, Connection, Connection]:
    """Two of one node, one of another."""
    kernel = Kernel(VirtualDispatch(1), "a")
    one, other, far = (kernel.connect(Nd(nd), 1, CHID_PATHMGR, Credentials(0, 0, ())) for nd in (2, 2, 3))
    return one, other, far


def test_what_came_counts_for_what_was_asked_before() -> None:
    one, other, far = connections()
    early = Early()
    assert not early.since(one, 5, 1.0)
    early.came(one, 5, 2.0)
    assert early.since(one, 5, 2.0)
    assert not early.since(one, 5, 2.1)
    assert not early.since(one, 6, 1.0)
    assert not early.since(other, 5, 1.0)
    assert not early.since(far, 5, 1.0)


def test_a_node_that_says_too_much_makes_itself_doubted_only() -> None:
    one, other, far = connections()
    early = Early()
    for number in range(EARLY_MAX + 1):
        early.came(one, number, 2.0)
    assert early.since(one, 10**6, 2.0)
    assert early.since(other, 5, 2.0)
    assert not early.since(far, 5, 1.0)
    early.anything(far, 3.0)
    assert early.since(far, 5, 3.0)
    assert not early.since(one, 10**6, 2.5)


def test_watches_that_a_server_does_not_take_back_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells of ever new directories and answers no DROP."""
    rig = Rig()
    rig.fs.watch()
    rig.fs.add(b"d/f", b"x")
    rig.walk(b"d")
    rig.run(0.1)
    lease = rig.machine.nodes.root.children[b"d"].lease
    assert lease is not None
    assert rig.fs.watching is not None
    numbers = itertools.count(10**6)
    kept: list[Message] = []

    def news(message: Message, client: Client, subtype: int) -> None:
        if subtype == WATCH_NEXT:
            message.reply(0, b"".join(EVENT.pack(next(numbers), WATCH_CREATE, 0, 1) + b"x" for _ in range(500)))
        else:
            kept.append(message)

    monkeypatch.setattr(rig.fs.watching, "message", news)
    rig.fs.add(b"d/first", b"")
    rig.run(3.5 * DROP_AFTER)

    assert next(numbers) > 10**6 + 100 * EARLY_MAX
    assert rig.machine.leases._unwanted.count(lease.connection) == EARLY_MAX
    assert len(kept) == 1
