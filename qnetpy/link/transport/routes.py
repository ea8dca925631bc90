"""Routes: numbers that say by which policy, and over whose interface, a message wants to travel. `qnetpy.link.transport.policy` obeys them.

Interfaces have numbers, *ports*, that each end gives to its own and tells in its CHALLENGEs; so an answer can be asked to go the way of its
question. Route 0 leaves the choice to the connection.
"""

from __future__ import annotations

from typing import Final

LOADBALANCE: Final = 0
REDUNDANT: Final = 1
EXCLUSIVE: Final = 2
PREFERRED: Final = 3
NAMES: Final = ("loadbalance", "redundant", "exclusive", "preferred")
"""By number on the wire; the numbers are those of QNX's QoS types."""

CHOSEN: Final = 0x80
"""Marks a route that is not the node's own policy, which is 0."""
THEIRS: Final = 0x04
"""The port is the peer's."""


def route(policy: int, port: int = 0, theirs: bool = False) -> int:
    """The route of that policy over that port (1 to 255; 0 where the policy needs none). 16 bits, never 0."""
    return port << 8 | CHOSEN | (THEIRS if theirs else 0) | policy


def policy_of(number: int) -> int:
    return number & 3


def port_of(number: int) -> int:
    return number >> 8
