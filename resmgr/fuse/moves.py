"""What programs of this mount have just moved: an event by the old name may be on its way, and is about what was moved.

A server tells a change by the name that the file had then, and nothing else of it, and does not tell who moves a file that it is moved. So
what an old name led to is remembered for as long as such an event can come (docs/decisions/changes-by-name.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from resmgr.fuse.inode import Node

LAG: Final = 4.0
"""Seconds after a move in which an event of before it may come: when a node is silent for longer its leases are over."""
MOVES_MAX: Final = 1024
"""Names that were moved away last. Stops a program that moves without end from filling memory."""


class Moves:
    """Those of one mount, the oldest first."""

    def __init__(self) -> None:
        self._moved: dict[tuple[Node, bytes], tuple[Node, float]] = {}

    def __len__(self) -> int:
        return len(self._moved)

    def note(self, directory: Node, name: bytes, node: Node, now: float) -> None:
        """*node* is not *name* in *directory* any more, but something else."""
        moved = self._moved
        moved.pop((directory, name), None)
        while moved:
            oldest = next(iter(moved))
            if now - moved[oldest][1] <= LAG and len(moved) < MOVES_MAX:
                break
            del moved[oldest]
        moved[directory, name] = (node, now)

    def of(self, directory: Node, name: bytes, now: float) -> Node | None:
        """What an event by *name* may be about beside what has the name."""
        found = self._moved.get((directory, name))
        return None if found is None or now - found[1] > LAG else found[0]

    def clear(self) -> None:
        self._moved.clear()
