"""Watched directories: the changes that the kernel tells of them (inotify), for the clients that asked (docs/protocol/coherence.md).

One inotify descriptor serves all clients. A directory is watched by the descriptor of whoever meets it, with his rights, before its
attributes and entries are read: so nothing can change after them and not be told. Changes made by clients come the same way. They are read
in the turn in which they were made, so that their maker can be left out: what he was answered is not leased, and what he asks after that is
newer. If the answer says what was made of it, they are read before that (`made`), else when the turn's answers have gone out (`later`).

Events of a watch that is not known (any more) are not told. So watches are made in dispatch context only, where none can come between.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import struct
import termios
from collections import Counter
from collections.abc import Callable
from typing import Final

from resmgr.access import Scope
from resmgr.channel import Message
from resmgr.dispatch import Dispatch, Timer
from resmgr.errors import Misuse
from resmgr.hostfs.mountpoints import MountPoints
from resmgr.hostfs.objects import HostClient
from resmgr.hostfs.opened import own_path
from resmgr.iofunc.events import Listener
from resmgr.iomsg import (
    WATCH_ATTRIB,
    WATCH_CLOSE_WRITE,
    WATCH_CREATE,
    WATCH_DELETE,
    WATCH_DELETE_SELF,
    WATCH_IGNORED,
    WATCH_MODIFY,
    WATCH_MOVE_SELF,
    WATCH_MOVED_FROM,
    WATCH_MOVED_TO,
    WATCH_OVERFLOW,
)

logger = logging.getLogger(__name__)

WATCHES_PER_CLIENT: Final = 8192
"""Directories that one client watches. Stops a client that walks a huge tree from taking all watches."""
LISTENERS_PER_NODE: Final = 64
"""Connections of one node that watch the same directory. Stops a change from being told a thousand times to one node."""
WATCHES_MAX = 131072
"""Directories watched in all; a watch is a kilobyte of kernel memory."""
ACCESS_LIST: Final = "system.posix_acl_access"
MOUNTS_EVERY: Final = 1.0
READ_SIZE: Final = 64 * 1024
READS_MAX: Final = 16
"""Reads of the inotify descriptor in one turn."""
TELLS_MAX = 8192
"""What is told in one turn, some milliseconds; the rest in the next one. Stops a storm of changes from holding up everything else."""

_MASK: Final = (
    WATCH_MODIFY
    | WATCH_ATTRIB
    | WATCH_CLOSE_WRITE
    | WATCH_MOVED_FROM
    | WATCH_MOVED_TO
    | WATCH_CREATE
    | WATCH_DELETE
    | WATCH_DELETE_SELF
    | WATCH_MOVE_SELF
)
_IN_UNMOUNT: Final = 0x2000
_IN_ONLYDIR: Final = 1 << 24
_IN_EXCL_UNLINK: Final = 1 << 26
_HEAD: Final = struct.Struct("=iIII")
_NOTHING: Final = bytes(4)
"""What FIONREAD says when nothing is to be read."""
_LOCAL_KINDS: Final = frozenset(
    {
        *(0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x01021994, 0x858458F6, 0x794C7630, 0x2FC12FC1, 0xCA451A4E),
        *(0x3153464A, 0x73717368, 0xE0F5E1E2, 0x52654973, 0x3434),
    }
)
"""f_type of file systems whose every change goes through this kernel, and which tell names apart as bytes: ext, xfs, btrfs, f2fs, tmpfs,
ramfs, overlay, zfs, bcachefs, jfs, squashfs, erofs, reiserfs, nilfs."""

_libc = ctypes.CDLL(None, use_errno=True)
_long_of: Final = struct.Struct("@l").unpack_from


def _failed() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def _has_list(fd: int) -> bool:
    """Whether the directory has an access ACL, which says more than its mode about who may search it. True if that is not to be known."""
    try:
        os.getxattr(own_path(fd), ACCESS_LIST)
    except OSError as error:
        return error.errno not in (errno.ENODATA, errno.EOPNOTSUPP)
    return True


def tells_changes(fd: int) -> bool:
    """Whether the kernel hears of every change of the file system that *fd* is on."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer) != 0:
        return False
    return _long_of(buffer)[0] & 0xFFFFFFFF in _LOCAL_KINDS


