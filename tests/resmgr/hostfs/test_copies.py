"""Copies between two other nodes: what is copied, whose rights count, who can take what with a ticket, and what a lost link leaves."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmgr import copymsg
from resmgr.access import Export
from resmgr.channel import Message
from resmgr.copymsg import LENGTH_MAX, TAKE_MAX, TICKET, Fetch, Take
from resmgr.errors import BadMessage
from resmgr.handlelist import pack_close
from resmgr.hostfs.fetches import FETCHES_OF_NODE, SILENCE, WINDOW
from resmgr.hostfs.offers import LIFETIME, OFFERS_OF_CLIENT
from resmgr.testing.formats import refuses_cuts, survives_changes
from resmgr.testing.ioclient import Begun, IoClient, fails
from tests.resmgr.hostfs.between import Four

SIZE = 6 * TAKE_MAX + 12345
DATA = bytes(range(256)) * (SIZE // 256 + 1)


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Four]:
    nodes = Four(tmp_path)
    (nodes.roots["b"] / "x").write_bytes(DATA[:SIZE])
    yield nodes
    assert not nodes.fs["c"].fetches.running, "no copy goes on"
    nodes.close()
    assert len(nodes.fs["b"].offers) == 0


def opened(four: Four, uid: int = 0) -> tuple[IoClient, int, int]:
    """A client of a's, with x of b's open for reading and y of c's for writing."""
    client = four.client("a", uid)
    return client, four.open(client, "b", b"x"), four.open(client, "c", b"y", os.O_RDWR | os.O_CREAT)


def begin(four: Four, client: IoClient, y: int, fetch: Fetch) -> Begun:
    return client.begin(four.files("c"), copymsg.pack_fetch(y, fetch))


def test_a_range_is_copied_without_passing_through_the_node_that_asks(four: Four) -> None:
    client, x, y = opened(four)
    here = four.links[frozenset("ac")].right.sent + four.links[frozenset("ab")].right.sent
    ticket = four.offer(client, x, 1000, 3 * TAKE_MAX)

    count = four.fetch(client, y, Fetch(1000, 77, 3 * TAKE_MAX, ticket, "b"))

    assert count == 3 * TAKE_MAX
    assert (four.roots["c"] / "y").read_bytes() == bytes(77) + DATA[1000 : 1000 + count]
    # Two answers came to a: it saw nothing of the data.
    assert four.links[frozenset("ac")].right.sent + four.links[frozenset("ab")].right.sent == here + 2
    assert len(four.fs["b"].offers) == 0, "a ticket that is used up is gone"


def test_it_ends_where_the_source_ends(four: Four) -> None:
    client, x, y = opened(four)
    ticket = four.offer(client, x, 5, LENGTH_MAX * 2)
    assert four.fetch(client, y, Fetch(5, 0, LENGTH_MAX * 2, ticket, "b")) == SIZE - 5
    assert (four.roots["c"] / "y").read_bytes() == DATA[5:SIZE]
    # Behind the end there is nothing, and that is no error.
    ticket = four.offer(client, x, SIZE, 100)
    assert four.fetch(client, y, Fetch(SIZE, 0, 100, ticket, "b")) == 0
    # What is left of a ticket ends with the connection that took.
    four.world.run_for(0.1)
    assert len(four.fs["b"].offers) == 0


def test_only_what_may_be_read_is_offered_and_only_what_may_be_written_fetched(four: Four) -> None:
    client, x, y = opened(four)
    with fails(errno.EBADF):
        client.send(four.files("c"), (copymsg.pack_offer(four.open(client, "c", b"y", os.O_WRONLY), 0, 10, "b"),))
    ticket = four.offer(client, x, 0, 10)
    read_only = four.open(client, "c", b"y")
    with fails(errno.EBADF):
        four.fetch(client, read_only, Fetch(0, 0, 10, ticket, "b"))
    appends = four.open(client, "c", b"y", os.O_WRONLY | os.O_APPEND)
    with fails(errno.EBADF):
        four.fetch(client, appends, Fetch(0, 0, 10, ticket, "b"))
    with fails(errno.EBADF):
        four.offer(client, y + 1000, 0, 10)
    # Another user of a's, with the numbers of this one's files.
    other = four.client("a", 1234)
    with fails(errno.EBADF):
        four.offer(other, x, 0, 10)
    with fails(errno.EXDEV):
        four.offer(client, four.open(client, "b", b"", os.O_DIRECTORY), 0, 10)
    with fails(errno.EXDEV):
        four.offer(client, x, 0, 10, "b")


