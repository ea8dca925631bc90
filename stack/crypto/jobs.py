"""Batches that are answered later: a bounded queue in front of worker threads.

opencrypto gives a request to a driver and gets it back by a callback. So here: `submit` returns at once, and the completion is called
in dispatch context, later. Where a worker thread would cost more than the batch does (`INLINE`), the batch is done at the end of the
turn instead.

A few jobs are in threads at a time. The rest waits: each client's in the order in which it came, and clients take turns, so nobody stands
behind all that somebody else has. A job beyond the bounds is refused with EAGAIN, before anything of it is done: who produces batches
must slow down, not the queue grow. Bounds of one client are its server's to keep (`stack.managers.accounts`).
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from resmgr.dispatch import Buffer, Dispatch
from resmgr.errors import ResmgrError

T = TypeVar("T")

JOBS_MAX = 256
"""Batches that wait or are under way; stops a caller that never waits for completions."""
BYTES_MAX = 64 * 1024 * 1024
"""The same in bytes, as submitters count them."""
RUNNING_MAX = 2
"""In threads at a time: others of the node need threads and cores too."""
INLINE = 16 * 1024
"""Bytes up to which a batch is done at the end of the turn. A hop to a thread and back costs 60 µs; the slowest software hash does 16 KiB
in 160, the ciphers in 4 to 40."""
ITEM = 256
"""Bytes that an item counts for beside its own: a call costs 1 to 3 µs before the first byte."""


def size_of(*lists: Sequence[Buffer]) -> int:
    """What a batch counts for, whose items have a part in each of *lists*."""
    return ITEM * len(lists[0]) + sum(sum(map(len, one)) for one in lists)


class Jobs:
    """See the head of this file. Dispatch context only. `refused`, `inline` and `threaded` count jobs."""

    def __init__(
        self,
        dispatch: Dispatch,
        *,
        jobs_max: int = JOBS_MAX,
        bytes_max: int = BYTES_MAX,
        running_max: int = RUNNING_MAX,
        inline: int = INLINE,
    ) -> None:
        self._dispatch = dispatch
        self._jobs_max = jobs_max
        self._bytes_max = bytes_max
        self._running_max = running_max
        self._inline = inline
        self._waiting: dict[Hashable, deque[Callable[[], None]]] = {}
        """By client; whose turn it is comes first."""
        self._running = 0
        self.jobs = 0
        """Submitted and not completed."""
        self.bytes = 0
        self.refused = 0
        self.inline = 0
        self.threaded = 0

    def submit(self, work: Callable[[], T], size: int, done: Callable[[T | BaseException], None], client: Hashable = None) -> None:
        """Run *work*, perhaps in a worker thread, and *done* with its result or exception, in dispatch context. Never before this returned.

        *size*: bytes it works on (`size_of`). *client*: whose it is; clients take turns. OSError EAGAIN when the queue is full; then
        neither is called. One job of any size fits into an empty queue.
        """
        if self.jobs >= self._jobs_max or (self.jobs and self.bytes + size > self._bytes_max):
            self.refused += 1
            raise ResmgrError(errno.EAGAIN, "too many batches are under way: wait for completions")
        self.jobs += 1
        self.bytes += size

        def ended(result: T | BaseException) -> None:
            self.jobs -= 1
            self.bytes -= size
            done(result)

        if size <= self._inline:
            self.inline += 1
            self._dispatch.at_turn_end(lambda: ended(_result(work)))
            return

        def threaded(result: T | BaseException) -> None:
            self._running -= 1
            self._begin()
            ended(result)

        self.threaded += 1
        self._waiting.setdefault(client, deque()).append(lambda: self._dispatch.call_blocking(work, threaded))
        self._begin()

    def _begin(self) -> None:
        while self._waiting and self._running < self._running_max:
            self._running += 1
            client = next(iter(self._waiting))
            line = self._waiting.pop(client)
            begin = line.popleft()
            if line:
                self._waiting[client] = line
            begin()


def _result(work: Callable[[], T]) -> T | BaseException:
    try:
        return work()
    # Whatever a provider raises is an answer, as it is from a thread. No task runs here that could be cancelled.
    except BaseException as error:
        return error
