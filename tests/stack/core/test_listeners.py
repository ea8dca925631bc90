"""Listeners: who is told, as whom, and what one that fails or leaves does to the others."""

from __future__ import annotations

from stack.core.isolation import Guard, Guards
from stack.core.listeners import Listeners


def test_they_are_told_in_order_until_they_end() -> None:
    told: list[str] = []
    listeners: Listeners[str] = Listeners(Guards("n", None), "listener")
    end = listeners.add(lambda news: told.append(f"a {news}"))
    listeners.add(lambda news: told.append(f"b {news}"))
    listeners.tell("x")
    end()
    end()
    listeners.tell("y")
    assert told == ["a x", "b x", "b y"]


def test_each_is_called_as_its_modules_and_one_that_fails_hides_nothing() -> None:
    guards = Guards("n", None)
    guard = Guard("module", guards)
    seen: list[Guard | None] = []
    listeners: Listeners[()] = Listeners(guards, "listener")

    def fail() -> None:
        seen.append(guards.current)
        raise ValueError

    listeners.add(fail)
    guards.current = guard
    listeners.add(fail)
    listeners.tell()
    assert guards.current is guard
    assert seen == [None, guard]
    assert (dict(guards.failures), dict(guard.failures)) == ({"listener": 1}, {"listener": 1})


def test_who_comes_or_goes_meanwhile_does_so_from_the_next_time_on() -> None:
    told: list[str] = []
    listeners: Listeners[()] = Listeners(Guards("n", None), "listener")

    def first() -> None:
        told.append("first")
        end()
        listeners.add(lambda: told.append("late"))

    listeners.add(first)
    end = listeners.add(lambda: told.append("second"))
    listeners.tell()
    assert told == ["first", "second"]
    listeners.tell()
    assert told == ["first", "second", "first", "late"]
