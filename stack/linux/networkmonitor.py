"""This machine's links and addresses, and when they change: `stack.linux.interfaces` on the dispatch. For whoever needs more than one link.

One link is followed by `stack.linux.linkmonitor`, which asks for that one only: a machine may have thousands beside it. Sockets belong
to the network namespace in which they were made.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from resmgr.dispatch import Dispatch, Timer
from stack.linux.interfaces import LocalAddress, Rtnetlink, notices
from stack.linux.rtnetlink import RECEIVE_MAX

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

    def look(self) -> list[LocalAddress]:
        """All addresses that can be bound, as `Rtnetlink.addresses`. The kernel answers at once."""
        return self._kernel.addresses()

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
