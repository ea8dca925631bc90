"""The 802.1Q tag: put on, read, taken off, truncation at every length."""

from __future__ import annotations

from stack.testing.driver import TYPE, frame
from stack.wire.ethernet import Ethernet
from stack.wire.vlan import UNTAGGED, tagged, untagged, vlan_of

PLAIN = frame(bytes(6), bytes((2, 0, 0, 0, 0, 1)), bytes(range(50)))


def test_round_trip() -> None:
    for vlan in (0, 1, 5, 4094):
        for priority in range(8):
            with_tag = tagged(PLAIN, vlan, priority)
            assert vlan_of(with_tag) == vlan
            assert untagged(with_tag) == PLAIN
            assert Ethernet.parse(with_tag) == Ethernet(PLAIN[:6], PLAIN[6:12], TYPE, ((0x8100, priority << 13 | vlan),))


def test_bytes() -> None:
    assert tagged(PLAIN, 5, 3) == PLAIN[:12] + bytes.fromhex("81006005") + PLAIN[12:]


def test_what_has_no_tag() -> None:
    assert vlan_of(PLAIN) == UNTAGGED
    assert vlan_of(PLAIN[:12] + bytes.fromhex("88a80005") + PLAIN[12:]) == UNTAGGED


def test_cut_short_at_every_length() -> None:
    with_tag = memoryview(tagged(PLAIN, 5, 3))
    assert [vlan_of(with_tag[:length]) for length in range(18)] == [UNTAGGED] * 18
    assert vlan_of(with_tag[:18]) == 5


def test_tags_stack() -> None:
    twice = tagged(tagged(PLAIN, 5, 0), 7, 0)
    assert vlan_of(twice) == 7
    assert vlan_of(untagged(twice)) == 5
