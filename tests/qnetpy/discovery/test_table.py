"""The table of hints: what stands, what lapses, and what a flood can do."""

from __future__ import annotations

import random

import attrs

from qnetpy.discovery.hint import Hint
from qnetpy.discovery.table import HINTS_MAX, HINTS_PER_MAC_MAX, TELL_BURST, TELL_RATE, Drop, HintTable

OWN = bytes(16)


def hint(number: int, *, interface: str = "eth0", mac: int | None = None, expiry: float = 100.0) -> Hint:
    return Hint(
        interface, (0x020000000000 + (number if mac is None else mac)).to_bytes(6, "big"), 0x88B5, number.to_bytes(16, "big"), expiry
    )


def test_a_hint_is_told_once_and_stands_until_it_lapses() -> None:
    table = HintTable(OWN, 0.0)
    table.heard(hint(1))
    assert table.poll(0.0) == ([hint(1)], [])
    table.heard(hint(1, expiry=200.0))
    assert table.poll(1.0) == ([], [])
    assert table.next_timeout() == 200.0
    assert table.poll(199.0) == ([], [])
    assert table.poll(200.0) == ([], [hint(1, expiry=200.0)])
    assert table.next_timeout() is None


def test_a_changed_hint_is_told_again() -> None:
    table = HintTable(OWN, 0.0)
    table.heard(hint(1))
    table.poll(0.0)
    changed = attrs.evolve(hint(1), addresses=("10.0.0.1",))
    table.heard(changed)
    assert table.poll(0.0) == ([changed], [])
    moved = hint(1, mac=7)
    table.heard(moved)
    assert table.poll(0.0) == ([moved], [])
    assert table.standing() == [moved]


def test_goodbye_and_a_lost_interface_are_told() -> None:
    table = HintTable(OWN, 0.0)
    for number, interface in ((1, "eth0"), (2, "eth0"), (3, "eth1")):
        table.heard(hint(number, interface=interface))
    table.poll(0.0)
    table.gone("eth0", hint(1).token)
    table.gone("eth0", hint(1).token)
    table.gone("eth1", hint(2).token)
    assert table.poll(0.0) == ([], [hint(1)])
    table.interface_gone("eth0")
    assert table.next_timeout() is not None
    assert table.poll(0.0) == ([], [hint(2)])
    assert table.standing() == [hint(3, interface="eth1")]


def test_what_was_never_told_is_never_told_gone() -> None:
    table = HintTable(OWN, 0.0)
    table.heard(hint(1))
    table.gone("eth0", hint(1).token)
    assert table.poll(0.0) == ([], [])


def test_hearing_oneself_is_no_hint() -> None:
    table = HintTable(hint(5).token, 0.0)
    table.heard(hint(5))
    assert table.poll(0.0) == ([], [])
    assert table.drops[Drop.OWN] == 1


def test_a_restarted_node_pushes_out_its_own_old_tokens() -> None:
    table = HintTable(OWN, 0.0)
    told, gone = [], []
    for boot in range(1, HINTS_PER_MAC_MAX + 2):
        table.heard(hint(boot, mac=1))
        fresh, lost = table.poll(0.0)
        told += fresh
        gone += lost
    assert told == [hint(boot, mac=1) for boot in range(1, HINTS_PER_MAC_MAX + 2)]
    assert gone == [hint(1, mac=1)]
    assert table.drops[Drop.CROWDED_MAC] == 1


def test_a_flood_is_told_at_a_bounded_rate_and_does_not_grow_the_table() -> None:
    table = HintTable(OWN, 0.0)
    told = 0
    for number in range(1, 5 * HINTS_MAX):
        table.heard(hint(number, expiry=1000.0))
        told += len(table.poll(0.0)[0])
    assert told == TELL_BURST
    assert len(table) == HINTS_MAX
    assert table.drops[Drop.TABLE_FULL] == 5 * HINTS_MAX - 1 - HINTS_MAX
    due = table.next_timeout()
    assert due is not None
    assert abs(due - 1 / TELL_RATE) < 1e-9
    assert len(table.poll(due)[0]) == 1


def test_a_flood_takes_no_hint_that_was_told() -> None:
    table = HintTable(OWN, 0.0)
    table.heard(hint(999_999, expiry=1000.0))
    table.poll(0.0)
    for number in range(1, 5 * HINTS_MAX):
        table.heard(hint(number, expiry=1000.0))
    assert hint(999_999, expiry=1000.0) in table.standing()
    assert table.poll(0.0)[1] == []


def test_every_told_hint_is_told_gone_once() -> None:
    for seed in range(30):
        rng = random.Random(seed)
        table = HintTable(OWN, 0.0)
        now, told = 0.0, set[tuple[str, bytes]]()
        for _ in range(400):
            now += rng.random()
            number, interface = rng.randint(1, 30), rng.choice(("a", "b"))
            match rng.randrange(5):
                case 0:
                    table.gone(interface, hint(number).token)
                case 1 if rng.random() < 0.1:
                    table.interface_gone(interface)
                case _:
                    table.heard(hint(number, interface=interface, mac=rng.randint(1, 6), expiry=now + rng.randint(1, 40)))
            fresh, gone = table.poll(now)
            for lost in gone:
                told.remove((lost.interface, lost.token))
            told.update((new.interface, new.token) for new in fresh)
            assert {(standing.interface, standing.token) for standing in table.standing()} == told, f"seed {seed}"
        table.poll(now + 1000.0)
        assert len(table) == 0, f"seed {seed}"
        assert not table._by_mac, f"seed {seed}"