def test_devices_and_fifos_are_not_copied_so(four: Four) -> None:
    """They are read and written by rules of their own."""
    for name in ("b", "c"):
        os.mkfifo(four.roots[name] / "fifo")
    client, x, _ = opened(four)
    ticket = four.offer(client, x, 0, 10)
    with fails(errno.EXDEV):
        four.offer(client, four.open(client, "b", b"fifo", os.O_RDWR), 0, 10)
    with fails(errno.EXDEV):
        four.fetch(client, four.open(client, "c", b"fifo", os.O_RDWR), Fetch(0, 0, 10, ticket, "b"))
    assert four.fs["b"].counters["takes"] == 0


def test_a_ticket_is_good_for_one_node_one_range_and_each_byte_once(four: Four) -> None:
    client, x, _ = opened(four)
    ticket = four.offer(client, x, 100, 1000)
    c, d, a = four.client("c", 5), four.client("d"), four.client("a")
    for who, take in (
        (d, Take(ticket, 100, 10)),
        (a, Take(ticket, 100, 10)),
        (c, Take(bytes(TICKET), 100, 10)),
        (c, Take(ticket, 99, 10)),
        (c, Take(ticket, 1095, 10)),
        (c, Take(ticket, 100, 1001)),
    ):
        with fails(errno.EACCES):
            four.take(who, take)
    assert four.fs["b"].counters["takes_refused"] == 6
    assert four.take(c, Take(ticket, 100, 600)) == DATA[100:700]
    # Another connection of the same node.
    with fails(errno.EACCES):
        four.take(four.client("c"), Take(ticket, 700, 10))
    # Again, and more in sum than was offered.
    with fails(errno.EACCES):
        four.take(c, Take(ticket, 100, 600))
    assert four.take(c, Take(ticket, 700, 400)) == DATA[700:1100]
    with fails(errno.EACCES):
        four.take(c, Take(ticket, 700, 1))


@pytest.mark.parametrize("ended_by", ["time", "close", "client", "link", "policy"])
def test_a_ticket_ends(four: Four, ended_by: str) -> None:
    client, x, _ = opened(four)
    c = four.client("c")
    ticket = four.offer(client, x, 0, 100)
    assert four.take(c, Take(ticket, 0, 10)) == DATA[:10]

    if ended_by == "time":
        four.world.run_for(LIFETIME)
    elif ended_by == "close":
        client.send(four.files("b"), (pack_close(x),))
    elif ended_by == "client":
        client.close_all()
    elif ended_by == "link":
        four.cut("a", "b")
    else:
        four.fs["b"].set_policy(four.policy((Export("/elsewhere", ["read"]),)))
    four.world.run_for(0.1)

    assert len(four.fs["b"].offers) == 0
    with fails(errno.EACCES):
        four.take(c, Take(ticket, 10, 10))


def test_a_ticket_ends_with_the_link_of_who_takes(four: Four) -> None:
    client, x, _ = opened(four)
    ticket = four.offer(client, x, 0, 100)
    four.take(four.client("c"), Take(ticket, 0, 10))
    four.cut("b", "c")
    four.world.run_for(0.1)
    assert len(four.fs["b"].offers) == 0


def test_offers_are_bounded(four: Four) -> None:
    client, x, _ = opened(four)
    for _ in range(OFFERS_OF_CLIENT):
        four.offer(client, x, 0, 100)
    with fails(errno.EAGAIN):
        four.offer(client, x, 0, 100)
    assert four.fs["b"].counters["offers_full"] == 1
    four.world.run_for(LIFETIME)
    four.offer(client, x, 0, 100)
    client.close_all()
    four.world.run_for(1.0)
    assert len(four.fs["b"].offers) == 0


def hold_takes(four: Four, after: int = 0) -> list[Message]:
    """What lies behind *after* parts of the file b keeps without an answer."""
    held: list[Message] = []
    channel = four.fs["b"].offers._channel
    assert channel is not None
    answer = channel.handler

    def receive(message: Message) -> None:
        if copymsg.parse_take(message.data).offset >= after * TAKE_MAX:
            held.append(message)
            message.on_unblock = lambda: message.error(errno.EINTR)
        else:
            answer(message)

    channel.handler = receive
    return held


def test_fetches_are_bounded_and_ask_for_no_more_than_they_hold(four: Four) -> None:
    client, x, y = opened(four)
    held = hold_takes(four)
    begun = [begin(four, client, y, Fetch(0, 0, SIZE, four.offer(client, x, 0, SIZE), "b")) for _ in range(FETCHES_OF_NODE)]
    four.world.run_for(1.0)
    assert len(held) == FETCHES_OF_NODE * WINDOW
    with fails(errno.EXDEV):
        four.fetch(client, y, Fetch(0, 0, 10, bytes(TICKET), "b"))
    assert four.fs["c"].counters["fetches_full"] == 1
    for one in begun:
        one.unblock()
    four.world.run_for(1.0)
    assert [one.status for one in begun] == [-errno.EINTR] * FETCHES_OF_NODE


