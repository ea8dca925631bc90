"""Telling the kernel what it may have to wait for: entries, for their directory's lock, and pages, for the READs that fill them.

One job for each directory, `JOBS_MAX` at a time, each in a thread. A job holds nothing that an answer needs, so it may wait for as long as
a request of that directory is under way; what comes for the directory meanwhile goes out with its next job.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.inode import Node

JOBS_MAX = 8
"""Threads that tell the kernel, of one mount."""


class Telling:
    """The jobs of one mount."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._jobs: dict[Node, list[bytes]] = {}
        self._running: set[Node] = set()

    def tell(self, node: Node, messages: list[bytes]) -> None:
        """Have *messages* about directory *node*, or what is in it, written in order."""
        waiting = self._jobs.get(node)
        if waiting is None:
            self._jobs[node] = messages
        else:
            waiting += messages
        self._run()

    def waits(self, node: Node) -> int:
        """How many messages about *node* wait."""
        return len(self._jobs.get(node, ()))

    def _run(self) -> None:
        for node in list(self._jobs):
            if len(self._running) >= JOBS_MAX:
                return
            if node in self._running:
                continue
            messages = self._jobs.pop(node)
            self._running.add(node)
            self._core.tell_kernel(messages, self._done(node))

    def _done(self, node: Node) -> Callable[[], None]:
        def done() -> None:
            self._running.discard(node)
            if self._jobs:
                self._run()

        return done

    def close(self) -> None:
        self._jobs.clear()
