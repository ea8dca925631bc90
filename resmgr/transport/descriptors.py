"""Descriptors that this process owns while a message that carries them is on its way, and the thread that closes them.

Closing the last descriptor of an open file can take long: a socket with SO_LINGER and data that nobody reads waits as long as its maker
said, a file of a server that hangs waits for that server. Whoever makes such a file and passes it on decides when its last descriptor is
closed, and where. So a `Keeper`, of one user, closes what was taken from him or for him in a thread of its own; whom he delays is himself.

Not among the compiled modules: a subclass of a built-in type cannot be compiled.
"""

from __future__ import annotations

import os
import queue
import resource
import threading
from collections.abc import Iterable

from resmgr.ownthread import new_thread

DESCRIPTORS_PER_USER = 1024
"""Descriptors in this process's hands for one user (received, waiting to be sent, being closed), or a 16th of how many it may have open."""
IDLE = 5.0
"""Seconds after which a thread without work ends."""


class OwnedDescriptors(tuple[int, ...]):
    """Descriptors that close when nobody refers to the sequence any more: received ones, and copies of those that wait to be sent."""

    # Not a slot: a subclass of tuple has none.
    keeper: Keeper

    def __del__(self) -> None:
        self.keeper.let_go(self)


class Keeper:
    """The descriptors of one user. *limit*: how many there may be before messages with more are refused; None: DESCRIPTORS_PER_USER.

    `take`, `has_room` and `is_full` are the dispatch's; descriptors are let go in any thread.
    """

    __slots__ = ("_closed", "_ending", "_limit", "_lock", "_queue", "_taken", "_thread", "is_full")

    def __init__(self, limit: int | None = None) -> None:
        if limit is None:
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            limit = DESCRIPTORS_PER_USER if soft < 0 else max(64, min(DESCRIPTORS_PER_USER, soft // 16))
        self._limit = limit
        self._taken = 0
        self._closed = 0
        self._ending = False
        self._queue: queue.SimpleQueue[tuple[int, ...]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.is_full = False
        """Twice the limit: nothing more is to be read that may bring any."""

    @property
    def held(self) -> int:
        """Taken and not closed yet."""
        return self._taken - self._closed

    def has_room(self, count: int) -> bool:
        return self.held + count <= self._limit

    def take(self, fds: Iterable[int]) -> OwnedDescriptors:
        """*fds* are the keeper's from now on, which closes them when nobody refers to the result any more."""
        owned = OwnedDescriptors(fds)
        owned.keeper = self
        with self._lock:
            self._taken += len(owned)
            self.is_full = self._taken - self._closed >= 2 * self._limit
            if self._thread is None:
                # If there is no room for it, what is let go is closed after a later one.
                self._thread = new_thread("descriptors", self._work)
        return owned

    def end(self) -> None:
        """Nothing more is taken: its thread ends with the last descriptor, instead of waiting for others."""
        self._ending = True
        self._queue.put(())

    def let_go(self, fds: tuple[int, ...]) -> None:
        """Close them. From a destructor, so without a lock: the thread is there as long as anything is taken."""
        self._queue.put(tuple(fds))

    def _work(self) -> None:
        while True:
            idle = False
            try:
                fds = self._queue.get(timeout=IDLE)
            except queue.Empty:
                fds = ()
                idle = True
            for fd in fds:
                try:
                    os.close(fd)
                except OSError:
                    pass
                with self._lock:
                    self._closed += 1
                    self.is_full = self._taken - self._closed >= 2 * self._limit
            if idle or self._ending:
                with self._lock:
                    if self._taken == self._closed:
                        self._thread = None
                        return
