"""Who a client is: what a server may know of the sender of a message."""

from __future__ import annotations

import attrs

from resmgr.ids import Nd


@attrs.frozen
class Credentials:
    """Who a client is. `groups` are supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    pid: int = 0

    @property
    def of_daemon(self) -> bool:
        """It is a daemon that speaks for its node, and no user of the node. A process always has a pid: the socket tells it."""
        return self.uid == 0 and self.pid == 0


@attrs.frozen
class ClientInfo:
    """What a server may know of the sender: MsgInfo and ConnectClientInfo in one. Filled by the kernel, never by the client's bytes.

    `nd` is 0 for a local client; `node` and `roles` come from the peer's certificate and are empty for a local client. The credentials of a
    remote client are what its node claims: map them (`resmgr.access`) before acting on them. `scoid` is unique per client connection.
    """

    nd: Nd
    node: str
    roles: frozenset[str]
    credentials: Credentials
    scoid: int
