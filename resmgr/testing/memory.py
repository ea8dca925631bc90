"""A carrier in memory, for two peers in one process: keeps order within a stream, and mixes the streams by a seeded delay.

This is the worst carrier that the contract in docs/architecture.md allows: whole messages, exactly once, each stream in order, no order
between streams. `cut` is the end of the link as both sides see it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from resmgr.dispatch import Buffer, Dispatch
from resmgr.peer import Peer

STEP = 1e-9


class MemoryEnd:
    """One direction: what this end sends arrives at the other end's peer."""

    def __init__(self, link: MemoryLink) -> None:
        self._link = link
        self._last: dict[int, float] = {}
        self.peer: Peer | None = None
        """Set by whoever makes the peers."""
        self.dispatch: Dispatch | None = None
        self.other: MemoryEnd | None = None
        self.sent = 0

    def send(self, stream: int, parts: Sequence[Buffer], priority: int, route: int = 0) -> None:
        other = self.other
        if self._link.down or other is None or other.dispatch is None:
            return
        self.sent += 1
        whole = b"".join(parts)
        when = max(other.dispatch.now() + self._link.delay(), self._last.get(stream, 0.0) + STEP)
        self._last[stream] = when
        link = self._link

        def arrive() -> None:
            if not link.down and other.peer is not None:
                if link.tap is not None:
                    link.tap(whole)
                other.peer.receive(whole, stream, priority)

        other.dispatch.call_at(when, arrive)


class MemoryLink:
    """Both ends. *delay_max*: seconds; each message takes a random time up to it."""

    def __init__(self, left: Dispatch, right: Dispatch, generator: random.Random, delay_max: float = 0.01) -> None:
        self._generator = generator
        self._delay_max = delay_max
        self.down = False
        self.tap: Callable[[bytes], None] | None = None
        """Sees every message as it arrives."""
        self.left = MemoryEnd(self)
        self.right = MemoryEnd(self)
        self.left.dispatch, self.right.dispatch = left, right
        self.left.other, self.right.other = self.right, self.left

    def delay(self) -> float:
        return self._generator.random() * self._delay_max

    def cut(self, code: int) -> None:
        """End the link: nothing arrives any more, both peers go down with errno *code*."""
        self.down = True
        for end in (self.left, self.right):
            if end.peer is not None:
                end.peer.down(code)
