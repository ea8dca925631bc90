"""What an operator sets: of the bridge and of its ports. Values and limits of IEEE 802.1D-2004 table 17-1."""

from __future__ import annotations

import enum

import attrs
from attrs.validators import ge, le

from stack.wire.bpdu import Times


class Protocol(enum.Enum):
    """Which one is spoken (802.1D-2004's *force protocol version*)."""

    RSTP = "rstp"
    """Rapid; falls back by itself on a port behind which an 802.1D-1998 bridge is heard."""
    STP = "stp"
    """As 802.1D-1998 speaks: no proposals, ports wait for the timers."""


@attrs.frozen
class TreeSettings:
    """Of the bridge; times in seconds."""

    protocol: Protocol = Protocol.RSTP
    priority: int = attrs.field(default=0x8000, validator=[ge(0), le(0xF000)])
    max_age: float = attrs.field(default=20.0, validator=[ge(6), le(40)])
    hello: float = attrs.field(default=2.0, validator=[ge(1), le(10)])
    forward_delay: float = attrs.field(default=15.0, validator=[ge(2), le(30)])
    """Linux takes 2 s, the standard 4: with less a tree across seven bridges may not be told in time."""
    hold_count: int = attrs.field(default=6, validator=[ge(1), le(10)])
    """BPDUs that a port may send in a row; then one a second."""

    def __attrs_post_init__(self) -> None:
        if self.priority % 0x1000:
            raise ValueError("the priority of a bridge is a multiple of 4096")

    @property
    def times(self) -> Times:
        return Times(0.0, self.max_age, self.hello, self.forward_delay)


@attrs.frozen
class PortSettings:
    """Of a port."""

    priority: int = attrs.field(default=0x80, validator=[ge(0), le(0xF0)])
    cost: int = attrs.field(default=20_000, validator=[ge(1), le(200_000_000)])
    """20,000 is a gigabit; 2,000 ten; Linux counts 4 and 2, as 802.1D-1998 did."""
    edge: bool = False
    """No bridge is behind it: forward at once, until a BPDU says otherwise."""
    auto_edge: bool = True
    """Take it for an edge when no BPDU was heard for three seconds."""
    point_to_point: bool = True
    """One bridge at most is behind it. Where it is a shared network instead, there are no agreements, and ports wait."""
    restricted_role: bool = False
    """Never the root port, whatever is heard: *root guard*."""
    restricted_tcn: bool = False
    """What is heard of topology changes goes no further."""
    guard: bool = False
    """*BPDU guard*: a BPDU takes the port out of service until it is put back."""

    def __attrs_post_init__(self) -> None:
        if self.priority % 0x10:
            raise ValueError("the priority of a port is a multiple of 16")