def test_what_was_written_is_told_when_the_link_between_them_breaks(four: Four) -> None:
    client, x, y = opened(four)
    hold_takes(four, after=2)
    begun = begin(four, client, y, Fetch(0, 0, SIZE, four.offer(client, x, 0, SIZE), "b"))
    four.world.run_for(1.0)
    assert begun.status is None
    four.cut("b", "c")
    four.world.run_for(1.0)
    assert begun.status == 2 * TAKE_MAX
    assert (four.roots["c"] / "y").read_bytes() == DATA[: 2 * TAKE_MAX]


@pytest.mark.parametrize("ended_by", ["link", "client", "close"])
def test_a_copy_ends_with_who_wanted_it(four: Four, ended_by: str) -> None:
    client, x, y = opened(four)
    held = hold_takes(four, after=1)
    begin(four, client, y, Fetch(0, 0, SIZE, four.offer(client, x, 0, SIZE), "b"))
    four.world.run_for(1.0)
    if ended_by == "link":
        four.cut("a", "c")
    elif ended_by == "client":
        client.close_all()
    else:
        client.send(four.files("c"), (pack_close(y),))
    four.world.run_for(0.1)
    assert not four.fs["c"].fetches.running
    assert all(message.answered for message in held), "b is not left waiting"
    assert four.fs["c"].manager.counters["failed"] == 0


def test_a_signal_leaves_what_was_written(four: Four) -> None:
    client, x, y = opened(four)
    hold_takes(four, after=1)
    begun = begin(four, client, y, Fetch(0, 0, SIZE, four.offer(client, x, 0, SIZE), "b"))
    four.world.run_for(1.0)
    begun.unblock()
    four.world.run_for(1.0)
    assert begun.status == TAKE_MAX


def test_a_source_that_says_nothing_is_not_waited_for(four: Four) -> None:
    client, x, y = opened(four)
    hold_takes(four)
    begun = begin(four, client, y, Fetch(0, 0, SIZE, four.offer(client, x, 0, SIZE), "b"))
    four.world.run_for(SILENCE + 1.0)
    assert begun.status == -errno.EXDEV
    assert four.fs["c"].counters["fetches_silent"] == 1


@pytest.mark.parametrize("case", ["unknown", "down", "self", "ticket"])
def test_what_cannot_be_fetched_is_left_to_who_asks(four: Four, case: str) -> None:
    client, x, y = opened(four)
    ticket = four.offer(client, x, 0, 10)
    if case == "down":
        four.cut("b", "c")
    if case == "ticket":
        ticket = bytes(TICKET)
    name = {"unknown": "nobody", "self": "c"}.get(case, "b")
    with fails(errno.EXDEV):
        four.fetch(client, y, Fetch(0, 0, 10, ticket, name))
    assert (four.roots["c"] / "y").read_bytes() == b""


def test_parts_that_come_in_any_order_are_written_in_order(four: Four) -> None:
    client, x, y = opened(four)
    held = hold_takes(four)
    begun = begin(four, client, y, Fetch(0, 0, 4 * TAKE_MAX, four.offer(client, x, 0, 4 * TAKE_MAX), "b"))
    four.world.run_for(1.0)
    parts = sorted(((copymsg.parse_take(message.data).offset, message) for message in held), key=lambda part: part[0])
    for offset, message in reversed(parts[1:]):
        message.reply(0, DATA[offset : offset + TAKE_MAX])
        four.world.run_for(0.1)
        assert (four.roots["c"] / "y").read_bytes() == b"", "nothing before the first"
    parts[0][1].reply(0, DATA[:TAKE_MAX])
    four.world.run_for(1.0)
    assert begun.status == 4 * TAKE_MAX
    assert (four.roots["c"] / "y").read_bytes() == DATA[: 4 * TAKE_MAX]


def test_more_than_was_asked_for_ends_the_copy(four: Four) -> None:
    client, x, y = opened(four)
    held = hold_takes(four)
    begun = begin(four, client, y, Fetch(0, 0, 10, four.offer(client, x, 0, 10), "b"))
    four.world.run_for(1.0)
    held[0].reply(0, bytes(11))
    four.world.run_for(1.0)
    assert begun.status == -errno.EXDEV
    assert (four.roots["c"] / "y").read_bytes() == b""


