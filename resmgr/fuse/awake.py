"""Notices that this daemon was stopped, or its machine asleep: servers may have recalled in vain what is delegated to it (docs/protocol/
delegation.md), so all of that is given back before anything is answered by it.

Who keeps delegations says so (`keep`), has the beat begin when there is one (`watch`), and asks `check` before one is believed. The beat
goes on as long as anybody keeps something, and is when what was not used for a while is given back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from resmgr.dispatch import Dispatch, Timer
from resmgr.fuse.changes import NEVER

BEAT: Final = 0.5
STALLED: Final = 1.0
"""Seconds without a beat after which nothing is believed. A server waits longer for an answer to a recall."""


class Awake:
    """Of one mount. Counts in *drops*: `delegations_stalled`."""

    def __init__(self, dispatch: Dispatch, drops: dict[str, int]) -> None:
        self._dispatch = dispatch
        self._drops = drops
        self._kept: list[tuple[Callable[[float], bool], Callable[[], None]]] = []
        self._timer: Timer | None = None
        self._beaten = NEVER
        self._slept = 0.0
        self.asleep: Callable[[], float] = _never
        """Seconds that this machine was asleep, on a clock of its own. Set by the session."""

    def keep(self, tidy: Callable[[float], bool], give_back: Callable[[], None]) -> None:
        """Somebody keeps delegations: *tidy* is called with the time of each beat, and says whether there are any; *give_back* gives back
        all."""
        self._kept.append((tidy, give_back))

    def watch(self) -> None:
        """There is something that is not to be believed any more when this daemon was stopped."""
        if self._timer is None:
            now = self._dispatch.now()
            self._beaten, self._slept = now, self.asleep()
            self._timer = self._dispatch.call_at(now + BEAT, self._beat)

    def check(self) -> bool:
        """Whether this daemon ran since the last beat. If not, all is given back."""
        if self._dispatch.now() - self._beaten <= STALLED and self.asleep() - self._slept < BEAT:
            return True
        self._drops["delegations_stalled"] += 1
        for _, give_back in self._kept:
            give_back()
        return False

    def _beat(self) -> None:
        self._timer = None
        self.check()
        now = self._dispatch.now()
        more = False
        for tidy, _ in self._kept:
            more = tidy(now) or more
        if more:
            self.watch()

    def close(self) -> None:
        """The mount is gone. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _never() -> float:
    return 0.0
