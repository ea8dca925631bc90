"""Delegations of files, at the client (docs/protocol/delegation.md): files that nobody changes before this mount was asked.

A file that was opened for reading a moment ago and is opened again is asked for with a delegation (*reading*). While it is *held*, opens
for reading by the same user are answered here, by the same open control block, which is kept for KEPT seconds after the last close. So
several open files share one, and it is closed with the last of them, or when the delegation ends after that.

What is open for writing is asked for when something of it is locked (*alone*): that and the locks are the affair of `ownlocks`, which says
when it has it (`lend`) and is told when it ends. Opens for no more than that are answered by its open control block, which is not kept.

It is held together with the lease of its directory, which tells what the server's kernel does not: other names, other rights. It is given
back when the server recalls it, when its directory is not leased any more or its server silent, when the name or the rights are
changed from anywhere, when the file is opened here for more, and when this daemon was stopped or the machine asleep: then the server may
have recalled it in vain. What was asked for before a recall is not held.
"""

from __future__ import annotations

from stat import S_IFMT, S_IFREG
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.fuse.changes import NEVER
from resmgr.fuse.early import Early
from resmgr.fuse.formats import O_ACCMODE, O_RDWR, O_SYNC, O_TRUNC
from resmgr.fuse.lease import Lease, single
from resmgr.iomsg import REQUEST, Io

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.inode import Node
    from resmgr.fuse.openfile import File
    from resmgr.fuse.request import Request

KEPT: Final = 10.0
"""Seconds that an open control block is kept after the last close: as long the server's file system cannot be unmounted."""
RECENT: Final = 10.0
"""Who opens a file again within so many seconds may do so again."""
QUIET: Final = 60.0
"""Seconds in which nobody else may have changed a file, or its name, that is asked for."""
RECENT_MAX: Final = 256
"""Files remembered as opened. A program that goes through more than that, over and over, asks for none."""
_CHANGES: Final = O_ACCMODE | O_TRUNC
"""Open flags with which a file is opened for more than reading."""
_OTHER: Final = O_TRUNC | O_SYNC
"""What is opened so is opened by the server."""


class Held:
    """One delegation, until it is given back; and the open control block, until no file uses it."""

    __slots__ = ("at", "closed", "connection", "files", "flags", "ino", "lease", "live", "node", "ocb", "once", "user")

    def __init__(self, node: Node, lease: Lease, connection: Connection, ocb: int, user: tuple[int, int], flags: int, at: float) -> None:
        self.node = node
        self.ino = node.ino
        self.lease = lease
        self.connection = connection
        self.ocb = ocb
        self.user = user
        self.flags = flags
        """With which it was opened: if for writing, nobody else has the file open at all, and its locks are ours (`ownlocks`)."""
        self.at = at
        """When it was asked for."""
        self.live = True
        self.files: set[File] = set()
        """Open files of the kernel that use it."""
        self.closed = 0.0
        """When the last of them was closed."""
        self.once = False
        """It was opened ahead, and was not opened again: not kept after the last close."""


