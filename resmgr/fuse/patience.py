"""Requests that wait for a node to come back (`hard`), and how long any may take (`deadline`).

On a soft mount a request that meets a node that is down ends with EHOSTDOWN. On the others it is *kept* and carried out from its beginning
again, every RETRY, until the node is there or the limit is over. A request that may have been carried out, since it was on the way when the
node went down, is kept only if it does the same a second time; else (NOT_TWICE) it ends with EHOSTDOWN: the program has to look.

A deadline also ends requests whose server is there and says nothing (ETIMEDOUT), but for what may wait as long as it likes: devices and
FIFOs, locks, poll."""

from __future__ import annotations

import errno
import math
from typing import TYPE_CHECKING, Final

from resmgr.dispatch import Timer
from resmgr.fuse.inode import STREAMS
from resmgr.fuse.request import Request
from resmgr.fuse.stuck import abort
from resmgr.fuse.traits import NEVER_KEPT, NO_DEADLINE, NOT_TWICE

if TYPE_CHECKING:
    from resmgr.fuse.core import Core

RETRY: Final = 0.25
"""Seconds between tries to reach a node that is down."""
AT_ONCE: Final = 256
"""Requests tried again in one turn; the others in the next."""


class Patience:
    """Of one mount; *limit* in seconds, 0: none, infinite: hard."""

    def __init__(self, core: Core, limit: float) -> None:
        self.limit = limit
        self._core = core
        self._kept: dict[int, Request] = {}
        self._timer: Timer | None = None
        self._watch: Timer | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, request: Request) -> bool:
        """A request met a node that is down: it waits here. False if it may not."""
        now = self._core.dispatch.now()
        if request.raw is None or request.opcode in NEVER_KEPT or (request.unsure and request.opcode in NOT_TWICE):
            return False
        if now - request.came >= self.limit or (request.interrupted and request.unsure):
            return False
        self._core.drops["kept"] += 1
        self._kept[request.unique] = request
        if self._core.outstanding.get(request.unique) is not request:
            self._core.note_outstanding(request)
        self._later(now)
        return True

    def _later(self, now: float) -> None:
        if self._timer is None:
            self._timer = self._core.dispatch.call_at(now + RETRY, self._again)

    def _again(self) -> None:
        self._timer = None
        core = self._core
        now = core.dispatch.now()
        batch = list(self._kept.values())[:AT_ONCE]
        for request in batch:
            del self._kept[request.unique]
        for request in batch:
            if request.answered:
                continue
            if now - request.came >= self.limit:
                core.error(request, errno.EHOSTDOWN)
            else:
                core.rerun(request)
        if self._kept:
            self._later(now)

    # ---- servers that say nothing

    def watch(self) -> None:
        """A request waits: look after it, if there is a deadline."""
        if self._watch is None and 0 < self.limit < math.inf:
            self._watch = self._core.dispatch.call_at(self._core.dispatch.now() + max(self.limit / 8, 0.05), self._look)

    def _look(self) -> None:
        self._watch = None
        core = self._core
        now = core.dispatch.now()
        for request in list(core.outstanding.values()):
            if now - request.came < self.limit or request.opcode in NO_DEADLINE or request.node.mode & 0o170000 in STREAMS:
                continue
            core.drops["deadline"] += 1
            down = request.unique in self._kept
            abort(core, request.unique, errno.EHOSTDOWN if down or request.pending is None else errno.ETIMEDOUT)
        if core.outstanding:
            self.watch()

    def close(self) -> None:
        """The mount is gone."""
        for timer in self._timer, self._watch:
            if timer is not None:
                timer.cancel()
        self._timer = self._watch = None
        self._kept.clear()
