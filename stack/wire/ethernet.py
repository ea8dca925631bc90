"""Ethernet II header with 802.1Q / 802.1ad tags (IEEE 802.3 clause 3, 802.1Q clause 9).

    0             6             12      14
    +-------------+-------------+-------+----------------
    | destination | source      | type  | payload
    +-------------+-------------+-------+----------------

A tag is four bytes, TPID and TCI, between source and type; at most TAGS_MAX of them are skipped. Values of `type` up to 1500 are lengths
(802.3 with LLC): they are returned as they are and nobody can register them.

`ethertype_of`, `payload_offset` and `type_and_offset` are for the receive path. `Ethernet` is the value, for everything else.
"""

from __future__ import annotations

import re
import struct
from typing import Final

import attrs

from stack.frame import BadFrame, Frame

HEADER: Final = struct.Struct("!6s6sH")
HEADER_SIZE: Final = 14
TAG: Final = struct.Struct("!HH")
TAG_SIZE: Final = 4
TAGS_MAX: Final = 2
"""802.1ad stacks two. A frame with more is bad: no run of tags may make us walk a frame."""
SIZE_MIN: Final = 60
"""Shortest frame on a real wire, without FCS: drivers may pad to it."""
MTU_DEFAULT: Final = 1500
MTU_MIN: Final = 68
"""Every link of IPv4 carries this much (RFC 791)."""
ETHERTYPE_MIN: Final = 0x0600
"""Below this the field is a length."""

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_IPV6: Final = 0x86DD
ETHERTYPE_EXPERIMENTAL: Final = 0x88B5
"""IEEE 802: local experiments 1. What Qnet uses unless it is told another."""

TPID_8021Q: Final = 0x8100
TPID_8021AD: Final = 0x88A8
TPID_QINQ_OLD: Final = 0x9100
TPIDS: Final = frozenset((TPID_8021Q, TPID_8021AD, TPID_QINQ_OLD))

BROADCAST: Final = b"\xff" * 6
MAC_SIZE: Final = 6

unpack_type: Final = struct.Struct("!12xH").unpack_from
"""(type,) of a frame, tag or not; struct.error when it is shorter than a header."""
_unpack_tagged_type: Final = struct.Struct("!16xH").unpack_from
_unpack_twice_tagged_type: Final = struct.Struct("!20xH").unpack_from
_MAC_TEXT = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}|[0-9a-fA-F]{2}(-[0-9a-fA-F]{2}){5}")


def made_station(seed: bytes) -> bytes:
    """A locally administered address of a station, out of six bytes of chance or of a hash."""
    return bytes((seed[0] & 0xFC | 0x02,)) + seed[1:MAC_SIZE]


def mac_text(mac: bytes) -> str:
    """`02:00:00:00:00:01`. *mac* has six bytes."""
    return mac.hex(":")


def mac_bytes(text: str) -> bytes:
    """Six bytes of `02:00:00:00:00:01` or `02-00-...`; ValueError otherwise."""
    if _MAC_TEXT.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a MAC address like 02:00:00:00:00:01")
    return bytes.fromhex(text.replace(":", "").replace("-", ""))


def is_group(mac: Frame) -> bool:
    """Multicast or broadcast: the I/G bit of the first byte."""
    return bool(mac[0] & 1)


def ethertype_of(frame: Frame) -> int:
    """The type behind the tags. BadFrame when the frame ends before it or has more than TAGS_MAX tags."""
    try:
        kind: int = unpack_type(frame)[0]
        if kind not in TPIDS:
            return kind
        kind = _unpack_tagged_type(frame)[0]
        if kind not in TPIDS:
            return kind
        kind = _unpack_twice_tagged_type(frame)[0]
    except struct.error:
        raise BadFrame("Ethernet header cut short") from None
    if kind in TPIDS:
        raise BadFrame("more than two VLAN tags")
    return kind


def type_and_offset(frame: Frame) -> tuple[int, int]:
    """Both, for who wants both: `ethertype_of` and `payload_offset`."""
    try:
        kind: int = unpack_type(frame)[0]
        if kind not in TPIDS:
            return kind, HEADER_SIZE
        kind = _unpack_tagged_type(frame)[0]
        if kind not in TPIDS:
            return kind, HEADER_SIZE + TAG_SIZE
        kind = _unpack_twice_tagged_type(frame)[0]
    except struct.error:
        raise BadFrame("Ethernet header cut short") from None
    if kind in TPIDS:
        raise BadFrame("more than two VLAN tags")
    return kind, HEADER_SIZE + 2 * TAG_SIZE


def payload_offset(frame: Frame) -> int:
    """Where the payload begins: 14, 18 or 22. BadFrame as for `ethertype_of`."""
    return type_and_offset(frame)[1]


@attrs.frozen
class Ethernet:
    """A header. `tags` are (TPID, TCI) pairs from the outside in."""

    destination: bytes
    source: bytes
    ethertype: int
    tags: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> int:
        return HEADER_SIZE + TAG_SIZE * len(self.tags)

    def pack(self) -> bytes:
        tags = b"".join(TAG.pack(*tag) for tag in self.tags)
        return b"".join((self.destination, self.source, tags, self.ethertype.to_bytes(2, "big")))

    @classmethod
    def parse(cls, frame: Frame) -> Ethernet:
        """The payload is `frame[header.size:]`. BadFrame as for `ethertype_of`."""
        kind, offset = type_and_offset(frame)
        tags = tuple(TAG.unpack_from(frame, place) for place in range(12, offset - 2, TAG_SIZE))
        return cls(bytes(frame[0:6]), bytes(frame[6:12]), kind, tags)

    def __str__(self) -> str:
        tags = "".join(f" vlan {tci & 0xFFF}" for _, tci in self.tags)
        return f"{mac_text(self.source)} > {mac_text(self.destination)}{tags} type {self.ethertype:#06x}"
