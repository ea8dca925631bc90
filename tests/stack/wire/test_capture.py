"""Files of frames: pcap and pcapng, as we write them, as others do, cut at every byte, and damaged."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from resmgr.errors import BadMessage
from stack.wire import pcap, pcapng
from stack.wire.capture import CaptureReader, read_records
from stack.wire.pcap import IN, OUT, SECOND, PcapReader, Record
from stack.wire.pcapng import PcapngReader

TIME = 1_700_000_000 * SECOND + 123_456_789


def records(count: int, seed: int = 1) -> list[Record]:
    draw = random.Random(seed)
    return [
        Record(TIME + number * 1001, draw.randbytes(draw.choice([0, 1, 14, 60, 61, 62, 63, 1514])), 0, direction=draw.choice([0, IN, OUT]))
        for number in range(count)
    ]


def as_pcap(wanted: list[Record]) -> bytes:
    return pcap.pack_header() + b"".join(pcap.pack_record(one.time, one.frame) for one in wanted)


def as_pcapng(wanted: list[Record]) -> bytes:
    blocks = [pcapng.pack_packet(0, one.time, one.frame, direction=one.direction, drops=one.drops) for one in wanted]
    return b"".join((pcapng.pack_section("test"), pcapng.pack_interface("en0"), *blocks, pcapng.pack_statistics(0, TIME, 7, 3)))


def key(one: Record) -> tuple[int, bytes]:
    return one.time, one.frame


def test_pcap_round_trip() -> None:
    wanted = records(30)
    found = read_records(as_pcap(wanted))
    assert list(map(key, found)) == list(map(key, wanted))
    assert [one.length for one in found] == [len(one.frame) for one in wanted]
    assert read_records(pcap.pack_header() + pcap.pack_record(TIME, b"begin", 1500)) == [Record(TIME, b"begin", 1500)]


def test_pcapng_round_trip() -> None:
    wanted = [
        Record(one.time, one.frame, len(one.frame), direction=one.direction, drops=number % 3) for number, one in enumerate(records(30))
    ]
    reader = PcapngReader()
    assert list(reader.feed(as_pcapng(wanted))) == wanted
    assert reader.names == ("en0",)
    assert reader.statistics[0] == pcapng.Statistics(0, 7, 3)
    assert reader.whole


@pytest.mark.parametrize("pack", [as_pcap, as_pcapng])
def test_a_file_cut_at_every_length_gives_what_was_whole(pack: object) -> None:
    assert callable(pack)
    wanted = records(5, 2)
    data: bytes = pack(wanted)
    whole = 0
    for size in range(len(data) + 1):
        reader = CaptureReader()
        found = list(reader.feed(data[:size]))
        assert list(map(key, found)) == list(map(key, wanted[: len(found)]))
        whole += reader.whole
    assert len(found) == len(wanted)
    assert 5 <= whole <= 10


@pytest.mark.parametrize("pack", [as_pcap, as_pcapng])
@pytest.mark.parametrize("step", [1, 3, 100, 4096])
def test_a_file_in_pieces(pack: object, step: int) -> None:
    assert callable(pack)
    wanted = records(20, 3)
    data: bytes = pack(wanted)
    reader = CaptureReader()
    found = [one for at in range(0, len(data), step) for one in reader.feed(data[at : at + step])]
    assert list(map(key, found)) == list(map(key, wanted))
    assert reader.whole


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcap_of_others(order: str) -> None:
    """Either byte order, microseconds, another link type, with an FCS behind each frame."""
    frame = bytes(range(60))
    data = struct.pack(order + "IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + struct.pack(order + "IIII", 5, 7, 60, 60) + frame
    assert read_records(data) == [Record(5 * SECOND + 7000, frame, 60)]
    tail = 1 << 26 | 2 << 28 | 1
    data = struct.pack(order + "IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, tail) + struct.pack(order + "IIII", 5, 7, 64, 64) + frame + b"fcs!"
    assert read_records(data) == [Record(5 * SECOND + 7, frame, 60)]
    data = struct.pack(order + "IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 113) + struct.pack(order + "IIII", 5, 7, 4, 4) + b"sll!"
    assert read_records(data) == [Record(5 * SECOND + 7, b"sll!", 4, 113)]


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + size + body + size


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_of_others(order: str) -> None:
    """Either byte order, several interfaces and sections, other time units, simple packets, unknown blocks."""
    section = block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    plain = block(order, 1, struct.pack(order + "HHI", 1, 0, 0))
    binary = struct.pack(order + "HHB3x", 9, 1, 0x8A) + struct.pack(order + "HHq", 14, 8, 100) + struct.pack(order + "HH", 0, 0)
    halves = block(order, 1, struct.pack(order + "HHI", 113, 0, 0) + binary)
    simple = block(order, 3, struct.pack(order + "I", 5) + b"abcde")
    packet = block(order, 6, struct.pack(order + "IIIII", 1, 0, 1536, 3, 900) + b"xyz")
    micro = block(order, 6, struct.pack(order + "IIIII", 0, 1, 0, 1, 1) + b"m")
    unknown = block(order, 0xBAD, b"whatever")
    found = read_records(section + plain + unknown + halves + simple + packet + micro + section + plain + micro)
    assert found == [
        Record(0, b"abcde", 5),
        Record(100 * SECOND + SECOND * 3 // 2, b"xyz", 900, 113, 1),
        Record((1 << 32) * 1000, b"m", 1),
        Record((1 << 32) * 1000, b"m", 1, interface=2),
    ]


SECTION = pcapng.pack_section("t")


@pytest.mark.parametrize(
    "data",
    [
        b"no such file at all, sorry",
        pcap.pack_header()[:4] + b"\3\0" + pcap.pack_header()[6:],
        pcap.pack_header() + struct.pack("<IIII", 0, 0, pcap.SNAP_MAX + 1, 0),
        pcap.pack_header() + struct.pack("<IIII", 0, SECOND, 0, 0),
        b"\x0a\x0d\x0d\x0a" + bytes(24),
        SECTION + struct.pack("<II", 6, 8) + bytes(8),
        SECTION + struct.pack("<II", 6, 14) + bytes(8),
        SECTION + struct.pack("<II", 6, pcapng.BLOCK_MAX + 4) + bytes(8),
        SECTION + struct.pack("<III", 6, 12, 16),
        SECTION + pcapng.pack_packet(0, 0, b"of no interface"),
        SECTION + pcapng.pack_interface("a") * (pcapng.INTERFACES_MAX + 1),
        SECTION + block("<", 1, b"cut"),
        SECTION + block("<", 1, struct.pack("<HHIHHI", 1, 0, 0, 14, 99, 0)),
        SECTION + block("<", 1, struct.pack("<HHIHHI", 1, 0, 0, 14, 4, 0)),
        SECTION + pcapng.pack_interface("a") + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 5, 5)),
        SECTION + pcapng.pack_interface("a") + block("<", 3, b""),
        block("<", 0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 2, 0, -1)),
    ],
)
def test_what_is_no_file_is_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        read_records(data)


@pytest.mark.parametrize("pack", [as_pcap, as_pcapng])
def test_damaged_files_raise_nothing_else(pack: object) -> None:
    assert callable(pack)
    data: bytes = pack(records(6, 4))
    draw = random.Random(5)
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(min(len(data), 200))] = draw.randrange(256)
        try:
            read_records(bytes(damaged))
        except BadMessage:
            pass


@pytest.mark.host
@pytest.mark.parametrize("pack", [as_pcap, as_pcapng])
def test_tcpdump_reads_them(pack: object, tmp_path: Path) -> None:
    """Where it is installed; the nanoseconds too."""
    assert callable(pack)
    tcpdump = shutil.which("tcpdump")
    if tcpdump is None:
        pytest.skip("tcpdump is not installed here")
    frame = b"\2\0\0\0\0\2\2\0\0\0\0\1\x88\xb5" + bytes(46)
    file = tmp_path / "file"
    file.write_bytes(pack([Record(TIME + number, frame, 60, direction=IN) for number in range(3)]))
    shown = subprocess.run([tcpdump, "-r", str(file), "-tt", "-n", "-e", "--nano"], capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in shown.splitlines() if "0x88b5" in line] == [
        f"1700000000.12345679{number - 1}" if number else "1700000000.123456789" for number in range(3)
    ]


def test_readers_say_when_nothing_was_fed() -> None:
    assert not CaptureReader().whole
    assert not PcapReader().whole
    assert read_records(b"") == []
