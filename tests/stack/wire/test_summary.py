"""The line about a frame."""

from __future__ import annotations

import random

import pytest

from stack.wire.summary import summary

ENDS = b"\2\0\0\0\0\2\2\0\0\0\0\1"
TCP4 = bytes.fromhex("4500002800004000400600000a0000010a000002") + bytes.fromhex("03e807d000000000000000005012000000000000")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("88b5", "Qnet (experimental 1) 114 bytes"),
        ("8100600588b5", "vlan 5 p3 Qnet (experimental 1) 118 bytes"),
        ("88a80007810000081234", "vlan 7 vlan 8 0x1234 122 bytes"),
        ("0026424203", "LLC 424203 117 bytes"),
        ("080645000000", "ARP 118 bytes"),
        ("0806000108000604000102000000000a0a000001" + "00" * 6 + "0a000002", "ARP who has 10.0.0.2, tell 10.0.0.1 142 bytes"),
        ("0806000108000604000202000000000a0a000001" + "00" * 6 + "0a000002", "ARP 10.0.0.1 is at 02:00:00:00:00:0a 142 bytes"),
        ("0800" + TCP4.hex(), "IPv4 10.0.0.1.1000 > 10.0.0.2.2000 TCP SA 154 bytes"),
        ("0800" + "4500002800002001401100000a0000010a000002", "IPv4 10.0.0.1 > 10.0.0.2 UDP 134 bytes"),
        ("0800" + "450000280000000040fd00000a0000010a000002", "IPv4 10.0.0.1 > 10.0.0.2 protocol 253 134 bytes"),
        (
            "86dd" + "6000000000081140" + "fe80" + "00" * 13 + "01" + "ff02" + "00" * 13 + "fb" + "14e914e9",
            "IPv6 fe80::1.5353 > ff02::fb.5353 UDP 158 bytes",
        ),
        ("86dd" + "6000000000083aff" + "00" * 15 + "01" + "00" * 15 + "02", "IPv6 ::1 > ::2 ICMPv6 154 bytes"),
    ],
)
def test_lines(body: str, line: str) -> None:
    frame = ENDS + bytes.fromhex(body) + bytes(100)
    assert summary(frame) == f"02:00:00:00:00:01 > 02:00:00:00:00:02 {line}"


def test_whatever_comes_is_a_printable_line() -> None:
    draw = random.Random(1)
    for size in range(120):
        for kind in (b"\x08\x00\x45", b"\x86\xdd\x60", b"\x08\x06\0\1\x08\0\6\4", b"\x81\x00", b""):
            line = summary((ENDS + kind + draw.randbytes(size))[:size])
            assert line.isprintable()
    assert summary(b"") == "bad frame of 0 bytes: Ethernet header cut short"
