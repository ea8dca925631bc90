"""Directories in which the same names are made, removed or moved over and over, faster than anybody is served by hearing of it.

Each such event takes the client tens of microseconds, and what was believed of the name. So a directory with more than
`REPEATED_MAX` of them in a second is not leased for `REST` seconds (docs/protocol/coherence.md): its names are asked for, as where no
changes are told. What is made, moved and removed, in whatever number, is no storm: a name has a handful of events then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resmgr.fuse.changes import NEVER

if TYPE_CHECKING:
    from resmgr.fuse.inode import Node

OFTEN: Final = 8
"""Events about one name in a second that are nothing special."""
REPEATED_MAX: Final = 1000
"""Further ones about names of a directory in a second. Two programs that exchange two names make some ten thousand."""
REST: Final = 10.0
"""Seconds in which the directory is not leased."""
NAMES_MAX: Final = 1024
"""Names of one second that are remembered."""
DIRECTORIES_MAX: Final = 1024
"""Directories that rest; of more the first ones may be leased again."""


class Storm:
    """What was told of one directory in this second."""

    __slots__ = ("_again", "_began", "_names")

    def __init__(self) -> None:
        self._began = NEVER
        self._again = 0
        self._names: dict[bytes, int] = {}

    def event(self, name: bytes, now: float) -> bool:
        """*name* was made, removed or moved. Whether that is too much."""
        if now - self._began > 1.0 or len(self._names) > NAMES_MAX:
            self._began = now
            self._again = 0
            self._names.clear()
        count = self._names[name] = self._names.get(name, 0) + 1
        if count > OFTEN:
            self._again += 1
        return self._again > REPEATED_MAX


class Resting:
    """The directories of a mount that are not leased for a while."""

    def __init__(self) -> None:
        self._until: dict[int, float] = {}
        """By node number."""

    def rest(self, node: Node, now: float) -> None:
        """From now on *node* is not leased."""
        self._until.pop(node.nodeid, None)
        self._until[node.nodeid] = now + REST
        if len(self._until) > DIRECTORIES_MAX:
            del self._until[next(iter(self._until))]

    def rests(self, node: Node, now: float) -> bool:
        """Whether *node* is not to be leased."""
        if not self._until:
            return False
        until = self._until.get(node.nodeid)
        if until is not None and until <= now:
            del self._until[node.nodeid]
            until = None
        return until is not None
