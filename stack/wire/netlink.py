"""Messages and attributes of netlink(7), which rtnetlink and generic netlink fill.

    message:    0 length, 4 type, 6 flags, 8 sequence, 12 port; then the body, padded to 4 bytes
    attribute:  0 length, 2 type, data, padded to 4

Numbers are the host's byte order. The kernel wrote the bytes; they are checked all the same, and only BadMessage leaves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 1
NLM_F_ACK = 4
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300
_TYPE_MASK = 0x3FFF
"""Without the flags for nested and for network byte order."""


def request(kind: int, body: bytes, flags: int = 0, sequence: int = 1) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, sequence, 0) + body


def attribute(kind: int, data: bytes) -> bytes:
    size = ATTRIBUTE.size + len(data)
    return ATTRIBUTE.pack(size, kind) + data + bytes(-size % 4)


def messages(data: Buffer) -> Iterator[tuple[int, memoryview]]:
    """Type and body of each message of a datagram."""
    view = memoryview(data)
    offset = 0
    while offset < len(view):
        try:
            length, kind, _, _, _ = HEADER.unpack_from(view, offset)
        except struct.error:
            raise BadMessage("netlink header cut short") from None
        if length < HEADER.size or offset + length > len(view):
            raise BadMessage("netlink message has a wrong length")
        yield kind, view[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def error_code(body: memoryview) -> int:
    """The errno that the body of an NLMSG_ERROR tells; 0 for an acknowledgement."""
    if len(body) < 4:
        raise BadMessage("netlink error cut short")
    return -int(struct.unpack_from("=i", body)[0])


def attributes(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Kind and value of each. BadMessage when the last is cut short, or a length is wrong."""
    offset = 0
    while offset < len(view):
        try:
            size, kind = ATTRIBUTE.unpack_from(view, offset)
        except struct.error:
            raise BadMessage("netlink attribute cut short") from None
        if size < ATTRIBUTE.size or offset + size > len(view):
            raise BadMessage("netlink attribute has a wrong length")
        yield kind & _TYPE_MASK, view[offset + ATTRIBUTE.size : offset + size]
        offset += (size + 3) & ~3
