"""Telling the kernel what it may have to wait for: entries, for their directory's lock, and pages, for the READs that fill them.

One job for each directory, `JOBS_MAX` at a time, each in a thread. A thread that waits in the kernel for a request that waits for a server
cannot be killed, nor can the daemon, and then the kernel never learns that nobody will answer. So a job is held back while a request
that has what it would wait for came before it; what comes for the directory meanwhile goes with it. Requests that came later do not hold it
back, or steady use would for ever, unless all of the directory is told again (`anew`), as when its node falls silent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from resmgr.fuse.traits import LOCKING

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.inode import Node

JOBS_MAX: Final = 8
"""Threads that tell the kernel, of one mount."""


class Telling:
    """The jobs of one mount."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._jobs: dict[tuple[Node, bool], list[bytes]] = {}
        self._since: dict[Node, float] = {}
        self._running: set[tuple[Node, bool]] = set()
        self._soon = False

    def tell(self, node: Node, messages: list[bytes], *, waits: bool = True, anew: bool = False) -> None:
        """Have *messages* about directory *node*, or what is in it, written in order. Not *waits*: the kernel waits for nothing to take
        them."""
        waiting = self._jobs.get((node, waits))
        if waiting is None:
            self._jobs[node, waits] = messages
        else:
            waiting += messages
        if waits and (anew or waiting is None):
            self._since[node] = self._core.dispatch.now()
        self._run()

    def waits(self, node: Node) -> int:
        """How many messages about *node* wait."""
        return sum(len(self._jobs.get((node, waits), ())) for waits in (True, False))

    def _run(self) -> None:
        self._core.on_answered = None
        for job in list(self._jobs):
            if len(self._running) >= JOBS_MAX:
                return
            if job in self._running or job not in self._jobs:
                # Under way, or done since, where the kernel is told at once.
                continue
            node, waits = job
            if waits and self._locked(node):
                self._core.on_answered = self._answered
                continue
            messages = self._jobs.pop(job)
            if waits:
                del self._since[node]
            self._running.add(job)
            self._core.tell_kernel(messages, self._done(job))

    def _locked(self, node: Node) -> bool:
        since = self._since[node]
        return any(
            request.came <= since and (request.node is node or request.second is node) and request.opcode in LOCKING
            for request in self._core.outstanding.values()
        )

    def _answered(self) -> None:
        """A request is being answered: look again once the kernel has its answer."""
        if not self._soon:
            self._soon = True
            self._core.dispatch.call_soon(self._look)

    def _look(self) -> None:
        self._soon = False
        if self._jobs:
            self._run()

    def _done(self, job: tuple[Node, bool]) -> Callable[[], None]:
        def done() -> None:
            self._running.discard(job)
            if self._jobs:
                self._run()

        return done

    def close(self) -> None:
        self._jobs.clear()
        self._since.clear()
        self._core.on_answered = None
