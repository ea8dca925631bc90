"""BPDUs of the spanning tree protocols: IEEE 802.1D-1998 (configuration, topology change notification) and 802.1D-2004 (rapid), clause 9.

    0          2         3      4       5         13     17          25     27    29    31      33      35
    +----------+---------+------+-------+---------+------+-----------+------+-----+-----+-------+-------+---------+
    | protocol | version | type | flags | root    | cost | bridge    | port | age | max | hello | delay | length  |
    | 0        |         |      |       |         |      |           |      |     | age |       |       | 0, RST  |
    +----------+---------+------+-------+---------+------+-----------+------+-----+-----+-------+-------+---------+
    type 0x00 configuration, version 0: ends at 35      type 0x80 topology change notification: ends at 4
    type 0x02 rapid, version 2 or more: ends at 36, a later version may add to it

    flags, from bit 0: topology change, proposal, port role (2 bits), learning, forwarding, agreement, topology change acknowledgement
    (a configuration BPDU has the first and the last only)

Times are unsigned 16-bit numbers of 1/256 s. An identifier of a bridge is eight bytes, priority and MAC address, and orders as bytes do;
one of a port is 16 bits: four of priority and twelve of number.
"""

from __future__ import annotations

import enum
import struct

import attrs

from stack.frame import BadFrame, Frame
from stack.wire.ethernet import MAC_SIZE, mac_text

GROUP = bytes.fromhex("0180c2000000")
"""Where BPDUs are sent to."""
RESERVED = GROUP[:5]
"""Group addresses that begin so and end in 00 to 0f are never forwarded by a bridge (802.1D-2004 table 7-10)."""

BRIDGE_ID_SIZE = 8
_HEAD = struct.Struct("!HBB")
_BODY = struct.Struct("!B8sI8sHHHHH")
CONFIG_SIZE = _HEAD.size + _BODY.size
RST_SIZE = CONFIG_SIZE + 1
TCN_SIZE = _HEAD.size

TYPE_CONFIG = 0x00
TYPE_RST = 0x02
TYPE_TCN = 0x80
VERSION_STP = 0
VERSION_RSTP = 2

_TC, _PROPOSAL, _LEARNING, _FORWARDING, _AGREEMENT, _TC_ACK = 0x01, 0x02, 0x10, 0x20, 0x40, 0x80
_ROLE_SHIFT = 2


class Role(enum.IntEnum):
    """The sending port's role, as a rapid BPDU says it."""

    UNKNOWN = 0
    ALTERNATE = 1
    """Or backup."""
    ROOT = 2
    DESIGNATED = 3


@attrs.frozen(order=True)
class Priority:
    """A priority vector; the lesser is the better one."""

    root: bytes
    cost: int
    bridge: bytes
    port: int

    @property
    def sender(self) -> tuple[bytes, int]:
        """MAC address and number of the port that says so, whatever priorities it has."""
        return self.bridge[2:], self.port & 0xFFF


@attrs.frozen
class Times:
    """Seconds, in steps of 1/256."""

    message_age: float
    max_age: float
    hello: float
    forward_delay: float


@attrs.frozen
class Config:
    """A configuration BPDU; with `rapid` an RST BPDU, which has a role and flags besides."""

    priority: Priority
    times: Times
    topology_change: bool = False
    acknowledge: bool = False
    """Topology change acknowledgement: of a configuration BPDU."""
    rapid: bool = False
    role: Role = Role.DESIGNATED
    proposal: bool = False
    learning: bool = False
    forwarding: bool = False
    agreement: bool = False

    def pack(self) -> bytes:
        """As it lies behind the LLC header."""
        flags = _TC * self.topology_change
        if self.rapid:
            flags |= _PROPOSAL * self.proposal | self.role << _ROLE_SHIFT | _LEARNING * self.learning
            flags |= _FORWARDING * self.forwarding | _AGREEMENT * self.agreement
        else:
            flags |= _TC_ACK * self.acknowledge
        vector, times = self.priority, self.times
        age, max_age, hello, delay = map(_units, (times.message_age, times.max_age, times.hello, times.forward_delay))
        body = _BODY.pack(flags, vector.root, vector.cost, vector.bridge, vector.port, age, max_age, hello, delay)
        if self.rapid:
            return _HEAD.pack(0, VERSION_RSTP, TYPE_RST) + body + b"\0"
        return _HEAD.pack(0, VERSION_STP, TYPE_CONFIG) + body

    def __str__(self) -> str:
        said = [
            name for name in ("topology_change", "acknowledge", "proposal", "learning", "forwarding", "agreement") if getattr(self, name)
        ]
        kind = f"RST {self.role.name.lower()}" if self.rapid else "configuration"
        vector = self.priority
        where = f"root {bridge_text(vector.root)} cost {vector.cost} bridge {bridge_text(vector.bridge)} port {vector.port:#06x}"
        return " ".join((kind, where, *said))


@attrs.frozen
class TopologyChange:
    """A topology change notification: what a bridge tells its root port's network."""

    def pack(self) -> bytes:
        """As it lies behind the LLC header."""
        return _HEAD.pack(0, VERSION_STP, TYPE_TCN)


Bpdu = Config | TopologyChange


def parse_bpdu(data: Frame) -> Bpdu:
    """The BPDU behind an LLC header, perhaps with more behind it. BadFrame when it is none, or cut short."""
    if len(data) < TCN_SIZE:
        raise BadFrame("BPDU cut short")
    protocol, version, kind = _HEAD.unpack_from(data)
    if protocol != 0:
        raise BadFrame("BPDU of an unknown protocol")
    if kind == TYPE_TCN:
        return TopologyChange()
    rapid = kind == TYPE_RST and version >= VERSION_RSTP
    if not rapid and kind != TYPE_CONFIG:
        raise BadFrame("BPDU of an unknown type")
    if len(data) < (RST_SIZE if rapid else CONFIG_SIZE):
        raise BadFrame("BPDU cut short")
    flags, root, cost, bridge, port, age, max_age, hello, delay = _BODY.unpack_from(data, _HEAD.size)
    vector, times = Priority(root, cost, bridge, port), Times(age / 256, max_age / 256, hello / 256, delay / 256)
    role = Role(flags >> _ROLE_SHIFT & 3)
    if not rapid or role is Role.UNKNOWN:
        # 802.1D-2004 9.2.9: a rapid BPDU of unknown role is taken for a configuration BPDU.
        return Config(vector, times, bool(flags & _TC), bool(flags & _TC_ACK) and not rapid)
    return Config(
        vector,
        times,
        bool(flags & _TC),
        rapid=True,
        role=role,
        proposal=bool(flags & _PROPOSAL),
        learning=bool(flags & _LEARNING),
        forwarding=bool(flags & _FORWARDING),
        agreement=bool(flags & _AGREEMENT),
    )


def bridge_id(priority: int, mac: bytes) -> bytes:
    """Eight bytes of a priority of 16 bits and a MAC address."""
    return priority.to_bytes(2, "big") + mac


def bridge_text(identifier: bytes) -> str:
    """`8000.02:00:00:00:00:01`, as Linux and the standard's readers write it."""
    return f"{identifier[: BRIDGE_ID_SIZE - MAC_SIZE].hex()}.{mac_text(identifier[BRIDGE_ID_SIZE - MAC_SIZE :])}"


def _units(seconds: float) -> int:
    return min(0xFFFF, max(0, round(seconds * 256)))
