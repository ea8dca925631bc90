"""Well-known numbers of message passing: node, process and channel ids, priorities, system pulses. Imports nothing that costs time."""

from __future__ import annotations

from typing import Final, NewType

Nd = NewType("Nd", int)
"""Node descriptor: 0 is this node, others are private to this node and name a peer as the network module numbered it."""

ND_LOCAL = Nd(0)
ND_BITS: Final = 16
"""The lower half of a node descriptor is the node; the upper one is how messages should travel there (quality of service), 0 by default."""
PID_SYSTEM: Final = 1
"""The node itself (procnto's place): its channels are the well-known managers."""
CHID_PATHMGR: Final = 1
CHID_PROCMGR: Final = 2
CHID_NAMES: Final = 3
CHID_NODES: Final = 5
"""Events of nodes (`resmgr.nodes`). 4 is io-pkt's."""
CHID_ATTACH: Final = 6
CHID_REPLICA: Final = 11
"""Global names, between daemons (`resmgr.names`)."""
CHID_COPIES: Final = 12
"""Tickets for ranges of files, brought by other nodes (`resmgr.hostfs.offers`)."""
CHID_ROSTER: Final = 13
"""Names of accounts (`resmgr.rosters`)."""
CHIDS_DAEMONS = range(9, 14)
"""Channels of PID_SYSTEM on which nothing but the daemons of other nodes is heard. No process is brought to another node's."""
PRIORITY_DEFAULT: Final = 10
PRIORITY_MAX: Final = 63
REPLY_LEN_MAX: Final = (1 << 32) - 1
DESCRIPTORS_MAX: Final = 16
"""Descriptors that come with one message or reply."""
FIRST_PART_DEFAULT: Final = 16 * 1024
"""Bytes of a message that travel unasked to a channel in another process or node; QNX sends 8 KB. The rest is pulled by `Message.read`."""


def node_of(nd: int) -> int:
    """The node of a descriptor, without how messages travel there: equal for all descriptors of one node."""
    return nd & (1 << ND_BITS) - 1


PULSE_UNBLOCK: Final = -32
"""A client of a server in another process wants out; value is the transaction. In a kernel this is `Message.on_unblock`."""
PULSE_DISCONNECT: Final = -33
"""The last connection of a client to this channel is gone (its process, its node or its close)."""
PULSE_COIDDEATH: Final = -35
"""The server behind a connection of yours is gone; value is the coid."""
PULSE_CODE_MAX: Final = 127
"""User pulses are 0 to 127, as in QNX."""
PULSE_VALUE_MIN: Final = -(1 << 63)
PULSE_VALUE_MAX: Final = (1 << 63) - 1
