"""Base handles that nothing uses are let go: a descriptor of a directory keeps its file system from being unmounted at the server.

A handle that was not used for IDLE is closed, unless a program of this node has the directory open or stands in it (`sitting`): then its
server may not unmount it, as at home. Nor are those on the file system of the served root, which the server's daemon keeps busy itself;
inode numbers tell them apart. What the kernel still knows of it is found again when it is needed, by its token (`tokens`). So a
handle without a token stays: somebody who is not seen here may stand there, in a container or by a bind mount, and would not find it
again after a rename.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Timer
from resmgr.fuse.lease import SALT_BITS

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.inode import Node
    from resmgr.fuse.tokens import Kept

PERIOD: Final = 2.0
"""Seconds between two looks; a handle that was kept for half of it has its directory asked for its token."""
IDLE: Final = 6.0
"""Seconds without use. With a look, and the closing (`handles`), it is 10 at most until the server is told."""


class Idle:
    """Of one mount. Counts in `Core.drops`: `handles_idle` (directories let go)."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._timer: Timer | None = None
        self._asking = False
        """Who stands where is being looked up."""
        self._closed = False

    def kept(self) -> None:
        """A base handle is kept from now on."""
        if self._timer is None and not self._closed:
            self._look_at(self._core.dispatch.now() + PERIOD)

    def _look_at(self, when: float) -> None:
        self._timer = self._core.dispatch.call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        core = self._core
        tokens = core.tokens
        now = core.dispatch.now()
        unknown: dict[Connection, list[Kept]] = {}
        got: dict[Node, float] = {}
        """When the last handle of each was got."""
        soonest = 0.0
        for node, connection, handle, since in core.handles.all():
            server = node.server
            if not core.servers.lives(connection):
                core.handles.drop(node, connection)
            elif node.parent is not None and not server.no_tokens and not server.no_directories:
                got[node] = max(since, got.get(node, 0.0))
                if tokens.asked(node) <= since and since + PERIOD / 2 <= now:
                    unknown.setdefault(connection, []).append((node, handle))
        idle: list[Node] = []
        for node, since in got.items():
            due = now + PERIOD
            if tokens.asked(node) > since:
                if not tokens.of(node) or not node.ino >> SALT_BITS:
                    continue
                due = max(since, node.used) + IDLE
                if due <= now:
                    idle.append(node)
            soonest = min(soonest or due, due)
        tokens.ask(unknown)
        if idle and not self._asking:
            self._asking = True
            core.sitting(lambda paths: self._let_go(idle, paths))
        if soonest:
            self._look_at(max(soonest, now + PERIOD))

    def _let_go(self, idle: list[Node], sitting: set[bytes]) -> None:
        core = self._core
        self._asking = False
        if self._closed:
            return
        now = core.dispatch.now()
        busy = self._nodes(sitting)
        for node in idle:
            lease, removing = node.lease, node.removing
            if node.used + IDLE > now or not core.tokens.of(node):
                continue
            needed = (removing is not None and removing.names) or (lease is not None and core.alone.has(lease))
            if needed or node in busy or node in core.opened:
                # It is looked at again after as long.
                node.used = now
            else:
                core.drops["handles_idle"] += 1
                core.handles.drop_all(node)

    def _nodes(self, paths: set[bytes]) -> set[Node]:
        """What the kernel calls so, below the mountpoint. Each directory is looked for once, whatever programs stand how deep below it."""
        known: dict[bytes, Node | None] = {b"": self._core.nodes.root}
        for path in paths:
            missing = []
            while path not in known:
                missing.append(path)
                path = path.rpartition(b"/")[0]
            node = known[path]
            for below in reversed(missing):
                node = known[below] = None if node is None else node.children.get(below.rpartition(b"/")[2])
        return {node for path in paths if (node := known[path]) is not None}

    def close(self) -> None:
        """The mount is gone. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
