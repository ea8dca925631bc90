"""802.3 frames with a length, and the 802.2 LLC header in front of what they carry.

    0             6             12       14     15     16        17
    +-------------+-------------+--------+------+------+---------+-----------
    | destination | source      | length | DSAP | SSAP | control | payload
    +-------------+-------------+--------+------+------+---------+-----------

The length counts from DSAP on; what follows is padding. Only unnumbered information (control 3) is known here: nothing that we speak
uses another.
"""

from __future__ import annotations

from stack.frame import BadFrame, Frame
from stack.wire.ethernet import ETHERTYPE_MIN, HEADER_SIZE, SIZE_MIN

LLC_SIZE = 3
LENGTH_MAX = 1500
SAP_STP = 0x42
"""The spanning tree protocol."""
UI = 0x03


def is_llc(frame: Frame) -> bool:
    """*frame* has a length where others have an ethertype. False for one that is shorter than a header."""
    return len(frame) >= HEADER_SIZE and (frame[12] << 8 | frame[13]) < ETHERTYPE_MIN


def parse_llc(frame: Frame, sap: int) -> memoryview:
    """What *frame* carries for *sap*, without padding. BadFrame when it carries something else, or is cut short."""
    if not is_llc(frame):
        raise BadFrame("no 802.3 frame with a length")
    length = frame[12] << 8 | frame[13]
    if length > LENGTH_MAX:
        raise BadFrame("802.3 length above 1500")
    if not LLC_SIZE <= length <= len(frame) - HEADER_SIZE:
        raise BadFrame("802.3 length does not fit the frame")
    if (frame[14], frame[15], frame[16]) != (sap, sap, UI):
        raise BadFrame("LLC header of another protocol")
    return memoryview(frame)[HEADER_SIZE + LLC_SIZE : HEADER_SIZE + length]


def pack_llc(destination: bytes, source: bytes, sap: int, payload: bytes) -> bytes:
    """A whole frame, padded to the shortest that a wire takes."""
    length = LLC_SIZE + len(payload)
    frame = b"".join((destination, source, length.to_bytes(2, "big"), bytes((sap, sap, UI)), payload))
    return frame.ljust(SIZE_MIN, b"\0")
