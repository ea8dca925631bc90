"""The 802.1Q tag of a frame: put on, read, taken off (IEEE 802.1Q clause 9).

    0             6             12       14          16
    +-------------+-------------+--------+-----------+-------+----------
    | destination | source      | 0x8100 | TCI       | type  | payload
    +-------------+-------------+--------+-----------+-------+----------
                                           priority (3 bits), drop eligible (1), VLAN id (12)

Id 0 is a priority tag: it names no VLAN. Id 4095 is reserved and never valid.
"""

from __future__ import annotations

import struct

from stack.frame import Frame
from stack.wire.ethernet import HEADER_SIZE, TAG, TAG_SIZE, TPID_8021Q

ID_MAX = 4094
PRIORITY_MAX = 7
UNTAGGED = -1
_TAG_AT = 12
_unpack_tag = struct.Struct("!12xHH").unpack_from


def vlan_of(frame: Frame) -> int:
    """The VLAN id of the outermost 802.1Q tag; UNTAGGED for a frame that has none, or is too short to have one."""
    if len(frame) < HEADER_SIZE + TAG_SIZE:
        return UNTAGGED
    tpid, tci = _unpack_tag(frame)
    return tci & 0xFFF if tpid == TPID_8021Q else UNTAGGED


def tagged(frame: Frame, vlan: int, priority: int) -> bytes:
    """A copy of *frame*, which has a whole header, with a tag in front of its type."""
    return b"".join((frame[:_TAG_AT], TAG.pack(TPID_8021Q, priority << 13 | vlan), frame[_TAG_AT:]))


def untagged(frame: Frame) -> bytes:
    """A copy of *frame*, which has a tag, without it."""
    return b"".join((frame[:_TAG_AT], frame[_TAG_AT + TAG_SIZE :]))
