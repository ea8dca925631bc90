"""Messages about membership: format, round trip, truncation at every length, nonsense."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnetpy.members import wire
from qnetpy.members.wire import Known, Renew, Renewed, Sync
from resmgr.errors import BadMessage
from resmgr.testing.formats import refuses_cuts

ID = bytes(range(20))
CASES: list[tuple[object, bytes, Callable[[bytes], object]]] = [
    (Sync(bytes(32), (b"chain", b"")), b"\x01" + bytes(32) + b"\x02\0\x05chain\0\0", wire.parse_sync),
    (Known(bytes(32), (bytes(16), b"x" * 16)), bytes(48) + b"x" * 16, wire.parse_known),
    (Renew(ID, b"chain", b"k" * 32, b"p" * 64), b"\x03" + ID + b"k" * 32 + b"p" * 64 + b"\0\x05chain", wire.parse_renew),
    (Renewed(b"chain", b"iss"), b"\0\x05chain\0\x03iss", wire.parse_renewed),
]


def build(value: object) -> bytes:
    match value:
        case Sync():
            return wire.pack_sync(value)
        case Known():
            return wire.pack_known(value)
        case Renew():
            return wire.pack_renew(value)
        case Renewed():
            return wire.pack_renewed(value)
    raise AssertionError


@pytest.mark.parametrize(("value", "data", "parse"), CASES)
def test_formats(value: object, data: bytes, parse: Callable[[bytes], object]) -> None:
    assert build(value) == data
    assert parse(data) == value
    # A KNOWN with fewer ids is a message too.
    refuses_cuts(parse, data, lambda length: parse is wire.parse_known and length >= 32 and not (length - 32) % 16)
    with pytest.raises(BadMessage):
        parse(data + b"\0")


@pytest.mark.parametrize("parse", [*(parse for _, _, parse in CASES), wire.parse_tell])
@given(data=st.binary(max_size=200))
def test_nonsense_is_a_bad_message(parse: Callable[[bytes], object], data: bytes) -> None:
    try:
        parse(data)
    except BadMessage:
        pass


def test_statements_are_told_in_as_many_messages_as_it_takes() -> None:
    statements = [bytes((number,)) * 20000 for number in range(10)]
    messages = wire.pack_tells(statements)
    assert len(messages) == 4
    assert max(map(len, messages)) <= wire.REQUEST_MAX
    assert [one for message in messages for one in wire.parse_tell(message)] == statements
    assert wire.pack_tells([]) == []
    for end in range(1, 40):
        with pytest.raises(BadMessage):
            wire.parse_tell(messages[0][:end])