def test_a_full_disk_is_told(four: Four, monkeypatch: pytest.MonkeyPatch) -> None:
    client, x, y = opened(four)
    write = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset >= TAKE_MAX + 100:
            raise OSError(errno.ENOSPC, "full")
        return write(fd, data[: TAKE_MAX + 100 - offset], offset)

    monkeypatch.setattr(os, "pwrite", full)
    assert four.fetch(client, y, Fetch(0, 0, SIZE, four.offer(client, x, 0, SIZE), "b")) == TAKE_MAX + 100
    with fails(errno.ENOSPC):
        four.fetch(client, y, Fetch(0, TAKE_MAX + 100, 50, four.offer(client, x, 0, 50), "b"))


def test_a_file_system_that_may_not_answer_is_written_in_a_thread(four: Four) -> None:
    client, x, y = opened(four)
    for handle in four.fs["c"].manager.table.handles.values():
        handle.device.blocking_until = float("inf")  # type: ignore[attr-defined]  # a host handle's
    assert four.fetch(client, y, Fetch(0, 0, SIZE, four.offer(client, x, 0, SIZE), "b")) == SIZE
    assert (four.roots["c"] / "y").read_bytes() == DATA[:SIZE]
    assert four.fs["c"].counters["threaded"] >= 7


def test_formats() -> None:
    fetch = Fetch(1, 2, 3, bytes(range(32)), "node-b")
    assert copymsg.parse_fetch(copymsg.pack_fetch(9, fetch)) == fetch
    assert copymsg.parse_offer(copymsg.pack_offer(9, 1, 2, "c")) == (1, 2, "c")
    take = Take(bytes(range(32)), 5, TAKE_MAX)
    assert copymsg.parse_take(copymsg.pack_take(take)) == take
    assert copymsg.parse_offer(copymsg.pack_offer(9, 1, 1 << 62, "c"))[1] == LENGTH_MAX


@pytest.mark.parametrize(
    "message",
    [
        b"",
        copymsg.pack_take(Take(bytes(32), 0, 0)),
        copymsg.pack_take(Take(bytes(32), 0, TAKE_MAX + 1)),
        copymsg.pack_take(Take(bytes(32), (1 << 63) - 1, 1)),
        copymsg.pack_take(Take(bytes(32), 0, 1)) + b"x",
        b"\2" + copymsg.pack_take(Take(bytes(32), 0, 1))[1:],
    ],
)
def test_takes_that_do_not_parse(message: bytes) -> None:
    with pytest.raises(BadMessage):
        copymsg.parse_take(message)


@pytest.mark.parametrize("name", ["", "x" * 64, "a\nb"])
def test_names_that_no_node_has(name: str) -> None:
    with pytest.raises(BadMessage):
        copymsg.parse_offer(copymsg.pack_offer(9, 0, 1, name))
    with pytest.raises(BadMessage):
        copymsg.parse_fetch(copymsg.pack_fetch(9, Fetch(0, 0, 1, bytes(32), name)))


def test_whatever_comes_instead_of_a_message_is_refused() -> None:
    offer, take = copymsg.pack_offer(9, 1, 2, "c"), copymsg.pack_take(Take(bytes(range(32)), 5, 7))
    fetch = copymsg.pack_fetch(9, Fetch(1, 2, 3, bytes(range(32)), "c"))
    for parse, message in ((copymsg.parse_offer, offer), (copymsg.parse_fetch, fetch), (copymsg.parse_take, take)):
        refuses_cuts(parse, message)
        survives_changes(parse, message, 1)


@pytest.mark.parametrize("seed", range(24))
def test_a_link_is_cut_at_any_moment(tmp_path: Path, seed: int) -> None:
    four = Four(tmp_path, seed)
    (four.roots["b"] / "x").write_bytes(DATA[:SIZE])
    chance = four.world.random("cut")
    client, x, y = opened(four)
    begun = begin(four, client, y, Fetch(0, 0, SIZE, four.offer(client, x, 0, SIZE), "b"))
    pair = chance.choice(["ab", "ac", "bc"])
    four.world.run_for(chance.random() * 0.012)
    answered = begun.status is not None
    four.cut(*pair)
    four.world.run_for(LIFETIME + 1.0)
    found = (four.roots["c"] / "y").read_bytes()
    assert found == DATA[: len(found)], "in order, without a gap"
    assert begun.status is not None
    if begun.status >= 0:
        assert len(found) == begun.status, "what is told is what is there"
    elif pair == "ac" and not answered:
        assert begun.status == -errno.EHOSTDOWN
    else:
        assert begun.status == -errno.EXDEV
        assert not found
    assert not four.fs["c"].fetches.running
    assert len(four.fs["b"].offers) == 0
    for fs in four.fs.values():
        assert fs.manager.counters["failed"] == 0
    four.close()
