"""Advisory locks of one manager: who holds which bytes of which object, who waits, in which order they get them. Pure.

Two kinds that do not see each other, as on Linux: *ranges* (fcntl: an owner's new lock replaces what he has of the same bytes) and *whole*
(flock: one lock for each open file, whose conversion gives the old lock up first). The caller chooses an owner so that it means the same:
one process of one client, or one open file.

Order. A request that may wait is not granted past an earlier one that it conflicts with, so readers that come and come do not starve a
writer. Except that an owner who holds locks here already waits for nobody's turn: those before him may be waiting for him, and then nobody
would ever go on. A request that does not wait looks at what is held only, as on Linux.

Deadlock. A range request that would close a ring of owners who wait for each other, over all objects of the manager, is EDEADLK. Other
managers' waits are not seen: what they and we hold against each other waits until somebody is interrupted.

Cost. Whoever is at fault for many locks or waits must not keep the node's other work waiting: all caps together keep the worst request, and
the death of a client that holds all it may, in the order of 100 ms; a usual one is 15 us.

`Outer` is somebody else with a say, such as the kernel that other programs of the machine ask for locks of the same file.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Final, NamedTuple, Protocol

READ: Final = 0
WRITE: Final = 1
UNLOCK: Final = 2
"""Linux's F_RDLCK, F_WRLCK, F_UNLCK."""
END = 1 << 63
"""End of a range that goes to the end of the file, wherever that is. Ranges are [start, end)."""

LOCKS_PER_CLIENT = 4096
"""Ranges that one client holds; more is ENOLCK. Stops a client that locks every other byte from taking all memory and time."""
LOCKS_MAX = 65536
"""Ranges held in one manager; a node may have half of them, so that one node cannot take them from all others."""
RANGES_PER_OBJECT = 4096
WAITERS_PER_CLIENT = 1024
WAITERS_PER_OBJECT = 1024
"""Requests that wait for one object; each change of its locks looks at all of them."""
WAITING_HOLDERS_MAX = 256
"""Owners of a manager who hold something and wait for more: those among whom a ring is looked for."""

Range = tuple[int, int, int]
"""start, end, READ or WRITE."""


def _start(one: tuple[int, int, Owner]) -> int:
    return one[0]


class Owner(NamedTuple):
    """Whose lock it is: *number* as the client says, unique among its owners. *client* and *node* are whom it is counted for."""

    client: int
    node: int
    number: int
    whole: bool


_NOBODY = Owner(-1, -1, -1, False)


class Outer(Protocol):
    """Asked before a lock is given to *owner*, told when he lets go."""

    def take(self, key: Hashable, owner: Owner, kind: int, start: int, end: int) -> bool:
        """Whether *owner* may have it now."""
        ...

    def give(self, key: Hashable, owner: Owner, start: int, end: int) -> None: ...

    def forget(self, key: Hashable, owner: Owner) -> None:
        """*owner* has nothing of *key* any more."""
        ...


class Waiter:
    """A request that waits. `done(0)` is called when it has its lock, `done(ENOLCK)` if that would have been one too many."""

    __slots__ = ("done", "end", "kind", "outside", "owner", "pid", "start", "table")

    def __init__(self, table: _Table, owner: Owner, kind: int, start: int, end: int, pid: int, done: Callable[[int], None]) -> None:
        self.table = table
        self.owner = owner
        self.kind = kind
        self.start = start
        self.end = end
        self.pid = pid
        self.done = done
        self.outside = False
        """Only `Outer` is in the way."""

    def conflicts(self, other: Waiter) -> bool:
        return (
            self.owner != other.owner and self.start < other.end and other.start < self.end and (self.kind == WRITE or other.kind == WRITE)
        )


class _Index:
    """Ranges in order of their starts, so that "does anybody else have something of [start, end)" is a bisection: behind each place, the
    farthest end up to there, whose it is, and the farthest of somebody else."""

    __slots__ = ("_far", "_starts")

    def __init__(self, ranges: list[tuple[int, int, Owner]]) -> None:
        ranges.sort(key=_start)
        self._starts = [start for start, _, _ in ranges]
        self._far: list[tuple[int, Owner, int]] = []
        best, whose, second = 0, _NOBODY, 0
        for _, end, owner in ranges:
            if owner == whose:
                best = max(best, end)
            elif end > best:
                best, whose, second = end, owner, best
            else:
                second = max(second, end)
            self._far.append((best, whose, second))

    def free(self, owner: Owner, start: int, end: int) -> bool:
        place = bisect_left(self._starts, end)
        if not place:
            return True
        best, whose, second = self._far[place - 1]
        return (second if whose == owner else best) <= start


