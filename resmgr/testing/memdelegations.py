"""Delegations of a file system in memory: the part that a kernel has for hostfs, and programs of the server's machine.

Each client stands for a node of its own, since the simulator has several on one kernel. So two users of one mount wait for each other's
directories here; with hostfs they do not (`resmgr.hostfs.alone`)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING

from resmgr.channel import Message
from resmgr.iofunc.delegations import Delegations
from resmgr.iofunc.handle import Client, Handle
from resmgr.iofunc.locking import FileLocks
from resmgr.iofunc.locks import UNLOCK
from resmgr.iomsg import DELEGATION_ASK, LOCK_TEST, UNLINK_DIRECTORY, WATCH_RECALL, Connect
from resmgr.iorequest import ConnectRequest
from resmgr.lockrequest import parse_delegation, parse_lock
from resmgr.testing.memtree import Inode

if TYPE_CHECKING:
    from resmgr.testing.memfs import MemFs


class MemDelegations:
    """Of one `MemFs`, which watches directories. `muted`: nobody is asked before a file is changed, as if that were broken."""

    def __init__(self, fs: MemFs) -> None:
        self.muted = False
        self._fs = fs
        self._waiting: list[tuple[Inode, Callable[[], None]]] = []
        self._exclusively: set[Inode] = set()
        self.alone: dict[Inode, Client] = {}
        """Directories that one client has to itself."""
        self.opened: set[Inode] = set()
        """Files that programs of the server's machine have open for writing."""
        self.locks = FileLocks()
        dispatch = fs.manager.kernel.dispatch
        self.table: Delegations[Client] = Delegations(dispatch, self, self._tell, fs.manager.table.close, fs.manager.counters)

    def _tell(self, client: Client, ino: int) -> None:
        assert self._fs.watching is not None
        listener = self._fs.watching.listeners.get(client)
        if listener is not None:
            listener.tell(ino, WATCH_RECALL)

    def take(self, handle: Handle) -> bool:
        """`Outer.take`."""
        inode = self._fs.inode_of(handle)
        if S_ISDIR(inode.mode):
            if inode in self.alone or handle.client is None:
                return False
            others = self._fs.manager.table.handles.values()
            if any(self._fs.inode_of(other) is inode and other.client is not handle.client for other in others):
                return False
            self.alone[inode] = handle.client
            return True
        exclusive = self._fs.writes(handle)
        if inode in self.opened:
            return False
        for other in self._fs.manager.table.handles.values():
            in_the_way = self._fs.opens(other) if exclusive else self._fs.writes(other)
            if in_the_way and other is not handle and self._fs.inode_of(other) is inode:
                return False
        if exclusive:
            self._exclusively.add(inode)
        return True

    def give(self, handle: Handle) -> None:
        """`Outer.give`: programs that waited for it go on."""
        inode = self._fs.inode_of(handle)
        self.alone.pop(inode, None)
        if self.table.has(inode):
            return
        self._exclusively.discard(inode)
        ready = [change for waits, change in self._waiting if waits is inode]
        self._waiting = [one for one in self._waiting if one[0] is not inode]
        watching = self._fs.watching
        assert watching is not None
        # Not done by the client whose message this is.
        maker, watching.maker = watching.maker, None
        for change in ready:
            change()
        watching.maker = maker

    def conflicts(self, inode: Inode, flags: int) -> bool:
        """Whether to open *inode* with *flags* has to wait."""
        if self.muted or not self.table.has(inode):
            return False
        return bool(flags & (os.O_ACCMODE | os.O_TRUNC)) or inode in self._exclusively

    def waits(self, message: Message, inode: Inode, flags: int) -> bool:
        """Whether *message*, which opens *inode* with *flags*, is looked at later."""
        if not self.conflicts(inode, flags):
            return False
        self.table.wait(message, lambda: self._fs.manager.again(message), inode)
        return True

    def held_up(self, message: Message, client: Client, request: ConnectRequest, base: Handle | None) -> bool:
        """Whether *request* of *client* is looked at later, since somebody else has a directory to itself that it begins in, leads through,
        moves or removes, or would bring a handle of."""
        if not self.alone or self.muted:
            return False
        subtype = request.subtype
        removes = subtype == Connect.UNLINK and bool(request.flags & UNLINK_DIRECTORY)
        whole = removes or subtype in (Connect.LOOKUP, Connect.OPEN, Connect.RENAME, Connect.RMDIR)
        places = self._through(base, request.path, whole)
        if subtype in (Connect.RENAME, Connect.LINK):
            places += self._through(self._fs.manager.table.handles.get(request.handle2), request.path2, whole)
        met = [inode for inode in places if self.alone.get(inode, client) is not client]
        if not met:
            return False
        for inode in met:
            self.table.recall(inode)
        self.table.wait(message, lambda: self._fs.manager.again(message))
        return True

    def _through(self, base: Handle | None, path: bytes, whole: bool) -> list[Inode]:
        """Where *path* begins and what it leads through; *whole*: and to."""
        here = self._fs.root if base is None else self._fs.inode_of(base)
        places = [here]
        names = path.split(b"/")
        for name in names if whole else names[:-1]:
            if not S_ISDIR(here.mode) or name not in here.entries:
                break
            here = here.entries[name][0]
            places.append(here)
        return places

    # ---- messages

    def offer(self, client: Client, directory: Inode, handle: Handle) -> bool:
        """Delegate what *handle* has open, by a name in *directory*, to who opened it for reading."""
        inode, watching = self._fs.inode_of(handle), self._fs.watching
        if self._fs.writes(handle) or not S_ISREG(inode.mode) or inode.nlink != 1:
            return False
        return watching is not None and watching.tells(client, directory) and self.table.offer(client, handle, inode, inode.ino)

    def message(self, message: Message, client: Client, handle: Handle, flags: int) -> None:
        """DELEGATION."""
        inode = self._fs.inode_of(handle)
        if flags & DELEGATION_ASK:
            if S_ISDIR(inode.mode):
                watched = self._fs.watching is not None and self._fs.watching.tells(client, inode)
                message.reply(int(watched and self.table.offer(client, handle, inode, inode.ino)))
                return
            free = not self.locks.locks.used(inode) and inode.nlink == 1
            message.reply(int(free and self._fs.writes(handle) and self.table.offer(client, handle, inode, inode.ino)))
            return
        locks = parse_delegation(message.data)
        if locks and inode not in self._exclusively:
            raise OSError(errno.EINVAL, "its locks are not the client's own")
        code = self.locks.adopt(client, handle, inode, locks)
        if code:
            raise OSError(code, "locks that were granted cannot be had")
        self.table.back(handle)
        message.reply(0)

    def lock(self, message: Message, client: Client, handle: Handle, flags: int) -> None:
        """LOCK."""
        asked, inode = parse_lock(message.data), self._fs.inode_of(handle)
        if asked.operation != LOCK_TEST and asked.kind != UNLOCK and inode in self._exclusively:
            self.table.wait(message, lambda: self._fs.manager.again(message), inode)
            return
        self.locks.answer(message, client, handle, inode, True, self._fs.writes(handle))

    # ---- programs of the server's machine

    def locally(self, inode: Inode, change: Callable[[], None]) -> None:
        """A program of the server's machine opens *inode* for writing, and changes it when it may."""
        if self.conflicts(inode, os.O_WRONLY):
            self._waiting.append((inode, change))
            self.table.recall(inode)
        else:
            change()
