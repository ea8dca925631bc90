"""Frames held back, beside a plain list of them."""

from __future__ import annotations

import random

from stack.drivers.wrap.heldback import SPARE, HeldBack


def test_as_a_plain_list_would_do_it() -> None:
    rng = random.Random(5)
    held, plain = HeldBack(), list[tuple[bytes, int, float]]()
    place, now = 0, 0.0
    for number in range(5000):
        match rng.randrange(4):
            case 0 | 1:
                one = (number.to_bytes(2, "big"), place + rng.randrange(1, 9), now + rng.choice((0.1, 1.0, 50.0)))
                held.add(*one)
                plain.append(one)
            case 2:
                place += rng.randrange(2)
                assert held.passed(place) == [frame for frame, behind, _ in plain if behind <= place]
                plain = [one for one in plain if one[1] > place]
            case _:
                now += rng.random() * 0.2
                assert held.expired(now) == [frame for frame, _, latest in plain if latest <= now]
                plain = [one for one in plain if one[2] > now]
        assert len(held) == len(plain)
        assert held.next_time() == min((latest for _, _, latest in plain), default=None)
    held.clear()
    assert (len(held), held.next_time(), held.passed(place + 99)) == (0, None, [])


def test_what_is_gone_does_not_pile_up() -> None:
    """Frames that all leave by one of the two ways stay behind in the other one's heap for a while only."""
    held = HeldBack()
    for number in range(10_000):
        held.add(b"x", number + 1, 1e9)
        assert held.passed(number + 1) == [b"x"]
    for number in range(10_000):
        held.add(b"x", 1 << 40, float(number))
        assert held.expired(float(number)) == [b"x"]
    assert max(len(held._places), len(held._times)) <= SPARE + 1
