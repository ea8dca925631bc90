"""Generic netlink (netlink(7), <linux/genetlink.h>) and its family `netdev`: what XDP an interface can do.

    netlink header, 16 bytes | command | version | reserved:2 | attributes

Attributes and header are those of `stack.wire.netlink`. Hostile input cannot come from the kernel, but damaged input raises BadMessage.
"""

from __future__ import annotations

import enum
import struct
import sys

import attrs

from resmgr.errors import BadMessage
from stack.frame import Frame
from stack.wire.netlink import NLMSG_ERROR, attribute, attributes, error_code, messages, request

NETLINK_GENERIC = 16
NETLINK_ADD_MEMBERSHIP = 1
SOL_NETLINK = 270
CTRL = 0x10
"""The message type of the controller, which knows the families by name."""
_CTRL_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME, _CTRL_ATTR_MCAST_GROUPS = 1, 2, 7
_GROUP_NAME, _GROUP_ID = 1, 2
_DEV_GET = 1
_DEV_IFINDEX, _DEV_XDP_FEATURES = 1, 3
GROUP_DEVICES = "mgmt"
"""The multicast group that tells changes."""
_GENERIC = struct.Struct("=BBH")


class XdpFeature(enum.IntFlag):
    """NETDEV_XDP_ACT_*."""

    BASIC = 1
    REDIRECT = 2
    NDO_XMIT = 4
    """Accepts bare frames that a program on another interface redirects to it."""
    ZERO_COPY = 8


@attrs.frozen
class Family:
    """A family: its message type, and its multicast groups by name."""

    kind: int
    groups: dict[str, int]


@attrs.frozen
class Device:
    """What an interface can do."""

    index: int
    features: XdpFeature


def get_family(name: str) -> bytes:
    return _request(CTRL, _CTRL_GETFAMILY, attribute(_CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0"))


def get_device(family: int, index: int) -> bytes:
    return _request(family, _DEV_GET, attribute(_DEV_IFINDEX, struct.pack("=I", index)))


def _request(kind: int, command: int, body: bytes) -> bytes:
    return request(kind, _GENERIC.pack(command, 1, 0) + body)


def parse_family(data: Frame) -> Family:
    """BadMessage when the datagram is no answer to `get_family`; OSError when the kernel has no such family."""
    found = 0
    groups: dict[str, int] = {}
    for kind, body in attributes(_body(data)):
        if kind == _CTRL_ATTR_FAMILY_ID:
            found = _number(body, 2)
        elif kind == _CTRL_ATTR_MCAST_GROUPS:
            for _, group in attributes(body):
                inner = dict(attributes(group))
                name = bytes(inner.get(_GROUP_NAME, b"")).rstrip(b"\0").decode(errors="replace")
                groups[name] = _number(inner.get(_GROUP_ID, b""), 4)
    if not found:
        raise BadMessage("an answer about a netlink family without its number")
    return Family(found, groups)


def parse_device(data: Frame) -> Device:
    """BadMessage when the datagram is no message about an interface; OSError when there is no such interface."""
    inner = dict(attributes(_body(data)))
    if _DEV_IFINDEX not in inner:
        raise BadMessage("a message about an interface without its number")
    features = _number(inner[_DEV_XDP_FEATURES], 8) if _DEV_XDP_FEATURES in inner else 0
    return Device(_number(inner[_DEV_IFINDEX], 4), XdpFeature(features))


def _body(data: Frame) -> memoryview:
    for kind, body in messages(data):
        if kind == NLMSG_ERROR:
            raise OSError(error_code(body), "the kernel has no answer")
        if len(body) < _GENERIC.size:
            raise BadMessage("generic netlink message cut short")
        return body[_GENERIC.size :]
    raise BadMessage("no netlink message")


def _number(body: Frame, size: int) -> int:
    if len(body) < size:
        raise BadMessage("netlink attribute cut short")
    return int.from_bytes(body[:size], sys.byteorder)
