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
from resmgr.dispatch import Buffer, Timer
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
TIDY: Final = 2.0


class State(enum.Enum):
    ASKED = enum.auto()
    HELD = enum.auto()
    OVER = enum.auto()


class Own:
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
        self._of: dict[Lease, Own] = {}
        self._not_before: dict[Lease, float] = {}
        self._never: set[Server] = set()
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._of)

    # ---- used

    def holds(self, lease: Lease, now: float) -> bool:
        """Whether no other node is in the directory of *lease*."""
        own = self._of.get(lease)
        if own is None or own.state is not State.HELD:
            return False
        if lease.node.handles.get(own.connection) != own.handle:
            # Let go to save handles. It is closed in a second or two, and the delegation with it: nobody is to wait as long.
            self._end(own)
            return False
        if not self._core.delegated.awake():
            return False
        own.used = now
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
        own = self._of[lease] = Own(lease, connection, handle, now)
        self._core.delegated.watch()
        connection.submit((REQUEST.pack(Io.DELEGATION, 0, DELEGATION_ASK, handle),), 0, partial(self._asked, own))

    def _asked(self, own: Own, status: int, reply: Buffer) -> None:
        lease = own.lease
        if status == 1 and own.state is State.ASKED and lease.node.lease is lease and lease.live and lease.since == own.since:
            own.state = State.HELD
            self._core.drops["alone"] += 1
            self._tidy_later()
            return
        if status == 1:
            self._send_back(own)
        elif status in (-errno.ENOSYS, -errno.EBADMSG):
            # It knows none, or none of directories.
            self._never.add(lease.node.server)
        else:
            self._core.drops["alone_refused"] += 1
        self._forget(own)

    # ---- given back

    def recalled(self, connection: Connection, ino: int) -> None:
        """Somebody on another node wants to look."""
        for own in [own for own in self._of.values() if own.connection is connection and own.lease.ino == ino]:
            self._core.drops["alone_recalled"] += 1
            self._end(own)

    def unleased(self, lease: Lease) -> None:
        """What *lease* told is not sure any more, or somebody else works in its directory."""
        own = self._of.get(lease)
        if own is not None:
            self._end(own)

    def left(self, lease: Lease) -> None:
        """The kernel has forgotten its directory: its handles are closed, and with them what is delegated."""
        own = self._of.get(lease)
        if own is not None:
            own.state = State.OVER
            self._forget(own)

    def all(self) -> None:
        """This daemon was stopped, and may have been asked in vain."""
        for own in list(self._of.values()):
            self._end(own)

    def _end(self, own: Own) -> None:
        before, own.state = own.state, State.OVER
        self._forget(own)
        if before is not State.HELD:
            # If it was asked for, its answer says whether there is something to be given back.
            return
        removing = own.lease.node.removing
        if removing is not None and removing.names:
            removing.wait(partial(self._send_back, own))
        else:
            self._send_back(own)

    def _forget(self, own: Own) -> None:
        if self._of.get(own.lease) is own:
            del self._of[own.lease]
            self._not_before[own.lease] = self._core.dispatch.now() + NOT_AGAIN
            self._tidy_later()

    def _send_back(self, own: Own) -> None:
        if not own.connection.closed:
            own.connection.submit((REQUEST.pack(Io.DELEGATION, 0, 0, own.handle),), 0, _ignore)

    # ---- time

    def _tidy_later(self) -> None:
        if self._timer is None:
            self._timer = self._core.dispatch.call_at(self._core.dispatch.now() + TIDY, self._tidy)

    def _tidy(self) -> None:
        self._timer = None
        now = self._core.dispatch.now()
        for own in [own for own in self._of.values() if own.state is State.HELD and now - own.used >= KEPT]:
            self._end(own)
        self._not_before = {lease: until for lease, until in self._not_before.items() if now < until}
        if self._of or self._not_before:
            self._tidy_later()

    def close(self) -> None:
        """The mount is gone; its connections are closed by others. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for own in self._of.values():
            own.state = State.OVER
        self._of.clear()
        self._not_before.clear()


def _ignore(status: int, reply: Buffer) -> None:
    """Nobody is to be told: if the server does not know it, it is gone."""
