"""Ethernet headers of handshake and data frames: untagged, stations are MAC addresses. Nothing here raises for what a frame holds."""

from __future__ import annotations


def is_individual(station: bytes) -> bool:
    """Whether that can be the address of one node: not a group, not nobody."""
    return len(station) == 6 and not station[0] & 1 and any(station)


def source(frame: memoryview) -> bytes:
    """The station that a frame says it comes from. The frame's header is whole."""
    return bytes(frame[6:12])


def header(station: bytes, own: bytes, ethertype: int) -> bytes:
    """What goes before a frame from our address *own* to *station*."""
    return station + own + ethertype.to_bytes(2, "big")
