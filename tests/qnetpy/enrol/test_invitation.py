"""Who may try a code and how often: three wrong tries, pauses, budgets, uses, time."""

from __future__ import annotations

import random

import pytest

from qnetpy.enrol.code import Code, make_code
from qnetpy.enrol.invitation import (
    HELLO_BURST,
    INVITATIONS_MAX,
    SOURCES_MAX,
    WRONG_PAUSE,
    WRONG_PER_SOURCE,
    WRONG_PERIOD,
    WRONG_TOTAL,
    Invitation,
    Invitations,
    State,
    group,
)
from qnetpy.enrol.wire import Refusal, Refused

KEY = bytes(32)


def invitation(public: str = "abc", uses: int = 1, expires: float = 600.0) -> Invitation:
    return Invitation(make_code(random.Random(public).randbytes, public), "", frozenset(), uses, expires, 86400.0)


@pytest.fixture
def table() -> Invitations:
    table = Invitations()
    assert table.add(invitation(), 0.0)
    return table


def test_a_code_that_is_not_known_or_over_costs_nobody_a_try(table: Invitations) -> None:
    assert table.begin("xyz", "a", 0.0) == Refused(Refusal.UNKNOWN, 0)
    found = table.begin("abc", "a", 1.0)
    assert isinstance(found, Invitation)
    assert found.left == 3
    assert table.begin("abc", "a", 600.0) == Refused(Refusal.UNKNOWN, 0)
    assert not table.all()


def test_the_third_wrong_try_kills_and_the_right_code_hears_why(table: Invitations) -> None:
    found = table.get("abc")
    assert found is not None
    assert table.wrong(found, "a", 0.0) == Refused(Refusal.WRONG, 2)
    assert table.wrong(found, "b", 0.0) == Refused(Refusal.WRONG, 1)
    assert table.right(found) is None
    assert table.wrong(found, "c", 0.0) == Refused(Refusal.KILLED, 0)
    assert found.state is State.KILLED
    assert found.wrong == ["a", "b", "c"]
    assert table.right(found) == Refused(Refusal.KILLED, 0), "an exchange that had begun before"
    assert table.begin("abc", "honest", 100.0) == Refused(Refusal.KILLED, 0)
    assert not table.use(found, KEY, "n2")


def test_a_source_that_was_wrong_waits_and_after_some_is_not_answered(table: Invitations) -> None:
    found = table.get("abc")
    assert found is not None
    table.wrong(found, "a", 10.0)
    assert table.begin("abc", "a", 10.0 + WRONG_PAUSE - 0.01) == Refused(Refusal.BUSY, 0)
    assert table.begin("abc", "b", 10.0) is found, "others do not wait for it"
    assert table.begin("abc", "a", 10.0 + WRONG_PAUSE) is found
    for count in range(WRONG_PER_SOURCE - 1):
        table.wrong(found, "a", 20.0 + count)
    assert table.begin("abc", "a", 100.0) == Refused(Refusal.BUSY, 0)
    assert table.counters["wrong_source"] == 2


def test_more_invitations_or_addresses_are_no_more_guesses() -> None:
    table = Invitations()
    for number in range(20):
        table.add(invitation(f"{number:03}", expires=1e6), 0.0)
    for number in range(WRONG_TOTAL):
        one = table.get(f"{number % 20:03}")
        assert one is not None
        table.wrong(one, f"10.0.{number}.1", float(number))
    assert table.begin("019", "10.9.9.9", 100.0) == Refused(Refusal.BUSY, 0)
    assert table.counters["wrong_total"] == 1
    assert isinstance(table.begin("019", "10.9.9.9", WRONG_PERIOD + WRONG_TOTAL), Invitation)


def test_a_flood_of_beginnings_is_bounded_and_kills_nothing(table: Invitations) -> None:
    answered = sum(isinstance(table.begin("abc", f"10.0.{n % 256}.{n // 256}", n / 1000), Invitation) for n in range(5000))
    assert answered <= HELLO_BURST + 5 * 5
    one = Invitations()
    one.add(invitation(), 0.0)
    assert sum(isinstance(one.begin("abc", "a", 0.0), Invitation) for _ in range(100)) == 6
    assert isinstance(one.begin("abc", "b", 0.0), Invitation), "somebody else still gets in"
    found = table.get("abc")
    assert found is not None
    assert (found.state, found.left) == (State.OPEN, 3)


def test_beginnings_with_unknown_public_parts_do_not_keep_others_from_joining(table: Invitations) -> None:
    for number in range(1000):
        table.begin("xyz", f"10.0.{number % 256}.{number // 256}", 0.0)
    assert table.counters["unknown_code"] == 1000
    assert isinstance(table.begin("abc", "10.1.1.1", 0.0), Invitation), "the budget of all was used up"
    found = table.get("abc")
    assert found is not None
    found.state = State.KILLED
    for number in range(20):
        assert table.begin("abc", f"10.2.0.{number}", 0.0) == Refused(Refusal.KILLED, 0)


def test_addresses_of_one_machine_are_one_source(table: Invitations) -> None:
    assert sum(isinstance(table.begin("abc", f"2001:db8::{number:x}", 0.0), Invitation) for number in range(100)) == 6
    assert table.counters["rate_source"] == 94
    assert isinstance(table.begin("abc", "2001:db8:0:1::1", 0.0), Invitation)
    assert group("2001:db8::1") == group("2001:db8::ffff:1") != group("2001:db8:0:1::1")
    assert group("fe80::1%eth0") != group("fe80::2%eth0") != group("fe80::2%eth1")
    assert group("10.0.0.1") != group("10.0.0.2")


def test_sources_are_forgotten_before_they_fill_memory(table: Invitations) -> None:
    for number in range(3 * SOURCES_MAX):
        table.begin("abc", str(number), float(number))
    assert len(table._sources) == SOURCES_MAX


def test_a_use_is_for_a_key_that_may_come_again(table: Invitations) -> None:
    found = table.get("abc")
    assert found is not None
    assert table.use(found, KEY, "n2")
    assert found.state is State.USED
    assert table.use(found, KEY, "n2")
    assert not table.use(found, KEY, "n3")
    assert not table.use(found, bytes(31) + b"\1", "n3")
    assert table.begin("abc", "a", 1.0) is found, "whoever has the code hears more only after the exchange"


def test_several_uses() -> None:
    table = Invitations()
    one = invitation(uses=3)
    table.add(one, 0.0)
    assert [table.use(one, bytes((number,)) * 32, f"n{number}") for number in range(4)] == [True, True, True, False]


def test_places_are_bounded_and_public_parts_unique() -> None:
    table = Invitations()
    assert table.add(invitation("000"), 0.0)
    assert not table.add(invitation("000"), 0.0)
    for number in range(1, INVITATIONS_MAX):
        assert table.add(invitation(f"{number:03}"), 0.0)
    assert not table.add(invitation("zzz"), 0.0)
    assert table.add(invitation("zzz"), 600.0), "when their time is over"


def test_the_end_of_its_time_and_by_hand(table: Invitations) -> None:
    assert table.cancel("abc")
    assert not table.cancel("abc")
    assert table.begin("abc", "a", 0.0) == Refused(Refusal.UNKNOWN, 0)
    table.add(invitation("def", expires=5.0), 0.0)
    assert table.next_timeout() == 5.0
    (over,) = table.expire(5.0)
    assert over.state is State.EXPIRED


def test_a_code_is_not_in_a_representation() -> None:
    assert "qqqqq" not in repr(Invitation(Code("abcqqqqq0"), "", frozenset(), 1, 0.0, 0.0))