class _Table:
    """The locks of one object and kind."""

    __slots__ = ("_every", "_writing", "count", "held", "key", "pids", "waiters")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.held: dict[Owner, list[Range]] = {}
        self.pids: dict[Owner, int] = {}
        self.waiters: dict[Waiter, None] = {}
        self.count = 0
        """Ranges held."""
        self._every: _Index | None = None
        self._writing: _Index | None = None

    def changed(self) -> None:
        """`held` is not what it was."""
        self._every = self._writing = None

    def against(self, owner: Owner, kind: int, start: int, end: int) -> Iterator[tuple[Owner, Range]]:
        """Locks of others that a lock of *owner* would conflict with; one for each other owner."""
        for other in self.held:
            if other != owner:
                held = self.between(other, kind, start, end)
                if held is not None:
                    yield other, held

    def between(self, other: Owner, kind: int, start: int, end: int) -> Range | None:
        """The first lock of *other* that another owner's would conflict with."""
        ranges = self.held[other]
        for place in range(max(0, bisect_left(ranges, (start,)) - 1), len(ranges)):
            held = ranges[place]
            if held[0] >= end:
                return None
            if held[1] > start and (kind == WRITE or held[2] == WRITE):
                return held
        return None

    def free(self, owner: Owner, kind: int, start: int, end: int) -> bool:
        """Whether nobody else has what a lock of *owner* would conflict with."""
        if len(self.held) <= 8:
            return all(other == owner or self.between(other, kind, start, end) is None for other in self.held)
        index = self._every if kind == WRITE else self._writing
        if index is None:
            index = _Index([(one[0], one[1], who) for who, held in self.held.items() for one in held if kind == WRITE or one[2] == WRITE])
            if kind == WRITE:
                self._every = index
            else:
                self._writing = index
        return index.free(owner, start, end)


def replaced(ranges: list[Range], kind: int, start: int, end: int) -> list[Range]:
    """*ranges* (sorted, disjoint) with [start, end) made *kind*; neighbours of one kind become one."""
    low, high = start, end
    out: list[Range] = []
    for held in ranges:
        s, e, k = held
        if k == kind and s <= end and e >= start:
            low, high = min(low, s), max(high, e)
        elif e <= start or s >= end:
            out.append(held)
        else:
            if s < start:
                out.append((s, start, k))
            if e > end:
                out.append((end, e, k))
    if kind != UNLOCK:
        out.append((low, high, kind))
    out.sort()
    return out


