"""The virtio-net header."""

from __future__ import annotations

import pytest

from stack.frame import BadFrame
from stack.wire import virtio_net
from stack.wire.virtio_net import VirtioNet


def test_round_trip_and_bytes() -> None:
    header = VirtioNet(virtio_net.NEEDS_CSUM, virtio_net.GSO_TCPV4 | virtio_net.GSO_ECN, 66, 1448, 34, 16)
    assert header.pack() == b"\x01\x81" + b"".join(number.to_bytes(2, "little") for number in (66, 1448, 34, 16))
    assert VirtioNet.parse(header.pack() + b"frame") == header
    assert VirtioNet().pack() == bytes(virtio_net.SIZE)


@pytest.mark.parametrize("size", range(virtio_net.SIZE))
def test_cut_short(size: int) -> None:
    with pytest.raises(BadFrame):
        VirtioNet.parse(bytes(size))
