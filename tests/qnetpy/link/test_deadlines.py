from random import Random

from qnetpy.link.deadlines import Deadlines


def test_the_bound_is_never_late_and_moves_on_when_something_was_due() -> None:
    """What was put off is told early, and only once; what is not wanted any more is not told."""
    deadlines: Deadlines[str] = Deadlines()
    assert deadlines.bound() is None
    deadlines.set("a", 1.0)
    deadlines.set("b", 5.0)
    deadlines.set("a", 3.0)
    assert (deadlines.bound(), deadlines.first()) == (1.0, 3.0)
    deadlines.set("a", 4.0)
    assert deadlines.due(2.0) == []
    assert deadlines.bound() == 4.0
    deadlines.discard("a")
    assert deadlines.bound() == 5.0
    deadlines.discard("b")
    assert deadlines.bound() is None


def test_earliest_first_and_only_what_is_due() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("late", 3.0)
    deadlines.set("soon", 1.0)
    deadlines.set("then", 2.0)

    assert deadlines.first() == 1.0
    assert deadlines.due(2.0) == ["soon", "then"]
    assert deadlines.due(2.5) == []
    assert deadlines.first() == 3.0


def test_moved_to_later_and_to_sooner() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.set("a", 5.0)
    assert deadlines.first() == 5.0
    assert deadlines.due(4.0) == []

    deadlines.set("a", 2.0)
    assert deadlines.first() == 2.0
    assert deadlines.due(9.0) == ["a"]
    assert deadlines.first() is None


def test_discarded_is_gone() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.set("b", 2.0)
    deadlines.discard("a")
    deadlines.discard("never there")
    assert deadlines.first() == 2.0
    assert "a" not in deadlines
    deadlines.clear()
    assert len(deadlines) == 0
    assert deadlines.first() is None


def test_does_what_a_plain_dict_does() -> None:
    for seed in range(200):
        random = Random(seed)
        deadlines: Deadlines[int] = Deadlines()
        plain: dict[int, float] = {}
        now = 0.0
        for _ in range(200):
            key = random.randrange(8)
            action = random.random()
            if action < 0.6:
                plain[key] = now + random.choice([0.0, 0.005, 0.3, 1.0])
                deadlines.set(key, plain[key])
            elif action < 0.7:
                plain.pop(key, None)
                deadlines.discard(key)
            else:
                now += random.choice([0.0, 0.004, 0.2])
                due = sorted(key for key, when in plain.items() if when <= now)
                assert sorted(deadlines.due(now)) == due, f"seed {seed}"
                for key in due:
                    del plain[key]
            assert deadlines.first() == min(plain.values(), default=None), f"seed {seed}"
            assert len(deadlines) == len(plain)


def test_moving_to_later_for_ever_takes_no_memory() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for turn in range(10_000):
        deadlines.set("link", turn + 300.0)
        deadlines.first()
    assert len(deadlines._heap) <= 2
