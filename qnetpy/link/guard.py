"""The guard: notices a flood and says what to screen away while it lasts. Sans-IO; docs/protocol/link.md, "Under attack".

In calm times the screen only sorts (`qnetpy.link.screen`), so that every refused frame is counted under its reason. The guard goes on when
the side queue holds more than its budget, or when a session gets copies of its packets by the hundred. While it is on it

- lets only stamped INITIATIONs and handshake frames to indices of ours into the side queue;
- counts repetitions of each: more than COPIES_MAX in a second, which no node that calls makes, are shed for HOT_SECONDS;
- gives each session that gets copies a floor: the oldest packet number that it can still use.

It goes off CALM_SECONDS after the last sign of a flood. Whoever owns it gives it the sessions, asks `view` after each call that returns
True, and calls `review` when `next_timeout` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from qnetpy.link.constants import DESTINATIONS_MAX
from qnetpy.link.screen import FLOORS_MAX, HOT_MAX, View, identity
from qnetpy.link.session import Session
from qnetpy.link.stamp import Key, stamp_code
from qnetpy.link.wire import DATA

REVIEW: Final = 0.2
"""Seconds between looks at the sessions, and between changes of the screen under a flood."""
CALM_SECONDS: Final = 5.0
COPIES_MAX: Final = 8 * DESTINATIONS_MAX
"""Copies of one frame within WINDOW_SECONDS that are no flood. A node that gets no answer sends one 7 times within a second to each
address: RETRY_STEADY + 1 times RETRY_FIRST apart, and once more after twice that. All its addresses may be ours, and the eighth is for a
network that doubles one, or for what it sends because we call it at the same time (26 of one frame is the most that was seen)."""
WINDOW_SECONDS: Final = 1.0
HOT_SECONDS: Final = 10.0
SEEN_MAX: Final = 4096
"""Frames whose repetitions are counted at a time: bounds memory when each is different."""
REPLAYS_MAX: Final = 100
"""Copies of a session's packets between two looks that are a flood. A bad link, or two paths of which one is late, makes a few."""
REORDER_GUARDED: Final = 256
"""How late a packet may be on a session with a floor: without it a lost packet would keep the floor down for the whole replay window."""


class Guard:
    """See the head of this file. Memory: SEEN_MAX counters, HOT_MAX words, FLOORS_MAX floors, one number per session."""

    def __init__(self, key: Key) -> None:
        self._stamp = stamp_code(key)
        self.on = False
        self.times = 0
        """How often it went on."""
        self._last_sign = 0.0
        self._reviewed = 0.0
        self._shed = 0
        self._counts: Counter[int] = Counter()
        self._window_ends = 0.0
        self._hot: dict[int, float] = {}
        self._changed = False
        self._replayed: dict[int, int] = {}
        self._floors: dict[tuple[int, int], int] = {}

    @property
    def hot(self) -> int:
        """Frames that are shed for having been repeated."""
        return len(self._hot)

    def view(self, indices: Iterable[int]) -> View:
        return View(frozenset(indices), self._stamp, self.on, frozenset(self._hot), dict(self._floors))

    def sign(self, now: float) -> bool:
        """A flood: the side queue is under pressure. Whether the guard went on by this."""
        self._last_sign = now
        if self.on:
            return False
        self.on = True
        self.times += 1
        return True

    def saw(self, frames: Sequence[memoryview], offset: int, now: float) -> None:
        """Frames that came through the screen while the guard is on."""
        if now >= self._window_ends:
            self._window_ends = now + WINDOW_SECONDS
            self._counts.clear()
        counts = self._counts
        for frame in frames:
            if len(frame) > offset and frame[offset] == DATA:
                continue
            word = identity(frame, offset)
            if word is None or (len(counts) >= SEEN_MAX and word not in counts):
                continue
            counts[word] += 1
            if counts[word] > COPIES_MAX and (word in self._hot or len(self._hot) < HOT_MAX):
                self._changed |= word not in self._hot
                self._hot[word] = now + HOT_SECONDS

    def due(self, now: float) -> bool:
        """Whether it is time for a `review`: cheap, to be asked with each batch."""
        return now >= self._reviewed + REVIEW

    def next_timeout(self) -> float | None:
        return self._reviewed + REVIEW if self.on else None

    def review(self, sessions: Iterable[Session], shed: int, now: float) -> bool:
        """Look at the sessions and at what drivers have shed so far. Whether `view` is another one now."""
        self._reviewed = now
        before = self.on, self._floors
        changed, self._changed = self._changed, False
        floors: dict[tuple[int, int], int] = {}
        replayed: dict[int, int] = {}
        for session in sessions:
            count = session.counters.replayed
            replayed[session.local_index] = count
            flooded = count - self._replayed.get(session.local_index, count) > REPLAYS_MAX
            if flooded:
                self.sign(now)
            if (flooded or any(index == session.local_index for index, _ in self._floors)) and len(floors) < FLOORS_MAX:
                for path, floor in session.floors(REORDER_GUARDED).items():
                    floors[session.local_index, path] = floor
        self._replayed = replayed
        if shed != self._shed:
            self._shed = shed
            self._last_sign = now
        for word in [word for word, until in self._hot.items() if until <= now]:
            del self._hot[word]
            changed = True
        if self.on and now >= self._last_sign + CALM_SECONDS:
            self.on = False
            self._hot.clear()
            self._counts.clear()
            floors = {}
        self._floors = floors
        return changed or (self.on, self._floors) != before
