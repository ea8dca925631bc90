"""The little of rtnetlink(7) that tells what a network interface is doing: RTM_GETLINK, RTM_NEWLINK, RTM_DELLINK.

    message:    0 length, 4 type, 6 flags, 8 sequence, 12 port; then the body, padded to 4 bytes
    ifinfomsg:  0 family, 2 device type, 4 index, 8 flags, 12 change; then attributes: 0 length, 2 type, data, padded to 4

Numbers are the host's byte order. The kernel wrote the bytes; they are checked all the same, and only BadMessage leaves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import attrs

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage

HEADER = struct.Struct("=IHHII")
IFINFO = struct.Struct("=BxHiII")
ATTRIBUTE = struct.Struct("=HH")

NLMSG_ERROR = 2
NLMSG_DONE = 3
RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
NLM_F_REQUEST = 1
RTMGRP_LINK = 1

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
_TYPE_MASK = 0x3FFF
"""Without the flags for nested and for network byte order."""

AF_UNSPEC = 0
IFF_UP = 0x1
IFF_RUNNING = 0x40


@attrs.frozen
class Link:
    """An interface as the kernel reports it. `up`: switched on and with carrier. `kind` is the device type (ARPHRD_*)."""

    index: int
    name: str
    kind: int
    mac: bytes
    mtu: int
    up: bool


@attrs.frozen
class LinkGone:
    """The interface was deleted or left this namespace."""

    index: int


@attrs.frozen
class Refused:
    """The kernel answered a request with an error; `code` is 0 for a plain acknowledgement."""

    code: int


def get_link(name: str | None = None, index: int = 0, sequence: int = 1) -> bytes:
    """A request for one interface, by name or by index."""
    body = IFINFO.pack(AF_UNSPEC, 0, index, 0, 0)
    if name is not None:
        body += attribute(IFLA_IFNAME, name.encode("utf-8", "surrogateescape") + b"\0")
    return HEADER.pack(HEADER.size + len(body), RTM_GETLINK, NLM_F_REQUEST, sequence, 0) + body


def attribute(kind: int, data: bytes) -> bytes:
    size = ATTRIBUTE.size + len(data)
    return ATTRIBUTE.pack(size, kind) + data + bytes(-size % 4)


def parse_messages(data: Buffer) -> Iterator[Link | LinkGone | Refused]:
    """What one datagram says about links; messages of other kinds are passed over."""
    view = memoryview(data)
    offset = 0
    while offset < len(view):
        try:
            length, kind, _, _, _ = HEADER.unpack_from(view, offset)
        except struct.error:
            raise BadMessage("netlink header cut short") from None
        if length < HEADER.size or offset + length > len(view):
            raise BadMessage("netlink message has a wrong length")
        body = view[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            link = _link(body, kind == RTM_DELLINK)
            if link is not None:
                yield link
        elif kind == NLMSG_ERROR:
            if len(body) < 4:
                raise BadMessage("netlink error cut short")
            yield Refused(-int(struct.unpack_from("=i", body)[0]))


def _link(body: memoryview, gone: bool) -> Link | LinkGone | None:
    try:
        family, device, index, flags, _ = IFINFO.unpack_from(body)
    except struct.error:
        raise BadMessage("ifinfomsg cut short") from None
    if family != AF_UNSPEC:
        return None  # of the bridge family: an interface that leaves a bridge is not gone
    if gone:
        return LinkGone(index)
    found = dict(_attributes(body[IFINFO.size :]))
    mtu = found.get(IFLA_MTU, b"")
    if len(mtu) != 4:
        raise BadMessage("link without an MTU")
    name = bytes(found.get(IFLA_IFNAME, b"")).rstrip(b"\0").decode("utf-8", "surrogateescape")
    up = flags & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING
    return Link(index, name, device, bytes(found.get(IFLA_ADDRESS, b"")), int(struct.unpack("=I", mtu)[0]), up)


def _attributes(view: memoryview) -> Iterator[tuple[int, memoryview]]:
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
