"""The lock table against a model that keeps a lock for each single byte, and the cases that have names."""

from __future__ import annotations

import errno
import random
from collections.abc import Hashable

import pytest

from resmgr.iofunc.locks import END, READ, UNLOCK, WAITERS_PER_OBJECT, WAITING_HOLDERS_MAX, WRITE, Locks, Owner, Waiter, replaced

BYTES = 8


def owner(number: int, whole: bool = False, client: int | None = None, node: int = 0) -> Owner:
    return Owner(number if client is None else client, node, number, whole)


class Model:
    """What POSIX says, one byte after another. `held[key][owner][byte]` is READ or WRITE; `queue` are requests in order of arrival."""

    def __init__(self) -> None:
        self.held: dict[str, dict[Owner, dict[int, int]]] = {"a": {}, "b": {}}
        self.queue: list[tuple[str, Owner, int, int, int, Waiter]] = []

    def apply(self, key: str, who: Owner, kind: int, start: int, end: int) -> None:
        mine = self.held[key].setdefault(who, {})
        for byte in range(start, end):
            mine.pop(byte, None)
            if kind != UNLOCK:
                mine[byte] = kind

    def in_the_way(self, key: str, who: Owner, kind: int, start: int, end: int) -> set[Owner]:
        return {
            other
            for other, theirs in self.held[key].items()
            if other != who and any(byte in theirs and WRITE in (kind, theirs[byte]) for byte in range(start, end))
        }

    def ring(self, who: Owner, first: set[Owner]) -> bool:
        """Whether those of *first* wait, through others, for *who*."""
        seen: set[Owner] = set()
        left = set(first)
        while left:
            other = left.pop()
            if other == who:
                return True
            if other not in seen:
                seen.add(other)
                for key, waits, kind, start, end, _ in self.queue:
                    if waits == other:
                        left |= self.in_the_way(key, waits, kind, start, end)
        return False

    def ranges(self, key: str, who: Owner) -> list[tuple[int, int, int]]:
        found: list[tuple[int, int, int]] = []
        for byte, kind in sorted(self.held[key].get(who, {}).items()):
            if found and found[-1][1] == byte and found[-1][2] == kind:
                found[-1] = (found[-1][0], byte + 1, kind)
            else:
                found.append((byte, byte + 1, kind))
        return found


def overlap(one: tuple[str, Owner, int, int, int, Waiter], other: tuple[str, Owner, int, int, int, Waiter]) -> bool:
    return one[0] == other[0] and one[1] != other[1] and one[3] < other[4] and other[3] < one[4] and WRITE in (one[2], other[2])


def play(seed: int, steps: int) -> int:
    """A random history. Returns how many deadlocks there were."""
    rng = random.Random(seed)
    locks, model = Locks(), Model()
    owners = [owner(number) for number in range(5)]
    deadlocks = 0
    granted: list[int] = []
    for step in range(steps):
        key = rng.choice("ab")
        start = rng.randrange(BYTES)
        end = rng.randrange(start + 1, BYTES + 1)
        kind = rng.choice((READ, WRITE, UNLOCK, UNLOCK))
        waiting = {entry[1] for entry in model.queue}
        free = [who for who in owners if who not in waiting]
        action = rng.random()
        before = list(model.queue)
        granted.clear()
        newest: list[tuple[str, Owner, int, int, int, Waiter]] = []
        if model.queue and (action < 0.1 or not free):
            entry = rng.choice(model.queue)
            assert locks.cancel(entry[5])
            assert not locks.cancel(entry[5])
            model.queue.remove(entry)
            before.remove(entry)
        else:
            who = rng.choice(free)
            blocked = model.in_the_way(key, who, kind, start, end) if kind != UNLOCK else set()
            may_wait = action < 0.7 and kind != UNLOCK
            result = locks.lock(key, who, kind, start, end, 7, granted.append if may_wait else None)
            if isinstance(result, Waiter):
                newest.append((key, who, kind, start, end, result))
                model.queue.append(newest[0])
                holds = any(model.held[name].get(who) for name in "ab")
                assert blocked or (not holds and any(overlap(newest[0], entry) for entry in before)), "waited for nothing"
                assert not (blocked and model.ring(who, blocked)), "a ring was not seen"
            elif result == errno.EDEADLK:
                deadlocks += 1
                assert model.ring(who, blocked), "no ring"
            elif result == errno.EAGAIN:
                assert blocked
                assert not may_wait
            else:
                assert result == 0
                assert not blocked
                model.apply(key, who, kind, start, end)
        # Who is not waiting any more has his lock, and had nobody in his way when his turn came.
        for entry in [entry for entry in before if entry[5] not in entry[5].table.waiters]:
            assert not model.in_the_way(*entry[:5]) or len(before) > 1
            model.queue.remove(entry)
            model.apply(*entry[:5])
        for name in "ab":
            for who in owners:
                assert locks.ranges(name, who) == model.ranges(name, who), (seed, step)
            for who, theirs in model.held[name].items():
                for byte, held in theirs.items():
                    others = [other for other in owners if other != who and model.held[name].get(other, {}).get(byte) is not None]
                    assert held == READ or not others, "two hold what excludes"
        assert granted == [0] * (len(before) + len(newest) - len(model.queue))
        # Nobody waits who could go on.
        for index, entry in enumerate(model.queue):
            if not model.in_the_way(*entry[:5]):
                assert any(overlap(entry, earlier) for earlier in model.queue[:index]), (seed, step)
                assert not any(model.held[name].get(entry[1]) for name in "ab"), (seed, step)
        assert locks.held == sum(len(locks.ranges(name, who)) for name in "ab" for who in owners)
        assert locks.waiting == len(model.queue)
        # And there is always somebody for whom nobody has to be waited.
        if model.queue and all(who in {entry[1] for entry in model.queue} for who in owners):
            assert any(model.in_the_way(*entry[:5]) for entry in model.queue)
            assert not all(model.ring(entry[1], model.in_the_way(*entry[:5])) for entry in model.queue), "all wait for each other"
    return deadlocks


