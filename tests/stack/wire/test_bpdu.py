"""BPDUs and the LLC header in front of them: parse, build, round trip, truncation at every length."""

from __future__ import annotations

import pytest

from stack.frame import BadFrame
from stack.wire.bpdu import GROUP, Bpdu, Config, Priority, Role, Times, TopologyChange, bridge_id, bridge_text, parse_bpdu
from stack.wire.llc import SAP_STP, is_llc, pack_llc, parse_llc

CONFIG_BYTES = bytes.fromhex("0000000001 8000020000000001 00000004 8000020000000002 8001 0100 1400 0200 0f00".replace(" ", ""))
"""As a bridge of 802.1D-1998 sends it: topology change, age 1, max age 20, hello 2, forward delay 15."""
RST_BYTES = bytes.fromhex("000002027c 8000020000000001 00000004 8000020000000002 8001 0100 1400 0200 0f00 00".replace(" ", ""))
PRIORITY = Priority(bridge_id(0x8000, bytes.fromhex("020000000001")), 4, bridge_id(0x8000, bytes.fromhex("020000000002")), 0x8001)
TIMES = Times(1.0, 20.0, 2.0, 15.0)
CONFIG = Config(PRIORITY, TIMES, topology_change=True)
RST = Config(PRIORITY, TIMES, rapid=True, role=Role.DESIGNATED, learning=True, forwarding=True, agreement=True)
EACH: list[tuple[bytes, Bpdu]] = [(CONFIG_BYTES, CONFIG), (RST_BYTES, RST), (bytes.fromhex("00000080"), TopologyChange())]


@pytest.mark.parametrize(("data", "value"), EACH)
def test_parse_and_build(data: bytes, value: Bpdu) -> None:
    assert parse_bpdu(data) == value
    assert value.pack() == data
    assert parse_bpdu(data + b"more") == value


@pytest.mark.parametrize(("data", "value"), EACH)
def test_cut_short_at_every_length(data: bytes, value: Bpdu) -> None:
    for length in range(len(data)):
        with pytest.raises(BadFrame):
            parse_bpdu(data[:length])


@pytest.mark.parametrize("head", ["00010000", "00000001", "00000002", "000000ff", "01000080"])
def test_unknown_kinds_are_refused(head: str) -> None:
    with pytest.raises(BadFrame):
        parse_bpdu(bytes.fromhex(head) + RST_BYTES[4:])


def test_every_flag_is_kept() -> None:
    for rapid in (False, True):
        for flags in range(256):
            data = bytearray(RST_BYTES if rapid else CONFIG_BYTES)
            data[4] = flags
            value = parse_bpdu(data)
            assert parse_bpdu(value.pack()) == value


def test_a_rapid_bpdu_of_unknown_role_is_a_configuration() -> None:
    data = bytearray(RST_BYTES)
    data[4] = 0x70
    assert parse_bpdu(data) == Config(PRIORITY, TIMES)


def test_later_versions_are_rapid() -> None:
    assert parse_bpdu(RST_BYTES[:2] + b"\x03" + RST_BYTES[3:] + bytes(60)) == RST


def test_vectors_order_as_the_standard_says() -> None:
    worse = [
        Priority(bridge_id(0x9000, bytes(6)), 0, PRIORITY.bridge, 0x8001),
        Priority(PRIORITY.root, 5, bytes(8), 0),
        Priority(PRIORITY.root, 4, bridge_id(0x8000, bytes.fromhex("020000000003")), 0),
        Priority(PRIORITY.root, 4, PRIORITY.bridge, 0x8002),
    ]
    assert all(one > PRIORITY for one in worse)


def test_text() -> None:
    assert bridge_text(PRIORITY.root) == "8000.02:00:00:00:00:01"
    assert str(RST).startswith("RST designated root 8000.02:00:00:00:00:01 cost 4")


FRAME = pack_llc(GROUP, bytes.fromhex("020000000002"), SAP_STP, CONFIG_BYTES)


def test_llc() -> None:
    assert FRAME[:17] == bytes.fromhex("0180c2000000 020000000002 0026 424203".replace(" ", ""))
    assert len(FRAME) == 60
    assert bytes(parse_llc(FRAME, SAP_STP)) == CONFIG_BYTES
    assert is_llc(FRAME)
    assert not is_llc(FRAME[:12] + b"\x08\x00" + FRAME[14:])


def test_llc_cut_short_at_every_length() -> None:
    whole = 14 + 3 + len(CONFIG_BYTES)
    for length in range(whole):
        with pytest.raises(BadFrame):
            parse_llc(FRAME[:length], SAP_STP)
    assert parse_llc(FRAME[:whole], SAP_STP) == CONFIG_BYTES


@pytest.mark.parametrize("change", [(12, 0xFF), (13, 2), (14, 0xAA), (15, 0xAA), (16, 0xF3)])
def test_llc_of_others(change: tuple[int, int]) -> None:
    data = bytearray(FRAME)
    data[change[0]] = change[1]
    with pytest.raises(BadFrame):
        parse_llc(data, SAP_STP)
