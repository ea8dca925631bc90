"""Handles: what a client holds of a manager (base handles and open control blocks), who owns them, and how they end.

A handle's number is the channel's id in the upper bits and a counter that is never used twice: a number is valid on one server of one node,
so two servers never mistake each other's handles, and a stale one is EBADF instead of somebody else's file.

A handle belongs to the client connection (scoid) that obtained it, and dies with it. One exception: the path manager hands a connect
message on to the manager of the name, so the reply's handle is made on the *path manager's* connection and used on the manager's own.
Such a handle is *lent*; the first connection with the same credentials from the same node that uses it on the manager's channel adopts
it. Beyond that, a handle is open to connections of the same node with equal credentials (a rename between two servers' directories needs
it): that gives away nothing, as the operation is carried out with those credentials in any case.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Generic, TypeVar

from resmgr.channel import ClientInfo

HANDLE_BITS = 40
_CHID_MASK = (1 << 64 - HANDLE_BITS) - 1
"""A process's channel ids are longer; what they begin with tells its links apart, which a handle need not."""
HANDLES_PER_CLIENT = 65536
"""Handles of one client connection; more is EMFILE. Stops a client that opens for ever from taking all memory or descriptors."""
HANDLES_PER_MANAGER = 1 << 20
"""Handles of one manager; more is ENFILE. A node may have half of them, so that one node cannot take them from all others, and one of its
users, or of this machine's except root, three quarters of such a half, so that one user cannot take them from the rest of the node."""
CLIENTS_MAX = 16384
"""Client connections of one manager; more is ENFILE. Stops connection floods; each costs a record of about 300 bytes. A node and a user
have shares as of handles. The last eighth is not for other nodes and the last sixteenth only for this machine's root, so that no number of
nodes or users shuts those out who could help."""


class Handle:
    """One open thing. Subclasses add what it is, and override `release`."""

    __slots__ = ("at_close", "busy", "client", "closed", "lent", "number")

    def __init__(self) -> None:
        self.number = 0
        self.client: Client | None = None
        self.lent = False
        self.closed = False
        self.busy = 0
        """Uses by worker threads; `release` waits until it is 0."""
        self.at_close: dict[object, Callable[[Handle], None]] | None = None
        """Called once when it is closed, before `release`: locks and whatever waits for something. The key is who wants to be called."""

    def release(self) -> None:
        """Called once, when nothing uses the handle any more: give back descriptors and the like. Does not raise."""

    def hold(self) -> None:
        self.busy += 1

    def drop(self) -> None:
        self.busy -= 1
        if self.closed and self.busy == 0:
            self.release()

    def close(self) -> None:
        """Idempotent; `release` runs now, or when the last user drops."""
        if not self.closed:
            self.closed = True
            calls, self.at_close = self.at_close, None
            for call in () if calls is None else calls.values():
                call(self)
            if self.busy == 0:
                self.release()


class Client:
    """What a manager knows of one client connection. Subclasses add what they cache per client."""

    __slots__ = ("gone", "handles", "info")

    def __init__(self, info: ClientInfo) -> None:
        self.info = info
        self.handles: set[Handle] = set()
        self.gone = False

    def same_as(self, other: Client) -> bool:
        """Whether *other* acts with the same rights from the same node."""
        mine, theirs = self.info, other.info
        a, b = mine.credentials, theirs.credentials
        return mine.nd == theirs.nd and a.uid == b.uid and a.gid == b.gid and a.groups == b.groups


C = TypeVar("C", bound=Client)
K = TypeVar("K")


def _one_less(counts: dict[K, int], key: K) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]


