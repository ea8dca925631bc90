"""Routed packets as worker threads see them: which flow a frame is of, and what it is on its next link. As `routedprogram`, in Python."""

from __future__ import annotations

import struct

from stack.l2.forward.carrier import FlowKey
from stack.wire.ethernet import ETHERTYPE_IPV4, ETHERTYPE_IPV6, HEADER_SIZE
from stack.wire.ip import EXTENSION_HEADERS

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!B3xHBB16s16s")
_CHECKSUM = struct.Struct("!H")
_IPV4_TYPE, _IPV6_TYPE = ETHERTYPE_IPV4.to_bytes(2, "big"), ETHERTYPE_IPV6.to_bytes(2, "big")


def flow_of(memory: memoryview, begin: int, length: int) -> FlowKey | None:
    """Of the frame at *begin*, if it is a whole packet that may be passed on without the IP layer; None for others."""
    place, end = begin + HEADER_SIZE, begin + length
    kind = memory[begin + 12 : place]
    if kind == _IPV4_TYPE and place + _IPV4.size <= end:
        first, _, size, _, fragment, ttl, _, _, source, destination = _IPV4.unpack_from(memory, place)
        if first != 0x45 or fragment & 0x3FFF or ttl < 2 or not _IPV4.size <= size <= end - place:
            return None
        if int.from_bytes(memory[place : place + _IPV4.size], "big") % 0xFFFF:
            return None
        return source, destination
    if kind == _IPV6_TYPE and place + _IPV6.size <= end:
        first, size, following, hops, source, destination = _IPV6.unpack_from(memory, place)
        if first >> 4 != 6 or following in EXTENSION_HEADERS or hops < 2 or size > end - place - _IPV6.size:
            return None
        return source, destination
    return None


def pass_on(memory: memoryview, begin: int, macs: bytes) -> None:
    """Make of the frame at *begin*, which `flow_of` has seen, that of the next link. The checksum as RFC 1624 has it."""
    memory[begin : begin + 12] = macs
    if memory[begin + 12] == _IPV4_TYPE[0]:
        place = begin + HEADER_SIZE + 10
        (check,) = _CHECKSUM.unpack_from(memory, place)
        check += 0x0100
        _CHECKSUM.pack_into(memory, place, check + (check >= 0xFFFF) & 0xFFFF)
        memory[begin + HEADER_SIZE + 8] -= 1
    else:
        memory[begin + HEADER_SIZE + 7] -= 1
