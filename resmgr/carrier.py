"""What carries messages between two kernels, and the state that both halves of a `resmgr.peer.Peer` share about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from resmgr.channel import Credentials, Descriptors, Kernel, Nd
from resmgr.dispatch import Buffer

WAITING: Final = -1
"""Of a route: messages wait for a way that is not there at the moment."""


class Carrier(Protocol):
    """Takes whole messages; see docs/architecture.md. *parts* are borrowed until the message is delivered. *route*: how it should travel
    (the upper half of a node descriptor, or what came with the message that this one answers); 0 leaves it to the carrier."""

    def send(self, stream: int, parts: Sequence[Buffer], priority: int, route: int = 0) -> None: ...


class DescriptorCarrier(Carrier, Protocol):
    """A carrier within one machine: passes open descriptors along with a message. They are lent until the call returns.

    OSError when there is no room for them; then nothing was sent.
    """

    def send_descriptors(self, stream: int, parts: Sequence[Buffer], priority: int, descriptors: Descriptors) -> None: ...


class Link:
    """One link to another kernel. The fields are `resmgr.peer.Peer`'s arguments."""

    __slots__ = (
        "closed", "congested", "credentials", "default_route", "descriptors", "dropped", "kernel", "nd", "node", "roles", "route", "send",
        "stuck", "suspected",
    )  # fmt: skip

    def __init__(
        self,
        kernel: Kernel,
        carrier: Carrier,
        nd: Nd,
        node: str,
        roles: frozenset[str],
        credentials: Credentials | None,
        congested: Callable[[], bool],
        descriptors: DescriptorCarrier | None,
        stuck: Callable[[int], int],
        route: int,
    ) -> None:
        self.kernel = kernel
        self.send = carrier.send
        self.nd = nd
        self.node = node
        self.roles = roles
        self.credentials = credentials
        self.congested = congested
        self.descriptors = descriptors
        self.stuck = stuck
        self.default_route = route
        self.route = 0
        """Of the message that is being received."""
        self.closed = False
        self.suspected = False
        self.dropped: Counter[str] = Counter()
