"""Locks of files that only programs of this mount have open (docs/protocol/delegation.md): granted here, without the server.

It is asked for (DELEGATION) when a program locks a file that nothing is locked of yet; what is asked meanwhile waits for the answer.
While it is held, one table has the locks of all such files, so that a ring of programs that wait for each other is seen among them. When
it is given back, the locks that stand go with it, and those that wait are sent to the server when it has them; so does everything that
comes in between. Locks are noted with their open files as those of servers are (`reopen.note_lock`), so they are set again when the
connection is lost.
"""

from __future__ import annotations

import enum
import errno
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from resmgr.dispatch import Buffer
from resmgr.fuse.formats import O_ACCMODE, O_APPEND, Opcode
from resmgr.fuse.request import GONE
from resmgr.iofunc.locks import UNLOCK, Locks, Owner, Range, Waiter
from resmgr.iomsg import DELEGATION_ASK, DELEGATION_LOCKS_MAX, LOCK_SET, REQUEST, Io
from resmgr.lockrequest import LockRequest, pack_delegation

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.inode import Node
    from resmgr.fuse.openfile import File
    from resmgr.fuse.request import Request
    from resmgr.fuse.servers import Server

logger = logging.getLogger(__name__)

NOT_AGAIN: Final = 10.0
"""Seconds in which a file is not asked for again that was refused or given back."""
REMEMBERED_MAX: Final = 1024
"""Files of which that is remembered."""
RETRY: Final = 0.25
"""Seconds until one is given back again when that did not arrive though the connection lives."""
_UNUSABLE: Final = O_APPEND
"""An open control block with this open flag serves no other open."""
_SETS: Final = frozenset((int(Opcode.SETLK), int(Opcode.SETLKW)))


class State(enum.Enum):
    ASKING = enum.auto()
    HELD = enum.auto()
    GIVING = enum.auto()


class OwnFile:
    """The locks of one file. `queue`: what is done when it is neither asked for nor given back any more."""

    __slots__ = ("at", "connection", "flags", "node", "ocb", "places", "queue", "repeated", "state", "waiting")

    def __init__(self, file: File, at: float) -> None:
        self.node = file.node
        self.connection = file.connection
        self.ocb = file.ocb
        self.flags = file.flags
        """Of the open file through which it was asked for."""
        self.at = at
        """When it was asked for."""
        self.state = State.ASKING
        self.queue: list[Callable[[], None]] = []
        self.places: set[Owner] = set()
        self.repeated = False
        """It was given back more than once: its server may have known before the last time."""
        self.waiting: dict[Waiter, Callable[[], None]] = {}
        """And how each is begun anew."""

    def applies(self, file: File) -> bool:
        """Whether it is about what *file* has open."""
        return file.connection is self.connection and file.ocb == self.ocb


