"""The pcap file format (draft-ietf-opsawg-pcap): frames with times, of one interface. Written little-endian with nanoseconds.

    file:    0 magic, 4 version 2.4, 8 reserved, 16 snap length, 20 link type (and, in the high bits, length of the FCS)
    record:  0 seconds, 4 fraction, 8 captured length, 12 length on the wire; then the bytes

The magic tells byte order and the fraction's unit. `Record` is also what pcapng files are read into (`stack.wire.pcapng`);
`stack.wire.capture` reads either.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import attrs

from resmgr.errors import BadMessage
from stack.frame import Frame

HEADER = struct.Struct("<IHHiIII")
RECORD = struct.Struct("<IIII")
MAGIC_MICROSECONDS = 0xA1B2C3D4
MAGIC_NANOSECONDS = 0xA1B23C4D
LINKTYPE_ETHERNET = 1
SNAP_MAX = 262144
"""Longest frame of a file; a record that claims more is bad: no length may make us wait for gigabytes."""
SECOND = 1_000_000_000
IN, OUT = 1, 2
"""Directions."""


@attrs.frozen
class Record:
    """One frame of a file. `time`: nanoseconds since the epoch, not before it. `length`: on the wire, at least that of `frame`."""

    time: int
    frame: bytes
    length: int
    linktype: int = LINKTYPE_ETHERNET
    interface: int = 0
    """Number within the file, in order of description."""
    direction: int = 0
    """IN, OUT, or 0 when it is not told."""
    drops: int = 0
    """Frames lost between this and the one before."""


def pack_header(snap: int = SNAP_MAX, linktype: int = LINKTYPE_ETHERNET) -> bytes:
    return HEADER.pack(MAGIC_NANOSECONDS, 2, 4, 0, 0, snap, linktype)


def pack_record(time: int, frame: Frame, length: int | None = None) -> bytes:
    """*time* in nanoseconds since the epoch; *length* on the wire, if *frame* is not all of it."""
    size = len(frame)
    return b"".join((RECORD.pack(time // SECOND & 0xFFFFFFFF, time % SECOND, size, size if length is None else length), frame))


class PcapReader:
    """Reads a file piece by piece: `feed` yields the records that are whole. BadMessage, for good, when the file is none."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._order = ""
        self._unit = 1
        self._linktype = LINKTYPE_ETHERNET
        self._tail = 0

    @property
    def whole(self) -> bool:
        """What was fed ends behind a record."""
        return bool(self._order) and not self._data

    def feed(self, data: Frame) -> Iterator[Record]:
        self._data += data
        at = self._header() if not self._order else 0
        if not self._order:
            return
        header = struct.Struct(self._order + "IIII")
        try:
            while at + header.size <= len(self._data):
                seconds, fraction, size, length = header.unpack_from(self._data, at)
                if size > SNAP_MAX:
                    raise BadMessage(f"pcap: a record of {size} bytes")
                if fraction * self._unit >= SECOND:
                    raise BadMessage("pcap: a fraction of more than a second")
                begin = at + header.size
                if begin + size > len(self._data):
                    break
                at = begin + size
                frame = bytes(self._data[begin : at - self._tail if size >= self._tail else at])
                yield Record(seconds * SECOND + fraction * self._unit, frame, max(length - self._tail, len(frame)), self._linktype)
        finally:
            del self._data[:at]

    def _header(self) -> int:
        if len(self._data) < HEADER.size:
            return 0
        for order in "<>":
            magic, major, _, _, _, _, linktype = struct.unpack_from(order + "IHHiIII", self._data)
            if magic in (MAGIC_MICROSECONDS, MAGIC_NANOSECONDS):
                if major != 2:
                    raise BadMessage(f"pcap: version {major}")
                self._order = order
                self._unit = 1 if magic == MAGIC_NANOSECONDS else 1000
                self._linktype = linktype & 0xFFFF
                # Bit 26: the high four bits say how many 16-bit words of FCS are behind each frame.
                self._tail = (linktype >> 28) * 2 if linktype & 1 << 26 else 0
                return HEADER.size
        raise BadMessage("not a pcap file: no magic number at its beginning")
