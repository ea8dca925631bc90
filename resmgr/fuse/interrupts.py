"""Signals of programs that wait: their server is asked to end, and if it does not they are answered without it.

After `interrupt_delay` the server is asked to unblock (docs/decisions/fuse-signals.md). If it says nothing for `interrupt_patience` more
(`stream_patience` for a device or FIFO that is read or written), the kernel is answered EINTR, and what the server says later is
thrown away.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from resmgr.fuse.inode import STREAMS
from resmgr.fuse.traits import STREAMING

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.request import Request

EARLY_MAX: Final = 64
"""Interrupts remembered for requests not read yet; older ones belonged to requests that were answered meanwhile."""


class Interrupts:
    """Those of one mount. Counts in `Core.drops`: `unblocked`, `gave_up`. Its length: those whose request was not read yet."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._early: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._early)

    def came(self, unique: int) -> None:
        """The process that waits for *unique* has a signal."""
        core = self._core
        request = core.outstanding.get(unique)
        if request is None:
            if len(self._early) >= EARLY_MAX:
                del self._early[next(iter(self._early))]
            self._early[unique] = None
        elif not request.interrupted:
            request.interrupted = True
            core.dispatch.call_at(core.dispatch.now() + core.options.interrupt_delay, lambda: self._unblock(request))

    def listed(self, request: Request) -> None:
        """The request was not answered at once: an interrupt that came before it takes effect."""
        if self._early and request.unique in self._early:
            del self._early[request.unique]
            self.came(request.unique)

    def _unblock(self, request: Request) -> None:
        if request.answered:
            return
        core = self._core
        core.drops["unblocked"] += 1
        if request.pending is not None:
            request.pending.unblock()
        elif request.on_interrupt is not None:
            request.on_interrupt()
        if not request.answered:
            streams = request.opcode in STREAMING and request.node.mode & 0o170000 in STREAMS
            self._give_up_after(request, core.options.stream_patience if streams else core.options.interrupt_patience)

    def _give_up_after(self, request: Request, seconds: float) -> None:
        dispatch = self._core.dispatch
        dispatch.call_at(dispatch.now() + seconds, lambda: self._give_up(request))

    def _give_up(self, request: Request) -> None:
        core = self._core
        if request.held:
            self._give_up_after(request, core.options.interrupt_patience)
        elif not request.answered:
            core.drops["gave_up"] += 1
            core.error(request, errno.EINTR)