def test_it_does_what_the_model_does() -> None:
    assert sum(play(seed, 120) for seed in range(80)) > 15, "hardly any deadlock was tried"


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        ([], (READ, 0, 5), [(0, 5, READ)]),
        ([(0, 5, READ)], (READ, 5, 9), [(0, 9, READ)]),
        ([(0, 5, READ)], (WRITE, 2, 3), [(0, 2, READ), (2, 3, WRITE), (3, 5, READ)]),
        ([(0, 9, WRITE)], (UNLOCK, 3, END), [(0, 3, WRITE)]),
        ([(0, 2, READ), (4, 6, READ)], (READ, 2, 4), [(0, 6, READ)]),
        ([(0, 2, READ), (2, 4, WRITE), (4, 6, READ)], (READ, 2, 4), [(0, 6, READ)]),
    ],
)
def test_ranges(before: list[tuple[int, int, int]], change: tuple[int, int, int], after: list[tuple[int, int, int]]) -> None:
    assert replaced(before, *change) == after


def wait(locks: Locks, key: Hashable, who: Owner, kind: int, told: list[Owner]) -> int | Waiter:
    return locks.lock(key, who, kind, 0, END, 0, lambda code: told.append(who))


@pytest.mark.parametrize("whole", [False, True])
def test_readers_that_come_and_come_do_not_starve_a_writer(whole: bool) -> None:
    locks = Locks()
    told: list[Owner] = []
    first, writer, late = owner(1, whole), owner(2, whole), owner(3, whole)
    assert locks.lock("f", first, READ, 0, END) == 0
    assert isinstance(wait(locks, "f", writer, WRITE, told), Waiter)
    assert isinstance(wait(locks, "f", late, READ, told), Waiter), "passed the writer"
    assert locks.lock("f", owner(4, whole), READ, 0, END) == 0, "who does not wait sees what is held"
    locks.release("f", first)
    assert told == []
    locks.release("f", owner(4, whole))
    assert told == [writer]
    locks.release("f", writer)
    assert told == [writer, late]


def test_a_holder_is_not_held_back_by_those_who_wait_for_it() -> None:
    locks = Locks()
    told: list[Owner] = []
    locks.lock("f", owner(1), READ, 0, 10)
    wait(locks, "f", owner(2), WRITE, told)
    assert wait(locks, "f", owner(1), READ, told) == 0


def test_converting_a_flock_gives_the_old_one_up_first() -> None:
    locks = Locks()
    told: list[Owner] = []
    one, two = owner(1, True), owner(2, True)
    locks.lock("f", one, READ, 0, END)
    locks.lock("f", two, READ, 0, END)
    assert isinstance(wait(locks, "f", one, WRITE, told), Waiter)
    assert wait(locks, "f", two, WRITE, told) == 0 or told == [one]
    assert locks.ranges("f", one) == [(0, END, WRITE)]
    assert locks.ranges("f", two) == []
    locks.release("f", one)
    assert told == [one, two]


