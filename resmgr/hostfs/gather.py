"""A waiting read of a terminal that is not read by lines: how many bytes it waits for, and how long (VMIN and VTIME, termios(3)).

The kernel knows this only for descriptors that block, and ours do not. So nothing is read before as much is there as the read would wait
for, or its time is over; a read that is given up has taken nothing.
"""

from __future__ import annotations

import fcntl
import select
import termios
from collections.abc import Callable

from resmgr.dispatch import Dispatch
from resmgr.hostfs.watch import ready
from resmgr.iofunc.terminal import UNREAD

LOOK = 0.05
"""Seconds between looks where the kernel tells no news: of fewer bytes than VMIN."""
_TENTH = 0.1


def rule(fd: int) -> tuple[int, float] | None:
    """(bytes, seconds) of VMIN and VTIME; None: a read ends with the first line or byte, or need not wait."""
    try:
        attributes = termios.tcgetattr(fd)
    except termios.error:
        # Hung up: the read says so.
        return None
    if attributes[3] & termios.ICANON:
        return None
    least, tenths = attributes[6][termios.VMIN], attributes[6][termios.VTIME]
    if not isinstance(least, int) or not isinstance(tenths, int) or (least <= 1 and not tenths) or (least == 1 and tenths):
        # With VMIN 1 there is no time between bytes.
        return None
    return least, tenths * _TENTH


class Gather:
    """One such read. `attempt` is asked at each news: *take* when there is enough (what it says is the answer), *nothing* when there is
    nothing and the time is over. *look* has `attempt` asked again."""

    def __init__(
        self,
        dispatch: Dispatch,
        fd: int,
        size: int,
        least: int,
        seconds: float,
        take: Callable[[], bool],
        nothing: Callable[[], None],
        look: Callable[[], None],
    ) -> None:
        self._dispatch = dispatch
        self._fd = fd
        self._least = least
        self._enough = max(1, min(least, size))
        self._seconds = seconds
        self._take = take
        self._nothing = nothing
        self._look = look
        self._seen = 0
        self._ends = dispatch.now() + seconds if not least else 0.0
        """When the read ends with what is there; 0: not yet known."""
        if self._ends:
            dispatch.call_at(self._ends, look)

    def attempt(self) -> bool:
        """Whether it is answered."""
        (have,) = UNREAD.gives.unpack(fcntl.ioctl(self._fd, UNREAD.number, bytes(UNREAD.gives.size)))
        if have >= self._enough or ready(self._fd) & (select.POLLHUP | select.POLLERR):
            return self._take()
        now = self._dispatch.now()
        if not self._least:
            if now < self._ends:
                return False
            self._nothing()
            return True
        if have and self._seconds:
            if have > self._seen:
                self._seen = have
                self._ends = now + self._seconds
                self._dispatch.call_at(self._ends, self._look)
            elif now >= self._ends:
                return self._take()
        elif self._enough < self._least:
            self._dispatch.call_at(now + LOOK, self._look)
        return False
