"""Locks of host files: kept between our clients (`resmgr.iofunc.locks`), and held of the kernel, so that programs of this machine see them.

Whoever holds a lock of a file has an open file description of his own for it, with which we hold the same lock as an open-file-description
lock (fcntl) or a flock. So locks of two clients never meet in the kernel before the table has let them. Nothing here waits: a lock that a
program of this machine has is tried again every `AGAIN` seconds for those who wait, in their order; between them and that program there is
no order.

Not held of the kernel: locks on devices and FIFOs, whose opening has effects; on network and FUSE file systems, which would make the
dispatch wait for somebody else; and those of clients that may only read here. These have a table of their own for each file: who may only
read cannot hold up who may write.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Hashable, Iterable

from resmgr.channel import Message
from resmgr.dispatch import Dispatch, Timer
from resmgr.hostfs.claims import Claims
from resmgr.hostfs.device import FOREVER
from resmgr.hostfs.grace import Entry, Grace
from resmgr.hostfs.objects import HostClient, HostHandle
from resmgr.hostfs.opened import own_path
from resmgr.hostfs.streams import DeviceHandle
from resmgr.iofunc.handle import Client, Handle
from resmgr.iofunc.locking import FileLocks
from resmgr.iofunc.locks import END, UNLOCK, WRITE, Owner, Range
from resmgr.iomsg import LOCK_RECLAIM, LOCK_TEST
from resmgr.lockrequest import LockRequest, parse_lock

AGAIN = 0.05
UNLENT = 60.0
"""Seconds in which nobody else is lent the locks of a file that a node has lost something of. What he granted there would count as
everything: so those who come back in time find what was really locked."""
F_OFD_SETLK = 37
_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock: type, whence, start, length (0: to the end), pid (0)."""
_Key = tuple[int, int, bool, bool]
"""st_dev, st_ino, whether the kernel is told, whether the client may write here."""


class _Carrier:
    """An open file description that carries one owner's locks of one file."""

    __slots__ = ("_after", "fd", "readable", "writable")

    def __init__(self, fd: int, readable: bool, writable: bool, handle: HostHandle) -> None:
        self.fd = fd
        self.readable = readable
        self.writable = writable
        self._after = handle.after_close

    def close(self) -> None:
        """Its owner has changed nothing by that, whatever the kernel tells of it."""
        os.close(self.fd)
        if self.writable and self._after is not None:
            self._after()


class _Shared(_Carrier):
    """The open file of a handle, by which its client had a delegation: it carries all locks that stood then. `places`: owners of files that
    have something by it."""

    __slots__ = ("_handle", "free", "places")

    def __init__(self, handle: HostHandle) -> None:
        super().__init__(handle.fd, handle.readable, handle.writable, handle)
        self._handle = handle
        self.places: set[tuple[Hashable, Owner]] = set()
        self.free = False
        """Nothing is held by it any more."""

    @property
    def ending(self) -> bool:
        """All that is held by it ends together: nothing has to be left for others."""
        client = self._handle.client
        return self._handle.closed or (client is not None and client.gone)

    def close(self) -> None:
        """It is the handle's."""


