"""The little of rtnetlink(7) that tells what network interfaces are doing, and which IP addresses they have.

    ifinfomsg:  0 family, 2 device type, 4 index, 8 flags, 12 change; then attributes
    ifaddrmsg:  0 family, 1 prefix length, 2 flags, 3 scope, 4 index; then attributes

In messages of netlink (`stack.wire.netlink`). Numbers are the host's byte order. The kernel wrote the bytes; they are checked all the same,
and only BadMessage leaves.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator

import attrs

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from stack.wire.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLMSG_DONE,
    NLMSG_ERROR,
    attribute,
    attributes,
    error_code,
    messages,
    request,
)

IFINFO = struct.Struct("=BxHiII")
IFADDR = struct.Struct("=BBBBI")

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_NEWADDR = 20
RTM_GETADDR = 22
RTMGRP_LINK = 1
RTMGRP_IPV4_IFADDR = 0x10
RTMGRP_IPV6_IFADDR = 0x100

IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_FLAGS = 8
IFA_F_UNUSABLE = 0x08 | 0x40
"""Duplicate address detection failed, or is not through: the address cannot be bound."""

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_MASTER = 10
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_STATS64 = 23
IFLA_NET_NS_FD = 28
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
VETH_INFO_PEER = 1
_TX_DROPPED_AT = 56
"""In struct rtnl_link_stats64."""

AF_UNSPEC = 0
AF_INET, AF_INET6 = 2, 10
IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_RUNNING = 0x40
IFF_MULTICAST = 0x1000
ARPHRD_ETHER = 1


@attrs.frozen
class Link:
    """An interface as the kernel reports it. `up`: switched on and with carrier; `enabled`: switched on. `kind` is the device type
    (ARPHRD_*), `master` the index of the bridge or bond that it is part of, 0 for none; `alias` a text that somebody gave it;
    `tx_dropped` how many frames were dropped instead of being sent, in all."""

    index: int
    name: str
    kind: int
    mac: bytes
    mtu: int
    up: bool
    loopback: bool = False
    enabled: bool = False
    multicast: bool = False
    master: int = 0
    alias: str = ""
    tx_dropped: int = 0


@attrs.frozen
class End:
    """One end of a veth pair to be made. `namespace`: descriptor of the network namespace where it goes, unless it stays."""

    name: str
    mac: bytes | None = None
    namespace: int | None = None


@attrs.frozen
class Address:
    """An IP address of this machine: 4 or 16 bytes. `usable`: it can be bound."""

    index: int
    address: bytes
    usable: bool


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
    return request(RTM_GETLINK, body, 0, sequence)


def dump(kind: int, sequence: int = 1) -> bytes:
    """A request for all of a kind: RTM_GETLINK or RTM_GETADDR. The answer is datagrams, the last of which `is_last`."""
    body = IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) if kind == RTM_GETLINK else IFADDR.pack(AF_UNSPEC, 0, 0, 0, 0)
    return request(kind, body, NLM_F_DUMP, sequence)


def new_veth(near: End, far: End, mtu: int, sequence: int = 1) -> bytes:
    """A request for a pair of interfaces that are one cable, both switched off. The answer is `Refused`, 0 when all is well."""
    head = IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0)
    data = attribute(VETH_INFO_PEER, head + _end(far, mtu))
    info = attribute(IFLA_INFO_KIND, b"veth\0") + attribute(IFLA_INFO_DATA, data)
    body = head + _end(near, mtu) + attribute(IFLA_LINKINFO, info)
    return request(RTM_NEWLINK, body, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sequence)


def _end(end: End, mtu: int) -> bytes:
    found = attribute(IFLA_IFNAME, end.name.encode("utf-8", "surrogateescape") + b"\0") + attribute(IFLA_MTU, struct.pack("=I", mtu))
    if end.mac is not None:
        found += attribute(IFLA_ADDRESS, end.mac)
    if end.namespace is not None:
        found += attribute(IFLA_NET_NS_FD, struct.pack("=I", end.namespace))
    return found


def switch_on(name: str, alias: str = "", sequence: int = 1) -> bytes:
    """A request to switch an interface on, and to give it an alias. The answer is `Refused`, 0 when all is well."""
    body = IFINFO.pack(AF_UNSPEC, 0, 0, IFF_UP, IFF_UP) + attribute(IFLA_IFNAME, name.encode("utf-8", "surrogateescape") + b"\0")
    if alias:
        body += attribute(IFLA_IFALIAS, alias.encode())
    return request(RTM_NEWLINK, body, NLM_F_ACK, sequence)


def delete_link(index: int, sequence: int = 1) -> bytes:
    """A request to delete an interface. The answer is `Refused`, 0 when all is well."""
    body = IFINFO.pack(AF_UNSPEC, 0, index, 0, 0)
    return request(RTM_DELLINK, body, NLM_F_ACK, sequence)


def parse_messages(data: Buffer) -> Iterator[Link | LinkGone | Refused]:
    """What one datagram says about links; messages of other kinds are passed over."""
    for kind, body in messages(data):
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            link = _link(body, kind == RTM_DELLINK)
            if link is not None:
                yield link
        elif kind == NLMSG_ERROR:
            yield Refused(error_code(body))


def parse_addresses(data: Buffer) -> Iterator[Address]:
    """What one datagram says of addresses that are there; messages of other kinds are passed over."""
    for kind, body in messages(data):
        if kind != RTM_NEWADDR:
            continue
        try:
            family, _, flags, _, index = IFADDR.unpack_from(body)
        except struct.error:
            raise BadMessage("ifaddrmsg cut short") from None
        found = dict(attributes(body[IFADDR.size :]))
        # IFA_ADDRESS is the other end's on a point-to-point link of IPv4.
        address = bytes(found.get(IFA_LOCAL, found.get(IFA_ADDRESS, b"")))
        if family not in (AF_INET, AF_INET6):
            continue
        if len(address) != (4 if family == AF_INET else 16):
            raise BadMessage("address of a wrong length")
        wide = found.get(IFA_FLAGS, b"")
        if len(wide) == 4:
            flags = int(struct.unpack("=I", wide)[0])
        yield Address(index, address, not flags & IFA_F_UNUSABLE)


def is_last(data: Buffer) -> bool:
    """Whether a dump ends in this datagram, well or with an error."""
    return any(kind in (NLMSG_DONE, NLMSG_ERROR) for kind, _ in messages(data))


def _link(body: memoryview, gone: bool) -> Link | LinkGone | None:
    try:
        family, device, index, flags, _ = IFINFO.unpack_from(body)
    except struct.error:
        raise BadMessage("ifinfomsg cut short") from None
    if family != AF_UNSPEC:
        return None  # of the bridge family: an interface that leaves a bridge is not gone
    if gone:
        return LinkGone(index)
    found = dict(attributes(body[IFINFO.size :]))
    mtu = found.get(IFLA_MTU, b"")
    if len(mtu) != 4:
        raise BadMessage("link without an MTU")
    master = found.get(IFLA_MASTER, bytes(4))
    if len(master) != 4:
        raise BadMessage("link with a master of a wrong length")
    statistics = found.get(IFLA_STATS64, bytes(_TX_DROPPED_AT + 8))
    if len(statistics) < _TX_DROPPED_AT + 8:
        raise BadMessage("link with statistics cut short")
    return Link(
        index,
        bytes(found.get(IFLA_IFNAME, b"")).rstrip(b"\0").decode("utf-8", "surrogateescape"),
        device,
        bytes(found.get(IFLA_ADDRESS, b"")),
        int(struct.unpack("=I", mtu)[0]),
        up=flags & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING,
        loopback=bool(flags & IFF_LOOPBACK),
        enabled=bool(flags & IFF_UP),
        multicast=bool(flags & IFF_MULTICAST),
        master=int(struct.unpack("=I", master)[0]),
        alias=bytes(found.get(IFLA_IFALIAS, b"")).rstrip(b"\0").decode("utf-8", "replace"),
        tx_dropped=int.from_bytes(statistics[_TX_DROPPED_AT : _TX_DROPPED_AT + 8], sys.byteorder),
    )
