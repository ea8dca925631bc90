"""Formats of enrolment: parse, build, round trip, truncation at every length, and nonsense."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnetpy.enrol import wire
from qnetpy.enrol.wire import Accept, Denial, Denied, Frames, Grant, Hello, Kind, Refusal, Refused, Request, frame
from resmgr.errors import BadMessage, Misuse
from resmgr.testing.formats import refuses_cuts

HELLO = Hello(1, "k7p", bytes(range(33)))
HELLO_BYTES = b"qnetjoin\x01k7p" + bytes(range(33))
ACCEPT = Accept(bytes(range(32)), bytes(range(32, 64)))
REQUEST = Request(bytes(range(32)), bytes(range(32, 64)), "n2")
REQUEST_BYTES = bytes(range(64)) + b"\x02n2"
GRANT = Grant(bytes(32), b"chain", (b"root", b"other"), (b"s1",))
GRANT_BYTES = bytes(32) + b"\0\x05chain\0\x02\0\x04root\0\x05other\0\x01\0\x02s1"
DENIED = Denied(Denial.NAME_TAKEN, "there is one")
DENIED_BYTES = b"\x01\0\x0cthere is one"


def build(value: object) -> bytes:
    match value:
        case Hello():
            return wire.pack_hello(value)
        case Accept():
            return wire.pack_accept(value)
        case Request():
            return wire.pack_request(value)
        case Grant():
            return wire.pack_grant(value)
        case Denied():
            return wire.pack_denied(value)
        case Refused():
            return wire.pack_refused(value)
    raise AssertionError


CASES: list[tuple[object, bytes, Callable[[bytes], object]]] = [
    (HELLO, HELLO_BYTES, wire.parse_hello),
    (ACCEPT, bytes(range(64)), wire.parse_accept),
    (REQUEST, REQUEST_BYTES, wire.parse_request),
    (GRANT, GRANT_BYTES, wire.parse_grant),
    (DENIED, DENIED_BYTES, wire.parse_denied),
    (Refused(Refusal.WRONG, 2), b"\x02\x02", wire.parse_refused),
]


@pytest.mark.parametrize(("value", "data", "parse"), CASES)
def test_formats(value: object, data: bytes, parse: Callable[[bytes], object]) -> None:
    assert build(value) == data
    assert parse(data) == value
    refuses_cuts(parse, data)
    with pytest.raises(BadMessage):
        parse(data + b"\0")


@pytest.mark.parametrize("parse", [parse for _, _, parse in CASES])
@given(data=st.binary(max_size=200))
def test_nonsense_is_a_bad_message(parse: Callable[[bytes], object], data: bytes) -> None:
    try:
        parse(data)
    except BadMessage:
        pass


def test_another_version_is_understood_as_one() -> None:
    assert wire.parse_hello(b"qnetjoin\x02whatever it says").version == 2


def test_a_public_part_of_other_letters_is_refused() -> None:
    with pytest.raises(BadMessage):
        wire.parse_hello(b"qnetjoin\x01K/\xff" + bytes(33))


@pytest.mark.parametrize("name", ["N2", "a b", "-a", "x" * 64, "\x7f"])
def test_a_wanted_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(BadMessage):
        wire.parse_request(bytes(64) + bytes((len(name),)) + name.encode())


def test_control_characters_of_the_other_end_do_not_reach_the_terminal() -> None:
    assert wire.parse_denied(wire.pack_denied(Denied(Denial.BAD_NAME, "a\x1b[2Jb"))).detail == "a?[2Jb"


def test_frames_come_whole_however_they_are_cut() -> None:
    stream = frame(Kind.HELLO, HELLO_BYTES) + frame(Kind.CONFIRM, bytes(32)) + frame(Kind.DONE, b"")
    for size in (1, 2, 3, 7, 50, len(stream)):
        frames = Frames()
        found = [one for start in range(0, len(stream), size) for one in frames.feed(stream[start : start + size])]
        assert found == [(Kind.HELLO, HELLO_BYTES), (Kind.CONFIRM, bytes(32)), (Kind.DONE, b"")]
        assert frames.waiting == 0


def test_a_long_or_unknown_frame_is_refused_at_its_header() -> None:
    with pytest.raises(BadMessage, match="unknown"):
        Frames().feed(b"\x0a\0\0\0")
    with pytest.raises(BadMessage, match="too long"):
        Frames().feed(b"\x01\0\x02\x01")
    with pytest.raises(BadMessage, match="too long"):
        Frames().feed(b"\x07\0\x02\x01")
    assert Frames(grants=True).feed(b"\x07\0\x02\x01") == []
    with pytest.raises(BadMessage, match="too long"):
        Frames(grants=True).feed(b"\x07\xff\xff\xff")


def test_a_body_that_would_run_into_the_kind_is_not_sent() -> None:
    assert len(wire.frame(wire.Kind.GRANT, bytes(wire.GRANT_MAX))) == wire.HEADER.size + wire.GRANT_MAX
    with pytest.raises(Misuse):
        wire.frame(wire.Kind.GRANT, bytes(wire.GRANT_MAX + 1))
