"""Base handles that nodes keep, and the closing of handles in batches.

A base handle may be in use by a message that is still on its way, and messages may overtake each other: so it is closed one to two
`CLOSE_PERIOD`s after it was let go. The OCB of a file that a program closed is closed at the end of the turn, or, if it is a regular file
or directory, within `LAZY` seconds together with others; not of a file that was written and could be run, which fails while it is open.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer, Dispatch, Timer
from resmgr.fuse.inode import Node
from resmgr.iomsg import CLOSE_BATCH, REQUEST, Io

CLOSE_PERIOD: Final = 1.0
CLOSE_BATCH_MAX: Final = 512
LAZY: Final = 0.01
"""Seconds after which OCBs are closed together: a program that reads or makes many small files costs fewer messages."""
_HANDLE: Final = struct.Struct("!Q")


class Handles:
    """Keeps at most *limit* base handles; counts in *drops* what went by the way."""

    def __init__(self, dispatch: Dispatch, limit: int, drops: dict[str, int]) -> None:
        self._dispatch = dispatch
        self._limit = limit
        self._drops = drops
        self._kept: dict[tuple[Node, Connection], float] = {}
        """When each was got, in that order."""
        self._aged: list[tuple[Connection, int]] = []
        self._young: list[tuple[Connection, int]] = []
        self._at_once: list[tuple[Connection, int]] = []
        self._lazy: list[tuple[Connection, int]] = []
        self._in_the_way: set[tuple[Node, bytes]] = set()
        """Names of files whose change waits, at their servers, for the close of one of these."""
        self._shared: set[tuple[Connection, int]] = set()
        """OCBs of open directories that are base handles, too: not closed before the directory is."""
        self._timer: Timer | None = None
        self._lazy_timer: Timer | None = None
        self.on_keep: Callable[[], None] = lambda: None
        """Called when one more is kept."""

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, node: Node, connection: Connection, handle: int) -> None:
        """*node* was found again, with *handle* on *connection*. The oldest of all handles go when there are too many.

        A directory can be replaced by another one with the same inode number, so a newer handle takes the place of an older one. But not
        more often than once in a CLOSE_PERIOD, else those waiting to be closed would pile up: before that the new one is closed.
        """
        old = node.handles.get(connection)
        if old == handle:
            return
        kept = self._kept
        now = self._dispatch.now()
        if old is not None:
            if now - kept[node, connection] < CLOSE_PERIOD:
                self.close_now(connection, handle)
                return
            self.close_later(connection, old)
            del kept[node, connection]
        node.handles[connection] = handle
        kept[node, connection] = node.used = now
        self.on_keep()
        if len(kept) > self._limit:
            oldest = next(iter(kept))
            self._drops["handles_evicted"] += 1
            self.drop(*oldest)

    def all(self) -> list[tuple[Node, Connection, int, float]]:
        """All that are kept: node, connection, handle, and when it was got."""
        return [(node, connection, node.handles[connection], since) for (node, connection), since in self._kept.items()]

    def share(self, node: Node, connection: Connection, ocb: int) -> None:
        """*node* was opened, and its server lets the OCB serve as a base handle: it does, if there is no other, also after the close."""
        if connection not in node.handles:
            self._shared.add((connection, ocb))
            self.keep(node, connection, ocb)

    def let_go(self, node: Node, connection: Connection, ocb: int) -> None:
        """The directory that was opened as *ocb* is closed. As a base handle it stays."""
        self._shared.discard((connection, ocb))
        if node.handles.get(connection) != ocb:
            self.close_lazily(connection, ocb)

    def forget(self, connection: Connection, ocb: int) -> None:
        """Its server does not know *ocb* any more, which may have been a base handle, too."""
        self._shared.discard((connection, ocb))

    def drop(self, node: Node, connection: Connection) -> None:
        """*node* has no handle on *connection* any more; what it had is closed."""
        handle = node.handles.pop(connection, None)
        if handle is not None:
            self._kept.pop((node, connection), None)
            self.close_later(connection, handle)

    def drop_all(self, node: Node) -> None:
        for connection in list(node.handles):
            self.drop(node, connection)

    def close_later(self, connection: Connection, handle: int) -> None:
        """Close a handle that messages under way may still use."""
        if connection.closed or (connection, handle) in self._shared:
            return
        self._young.append((connection, handle))
        if self._timer is None:
            self._timer = self._dispatch.call_at(self._dispatch.now() + CLOSE_PERIOD, self._period)

    def close_now(self, connection: Connection, handle: int) -> None:
        """Close a handle that nothing uses, at the end of this turn."""
        if not self._at_once:
            self._dispatch.at_turn_end(self._turn_end)
        self._at_once.append((connection, handle))

    def close_lazily(self, connection: Connection, handle: int, place: tuple[Node, bytes] | None = None) -> None:
        """Close a handle that nothing uses and whose being open nobody notices, but who changes what is at *place*, a directory and a
        name: see `hurry`."""
        if place is not None:
            self._in_the_way.add(place)
        if not self._lazy:
            self._lazy_timer = self._dispatch.call_at(self._dispatch.now() + LAZY, self._lazy_end)
        self._lazy.append((connection, handle))

    def hurry(self, place: tuple[Node, bytes] | None = None) -> None:
        """Close now what is to be closed lazily; with *place*, if some of it is in the way of who changes that."""
        if self._lazy_timer is not None and (place is None or place in self._in_the_way):
            self._lazy_timer.cancel()
            self._lazy_end()

    def _lazy_end(self) -> None:
        due, self._lazy = self._lazy, []
        self._in_the_way.clear()
        self._lazy_timer = None
        self._send(due)

    def _period(self) -> None:
        self._timer = None
        due, self._aged, self._young = self._aged, self._young, []
        self._send(due)
        if self._aged:
            self._timer = self._dispatch.call_at(self._dispatch.now() + CLOSE_PERIOD, self._period)

    def _turn_end(self) -> None:
        due, self._at_once = self._at_once, []
        self._send(due)

    def _send(self, due: list[tuple[Connection, int]]) -> None:
        by_connection: dict[Connection, list[int]] = {}
        for connection, handle in due:
            if not connection.closed:
                by_connection.setdefault(connection, []).append(handle)
        for connection, handles in by_connection.items():
            for start in range(0, len(handles), CLOSE_BATCH_MAX):
                first, *others = handles[start : start + CLOSE_BATCH_MAX]
                head = REQUEST.pack(Io.CLOSE, 0, CLOSE_BATCH if others else 0, first)
                connection.submit((head + b"".join(map(_HANDLE.pack, others)),), 0, self._done)

    def _done(self, status: int, reply: Buffer) -> None:
        if status < 0:
            # The server forgot it already; there is nobody to tell.
            self._drops["close_failed"] += 1

    def close(self) -> None:
        """The mount is gone; its connections are closed by others, and all handles with them."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lazy_timer is not None:
            self._lazy_timer.cancel()
            self._lazy_timer = None
        self._lazy.clear()
        self._in_the_way.clear()
        self._shared.clear()
        self._young.clear()
        self._aged.clear()
        self._at_once.clear()
