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

from stack.frame import BadFrame, Frame
from stack.wire import virtio_net
from stack.wire.checksum import checksum, ones_sum, pseudo_sum, udp_checksum
from stack.wire.ethernet import ethertype_of, payload_offset
from stack.wire.virtio_net import VirtioNet

SEGMENTS_MAX = 2048
"""Of one run: 64 KiB in segments of the smallest size that Linux's TCP takes. Stops a run of single bytes from becoming 65,000 frames."""

TYPE_IPV4, TYPE_IPV6 = 0x0800, 0x86DD
IPV4_SIZE, IPV6_SIZE, TCP_SIZE, UDP_SIZE = 20, 40, 20, 8
TCP, UDP = 6, 17
FIN, PSH, CWR = 0x01, 0x08, 0x80
_WORD = struct.Struct("!H")
_LONG = struct.Struct("!I")


def finished(header: VirtioNet, frame: memoryview) -> list[Frame]:
    """What *frame* is on a wire. A single frame is *frame* itself, changed in place: it must be writable. BadFrame."""
    if header.gso_type != virtio_net.GSO_NONE:
        return list(_segments(header, frame))
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


def _segments(header: VirtioNet, frame: memoryview) -> Iterator[bytes]:
    kind = header.gso_type & ~virtio_net.GSO_ECN
    network, transport, size = payload_offset(frame), header.csum_start, header.gso_size
    version = ethertype_of(frame)
    if version not in (TYPE_IPV4, TYPE_IPV6) or size == 0:
        raise BadFrame("a run of segments that is not of IP, or without a size")
    if not header.flags & virtio_net.NEEDS_CSUM:
        # Merged from datagrams that had been looked at: nobody wrote where they begin.
        transport = network + ((frame[network] & 15) * 4 if version == TYPE_IPV4 and network < len(frame) else IPV6_SIZE)
    if kind in (virtio_net.GSO_TCPV4, virtio_net.GSO_TCPV6):
        protocol, least = TCP, TCP_SIZE
        if (kind == virtio_net.GSO_TCPV4) != (version == TYPE_IPV4):
            raise BadFrame("the run and its ethertype are of different IP versions")
    elif kind == virtio_net.GSO_UDP_L4:
        protocol, least = UDP, UDP_SIZE
    else:
        raise BadFrame(f"a run of kind {kind}, which cannot be taken apart")
    if transport + least > len(frame) or transport < network + (IPV4_SIZE if version == TYPE_IPV4 else IPV6_SIZE):
        raise BadFrame("no room for the headers of a run")
    payload = transport + (frame[transport + 12] >> 4) * 4 if protocol == TCP else transport + UDP_SIZE
    if payload < transport + least or payload >= len(frame):
        raise BadFrame("a run without payload")
    if -((payload - len(frame)) // size) > SEGMENTS_MAX:
        raise BadFrame("a run of too many segments")
    _check_ip(frame, version, network, transport, protocol)
    head = bytearray(frame[:payload])
    for start in range(payload, len(frame), size):
        data = frame[start : start + size]
        _write_ip(head, version, network, len(data) + payload - network, start == payload)
        if protocol == TCP:
            _write_tcp(head, frame, version, network, transport, start - payload, data, start + size >= len(frame))
        else:
            _write_udp(head, version, network, transport, data)
        yield b"".join((head, data))


def _check_ip(frame: memoryview, version: int, network: int, transport: int, protocol: int) -> None:
    """The transport header is where the IP header says, of that protocol. (A run inside a tunnel is not.)"""
    if version == TYPE_IPV4:
        if frame[network] >> 4 != 4 or network + (frame[network] & 15) * 4 != transport or frame[network + 9] != protocol:
            raise BadFrame("the run does not begin behind its IPv4 header")
    elif frame[network] >> 4 != 6 or (transport == network + IPV6_SIZE and frame[network + 6] != protocol):
        raise BadFrame("the run does not begin behind its IPv6 header")


def _write_ip(head: bytearray, version: int, network: int, length: int, first: bool) -> None:
    """Length, identification and checksum for the next segment."""
    if version == TYPE_IPV6:
        _WORD.pack_into(head, network + 4, length - IPV6_SIZE)
        return
    _WORD.pack_into(head, network + 2, length)
    if not first:
        _WORD.pack_into(head, network + 4, (_WORD.unpack_from(head, network + 4)[0] + 1) & 0xFFFF)
    end = network + (head[network] & 15) * 4
    _WORD.pack_into(head, network + 10, 0)
    _WORD.pack_into(head, network + 10, checksum(head[network:end]))


def _write_tcp(
    head: bytearray, frame: memoryview, version: int, network: int, transport: int, done: int, data: memoryview, last: bool
) -> None:
    _LONG.pack_into(head, transport + 4, (_LONG.unpack_from(frame, transport + 4)[0] + done) & 0xFFFFFFFF)
    flags = frame[transport + 13]
    if done:
        flags &= ~CWR
    if not last:
        flags &= ~(FIN | PSH)
    head[transport + 13] = flags
    _WORD.pack_into(head, transport + 16, 0)
    begin = _transport_sum(head, version, network, transport, TCP, data)
    _WORD.pack_into(head, transport + 16, checksum(head[transport:], begin))


def _write_udp(head: bytearray, version: int, network: int, transport: int, data: memoryview) -> None:
    _WORD.pack_into(head, transport + 4, UDP_SIZE + len(data))
    _WORD.pack_into(head, transport + 6, 0)
    begin = _transport_sum(head, version, network, transport, UDP, data)
    _WORD.pack_into(head, transport + 6, udp_checksum(head[transport:], begin))


def _transport_sum(head: bytearray, version: int, network: int, transport: int, protocol: int, data: memoryview) -> int:
    """Of the pseudo header and the data: all but the transport header, whose length is even."""
    first, size = (network + 12, 8) if version == TYPE_IPV4 else (network + 8, 32)
    length = len(head) - transport + len(data)
    return ones_sum(data, pseudo_sum(head[first : first + size], protocol, length))
