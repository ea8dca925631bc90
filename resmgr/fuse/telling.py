"""Telling the kernel what it may have to wait for: entries, for their directory's lock, and pages, for the READs that fill them.

One job for each directory or file, `JOBS_MAX` at a time; `waits` says who does them. What waits in the kernel for a request that waits for
a server is in the way of the others; and a thread of this daemon that does so cannot be killed, nor can the daemon, and then the kernel
never learns that nobody will answer. So a job is held back while a request that has what it would wait for came before it; what comes for
the directory meanwhile goes with it. Requests that came later do not hold it back, or steady use would for ever, unless all of the
directory is told again (`anew`), as when its node falls silent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from resmgr.fuse.traits import LOCKING

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.inode import Node

JOBS_MAX: Final = 8
"""Of one mount."""
JOBS_OF_NODE: Final = 4
"""Of these, those that may wait for servers of one node. Stops a node that tells of changes and answers nothing from keeping all."""


class _Job:
    """What waits to be told of one node, and what is called when it was."""

    __slots__ = ("calls", "messages", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        """Requests that came later do not hold it back."""
        self.messages: list[bytes] = []
        self.calls: list[Callable[[], None]] = []


class Telling:
    """The jobs of one mount."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._jobs: dict[tuple[Node, bool], _Job] = {}
        self._running: set[tuple[Node, bool]] = set()
        self._soon = False

    def tell(
        self, node: Node, messages: list[bytes], *, blocking: bool = True, anew: bool = False, then: Callable[[], None] | None = None
    ) -> None:
        """Have *messages* about *node*, or names in it, written in order, and call *then*. Not *blocking*: the kernel waits for nothing
        to take them."""
        now = self._core.dispatch.now()
        job = self._jobs.get((node, blocking))
        if job is None:
            job = self._jobs[node, blocking] = _Job(now)
        elif anew:
            job.since = now
        job.messages += messages
        if then is not None:
            job.calls.append(then)
        self._begin((node, blocking))

    def queued(self, node: Node) -> int:
        """How many messages about *node* wait."""
        count = 0
        for blocking in (True, False):
            job = self._jobs.get((node, blocking))
            if job is not None:
                count += len(job.messages)
        return count

    def _run(self) -> None:
        self._core.on_answered = None
        for key in list(self._jobs):
            if len(self._running) >= JOBS_MAX:
                return
            self._begin(key)

    def _begin(self, key: tuple[Node, bool]) -> None:
        """Begin with what waits to be told of *key*, if that can be."""
        job = self._jobs.get(key)
        if len(self._running) >= JOBS_MAX or key in self._running or job is None:
            # Under way, or done since, where the kernel is told at once.
            return
        node, blocking = key
        if blocking and self._busy(node.server.key[0]):
            return
        if blocking and self._locked(node, job.since):
            self._core.on_answered = self._answered
            return
        del self._jobs[key]
        self._running.add(key)
        done = self._done(key, job.calls)
        if blocking and not node.directory:
            # Of a file only pages are waited for, and to drop them once is enough.
            self._core.drop_pages(node.nodeid, done)
        else:
            self._core.tell_kernel(job.messages, done)

    def _busy(self, nd: int) -> bool:
        return sum(blocking and node.server.key[0] == nd for node, blocking in self._running) >= JOBS_OF_NODE

    def _locked(self, node: Node, since: float) -> bool:
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

    def _done(self, key: tuple[Node, bool], calls: list[Callable[[], None]]) -> Callable[[], None]:
        def done() -> None:
            self._running.discard(key)
            for call in calls:
                call()
            if self._jobs:
                self._run()

        return done

    def close(self) -> None:
        self._jobs.clear()
        self._core.on_answered = None
