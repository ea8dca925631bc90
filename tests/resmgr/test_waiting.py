"""What waits at a channel: in which order it is received, how many pulses of a client there may be."""

from __future__ import annotations

import random

import attrs
import pytest

from resmgr.ids import PULSE_DISCONNECT
from resmgr.waiting import PULSES_MAX, Waiting


@attrs.frozen
class Who:
    scoid: int


@attrs.frozen
class Message:
    text: str
    priority: int
    info: Who


@attrs.frozen
class Pulse:
    code: int
    priority: int
    info: Who


def test_highest_priority_first_and_then_as_they_came() -> None:
    generator = random.Random(5)
    waiting: Waiting[Message, Pulse] = Waiting()
    items: list[Message | Pulse] = []
    for number in range(300):
        if generator.random() < 0.5:
            message = Message(str(number), generator.randrange(64), Who(1))
            waiting.add(message)
            items.append(message)
        else:
            pulse = Pulse(number % 128, generator.randrange(64), Who(2))
            waiting.add_pulse(pulse)
            items.append(pulse)
    assert [waiting.take() for _ in range(len(waiting))] == sorted(items, key=lambda item: -item.priority)
    with pytest.raises(IndexError):
        waiting.take()


def test_a_client_that_pulses_without_end_takes_no_memory_and_no_place_of_others() -> None:
    waiting: Waiting[Message, Pulse] = Waiting()
    for _ in range(PULSES_MAX + 10):
        waiting.add_pulse(Pulse(1, 10, Who(1)))
    assert (len(waiting), waiting.dropped) == (PULSES_MAX, 10)
    waiting.add_pulse(Pulse(1, 10, Who(2)))
    waiting.add_pulse(Pulse(PULSE_DISCONNECT, 10, Who(1)))
    assert len(waiting) == PULSES_MAX + 2
    while len(waiting):
        waiting.take()
    waiting.add_pulse(Pulse(1, 10, Who(1)))
    assert len(waiting) == 1


def test_the_end_of_a_connection_comes_behind_its_pulses() -> None:
    waiting: Waiting[Message, Pulse] = Waiting()
    low, other, end = Pulse(1, 3, Who(1)), Pulse(2, 5, Who(2)), Pulse(PULSE_DISCONNECT, 10, Who(1))
    for pulse in (low, other, end):
        waiting.add_pulse(pulse)
    assert [waiting.take() for _ in range(3)] == [other, low, end]
    alone = Pulse(PULSE_DISCONNECT, 10, Who(1))
    waiting.add_pulse(other)
    waiting.add_pulse(alone)
    assert [waiting.take() for _ in range(2)] == [alone, other]
