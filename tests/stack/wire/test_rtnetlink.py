"""Link messages of rtnetlink: what is read out of them, and that cut ones raise only BadMessage."""

from __future__ import annotations

import socket
import struct

import pytest

from resmgr.errors import BadMessage
from resmgr.testing.formats import survives_changes
from stack.wire.netlink import HEADER, NLMSG_DONE, NLMSG_ERROR, attribute
from stack.wire.rtnetlink import (
    IFA_ADDRESS,
    IFA_FLAGS,
    IFA_LOCAL,
    IFADDR,
    IFINFO,
    IFLA_ADDRESS,
    IFLA_IFNAME,
    IFLA_MTU,
    IFLA_STATS64,
    RTM_DELLINK,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    Address,
    Link,
    LinkGone,
    Refused,
    dump,
    get_link,
    is_last,
    parse_addresses,
    parse_messages,
)

MAC = b"\2\0\0\0\0\1"


def message(kind: int, body: bytes) -> bytes:
    data = HEADER.pack(HEADER.size + len(body), kind, 0, 1, 0) + body
    return data + bytes(-len(data) % 4)


def link(flags: int = 0x10043, *, kind: int = RTM_NEWLINK, family: int = 0, mtu: int = 1500) -> bytes:
    attributes = (
        attribute(IFLA_IFNAME, b"eth0\0")
        + attribute(IFLA_ADDRESS, MAC)
        + attribute(IFLA_STATS64, struct.pack("=8Q", *range(1, 9)))
        + attribute(IFLA_MTU, struct.pack("=I", mtu))
        + attribute(99, b"x")
    )
    return message(kind, IFINFO.pack(family, 1, 7, flags, 0) + attributes)


def test_links() -> None:
    data = link() + link(0x1003) + link(0x42) + link(kind=RTM_DELLINK) + message(NLMSG_DONE, bytes(4))
    up, no_carrier, off, gone = parse_messages(data)
    assert up == Link(7, "eth0", 1, MAC, 1500, up=True, enabled=True, tx_dropped=8)
    assert isinstance(no_carrier, Link)
    assert isinstance(off, Link)
    assert (no_carrier.up, off.up, gone) == (False, False, LinkGone(7))


def test_an_interface_that_leaves_a_bridge_is_not_gone() -> None:
    assert list(parse_messages(link(kind=RTM_DELLINK, family=socket.AF_BRIDGE if hasattr(socket, "AF_BRIDGE") else 7))) == []


def test_refusals() -> None:
    assert list(parse_messages(message(NLMSG_ERROR, struct.pack("=i", -19) + bytes(16)))) == [Refused(19)]


def test_request() -> None:
    data = get_link("eth0")
    length, *_ = HEADER.unpack_from(data)
    assert length == len(data) == HEADER.size + IFINFO.size + 12
    assert data[HEADER.size + IFINFO.size :] == struct.pack("=HH", 9, IFLA_IFNAME) + b"eth0\0" + bytes(3)
    assert IFINFO.unpack_from(get_link(index=7), HEADER.size)[2] == 7


def test_truncation_raises_badmessage_only() -> None:
    whole = link()[:-8]  # without the last attribute, which nobody needs
    whole = struct.pack("=I", len(whole)) + whole[4:]
    assert list(parse_messages(whole))
    for length in range(1, len(whole)):
        with pytest.raises(BadMessage):
            list(parse_messages(whole[:length]))
        with pytest.raises(BadMessage):
            # A message whose own length was cut with it.
            list(parse_messages(struct.pack("=I", length) + whole[4:length]))


def test_statistics_that_are_cut_short_are_damage() -> None:
    short = attribute(IFLA_MTU, bytes(4)) + attribute(IFLA_STATS64, bytes(63))
    with pytest.raises(BadMessage, match="statistics"):
        list(parse_messages(message(RTM_NEWLINK, IFINFO.pack(0, 1, 7, 0, 0) + short)))


def test_damage_raises_badmessage_only() -> None:
    whole = link() + link(kind=RTM_DELLINK)
    survives_changes(lambda data: list(parse_messages(data)), whole, seed=1, times=2000)


@pytest.mark.host
def test_the_kernel_answers_the_request() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.send(get_link("lo"))
        (found,) = parse_messages(sock.recv(1 << 16))
        assert isinstance(found, Link)
        assert (found.name, found.kind) == ("lo", 772)
        sock.send(get_link("there-is-none"))
        assert list(parse_messages(sock.recv(1 << 16))) == [Refused(19)]


def address(family: int, attributes: bytes, flags: int = 0) -> bytes:
    return message(RTM_NEWADDR, IFADDR.pack(family, 24, flags, 0, 7) + attributes)


def test_addresses() -> None:
    peer, ours, six = bytes((10, 0, 0, 2)), bytes((10, 0, 0, 1)), bytes(15) + b"\1"
    data = (
        address(2, attribute(IFA_ADDRESS, peer) + attribute(IFA_LOCAL, ours))
        + address(10, attribute(IFA_ADDRESS, six), flags=0x80)
        + address(10, attribute(IFA_ADDRESS, six) + attribute(IFA_FLAGS, struct.pack("=I", 0x40)))
        + address(16, attribute(IFA_ADDRESS, six))
        + link()
    )
    assert list(parse_addresses(data)) == [Address(7, ours, True), Address(7, six, True), Address(7, six, False)]
    assert not is_last(data)
    assert is_last(data + message(NLMSG_DONE, bytes(4)))
    assert is_last(message(NLMSG_ERROR, struct.pack("=i", -1) + bytes(16)))


def test_cut_addresses() -> None:
    whole = address(2, attribute(IFA_LOCAL, bytes(4)))
    for size in range(1, len(whole)):
        with pytest.raises(BadMessage):
            list(parse_addresses(whole[:size]))
    for attributes in (b"", attribute(IFA_LOCAL, bytes(16)), attribute(IFA_LOCAL, bytes(4))[:-1]):
        with pytest.raises(BadMessage):
            list(parse_addresses(address(2, attributes)))
    with pytest.raises(BadMessage):
        list(parse_addresses(message(RTM_NEWADDR, bytes(7))))


def test_the_kernel_answers_dumps() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        for kind, parse in ((RTM_GETLINK, parse_messages), (RTM_GETADDR, parse_addresses)):
            sock.send(dump(kind))
            found: list[object] = []
            last = False
            while not last:
                data = sock.recv(1 << 16)
                found += parse(data)
                last = is_last(data)
            assert found or kind == RTM_GETADDR
