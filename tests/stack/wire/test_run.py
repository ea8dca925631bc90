"""Runs in one piece: what they say of themselves, and what becomes of them on a wire."""

from __future__ import annotations

import random

import pytest

from stack.core.runs import cut_runs, has_runs
from stack.frame import BadFrame, Frame
from stack.testing.runs import tcp_run, udp_run
from stack.wire import virtio_net
from stack.wire.checksum import ones_sum, pseudo_sum
from stack.wire.run import Run
from stack.wire.segmentation import finished
from stack.wire.virtio_net import VirtioNet


@pytest.mark.parametrize("make", [tcp_run, udp_run])
@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 40_000])
def test_segments_are_those_of_the_header_and_hold_all_data(make: type, size: int) -> None:
    data = random.Random(size).randbytes(size)
    header, frame = make(data, 1000)
    run = Run.make(header, frame)
    assert bytes(run) == frame
    segments = run.segments()
    assert segments == finished(header, memoryview(bytearray(frame)))
    assert len(segments) == run.pieces == -(-size // 1000)
    assert max(map(len, segments)) == min(run.parts.longest, len(run))
    payload = run.parts.payload
    assert b"".join(bytes(one[payload:]) for one in segments) == data
    for one in segments:
        assert ones_sum(one[14:34]) == 0xFFFF
        assert ones_sum(one[34:], pseudo_sum(one[26:34], one[23], len(one) - 34)) == 0xFFFF


def test_it_has_memory_of_its_own_and_a_copy_too() -> None:
    header, frame = tcp_run(bytes(5000), 1000)
    memory = bytearray(frame)
    run = Run.make(header, memory)
    other = run.copied()
    memory[:] = bytes(len(memory))
    run[100] = 7
    assert bytes(other) == frame
    assert (other.header, other.parts, other.pieces) == (run.header, run.parts, 5)


def test_what_the_sender_says_of_its_headers_length_is_not_believed() -> None:
    header, frame = tcp_run(bytes(5000), 1000)
    lying = VirtioNet(header.flags, header.gso_type, 3, header.gso_size, header.csum_start, header.csum_offset)
    assert Run.make(lying, frame).header.header_length == 54


@pytest.mark.parametrize(
    ("flags", "kind", "size", "start"),
    [(1, virtio_net.GSO_TCPV6, 1000, 34), (1, virtio_net.GSO_TCPV4, 0, 34), (1, virtio_net.GSO_TCPV4, 1000, 60000), (1, 3, 1000, 34)],
)
def test_one_that_cannot_be_cut_is_none(flags: int, kind: int, size: int, start: int) -> None:
    _, frame = tcp_run(bytes(5000), 1000)
    with pytest.raises(BadFrame):
        Run.make(VirtioNet(flags, kind, 54, size, start, 16), frame)


def test_cut_short_at_every_length_it_is_refused_or_a_whole_run() -> None:
    header, frame = tcp_run(bytes(range(60)), 20)
    for length in range(len(frame)):
        try:
            run = Run.make(header, frame[:length])
        except BadFrame:
            assert length <= 54
        else:
            assert b"".join(bytes(one[54:]) for one in run.segments()) == frame[54:length]


@pytest.mark.parametrize(("mtu", "fits"), [(1039, False), (1040, True), (65535, True)])
def test_whether_the_segments_fit(mtu: int, fits: bool) -> None:
    run = Run.make(*tcp_run(bytes(5000), 1000))
    assert run.fits(mtu) is fits


def test_a_tag_does_not_count() -> None:
    header, frame = tcp_run(bytes(5000), 1000)
    tagged = frame[:12] + b"\x81\0\0\5" + frame[12:]
    moved = VirtioNet(header.flags, header.gso_type, 58, 1000, header.csum_start + 4, header.csum_offset)
    assert Run.make(moved, tagged).fits(1040)
    assert not Run.make(moved, tagged).fits(1039)


def test_batches() -> None:
    run = Run.make(*tcp_run(bytes(3000), 1000))
    plain: list[Frame] = [b"a", bytearray(b"b"), memoryview(b"c")]
    assert not has_runs(plain)
    assert cut_runs(plain) is plain
    mixed = [plain[0], run, plain[2]]
    assert has_runs(mixed)
    assert cut_runs(mixed) == [plain[0], *run.segments(), plain[2]]
