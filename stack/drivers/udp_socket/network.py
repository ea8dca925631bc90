"""This machine's addresses, and when they change: `stack.interfaces` on the dispatch."""

from __future__ import annotations

import errno
from collections.abc import Callable

from resmgr.dispatch import Dispatch, Timer
from stack.interfaces import RECEIVE_MAX, LocalAddress, Rtnetlink, notices

DRAIN_MAX = 64
SETTLE = 0.02
"""Seconds between a notification and the look: they come in bursts, and thousands of other interfaces may come and go."""


class NetworkMonitor:
    """*changed* is called when links or addresses may have changed. Silent before `start`. OSError when there is no rtnetlink."""

    def __init__(self, dispatch: Dispatch, changed: Callable[[], None]) -> None:
        self._dispatch = dispatch
        self._changed = changed
        self._timer: Timer | None = None
        self._started = False
        self._kernel = Rtnetlink()
        try:
            self._notices = notices()
        except OSError:
            self._kernel.close()
            raise

    def look(self) -> tuple[LocalAddress, ...]:
        """All addresses that can be bound, sorted. The kernel answers at once."""
        return tuple(sorted(self._kernel.addresses(), key=lambda one: (one.index, one.is_ipv6, one.address)))

    def interfaces(self) -> dict[str, int]:
        """Names and indices of all interfaces."""
        return {link.name: link.index for link in self._kernel.links()}

    def start(self) -> None:
        self._started = True
        self._dispatch.attach_fd(self._notices.fileno(), self._readable)

    def close(self) -> None:
        """Idempotent."""
        if self._started:
            self._started = False
            self._dispatch.detach_fd(self._notices.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._notices.close()
        self._kernel.close()

    def _readable(self) -> None:
        for _ in range(DRAIN_MAX):
            try:
                self._notices.recv(RECEIVE_MAX)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
        if self._timer is None:
            self._timer = self._dispatch.call_at(self._dispatch.now() + SETTLE, self._settled)

    def _settled(self) -> None:
        self._timer = None
        self._changed()
