"""Descriptors of devices and FIFOs that somebody waits for: one epoll set of its own, itself one descriptor of the dispatch.

Edge-triggered: a descriptor that stays ready (a hung-up terminal, a FIFO nobody reads) calls once for each news of it, not in every turn.
`add` reports what holds already, so nothing that came between a failed attempt and `add` is missed.
"""

from __future__ import annotations

import select
from collections.abc import Callable

from resmgr.dispatch import Dispatch

_NEWS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLPRI | select.EPOLLET
ROUND = 256
"""Descriptors looked at in one turn."""


class Watch:
    """*call* of each watched descriptor is called in dispatch context when there is news of it; it says whether to go on watching."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._epoll: select.epoll | None = None
        self._calls: dict[int, Callable[[], bool]] = {}

    def add(self, fd: int, call: Callable[[], bool]) -> None:
        """Watch *fd*, or look at it once more."""
        epoll = self._epoll
        if epoll is None:
            epoll = self._epoll = select.epoll()
            self._dispatch.attach_fd(epoll.fileno(), self.look)
        if fd in self._calls:
            epoll.modify(fd, _NEWS)
        else:
            epoll.register(fd, _NEWS)
        self._calls[fd] = call

    def remove(self, fd: int) -> None:
        """Before it is closed. Idempotent."""
        if self._calls.pop(fd, None) is not None and self._epoll is not None:
            self._epoll.unregister(fd)

    def look(self) -> None:
        """Tell all news that there are now."""
        if self._epoll is None:
            return
        for fd, _ in self._epoll.poll(0, ROUND):
            call = self._calls.get(fd)
            if call is not None and not call():
                self.remove(fd)

    def close(self) -> None:
        if self._epoll is not None:
            self._dispatch.detach_fd(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
            self._calls.clear()


def can_wait(fd: int) -> bool:
    """Whether the kernel can tell when *fd* is ready."""
    with select.epoll() as epoll:
        try:
            epoll.register(fd, 0)
        except PermissionError:
            return False
    return True


def ready(fd: int) -> int:
    """What holds of *fd* now: POLLIN, POLLOUT, POLLPRI, POLLERR, POLLHUP."""
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT | select.POLLPRI)
    for _, events in poll.poll(0):
        return events
    return 0
