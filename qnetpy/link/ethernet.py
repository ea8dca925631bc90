"""The Ethernet bearer: frames of one ethertype, stations are MAC addresses."""

from __future__ import annotations


class EthernetBearer:
    """`qnetpy.link.bearer.Bearer`."""

    def __init__(self, ethertype: int) -> None:
        self._type = ethertype.to_bytes(2, "big")

    def individual(self, station: bytes) -> bool:
        return len(station) == 6 and not station[0] & 1 and any(station)

    def source(self, frame: memoryview) -> bytes:
        return bytes(frame[6:12])

    def prefix(self, own: bytes, station: bytes) -> bytes:
        return station + own + self._type
