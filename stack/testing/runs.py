"""Runs of segments as Linux hands them over (`stack.wire.run`): a virtio-net header, and the frame with a partial checksum."""

from __future__ import annotations

import struct

from stack.wire import virtio_net
from stack.wire.checksum import checksum, pseudo_sum
from stack.wire.virtio_net import VirtioNet

MACS = bytes((2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 0))
ADDRESSES = bytes((10, 9, 0, 1, 10, 9, 0, 2))


def tcp_run(data: bytes, size: int, macs: bytes = MACS, addresses: bytes = ADDRESSES) -> tuple[VirtioNet, bytes]:
    """TCP over IPv4. *macs*: destination and source; *addresses*: source and destination; *size*: of a segment's data."""
    length = 20 + len(data)
    tcp = struct.pack("!HHIIHHHH", 1000, 2000, 1, 2, 0x5018, 1024, pseudo_sum(addresses, 6, length), 0)
    header = VirtioNet(virtio_net.NEEDS_CSUM, virtio_net.GSO_TCPV4, 54, size, 34, 16)
    return header, macs + b"\x08\0" + _ipv4(6, length, addresses) + tcp + data


def udp_run(data: bytes, size: int, macs: bytes = MACS, addresses: bytes = ADDRESSES) -> tuple[VirtioNet, bytes]:
    """UDP over IPv4, likewise."""
    length = 8 + len(data)
    udp = struct.pack("!HHHH", 1000, 2000, length & 0xFFFF, pseudo_sum(addresses, 17, length))
    header = VirtioNet(virtio_net.NEEDS_CSUM, virtio_net.GSO_UDP_L4, 42, size, 34, 6)
    return header, macs + b"\x08\0" + _ipv4(17, length, addresses) + udp + data


def _ipv4(protocol: int, length: int, addresses: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length & 0xFFFF, 7, 0x4000, 64, protocol, 0) + addresses
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
