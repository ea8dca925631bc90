"""Each controller by its formulas, fed with samples by hand."""

from __future__ import annotations

import pytest

from qnetpy.link.congestion import CONTROLLERS, AckSample, Controller, create
from qnetpy.link.congestion.base import CSS_DIVISOR, INITIAL_PACKETS, MIN_PACKETS
from qnetpy.link.congestion.cubic import ALPHA, BETA, C, Cubic
from qnetpy.link.congestion.tolerant import CEILING, LEAST_SLACK, SAMPLE_PACKETS, SAMPLES, SLACK, Tolerant

MSS = 1000
RTT = 0.1
EVERY = pytest.mark.parametrize("name", list(CONTROLLERS))


def sample(controller: Controller, now: float, rtt: float = RTT, *, acked: int | None = None, rate: float = 0.0) -> AckSample:
    """A whole window is acknowledged, which was the limit."""
    window = controller.window
    return AckSample(now, window if acked is None else acked, now - rtt, window, True, True, rate, rtt, rtt, RTT)


def avoiding(name: str, packets: int) -> Controller:
    """A controller at *packets* packets, just past a loss at time 0."""
    controller = create(name, MSS, 1 << 30)
    controller.window = packets * MSS
    controller.on_loss(MSS, -0.05, 0.0)
    return controller


@EVERY
def test_slow_start_doubles(name: str) -> None:
    controller = create(name, MSS, 1 << 30)
    assert controller.window == INITIAL_PACKETS * MSS
    for step in range(1, 5):
        controller.on_ack(sample(controller, step * RTT))
        assert controller.window == INITIAL_PACKETS * MSS << step