class Delegated:
    """Of one mount. Counts in `Core.drops`: `delegations` (granted), `delegated_opens` (answered here), `delegations_recalled`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._most = core.options.delegations
        self.quiet = QUIET
        self.kept = KEPT
        self._held: dict[Node, Held] = {}
        self._through: dict[int, Held] = {}
        """By file handle."""
        self._recent: dict[int, float] = {}
        """By node number."""
        self._once = 0
        """Of those held, how many were opened ahead and are not kept; they count by themselves."""
        self._early = Early()
        """Recalls that came before the answer that the file is delegated."""
        core.awake.keep(self._tidy, self._all)

    def __len__(self) -> int:
        return len(self._held)

    # ---- asked for

    def asks(self, request: Request, flags: int) -> bool:
        """Whether OPEN of the request's node, which the server has to answer, should ask for a delegation."""
        node = request.node
        if not self._most or flags & _CHANGES or S_IFMT(node.mode) != S_IFREG:
            return False
        before = self._note(node, request.at)
        if request.at - before > RECENT or node in self._held or len(self._held) - self._once >= self._most:
            return False
        lease = _lease_of(node)
        connection = node.server.connections.get(request.user)
        if lease is None:
            if connection is not None and node.parent is not None and self._core.leases.wanted(node.parent):
                # It was never met by a message that would have asked for that.
                self._core.leases.ask(node.parent, node, connection)
            return False
        return lease.connection is connection and not lease.overtaken(node.name, request.at - self.quiet)

    def _note(self, node: Node, at: float) -> float:
        """*node* is opened for reading; when it was before."""
        recent = self._recent
        before = recent.pop(node.nodeid, NEVER)
        recent[node.nodeid] = at
        if len(recent) > RECENT_MAX:
            del recent[next(iter(recent))]
        return before

    def took(self, request: Request, file: File, at: float, ahead: bool = False) -> None:
        """Asked at *at*, the server said that *file*, which *request* has opened by that, is delegated. *ahead*: before anybody opened it,
        so it is not kept, unless it was opened a moment ago as well."""
        core, node = self._core, file.node
        core.drops["delegations"] += 1
        again = not ahead or request.at - self._note(node, request.at) <= RECENT
        keep = again and len(self._held) - self._once < self._most
        lease = _lease_of(node)
        if lease is None or not (keep or (ahead and self.takes_ahead())) or not self.believes(node, lease, file.connection, at):
            self._send_back(file.connection, file.ocb)
            return
        core.awake.watch()
        held = Held(node, lease, file.connection, file.ocb, request.user, file.flags, at)
        self._held[node] = held
        if not keep:
            held.once = True
            self._once += 1
        self.shares(held, file)

    def believes(self, node: Node, lease: Lease, connection: Connection, at: float) -> bool:
        """Whether *node* is delegated if its server has said so on *connection*, asked at *at*. *lease*: its directory's then."""
        return (
            _lease_of(node) is lease
            and lease.connection is connection
            and lease.covers(node.name, at)
            and not self._early.since(connection, node.ino, at)
            and node not in self._held
        )

    # ---- opened ahead (`openahead`)

    def holds(self, node: Node) -> bool:
        """Whether *node* is delegated."""
        return node in self._held

    def takes_ahead(self) -> bool:
        """Whether more may be held of what was opened ahead and is not kept: as many as are kept, which programs have open."""
        return self._once < self._most

    def recalled_since(self, connection: Connection, ino: int, at: float) -> bool:
        """Whether a recall of that file has come since *at*."""
        return self._early.since(connection, ino, at)

    def lends(self, node: Node, connection: Connection, at: float) -> bool:
        """Whether a file that is open for writing may be asked for."""
        lease = _lease_of(node)
        full = len(self._held) - self._once >= self._most
        if not self._most or full or node in self._held or lease is None or lease.connection is not connection:
            return False
        return not lease.overtaken(node.name, at - self.quiet)

    def lend(self, node: Node, connection: Connection, ocb: int, flags: int, at: float) -> bool:
        """Asked at *at*, the server said that nobody but us has the file open, and its locks are ours. Whether that is believed. *flags*:
        for which *ocb* is good."""
        files = [file for file in node.files if file.connection is connection and file.ocb == ocb]
        lease = _lease_of(node)
        recalled = self._early.since(connection, node.ino, at)
        if not files or lease is None or recalled or not self.lends(node, connection, at):
            return False
        self._core.awake.watch()
        who = connection.credentials
        held = self._held[node] = Held(node, lease, connection, ocb, (who.uid, who.gid), flags, at)
        for file in files:
            self.shares(held, file)
        return True

    # ---- used

    def find(self, request: Request, flags: int) -> Held | None:
        """By what OPEN of the request's node can be answered here."""
        held = self._held.get(request.node)
        if held is None:
            return None
        if flags & _CHANGES and not _serves(held, flags):
            # It would be held up by this.
            self._end(held)
            return None
        node = held.node
        if _lease_of(node) is not held.lease or node.ino != held.ino:
            self._end(held)
            return None
        if held.user != request.user or (held.flags & O_ACCMODE and not _serves(held, flags)) or not self._core.awake.check():
            return None
        if not held.flags & O_ACCMODE and request.at - held.at > self._core.leases.seconds:
            # Rights that were changed by a second name, made meanwhile, are not told. Asked for anew with this OPEN.
            self._end(held)
            self._recent[node.nodeid] = request.at
            return None
        self._core.drops["delegated_opens"] += 1
        if held.once and len(self._held) - self._once < self._most:
            held.once = False
            self._once -= 1
        return held

    def shares(self, held: Held, file: File) -> None:
        """*file* uses its open control block."""
        held.files.add(file)
        self._through[file.fh] = held
        file.token = file.token or next((other.token for other in held.files if other.token), b"")

    def released(self, file: File) -> bool:
        """Nobody has *file* open any more. Whether its open control block stays open, or is being closed here."""
        held = self._through.pop(file.fh, None)
        if held is None:
            return False
        held.files.discard(file)
        if file.connection is not held.connection or file.ocb != held.ocb:
            # It was opened again by itself.
            return False
        if held.files:
            return True
        if held.live and held.once:
            held.live = False
            self._drop(held)
            node = held.node
            if file.locked or node.parent is None:
                return False
            self._core.handles.close_lazily(held.connection, held.ocb, (node.parent, node.name))
            return True
        if held.live and held.flags & O_ACCMODE:
            # Programs of the server may wait for its close.
            held.live = False
            self._drop(held)
            self._core.own_locks.closed(held.node)
            return False
        held.closed = self._core.dispatch.now()
        return held.live

    # ---- given back

    def recalled(self, connection: Connection, ino: int) -> None:
        """Somebody wants to change the file."""
        self._early.came(connection, ino, self._core.dispatch.now())
        self._core.open_ahead.recalled(connection, ino)
        # Two nodes may be one file, which was renamed by somebody else.
        for held in [held for held in self._held.values() if held.ino == ino and held.connection is connection]:
            self._core.drops["delegations_recalled"] += 1
            self._end(held)
        # It may be among what is closed, but not yet.
        self._core.handles.hurry()

    def changed(self, node: Node, rights: bool = True) -> None:
        """Its name or its rights are being or were changed, or it is not known any more; not *rights*: its attributes only, from here."""
        held = self._held.get(node)
        if held is not None and (rights or not held.flags & O_ACCMODE):
            self._end(held)

    def unleased(self, lease: Lease) -> None:
        """Nothing that *lease* told is sure."""
        for held in [held for held in self._held.values() if held.lease is lease]:
            self._end(held)

    def _end(self, held: Held) -> None:
        held.live = False
        self._drop(held)
        if held.flags & O_ACCMODE:
            self._core.own_locks.give_back(held.node)
        elif held.files:
            self._send_back(held.connection, held.ocb)
        elif not held.connection.closed:
            # At once: what comes next may wait for it.
            held.connection.submit((REQUEST.pack(Io.CLOSE, 0, 0, held.ocb),), 0, _ignore)

    def _drop(self, held: Held) -> None:
        del self._held[held.node]
        if held.once:
            self._once -= 1

    def _send_back(self, connection: Connection, ocb: int) -> None:
        if not connection.closed:
            connection.submit((REQUEST.pack(Io.DELEGATION, 0, 0, ocb),), 0, _ignore)

    # ---- time

    def _all(self) -> None:
        for held in list(self._held.values()):
            self._end(held)

    def _tidy(self, now: float) -> bool:
        for held in [held for held in self._held.values() if not held.files and now - held.closed >= self.kept]:
            self._end(held)
        return bool(self._held)

    def close(self) -> None:
        """The mount is gone; its connections are closed by others. Idempotent."""
        self._held.clear()
        self._once = 0
        self._through.clear()


def _serves(held: Held, flags: int) -> bool:
    """Whether an open with *flags* can use the open control block of *held*, which is open for writing."""
    return bool(held.flags & O_ACCMODE) and not flags & _OTHER and (held.flags & O_ACCMODE) in (O_RDWR, flags & O_ACCMODE)


def _lease_of(node: Node) -> Lease | None:
    """The lease that tells of *node*, a file with one name, what becomes of that; None: nothing does."""
    parent = node.parent
    lease = None if parent is None else parent.lease
    if lease is None or not lease.live or not lease.whole or not node.named or node.via is not None:
        return None
    return lease if lease.has(node) and single(node) else None


def _ignore(status: int, reply: Buffer) -> None:
    """Nobody is to be told: if the server does not know it, it is gone."""