class HandleTable(Generic[C]):
    """All clients and handles of one manager."""

    def __init__(self, chid: int, handles_per_client: int, clients_max: int, handles_max: int = HANDLES_PER_MANAGER) -> None:
        self.clients: dict[int, C] = {}
        self.handles: dict[int, Handle] = {}
        self.handles_per_client = handles_per_client
        self.clients_max = clients_max
        self.handles_max = handles_max
        self._of_node: dict[int, int] = {}
        self._of_user: dict[tuple[int, int], int] = {}
        self._clients_of_node: dict[int, int] = {}
        self._clients_of_user: dict[tuple[int, int], int] = {}
        self._next = ((chid & _CHID_MASK) << HANDLE_BITS) + 1

    def crowded(self, info: ClientInfo) -> bool:
        """Whether there is no room for one more client connection of who *info* is."""
        most, count, nd, uid = self.clients_max, len(self.clients), info.nd, info.credentials.uid
        if not (nd or uid):
            return count >= most
        share = most // 2
        if nd and (count >= most - most // 8 or self._clients_of_node.get(nd, 0) >= share):
            return True
        return count >= most - most // 16 or self._clients_of_user.get((nd, uid), 0) >= share - share // 4

    def admit(self, client: C) -> None:
        """Count *client* in, until `reap`."""
        info = client.info
        self.clients[info.scoid] = client
        self._clients_of_node[info.nd] = self._clients_of_node.get(info.nd, 0) + 1
        user = info.nd, info.credentials.uid
        self._clients_of_user[user] = self._clients_of_user.get(user, 0) + 1

    def full(self, client: C) -> int:
        """0, or why this client may have no further handle: EMFILE (it or its user has enough), ENFILE (its node, or all together)."""
        if len(client.handles) >= self.handles_per_client:
            return errno.EMFILE
        nd, uid = client.info.nd, client.info.credentials.uid
        share = self.handles_max // 2
        if (nd or uid) and self._of_user.get((nd, uid), 0) >= share - share // 4:
            return errno.EMFILE
        if len(self.handles) >= self.handles_max or (nd and self._of_node.get(nd, 0) >= share):
            return errno.ENFILE
        return 0

    def add(self, client: C, handle: Handle, lent: bool) -> int:
        """Register *handle* as *client*'s; the number to tell it."""
        number = self._next
        self._next = number + 1
        handle.number = number
        handle.client = client
        handle.lent = lent
        client.handles.add(handle)
        self.handles[number] = handle
        nd = client.info.nd
        self._of_node[nd] = self._of_node.get(nd, 0) + 1
        user = nd, client.info.credentials.uid
        self._of_user[user] = self._of_user.get(user, 0) + 1
        return number

    def find(self, client: C, number: int, native: bool) -> Handle | None:
        """The handle, if *client* may use it. *native*: the message came on the manager's own channel, so a lent handle is adopted, if the
        client has room for it; else it stays the lender's."""
        handle = self.handles.get(number)
        if handle is None:
            return None
        owner = handle.client
        if owner is client:
            return handle
        if owner is None or not owner.same_as(client):
            return None
        if native and handle.lent and len(client.handles) < self.handles_per_client:
            owner.handles.discard(handle)
            client.handles.add(handle)
            handle.client = client
            handle.lent = False
        return handle

    def close(self, handle: Handle) -> None:
        client = handle.client
        if self.handles.pop(handle.number, None) is not None and client is not None:
            client.handles.discard(handle)
            nd = client.info.nd
            _one_less(self._of_node, nd)
            _one_less(self._of_user, (nd, client.info.credentials.uid))
        handle.close()

    def reap(self, scoid: int) -> int:
        """The client is gone: close all it had. Returns how many handles that were."""
        client = self.clients.pop(scoid, None)
        if client is None:
            return 0
        client.gone = True
        info = client.info
        _one_less(self._clients_of_node, info.nd)
        _one_less(self._clients_of_user, (info.nd, info.credentials.uid))
        count = len(client.handles)
        for handle in list(client.handles):
            self.close(handle)
        return count

    def close_all(self) -> None:
        for scoid in list(self.clients):
            self.reap(scoid)


__all__ = ["CLIENTS_MAX", "HANDLES_PER_CLIENT", "HANDLES_PER_MANAGER", "HANDLE_BITS", "Client", "Handle", "HandleTable"]
