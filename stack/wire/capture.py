"""Reads a file of frames, pcap or pcapng: its first bytes tell which."""

from __future__ import annotations

from collections.abc import Iterator

from stack.frame import Frame
from stack.wire.pcap import PcapReader, Record
from stack.wire.pcapng import PcapngReader

SECTION_TYPE = b"\x0a\x0d\x0d\x0a"


class CaptureReader:
    """`feed` it a file piece by piece; it yields the records that are whole. BadMessage, for good, when the file is none or is damaged."""

    def __init__(self) -> None:
        self._begin = bytearray()
        self._reader: PcapReader | PcapngReader | None = None

    @property
    def whole(self) -> bool:
        """What was fed is a file that ends behind a record."""
        return self._reader is not None and self._reader.whole

    def feed(self, data: Frame) -> Iterator[Record]:
        if self._reader is None:
            self._begin += data
            if len(self._begin) < len(SECTION_TYPE):
                return iter(())
            self._reader = PcapngReader() if self._begin.startswith(SECTION_TYPE) else PcapReader()
            data = bytes(self._begin)
            self._begin.clear()
        return self._reader.feed(data)


def read_records(data: bytes) -> list[Record]:
    """All records of a file in memory, but for one that is cut at its end. BadMessage when it is none."""
    return list(CaptureReader().feed(data))
