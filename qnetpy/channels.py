"""Channels of (0, PID_SYSTEM) that a node of a cluster has beside the managers of `resmgr.ids`. docs/protocol/node.md has them all."""

from __future__ import annotations

CHID_CONTROL = 8
"""Commands of this machine (`qnetpy.control`). Takes no messages from other nodes."""
CHID_MEMBERS = 9
"""Membership (`qnetpy.members`)."""
CHID_GOSSIP = 10
"""Where other nodes are (`qnetpy.reach`)."""
CHID_FIRST = 16
"""The first that a program which is a node may take; those below are given by hand, here, in `resmgr.ids` and `stack.managers.protocol`."""
