"""FIFOs that wait for their other end: an OPEN that is answered when a reader or a writer is there, as open(2) returns, without a thread.

A reader's descriptor is opened at once (without blocking that succeeds), so that writers see a reader from then on, as they do of one that
waits in open(2). There is a writer when data or a hang-up can be seen, or when `tee` of the empty FIFO says EAGAIN instead of "nobody can
write". A writer cannot be had before there is a reader: its open is tried again.

Nobody tells when the other end of a FIFO is opened, so all that wait are tried at short intervals, and at once when one is opened here.
"""

from __future__ import annotations

import errno
import os
import select
from collections import Counter
from collections.abc import Callable

from resmgr.channel import ND_LOCAL, Message
from resmgr.dispatch import Dispatch, Timer
from resmgr.hostfs import syscalls
from resmgr.hostfs.objects import HostClient
from resmgr.hostfs.special import Special
from resmgr.hostfs.watch import ready

SOON, LATE = 0.002, 0.05
"""Seconds between tries: first, and at most, twice as long after each."""
OPENS_PER_CLIENT = 256
"""OPENs of one client that wait for FIFOs; more is EAGAIN."""

Open = Callable[[int | None], int]
"""Opens the FIFO as the client, with another access mode if one is given."""


class _Opening:
    __slots__ = ("client", "fd", "message", "open", "opened", "special")

    def __init__(self, message: Message, client: HostClient, special: Special, open_: Open, opened: Callable[[int], None]) -> None:
        self.message = message
        self.client = client
        self.special = special
        self.open = open_
        self.opened = opened
        self.fd = -1


class FifoOpens:
    """All OPENs that wait. *failed* answers a message with what an exception means."""

    def __init__(self, dispatch: Dispatch, failed: Callable[[Message, BaseException], None]) -> None:
        self._dispatch = dispatch
        self._failed = failed
        self._waiting: dict[_Opening, None] = {}
        self._of_client: Counter[int] = Counter()
        self._timer: Timer | None = None
        self._delay = SOON
        self._scratch: tuple[int, int] | None = None
        self._counters = {"fifo_opens_full": 0}

    def count_in(self, counters: dict[str, int]) -> None:
        """Count in *counters* from now on: those of the manager."""
        counters.update(self._counters)
        self._counters = counters

    def __len__(self) -> int:
        return len(self._waiting)

    def open(self, message: Message, client: HostClient, special: Special, open_: Open, opened: Callable[[int], None]) -> None:
        """Call *opened* with the descriptor, now or later. Takes *special* over. OSError: what the open says."""
        try:
            access = special.flags & os.O_ACCMODE
            if special.flags & os.O_NONBLOCK or access == os.O_RDWR:
                fd = open_(None)
            else:
                opening = _Opening(message, client, special, open_, opened)
                if not self._ready(opening):
                    self._wait(opening)
                    if opening.fd >= 0:
                        self._dispatch.call_soon(self._try)
                    return
                fd = opening.fd
        except BaseException:
            special.close()
            raise
        special.close()
        opened(fd)
        if self._waiting:
            self._dispatch.call_soon(self._try)

    def _ready(self, opening: _Opening) -> bool:
        """Whether the other end is there; then `fd` is what the client gets. OSError: it cannot be opened."""
        if opening.special.flags & os.O_ACCMODE == os.O_WRONLY:
            try:
                opening.fd = opening.open(None)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return False
            return True
        if opening.fd < 0:
            opening.fd = opening.open(None)
        if ready(opening.fd) & (select.POLLIN | select.POLLHUP):
            return True
        if self._scratch is None:
            self._scratch = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            copied = syscalls.tee(opening.fd, self._scratch[1], 1, syscalls.SPLICE_NONBLOCK)
        except BlockingIOError:
            return True
        if copied:
            os.read(self._scratch[0], copied)
        return copied > 0

    def _wait(self, opening: _Opening) -> None:
        scoid = opening.client.info.scoid
        if self._of_client[scoid] >= OPENS_PER_CLIENT:
            self._counters["fifo_opens_full"] += 1
            if opening.fd >= 0:
                os.close(opening.fd)
            raise OSError(errno.EAGAIN, "too many opens wait for FIFOs")
        self._of_client[scoid] += 1
        self._waiting[opening] = None
        opening.message.on_unblock = lambda: self._end(opening, errno.EINTR)
        self._delay = SOON
        self._again()

    def _again(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            self._timer = self._dispatch.call_at(self._dispatch.now() + self._delay, self._later)

    def _later(self) -> None:
        self._timer = None
        self._delay = min(2 * self._delay, LATE)
        self._try()
        self._again()

    def _try(self) -> None:
        for opening in list(self._waiting):
            if opening not in self._waiting:
                continue
            if opening.message.answered or opening.client.gone:
                self._end(opening, errno.EBADF)
                continue
            try:
                if not self._ready(opening):
                    continue
                fd, opening.fd = opening.fd, -1
                self._leave(opening)
                opening.opened(fd)
            except Exception as error:
                self._leave(opening)
                if not opening.message.answered:
                    self._failed(opening.message, error)

    def _leave(self, opening: _Opening) -> None:
        if self._waiting.pop(opening, opening) is not None:
            return
        scoid = opening.client.info.scoid
        self._of_client[scoid] -= 1
        if not self._of_client[scoid]:
            del self._of_client[scoid]
        if opening.fd >= 0:
            os.close(opening.fd)
            opening.fd = -1
        opening.special.close()

    def _end(self, opening: _Opening, code: int) -> None:
        self._leave(opening)
        if not opening.message.answered:
            opening.message.error(code)

    def forget_remote(self) -> None:
        """Other nodes' rights have changed."""
        for opening in list(self._waiting):
            if opening.client.info.nd != ND_LOCAL:
                self._end(opening, errno.EBADF)

    def close(self) -> None:
        for opening in list(self._waiting):
            self._end(opening, errno.EBADF)
        if self._timer is not None:
            self._timer.cancel()
        if self._scratch is not None:
            for fd in self._scratch:
                os.close(fd)
            self._scratch = None
