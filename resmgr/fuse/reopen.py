"""Files and directories that were open when their server, or the way to it, went away: opened again, or lost for good.

When the connection of open files dies, those with a token (`identify`), and directories, are *lost*. The next request on one waits while
it is opened again: REOPEN with the token and the name, with the same user's rights; a directory that has no token (`tokens`) by OPEN, if it
has the same inode number, and a file that has none yet, if nothing of it has changed. Then its locks are set again as they were. Whoever
waits then goes on, with the new OCB. Files through which something is locked are opened again without a request, for RECLAIM seconds:
others wait for these locks.

A node that is down: a soft mount says EHOSTDOWN, the file stays lost, and the next request tries again; another mount tries again every
RETRY until its limit (`patience`). Any other refusal is final: ESTALE, and ESTALE ever after; EIO if the file is there but somebody has
taken a range that was locked.

`File.dead` is set as long as the OCB is not valid. A file through which something was written since its last fsync is then not closed
without an error."""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer, Timer
from resmgr.errors import BadMessage
from resmgr.fuse import changing, formats
from resmgr.fuse.forgotten import AFTER_DEATH, Forgotten
from resmgr.fuse.formats import BODY, O_ACCMODE, O_APPEND, O_SYNC, AttrTuple, Opcode
from resmgr.fuse.identify import TRANSIENT
from resmgr.fuse.inode import same_type
from resmgr.fuse.openfile import File
from resmgr.fuse.patience import RETRY
from resmgr.fuse.request import LOST, Request
from resmgr.fuse.traits import BY_NODE
from resmgr.fuse.walk import CONNECT, ENTRY_MAX
from resmgr.iofunc.locks import UNLOCK
from resmgr.iomsg import LOCK_SET, OPEN, REOPEN, REQUEST, Connect, Io
from resmgr.lockrequest import LockRequest, pack_lock

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.inode import Node
    from resmgr.fuse.listing import Directory

logger = logging.getLogger(__name__)

RECLAIM: Final = 60.0
"""Seconds in which locks are set again though nobody asks. Later the first request does it."""
OF_LOCKS: Final = frozenset((Opcode.SETLK, Opcode.SETLKW, Opcode.GETLK))
_KEPT_FLAGS: Final = O_ACCMODE | O_APPEND | O_SYNC
"""Open flags that still mean something."""
Done = Callable[[int], None]


class Lost:
    """Something open whose server went away; `waiting` are told 0 or an errno."""

    __slots__ = ("above", "asked", "locking", "lost", "named", "pause", "since", "thing", "timer", "verdict", "waiting")

    def __init__(self, thing: File | Directory, now: float) -> None:
        self.thing = thing
        self.lost = now
        self.pause = AFTER_DEATH
        """Seconds from then to the first try, at least."""
        self.asked = False
        self.locking = False
        """It is open again, and its locks are being set."""
        self.named = False
        """A directory's server did not find it by its token alone: it is asked by name, too."""
        self.above: Node | None = None
        """A directory above it from which it is looked for by its token alone, since its name leads nowhere."""
        self.since = 0.0
        """When the first of `waiting` came."""
        self.timer: Timer | None = None
        self.verdict = 0
        """What became of it, for whoever asks first: nobody did yet."""
        self.waiting: list[tuple[Done, bool]] = []
        """And whether each is a request on it, or one that only has to come after it."""

    @property
    def rests(self) -> bool:
        """It is not being opened again, nor going to be."""
        return not self.asked and not self.locking and self.timer is None


