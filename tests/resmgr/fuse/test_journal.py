"""What the checker of histories calls possible (tests/suites/journal.py)."""

from __future__ import annotations

from tests.suites.journal import ALWAYS, NEVER, Journal, Look, age

BOUND = 0.05


def test_what_was_replaced_before_the_bound_is_not_seen_any_more() -> None:
    journal = Journal()
    journal.named(b"n", ALWAYS, ALWAYS, None)
    journal.named(b"n", 1.0, 1.1, 7)
    journal.named(b"n", 2.0, 2.1, 8)
    assert journal.objects(b"n", Look(0.0, 0.9)) == {None}
    assert journal.objects(b"n", Look(0.0, 1.0)) == {None, 7}
    assert journal.objects(b"n", Look(1.2, 1.3)) == {7}
    assert journal.objects(b"n", Look(1.2, 2.0)) == {7, 8}
    assert journal.objects(b"n", Look(2.15, 2.2)) == {8}
    assert journal.objects(b"n", Look(2.12, 2.2, BOUND)) == {7, 8}
    assert age(lambda look: 7 in journal.objects(b"n", look), Look(2.12, 2.2), 1.0) < 0.021
    assert age(lambda look: None in journal.objects(b"n", look), Look(2.12, 2.2), 1.0) == NEVER


def test_who_made_a_change_sees_it_at_once() -> None:
    journal = Journal()
    journal.named(b"n", ALWAYS, ALWAYS, 1)
    journal.named(b"n", 1.0, 1.01, 2, by="a")
    assert journal.objects(b"n", Look(1.02, 1.03, BOUND, "b")) == {1, 2}
    assert journal.objects(b"n", Look(1.02, 1.03, BOUND, "a")) == {2}


def test_of_two_at_once_either_is_the_last() -> None:
    journal = Journal()
    journal.named(b"n", ALWAYS, ALWAYS, None)
    journal.named(b"n", 1.0, 1.3, 1)
    journal.named(b"n", 1.1, 1.2, 2)
    assert journal.objects(b"n", Look(2.0, 2.1)) == {1, 2}


def test_a_name_that_was_moved_leads_where_the_old_one_led_in_that_moment() -> None:
    journal = Journal()
    for name in (b"n", b"m"):
        journal.named(name, ALWAYS, ALWAYS, None)
    journal.named(b"n", 1.0, 1.1, 1)
    journal.named(b"n", 2.0, 2.1, 2)
    journal.named(b"m", 3.0, 3.1, None, source=b"n")
    journal.named(b"n", 3.0, 3.1, None)
    journal.named(b"n", 4.0, 4.1, 3)
    assert journal.objects(b"m", Look(5.0, 5.1)) == {2}
    assert journal.there(b"m", Look(3.05, 3.06)) == {True, False}
    # To each other's names at once: no end of it.
    journal.named(b"n", 6.0, 6.1, None, source=b"m")
    journal.named(b"m", 6.0, 6.1, None, source=b"n")
    assert journal.objects(b"n", Look(7.0, 7.1)) <= {2, 3}


def test_what_an_error_was_told_of_may_have_been_done_or_not() -> None:
    journal = Journal()
    journal.held(1, ALWAYS, ALWAYS, b"old")
    journal.held(1, 1.0, NEVER, b"perhaps")
    assert journal.contents((1,), Look(9.0, 9.1)) == [b"perhaps", b"old"]
    journal.held(1, 10.0, 10.1, b"new")
    assert set(journal.contents((1,), Look(11.0, 11.1))) == {b"perhaps", b"new"}


def test_many_moves_of_which_nobody_knows_whether_they_were_done_are_looked_at_once() -> None:
    journal = Journal()
    names = [b"n%d" % number for number in range(4)]
    for name in names:
        journal.named(name, ALWAYS, ALWAYS, None)
    journal.named(names[0], 0.0, 0.1, 7)
    for number in range(200):
        old, new = names[number % 4], names[(number * 7 + 1) % 4]
        journal.named(old, 1.0 + number, NEVER, None)
        journal.named(new, 1.0 + number, NEVER, None, source=old)
    assert journal.objects(names[0], Look(500.0, 501.0)) == {None, 7}


def test_contents_are_as_of_the_open_and_sizes_as_old_as_names() -> None:
    journal = Journal()
    journal.named(b"n", ALWAYS, ALWAYS, 1)
    journal.held(1, ALWAYS, ALWAYS, b"old")
    journal.held(1, 1.0, 1.01, b"newer")
    look = Look(1.02, 1.03, BOUND)
    assert journal.texts(b"n", look) == [b"newer"]
    assert journal.sizes(b"n", look) == {3, 5}
    journal.named(b"n", 2.0, 2.01, 2)
    journal.held(2, ALWAYS, ALWAYS, b"of another")
    look = Look(2.02, 2.03, BOUND)
    assert journal.texts(b"n", look) == [b"of another"]
    assert set(journal.texts(b"n", look, believed=True)) == {b"newer", b"of another"}