@EVERY
def test_slow_start_ends_when_round_trips_grow(name: str) -> None:
    controller = create(name, MSS, 1 << 30)
    growth = []
    for step in range(1, 14):
        before = controller.window
        for part in range(4):
            ack = sample(controller, step * RTT, RTT if step < 4 else RTT * 1.2, acked=before // 4)
            ack.new_round = part == 0
            controller.on_ack(ack)
        growth.append(controller.window / before)
    assert growth[:3] == pytest.approx([2.0] * 3)
    assert growth[4:6] == pytest.approx([1 + 1 / CSS_DIVISOR] * 2, rel=0.01)
    assert max(growth[6:]) < 1.05
    assert controller.threshold <= controller.window


@EVERY
def test_does_not_grow_without_need_or_in_recovery_or_beyond_its_limit(name: str) -> None:
    controller = create(name, MSS, 100 * MSS)
    idle = sample(controller, 1.0, acked=MSS)
    idle.limited = False
    idle.in_flight = 2 * MSS
    before = controller.window
    controller.on_ack(idle)
    assert controller.window == before

    for step in range(20):
        controller.on_ack(sample(controller, step * RTT))
    assert controller.window == 100 * MSS

    controller.on_loss(MSS, 2.0, 2.1)
    before = controller.window
    recovering = sample(controller, 2.15)
    controller.on_ack(recovering)
    assert controller.window == before


@EVERY
def test_one_reduction_for_all_losses_of_a_flight_and_never_below_two_packets(name: str) -> None:
    controller = create(name, MSS, 1 << 30)
    controller.on_loss(MSS, 1.0, 1.1)
    after = controller.window
    controller.on_loss(MSS, 1.05, 1.11)
    assert (controller.window, controller.reductions) == (after, 1)
    for step in range(40):
        controller.on_loss(MSS, 2.0 + step, 2.1 + step)
    assert controller.window == MIN_PACKETS * MSS


@EVERY
def test_spurious_loss_is_undone(name: str) -> None:
    controller = avoiding(name, 100)
    assert controller.window < 100 * MSS
    controller.on_spurious()
    assert controller.window == 100 * MSS
    controller.on_spurious()
    assert controller.undone == 1


@EVERY
def test_persistent_congestion_begins_again(name: str) -> None:
    controller = avoiding(name, 100)
    controller.on_persistent_congestion()
    assert controller.window == MIN_PACKETS * MSS
    controller.on_ack(sample(controller, 1.0))
    assert controller.window == 2 * MIN_PACKETS * MSS


@EVERY
def test_larger_packets_keep_the_minimum(name: str) -> None:
    controller = avoiding(name, 4)
    controller.set_mss(9000)
    assert controller.window >= MIN_PACKETS * 9000


def test_newreno_halves_and_adds_one_packet_per_round_trip() -> None:
    controller = avoiding("newreno", 100)
    assert controller.window == 50 * MSS
    for step in range(1, 6):
        controller.on_ack(sample(controller, step * RTT + 0.1))
        assert controller.window == (50 + step) * MSS


def test_cubic_curve_meets_its_formula() -> None:
    controller = avoiding("cubic", 1000)
    assert controller.window == int(1000 * MSS * BETA)
    k = ((1000 - 700) / C) ** (1 / 3)
    now = 0.2
    epoch = now
    while now < epoch + 2 * k:
        controller.on_ack(sample(controller, now))
        expected = 1000 + C * (now - epoch + RTT - k) ** 3
        if now > epoch + 1 and abs(now - epoch - k) > 0.5:
            assert controller.window / MSS == pytest.approx(expected, rel=0.02)
        now += RTT


def test_cubic_is_friendly_to_reno_on_short_round_trips() -> None:
    controller = avoiding("cubic", 100)
    for step in range(1, 41):
        controller.on_ack(sample(controller, 0.1 + step * 1e-4, 1e-4))
    assert controller.window / MSS == pytest.approx(70 + 40 * ALPHA, abs=1)


def test_cubic_fast_convergence() -> None:
    controller = avoiding("cubic", 1000)
    assert isinstance(controller, Cubic)
    controller.on_loss(MSS, 1.0, 1.1)
    assert controller._w_max == pytest.approx(700 * (1 + BETA) / 2)


def test_tolerant_does_not_fall_below_what_was_delivered() -> None:
    controller = create("tolerant", MSS, 1 << 30)
    assert isinstance(controller, Tolerant)
    rate = 100e6
    controller.window = 12_000_000
    controller.threshold = controller.window
    controller.on_ack(sample(controller, 1.0, rate=rate))
    for step in range(5):
        controller.on_loss(MSS, 2.0 + step, 2.1 + step)
    assert controller.window == pytest.approx(rate * (RTT + LEAST_SLACK), rel=0.01)


def sampled(controller: Tolerant, share: float, now: float) -> None:
    """One sample of packets, of which *share* was lost."""
    lost = int(SAMPLE_PACKETS * MSS * share)
    ack = sample(controller, now + RTT, acked=SAMPLE_PACKETS * MSS - lost, rate=10e6)
    if lost:
        controller.on_loss(lost, now, now + RTT / 2)
    controller.on_ack(ack)


def tolerant() -> Tolerant:
    controller = create("tolerant", MSS, 1 << 30)
    assert isinstance(controller, Tolerant)
    controller.on_ack(sample(controller, 0.0, acked=MSS, rate=10e6))
    return controller


def test_tolerant_gives_slack_to_loss_that_stays() -> None:
    controller = tolerant()
    floors = []
    for step in range(100):
        sampled(controller, 0.06, 1.0 + step)
        floors.append(controller.floor())

    assert max(floors[: SAMPLES - 1]) < 10e6 * (RTT + LEAST_SLACK) * 1.07
    assert floors[20:] == pytest.approx([10e6 * (RTT + SLACK) / (1 - 0.06)] * 80, rel=0.005)

    for step in range(100, 110):
        sampled(controller, 0.0, 1.0 + step)
    assert controller.floor() <= 10e6 * (RTT + LEAST_SLACK) * 1.01, "no loss, no slack"


def test_tolerant_takes_slack_back_when_it_makes_the_loss() -> None:
    controller = tolerant()
    with_slack = 0
    for step in range(400):
        slack = controller._slack > LEAST_SLACK
        with_slack += slack
        sampled(controller, 0.3 if slack else 0.05, 1.0 + step)

    assert 2 <= with_slack <= 40, "tried again, but rarely"


def test_tolerant_without_floor_when_most_is_lost_whatever_it_does() -> None:
    controller = tolerant()
    for step in range(10):
        sampled(controller, CEILING + 0.1, 1.0 + step)
    assert controller.floor() == 0

    for step in range(10, 20):
        sampled(controller, 0.0, 1.0 + step)
    assert controller.floor() >= 10e6 * RTT


def test_tolerant_stops_growing_at_its_delay_budget() -> None:
    controller = avoiding("tolerant", 100)
    for step in range(1, 10):
        controller.on_ack(sample(controller, step * 0.2, RTT * 1.5))
    standing = controller.window
    for step in range(10, 20):
        controller.on_ack(sample(controller, step * 0.2, RTT * 1.5))
    assert controller.window == standing
    for step in range(20, 30):
        controller.on_ack(sample(controller, step * 0.2, RTT))
    assert controller.window > standing


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match="tolerant, cubic, newreno"):
        create("vegas", MSS, 1 << 30)
