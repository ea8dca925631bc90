"""The VXLAN header."""

from __future__ import annotations

import pytest

from stack.frame import BadFrame
from stack.wire import vxlan


def test_round_trip_and_bytes() -> None:
    assert vxlan.pack(0x123456) == bytes.fromhex("0800000012345600")
    for vni in (0, 1, vxlan.VNI_MAX):
        assert vxlan.parse(vxlan.pack(vni) + b"frame") == vni
    assert vxlan.parse(bytes.fromhex("ffffffff123456ff")) == 0x123456, "reserved bits are ignored"


def test_what_is_no_header() -> None:
    for size in range(vxlan.SIZE):
        with pytest.raises(BadFrame):
            vxlan.parse(vxlan.pack(1)[:size])
    with pytest.raises(BadFrame):
        vxlan.parse(bytes(8))
