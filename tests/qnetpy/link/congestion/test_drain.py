"""Whose queue is it? The default controller drains what is its own and leaves what is not; by a model of the path and on a virtual wire."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from qnetpy.link.congestion import AckSample, create
from qnetpy.link.congestion.drain import DRAIN_PAUSE
from qnetpy.link.congestion.tolerant import SLACK, Tolerant
from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.events import MessageReceived
from qnetpy.link.transport.testing import Faults, Pair

MSS = 1400
LEAST = 0.0001
"""Round trip without a queue."""
RATE = 25e6


class Model:
    """A controller at work on a path that has, for a window, a round trip and a rate. There is always something to send."""

    def __init__(self, path: Callable[[int], tuple[float, float]], window: int) -> None:
        controller = create("tolerant", MSS, 16 << 20)
        assert isinstance(controller, Tolerant)
        self.controller = controller
        controller.window = controller.threshold = window
        self.path = path
        self.now = 1.0
        self.delivered = 0.0

    def run(self, seconds: float) -> float:
        """Rounds until then; bytes per second."""
        begin, before = self.now, self.delivered
        while self.now < begin + seconds:
            window = self.controller.window
            trip, rate = self.path(window)
            self.now += trip
            acked = rate * trip
            self.delivered += acked
            self.controller.on_ack(AckSample(self.now, int(acked), self.now - trip, window, True, True, rate, trip, trip, LEAST))
        return (self.delivered - before) / (self.now - begin)


def wire(window: int) -> tuple[float, float]:
    """Of RATE with an endless queue, filled by nobody else."""
    return max(LEAST, window / RATE), min(RATE, window / LEAST)


def test_a_queue_that_slow_start_left_is_drained_and_nothing_is_lost_by_it() -> None:
    model = Model(wire, 250_000)
    rate = model.run(2.0)

    assert model.controller.drains >= 1
    assert model.controller.drains_undone == 0
    assert model.controller.window / RATE < 1.3 * (LEAST + SLACK)
    assert rate > 0.99 * RATE


def test_a_queue_of_somebody_else_costs_no_window() -> None:
    """He keeps 10 ms in it, whatever we do; what we get is our share of what is in it."""
    model = Model(lambda window: (0.010, RATE * window / (window + 250_000)), 250_000)
    model.run(DRAIN_PAUSE * 0.9)

    assert model.controller.drains_undone == 1
    assert model.controller.window >= 250_000
    before = model.controller.window
    model.run(60.0)
    assert model.controller.window >= before
    assert model.controller.drains_undone <= 8, "the tries become rare"


def test_a_queue_that_an_end_without_its_own_processor_needs_is_given_back() -> None:
    """The receiver has its turn once in 5 ms and then takes all that is there: the delay falls with the window, and the rate as well."""
    model = Model(lambda window: (0.005 if window > 100_000 else 0.0005, window / 0.005), 250_000)
    rate = model.run(DRAIN_PAUSE * 0.9)

    assert model.controller.drains_undone == 1
    assert model.controller.window >= 250_000
    assert rate > 0.85 * 250_000 / 0.005


def test_pauses_of_the_program_prove_nothing() -> None:
    model = Model(wire, 250_000)
    model.run(0.08)
    assert model.controller.drains >= 1
    ack = AckSample(model.now + 0.2, MSS, model.now, MSS, False, True, 1e5, LEAST, LEAST, LEAST)
    model.controller.on_ack(ack)
    assert model.controller.drains_undone == 0
    assert model.controller.window < 250_000


@pytest.mark.parametrize("paths", [1, 2])
def test_small_messages_beside_a_transfer_over_a_slow_link_with_a_deep_queue(paths: int) -> None:
    """64 bytes each 0.7 ms beside 4 MiB under way, over 25 MB/s a path with a queue of 10 ms: where slow start fills it."""
    pair = Pair(TransportConfig())
    for path in range(paths):
        pair.join(path, (Faults(rate=RATE), Faults(rate=RATE)), Random(path), 1468)
    pair.run(0.2, lambda: False)
    sent: dict[int, float] = {}
    times: list[float] = []
    moved = 0

    def arrived(end: int, event: MessageReceived, now: float) -> None:
        nonlocal moved
        if len(event.data) == 64:
            times.append(now - sent.pop(event.stream))
        else:
            moved += len(event.data)
            pair.send(0, 1, bytes(1 << 20))

    def small() -> None:
        stream = 1000 + len(sent) + len(times)
        sent[stream] = pair.now
        pair.send(0, stream, bytes(64))
        if pair.now < end:
            pair.at(pair.now + 0.0007, small)

    pair.on_message = arrived
    for _ in range(4):
        pair.send(0, 1, bytes(1 << 20))
    pair.run(0.5, lambda: False)
    moved, began, end = 0, pair.now, pair.now + 1.0
    small()
    pair.run(end, lambda: False)
    times.sort()
    assert len(times) > 1000
    assert times[len(times) * 99 // 100] < 0.002
    assert moved / (pair.now - began) > 0.85 * RATE * paths


def test_a_path_that_becomes_longer_is_filled_again() -> None:
    """As when a network finds another way: all delay is new, and none of it ours."""
    pair = Pair(TransportConfig())
    pair.join(0, (Faults(rate=RATE), Faults(rate=RATE)), Random(1), 1468)
    pair.run(0.2, lambda: False)
    moved = 0

    def arrived(end: int, event: MessageReceived, now: float) -> None:
        nonlocal moved
        moved += len(event.data)
        pair.send(0, 1, bytes(1 << 20))

    pair.on_message = arrived
    for _ in range(4):
        pair.send(0, 1, bytes(1 << 20))
    pair.run(0.5, lambda: False)
    for end in (0, 1):
        pair.wires[0, end].faults.delay = 0.003
    pair.run(1.5, lambda: False)
    moved, began = 0, pair.now
    pair.run(pair.now + 1.0, lambda: False)
    assert moved / (pair.now - began) > 0.8 * RATE
