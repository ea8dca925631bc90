"""What a server said of an object before the answer that it is about has come: messages overtake each other.

Each node has its own room: one that says much of what nobody asked about makes nobody doubt what others say.
"""

from __future__ import annotations

from typing import Final

from resmgr.channel import Connection
from resmgr.fuse.changes import NEVER
from resmgr.ids import node_of

EARLY_MAX: Final = 1024
"""Objects of a node of which that is remembered. What was asked before the oldest that is not counts as overtaken."""


class _Said:
    """By one node: `came`, when something last came of each object; of the others not after `floor`."""

    __slots__ = ("came", "floor")

    def __init__(self) -> None:
        self.came: dict[tuple[Connection, int], float] = {}
        self.floor = NEVER


class Early:
    """When something last came of each inode number of a connection."""

    def __init__(self) -> None:
        self._said: dict[int, _Said] = {}
        """By the node's number: as many as there are nodes."""

    def came(self, connection: Connection, ino: int, now: float) -> None:
        said = self._of(connection)
        came = said.came
        came.pop((connection, ino), None)
        came[connection, ino] = now
        if len(came) > EARLY_MAX:
            said.floor = max(said.floor, came.pop(next(iter(came))))

    def anything(self, connection: Connection, now: float) -> None:
        """Something may have come of each object of that node."""
        said = self._of(connection)
        said.came.clear()
        said.floor = now

    def since(self, connection: Connection, ino: int, at: float) -> bool:
        """Whether something has come since *at*."""
        said = self._said.get(node_of(connection.nd))
        return said is not None and at <= said.came.get((connection, ino), said.floor)

    def _of(self, connection: Connection) -> _Said:
        number = node_of(connection.nd)
        said = self._said.get(number)
        if said is None:
            said = self._said[number] = _Said()
        return said
