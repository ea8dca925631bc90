"""Mounts that the daemon before this one has handed over: taken at the start, served when the nodes that have something open are up.

A program that goes on sooner would be told that a node is down which nobody has looked for yet. It waits for WAIT at most.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from qnetpy.handed import Handed
from qnetpy.netfs.mount import NetMount
from qnetpy.netfs.mounts import NetMounts
from qnetpy.qnet import Qnet
from resmgr.dispatch import Dispatch

log = logging.getLogger(__name__)
WAIT = 3.0
"""As long as a node may be silent."""
LOOK_EVERY = 0.02


class Resumed:
    """Dispatch context."""

    def __init__(self, mounts: NetMounts, dispatch: Dispatch, qnet: Qnet) -> None:
        self._mounts = mounts
        self._dispatch = dispatch
        self._qnet = qnet
        self._taken: list[NetMount] = []
        self._names: set[str] = set()

    def take(self, one: Handed, on_end: Callable[[str], None]) -> NetMount | None:
        """Take a mount. None if that cannot be: then it is dead, as that of a daemon that was killed, and is removed."""
        try:
            taken = self._mounts.take(one, self._number, on_end)
        except (OSError, ValueError) as error:
            log.error("%s cannot be taken from the daemon before: %s", one.point, error)
            return None
        self._taken.append(taken)
        return taken

    def drop(self, one: Handed) -> None:
        """Unmount what is not wanted any more."""
        try:
            self._mounts.drop(one)
        except OSError as error:
            log.error("%s of the daemon before cannot be unmounted: %s", one.point, error)

    def _number(self, name: str) -> int | None:
        # It was authenticated by the daemon before, and is not believed to be up.
        node = self._qnet.nodes.add(name, self._dispatch.now())
        self._names.add(name)
        return None if node is None else node.nd

    def wait(self) -> None:
        """Serve what was taken, as soon as the nodes are up."""
        if not self._taken:
            return
        until = self._dispatch.now() + WAIT

        def look() -> None:
            missing = [name for name in self._names if (node := self._qnet.nodes.get(name)) is None or not node.reachable]
            if missing and self._dispatch.now() < until:
                self._dispatch.call_at(self._dispatch.now() + LOOK_EVERY, look)
                return
            for mount in self._taken:
                mount.resume()

        look()