Own = tuple[int, bytes, int]
"""What a client did: inode number of the directory (as told), name, kinds of events that come of it."""


class _Watched:
    """One watched directory, and who watches it with which export scope."""

    __slots__ = ("ino", "listeners", "of_node")

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.of_node: Counter[int] = Counter()
        """How many of the listeners are of which node."""
        self.listeners: dict[Listener[HostClient], Scope] = {}


class Watching:
    """All watched directories of one served tree. *ino*: the number to tell, from st_dev and st_ino. *mounts* is looked at each second
    while something is watched. *counters* gets what happened."""

    def __init__(self, dispatch: Dispatch, ino: Callable[[int, int], int], mounts: MountPoints, counters: dict[str, int]) -> None:
        self.active = False
        """Something is watched."""
        self._dispatch = dispatch
        self._ino = ino
        self._mounts = mounts
        self._timer: Timer | None = None
        self._counters = counters
        counters.update({"watched": 0, "watch_full": 0, "watch_refused": 0, "watch_overflow": 0, "watch_told": 0})
        self._fd = -1
        self._limit = 0
        self._watched: dict[int, _Watched] = {}
        self._listeners: dict[HostClient, Listener[HostClient]] = {}
        self._of_node: Counter[int] = Counter()
        self._of_user: Counter[tuple[int, int]] = Counter()
        self._queued: Counter[int] = Counter()
        self._left = b""
        """Events that were read and not told in the turn."""
        self._more: Timer | None = None
        self._own: list[tuple[Listener[HostClient], int, bytes, int]] = []
        """What clients did whose events were not read yet."""
        self._reads = False
        """At the end of the turn."""
        self._kinds: dict[int, bool] = {}

    # ---- what clients ask

    def add(self, client: HostClient, fd: int, scope: Scope) -> bool:
        """Watch the directory *fd* for *client*. Called with the client's rights, in dispatch context.

        Refused where the client may not list, and where the users of its node do not all have the same rights: they share what its
        kernel believes.
        """
        status = os.fstat(fd)
        device = status.st_dev
        ino = self._ino(device, status.st_ino)
        kind = self._kinds.get(device)
        if kind is None:
            kind = self._kinds[device] = tells_changes(fd)
        if not kind or client.gone or not self._open():
            self._counters["watch_refused"] += 1
            return False
        listener = self._listeners.get(client)
        nd, uid = client.info.nd, client.info.credentials.uid
        known = listener.watched if listener is not None else {}
        may_list = scope.read or (not scope.verbs and scope.visible)
        if not may_list or not scope.alike:
            self._refuse(listener, ino)
            return False
        share = self._limit // 2 if nd else self._limit
        full = len(known) >= WATCHES_PER_CLIENT or len(self._watched) >= self._limit or self._of_node[nd] >= share
        if (full or ((nd or uid) and self._of_user[nd, uid] >= share - share // 4)) and ino not in known:
            self._counters["watch_full"] += 1
            return False
        number = _libc.inotify_add_watch(self._fd, own_path(fd), _MASK | _IN_ONLYDIR | _IN_EXCL_UNLINK)
        if number < 0:
            self._counters["watch_refused" if ctypes.get_errno() != errno.ENOSPC else "watch_full"] += 1
            return False
        watched = self._watched.get(number)
        # Looked at after the watch was made: who sets one from now on makes an ATTRIB of it.
        if _has_list(fd):
            if watched is None:
                _libc.inotify_rm_watch(self._fd, number)
            self._refuse(listener, ino)
            return False
        if watched is not None and listener not in watched.listeners and watched.of_node[nd] >= LISTENERS_PER_NODE:
            self._counters["watch_full"] += 1
            return False
        if watched is None:
            watched = self._watched[number] = _Watched(ino)
            self.active = True
            if self._timer is None:
                self._timer = self._dispatch.call_at(self._dispatch.now() + MOUNTS_EVERY, self._tick)
        if listener is None:
            listener = self._listeners[client] = Listener(client, self._dispatch, self._queued)
        if listener not in watched.listeners:
            watched.of_node[nd] += 1
            self._of_node[nd] += 1
            self._of_user[nd, uid] += 1
            self._counters["watched"] += 1
        watched.listeners[listener] = scope
        listener.watched[watched.ino] = number
        return True

    def _refuse(self, listener: Listener[HostClient] | None, ino: int) -> None:
        """*ino* cannot be watched, or no more: it may have been under other rights elsewhere."""
        self._counters["watch_refused"] += 1
        number = None if listener is None else listener.watched.get(ino)
        if listener is not None and number is not None:
            listener.tell(ino, WATCH_IGNORED)
            self._leave(listener, number)

    def next(self, message: Message, client: HostClient) -> None:
        """WATCH_NEXT."""
        listener = self._listeners.get(client)
        if listener is None:
            listener = self._listeners[client] = Listener(client, self._dispatch, self._queued)
        listener.next(message)

    def drop(self, client: HostClient, inos: list[int]) -> None:
        """WATCH_DROP."""
        listener = self._listeners.get(client)
        for ino in inos:
            number = None if listener is None else listener.watched.get(ino)
            if listener is not None and number is not None:
                self._leave(listener, number)

    def leave(self, client: HostClient) -> None:
        """The client is gone."""
        listener = self._listeners.pop(client, None)
        if listener is not None:
            for number in list(listener.watched.values()):
                self._leave(listener, number)
            self._counters["watch_overflow"] += listener.lost
            listener.end()

    def forget_remote(self) -> None:
        """What clients of other nodes may see has changed: they ask again for what they still may."""
        for client, listener in self._listeners.items():
            if client.info.nd:
                for number in list(listener.watched.values()):
                    self._leave(listener, number)
                listener.unwatched()

    def _tick(self) -> None:
        self._timer = None
        if self._watched:
            self._timer = self._dispatch.call_at(self._dispatch.now() + MOUNTS_EVERY, self._tick)
            self._mounts.look()

    def mounts_changed(self) -> None:
        """Something was mounted or unmounted, which no watch tells."""
        self._kinds.clear()
        for listener in self._listeners.values():
            if listener.watched:
                listener.tell(0, WATCH_OVERFLOW)

    def _leave(self, listener: Listener[HostClient], number: int) -> None:
        watched = self._watched.get(number)
        if watched is None or watched.listeners.pop(listener, None) is None:
            return
        listener.watched.pop(watched.ino, None)
        nd, uid = listener.client.info.nd, listener.client.info.credentials.uid
        watched.of_node[nd] -= 1
        self._of_node[nd] -= 1
        if not self._of_node[nd]:
            del self._of_node[nd]
        self._of_user[nd, uid] -= 1
        if not self._of_user[nd, uid]:
            del self._of_user[nd, uid]
        if not watched.listeners:
            del self._watched[number]
            self.active = bool(self._watched)
            if self._fd >= 0:
                _libc.inotify_rm_watch(self._fd, number)

    # ---- what the kernel tells

    def made(self, client: HostClient, *own: Own) -> bool:
        """*client* has just done that: he is not told of it. One event of each kind is his; what is more than that is somebody else's.

        Whether he watches it, and all that was done before this is told: then what is looked at from now on, of names or attributes, is
        as he will be told.
        """
        listener = self._listeners.get(client)
        if listener is None or not any(ino in listener.watched for ino, _, _ in own):
            return False
        self._own += [(listener, *one) for one in own]
        return self._read()

    def before(self, client: HostClient, ino: int) -> None:
        """*client* is about to write to a file in *ino*: what others wrote is told first, since the kernel makes one event of two that are
        alike and not read, and his own is not told."""
        listener = self._listeners.get(client)
        if listener is not None and ino in listener.watched and fcntl.ioctl(self._fd, termios.FIONREAD, _NOTHING) != _NOTHING:
            self._read()

    def later(self, client: HostClient, *own: Own) -> None:
        """`made` where nobody waits for what it says: all that was done in this turn is read at once, when the answers have gone out."""
        listener = self._listeners.get(client)
        if listener is None or not any(ino in listener.watched for ino, _, _ in own):
            return
        self._own += [(listener, *one) for one in own]
        if not self._reads:
            self._reads = True
            # Answers go out at the end of a turn: this is put behind them.
            self._dispatch.at_turn_end(lambda: self._dispatch.at_turn_end(self.look))

    def made_of(self, client: HostClient, ino: int, fd: int, scope: Scope) -> bool:
        """*client* has just changed attributes of the directory *fd*. If he watches it and still may, he goes on to, and is not told."""
        listener = self._listeners.get(client)
        if listener is None or ino not in listener.watched or not self.add(client, fd, scope):
            return False
        self._own.append((listener, ino, b"", WATCH_ATTRIB | WATCH_MODIFY))
        return self._read()

    def look(self) -> None:
        """Tell what has happened."""
        self._reads = False
        self._read()

    def _read(self) -> bool:
        """Whether nothing is left to be read."""
        try:
            return self._read_all()
        finally:
            self._own.clear()

    def _read_all(self) -> bool:
        if self._fd < 0 or self._more is not None:
            return False
        room = TELLS_MAX
        for _ in range(READS_MAX):
            try:
                data = self._left or os.read(self._fd, READ_SIZE)
            except (BlockingIOError, InterruptedError):
                return True
            behind = bool(self._left)
            self._left = b""
            offset, end = 0, len(data)
            while offset < end:
                if room <= 0:
                    self._left = data[offset:]
                    self._more = self._dispatch.call_at(self._dispatch.now(), self._go_on)
                    return False
                number, kind, cookie, length = _HEAD.unpack_from(data, offset)
                offset += _HEAD.size
                name = data[offset : offset + length].rstrip(b"\0")
                offset += length
                room -= self._tell(number, kind, cookie, name)
            if end < READ_SIZE // 2 and not behind:
                return True
        return False

    def _go_on(self) -> None:
        self._more = None
        self._read()

    def _maker(self, ino: int, name: bytes, kind: int) -> Listener[HostClient] | None:
        """Who of those in `_own` made this event, which then is his no more."""
        for index, (listener, expected, named, kinds) in enumerate(self._own):
            if kind & kinds and expected == ino and named == name:
                self._own[index] = (listener, expected, named, kinds & ~kind)
                return listener
        return None

    def _tell(self, number: int, kind: int, cookie: int, name: bytes) -> int:
        """What it took: one, and one for each listener."""
        if kind & WATCH_OVERFLOW:
            self._counters["watch_overflow"] += 1
            for listener in self._listeners.values():
                listener.tell(0, WATCH_OVERFLOW)
            return 1 + len(self._listeners)
        watched = self._watched.get(number)
        if watched is None:
            return 1
        took = 1 + len(watched.listeners)
        ino = watched.ino
        if not name:
            over = kind & (WATCH_IGNORED | _IN_UNMOUNT | WATCH_DELETE_SELF)
            maker = self._maker(ino, name, kind) if self._own and not over else None
            for listener in list(watched.listeners):
                if listener is maker:
                    continue
                if over or kind & WATCH_ATTRIB:
                    # Its rights may be others now: whoever may still read it asks again.
                    listener.tell(ino, kind & ~_IN_UNMOUNT | WATCH_IGNORED)
                    self._leave(listener, number)
                else:
                    listener.tell(ino, kind, b"", cookie)
            return took
        maker = self._maker(ino, name, kind) if self._own else None
        self._counters["watch_told"] += 1
        for listener, scope in watched.listeners.items():
            if listener is not maker and scope.step(name) is not None:
                listener.tell(ino, kind, name, cookie)
        return took

    # ---- life

    def _open(self) -> bool:
        if self._fd >= 0:
            return True
        fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            logger.warning("changes of files cannot be told to clients: %s", _failed().strerror)
            return False
        try:
            self._dispatch.attach_fd(fd, self.look)
        except Misuse:
            # Without descriptors, under virtual time, nobody would look.
            os.close(fd)
            return False
        self._fd = fd
        self._limit = min(WATCHES_MAX, _allowed() // 4)
        return True

    def close(self) -> None:
        """Idempotent."""
        for client in list(self._listeners):
            self.leave(client)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._more is not None:
            self._more.cancel()
            self._more = None
        if self._fd >= 0:
            self._dispatch.detach_fd(self._fd)
            os.close(self._fd)
            self._fd = -1


def _allowed() -> int:
    try:
        with open("/proc/sys/fs/inotify/max_user_watches", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 8192
