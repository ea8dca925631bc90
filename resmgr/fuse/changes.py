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


class Log:
    """Of one directory. `names`: when each, or what it leads to, was last changed, by whomever; the others not after `floor`. `heard`: when
    the server last told of it; of the others not after `heard_floor`."""

    __slots__ = ("floor", "heard", "heard_floor", "names")

    def __init__(self, floor: float) -> None:
        self.names: dict[bytes, float] = {}
        self.floor = floor
        self.heard: dict[bytes, float] = {}
        self.heard_floor = floor


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
        return at <= (self.floor if log is None else log.names.get(name, log.floor))

    def heard_since(self, directory: Node, name: bytes, at: float) -> bool:
        """Whether the server may have told so since *at*: an answer asked for then may be older, and nobody will say so."""
        log = directory.log
        return at <= (self.floor if log is None else log.heard.get(name, log.heard_floor))

    def of(self, directory: Node) -> tuple[dict[bytes, float], float]:
        """`Log.names` and `Log.floor`, for who asks of many names."""
        log = directory.log
        return ({}, self.floor) if log is None else (log.names, log.floor)

    # ---- told

    def changed(self, directory: Node, name: bytes, now: float) -> None:
        """*name*, or what it leads to, is being or was changed."""
        log = directory.log or self._begin(directory)
        names = log.names
        if name not in names:
            if len(names) >= NAMES_MAX:
                self.count -= len(names)
                names.clear()
                log.floor = now
            self._grown(directory)
        names[name] = now

    def heard(self, directory: Node, name: bytes, now: float) -> None:
        """The server says so."""
        self.changed(directory, name, now)
        log = directory.log or self._begin(directory)
        heard = log.heard
        if name not in heard:
            if len(heard) >= NAMES_MAX:
                self.count -= len(heard)
                heard.clear()
                log.heard_floor = now
            self._grown(directory)
        heard[name] = now

    def all(self, directory: Node, now: float) -> None:
        """Anything in *directory* may have changed, and have been told."""
        self.forget(directory)
        log = self._begin(directory)
        log.floor = log.heard_floor = now

    def forget(self, directory: Node) -> None:
        """*directory* is not there any more. Idempotent."""
        log, directory.log = directory.log, None
        if log is not None:
            self.count -= 1 + len(log.names) + len(log.heard)
            del self._logged[directory]

    def _begin(self, directory: Node) -> Log:
        log = directory.log = Log(self.floor)
        self._logged[directory] = None
        self.count += 1
        return log

    def _grown(self, kept: Node) -> None:
        """There is one more name. The oldest logs but *kept*'s go."""
        self.count += 1
        while self.count > TOTAL_MAX and len(self._logged) > 1:
            oldest = next(iter(self._logged))
            log = oldest.log
            if oldest is kept or log is None:
                del self._logged[oldest]
                self._logged[oldest] = None
                continue
            self.floor = max(self.floor, log.floor, log.heard_floor, *log.names.values())
            self.forget(oldest)
