"""Reassembly, order, exactly-once and the caps that stop an authenticated but hostile peer."""

from __future__ import annotations

from itertools import permutations

import pytest

from qnetpy.link.transport.constants import INITIAL_CREDIT, MAX_HOLES, MAX_MESSAGE, MESSAGE_COST
from qnetpy.link.transport.events import CloseCode, Event, MessageReceived
from qnetpy.link.transport.incoming import Inbox, PeerError
from resmgr.errors import BadMessage

WINDOW = 80 << 20


def inbox(window: int = WINDOW) -> tuple[Inbox, list[Event]]:
    out: list[Event] = []
    box = Inbox(window, out)
    box.grant()
    return box, out


def data(out: list[Event]) -> list[bytes]:
    return [bytes(event.data) for event in out if isinstance(event, MessageReceived)]


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_any_order_of_fragments_delivers_once(order: tuple[int, ...]) -> None:
    box, out = inbox()
    for _ in range(2):
        for piece in order:
            if piece:
                box.fragment(1, 9, piece * 2, 8, bytes([piece]) * 2)
            else:
                box.start(1, 9, 8, 77, 0, b"\0\0")

    (told,) = out
    assert isinstance(told, MessageReceived)
    assert (told.stream, told.priority, told.data, told.route) == (77, 9, bytearray(b"\0\0\1\1\2\2\3\3"), 0)
    assert box.duplicates == 4
    assert (len(box.open), box.held(), box.floor, len(box.done)) == (0, 0, 2, 0)


@pytest.mark.parametrize("order", list(permutations(range(1, 5))))
def test_stream_order_whatever_arrives_first(order: tuple[int, ...]) -> None:
    box, out = inbox()
    for ident in order:
        # Messages 1, 2 and 4 are one stream; 3 is alone.
        behind = {1: 0, 2: 1, 3: 0, 4: 2}[ident]
        box.start(ident, 1, 1, 3 if ident == 3 else 1, behind, bytes([ident]))
        if ident == 3:
            assert data(out)[-1] == b"\3", "streams do not wait for each other"

    assert [got for got in data(out) if got != b"\3"] == [b"\1", b"\2", b"\4"]
    assert len(data(out)) == 4
    assert (len(box.open), box.waiting(), box.held(), box.floor, len(box.done)) == (0, 0, 0, 5, 0)


def test_single_fragment_is_handed_on_as_it_is() -> None:
    box, out = inbox()
    payload = b"whole"
    box.start(1, 1, 5, 1, 0, payload)

    assert isinstance(out[0], MessageReceived)
    assert out[0].data is payload


def test_predecessor_delivered_long_ago() -> None:
    box, out = inbox()
    box.start(3, 1, 1, 1, 0, b"c")
    box.start(1, 1, 1, 1, 0, b"a")
    box.start(4, 1, 1, 1, 1, b"d")

    assert data(out) == [b"c", b"a", b"d"]
    assert box.floor == 2
    assert list(box.done) == [(3, 5)]


def test_grant_follows_delivery() -> None:
    box, _ = inbox()
    assert not box.wants_grant()
    size = 1 << 20
    ident = 0
    while not box.wants_grant():
        ident += 1
        box.start(ident, 1, size, 1, 0, bytes(size))
    assert ident == -(-(WINDOW >> 2) // (size + MESSAGE_COST))
    assert box.grant() == WINDOW + box.consumed
    assert not box.wants_grant()


def test_credit_exceeded() -> None:
    out: list[Event] = []
    box = Inbox(WINDOW, out)
    with pytest.raises(PeerError) as caught:
        box.start(1, 1, INITIAL_CREDIT, 1, 0, b"x")
    assert caught.value.code is CloseCode.CREDIT_EXCEEDED

    box, _ = inbox()
    box.fragment(1, 1, 1, MAX_MESSAGE, b"x")
    with pytest.raises(PeerError) as caught:
        box.fragment(2, 1, 1, MAX_MESSAGE, b"x")
    assert caught.value.code is CloseCode.CREDIT_EXCEEDED


def test_skipping_ids_is_bounded() -> None:
    """A peer that uses every second id would make the set of delivered ids grow for ever."""
    box, _ = inbox()

    def skip() -> None:
        for ident in range(2, 10_000_000, 2):
            box.start(ident, 1, 0, 1, 0, b"")
            box.grant()

    with pytest.raises(PeerError) as caught:
        skip()
    assert caught.value.code is CloseCode.TOO_MANY_MESSAGES
    assert len(box.done) <= WINDOW // MESSAGE_COST + 1


def test_holes_are_bounded() -> None:
    box, _ = inbox()
    hostile = box

    def every_second_byte() -> None:
        for offset in range(1, 2 * MAX_HOLES + 10, 2):
            hostile.fragment(1 + offset % 3, 1, offset, 3 * MAX_HOLES, b"x")

    with pytest.raises(PeerError) as caught:
        every_second_byte()
    assert caught.value.code is CloseCode.TOO_MANY_HOLES

    box, out = inbox()
    for ident in range(1, 40):
        for offset in [*range(2, 100, 2), *range(1, 100, 2)]:
            box.fragment(ident, 1, offset, 100, b"x")
        box.start(ident, 1, 100, 1, 0, b"x")
    assert len(out) == 39, "holes that were filled do not count"


@pytest.mark.parametrize(
    ("second", "why"),
    [
        ((1, 1, 5, 9, b"x"), "changed its size"),
        ((1, 64, 5, 8, b"x"), "priority"),
        ((1, 1, 7, 8, b"xy"), "beyond its message"),
        ((1, 1, 0, 8, b"x"), "DATA at 0"),
        ((1, 1, 3, 8, b""), "empty fragment"),
        ((0, 1, 3, 8, b"x"), "message id"),
    ],
)
def test_nonsense_fragments(second: tuple[int, int, int, int, bytes], why: str) -> None:
    box, _ = inbox()
    box.fragment(1, 1, 4, 8, b"x")
    with pytest.raises(BadMessage, match=why):
        box.fragment(*second)


def test_start_must_not_change() -> None:
    box, _ = inbox()
    box.start(1, 1, 8, 5, 0, b"x")
    with pytest.raises(BadMessage, match="stream"):
        box.start(1, 1, 8, 6, 0, b"x")


def test_two_messages_behind_one() -> None:
    box, _ = inbox()
    box.start(2, 1, 1, 5, 1, b"x")
    with pytest.raises(BadMessage, match="behind one"):
        box.start(3, 1, 1, 5, 2, b"x")
