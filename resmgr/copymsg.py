"""Messages of copies between two other nodes: OFFER, FETCH, TAKE. docs/protocol/copies.md.

Parsers raise BadMessage for whatever does not parse, and nothing else.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.iomsg import REQUEST, Io

TICKET = 32
"""Bytes of a ticket."""
NAME_MAX = 63
"""Bytes of a node's name."""
LENGTH_MAX = 32 << 20
"""Bytes of one OFFER and FETCH; more is cut."""
TAKE_MAX = 1 << 20
"""Bytes of one TAKE."""
_OFFSET_MAX = (1 << 63) - 1
_OFFER = struct.Struct("!QQ")
_FETCH = struct.Struct("!QQQ32s")
_TAKE = struct.Struct("!32sQI")
_HEAD = REQUEST.size


class Fetch(NamedTuple):
    """`start` in the source, `to` in the destination."""

    start: int
    to: int
    length: int
    ticket: bytes
    node: str


class Take(NamedTuple):
    ticket: bytes
    offset: int
    length: int


def pack_offer(handle: int, start: int, length: int, node: str) -> bytes:
    return REQUEST.pack(Io.OFFER, 0, 0, handle) + _OFFER.pack(start, length) + node.encode()


def parse_offer(data: Buffer) -> tuple[int, int, str]:
    """offset, length (at most LENGTH_MAX), name of the node that may take."""
    try:
        start, length = _OFFER.unpack_from(data, _HEAD)
    except struct.error:
        raise BadMessage("offer cut short") from None
    return start, _cut(length, start), _name(data, _HEAD + _OFFER.size)


def pack_fetch(handle: int, fetch: Fetch) -> bytes:
    return REQUEST.pack(Io.FETCH, 0, 0, handle) + _FETCH.pack(*fetch[:4]) + fetch.node.encode()


def parse_fetch(data: Buffer) -> Fetch:
    try:
        start, to, length, ticket = _FETCH.unpack_from(data, _HEAD)
    except struct.error:
        raise BadMessage("fetch cut short") from None
    return Fetch(start, to, _cut(length, start, to), ticket, _name(data, _HEAD + _FETCH.size))


def pack_take(take: Take) -> bytes:
    return REQUEST.pack(Io.TAKE, 0, 0, 0) + _TAKE.pack(*take)


def parse_take(data: Buffer) -> Take:
    try:
        kind, subtype, flags, handle = REQUEST.unpack_from(data)
        ticket, offset, length = _TAKE.unpack_from(data, _HEAD)
    except struct.error:
        raise BadMessage("take cut short") from None
    if len(data) != _HEAD + _TAKE.size or (kind, subtype, flags, handle) != (Io.TAKE, 0, 0, 0):
        raise BadMessage("something else than a take")
    if not 0 < length <= TAKE_MAX or offset > _OFFSET_MAX - length:
        raise BadMessage("take of an impossible range")
    return Take(ticket, offset, length)


def _cut(length: int, *starts: int) -> int:
    length = min(length, LENGTH_MAX)
    if not length or any(start > _OFFSET_MAX - length for start in starts):
        raise BadMessage("copy of an impossible range")
    return length


def _name(data: Buffer, offset: int) -> str:
    name = bytes(memoryview(data)[offset : offset + NAME_MAX + 1])
    if not 0 < len(name) <= NAME_MAX:
        raise BadMessage("a node's name of an impossible length")
    try:
        text = name.decode("ascii")
    except UnicodeDecodeError:
        raise BadMessage("a node's name is no text") from None
    if not text.isprintable():
        raise BadMessage("a node's name is no text")
    return text
