"""The table of a manager's clients and handles: who owns a handle, and how it ends.

A handle's number is the channel's id in the upper bits and a counter that is never used twice: a number is valid on one server of one node,
so two servers never mistake each other's handles, and a stale one is EBADF instead of somebody else's file. Where a server's clients may go
on after its daemon was started anew, on the same channel, its counter begins somewhere else each time (`first`).

A handle belongs to the client connection (scoid) that obtained it, and dies with it. One exception: the path manager hands a connect
message on to the manager of the name, so the reply's handle is made on the *path manager's* connection and used on the manager's own.
Such a handle is *lent*; the first connection with the same credentials from the same node that uses it on the manager's channel adopts
it. Beyond that, a handle is open to connections of the same node with equal credentials (a rename between two servers' directories needs
it): that gives away nothing, as the operation is carried out with those credentials in any case.
"""

from __future__ import annotations

import errno
from typing import Final, Generic, TypeVar

from resmgr.channel import ClientInfo
from resmgr.iofunc.handle import Client, Handle

HANDLE_BITS: Final = 40
_CHID_MASK: Final = (1 << 64 - HANDLE_BITS) - 1
"""A process's channel ids are longer; what they begin with tells its links apart, which a handle need not."""
HANDLES_PER_CLIENT: Final = 65536
"""Handles of one client connection; more is EMFILE. Stops a client that opens for ever from taking all memory or descriptors."""
HANDLES_PER_MANAGER: Final = 1 << 20
"""Handles of one manager; more is ENFILE. A node may have half of them, so that one node cannot take them from all others, and one of its
users, or of this machine's except root, three quarters of such a half, so that one user cannot take them from the rest of the node."""
CLIENTS_MAX: Final = 16384
"""Client connections of one manager; more is ENFILE. Stops connection floods; each costs a record of about 300 bytes. A node and a user
have shares as of handles. The last eighth is not for other nodes and the last sixteenth only for this machine's root, so that no number of
nodes or users shuts those out who could help."""

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

    def __init__(
        self, chid: int, handles_per_client: int, clients_max: int, handles_max: int = HANDLES_PER_MANAGER, first: int = 1
    ) -> None:
        """*first*: of the counter, below 2 ** (HANDLE_BITS - 1)."""
        self.clients: dict[int, C] = {}
        self.handles: dict[int, Handle] = {}
        self.handles_per_client = handles_per_client
        self.clients_max = clients_max
        self.handles_max = handles_max
        self._of_node: dict[int, int] = {}
        self._of_user: dict[tuple[int, int], int] = {}
        self._clients_of_node: dict[int, int] = {}
        self._clients_of_user: dict[tuple[int, int], int] = {}
        self._next = ((chid & _CHID_MASK) << HANDLE_BITS) + first

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
