"""When what is in a directory was last changed, as far as it is known here: the log that all that is believed is held against.

An answer is believed if its question is younger than the last change (docs/protocol/coherence.md). So a log may say that something changed
which has not, or later than it did, and never the opposite: where it forgets, everything counts as changed until then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from resmgr.fuse.inode import Node

NAMES_MAX = 1024
"""Names of one directory. Stops one of changing names from filling memory."""
TOTAL_MAX = 131072
"""Names of all, and directories. Stops a walk that changes everything."""
NEVER: Final = float("-inf")


class Times:
    """When each of `names` was last changed, or told of; the others of the directory not after `floor`."""

    __slots__ = ("floor", "names")

    def __init__(self, floor: float) -> None:
        self.names: dict[bytes, float] = {}
        self.floor = floor

    def note(self, name: bytes, now: float) -> int:
        """That of *name* is *now*. How many more names there are then."""
        names = self.names
        before = len(names)
        if name not in names and before >= NAMES_MAX:
            names.clear()
            self.floor = now
        names[name] = now
        return len(names) - before


class Log:
    """Of one directory. `changed`: when what is in it, or what that leads to, was changed; `heard`: when its server said so."""

    __slots__ = ("changed", "heard")

    def __init__(self, floor: float) -> None:
        self.changed = Times(floor)
        self.heard = Times(floor)

    def count(self) -> int:
        """Its names."""
        return len(self.changed.names) + len(self.heard.names)

    def last(self) -> float:
        """Nothing in it was changed later."""
        return max(self.changed.floor, self.heard.floor, *self.changed.names.values())


class Logs:
    """Those of one mount. A directory without one was not changed after `floor`."""

    def __init__(self) -> None:
        self.floor = NEVER
        self.count = 0
        """Names, and logs."""
        self._logged: dict[Node, None] = {}
        """In the order in which they were first changed."""

    # ---- asked

    def since(self, directory: Node, name: bytes, at: float) -> bool:
        """Whether *name*, or what it leads to, may have changed since *at*."""
        log = directory.log
        return at <= (self.floor if log is None else log.changed.names.get(name, log.changed.floor))

    def heard_since(self, directory: Node, name: bytes, at: float) -> bool:
        """Whether the server may have told so since *at*: an answer asked for then may be older, and nobody will say so."""
        log = directory.log
        return at <= (self.floor if log is None else log.heard.names.get(name, log.heard.floor))

    def heard_of(self, directory: Node, at: float) -> bool:
        """The same of anything in *directory*."""
        log = directory.log
        return at <= (self.floor if log is None else max((log.heard.floor, *log.heard.names.values())))

    def of(self, directory: Node) -> tuple[dict[bytes, float], float]:
        """`Times.names` and `Times.floor` of what changed in *directory*, for who asks of many names."""
        log = directory.log
        return ({}, self.floor) if log is None else (log.changed.names, log.changed.floor)

    # ---- told

    def changed(self, directory: Node, name: bytes, now: float) -> None:
        """*name*, or what it leads to, is being or was changed."""
        log = directory.log or self._begin(directory)
        self._grown(directory, log.changed.note(name, now))

    def heard(self, directory: Node, name: bytes, now: float) -> None:
        """The server says so."""
        log = directory.log or self._begin(directory)
        self._grown(directory, log.changed.note(name, now) + log.heard.note(name, now))

    def all(self, directory: Node, now: float) -> None:
        """Anything in *directory* may have changed, and have been told."""
        self.forget(directory)
        log = self._begin(directory)
        log.changed.floor = log.heard.floor = now

    def forget(self, directory: Node) -> None:
        """*directory* is not there any more. Idempotent."""
        log, directory.log = directory.log, None
        if log is not None:
            self.count -= 1 + log.count()
            del self._logged[directory]

    def _begin(self, directory: Node) -> Log:
        log = directory.log = Log(self.floor)
        self._logged[directory] = None
        self.count += 1
        return log

    def _grown(self, kept: Node, names: int) -> None:
        """There are so many more *names*. The oldest logs but *kept*'s go."""
        self.count += names
        while self.count > TOTAL_MAX and len(self._logged) > 1:
            oldest = next(iter(self._logged))
            log = oldest.log
            if oldest is kept or log is None:
                del self._logged[oldest]
                self._logged[oldest] = None
                continue
            self.floor = max(self.floor, log.last())
            self.forget(oldest)
