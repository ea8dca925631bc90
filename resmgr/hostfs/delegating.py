"""Delegations of host files (docs/protocol/delegation.md): offered with OPEN, kept by leases of this machine's kernel (`breaks`).

A file that clients have delegations of is opened by nobody for more than they believe before they were asked: not by a program of this
machine, whom the kernel holds up, and not by this daemon, whose opens never wait (O_NONBLOCK) and say EAGAIN. Of those the message waits
(`caught`). What would wait in the kernel all the same, truncate by a name, asks `leased` first.

Directories are delegated by the same messages and caps, and no lease of the kernel (`alone`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from stat import S_ISREG
from typing import TYPE_CHECKING, Final

from resmgr.channel import Message
from resmgr.errors import BadMessage
from resmgr.hostfs import syscalls
from resmgr.hostfs.alone import HELD_OFF, Alone, Key, key_of
from resmgr.hostfs.breaks import Breaks
from resmgr.hostfs.made import Opened
from resmgr.hostfs.objects import Busy, HostClient, HostHandle, Leased
from resmgr.hostfs.streams import DeviceHandle
from resmgr.iofunc.delegations import Delegations
from resmgr.iofunc.handle import Handle
from resmgr.iofunc.locks import UNLOCK
from resmgr.iomsg import ATTR, DELEGATION_ASK, LOCK_TEST
from resmgr.iorequest import HEAD, ConnectRequest
from resmgr.lockrequest import parse_delegation, parse_lock

if TYPE_CHECKING:
    from resmgr.hostfs.running import Running

_ATIME: Final = slice(52, 60)
"""Of a packed Attr: what reading changes."""


class HostDelegations:
    """Of one `HostFs`."""

    def __init__(self, fs: Running) -> None:
        self._fs = fs
        self.breaks = Breaks(fs.dispatch, self._broken)
        self.leased: set[Key] = set()
        """Files of which there is a delegation. Read by threads, too."""
        self.alone = Alone()
        self._exclusively: set[Key] = set()
        """Of these, files that only one client has open, whose locks are its own affair."""
        self._by_fd: dict[int, HostHandle] = {}
        self._keys: dict[HostHandle, Key] = {}
        fs.locks.held_up = self.locks_wait
        fs.counters["delegations_recalled_unseen"] = 0
        self.table: Delegations[HostClient] = Delegations(fs.dispatch, self, fs.watching.recall, self._lost, fs.counters)

    # ---- given and given back

    def offer(self, client: HostClient, base: HostHandle, name: bytes, opened: Opened) -> bool:
        """*client* has just opened *name* in *base*, which is in *opened*, and would like a delegation. Called with the daemon's rights."""
        handle = opened.ocb
        if handle is None or handle.directory or handle.writable or isinstance(handle, DeviceHandle) or not name or b"/" in name:
            return False
        if handle.device.blocking_until > self._fs.dispatch.now() or not self._fs.watching.tells(client, base.ino):
            return False
        status = os.fstat(handle.fd)
        if not S_ISREG(status.st_mode) or status.st_nlink != 1:
            return False
        key = status.st_dev, status.st_ino
        self._keys[handle] = key
        if not self.table.offer(client, handle, key, handle.ino):
            del self._keys[handle]
            return False
        if not self._is_as_told(client, handle, opened):
            # Somebody has written between its being looked at and this.
            self.table.back(handle)
            return False
        if opened.data:
            # What was read before may be older than what nobody changes from now on, by less than a tick of the file system's clock.
            opened.data = os.pread(handle.fd, len(opened.data), 0)
        return True

    def _is_as_told(self, client: HostClient, handle: HostHandle, opened: Opened) -> bool:
        now, told = bytearray(self._fs.ops_of(client).attr(os.fstat(handle.fd))), bytearray(opened.attr)
        now[_ATIME] = told[_ATIME] = bytes(8)
        return now == told

    def message(self, message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        """DELEGATION."""
        if flags & ~DELEGATION_ASK or not isinstance(handle, HostHandle):
            raise BadMessage("delegation of an unknown kind")
        if flags:
            if len(message.data) != HEAD:
                raise BadMessage("more than a question for a delegation")
            message.reply(int(self._to_itself(client, handle) if handle.directory else self._exclusive(client, handle)))
            return
        locks = parse_delegation(message.data)
        key = self._keys.get(handle)
        if locks:
            if key not in self._exclusively:
                raise OSError(errno.EINVAL, "its locks are not the client's own")
            assert key is not None
            try:
                self._fs.locks.adopt(client, handle, *key, locks)
            except OSError:
                # What its programs think that they have is not so.
                self._lost(handle)
                raise
        self.table.back(handle)
        message.reply(0)

    def _exclusive(self, client: HostClient, handle: HostHandle) -> bool:
        """*client* would like nobody but its own programs to have what *handle* has open, and answer their locks itself."""
        fs = self._fs
        if handle.directory or not handle.writable or handle.append or isinstance(handle, DeviceHandle) or not handle.scope.write:
            return False
        if handle.place is None or not fs.watching.tells(client, handle.place[0]):
            return False
        status = os.fstat(handle.fd)
        slow = handle.device.blocking_until > fs.dispatch.now()
        if slow or not S_ISREG(status.st_mode) or status.st_nlink != 1:
            return False
        key = status.st_dev, status.st_ino
        node = client.info.node
        if handle in self._keys or not fs.locks.lends(*key, node) or not fs.switch.run(fs.identity(client), _may_open, handle):
            return False
        self._keys[handle] = key
        if not self.table.offer(client, handle, key, handle.ino):
            del self._keys[handle]
            return False
        fs.locks.lent(handle, *key, node)
        return True

    def _to_itself(self, client: HostClient, handle: HostHandle) -> bool:
        """*client* would like no other node to look at what is in that directory, or to change it, before it was asked."""
        fs = self._fs
        slow = handle.device.blocking_until > fs.dispatch.now()
        held_off = fs.dispatch.now() < self.alone.not_before
        if slow or held_off or handle in self._keys or not handle.scope.write or not fs.watching.tells(client, handle.ino):
            return False
        if not self.alone.unshared(handle, fs.manager.table.clients.values(), fs.dispatch.now()):
            return False
        self._keys[handle] = key_of(handle)
        if not self.table.offer(client, handle, key_of(handle), handle.ino):
            del self._keys[handle]
            return False
        return True

    def locks_wait(self, message: Message, key: Key) -> bool:
        """Whether *message*, a LOCK of that file, waits: its locks are a client's own affair. To look and to unlock changes nothing."""
        if key not in self._exclusively:
            return False
        request = parse_lock(message.data)
        if request.operation == LOCK_TEST or request.kind == UNLOCK:
            return False
        self.table.wait(message, partial(self._fs.manager.again, message), key)
        return True

    def heed(self, suspect: float, down: float) -> None:
        """A client believes nothing of a server that was silent for *suspect* seconds, and takes one for gone after *down*."""
        self.table.patience = max(down, suspect + 1.0)
        self.breaks.unheard = suspect + 1.5
        self.breaks.least = self.table.patience + 3.0

    def facts(self) -> list[dict[str, object]]:
        """What was recalled and not given back yet, the oldest first."""
        now = self._fs.dispatch.now()
        return [{"node": one.node, "uid": one.uid, "ino": one.ino, "seconds": round(now - one.since, 3)} for one in self.table.recalled()]

    def _lost(self, handle: Handle) -> None:
        self._fs.manager.table.close(handle)

    def _broken(self, fd: int) -> None:
        handle = self._by_fd.get(fd)
        if handle is not None:
            self.table.recall_of(handle)

    def close(self) -> None:
        """Idempotent."""
        self.table.close()
        self.breaks.close()

    # ---- Outer

    def take(self, handle: Handle) -> bool:
        assert isinstance(handle, HostHandle)
        if handle.directory:
            assert handle.client is not None
            return self.alone.take(self._keys[handle], handle.client.info.node)
        if not self.breaks.take(handle.fd, write=handle.writable):
            return False
        self._by_fd[handle.fd] = handle
        self.leased.add(self._keys[handle])
        if handle.writable:
            self._exclusively.add(self._keys[handle])
        return True

    def give(self, handle: Handle) -> None:
        assert isinstance(handle, HostHandle)
        key = self._keys.pop(handle)
        if handle.directory:
            self.alone.give(key)
            return
        self.breaks.give(handle.fd)
        self._by_fd.pop(handle.fd, None)
        if handle.writable:
            self._exclusively.discard(key)
            self._fs.locks.returned(handle, *key)
        if not self.table.has(key):
            self.leased.discard(key)

    # ---- who waits

    def caught(self, message: Message, error: BlockingIOError | Busy) -> None:
        """What *message* asks for met somebody's lease: it is handled anew when that may be gone. The error, if it has waited long."""
        if error.errno != errno.EAGAIN:
            raise OSError(error.errno, "would wait")
        again: Callable[[], None] = partial(self._fs.manager.again, message)
        self.table.wait(message, again, getattr(error, "key", None))

    def meets(self, message: Message, client: HostClient, base: HostHandle, second: object, request: ConnectRequest, inline: bool) -> bool:
        """Whether *message*, which is *request*, waits until others have given back directories (`Alone.in_the_way`)."""
        keys = self.alone.in_the_way(client, base, second, request, inline)
        if keys is None:
            keys = self.alone.of_others(client)
            if keys and not self.table.waits(message):
                self._fs.counters["delegations_recalled_unseen"] += len(keys)
        if keys:
            self.caught_by(message, keys)
        return bool(keys)

    def caught_by(self, message: Message, keys: list[Key]) -> None:
        """*message* waits until the directories *keys*, that others have to themselves, were given back. All are recalled at once: who
        waits for one after the other waits as often as a slow client likes."""
        self.alone.not_before = self._fs.dispatch.now() + HELD_OFF
        if not self.table.waits(message):
            for key in keys:
                self.table.recall(key)
        self.caught(message, Leased(keys[0]))


def _may_open(handle: HostHandle) -> bool:
    """Whether the calling thread's user may open again what *handle* has open, for as much. Who made a file may have it open for more than
    its mode says, and the mode may have been changed since."""
    mode = os.W_OK | (os.R_OK if handle.readable else 0)
    try:
        syscalls.faccessat2(handle.fd, b"", mode, syscalls.AT_EACCESS | syscalls.AT_EMPTY_PATH)
    except OSError:
        return False
    return True


assert ATTR.size >= _ATIME.stop
