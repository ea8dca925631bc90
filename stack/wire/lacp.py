"""Slow protocols: link aggregation control (LACP) and markers, IEEE 802.1AX-2008 clauses 5.4.2 and 5.5.3 (802.3ad-2000 clause 43).

    ethertype 0x8809, to 01:80:c2:00:00:02

    LACPDU  0          1         2            22             42               58           60
            +----------+---------+------------+--------------+----------------+------------+-------------+
            | subtype 1| version | actor      | partner      | collector      | terminator | reserved    |
            |          | 1       | type 1, 20 | type 2, 20   | type 3, 16     | type 0, 0  | 50 bytes    |
            +----------+---------+------------+--------------+----------------+------------+-------------+
            actor, partner: type, length, system priority, system, key, port priority, port, state, 3 reserved

    Marker  0          1         2                                               18           20
            +----------+---------+-----------------------------------------------+------------+-------------+
            | subtype 2| version | type 1 or 2, 16, port, system, transaction, 2 | terminator | reserved    |
            |          | 1       |                                               | type 0, 0  | 90 bytes    |
            +----------+---------+-----------------------------------------------+------------+-------------+

A later version is read as version 1, as the standard demands; what is reserved is not looked at.
"""

from __future__ import annotations

import enum
import struct

import attrs

from stack.frame import BadFrame, Frame
from stack.wire.ethernet import HEADER_SIZE, mac_text

ETHERTYPE = 0x8809
GROUP = bytes.fromhex("0180c2000002")
PDU_SIZE = 110
"""Of either, behind the Ethernet header."""
SUBTYPE_LACP = 1
SUBTYPE_MARKER = 2
VERSION = 1
_ACTOR, _PARTNER, _COLLECTOR = (1, 20), (2, 20), (3, 16)
_MARKER, _RESPONSE = (1, 16), (2, 16)
_INFO = struct.Struct("!BBH6sHHHB3x")
_COLLECT = struct.Struct("!BBH12x")
_MARK = struct.Struct("!BBH6sI2x")


class State(enum.IntFlag):
    """What a port says of itself."""

    ACTIVE = 0x01
    SHORT = 0x02
    """It wants to hear once a second, and gives up after three."""
    AGGREGATION = 0x04
    """It can be one of several."""
    SYNC = 0x08
    """It is in the aggregate that it should be in."""
    COLLECTING = 0x10
    DISTRIBUTING = 0x20
    DEFAULTED = 0x40
    EXPIRED = 0x80


@attrs.frozen
class PortInfo:
    """One end of a link, as LACP tells it."""

    system_priority: int
    system: bytes
    key: int
    port_priority: int
    port: int
    state: State

    @property
    def system_id(self) -> tuple[int, bytes]:
        return self.system_priority, self.system

    def same_port(self, other: PortInfo) -> bool:
        """The same port of the same system, as ready to be one of several."""
        mine = (self.system_id, self.key, self.port_priority, self.port, self.state & State.AGGREGATION)
        return mine == (other.system_id, other.key, other.port_priority, other.port, other.state & State.AGGREGATION)

    def __str__(self) -> str:
        state = "|".join(one.name or "" for one in State if one in self.state) or "-"
        return f"{self.system_priority:#06x}.{mac_text(self.system)} key {self.key} port {self.port} {state}"


@attrs.frozen
class Lacpdu:
    actor: PortInfo
    partner: PortInfo
    collector_delay: int = 0
    """Tens of microseconds."""

    def pack(self) -> bytes:
        """As it lies behind the Ethernet header."""
        head = bytes((SUBTYPE_LACP, VERSION))
        infos = _pack_info(_ACTOR, self.actor) + _pack_info(_PARTNER, self.partner)
        return (head + infos + _COLLECT.pack(*_COLLECTOR, self.collector_delay)).ljust(PDU_SIZE, b"\0")


@attrs.frozen
class Marker:
    """A question (or, with `response`, the answer) whether all that was sent on a link before has arrived."""

    port: int
    system: bytes
    transaction: int
    response: bool = False

    def pack(self) -> bytes:
        """As it lies behind the Ethernet header."""
        mark = _MARK.pack(*(_RESPONSE if self.response else _MARKER), self.port, self.system, self.transaction)
        return (bytes((SUBTYPE_MARKER, VERSION)) + mark).ljust(PDU_SIZE, b"\0")


SlowPdu = Lacpdu | Marker


def parse_slow(data: Frame) -> SlowPdu | None:
    """The PDU behind an Ethernet header; None for a slow protocol that is not ours. BadFrame when it is cut short or not what it says."""
    if not data:
        raise BadFrame("slow protocol frame cut short")
    if data[0] not in (SUBTYPE_LACP, SUBTYPE_MARKER):
        return None
    if len(data) < PDU_SIZE:
        raise BadFrame("slow protocol frame cut short")
    if data[1] < VERSION:
        raise BadFrame("slow protocol frame of version 0")
    if data[0] == SUBTYPE_LACP:
        actor, partner = _parse_info(data, 2, _ACTOR), _parse_info(data, 22, _PARTNER)
        kind, size, delay = _COLLECT.unpack_from(data, 42)
        if (kind, size) != _COLLECTOR:
            raise BadFrame("LACPDU without its collector information")
        return Lacpdu(actor, partner, delay)
    kind, size, port, system, transaction = _MARK.unpack_from(data, 2)
    if (kind, size) not in (_MARKER, _RESPONSE):
        raise BadFrame("marker of an unknown type")
    return Marker(port, system, transaction, (kind, size) == _RESPONSE)


def pack_slow(source: bytes, pdu: bytes) -> bytes:
    """A whole frame."""
    return b"".join((GROUP, source, ETHERTYPE.to_bytes(2, "big"), pdu))


def is_slow(frame: Frame) -> bool:
    """*frame* is of the slow protocols, untagged."""
    return len(frame) >= HEADER_SIZE and frame[12] == ETHERTYPE >> 8 and frame[13] == ETHERTYPE & 0xFF


def _pack_info(tag: tuple[int, int], info: PortInfo) -> bytes:
    return _INFO.pack(*tag, info.system_priority, info.system, info.key, info.port_priority, info.port, info.state)


def _parse_info(data: Frame, offset: int, tag: tuple[int, int]) -> PortInfo:
    kind, size, system_priority, system, key, port_priority, port, state = _INFO.unpack_from(data, offset)
    if (kind, size) != tag:
        raise BadFrame("LACPDU without its actor or partner information")
    return PortInfo(system_priority, system, key, port_priority, port, State(state))
