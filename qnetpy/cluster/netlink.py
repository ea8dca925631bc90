"""Network interfaces by rtnetlink: veth pairs, bridges, addresses. rtnetlink(7), and <linux/if_link.h> for the attribute numbers.

Only what the harness needs, since the usual library takes 0.3 s and 33 MB to import and has one event loop per socket, which a process
that forks and changes namespaces cannot use (docs/decisions/dependencies.md). It shares nothing with `stack.wire.rtnetlink`, which needs
more than the standard library. A socket stays in the network namespace in which it was made, wherever its owner goes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence

NETLINK_ROUTE = 0
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11

NLMSG_ERROR = 2
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_ACK_TLVS = 0x200

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_NEWADDR = 20

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_MASTER = 10
IFLA_LINKINFO = 18
IFLA_NET_NS_FD = 28
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_BR_AGEING_TIME = 4
IFLA_BR_MCAST_SNOOPING = 23
VETH_INFO_PEER = 1
IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_BROADCAST = 4
NLMSGERR_ATTR_MSG = 1

IFF_UP = 0x1
HEADER = struct.Struct("=IHHII")
IFINFO = struct.Struct("=BxHiII")
IFADDR = struct.Struct("=BBBBi")

SIOCETHTOOL = 0x8946
OFFLOADS = {"receive checksum": 0x15, "checksum": 0x17, "scatter-gather": 0x19, "TSO": 0x1F, "UFO": 0x22, "GSO": 0x24, "GRO": 0x2C}
"""ETHTOOL_S* commands of <linux/ethtool.h> that take one number, on or off."""

Attribute = tuple[int, "bytes | str | int | Sequence[Attribute]"]


def pack(attributes: Sequence[Attribute]) -> bytes:
    """Attributes as the kernel wants them: a str ends in NUL, an int is 32 bits, a sequence is nested."""
    out = bytearray()
    for kind, value in attributes:
        if isinstance(value, int):
            data = struct.pack("=I", value)
        elif isinstance(value, str):
            data = value.encode() + b"\0"
        elif isinstance(value, bytes):
            data = value
        else:
            data = pack(value)
        out += struct.pack("=HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)
    return bytes(out)


class Netlink:
    """One rtnetlink socket in the network namespace of its making."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._number = 0

    def close(self) -> None:
        self._socket.close()

    def _request(self, kind: int, flags: int, payload: bytes, what: str) -> None:
        """Send one request and wait for its acknowledgement; OSError with the kernel's own explanation when there is one."""
        self._number += 1
        self._socket.send(HEADER.pack(HEADER.size + len(payload), kind, flags | NLM_F_REQUEST | NLM_F_ACK, self._number, 0) + payload)
        while True:
            data = self._socket.recv(65536)
            _, answer, answer_flags, number, _ = HEADER.unpack_from(data)
            if answer == NLMSG_ERROR and number == self._number:
                break
        code = -struct.unpack_from("=i", data, HEADER.size)[0]
        if code:
            why = os.strerror(code).lower()
            at = HEADER.size + 4 + HEADER.size
            while answer_flags & NLM_F_ACK_TLVS and at + 4 <= len(data):
                length, attribute = struct.unpack_from("=HH", data, at)
                if attribute == NLMSGERR_ATTR_MSG:
                    why += f" ({data[at + 4 : at + length].rstrip(bytes(1)).decode(errors='replace')})"
                if length < 4:
                    break
                at += length + (-length % 4)
            if code == errno.EOPNOTSUPP:
                why += "; the kernel has no such device (module not loaded or not built)"
            raise OSError(code, f"{what}: {why}")

    def add_bridge(self, name: str, mtu: int, learning: bool = True) -> None:
        """A bridge that floods all multicast, without spanning tree; up. Without *learning* it floods everything."""
        data: list[Attribute] = [(IFLA_BR_MCAST_SNOOPING, b"\0")]
        if not learning:
            data.append((IFLA_BR_AGEING_TIME, 0))
        info: Attribute = (IFLA_LINKINFO, [(IFLA_INFO_KIND, "bridge"), (IFLA_INFO_DATA, data)])
        payload = IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + pack([(IFLA_IFNAME, name), (IFLA_MTU, mtu), info])
        self._request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"bridge {name}")

    def add_veth(self, name: str, mac: bytes, peer: str, peer_mac: bytes, peer_namespace: int, mtu: int) -> None:
        """A pair of connected interfaces: *name* here, *peer* in the network namespace behind *peer_namespace*; both down."""
        inner: list[Attribute] = [(IFLA_IFNAME, peer), (IFLA_MTU, mtu), (IFLA_ADDRESS, peer_mac), (IFLA_NET_NS_FD, peer_namespace)]
        data: Attribute = (VETH_INFO_PEER, IFINFO.pack(0, 0, 0, 0, 0) + pack(inner))
        info: Attribute = (IFLA_LINKINFO, [(IFLA_INFO_KIND, "veth"), (IFLA_INFO_DATA, [data])])
        payload = IFINFO.pack(0, 0, 0, 0, 0) + pack([(IFLA_IFNAME, name), (IFLA_MTU, mtu), (IFLA_ADDRESS, mac), info])
        self._request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"veth {name}")

    def set_up(self, name: str, up: bool = True) -> None:
        payload = IFINFO.pack(0, 0, 0, IFF_UP if up else 0, IFF_UP) + pack([(IFLA_IFNAME, name)])
        self._request(RTM_NEWLINK, 0, payload, f"interface {name} {'up' if up else 'down'}")

    def set_mtu(self, name: str, mtu: int) -> None:
        self._request(RTM_NEWLINK, 0, IFINFO.pack(0, 0, 0, 0, 0) + pack([(IFLA_IFNAME, name), (IFLA_MTU, mtu)]), f"MTU of {name}")

    def join(self, name: str, bridge: int) -> None:
        """Make *name* a port of the bridge with interface index *bridge*."""
        self._request(
            RTM_NEWLINK, 0, IFINFO.pack(0, 0, 0, 0, 0) + pack([(IFLA_IFNAME, name), (IFLA_MASTER, bridge)]), f"{name} into bridge"
        )

    def move(self, name: str, namespace: int, new_name: str) -> None:
        """Give an interface to the network namespace behind *namespace*, under another name."""
        attributes: list[Attribute] = [(IFLA_NET_NS_FD, namespace), (IFLA_IFNAME, new_name)]
        payload = IFINFO.pack(0, 0, socket.if_nametoindex(name), 0, 0) + pack(attributes)
        self._request(RTM_NEWLINK, 0, payload, f"{name} into a namespace")

    def delete(self, name: str) -> None:
        self._request(RTM_DELLINK, 0, IFINFO.pack(0, 0, 0, 0, 0) + pack([(IFLA_IFNAME, name)]), f"delete {name}")

    def add_address(self, index: int, address: str, prefix: int) -> None:
        """An IPv4 address with its broadcast address on the interface with *index* (of this socket's namespace)."""
        number = socket.inet_aton(address)
        broadcast = (int.from_bytes(number, "big") | ((1 << (32 - prefix)) - 1)).to_bytes(4, "big")
        payload = IFADDR.pack(socket.AF_INET, prefix, 0, 0, index) + pack(
            [(IFA_LOCAL, number), (IFA_ADDRESS, number), (IFA_BROADCAST, broadcast)]
        )
        self._request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, payload, f"address {address}/{prefix}")


def offloads_off(interface: str) -> None:
    """Have frames cross *interface* (of the current namespace) one by one and with their checksums, as on a wire. ethtool -K."""
    import array

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        for command in OFFLOADS.values():
            value = array.array("B", struct.pack("=II", command, 0))
            request = bytearray(struct.pack("16sP", interface.encode(), value.buffer_info()[0]).ljust(40, b"\0"))
            try:
                fcntl.ioctl(handle, SIOCETHTOOL, request)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
