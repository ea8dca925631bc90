"""A link: our association with one authenticated node. Keys (`Sessions`), one transport, and the address where the node is reached now.

A link uses one path at a time. When its interface fails, or the node writes from elsewhere, the link moves: the new path has the next path
number (modulo 256), the transport carries what was in flight over to it, and the other end follows the newer number. So a path number
means the same address period on both ends, and packet numbers never start again under one key.
"""

from __future__ import annotations

from qnetpy.link.outcome import PeerIdentity
from qnetpy.link.session import RekeyPolicy, Session, Sessions
from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.constants import BASE_PAYLOAD
from qnetpy.link.transport.machine import Transport
from qnetpy.link.wire import DATA_OVERHEAD, Address, Arrivals

PATHS = 256
PATHS_PER_KEY = 60
"""How far the path number may advance under one key. A number may not come twice under a key, and a packet that was held back under this
key or the one before must not look newer than the present path: that begins half of PATHS away."""


TRIED_MAX = 16
"""Addresses remembered as left: stops a peer that moves about from filling memory."""


class Link:
    """State only; `qnetpy.link.machine.LinkMachine` drives it. Times are monotonic seconds."""

    __slots__ = (
        "address", "advance", "alive", "attempt", "dirty", "heartbeat", "last_sent", "lost", "move_at", "moved_at", "mtu",
        "path", "peer", "prefix", "renew_at", "retry_at", "sessions", "suspect", "transport", "transport_id", "tried",
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
        heartbeat: float,
        now: float,
    ) -> None:
        self.peer = peer
        self.heartbeat = heartbeat
        """Seconds without sending after which a PING is sent."""
        self.transport_id = transport_id
        self.address = address
        self.prefix = prefix
        """Ethernet header of what we send."""
        self.mtu = mtu
        """Longest Ethernet payload at `address`, as far as known; the transport finds out what really passes."""
        self.sessions = Sessions(rekey)
        self.transport = Transport(config, now)
        self.path = 0
        self.transport.add_path(0, max_payload(mtu), now)
        self.alive = True
        self.suspect = False
        self.lost = False
        """The transport's probes of this path are not answered."""
        self.dirty = False
        """It may have something to transmit, and is in the machine's list of such links."""
        self.attempt = 0
        """Handshake under way to renew the keys."""
        self.renew_at = now
        """When to look whether the keys are due for renewal."""
        self.retry_at = 0.0
        """When a handshake for that may begin."""
        self.advance = 0
        """How far `path` has advanced under the current key."""
        self.moved_at = now
        self.move_at = 0.0
        """When a suspect link tries the next address."""
        self.tried: dict[Address, float] = {}
        """When each address of the node was left."""
        self.last_sent = now

    @property
    def name(self) -> str:
        return self.peer.name

    def install(self, session: Session, now: float) -> list[Session]:
        """Use new keys. Returns the sessions that ended: forget their indices."""
        self.advance = 0
        self.renew_at = now
        return self.sessions.install(session, now)

    def may_move(self, path: int | None = None) -> bool:
        """Whether the key allows to go on to path number *path* or the next one."""
        step = 1 if path is None else (path - self.path) % PATHS
        return self.advance + step <= PATHS_PER_KEY

    def move(self, address: Address, prefix: bytes, mtu: int, now: float, path: int | None = None) -> None:
        """Go on at *address*, on path number *path* (the other end's choice) or the next one. Ask `may_move` first."""
        self.transport.remove_path(self.path, now)
        before = self.path
        self.path = (before + 1) % PATHS if path is None else path
        self.advance += (self.path - before) % PATHS
        self.transport.add_path(self.path, max_payload(mtu), now)
        self.tried.pop(self.address, None)
        self.tried[self.address] = now
        if len(self.tried) > TRIED_MAX:
            del self.tried[next(iter(self.tried))]
        self.address = address
        self.prefix = prefix
        self.mtu = mtu
        self.moved_at = now
        self.lost = False

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
