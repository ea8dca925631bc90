"""A link: our association with one authenticated node. Keys (`Sessions`), one transport, and the paths over which the node is reached.

A path is an interface of ours and an address of the node there, under a number that both ends use for it. Numbers of the node with the
smaller name are even, the other's odd, so both may open paths at once. A number is taken only if no key that is still in use has seen it:
packet numbers begin at 0 on each path, and no key may see a path and packet number twice.
"""

from __future__ import annotations

from typing import Final

from qnetpy.link.outcome import PeerIdentity
from qnetpy.link.session import RekeyPolicy, Session, Sessions
from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.constants import BASE_PAYLOAD
from qnetpy.link.transport.machine import Transport
from qnetpy.link.transport.path import Path
from qnetpy.link.wire import DATA_OVERHEAD, Address, Arrivals

NUMBERS: Final = 256
"""Path numbers, of both ends together."""
NUMBERS_RENEW: Final = 48
"""New keys are asked for when an end has used that many of its 128 numbers under the present ones."""


class LinkPath:
    """Where one path of a link goes."""

    __slots__ = ("address", "asked", "claimed", "follows", "last_sent", "mtu", "named", "number", "ours", "prefix", "state")

    def __init__(self, number: int, address: Address, prefix: bytes, mtu: int, ours: bool, state: Path, now: float) -> None:
        self.number = number
        self.address = address
        self.prefix = prefix
        """Ethernet header of what we send."""
        self.mtu = mtu
        """Longest frame at `address`, as far as known; the transport finds out what really passes."""
        self.ours = ours
        """We opened it."""
        self.asked = False
        """Our CHALLENGE on it was answered."""
        self.named = b""
        """What the peer has named as its address on it; empty: nothing yet, or it names none."""
        self.claimed = False
        """The peer has named another address on it, which it may once."""
        self.follows = -1
        """The path in whose place it is opened, because the peer has another endpoint now; -1: none."""
        self.state = state
        """Its transport side, to be looked at."""
        self.last_sent = now


class Link:
    """State only; `qnetpy.link.machine.LinkMachine` drives it. Times are monotonic seconds."""

    __slots__ = (
        "alive", "attempt", "dirty", "heartbeat", "paths", "peer", "renew_at", "retry_at", "seek_at", "sessions", "silent", "smaller",
        "suspect", "transport", "transport_id", "tried", "used",
    )  # fmt: skip

    def __init__(
        self,
        peer: PeerIdentity,
        transport_id: int,
        config: TransportConfig,
        rekey: RekeyPolicy,
        heartbeat: float,
        smaller: bool,
        now: float,
    ) -> None:
        self.peer = peer
        self.heartbeat = heartbeat
        """Seconds without sending on a path after which a PING is sent there."""
        self.smaller = smaller
        """Our name is smaller than the peer's."""
        self.transport_id = transport_id
        self.sessions = Sessions(rekey)
        self.transport = Transport(config, now)
        self.paths: dict[int, LinkPath] = {}
        self.silent: set[int] = set()
        """Paths that do not answer."""
        self.alive = True
        self.suspect = False
        self.dirty = False
        """It may have something to transmit, and is in the machine's list of such links."""
        self.attempt = 0
        """Handshake under way to renew the keys."""
        self.renew_at = now
        """When to look whether the keys are due for renewal."""
        self.retry_at = 0.0
        """When a handshake for that may begin."""
        self.seek_at: float | None = None
        """When to look for addresses of the node that have no path."""
        self.tried: dict[Address, tuple[float, float]] = {}
        """Addresses where opening a path came to nothing: when to try again, and the pause before that."""
        self.used = 0
        """Last path number that we chose."""

    @property
    def name(self) -> str:
        return self.peer.name

    @property
    def best(self) -> LinkPath | None:
        """The path that would be used now; None: there is none."""
        return self.paths[self.transport.order()[0]] if self.paths else None

    def at(self, address: Address) -> LinkPath | None:
        """The path to *address*."""
        for path in self.paths.values():
            if path.address == address:
                return path
        return None

    def install(self, session: Session, now: float) -> list[Session]:
        """Use new keys. Returns the sessions that ended: forget their indices."""
        self.renew_at = now
        return self.sessions.install(session, now)

    def number(self) -> int | None:
        """A path number of ours that no key in use has seen; None when there is no more."""
        for step in range(2, NUMBERS + 2, 2):
            number = ((self.used + step) & ~1 | self.parity) % NUMBERS
            if number not in self.paths and not self.sessions.knows(number):
                self.used = number
                return number
        return None

    @property
    def parity(self) -> int:
        """Of the numbers that we choose."""
        return 0 if self.smaller else 1

    def numbers_low(self) -> bool:
        """New keys are needed soon for want of path numbers."""
        session = self.sessions.current
        return session is not None and session.paths_seen() >= NUMBERS_RENEW

    def deadline(self, silence: float) -> float:
        """When something is due on it. *silence*: seconds after the peer was heard last that say something."""
        transport = self.transport
        first = transport.last_received + silence
        for path in self.paths.values():
            when = path.last_sent + self.heartbeat
            if when < first and path.state.open:
                first = when
        if self.renew_at < first:
            first = self.renew_at
        if self.seek_at is not None and self.seek_at < first:
            first = self.seek_at
        other = transport.next_timeout()
        if other is not None and other < first:
            first = other
        other = self.sessions.next_timeout()
        if other is not None and other < first:
            first = other
        return first

    def open(self, index: int, arrivals: Arrivals) -> list[tuple[int, bytes]]:
        """Authentic new packets of a batch for our session *index*."""
        sessions = self.sessions
        session = sessions.current
        if session is not None and session.local_index == index:
            return session.open(arrivals)
        for session in sessions.held:
            if session.local_index == index:
                return session.open(arrivals)
        return []


def max_payload(mtu: int) -> int:
    """Largest transport packet on an interface of that MTU; never below what the protocol needs."""
    return max(mtu - DATA_OVERHEAD, BASE_PAYLOAD)