class Reopening:
    """Of one mount. `lost` by file handle; *limit*: seconds that a node that is down is waited for."""

    def __init__(self, core: Core, limit: float) -> None:
        self.lost: dict[int, Lost] = {}
        self._core = core
        self._limit = limit
        self._closed = False

    # ---- what is lost

    def gone(self, connection: Connection) -> None:
        """The server behind *connection*, or the way to it, is not there any more."""
        core = self._core
        for file in core.files.values():
            if file.connection is connection:
                self._lose(file)
                lost = self.lost.get(file.fh)
                if lost is not None and file.held and lost.rests:
                    self._try_in(lost, lost.pause)
        now = core.dispatch.now()
        for directory in core.directories.values():
            if directory.connection is connection:
                self.lost.setdefault(directory.fh, Lost(directory, now))

    @staticmethod
    def _can(file: File) -> bool:
        """Whether it can be opened again."""
        return bool(file.token) or (file.as_opened is not None and not file.written)

    def _lose(self, file: File) -> None:
        file.dead = True
        if self._can(file):
            self.lost.setdefault(file.fh, Lost(file, self._core.dispatch.now()))

    def lose(self, thing: File | Directory) -> None:
        """*thing* was open before this daemon began."""
        if isinstance(thing, File):
            self._lose(thing)
        else:
            self.lost[thing.fh] = Lost(thing, self._core.dispatch.now())

    def reclaim(self, file: File) -> None:
        """Open a lost file again for its locks, though nobody asks."""
        lost = self.lost.get(file.fh)
        if lost is not None and lost.rests:
            self._try_in(lost, lost.pause)

    def again(self, file: File, opened: int, status: int, then: Done) -> bool:
        """A write through *file*, sent when that had been opened *opened* times, is answered *status*, which is in LOST: *then* when the
        file is open again, or is not. False: that is not waited for here."""
        if self._closed or self._core.files.get(file.fh) is not file or not (self._limit or status == -errno.EBADF):
            return False
        lost = self.lost.get(file.fh)
        if lost is None:
            if file.opened != opened:
                # Since it was sent. What it was sent to is not there any more, what the file is open as now is.
                if not file.dead:
                    then(0)
                return not file.dead
            if status == -errno.EBADF:
                lost = self._forgotten(file, True)
            else:
                self._lose(file)
                lost = self.lost.get(file.fh)
            if lost is None:
                return False
        self.wait(lost, then)
        return True

    def forgot(self, file: File, other: File | None, opened: int) -> bool:
        """A server answered EBADF to a message through *file* and *other*, sent when these together had been opened *opened* times. Whether
        it does not know them: then they are opened again, or are already, and the message can be sent once more."""
        found = False
        since = opened != file.opened + (0 if other is None else other.opened)
        for one in (file, other):
            if one is not None and not self._closed and self._core.files.get(one.fh) is one:
                if one.fh in self.lost or (since and not one.dead):
                    found = True
                elif not since:
                    found = self._forgotten(one, False) is not None or found
        return found

    def _forgotten(self, file: File, data: bool) -> Lost | None:
        """The server does not know what *file* is open as. None: it is not opened again for that. *data*: which would be lost then."""
        core = self._core
        # No other open is answered by that.
        core.delegated.changed(file.node)
        if not self._can(file):
            return None
        file.forgotten = series = file.forgotten or Forgotten()
        pause = series.once_more(core.dispatch.now(), self._limit if data else 0.0)
        if pause is None:
            return None
        core.drops["forgotten"] += 1
        self._lose(file)
        lost = self.lost.get(file.fh)
        if lost is not None:
            lost.pause = pause
            if file.held:
                self._try_in(lost, pause)
        return lost

    def forgot_directory(self, directory: Directory, ocb: int) -> bool:
        """A server answered EBADF to a message to *directory*, which was open as *ocb* then. Whether it does not know that: it is opened
        again, or is already."""
        core = self._core
        if self._closed or core.directories.get(directory.fh) is not directory:
            return False
        if directory.fh in self.lost or directory.ocb != ocb:
            return True
        directory.forgotten = series = directory.forgotten or Forgotten()
        pause = series.once_more(core.dispatch.now(), 0.0)
        if pause is None:
            return False
        core.drops["forgotten"] += 1
        lost = self.lost[directory.fh] = Lost(directory, core.dispatch.now())
        lost.pause = pause
        return True

    def end(self, file: File) -> None:
        """What was locked through *file* is not any more, and what it is open as is gone: whoever uses it is to hear that."""
        file.dead = True
        file.token = b""
        file.as_opened = None
        lost = self.lost.get(file.fh)
        if lost is not None:
            self._over(lost, errno.EIO)

    def find(self, request: Request, view: memoryview) -> Lost | None:
        """What *request* (*view*: its bytes) waits for: what it names as open; for attributes by no open file one of its node, if all are;
        for a lock besides whatever of the file was locked here, which comes before others' wishes."""
        if request.opcode not in BY_NODE:
            if len(view) < BODY + formats.FH_IN.size:
                return None
            lost = self.lost.get(formats.FH_IN.parse(view, BODY)[0])
            if lost is None and request.opcode in OF_LOCKS:
                for file in request.node.files:
                    known = self.lost.get(file.fh)
                    if known is not None and file.held and not known.verdict:
                        return known
            if lost is not None and request.opcode == Opcode.FLUSH and isinstance(lost.thing, File):
                # Nothing depends on it that this process has done through it.
                return lost if lost.thing.written != lost.thing.synced or lost.thing.held else None
            return lost
        if len(view) < BODY + formats.GETATTR_IN.size:
            return None
        # The other two begin with the same fields.
        flags, fh = formats.GETATTR_IN.parse(view, BODY)
        named = formats.FATTR_FH if request.opcode == Opcode.SETATTR else formats.GETATTR_FH
        if flags & named and fh in self._core.files:
            return self.lost.get(fh)
        node, found = request.node, None
        own = node.server.connections.get(request.user)
        for file in node.files:
            if not file.dead and (file.connection is own or not node.named):
                # It is asked; the others are opened again when they are used.
                return None
            if found is None:
                found = self.lost.get(file.fh)
        return found

    def wait(self, lost: Lost, then: Done, own: bool = True) -> None:
        """Call *then* when it is open again (0) or cannot be opened now (errno); that it never will is an error of *own* requests only."""
        core = self._core
        if not lost.waiting:
            lost.since = core.dispatch.now()
            # It may be going to be tried for its locks.
            self._not_later(lost)
        lost.waiting.append((then, own))
        if lost.verdict:
            self._over(lost, lost.verdict)
            return
        if lost.rests:
            self._try_in(lost, max(0.0, lost.lost + lost.pause - core.dispatch.now()))

    def after_locks(self, file: File, then: Callable[[], None]) -> None:
        """Call *then* when no lock that *file* had is on its way to be set again; what it does not hold any more may have been set."""
        lost = self.lost.get(file.fh)
        if lost is None or not lost.locking:
            then()
        else:
            self.wait(lost, lambda code: then(), own=False)

    def released(self, fh: int) -> None:
        """Nobody has it open any more. Who waits for it looks for another, or goes by the name; what it is being opened as is closed."""
        lost = self.lost.pop(fh, None)
        if lost is not None:
            self._not_later(lost)
            self._tell(lost, 0)

    def _not_later(self, lost: Lost) -> None:
        if lost.timer is not None:
            lost.timer.cancel()
            lost.timer = None

    def _try_in(self, lost: Lost, seconds: float) -> None:
        self._not_later(lost)
        lost.timer = self._core.dispatch.call_at(self._core.dispatch.now() + seconds, lambda: self._try(lost))

    # ---- the way back

    def _try(self, lost: Lost) -> None:
        lost.timer = None
        core, thing = self._core, lost.thing
        if self.lost.get(thing.fh) is not lost or lost.asked or lost.locking:
            return
        lost.asked = True
        core.drops["reopen_tried"] += 1
        who = thing.connection.credentials
        node = thing.node
        request = Request(core, 0, Opcode.OPEN, node, (who.uid, who.gid), 0, core.dispatch.now())
        request.step = partial(self._answered, lost)
        if not isinstance(thing, File):
            token = core.tokens.of(node)
            if token and node.parent is not None:
                fixed = REOPEN.pack(len(token)) + token
                if lost.named:
                    core.on_base(request, node.parent, CONNECT, Connect.REOPEN, os.O_DIRECTORY, fixed, node.name, ENTRY_MAX, request.step)
                else:
                    connection = core.servers.connect(node.server, request.user)
                    core.direct(request, connection, (0, b""), Connect.REOPEN, os.O_DIRECTORY, fixed, b"", ENTRY_MAX, request.step)
            elif node.parent is None:
                core.on_base(request, node, CONNECT, Connect.OPEN, os.O_DIRECTORY, OPEN.pack(0, 0, 0), b"", ENTRY_MAX, request.step)
            else:
                core.on_leaf(request, node, Connect.OPEN, os.O_DIRECTORY, OPEN.pack(0, 0, 0), ENTRY_MAX, request.step)
            return
        flags = thing.flags & _KEPT_FLAGS
        if not thing.token:
            core.on_leaf(request, node, Connect.OPEN, flags, OPEN.pack(0, 0, 0), ENTRY_MAX, request.step)
            return
        fixed = REOPEN.pack(len(thing.token)) + thing.token
        if lost.above is not None:
            core.on_base(request, lost.above, CONNECT, Connect.REOPEN, flags, fixed, b"", ENTRY_MAX, request.step)
        elif node.via is not None and (way := node.way(connection := core.servers.connect(node.server, request.user))) is not None:
            core.direct(request, connection, way, Connect.REOPEN, flags, fixed, b"", ENTRY_MAX, request.step)
        elif node.parent is not None:
            # Also of a name that is not the file's any more: its server may know where it is.
            core.on_base(request, node.parent, CONNECT, Connect.REOPEN, flags, fixed, node.name, ENTRY_MAX, request.step)
        else:
            self._over(lost, errno.ESTALE)

    def _answered(self, lost: Lost, request: Request, status: int, reply: Buffer) -> None:
        core, thing = self._core, lost.thing
        request.answered = True
        lost.asked = False
        if self.lost.get(thing.fh) is not lost:
            self._too_late(request, status, reply)
            return
        if status in TRANSIENT:
            self._not_now(lost, errno.EHOSTDOWN if status in LOST else -status)
            return
        if status == -errno.ESTALE and isinstance(thing, File) and thing.token and thing.node.via is None:
            # A directory on the way may have another name: its server finds the file from any on the same file system.
            below = lost.above or thing.node.parent
            above = None if below is None else below.parent
            if above is not None and above.server is thing.node.server:
                lost.above = above
                self._try(lost)
                return
        if status == -errno.ESTALE and not isinstance(thing, File) and core.tokens.of(thing.node) and not lost.named:
            lost.named = True
            self._try(lost)
            return
        if status < 0:
            self._refused(lost, os.strerror(-status))
            return
        try:
            found, attr = core.entry(request, reply)
        except BadMessage:
            core.drops["bad_reply"] += 1
            self._over(lost, errno.EIO)
            return
        node = thing.node
        root = node.parent is None  # whatever it is
        if not found.ocb or not (root or (attr[0] == node.ino and same_type(node, attr) and _as_opened(thing, attr))):
            if found.ocb:
                core.handles.close_now(found.connection, found.ocb)
            self._refused(lost, "its name leads to another")
            return
        if found.handle and found.handle != found.ocb:
            core.handles.close_later(found.connection, found.handle)
        node.server = found.server
        before = thing.connection, thing.ocb
        thing.connection, thing.ocb = found.connection, found.ocb
        if not isinstance(thing, File):
            core.handles.forget(*before)
            self._over(lost, 0)
            return
        thing.opened += 1
        lost.locking = True
        self._close(*before, partial(self._begin_locks, lost, thing, before))

    def _close(self, connection: Connection, ocb: int, then: Callable[[], None]) -> None:
        """Close what a file was open as, if its server may know it, and then call *then*: a close that comes after locks were set by
        another open control block ends those of the same owners, too."""
        if self._core.servers.lives(connection):
            connection.submit((REQUEST.pack(Io.CLOSE, 0, 0, ocb),), 0, lambda status, reply: then())
        else:
            then()

    def _begin_locks(self, lost: Lost, file: File, before: tuple[Connection, int]) -> None:
        if self.lost.get(file.fh) is lost:
            self._lock_again(lost, file, list(file.held), before)

    def _too_late(self, request: Request, status: int, reply: Buffer) -> None:
        """It was closed while it was being opened again."""
        core = self._core
        if status < 0:
            return
        try:
            found, _ = core.entry(request, reply)
        except BadMessage:
            core.drops["bad_reply"] += 1
            return
        core.drops["reopened_late"] += 1
        if found.ocb:
            core.handles.close_now(found.connection, found.ocb)
        if found.handle and found.handle != found.ocb:
            core.handles.close_later(found.connection, found.handle)

    def _refused(self, lost: Lost, why: str) -> None:
        logger.warning("%r was open when its node went away, and cannot be opened again: %s", _shown(lost.thing), why)
        self._over(lost, errno.ESTALE)

    def _lock_again(self, lost: Lost, file: File, left: list[LockRequest], before: tuple[Connection, int], reclaim: bool = True) -> None:
        if not left:
            self._back(lost, file)
            return

        def done(status: int, reply: Buffer) -> None:
            if self.lost.get(file.fh) is not lost:
                # Closed meanwhile, and with it this OCB.
                return
            if status == -errno.EBADMSG and reclaim:
                # Its server does not know that there is more than one kind of locks.
                self._lock_again(lost, file, left, before, reclaim=False)
            elif status in LOST:
                opened = file.connection, file.ocb
                file.connection, file.ocb = before
                self._close(*opened, not_now)
            elif status < 0:
                self._core.drops["locks_lost"] += 1
                logger.warning("%r was locked when its node went away, and somebody else has or had it since", _shown(file))
                self._core.handles.close_now(file.connection, file.ocb)
                # Nothing more goes to the OCB whose locks are not what the program thinks.
                file.connection, file.ocb = before
                self._over(lost, errno.EIO)
            else:
                self._lock_again(lost, file, left[1:], before, reclaim)

        def not_now() -> None:
            if self.lost.get(file.fh) is lost:
                lost.locking = False
                self._not_now(lost, errno.EHOSTDOWN)

        one = left[0]
        again = LockRequest(LOCK_SET, one.kind, one.start, one.end, one.owner, one.pid, one.whole, reclaim)
        file.connection.submit((pack_lock(file.ocb, again),), 0, done)

    def _back(self, lost: Lost, file: File) -> None:
        core, node = self._core, file.node
        file.dead = False
        core.drops["reopened"] += 1
        changing.written(core, node)
        if not file.token:
            core.identify.opened(file)
        self._over(lost, 0)
        if node.cached:
            # Others may have written meanwhile. A READ that waited for this is answered first.
            core.telling.tell(node, [formats.inval_pages(node.nodeid)])

    def _not_now(self, lost: Lost, code: int) -> None:
        """The node is down: go on trying, or tell those who wait."""
        now = self._core.dispatch.now()
        if lost.waiting and now - lost.since < self._limit:
            self._try_in(lost, RETRY)
            return
        if isinstance(lost.thing, File) and lost.thing.held and now - lost.lost < RECLAIM:
            self._try_in(lost, RETRY)
        self._tell(lost, code)

    def _over(self, lost: Lost, code: int) -> None:
        if code == errno.EIO and not any(own for _, own in lost.waiting):
            lost.verdict = code
            self._tell(lost, 0)
            return
        self.lost.pop(lost.thing.fh, None)
        if code:
            self._core.drops["reopen_failed"] += 1
            if isinstance(lost.thing, File):
                lost.thing.token = b""
                lost.thing.as_opened = None
        self._tell(lost, code)

    @staticmethod
    def _tell(lost: Lost, code: int) -> None:
        waiting, lost.waiting = lost.waiting, []
        for then, own in waiting:
            then(code if own or code == errno.EHOSTDOWN else 0)

    def close(self) -> None:
        """The mount is gone."""
        self._closed = True
        for lost in self.lost.values():
            if lost.timer is not None:
                lost.timer.cancel()
        self.lost.clear()


def _shown(thing: File | Directory) -> str:
    return thing.node.path().decode("utf-8", "backslashreplace")


def _as_opened(thing: File | Directory, attr: AttrTuple) -> bool:
    """Whether a file that has no token yet is what it was when it was opened. One that was replaced by another with its inode number has
    other times."""
    return not isinstance(thing, File) or bool(thing.token) or (attr[0], attr[12], attr[10], attr[6]) == thing.as_opened


def note_lock(file: File, asked: LockRequest) -> None:
    """*asked* was granted, or given up, through *file*: what is held of its node's ranges is kept, to be set again."""
    gone = LockRequest(LOCK_SET, UNLOCK, asked.start, asked.end, asked.owner, asked.pid, asked.whole)
    for other in file.node.files:
        if other.held and other is not file:
            other.held.note(gone)
    file.held.note(asked)


def limit_of(hard: bool, deadline: float) -> float:
    """Seconds that requests wait for a node that is down; 0: not at all."""
    return deadline or (math.inf if hard else 0.0)
