"""Unfinished frames into finished ones: what a network card does that Linux hands work to, in software.

Linux leaves checksums partial and runs of segments together as long as it thinks that a card, or nobody, will look: between local
sockets, virtual machines and namespaces, and behind its own merging of what it received (GRO). On a wire, and to a module of the stack,
frames are whole:

    partial checksum    computed in place, in the caller's memory: no copy
    run of TCP or UDP   one frame for each `gso_size` bytes: lengths, IPv4 identification, sequence numbers, flags (FIN and PSH on the last,
                        CWR on the first) and checksums as RFC 9293 and Linux's own segmentation have them. The payload is copied once

What a header says is checked against the frame: BadFrame says what does not fit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import attrs

from stack.frame import BadFrame, Frame
from stack.wire import virtio_net
from stack.wire.checksum import folded, ones_sum, pseudo_sum
from stack.wire.ethernet import ETHERTYPE_IPV4, ETHERTYPE_IPV6, type_and_offset
from stack.wire.virtio_net import VirtioNet

SEGMENTS_MAX = 128
"""Of one run: 64 KiB in segments that fit into 576 bytes, the smallest MTU that IPv4 names, and what Linux allows a run of datagrams. Stops
a neighbour from having us make thousands of frames of a single one."""


class TooManySegments(BadFrame):
    """A run whose segments are too small for its length."""


IPV4_SIZE, IPV6_SIZE, TCP_SIZE, UDP_SIZE = 20, 40, 20, 8
TCP, UDP = 6, 17
TCP_CHECK, UDP_CHECK = 16, 6
"""Places of the checksums."""
FIN, PSH, CWR = 0x01, 0x08, 0x80
_WORD = struct.Struct("!H")
_LONG = struct.Struct("!I")
_IPV4_CHANGES = struct.Struct("!HH")
"""Length and identification."""
_UDP_CHANGES = struct.Struct("!HH")
"""Length and checksum."""


def finished(header: VirtioNet, frame: memoryview) -> list[Frame]:
    """What *frame* is on a wire. A single frame is *frame* itself, changed in place: it must be writable. BadFrame."""
    if header.gso_type != virtio_net.GSO_NONE:
        return list(cut(frame, layout(header, frame)))
    if header.flags & virtio_net.NEEDS_CSUM:
        finish_checksum(frame, header.csum_start, header.csum_offset)
    return [frame]


def finish_checksum(frame: memoryview, start: int, offset: int) -> None:
    """Complete a partial checksum, in place. BadFrame when the places are not in the frame."""
    place = start + offset
    if place + 2 > len(frame):
        raise BadFrame("the checksum lies behind the frame's end")
    total = ones_sum(frame[start:])
    # All ones and not zero, which says in UDP that there is none; to everybody else both are the same.
    _WORD.pack_into(frame, place, 0xFFFF - total or 0xFFFF)


@attrs.frozen
class Layout:
    """Where the parts of a run lie: places of the IP header, the transport header and the data, and how much data a segment has."""

    version: int
    """The ethertype."""
    protocol: int
    network: int
    transport: int
    payload: int
    size: int

    @property
    def longest(self) -> int:
        """Bytes of the longest frame that the run becomes."""
        return self.payload + self.size


def layout(header: VirtioNet, frame: Frame) -> Layout:
    """What a header says of *frame*, which is a run, checked against it: a run that passes can be cut. BadFrame."""
    kind = header.gso_type & ~virtio_net.GSO_ECN
    version, network = type_and_offset(frame)
    transport, size = header.csum_start, header.gso_size
    if version not in (ETHERTYPE_IPV4, ETHERTYPE_IPV6) or size == 0:
        raise BadFrame("a run of segments that is not of IP, or without a size")
    if not header.flags & virtio_net.NEEDS_CSUM:
        # Merged from datagrams that had been looked at: nobody wrote where they begin.
        transport = network + ((frame[network] & 15) * 4 if version == ETHERTYPE_IPV4 and network < len(frame) else IPV6_SIZE)
    if kind in (virtio_net.GSO_TCPV4, virtio_net.GSO_TCPV6):
        protocol, least = TCP, TCP_SIZE
        if (kind == virtio_net.GSO_TCPV4) != (version == ETHERTYPE_IPV4):
            raise BadFrame("the run and its ethertype are of different IP versions")
    elif kind == virtio_net.GSO_UDP_L4:
        protocol, least = UDP, UDP_SIZE
    else:
        raise BadFrame(f"a run of kind {kind}, which cannot be taken apart")
    if transport + least > len(frame) or transport < network + (IPV4_SIZE if version == ETHERTYPE_IPV4 else IPV6_SIZE):
        raise BadFrame("no room for the headers of a run")
    if header.flags & virtio_net.NEEDS_CSUM and header.csum_offset != (TCP_CHECK if protocol == TCP else UDP_CHECK):
        raise BadFrame("the checksum of a run is not where its protocol has it")
    payload = transport + (frame[transport + 12] >> 4) * 4 if protocol == TCP else transport + UDP_SIZE
    if payload < transport + least or payload >= len(frame):
        raise BadFrame("a run without payload")
    if -((payload - len(frame)) // size) > SEGMENTS_MAX:
        raise TooManySegments("a run of too many segments")
    _check_ip(frame, version, network, transport, protocol)
    return Layout(version, protocol, network, transport, payload, size)


def cut(frame: memoryview, parts: Layout) -> Iterator[bytes]:
    """The segments of a run whose *parts* have been checked by `layout`."""
    make = _tcp_segments if parts.protocol == TCP else _udp_datagrams
    head = _Head(frame, parts.version, parts.network, parts.transport, parts.payload, parts.protocol)
    return make(frame, head, parts.payload, parts.size)


class _Head:
    """The headers of a run, made into those of one segment after another. What all have in common is summed once."""

    def __init__(self, frame: memoryview, version: int, network: int, transport: int, payload: int, protocol: int) -> None:
        self.bytes = head = bytearray(frame[:payload])
        self.transport = transport
        self._network = network
        self._four = version == ETHERTYPE_IPV4
        self._rest = payload - network
        self._identification = 0
        if self._four:
            end = network + (head[network] & 15) * 4
            (self._identification,) = _WORD.unpack_from(head, network + 4)
            _IPV4_CHANGES.pack_into(head, network + 2, 0, 0)
            _WORD.pack_into(head, network + 10, 0)
            self._sum = ones_sum(head[network:end])
        first, size = (network + 12, 8) if self._four else (network + 8, 32)
        self._pseudo = pseudo_sum(head[first : first + size], protocol, payload - transport)

    def begin(self) -> int:
        """The sum of the pseudo header and the transport header, which has zeroes where segments differ; without the data's length."""
        return ones_sum(self.bytes[self.transport :], self._pseudo)

    def next(self, size: int) -> None:
        """The IP header of the next segment, of *size* bytes of data."""
        head, network = self.bytes, self._network
        length = self._rest + size
        if not self._four:
            _WORD.pack_into(head, network + 4, length - IPV6_SIZE)
            return
        _IPV4_CHANGES.pack_into(head, network + 2, length, self._identification)
        _WORD.pack_into(head, network + 10, 0xFFFF - ((self._sum + length + self._identification) % 0xFFFF or 0xFFFF))
        self._identification = (self._identification + 1) & 0xFFFF


