"""Which flow a frame belongs to, as a number. Frames of one flow take one link of an aggregate, and so stay in order.

Both Ethernet addresses, for IP both addresses besides, for TCP and UDP (and what looks like them: SCTP, DCCP, UDP-Lite) both ports. A
fragment counts by its addresses alone, since only the first of its datagram has the ports. Tags are skipped, not looked at.
"""

from __future__ import annotations

from zlib import crc32

from stack.frame import BadFrame, Frame
from stack.wire.ethernet import ETHERTYPE_IPV4, ETHERTYPE_IPV6, type_and_offset

_WITH_PORTS = frozenset((6, 17, 33, 132, 136))
_FRAGMENT = 0x3FFF
"""More fragments, and the offset."""
_IPV4_MIN, _IPV6_SIZE = 20, 40


def flow_hash(frame: Frame) -> int:
    """32 bits. A frame that is cut short is of the flow of what it has."""
    key = frame[:12]
    try:
        kind, payload = type_and_offset(frame)
        if kind == ETHERTYPE_IPV4:
            return crc32(_ipv4(frame, payload), crc32(key))
        if kind == ETHERTYPE_IPV6:
            return crc32(_ipv6(frame, payload), crc32(key))
    except BadFrame:
        pass
    return crc32(key)


def _ipv4(frame: Frame, at: int) -> bytes:
    if len(frame) < at + _IPV4_MIN:
        return b""
    ports = at + (frame[at] & 0xF) * 4
    addresses = bytes(frame[at + 12 : at + 20])
    if frame[at + 9] in _WITH_PORTS and not (frame[at + 6] << 8 | frame[at + 7]) & _FRAGMENT:
        return addresses + bytes(frame[ports : ports + 4])
    return addresses


def _ipv6(frame: Frame, at: int) -> bytes:
    if len(frame) < at + _IPV6_SIZE:
        return b""
    addresses = bytes(frame[at + 8 : at + 40])
    if frame[at + 6] in _WITH_PORTS:
        return addresses + bytes(frame[at + _IPV6_SIZE : at + _IPV6_SIZE + 4])
    return addresses
