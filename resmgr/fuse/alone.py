"""Directories that this node has to itself: no program of another node looks at what is in them, or changes it, before this node was asked
(docs/protocol/delegation.md). So what a program of ours does there may be told done before the server has it (`removals`).

A delegation belongs to the lease of a directory, and to the base handle by which it was asked for. It is given back when the server recalls
it, when the lease rests or ends, when something is heard to have been changed there (by a program of the server, whom it does not hold up),
and when it was not used for a while; always after what is on the way there has arrived.
"""

from __future__ import annotations

import enum
import errno
from functools import partial
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.iomsg import DELEGATION_ASK, REQUEST, Io

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.lease import Lease
    from resmgr.fuse.servers import Server

MOST: Final = 32
"""Directories of one mount."""
QUIET: Final = 60.0
"""Seconds since the server last told of a change in a directory before it is asked for: others work there."""
NOT_AGAIN: Final = 10.0
"""Seconds after a refusal, or a recall, before it is asked for again."""
KEPT: Final = 10.0
"""Seconds after which one that was not used is given back."""


class State(enum.Enum):
    ASKED = enum.auto()
    HELD = enum.auto()
    OVER = enum.auto()


class Delegation:
    """The directory of *lease*, by its base handle *handle* on *connection*."""

    def __init__(self, lease: Lease, connection: Connection, handle: int, now: float) -> None:
        self.lease = lease
        self.since = lease.since
        self.connection = connection
        self.handle = handle
        self.used = now
        self.state = State.ASKED


class Alone:
    """Of one mount. Counts in `Core.drops`: `alone` (granted), `alone_refused`, `alone_recalled`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._of: dict[Lease, Delegation] = {}
        self._not_before: dict[Lease, float] = {}
        self._never: set[Server] = set()
        core.awake.keep(self._tidy, self._all)

    def __len__(self) -> int:
        return len(self._of)

    # ---- used

    def holds(self, lease: Lease, now: float) -> bool:
        """Whether no other node is in the directory of *lease*."""
        held = self._of.get(lease)
        if held is None or held.state is not State.HELD:
            return False
        if lease.node.handles.get(held.connection) != held.handle:
            # Let go to save handles. It is closed in a second or two, and the delegation with it: nobody is to wait as long.
            self._end(held)
            return False
        if not self._core.awake.check():
            return False
        held.used = now
        return True

    def has(self, lease: Lease) -> bool:
        """Whether its base handle is needed for that."""
        return lease in self._of

    def ask(self, lease: Lease, now: float) -> None:
        """Ask for the directory of *lease*, unless that is vain."""
        node, connection = lease.node, lease.connection
        handle = node.handles.get(connection)
        if lease in self._of or handle is None or len(self._of) >= MOST or node.server in self._never:
            return
        if now < self._not_before.get(lease, 0.0) or self._core.logs.heard_of(node, now - QUIET):
            return
        held = self._of[lease] = Delegation(lease, connection, handle, now)
        self._core.awake.watch()
        connection.submit((REQUEST.pack(Io.DELEGATION, 0, DELEGATION_ASK, handle),), 0, partial(self._asked, held))

    def _asked(self, held: Delegation, status: int, reply: Buffer) -> None:
        lease = held.lease
        if status == 1 and held.state is State.ASKED and lease.node.lease is lease and lease.live and lease.since == held.since:
            held.state = State.HELD
            self._core.drops["alone"] += 1
            return
        if status == 1:
            self._send_back(held)
        elif status in (-errno.ENOSYS, -errno.EBADMSG):
            # It knows none, or none of directories.
            self._never.add(lease.node.server)
        else:
            self._core.drops["alone_refused"] += 1
        self._forget(held)

    # ---- given back

    def recalled(self, connection: Connection, ino: int) -> None:
        """Somebody on another node wants to look."""
        for held in [held for held in self._of.values() if held.connection is connection and held.lease.ino == ino]:
            self._core.drops["alone_recalled"] += 1
            self._end(held)

    def unleased(self, lease: Lease) -> None:
        """What *lease* told is not sure any more, or somebody else works in its directory."""
        held = self._of.get(lease)
        if held is not None:
            self._end(held)

    def left(self, lease: Lease) -> None:
        """The kernel has forgotten its directory: its handles are closed, and with them what is delegated."""
        held = self._of.get(lease)
        if held is not None:
            held.state = State.OVER
            self._forget(held)

    def _all(self) -> None:
        for held in list(self._of.values()):
            self._end(held)

    def _end(self, held: Delegation) -> None:
        before, held.state = held.state, State.OVER
        self._forget(held)
        if before is not State.HELD:
            # If it was asked for, its answer says whether there is something to be given back.
            return
        removing = held.lease.node.removing
        if removing is not None and removing.names:
            removing.wait(partial(self._send_back, held))
        else:
            self._send_back(held)

    def _forget(self, held: Delegation) -> None:
        if self._of.get(held.lease) is held:
            del self._of[held.lease]
            self._not_before[held.lease] = self._core.dispatch.now() + NOT_AGAIN

    def _send_back(self, held: Delegation) -> None:
        if not held.connection.closed:
            held.connection.submit((REQUEST.pack(Io.DELEGATION, 0, 0, held.handle),), 0, _ignore)

    # ---- time

    def _tidy(self, now: float) -> bool:
        for held in [held for held in self._of.values() if held.state is State.HELD and now - held.used >= KEPT]:
            self._end(held)
        self._not_before = {lease: until for lease, until in self._not_before.items() if now < until}
        return bool(self._of or self._not_before)

    def close(self) -> None:
        """The mount is gone; its connections are closed by others. Idempotent."""
        for held in self._of.values():
            held.state = State.OVER
        self._of.clear()
        self._not_before.clear()


def _ignore(status: int, reply: Buffer) -> None:
    """Nobody is to be told: if the server does not know it, it is gone."""