class HostLocks:
    """The LOCK handler of a `HostFs`, and its `resmgr.iofunc.locks.Outer`. Counts what `FileLocks` does, and `locks_not_carried`: locks
    that the kernel could not be asked for, which only clients see; `locks_grace`: those that were held up after a restart;
    `reclaims_refused`: those that could not be set again."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._files = FileLocks(self)
        self._files.on_lost = self._lost
        self._files.counters.update({"locks_not_carried": 0, "locks_grace": 0, "reclaims_refused": 0})
        self.count_in = self._files.count_in
        self._carriers: dict[tuple[Hashable, Owner], _Carrier] = {}
        self._refused = False
        self._timer: Timer | None = None
        self._grace: Grace | None = None
        self._claims = Claims()
        self._reclaiming: Owner | None = None
        self._adopting: _Shared | None = None
        self.held_up: Callable[[Message, tuple[int, int]], bool] = lambda message, file: False
        """Whether *message*, a LOCK of a file (st_dev, st_ino) whose locks are a client's own affair, is looked at later."""

    def remember(self, path: str, boot: bytes, noted: Iterable[Entry]) -> None:
        """Note in the file *path* what other nodes have locked, and hold up others for what was noted there before (`grace`). Once; later
        calls change nothing."""
        if self._grace is None:
            self._grace = Grace(self._dispatch, path, boot, noted, self._claims)

    def answer(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        """The handler."""
        assert isinstance(handle, HostHandle)
        if not (handle.readable or handle.writable):
            raise OSError(errno.EBADF, "not open")
        status = os.fstat(handle.fd)
        shared = handle.scope.write and handle.device.blocking_until != FOREVER and not isinstance(handle, DeviceHandle)
        key: _Key = (status.st_dev, status.st_ino, shared, handle.scope.write)
        if handle.writable and self.held_up(message, (status.st_dev, status.st_ino)):
            return
        if flags & LOCK_RECLAIM:
            self._reclaim(message, client, handle, key)
            return
        grace = self._grace
        if grace is not None and grace.waits_for(status.st_dev, status.st_ino):
            request = parse_lock(message.data)
            if request.operation != LOCK_TEST and request.kind != UNLOCK:
                if handle.reopened:
                    grace.done(status.st_dev, status.st_ino, client.info.node)
                if grace.waits_for(status.st_dev, status.st_ino):
                    self._hold_up(grace, message, client, handle, key)
                    return
        self._files.answer(message, client, handle, key, handle.readable, handle.writable)
        self._watch()

    # ---- what was locked before

    def _reclaim(self, message: Message, client: HostClient, handle: HostHandle, key: _Key) -> None:
        request = parse_lock(message.data)
        kind = (*key[2:], request.whole)
        if not self._claims.allows(key[:2], kind, client.info.node, request.kind, request.start, request.end):
            self._files.counters["reclaims_refused"] += 1
            raise OSError(errno.EAGAIN, "somebody has had it meanwhile")
        self._reclaiming = Owner(client.info.scoid, client.info.nd, request.owner, request.whole)
        try:
            self._files.answer(message, client, handle, key, handle.readable, handle.writable)
        finally:
            self._reclaiming = None
        self._watch()

    def _lost(self, client: Client, key: Hashable, owner: Owner, ranges: list[Range]) -> None:
        """*client* is gone, and had *ranges*."""
        assert isinstance(key, tuple)
        if client.info.node:
            self._claims.lost_ranges(key[:2], (*key[2:], owner.whole), client.info.node, ranges, self._dispatch.now())

    # ---- delegations

    def lends(self, device: int, inode: int, node: str) -> bool:
        """Whether nothing of a file is locked, and nobody has to be waited for, so that all its locks may be *node*'s own affair."""
        if self._grace is not None and self._grace.waits_for(device, inode):
            return False
        if self._claims.others((device, inode), node, self._dispatch.now() - UNLENT):
            return False
        return not any(self._files.locks.used((device, inode, shared, write)) for shared in (True, False) for write in (True, False))

    def lent(self, handle: HostHandle, device: int, inode: int, node: str) -> None:
        """They are, through *handle*: as if everything was locked, over a restart of this daemon."""
        less = self._claims.lent((device, inode))
        if self._grace is not None:
            if less:
                self._grace.broken()
            self._grace.took(handle, device, inode, node)

    def returned(self, handle: HostHandle, device: int, inode: int) -> None:
        """They are not any more."""
        client = handle.client
        if client is not None and client.gone and client.info.node:
            self._claims.lost((device, inode), client.info.node, self._dispatch.now())
        if self._grace is not None:
            self._grace.gave(handle)

    def adopt(self, client: HostClient, handle: HostHandle, device: int, inode: int, locks: list[LockRequest]) -> None:
        """*client* gives its own locks to us, before anybody else can have the file open. OSError: not all can be had."""
        self._adopting = _Shared(handle)
        try:
            code = self._files.adopt(client, handle, (device, inode, True, True), locks)
        finally:
            self._adopting = None
        if code:
            raise OSError(code, "locks that were granted cannot be had")

    def _hold_up(self, grace: Grace, message: Message, client: HostClient, handle: HostHandle, key: _Key) -> None:
        """Others may have had what is asked for, and come for it yet."""
        self._files.counters["locks_grace"] += 1

        def go_on() -> None:
            message.on_unblock = None
            if message.answered:
                return
            if handle.closed:
                message.error(errno.EBADF)
                return
            try:
                self._files.answer(message, client, handle, key, handle.readable, handle.writable)
            except OSError as error:
                message.error(error.errno or errno.EIO)
            self._watch()

        def give_up() -> None:
            forget()
            message.error(errno.EINTR)

        forget = grace.wait(key[:2], go_on)
        message.on_unblock = give_up

    def close(self) -> None:
        """Let the kernel's locks go. Idempotent."""
        if self._grace is not None:
            self._grace.close()
            self._grace = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for carrier in self._carriers.values():
            carrier.close()
        self._carriers.clear()

    # ---- somebody in the kernel waits or holds

    def _watch(self) -> None:
        if self._refused and self._timer is None and self._files.locks.waiting:
            self._timer = self._dispatch.call_at(self._dispatch.now() + AGAIN, self._again)
        self._refused = False

    def _again(self) -> None:
        self._timer = None
        self._files.locks.retry()
        self._watch()

    # ---- Outer

    def take(self, key: Hashable, owner: Owner, kind: int, start: int, end: int) -> bool:
        assert isinstance(key, tuple)
        if not self._take(key, owner, kind, start, end):
            return False
        grace = self._grace
        new = owner != self._reclaiming
        if new and self._claims.granted(key[:2], (*key[2:], owner.whole), kind, start, end) and grace is not None:
            grace.broken()
        if grace is not None and owner.node:
            asker = self._files.asker((key, owner)).client
            if asker is not None:
                grace.took((key, owner), key[0], key[1], asker.info.node)
        return True

    def _take(self, key: tuple[int, int, bool, bool], owner: Owner, kind: int, start: int, end: int) -> bool:
        if not key[2]:
            return True
        try:
            carrier = self._carrier(key, owner, kind)
            if owner.whole:
                fcntl.flock(carrier.fd, (fcntl.LOCK_EX if kind == WRITE else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            else:
                _range(carrier.fd, fcntl.F_WRLCK if kind == WRITE else fcntl.F_RDLCK, start, end)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                self._refused = True
                return False
            self._files.counters["locks_not_carried"] += 1
        return True

    def give(self, key: Hashable, owner: Owner, start: int, end: int) -> None:
        carrier = self._carriers.get((key, owner))
        if carrier is None:
            return
        try:
            if isinstance(carrier, _Shared):
                self._give_shared(carrier, (key, owner), start, end)
            elif owner.whole:
                fcntl.flock(carrier.fd, fcntl.LOCK_UN)
            else:
                _range(carrier.fd, fcntl.F_UNLCK, start, end)
        except OSError:
            self._files.counters["locks_not_carried"] += 1

    def _give_shared(self, carrier: _Shared, place: tuple[Hashable, Owner], start: int, end: int) -> None:
        """Let go of what no other owner has by the same open file; where several have something, all are readers."""
        if carrier.ending:
            if not carrier.free:
                carrier.free = True
                fcntl.flock(carrier.fd, fcntl.LOCK_UN)
                _range(carrier.fd, fcntl.F_UNLCK, 0, END)
            return
        others = [other for other in carrier.places if other != place and other[1].whole == place[1].whole]
        if place[1].whole:
            if not others:
                fcntl.flock(carrier.fd, fcntl.LOCK_UN)
            return
        held = [one for key, owner in others for one in self._files.locks.ranges(key, owner)]
        for low, high in without(start, end, held):
            _range(carrier.fd, fcntl.F_UNLCK, low, high)

    def forget(self, key: Hashable, owner: Owner) -> None:
        if self._grace is not None:
            self._grace.gave((key, owner))
        carrier = self._carriers.pop((key, owner), None)
        if isinstance(carrier, _Shared):
            carrier.places.discard((key, owner))
        if carrier is not None:
            carrier.close()

    def _carrier(self, key: Hashable, owner: Owner, kind: int) -> _Carrier:
        """The description for a lock of *kind*. An owner may open a file again, for more: then his locks move."""
        place = key, owner
        handle = self._files.asker(place)
        assert isinstance(handle, HostHandle)
        old = self._carriers.get(place)
        if old is not None and (owner.whole or (old.writable if kind == WRITE else old.readable)):
            return old
        if old is None and self._adopting is not None:
            self._adopting.places.add(place)
            self._carriers[place] = self._adopting
            return self._adopting
        readable = handle.readable or (old is not None and old.readable)
        writable = handle.writable or (old is not None and old.writable)
        access = os.O_RDWR if readable and writable else os.O_WRONLY if writable else os.O_RDONLY
        fd = os.open(own_path(handle.fd), access | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        new = self._carriers[place] = _Carrier(fd, readable, writable, handle)
        if old is not None:
            for low, high, held in self._files.locks.ranges(key, owner):
                if isinstance(old, _Shared):
                    self._give_shared(old, place, low, high)
                else:
                    _range(old.fd, fcntl.F_UNLCK, low, high)
                _range(fd, fcntl.F_WRLCK if held == WRITE else fcntl.F_RDLCK, low, high)
            if isinstance(old, _Shared):
                old.places.discard(place)
            old.close()
        return new


def without(start: int, end: int, held: Iterable[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """What of [start, end) is in none of *held*, which may overlap."""
    left = []
    for low, high, _ in sorted(held):
        if low >= end:
            break
        if low > start:
            left.append((start, low))
        start = max(start, high)
    if start < end:
        left.append((start, end))
    return left


def _range(fd: int, kind: int, start: int, end: int) -> None:
    fcntl.fcntl(fd, F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, 0 if end == END else end - start, 0))