def test_ranges_and_whole_do_not_see_each_other() -> None:
    locks = Locks()
    assert locks.lock("f", owner(1), WRITE, 0, END) == 0
    assert locks.lock("f", owner(2, True), WRITE, 0, END) == 0


def test_who_is_in_the_way() -> None:
    locks = Locks()
    locks.lock("f", owner(1), READ, 10, 20, 77)
    assert locks.test("f", owner(2), READ, 0, END) is None
    assert locks.test("f", owner(2), WRITE, 0, END) == (owner(1), 77, (10, 20, READ))
    assert locks.test("f", owner(1), WRITE, 0, END) is None


def test_caps() -> None:
    locks = Locks(per_client=3, most=8)
    for number in range(3):
        assert locks.lock("f", owner(1), READ, number * 2, number * 2 + 1) == 0
    assert locks.lock("f", owner(1), READ, 100, 101) == errno.ENOLCK
    assert locks.lock("f", owner(2, client=1), READ, 100, 101) == errno.ENOLCK
    assert locks.lock("f", owner(1), READ, 0, END) == 0, "one in place of three"
    assert locks.lock("f", owner(1), UNLOCK, 5, 6) == 0
    assert locks.lock("f", owner(1), UNLOCK, 7, 8) == 0
    assert locks.lock("f", owner(1), UNLOCK, 9, 10) == errno.ENOLCK, "a hole too many"
    locks.release("f", owner(1))
    assert locks.held == 0
    for number in range(4):
        assert locks.lock("f", owner(number, client=number, node=5), READ, 0, 1) == 0
    assert locks.lock("f", owner(9, client=9, node=5), READ, 0, 1) == errno.ENOLCK, "a node has half"
    assert locks.lock("f", owner(9, client=9), READ, 0, 1) == 0


def test_at_most_so_many_wait_for_one_object() -> None:
    locks = Locks()
    told: list[Owner] = []
    locks.lock("f", owner(0, True), WRITE, 0, END)
    waiters = [wait(locks, "f", owner(number, True), WRITE, told) for number in range(1, WAITERS_PER_OBJECT + 2)]
    assert waiters[-1] == errno.ENOLCK
    assert all(isinstance(waiter, Waiter) for waiter in waiters[:-1])


def test_many_owners_of_one_object_are_found_as_few_are() -> None:
    """Beyond a few owners there is an index: it must say what looking at each says."""
    rng = random.Random(3)
    locks = Locks()
    owners = [owner(number) for number in range(40)]
    for _ in range(3000):
        who = rng.choice(owners)
        start = rng.randrange(200)
        end = start + rng.randrange(1, 12)
        kind = rng.choice((READ, READ, WRITE, UNLOCK))
        conflict = kind != UNLOCK and locks.test("f", who, kind, start, end) is not None
        assert locks.lock("f", who, kind, start, end) == (errno.EAGAIN if conflict else 0)
    assert locks.held > 100


def test_those_who_hold_and_wait_are_few() -> None:
    locks = Locks()
    told: list[Owner] = []
    for number in range(WAITING_HOLDERS_MAX + 2):
        locks.lock("f", owner(number), WRITE, number, number + 1)
    locks.lock("g", owner(99999), WRITE, 0, END)
    answers = [wait(locks, "g", owner(number), WRITE, told) for number in range(WAITING_HOLDERS_MAX + 1)]
    assert answers[-1] == errno.ENOLCK
    assert all(isinstance(waiter, Waiter) for waiter in answers[:-1])
    assert isinstance(wait(locks, "g", owner(88888), WRITE, told), Waiter), "who holds nothing may wait"


class Somebody:
    """`Outer` that has the file itself until told."""

    def __init__(self) -> None:
        self.has = True
        self.told: list[str] = []

    def take(self, key: Hashable, owner: Owner, kind: int, start: int, end: int) -> bool:
        self.told.append("take")
        return not self.has

    def give(self, key: Hashable, owner: Owner, start: int, end: int) -> None:
        self.told.append("give")

    def forget(self, key: Hashable, owner: Owner) -> None:
        self.told.append("forget")


def test_somebody_else_has_a_say() -> None:
    outer = Somebody()
    locks = Locks(outer)
    told: list[Owner] = []
    assert locks.lock("f", owner(1), WRITE, 0, END) == errno.EAGAIN
    assert isinstance(wait(locks, "f", owner(1), WRITE, told), Waiter)
    assert locks.retry()
    outer.has = False
    assert not locks.retry()
    assert told == [owner(1)]
    outer.told.clear()
    locks.release("f", owner(1))
    assert outer.told == ["give", "forget"]
