"""A tag that Linux took out is put back, with and without an unfinished checksum."""

from __future__ import annotations

import pytest

from stack.l2.forward.ring import VNET_SIZE, _retag
from stack.wire.segmentation import finished
from stack.wire.virtio_net import NEEDS_CSUM, VirtioNet

ROOM = 8
ADDRESSES = bytes(range(12))
BODY = b"\x08\x00" + bytes(range(100, 140))


def received(header: VirtioNet) -> tuple[memoryview, int]:
    memory = memoryview(bytearray(bytes(ROOM) + header.pack() + ADDRESSES + BODY))
    return memory, ROOM + VNET_SIZE


def test_the_tag_stands_behind_the_addresses() -> None:
    memory, begin = received(VirtioNet())
    now = _retag(memory, begin, 0x6005, 0x88A8)
    assert now == begin - 4
    assert bytes(memory[now:]) == ADDRESSES + b"\x88\xa8\x60\x05" + BODY
    assert VirtioNet.parse(memory[now - VNET_SIZE :]) == VirtioNet()


@pytest.mark.parametrize("start", [20, 34])
def test_an_unfinished_checksum_is_still_of_the_same_bytes(start: int) -> None:
    """Finished before the tag is put back, and after it: the same body."""
    memory, begin = received(VirtioNet(NEEDS_CSUM, 0, 0, 0, start, 6))
    [plain] = finished(VirtioNet(NEEDS_CSUM, 0, 0, 0, start, 6), memoryview(bytearray(memory[begin:])))
    now = _retag(memory, begin, 7, 0x8100)
    [tagged] = finished(VirtioNet.parse(memory[now - VNET_SIZE :]), memory[now:])
    assert bytes(tagged) == ADDRESSES + b"\x81\0\0\x07" + bytes(plain)[12:]
    assert bytes(plain)[12:] != BODY


def test_the_headers_of_a_run_grow_by_the_tag() -> None:
    memory, begin = received(VirtioNet(NEEDS_CSUM, 1, 40, 10, 34, 6))
    now = _retag(memory, begin, 7, 0x8100)
    assert VirtioNet.parse(memory[now - VNET_SIZE :]) == VirtioNet(NEEDS_CSUM, 1, 44, 10, 38, 6)
