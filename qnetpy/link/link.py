"""A link: our association with one authenticated node. Keys (`Sessions`), one transport, and the address where the node is reached now.

A link uses one path at a time. When its interface fails, or the node writes from elsewhere, the link moves: the new path has the next path
number (modulo 256), the transport carries what was in flight over to it, and the other end follows the newer number. So a path number
means the same address period on both ends, and packet numbers never start again under one key.
"""

from __future__ import annotations

from qnetpy.link.outcome import PeerIdentity
from qnetpy.link.session import RekeyPolicy, Sessions
from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.constants import BASE_PAYLOAD
from qnetpy.link.transport.machine import Transport
from qnetpy.link.wire import DATA_OVERHEAD, Address, Arrivals

PATHS = 256
MOVES_PER_KEY = 100
"""Moves under one key. Path numbers come round after 256, and a number may not come twice under a key; a rekey allows as many again."""


class Link:
    """State only; `qnetpy.link.machine.LinkMachine` drives it. Times are monotonic seconds."""

    __slots__ = (
        "address", "alive", "attempt", "dirty", "last_sent", "moves", "mtu", "path", "peer", "prefix", "retry_at", "sessions", "suspect",
        "transport", "transport_id",
    )  # fmt: skip

    def __init__(
        self,
        peer: PeerIdentity,
        transport_id: int,
        address: Address,
        prefix: bytes,
        mtu: int,
        config: TransportConfig,
        rekey: RekeyPolicy,
        now: float,
    ) -> None:
        self.peer = peer
        self.transport_id = transport_id
        self.address = address
        self.prefix = prefix
        """Ethernet header of what we send."""
        self.mtu = mtu
        """Longest Ethernet payload that both ends take, from the handshake."""
        self.sessions = Sessions(rekey)
        self.transport = Transport(config, now)
        self.path = 0
        self.transport.add_path(0, max_payload(mtu), now)
        self.alive = True
        self.suspect = False
        self.dirty = False
        """It may have something to transmit."""
        self.attempt = 0
        """Handshake under way to renew the keys."""
        self.retry_at = 0.0
        """When the next one may begin."""
        self.moves = 0
        self.last_sent = now

    @property
    def name(self) -> str:
        return self.peer.name

    def move(self, address: Address, prefix: bytes, mtu: int, now: float, path: int | None = None) -> None:
        """Go on at *address*, on path number *path* (the other end's choice) or the next one."""
        self.transport.remove_path(self.path, now)
        self.path = (self.path + 1) % PATHS if path is None else path
        self.transport.add_path(self.path, max_payload(min(mtu, self.mtu)), now)
        self.address = address
        self.prefix = prefix
        self.moves += 1
        self.dirty = True

    def newer(self, path: int) -> bool:
        """Whether *path* is a later path number than ours."""
        return 0 < (path - self.path) % PATHS < PATHS // 2

    def open(self, index: int, arrivals: Arrivals) -> list[tuple[int, bytes]]:
        """Authentic new packets of a batch for our session *index*."""
        sessions = self.sessions
        for session in (sessions.current, sessions.previous):
            if session is not None and session.local_index == index:
                return session.open(arrivals)
        return []


def max_payload(mtu: int) -> int:
    """Largest transport packet on an interface of that MTU; never below what the protocol needs."""
    return max(mtu - DATA_OVERHEAD, BASE_PAYLOAD)
