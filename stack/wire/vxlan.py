"""VXLAN (RFC 7348): an Ethernet frame in a UDP datagram, behind a header that names the network.

    0 flags (0x08: there is a network identifier), 1 reserved, 4 network identifier (24 bits), 7 reserved; then the frame

Reserved bits are sent as zero and ignored, as the RFC asks.
"""

from __future__ import annotations

import struct

from stack.frame import BadFrame, Frame

SIZE = 8
PORT = 4789
VNI_MAX = (1 << 24) - 1
FLAG_VNI = 0x08
OVERHEAD_IPV4, OVERHEAD_IPV6 = 50, 70
"""Bytes that an outer packet has more than the frame's payload: IP, UDP, VXLAN and the inner Ethernet header."""
_HEADER = struct.Struct("!II")
_unpack = _HEADER.unpack_from


def pack(vni: int) -> bytes:
    return _HEADER.pack(FLAG_VNI << 24, vni << 8)


def parse(datagram: Frame) -> int:
    """The network identifier; the frame is what is behind SIZE bytes. BadFrame when it is cut or names no network."""
    if len(datagram) < SIZE:
        raise BadFrame("VXLAN header cut short")
    flags, network = _unpack(datagram)
    if not flags >> 24 & FLAG_VNI:
        raise BadFrame("VXLAN header without a network identifier")
    return int(network >> 8)
