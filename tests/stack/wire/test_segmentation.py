"""Runs of segments taken apart and checksums completed, judged by a receiver of the test's own."""

from __future__ import annotations

import random
import struct

import attrs
import pytest

from stack.frame import BadFrame
from stack.wire import virtio_net
from stack.wire.checksum import checksum, ones_sum, pseudo_sum
from stack.wire.segmentation import CWR, FIN, PSH, SEGMENTS_MAX, TCP, UDP, finish_checksum, finished
from stack.wire.virtio_net import NEEDS_CSUM, VirtioNet

ACK = 0x10
SEQUENCE = 0xFFFFF000
MACS = b"\2\0\0\0\0\2\2\0\0\0\0\1"


def packet(version: int, protocol: int, data: bytes, tags: bytes = b"", flags: int = ACK, options: bytes = b"") -> tuple[bytes, int]:
    """A frame with a partial checksum, and where its transport header is."""
    if protocol == TCP:
        size = 20 + len(options)
        head = bytearray(struct.pack("!HHIIBBHHH", 1000, 2000, SEQUENCE, 7, size // 4 << 4, flags, 500, 0, 0) + options)
    else:
        head = bytearray(struct.pack("!HHHH", 1000, 2000, 8 + len(data), 0))
    if version == 4:
        addresses = bytes((10, 0, 0, 1, 10, 0, 0, 2))
        ip = struct.pack("!BBHHHBBH", 0x45, 0, (20 + len(head) + len(data)) & 0xFFFF, 0xFFFE, 0x4000, 64, protocol, 0) + addresses
        ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
    else:
        addresses = bytes(range(32))
        ip = struct.pack("!IHBB", 6 << 28, (len(head) + len(data)) & 0xFFFF, protocol, 64) + addresses
    at = 16 if protocol == TCP else 6
    head[at : at + 2] = pseudo_sum(addresses, protocol, len(head) + len(data)).to_bytes(2, "big")
    ethernet = MACS + tags + (b"\x08\x00" if version == 4 else b"\x86\xdd")
    return ethernet + ip + bytes(head) + data, len(ethernet) + len(ip)


@attrs.frozen
class Got:
    """A frame that has passed every check of a receiver."""

    data: bytes
    sequence: int = 0
    flags: int = 0
    identification: int = 0


def receive(frame: bytes) -> Got:
    offset = 12
    while frame[offset : offset + 2] in (b"\x81\x00", b"\x88\xa8"):
        offset += 4
    ip = frame[offset + 2 :]
    if ip[0] >> 4 == 4:
        assert ones_sum(ip[:20]) == 0xFFFF, "IPv4 header checksum"
        assert int.from_bytes(ip[2:4], "big") == len(ip)
        protocol, addresses, segment, identification = ip[9], ip[12:20], ip[20:], int.from_bytes(ip[4:6], "big")
    else:
        assert int.from_bytes(ip[4:6], "big") == len(ip) - 40
        protocol, addresses, segment, identification = ip[6], ip[8:40], ip[40:], 0
    assert ones_sum(segment, pseudo_sum(addresses, protocol, len(segment))) == 0xFFFF, "checksum"
    if protocol == UDP:
        assert int.from_bytes(segment[4:6], "big") == len(segment)
        assert segment[6:8] != bytes(2)
        return Got(segment[8:], identification=identification)
    return Got(segment[(segment[12] >> 4) * 4 :], int.from_bytes(segment[4:8], "big"), segment[13], identification)


def whole(header: VirtioNet, frame: bytes) -> list[Got]:
    return [receive(bytes(one)) for one in finished(header, memoryview(bytearray(frame)))]


@pytest.mark.parametrize("tags", [b"", b"\x81\x00\x00\x05", b"\x88\xa8\x00\x07\x81\x00\x00\x08"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 5000, 60000])
def test_tcp_runs(version: int, size: int, tags: bytes) -> None:
    data = random.Random(size).randbytes(size)
    options = b"\1\1\x08\x0a" + bytes(8)
    frame, start = packet(version, TCP, data, tags, ACK | FIN | PSH | CWR, options)
    kind = virtio_net.GSO_TCPV4 if version == 4 else virtio_net.GSO_TCPV6
    got = whole(VirtioNet(NEEDS_CSUM, kind | virtio_net.GSO_ECN, start + 32, 1000, start, 16), frame)
    assert b"".join(one.data for one in got) == data
    assert [len(one.data) for one in got[:-1]] == [1000] * (len(got) - 1)
    assert [one.sequence for one in got] == [(SEQUENCE + 1000 * number) & 0xFFFFFFFF for number in range(len(got))]
    assert [one.flags for one in got[1:-1]] == [ACK] * (len(got) - 2)
    assert got[0].flags & ~(FIN | PSH) == ACK | CWR
    assert got[-1].flags & ~CWR == ACK | FIN | PSH
    if version == 4:
        assert [one.identification for one in got] == [(0xFFFE + number) & 0xFFFF for number in range(len(got))]


@pytest.mark.parametrize("flags", [NEEDS_CSUM, 0])
@pytest.mark.parametrize("version", [4, 6])
def test_udp_runs(version: int, flags: int) -> None:
    """Linux does not say where the datagrams begin when their checksums are right already."""
    data = random.Random(version).randbytes(4321)
    frame, start = packet(version, UDP, data)
    got = whole(VirtioNet(flags, virtio_net.GSO_UDP_L4, 0, 1000, start if flags else 0, 6 if flags else 0), frame)
    assert [one.data for one in got] == [data[at : at + 1000] for at in range(0, 4321, 1000)]


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("version", [4, 6])
def test_a_checksum_is_completed_in_place(version: int, protocol: int) -> None:
    for size in range(64):
        frame, start = packet(version, protocol, bytes(range(size)))
        memory = bytearray(frame)
        view = memoryview(memory)
        (one,) = finished(VirtioNet(NEEDS_CSUM, 0, 0, 0, start, 16 if protocol == TCP else 6), view)
        assert one is view
        assert receive(bytes(memory)).data == bytes(range(size))


def test_a_checksum_that_comes_out_as_zero_is_sent_as_all_ones() -> None:
    memory = memoryview(bytearray(b"head" + b"\0\0" + b"\xff\xff"))
    finish_checksum(memory, 4, 0)
    assert bytes(memory[4:6]) == b"\xff\xff"


def test_nothing_to_do() -> None:
    view = memoryview(b"frame")
    assert finished(VirtioNet(virtio_net.DATA_VALID), view) == [view]


def refused(header: VirtioNet, frame: bytes) -> None:
    with pytest.raises(BadFrame):
        finished(header, memoryview(bytearray(frame)))


def test_what_does_not_fit_is_refused() -> None:
    frame, start = packet(4, TCP, bytes(3000))
    good = VirtioNet(NEEDS_CSUM, virtio_net.GSO_TCPV4, start + 20, 1000, start, 16)
    assert len(whole(good, frame)) == 3
    for change in (
        {"gso_size": 0},
        {"gso_type": virtio_net.GSO_TCPV6},
        {"gso_type": virtio_net.GSO_UDP_L4},
        {"gso_type": virtio_net.GSO_UDP},
        {"gso_type": 77},
        {"csum_start": 0},
        {"csum_start": start + 4},
        {"csum_start": 65535},
    ):
        refused(attrs.evolve(good, **change), frame)
    for size in range(start + 21):
        refused(good, frame[:size])
    tunnel = bytearray(frame)
    tunnel[23] = UDP
    refused(good, bytes(tunnel))
    refused(attrs.evolve(good, gso_size=1), packet(4, TCP, bytes(SEGMENTS_MAX + 1))[0])
    refused(VirtioNet(NEEDS_CSUM, 0, 0, 0, 60000, 16), frame)
    refused(VirtioNet(NEEDS_CSUM, 0, 0, 0, len(frame) - 17, 16), frame)