class Locks:
    """All locks of one manager. Callbacks (`done`) run inside the call that caused them, at its end; they may call again."""

    def __init__(self, outer: Outer | None = None, *, per_client: int = LOCKS_PER_CLIENT, most: int = LOCKS_MAX) -> None:
        self._outer = outer
        self._per_client = per_client
        self._most = most
        self._tables: dict[tuple[Hashable, bool], _Table] = {}
        self._of_owner: dict[Owner, dict[_Table, None]] = {}
        """Where each owner holds something."""
        self._waiting: dict[Owner, dict[Waiter, None]] = {}
        self._of_client: Counter[int] = Counter()
        self._of_node: Counter[int] = Counter()
        self._waits: Counter[int] = Counter()
        self.held = 0
        """Ranges held."""

    # ---- requests

    def lock(
        self, key: Hashable, owner: Owner, kind: int, start: int, end: int, pid: int = 0, done: Callable[[int], None] | None = None
    ) -> int | Waiter:
        """Lock or unlock [start, end) of *key*. 0, or an errno: EAGAIN (another has it; only without *done*), EDEADLK, ENOLCK. With *done*,
        a request that has to wait is returned, for `cancel`."""
        table = self._tables.get((key, owner.whole))
        if table is None:
            if kind == UNLOCK:
                return 0
            table = self._tables[key, owner.whole] = _Table(key)
        granted: list[tuple[Waiter, int]] = []
        result = self._set(table, owner, kind, start, end, pid, done, granted)
        self._settle(table)
        for waiter, code in granted:
            waiter.done(code)
        return result

    def test(self, key: Hashable, owner: Owner, kind: int, start: int, end: int) -> tuple[Owner, int, Range] | None:
        """Who, with which pid and which lock, is in the way of a lock; None: nobody."""
        table = self._tables.get((key, owner.whole))
        found = None if table is None else min(table.against(owner, kind, start, end), key=lambda found: found[1], default=None)
        return None if found is None or table is None else (found[0], table.pids[found[0]], found[1])

    def cancel(self, waiter: Waiter) -> bool:
        """Take a waiting request back; False if it is granted already, or was cancelled. Its `done` is not called."""
        if waiter not in waiter.table.waiters:
            return False
        self.end((waiter,), ())
        return True

    def release(self, key: Hashable, owner: Owner) -> None:
        """Whatever *owner* holds of *key* is free."""
        self.end((), ((key, owner),))

    def end(self, waiters: Iterable[Waiter], places: Iterable[tuple[Hashable, Owner]]) -> None:
        """Take requests back that still wait (their `done` is not called), and free whatever an owner holds of a key. Who waits for any of
        it is looked at once, at the end: a client that dies with all that it may hold costs what one request costs."""
        touched: dict[_Table, None] = {}
        for waiter in waiters:
            if waiter in waiter.table.waiters:
                self._leave(waiter)
                touched[waiter.table] = None
        for key, owner in places:
            table = self._tables.get((key, owner.whole))
            if table is not None and owner in table.held:
                self._put(table, owner, UNLOCK, 0, END, 0)
                touched[table] = None
        granted: list[tuple[Waiter, int]] = []
        for table in touched:
            self._scan(table, granted)
            self._settle(table)
        for other, code in granted:
            other.done(code)

    def retry(self) -> bool:
        """Ask `Outer` again for those who wait for it only. Whether any still do."""
        granted: list[tuple[Waiter, int]] = []
        left = False
        for table in list(self._tables.values()):
            if any(waiter.outside for waiter in table.waiters):
                self._scan(table, granted)
                left = left or any(waiter.outside for waiter in table.waiters)
                self._settle(table)
        for waiter, code in granted:
            waiter.done(code)
        return left

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(self._waits.values())

    def ranges(self, key: Hashable, owner: Owner) -> list[Range]:
        """What *owner* holds of *key*."""
        table = self._tables.get((key, owner.whole))
        return [] if table is None else list(table.held.get(owner, ()))

    def used(self, key: Hashable) -> bool:
        """Whether anybody holds anything of *key*, or waits for it."""
        return (key, False) in self._tables or (key, True) in self._tables

    def holds(self, key: Hashable, owner: Owner) -> bool:
        """Whether *owner* holds anything of *key*."""
        table = self._tables.get((key, owner.whole))
        return table is not None and owner in table.held

    # ---- inside

    def _set(
        self,
        table: _Table,
        owner: Owner,
        kind: int,
        start: int,
        end: int,
        pid: int,
        done: Callable[[int], None] | None,
        granted: list[tuple[Waiter, int]],
    ) -> int | Waiter:
        if not self._room(table, owner, kind, start, end):
            return errno.ENOLCK
        if kind == UNLOCK:
            self._put(table, owner, kind, start, end, pid)
            self._scan(table, granted)
            return 0
        dropped = owner.whole and any(held[2] != kind for held in table.held.get(owner, ()))
        if dropped:
            self._put(table, owner, UNLOCK, start, end, pid)
        waiter = Waiter(table, owner, kind, start, end, pid, _nothing if done is None else done)
        if dropped and done is not None:
            # Whoever waited for what was just given up comes first.
            self._scan(table, granted)
        polite = done is not None
        if table.free(owner, kind, start, end) and not (polite and self._held_back(waiter, table.waiters)) and self._take(waiter):
            self._put(table, owner, kind, start, end, pid)
            self._scan(table, granted)
            return 0
        if done is None:
            if dropped:
                self._scan(table, granted)
            return errno.EAGAIN
        if not owner.whole and self._in_a_ring(waiter):
            return errno.EDEADLK
        holds = owner in self._of_owner
        if (
            self._waits[owner.client] >= WAITERS_PER_CLIENT
            or len(table.waiters) >= WAITERS_PER_OBJECT
            or (holds and self._waiting_holders() >= WAITING_HOLDERS_MAX)
        ):
            return errno.ENOLCK
        table.waiters[waiter] = None
        self._waiting.setdefault(owner, {})[waiter] = None
        self._waits[owner.client] += 1
        return waiter

    def _room(self, table: _Table, owner: Owner, kind: int, start: int, end: int) -> bool:
        before = table.held.get(owner, [])
        more = len(replaced(before, kind, start, end)) - len(before)
        if more <= 0:
            return True
        half = self._most // 2
        return (
            self._of_client[owner.client] + more <= self._per_client
            and table.count + more <= RANGES_PER_OBJECT
            and self.held + more <= self._most
            and (not owner.node or self._of_node[owner.node] + more <= half)
        )

    def _take(self, waiter: Waiter) -> bool:
        if self._outer is None:
            return True
        taken = self._outer.take(waiter.table.key, waiter.owner, waiter.kind, waiter.start, waiter.end)
        waiter.outside = not taken
        return taken

    def _put(self, table: _Table, owner: Owner, kind: int, start: int, end: int, pid: int) -> None:
        before = table.held.get(owner, [])
        after = replaced(before, kind, start, end)
        more = len(after) - len(before)
        self.held += more
        table.count += more
        table.changed()
        self._of_client[owner.client] += more
        self._of_node[owner.node] += more
        if kind == UNLOCK and before and self._outer is not None:
            self._outer.give(table.key, owner, start, end)
        if after:
            table.held[owner] = after
            if kind != UNLOCK:
                table.pids[owner] = pid
                self._of_owner.setdefault(owner, {})[table] = None
        elif before:
            del table.held[owner]
            del table.pids[owner]
            tables = self._of_owner[owner]
            del tables[table]
            if not tables:
                del self._of_owner[owner]
            if self._outer is not None:
                self._outer.forget(table.key, owner)
        for counter, number in ((self._of_client, owner.client), (self._of_node, owner.node)):
            if not counter[number]:
                del counter[number]

    def _scan(self, table: _Table, granted: list[tuple[Waiter, int]]) -> None:
        """Grant what can be granted, the earliest first."""
        again = True
        while again:
            again = False
            earlier: dict[Waiter, None] = {}
            for waiter in list(table.waiters):
                waiter.outside = False
                if (
                    table.free(waiter.owner, waiter.kind, waiter.start, waiter.end)
                    and not self._held_back(waiter, earlier)
                    and self._take(waiter)
                ):
                    self._leave(waiter)
                    if self._room(table, waiter.owner, waiter.kind, waiter.start, waiter.end):
                        self._put(table, waiter.owner, waiter.kind, waiter.start, waiter.end, waiter.pid)
                        granted.append((waiter, 0))
                    else:
                        if self._outer is not None:
                            self._outer.give(table.key, waiter.owner, waiter.start, waiter.end)
                        granted.append((waiter, errno.ENOLCK))
                    again = True
                else:
                    earlier[waiter] = None

    def _held_back(self, waiter: Waiter, earlier: dict[Waiter, None]) -> bool:
        """Whether one that came before has to have its lock first."""
        return waiter.owner not in self._of_owner and any(waiter.conflicts(other) for other in earlier)

    def _waiting_holders(self) -> int:
        return len(self._waiting.keys() & self._of_owner.keys())

    def _in_a_ring(self, waiter: Waiter) -> bool:
        """Whether those who have what *waiter* wants wait, directly or through others, for its owner."""
        seen: set[Owner] = set()
        left = [waiter]
        holders = self._waiting.keys() & self._of_owner.keys()
        while left:
            one = left.pop()
            for owner in (holders | {waiter.owner}) & one.table.held.keys():
                if owner == one.owner or owner in seen:
                    continue
                if one.table.between(owner, one.kind, one.start, one.end) is None:
                    continue
                if owner == waiter.owner:
                    return True
                seen.add(owner)
                left.extend(self._waiting[owner])
        return False

    def _leave(self, waiter: Waiter) -> None:
        """It does not wait any more."""
        del waiter.table.waiters[waiter]
        waits = self._waiting[waiter.owner]
        del waits[waiter]
        if not waits:
            del self._waiting[waiter.owner]
        client = waiter.owner.client
        self._waits[client] -= 1
        if not self._waits[client]:
            del self._waits[client]

    def _settle(self, table: _Table) -> None:
        """Forget a table with nothing in it."""
        if not table.held and not table.waiters:
            for whole in (False, True):
                if self._tables.get((table.key, whole)) is table:
                    del self._tables[table.key, whole]


def _nothing(code: int) -> None:
    pass
