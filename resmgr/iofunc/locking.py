"""LOCK messages of a manager: `locks` with handles, clients and messages around it.

What the lock of an open file is released by: an unlock, the close of the handle through which it was obtained (the client's death, its
node's or its link's included), nothing else. So a client that keeps one handle for several owners tells each owner's unlock itself; the
FUSE front end does that when a process closes a file.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable

from resmgr.channel import Message
from resmgr.iofunc.handle import Client, Handle
from resmgr.iofunc.locks import END, READ, UNLOCK, WRITE, Locks, Outer, Owner, Range, Waiter
from resmgr.iomsg import LOCK_FOUND, LOCK_TEST, LOCK_WAIT
from resmgr.lockrequest import LockRequest, parse_lock

_Place = tuple[Hashable, Owner]
"""An owner at an object."""


class _Through:
    """What came through one handle."""

    __slots__ = ("owners", "waiting")

    def __init__(self) -> None:
        self.owners: dict[_Place, None] = {}
        self.waiting: dict[Waiter, Message] = {}


class FileLocks:
    """The locks of one manager. `answer` is the whole of a LOCK handler; `counters` are events by name."""

    def __init__(self, outer: Outer | None = None) -> None:
        self.locks = Locks(outer)
        self.counters = {"locks_full": 0, "locks_waited": 0, "locks_reaped": 0, "deadlocks": 0}
        self._askers: dict[_Place, dict[Handle, None]] = {}
        self._through: dict[Handle, _Through] = {}
        self.on_lost: Callable[[Client, Hashable, Owner, list[Range]], None] = _nothing
        """Told what a client that is gone still had of an object, before anybody else gets it."""

    def count_in(self, counters: dict[str, int]) -> None:
        """Count in *counters* from now on: those of the manager."""
        counters.update(self.counters)
        self.counters = counters

    def asker(self, place: tuple[Hashable, Owner]) -> Handle:
        """Through which handle an owner that holds or waits for something of an object asked last."""
        return next(reversed(self._askers[place]))

    def answer(self, message: Message, client: Client, handle: Handle, key: Hashable, readable: bool, writable: bool) -> None:
        """Answer a LOCK about the object *key* that *handle*, open as told, is. Two objects never have equal keys."""
        request = parse_lock(message.data)
        info = client.info
        owner = Owner(info.scoid, info.nd, request.owner, request.whole)
        if request.operation == LOCK_TEST:
            if request.kind == UNLOCK:
                raise OSError(errno.EINVAL, "nothing to test")
            message.reply(0, self._found(owner, key, request.kind, request.start, request.end))
            return
        if not request.whole and ((request.kind == READ and not readable) or (request.kind == WRITE and not writable)):
            raise OSError(errno.EBADF, "not open for that")
        if request.kind == UNLOCK and handle not in self._through:
            self.locks.lock(key, owner, UNLOCK, request.start, request.end)
            message.reply(0)
            return
        through = self._asks(handle, key, owner)
        waiting: list[Waiter] = []

        def done(code: int) -> None:
            for waiter in waiting:
                through.waiting.pop(waiter, None)
            if message.answered:
                return
            if code:
                message.error(code)
            else:
                message.reply(0)

        waits = done if request.operation == LOCK_WAIT else None
        result = self.locks.lock(key, owner, request.kind, request.start, request.end, request.pid, waits)
        if isinstance(result, Waiter):
            waiter = result
            waiting.append(waiter)
            through.waiting[waiter] = message
            self.counters["locks_waited"] += 1

            def give_up() -> None:
                if self.locks.cancel(waiter):
                    through.waiting.pop(waiter, None)
                    self._tidy(handle, through, key, owner)
                    message.error(errno.EINTR)

            message.on_unblock = give_up
            return
        self._tidy(handle, through, key, owner)
        if result:
            self.counters["locks_full"] += result == errno.ENOLCK
            self.counters["deadlocks"] += result == errno.EDEADLK
            message.error(result)
        else:
            message.reply(0)

    def adopt(self, client: Client, handle: Handle, key: Hashable, locks: list[LockRequest]) -> int:
        """*client* has granted *locks* of *key* itself, through *handle*, and gives them to us. 0, or the errno of the first that cannot be
        had."""
        info = client.info
        for one in locks:
            owner = Owner(info.scoid, info.nd, one.owner, one.whole)
            through = self._asks(handle, key, owner)
            result = self.locks.lock(key, owner, one.kind, one.start, one.end, one.pid)
            self._tidy(handle, through, key, owner)
            if result:
                assert isinstance(result, int)
                return result
        return 0

    def _asks(self, handle: Handle, key: Hashable, owner: Owner) -> _Through:
        """*owner* asks for something of *key* through *handle*."""
        through = self._through.get(handle)
        if through is None:
            through = self._through[handle] = _Through()
            if handle.at_close is None:
                handle.at_close = {}
            handle.at_close[self] = self._closed
        through.owners[key, owner] = None
        askers = self._askers.setdefault((key, owner), {})
        askers.pop(handle, None)
        askers[handle] = None
        return through

    def _tidy(self, handle: Handle, through: _Through, key: Hashable, owner: Owner) -> None:
        """Forget what has no lock left."""
        if not self.locks.ranges(key, owner) and not any(waiter.owner == owner for waiter in through.waiting):
            through.owners.pop((key, owner), None)
            self._no_asker((key, owner), handle)
            if not through.owners and not through.waiting and self._through.get(handle) is through:
                del self._through[handle]
                if handle.at_close is not None:
                    handle.at_close.pop(self, None)

    def _found(self, owner: Owner, key: Hashable, kind: int, start: int, end: int) -> bytes:
        found = self.locks.test(key, owner, kind, start, end)
        if found is None:
            return LOCK_FOUND.pack(UNLOCK, 0, start, 0 if end == END else end - start)
        holder, pid, (low, high, held) = found
        return LOCK_FOUND.pack(held, pid if holder.node == owner.node else 0, low, 0 if high == END else high - low)

    def _no_asker(self, place: _Place, handle: Handle) -> None:
        askers = self._askers.get(place)
        if askers is not None:
            askers.pop(handle, None)
            if not askers:
                del self._askers[place]

    def _closed(self, handle: Handle) -> None:
        if handle not in self._through:
            return
        handles = [handle]
        if handle.client is not None and handle.client.gone:
            # All its handles are about to be closed: whoever waits for their locks is looked at once, not once for each.
            handles += handle.client.handles
        waiting: dict[Waiter, Message] = {}
        places: dict[_Place, None] = {}
        for one in handles:
            through = self._through.pop(one, None)
            if through is not None:
                waiting.update(through.waiting)
                places.update(through.owners)
                for place in through.owners:
                    self._no_asker(place, one)
        self.counters["locks_reaped"] += sum(1 for key, owner in places if self.locks.holds(key, owner))
        if handle.client is not None and handle.client.gone:
            for key, owner in places:
                ranges = self.locks.ranges(key, owner)
                if ranges:
                    self.on_lost(handle.client, key, owner, ranges)
        self.locks.end(waiting, places)
        for message in waiting.values():
            if not message.answered:
                message.error(errno.EBADF)


def _nothing(client: Client, key: Hashable, owner: Owner, ranges: list[Range]) -> None:
    pass
