"""Tells interfaces the IP addresses that this machine has on their links, for links that the kernel has too (the packet driver's).

What the kernel tells is only that something changed (`stack.linux.networkmonitor`); everything is then asked anew, at most once per turn.
Linux only: where there is no rtnetlink nothing has addresses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from resmgr.dispatch import Dispatch
from stack.core.ifnet import Interface
from stack.linux.networkmonitor import NetworkMonitor

log = logging.getLogger(__name__)


class AddressWatch:
    """Tells *interfaces* their addresses, now, on `look`, and whenever the kernel says that something changed, until `close`."""

    def __init__(self, dispatch: Dispatch, interfaces: Callable[[], Iterable[Interface]]) -> None:
        """OSError when there is no rtnetlink."""
        self._dispatch = dispatch
        self._interfaces = interfaces
        self._waiting = self._closed = False
        self._monitor = NetworkMonitor(dispatch, self.look)
        self._monitor.start()
        self.look()

    def close(self) -> None:
        """Idempotent."""
        self._closed = True
        self._monitor.close()

    def look(self) -> None:
        """Ask the kernel at the end of this turn."""
        if not self._waiting:
            self._waiting = True
            self._dispatch.at_turn_end(self._ask)

    def _ask(self) -> None:
        self._waiting = False
        if self._closed:
            return
        by_index = [(one, one.linux_index) for one in self._interfaces()]
        try:
            known = self._monitor.look() if any(index for _, index in by_index) else []
        except OSError as error:
            log.warning("cannot ask the kernel for addresses: %s", error.strerror)
            return
        for one, index in by_index:
            one.set_addresses(tuple(address.address for address in known if index and address.index == index))
