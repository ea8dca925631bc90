"""Directories of which every name is known: another name does not exist, and no server is asked (docs/protocol/coherence.md).

That is so of a leased directory that was made from here, empty, as long as nobody else makes or removes anything in it: then a program that
makes a file there need not wait for two answers. Where others have been, a name that was not asked for yet is asked for: they may just have
made it and told our program so, by another way than we are told.

The names are never fewer than there are, which is all that is asked of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resmgr.fuse.lease import Lease
    from resmgr.fuse.servers import User

NAMES_MAX = 16384
"""Names of one directory."""
TOTAL_MAX = 131072
"""Names of all: some 12 MiB. Beyond, of the directory that was made first they are not known any more."""


class Names:
    """The names that were made in a directory, which *user* has made by a request of the time `at`."""

    __slots__ = ("_kept", "at", "lease", "names", "user")

    def __init__(self, kept: Known, lease: Lease, user: User, at: float) -> None:
        self._kept = kept
        self.lease = lease
        self.names: set[bytes] = set()
        self.user = user
        self.at = at

    def add(self, name: bytes) -> None:
        """*name* may be there."""
        if name not in self.names:
            self.names.add(name)
            self._kept.grown(self)

    def discard(self, name: bytes) -> None:
        """*name* was removed from here, and nothing else was heard of it meanwhile."""
        if name in self.names:
            self.names.remove(name)
            self._kept.count -= 1


class Known:
    """Those of one mount, the oldest first. `count`: their names."""

    def __init__(self) -> None:
        self.count = 0
        self._kept: dict[Names, None] = {}

    def keep(self, lease: Lease, user: User, at: float) -> None:
        """From now on *lease*'s directory, in which nothing is, is known."""
        self.drop(lease)
        names = lease.names = Names(self, lease, user, at)
        self._kept[names] = None

    def grown(self, names: Names) -> None:
        self.count += 1
        if len(names.names) > NAMES_MAX:
            self.drop(names.lease)
        while self.count > TOTAL_MAX:
            self.drop(next(iter(self._kept)).lease)

    def drop(self, lease: Lease) -> None:
        """It is not any more. Idempotent."""
        names, lease.names = lease.names, None
        if names is not None:
            del self._kept[names]
            self.count -= len(names.names)
