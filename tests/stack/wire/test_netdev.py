"""The netlink family `netdev`: messages as the kernel sends them, damaged ones, and this kernel's own."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from resmgr.errors import BadMessage
from stack.testing.namespace import Veth
from stack.wire.netdev import (
    GROUP_DEVICES,
    NETLINK_GENERIC,
    Device,
    Family,
    XdpFeature,
    get_device,
    get_family,
    parse_device,
    parse_family,
)
from stack.wire.netlink import attribute


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


FAMILY = message(
    0x10,
    struct.pack("=BBH", 1, 2, 0)
    + attribute(2, b"netdev\0")
    + attribute(1, struct.pack("=H", 0x25))
    + attribute(7, attribute(1, attribute(1, b"mgmt\0") + attribute(2, struct.pack("=I", 9)))),
)
DEVICE = message(0x25, struct.pack("=BBH", 1, 1, 0) + attribute(1, struct.pack("=I", 7)) + attribute(3, struct.pack("=Q", 0x27)))


def test_values() -> None:
    assert parse_family(FAMILY) == Family(0x25, {"mgmt": 9})
    device = parse_device(DEVICE)
    assert device == Device(7, XdpFeature(0x27))
    assert XdpFeature.NDO_XMIT in device.features
    assert XdpFeature.ZERO_COPY not in device.features


def test_a_rest_that_is_no_attribute_is_damage() -> None:
    body = struct.pack("=BBH", 1, 1, 0) + attribute(1, struct.pack("=I", 7))
    assert parse_device(message(0x25, body)) == Device(7, XdpFeature(0))
    for rest in (1, 2, 3):
        with pytest.raises(BadMessage, match="attribute"):
            parse_device(message(0x25, body + bytes(rest)))


@pytest.mark.parametrize(("data", "parse"), [(FAMILY, parse_family), (DEVICE, parse_device)])
def test_cut_anywhere(data: bytes, parse: object) -> None:
    assert callable(parse)
    for size in range(len(data)):
        cut = data[:size]
        with pytest.raises(BadMessage):
            parse(cut)
        if size >= 16:
            # The header agrees with what is there.
            shorter = struct.pack("=I", size) + cut[4:]
            try:
                parse(shorter)
            except BadMessage:
                pass


def test_refusals_are_system_errors() -> None:
    with pytest.raises(OSError) as refused:
        parse_device(message(2, struct.pack("=i", -errno.ENODEV)))
    assert refused.value.errno == errno.ENODEV
    with pytest.raises(BadMessage):
        parse_family(message(0x10, struct.pack("=BBH", 1, 2, 0)))
    with pytest.raises(BadMessage):
        parse_device(message(0x25, struct.pack("=BBH", 1, 1, 0)))


@pytest.mark.priv
def test_this_kernel(veth: Veth) -> None:
    with veth.a.entered():
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        index = socket.if_nametoindex("va")
    with sock:
        sock.send(get_family("netdev"))
        family = parse_family(sock.recv(65536))
        assert GROUP_DEVICES in family.groups
        sock.send(get_device(family.kind, index))
        device = parse_device(sock.recv(65536))
        assert device.index == index
        assert XdpFeature.BASIC | XdpFeature.REDIRECT in device.features
        sock.send(get_device(family.kind, 999999))
        with pytest.raises(OSError):
            parse_device(sock.recv(65536))