class OwnLocks:
    """Of one mount. Counts in `Core.drops`: `locks_delegated` (files), `locks_here` (granted here), `locks_returned` (given back)."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._table = Locks()
        self._of: dict[Node, OwnFile] = {}
        self._not_before: dict[int, float] = {}
        """By node number."""
        self._never: set[Server] = set()
        self.pause = NOT_AGAIN

    def of(self, file: File) -> OwnFile | None:
        """Who looks after the locks of what *file* has open, if not its server."""
        own = self._of.get(file.node)
        return own if own is not None and own.applies(file) else None

    # ---- asked for

    def worth(self, request: Request, file: File) -> bool:
        """Whether it should be asked for, when the request is about to lock something through *file*."""
        core, node = self._core, file.node
        if not file.flags & O_ACCMODE or file.flags & _UNUSABLE or node in self._of or node.server in self._never:
            return False
        if request.at < self._not_before.get(node.nodeid, 0.0) or not core.delegated.lends(node, file.connection, request.at):
            return False
        if any(other.held or other.ocb != file.ocb or other.connection is not file.connection for other in node.files):
            return False
        # A lock that is on its way to the server would come after the delegation.
        return not any(other.opcode in _SETS and other.node is node and other is not request for other in core.outstanding.values())

    def ask(self, file: File, forget: Callable[[Callable[[], None]], None]) -> None:
        """Ask for it. *forget* drops what is known of the file, and calls what it is given when the kernel has, too."""
        own = self._of[file.node] = OwnFile(file, self._core.dispatch.now())
        file.connection.submit((REQUEST.pack(Io.DELEGATION, 0, DELEGATION_ASK, file.ocb),), 0, partial(self._asked, own, forget))

    def _asked(self, own: OwnFile, forget: Callable[[Callable[[], None]], None], status: int, reply: Buffer) -> None:
        core, node = self._core, own.node
        if status == 1 and core.delegated.lend(node, own.connection, own.ocb, own.flags, own.at):
            core.drops["locks_delegated"] += 1
            # Others may have written to it before.
            forget(partial(self._begins, own))
            return
        if status == 1:
            own.state = State.GIVING
            self._send(own)
            return
        if status == -errno.ENOSYS:
            self._never.add(node.server)
        self._ends(own)

    def _begins(self, own: OwnFile) -> None:
        if own.state is State.ASKING:
            own.state = State.HELD
            self._drain(own)

    def _drain(self, own: OwnFile) -> None:
        queue, own.queue = own.queue, []
        for call in queue:
            call()

    # ---- held

    def lock(self, own: OwnFile, asked: LockRequest, again: Callable[[], None], done: Callable[[int], None] | None) -> int | Waiter:
        """0: *asked* is granted or unlocked; or an errno. With *done*, that is what it may hear later, if a waiter is returned; *again*
        begins anew, when this has to be given back before."""
        owner = Owner(0, 0, asked.owner, asked.whole)
        key = own.node.nodeid
        waiters: list[Waiter] = []

        def over(code: int) -> None:
            own.waiting.pop(waiters[0], None)
            if not code:
                own.places.add(owner)
            assert done is not None
            done(code)

        result = self._table.lock(key, owner, asked.kind, asked.start, asked.end, asked.pid, None if done is None else over)
        if isinstance(result, Waiter):
            waiters.append(result)
            own.waiting[result] = again
        elif not result and asked.kind != UNLOCK:
            self._core.drops["locks_here"] += 1
            own.places.add(owner)
        return result

    def full(self, own: OwnFile) -> bool:
        """Whether its server has to have the locks before anything is locked or unlocked that cuts a range in three: it takes no more at
        once."""
        held = sum(len(file.held) for file in own.node.files if own.applies(file))
        return held + len(own.waiting) + 2 > DELEGATION_LOCKS_MAX

    def cancel(self, own: OwnFile, waiter: Waiter) -> bool:
        """Take a request back that waits; False if it does not any more."""
        own.waiting.pop(waiter, None)
        return self._table.cancel(waiter)

    def test(self, own: OwnFile, asked: LockRequest) -> tuple[int, Range] | None:
        """Pid and lock that are in the way of *asked*."""
        owner = Owner(0, 0, asked.owner, asked.whole)
        found = self._table.test(own.node.nodeid, owner, asked.kind, asked.start, asked.end)
        return None if found is None else (found[1], found[2])

    # ---- given back

    def give_back(self, node: Node) -> None:
        """The delegation has ended: its server is to have the locks."""
        own = self._of.get(node)
        if own is None or own.state is State.GIVING:
            return
        own.state = State.GIVING
        own.queue += own.waiting.values()
        self._release(own)
        # Writes on the way are not waited for: what was written under a lock had arrived before that was given up (`traits.AFTER_WRITES`).
        self._send(own)

    def closed(self, node: Node) -> None:
        """Nobody has it open any more."""
        own = self._of.get(node)
        if own is not None and own.state is State.HELD:
            self._release(own)
            del self._of[node]

    def _release(self, own: OwnFile) -> None:
        waiting, own.waiting = own.waiting, {}
        places, own.places = own.places, set()
        self._table.end(waiting, [(own.node.nodeid, owner) for owner in places])

    def _send(self, own: OwnFile) -> None:
        if not self._core.servers.lives(own.connection):
            self._ends(own)
            return
        locks = [one for file in own.node.files if own.applies(file) for one in file.held]
        own.connection.submit((pack_delegation(own.ocb, _joined(locks)),), 0, partial(self._returned, own))

    def _send_again(self, own: OwnFile) -> None:
        if self._of.get(own.node) is own:
            own.repeated = True
            self._send(own)

    def _returned(self, own: OwnFile, status: int, reply: Buffer) -> None:
        core = self._core
        lives = core.servers.lives(own.connection)
        if status in GONE and lives:
            # Its server would wait for that, and then take the open file away.
            core.dispatch.call_at(core.dispatch.now() + RETRY, partial(self._send_again, own))
            return
        lost = [file for file in own.node.files if own.applies(file) and file.held]
        if status >= 0 or (status == -errno.EINVAL and own.repeated):
            core.drops["locks_returned"] += 1
        elif lives and lost:
            # It was taken away meanwhile, and with it the open file: whoever uses that hears it.
            core.drops["locks_lost"] += 1
            logger.warning("locks of %r are lost: its server did not hear in time", own.node.path().decode("utf-8", "backslashreplace"))
            for file in lost:
                file.held.clear()
                core.reopening.end(file)
        self._ends(own)

    def _ends(self, own: OwnFile) -> None:
        if self._of.get(own.node) is own:
            del self._of[own.node]
        self._release(own)
        remembered = self._not_before
        remembered.pop(own.node.nodeid, None)
        remembered[own.node.nodeid] = self._core.dispatch.now() + self.pause
        if len(remembered) > REMEMBERED_MAX:
            del remembered[next(iter(remembered))]
        self._drain(own)

    def close(self) -> None:
        """The mount is gone. Idempotent."""
        self._of.clear()


def _joined(locks: list[LockRequest]) -> list[LockRequest]:
    """*locks* as few: a program may have locked a file byte by byte, and a message has room for as many as a table has."""
    found: list[LockRequest] = []
    for one in sorted(locks, key=lambda one: (one.whole, one.owner, one.kind, one.start)):
        last = found[-1] if found else one
        if found and (last.whole, last.owner, last.kind) == (one.whole, one.owner, one.kind) and one.start <= last.end:
            found[-1] = LockRequest(LOCK_SET, one.kind, last.start, max(last.end, one.end), one.owner, one.pid, one.whole)
        else:
            found.append(one)
    return found
