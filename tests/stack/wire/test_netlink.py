"""Messages and attributes of netlink: what goes in comes out, and whatever is cut raises only BadMessage."""

from __future__ import annotations

import struct

import pytest

from resmgr.errors import BadMessage
from stack.wire.netlink import NLMSG_ERROR, attribute, attributes, error_code, messages, request

ATTRIBUTES = [(1, b"eth0\0"), (4, struct.pack("=I", 1500)), (99, b""), (3, b"abc")]


def test_attributes_round_trip() -> None:
    packed = b"".join(attribute(kind, data) for kind, data in ATTRIBUTES)
    assert [(kind, bytes(data)) for kind, data in attributes(memoryview(packed))] == ATTRIBUTES
    nested = attribute(0x8000 | 18, packed)
    [(kind, inner)] = attributes(memoryview(nested))
    assert (kind, bytes(inner)) == (18, packed)


def test_attributes_cut_anywhere() -> None:
    packed = b"".join(attribute(kind, data) for kind, data in ATTRIBUTES)
    ends = {0, 9, 10, 11, 12, 20, 24, 31}
    """Where one ends, with or without all of its padding."""
    for size in range(len(packed)):
        if size in ends:
            assert len(list(attributes(memoryview(packed)[:size]))) <= len(ATTRIBUTES)
        else:
            with pytest.raises(BadMessage, match="attribute"):
                list(attributes(memoryview(packed)[:size]))
    with pytest.raises(BadMessage, match="wrong length"):
        list(attributes(memoryview(struct.pack("=HH", 3, 1))))


def test_messages_round_trip_and_cut_anywhere() -> None:
    first, second = request(18, b"body", 0x300), request(20, b"12345678")
    assert [(kind, bytes(body)) for kind, body in messages(first + second)] == [(18, b"body"), (20, b"12345678")]
    assert struct.unpack_from("=IHHII", first) == (20, 18, 0x301, 1, 0)
    for size in range(1, len(first + second)):
        if size != len(first):
            with pytest.raises(BadMessage):
                list(messages((first + second)[:size]))


def test_errors() -> None:
    [(kind, body)] = messages(request(NLMSG_ERROR, struct.pack("=i", -19) + bytes(16)))
    assert (kind, error_code(body)) == (NLMSG_ERROR, 19)
    for size in range(4):
        with pytest.raises(BadMessage, match="cut short"):
            error_code(memoryview(bytes(size)))
