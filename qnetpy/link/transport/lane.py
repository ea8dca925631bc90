"""The order of messages that go the same way: who is next.

The highest priority goes first, byte by byte: a fragment of a higher one overtakes a lower message between any two packets. Lower
priorities together keep a share of 1 in LOWER_SHARE, in turn, so the lowest always moves. Within one priority, messages up to
SMALL_MESSAGE go ahead of larger ones (these keep the same share), each whole before the next. Of the larger ones the one with the
fewest bytes left goes first, those alike in order, for a TURN at most: so each arrives as early as it can. The one furthest behind keeps
the same share again.

Messages that may take any path queue in one lane; those that ask for particular paths (`qnetpy.link.transport.routes`) have a lane for
each such wish, so that a path that is down holds up only those that insist on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from qnetpy.link.transport.constants import LOWER_SHARE, MAX_ACTIVE, QUANTUM, SMALL_MESSAGE, TURN
from qnetpy.link.transport.outmessage import OutMessage


class Level:
    """One priority."""

    __slots__ = ("active", "active_debt", "large", "left_in_turn", "makes_up", "small", "small_debt")

    def __init__(self) -> None:
        self.small: deque[OutMessage] = deque()
        """Not opened yet, small."""
        self.large: deque[OutMessage] = deque()
        """Not opened yet, large."""
        self.active: deque[OutMessage] = deque()
        """Opened, with bytes to send; the first one is served."""
        self.small_debt = 0
        """Bytes of small ones that went ahead of others, less what these had of their share."""
        self.active_debt = 0
        """Bytes of messages shorter than the last active one that went ahead of it."""
        self.left_in_turn = TURN
        self.makes_up = False
        """The first one has the share of those that others went ahead of: nobody goes ahead of it now."""

    def enter(self, message: OutMessage) -> None:
        """It is open: to the others that are, ahead of those with more left."""
        active = self.active
        total = message.total
        place = len(active)
        first = 1 if self.makes_up else 0
        while place > first and active[place - 1].total - active[place - 1].next > total:
            place -= 1
        active.insert(place, message)
        if not place:
            self._next_turn()

    def sent(self, message: OutMessage, count: int) -> None:
        """*message*, the first of the active ones, sent so many bytes more."""
        active = self.active
        last = active[-1]
        if last is message:
            self.active_debt = 0
        elif message.total < last.total:
            self.active_debt += count
        self.left_in_turn -= count
        if message.span() is None:
            active.popleft()
            message.queued = False
            self._next_turn()
        elif self.left_in_turn <= 0:
            active.rotate(-1)
            self._next_turn()
        if self.active_debt >= LOWER_SHARE * QUANTUM and active:
            self.active_debt = 0
            active.rotate(1)
            self.left_in_turn = QUANTUM
            self.makes_up = True

    def _next_turn(self) -> None:
        self.left_in_turn = TURN
        self.makes_up = False


class Lane:
    """See the head of this file. *opens* gives a message its id, if credit allows."""

    __slots__ = ("_debt", "_levels", "_open", "_served", "_turn", "mask", "route")

    def __init__(self, route: int, opens: Callable[[OutMessage], bool]) -> None:
        self.route = route
        self.mask = 0
        """Bit per priority that has something to send, credit or not."""
        self._open = opens
        self._levels: dict[int, Level] = {}
        self._debt = 0
        self._turn = 0
        self._served = 0

    def enqueue(self, message: OutMessage) -> None:
        level = self._level(message.priority)
        (level.small if message.total <= SMALL_MESSAGE else level.large).append(message)
        message.queued = True
        self.mask |= 1 << message.priority

    def _level(self, priority: int) -> Level:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = Level()
        return level

    def pick(self) -> OutMessage | None:
        """The message to serve now; stays queued until `served`. None: nothing to send, or no credit."""
        mask = self.mask
        while mask:
            index = mask.bit_length() - 1
            if self._debt >= LOWER_SHARE * QUANTUM:
                lower = mask ^ (1 << index)
                if lower:
                    index = (lower & ((1 << self._turn) - 1) or lower).bit_length() - 1
                else:
                    self._debt = 0
            message = self._pick_level(self._levels[index], index)
            if message is not None:
                self._served = index
                return message
            mask &= ~(1 << index)
        return None

    def take_lone(self, space: int) -> OutMessage | None:
        """The message to serve now, if nothing else waits and all of it goes into *space* bytes: `pick`, `took` and `served` in one."""
        mask = self.mask
        if mask & (mask - 1) or self._debt >= LOWER_SHARE * QUANTUM:
            return None
        level = self._levels[mask.bit_length() - 1]
        small = level.small
        if len(small) != 1 or level.active or level.large:
            return None
        message = small[0]
        total = message.total
        if message.id or total > space or not self._open(message):
            return None
        small.popleft()
        message.queued = False
        message.next = total
        message.sent_start = True
        # Its successor in the stream may have come to this level.
        if not small and not level.large:
            self.mask &= ~mask
        return message

    def _pick_level(self, level: Level, index: int) -> OutMessage | None:
        active = level.active
        while active and active[0].span() is None:
            active.popleft().queued = False
        small, large = level.small, level.large
        if active and active[0].total <= SMALL_MESSAGE:
            # Begun, and not whole yet.
            return active[0]
        if small and (level.small_debt < LOWER_SHARE * QUANTUM or not (active or large)):
            message = small[0]
            if message.id or self._open(message):
                return message
        if large and len(active) < MAX_ACTIVE:
            message = large[0]
            if self._open(message):
                large.popleft()
                level.enter(message)
        if active:
            return active[0]
        if small:
            # There is no credit for a large one.
            message = small[0]
            if message.id or self._open(message):
                return message
        elif not large:
            self.mask &= ~(1 << index)
        return None

    def served(self, message: OutMessage, count: int) -> None:
        """*count* bytes of the picked message have been taken."""
        index = self._served
        level = self._levels[index]
        active = level.active
        if level.small and level.small[0] is message:
            level.small.popleft()
            if active or level.large:
                level.small_debt += count
            if message.span() is not None:
                active.appendleft(message)
            else:
                message.queued = False
        elif message.total <= SMALL_MESSAGE:
            if len(active) > 1 or level.large:
                level.small_debt += count
            if message.span() is None:
                active.popleft()
                message.queued = False
        else:
            level.small_debt = max(0, level.small_debt - count * LOWER_SHARE)
            level.sent(message, count)
        mask = self.mask
        if mask >> (index + 1):
            self._debt = max(0, self._debt - count * LOWER_SHARE)
            self._turn = index
        elif mask & ((1 << index) - 1):
            self._debt += count
        if not (active or level.small or level.large):
            self.mask = mask & ~(1 << index)

    def waiting(self) -> bool:
        """Whether anything has bytes to send. `mask` may still say so of what was acknowledged meanwhile."""
        return any(
            message.span() is not None
            for level in self._levels.values()
            for queue in (level.small, level.large, level.active)
            for message in queue
        )

    def turn_room(self) -> int:
        """Bytes the picked message may take before somebody else should be asked."""
        return self._levels[self._served].left_in_turn

    def again(self, message: OutMessage) -> None:
        """An opened message that has something to send once more."""
        message.queued = True
        self._level(message.priority).active.appendleft(message)
        self.mask |= 1 << message.priority