def _tcp_segments(frame: memoryview, head: _Head, payload: int, size: int) -> Iterator[bytes]:
    memory, transport, length = head.bytes, head.transport, len(frame)
    (sequence,) = _LONG.unpack_from(memory, transport + 4)
    flags = memory[transport + 13]
    _LONG.pack_into(memory, transport + 4, 0)
    memory[transport + 13] = 0
    _WORD.pack_into(memory, transport + 16, 0)
    begin = head.begin()
    number, word, set_next, read = _LONG.pack_into, _WORD.pack_into, head.next, int.from_bytes
    for start in range(payload, length, size):
        data = frame[start : start + size]
        count = len(data)
        now = flags
        if start > payload:
            now &= ~CWR
        if start + size < length:
            now &= ~(FIN | PSH)
        set_next(count)
        number(memory, transport + 4, sequence)
        memory[transport + 13] = now
        total = begin + (sequence >> 16) + (sequence & 0xFFFF) + now + count + (read(data, "big") << (count & 1) * 8)
        word(memory, transport + 16, 0xFFFF - folded(total))
        sequence = (sequence + count) & 0xFFFFFFFF
        yield b"".join((memory, data))


def _udp_datagrams(frame: memoryview, head: _Head, payload: int, size: int) -> Iterator[bytes]:
    memory, transport = head.bytes, head.transport
    _UDP_CHANGES.pack_into(memory, transport + 4, 0, 0)
    begin = head.begin()
    for start in range(payload, len(frame), size):
        data = frame[start : start + size]
        count = len(data)
        head.next(count)
        # The length stands in the UDP header and in the pseudo header, which has counted the header already.
        total = begin + UDP_SIZE + 2 * count + (int.from_bytes(data, "big") << (count & 1) * 8)
        _UDP_CHANGES.pack_into(memory, transport + 4, UDP_SIZE + count, 0xFFFF - folded(total) or 0xFFFF)
        yield b"".join((memory, data))


def _check_ip(frame: Frame, version: int, network: int, transport: int, protocol: int) -> None:
    """The transport header is where the IP header says, of that protocol. (A run inside a tunnel is not.)"""
    if version == ETHERTYPE_IPV4:
        if frame[network] >> 4 != 4 or network + (frame[network] & 15) * 4 != transport or frame[network + 9] != protocol:
            raise BadFrame("the run does not begin behind its IPv4 header")
    elif frame[network] >> 4 != 6 or (transport == network + IPV6_SIZE and frame[network + 6] != protocol):
        raise BadFrame("the run does not begin behind its IPv6 header")
