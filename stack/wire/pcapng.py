"""The pcapng file format (draft-ietf-opsawg-pcapng): frames of several interfaces with times, directions and losses.

    block:      0 type, 4 length of all of it, 8 body, padded to 4; then the length again
    section     magic for the byte order, version 1.0, length of the section (unknown); begins a file, and may come again
    interface   link type, snap length; options: name, time resolution and offset. Numbered from 0 within the section
    packet      interface, time (high, low), captured length, length on the wire, frame; options: direction, losses before it
    simple      length on the wire, frame: of interface 0, without a time
    statistics  interface, time; options: frames received and dropped

    option:     0 kind, 2 length, 4 value, padded to 4; kind 0 ends them

Blocks of other types are passed over. Written little-endian, with times in nanoseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import attrs

from resmgr.errors import BadMessage
from stack.frame import Frame
from stack.wire.pcap import LINKTYPE_ETHERNET, SECOND, SNAP_MAX, Record

SECTION, INTERFACE, SIMPLE, STATISTICS, PACKET = 0x0A0D0D0A, 1, 3, 5, 6
BYTE_ORDER = 0x1A2B3C4D
END, COMMENT = 0, 1
SHB_USERAPPL = 4
IF_NAME, IF_TSRESOL, IF_TSOFFSET = 2, 9, 14
EPB_FLAGS, EPB_DROPCOUNT = 2, 4
ISB_IFRECV, ISB_IFDROP = 4, 5
NANOSECONDS = b"\x09"
MICROSECONDS = 1_000_000
"""Units in a second, unless an interface says otherwise."""
SMALLEST = 12
BLOCK_MAX = 1 << 20
"""Longer blocks are bad: no length may make us wait for gigabytes."""
INTERFACES_MAX = 1024
"""Of a section. Stops a file of nothing but descriptions from filling memory."""


def _option(kind: int, value: bytes) -> bytes:
    return struct.pack("<HH", kind, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, *parts: Frame) -> bytes:
    size = SMALLEST + sum(map(len, parts))
    return b"".join((struct.pack("<II", kind, size), *parts, struct.pack("<I", size)))


def pack_section(application: str) -> bytes:
    """The beginning of a file."""
    return _block(SECTION, struct.pack("<IHHq", BYTE_ORDER, 1, 0, -1), _option(SHB_USERAPPL, application.encode()), _option(END, b""))


def pack_interface(name: str, snap: int = SNAP_MAX, linktype: int = LINKTYPE_ETHERNET) -> bytes:
    """The next interface of the section. *snap*: bytes of a frame that are kept."""
    options = (_option(IF_NAME, name.encode("utf-8", "surrogateescape")), _option(IF_TSRESOL, NANOSECONDS), _option(END, b""))
    return _block(INTERFACE, struct.pack("<HHI", linktype, 0, snap), *options)


def pack_packet(interface: int, time: int, frame: Frame, length: int | None = None, direction: int = 0, drops: int = 0) -> bytes:
    """As for `stack.wire.pcap.pack_record`. *direction*: IN, OUT or 0; *drops*: frames lost before it."""
    size = len(frame)
    options = b""
    if direction:
        options += _option(EPB_FLAGS, struct.pack("<I", direction))
    if drops:
        options += _option(EPB_DROPCOUNT, struct.pack("<Q", drops))
    if options:
        options += _option(END, b"")
    head = struct.pack("<IIIII", interface, time >> 32, time & 0xFFFFFFFF, size, size if length is None else length)
    return _block(PACKET, head, frame, bytes(-size % 4), options)


def pack_statistics(interface: int, time: int, received: int, dropped: int, comment: str = "") -> bytes:
    """What became of all frames of an interface; at the end of a file."""
    said = (_option(COMMENT, comment.encode()[:0xFFFF]),) if comment else ()
    counts = (*said, _option(ISB_IFRECV, struct.pack("<Q", received)), _option(ISB_IFDROP, struct.pack("<Q", dropped)), _option(END, b""))
    return _block(STATISTICS, struct.pack("<III", interface, time >> 32, time & 0xFFFFFFFF), *counts)


@attrs.frozen
class Described:
    """An interface of a section. `unit`: its times' units in a second; `offset`: nanoseconds to add."""

    name: str
    linktype: int
    unit: int
    offset: int
    number: int


@attrs.frozen
class Statistics:
    """What a file says of an interface; -1 where it does not say."""

    interface: int
    received: int
    dropped: int
    comment: str = ""


class PcapngReader:
    """As `stack.wire.pcap.PcapReader`. `statistics` is the last that was said of each interface."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._order = ""
        self._section: list[Described] = []
        self._described = 0
        self.statistics: dict[int, Statistics] = {}

    @property
    def whole(self) -> bool:
        return bool(self._order) and not self._data

    @property
    def names(self) -> tuple[str, ...]:
        """Of the interfaces of this section."""
        return tuple(one.name for one in self._section)

    def feed(self, data: Frame) -> Iterator[Record]:
        self._data += data
        at = 0
        try:
            while at + SMALLEST <= len(self._data):
                size = self._size(at)
                if at + size > len(self._data):
                    break
                block = bytes(self._data[at : at + size])
                at += size
                record = self._block(block)
                if record is not None:
                    yield record
        finally:
            del self._data[:at]

    def _size(self, at: int) -> int:
        """Length of the block at *at*; a section's own byte order counts from here on."""
        if self._data[at : at + 4] == b"\x0a\x0d\x0d\x0a":
            magic = bytes(self._data[at + 8 : at + 12])
            if magic not in (BYTE_ORDER.to_bytes(4, "little"), BYTE_ORDER.to_bytes(4, "big")):
                raise BadMessage("pcapng: a section without a byte order")
            self._order = "<" if magic[0] == 0x4D else ">"
        elif not self._order:
            raise BadMessage("not a pcapng file: it does not begin with a section")
        size = int(struct.unpack_from(self._order + "I", self._data, at + 4)[0])
        if size < SMALLEST or size % 4 or size > BLOCK_MAX:
            raise BadMessage(f"pcapng: a block of {size} bytes")
        return size

    def _block(self, block: bytes) -> Record | None:
        kind, size = struct.unpack_from(self._order + "II", block)
        if struct.unpack_from(self._order + "I", block, size - 4)[0] != size:
            raise BadMessage("pcapng: a block with two lengths")
        body = memoryview(block)[8:-4]
        try:
            if kind == SECTION:
                self._begin(body)
            elif kind == INTERFACE:
                self._describe(body)
            elif kind == PACKET:
                return self._packet(body)
            elif kind == SIMPLE:
                return self._simple(body)
            elif kind == STATISTICS:
                self._count(body)
        except struct.error:
            raise BadMessage(f"pcapng: a block of type {kind} is cut short") from None
        return None

    def _begin(self, body: memoryview) -> None:
        _, major, _, _ = struct.unpack_from(self._order + "IHHq", body)
        if major != 1:
            raise BadMessage(f"pcapng: version {major}")
        self._described += len(self._section)
        self._section = []

    def _describe(self, body: memoryview) -> None:
        linktype, _, _ = struct.unpack_from(self._order + "HHI", body)
        options = self._options(body[8:])
        if len(self._section) >= INTERFACES_MAX:
            raise BadMessage("pcapng: too many interfaces")
        resolution = options.get(IF_TSRESOL, b"\x06")[:1] or b"\x06"
        exponent = resolution[0] & 0x7F
        offset = options.get(IF_TSOFFSET, bytes(8))
        self._section.append(
            Described(
                options.get(IF_NAME, b"").decode("utf-8", "surrogateescape"),
                linktype,
                2**exponent if resolution[0] & 0x80 else 10**exponent,
                int(struct.unpack(self._order + "q", offset)[0]) * SECOND,
                self._described + len(self._section),
            )
        )

    def _interface(self, number: int) -> Described:
        if number >= len(self._section):
            raise BadMessage(f"pcapng: interface {number} is not described")
        return self._section[number]

    def _packet(self, body: memoryview) -> Record:
        number, high, low, size, length = struct.unpack_from(self._order + "IIIII", body)
        there = self._interface(number)
        if size > SNAP_MAX or 20 + size > len(body):
            raise BadMessage(f"pcapng: a packet of {size} bytes")
        options = self._options(body[20 + size + -size % 4 :])
        flags = options.get(EPB_FLAGS, bytes(4))
        drops = options.get(EPB_DROPCOUNT, bytes(8))
        time = max(0, (high << 32 | low) * SECOND // there.unit + there.offset)
        return Record(
            time,
            bytes(body[20 : 20 + size]),
            max(length, size),
            there.linktype,
            there.number,
            int(struct.unpack(self._order + "I", flags)[0]) & 3,
            int(struct.unpack(self._order + "Q", drops)[0]),
        )

    def _simple(self, body: memoryview) -> Record:
        (length,) = struct.unpack_from(self._order + "I", body)
        there = self._interface(0)
        size = min(length, len(body) - 4)
        if size > SNAP_MAX:
            raise BadMessage(f"pcapng: a packet of {size} bytes")
        return Record(0, bytes(body[4 : 4 + size]), length, there.linktype, there.number)

    def _count(self, body: memoryview) -> None:
        (number,) = struct.unpack_from(self._order + "I", body)
        options = self._options(body[12:])
        there = self._interface(number)
        counts = [int(struct.unpack(self._order + "Q", options[kind])[0]) if kind in options else -1 for kind in (ISB_IFRECV, ISB_IFDROP)]
        self.statistics[there.number] = Statistics(there.number, counts[0], counts[1], options.get(COMMENT, b"").decode(errors="replace"))

    def _options(self, data: memoryview) -> dict[int, bytes]:
        """By kind; of several of a kind, the last."""
        found: dict[int, bytes] = {}
        at = 0
        while at < len(data):
            kind, size = struct.unpack_from(self._order + "HH", data, at)
            if kind == END:
                break
            if at + 4 + size > len(data):
                raise BadMessage("pcapng: an option is cut short")
            found[kind] = bytes(data[at + 4 : at + 4 + size])
            at += 4 + size + -size % 4
        return found
