"""RTT, acknowledgement of runs, loss detection, probe timeouts: one path driven by hand with virtual times."""

from __future__ import annotations

from random import Random

import pytest

from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.constants import GRANULARITY, LOST_MEMORY, MAX_ACK_DELAY, PACKET_THRESHOLD
from qnetpy.link.transport.events import Event, MtuChanged, PathFound, PathLost
from qnetpy.link.transport.outgoing import Outbox
from qnetpy.link.transport.outmessage import OutMessage
from qnetpy.link.transport.path import Path, Run, take
from qnetpy.link.transport.ranges import RangeSet
from qnetpy.link.transport.rtt import RttEstimator
from resmgr.errors import BadMessage

SIZE = 1200
RTT = 0.01


class Bench:
    """A path, an outbox, and one large message that is cut into runs of packets with 1000 bytes each."""

    def __init__(self, packets: int = 1000, max_payload: int = SIZE) -> None:
        self.outbox = Outbox()
        self.outbox.credit = 1 << 40
        self.events: list[Event] = []
        config = TransportConfig(congestion="newreno")
        self.path = Path(0, max_payload, config, self.outbox, self.events, 0.0, None)
        self.message = OutMessage(self.outbox.plain, 1, 1, [bytes(packets * 1000)])
        self.outbox.push(self.message)
        assert self.outbox.plain.pick() is self.message

    def send(self, now: float, count: int = 1, size: int = SIZE) -> None:
        start = self.message.next
        run = Run(self.path.next_pn, self.path.next_pn + count - 1, size, now)
        run.message = self.message
        run.offset, run.stop, run.step = start, start + 1000 * count, 1000
        self.path.next_pn += count
        self.message.next = run.stop
        self.path.record(run, now)

    def ack(self, now: float, *ranges: tuple[int, int], delay: float = 0.0) -> None:
        self.path.on_ack(delay, list(ranges), now)

    def lost(self) -> list[tuple[int, int]]:
        return list(self.message.lost) if self.message.lost is not None else []


def test_rtt_follows_the_rfc() -> None:
    rtt = RttEstimator(0.05, 0.0)
    rtt.update(0.1, 0.0, 1.0)
    assert (rtt.smoothed, rtt.variation, rtt.minimum) == (0.1, 0.05, 0.1)

    rtt.update(0.2, 0.004, 1.1)
    assert rtt.smoothed == pytest.approx(0.1 * 7 / 8 + 0.196 / 8)
    assert rtt.variation == pytest.approx(0.05 * 3 / 4 + 0.096 / 4)

    rtt.update(0.2, 1.0, 1.2)
    assert rtt.latest == 0.2
    assert rtt.smoothed > 0.11, "no more than MAX_ACK_DELAY is believed"
    assert rtt.pto() == rtt.smoothed + max(4 * rtt.variation, GRANULARITY) + MAX_ACK_DELAY


def test_rtt_minimum_forgets() -> None:
    rtt = RttEstimator(0.05, 0.0)
    rtt.update(0.001, 0.0, 0.0)
    for tick in range(1, 300):
        rtt.update(0.02, 0.0, tick / 10)

    assert rtt.minimum == 0.02


def test_ack_of_everything() -> None:
    bench = Bench()
    bench.send(0.0, 10)
    bench.send(0.001, 10)
    bench.ack(0.011, (0, 19))

    assert not bench.path.runs
    assert bench.path.in_flight == 0
    assert bench.message.got is not None
    assert list(bench.message.got) == [(0, 20_000)]
    assert bench.path.rtt.latest == pytest.approx(0.01)
    assert bench.path.next_timeout() is None


def test_hole_in_a_run_splits_it() -> None:
    bench = Bench()
    bench.send(0.0, 20)
    bench.ack(RTT, (0, 6), (8, 9))

    assert [(run.first, run.last, run.offset, run.stop) for run in bench.path.runs] == [(7, 7, 7000, 8000), (10, 19, 10_000, 20_000)]
    assert bench.path.in_flight == 11 * SIZE
    assert bench.lost() == []


def test_packet_threshold() -> None:
    bench = Bench()
    bench.send(0.0, 20)
    bench.ack(RTT, (0, 6), (8, 7 + PACKET_THRESHOLD - 1))
    assert bench.lost() == []
    bench.ack(RTT, (8, 7 + PACKET_THRESHOLD))

    assert bench.lost() == [(7000, 8000)]
    assert bench.path.packets_lost == 1
    assert bench.path.congestion.reductions == 1


def test_time_threshold() -> None:
    bench = Bench()
    bench.send(0.0, 3)
    bench.ack(RTT, (1, 2))
    when = bench.path.next_timeout()

    assert when == pytest.approx(RTT * 9 / 8)
    assert when is not None
    bench.path.on_timeout(when - 1e-6)
    assert bench.lost() == []
    bench.path.on_timeout(when)
    assert bench.lost() == [(0, 1000)]


def test_one_reduction_per_round_trip() -> None:
    bench = Bench()
    bench.send(0.0, 40)
    bench.ack(RTT, (1, 10), (12, 20))
    bench.ack(RTT + 0.001, (22, 39))
    assert bench.path.packets_lost == 3
    assert bench.path.congestion.reductions == 1

    bench.send(RTT + 0.002, 20)
    bench.ack(2 * RTT + 0.002, (41, 59))
    assert bench.path.congestion.reductions == 2


def test_late_packet_undoes_the_reduction_and_teaches_patience() -> None:
    bench = Bench()
    bench.send(0.0, 20)
    window = bench.path.congestion.window
    bench.ack(RTT, (1, 9))
    assert bench.lost() == [(0, 1000)]
    assert bench.path.congestion.window < window

    bench.ack(RTT + 0.0005, (0, 19))

    assert bench.lost() == []
    assert bench.path.congestion.window >= window
    assert bench.path.packets_late == 1
    assert bench.path.packet_threshold == 20
    bench.send(RTT + 0.001, 20)
    bench.ack(2 * RTT, (21, 30))
    assert bench.lost() == []


def test_reordering_does_not_halve_the_rate_each_time() -> None:
    bench = Bench(100_000)
    random = Random(5)
    now = 0.0
    for _ in range(200):
        first = bench.path.next_pn
        bench.send(now, 20)
        arrived = RangeSet()
        numbers = list(range(first, first + 20))
        late = [number for number in numbers if random.random() < 0.05]
        for step, number in enumerate([number for number in numbers if number not in late]):
            arrived.add(number, number + 1)
            bench.ack(now + RTT + step * 1e-6, *((low, high - 1) for low, high in arrived))
        for number in late:
            arrived.add(number, number + 1)
        bench.ack(now + RTT + 1e-4, *((low, high - 1) for low, high in arrived))
        now += RTT + 1e-3

    controller = bench.path.congestion
    assert controller.reductions - controller.undone <= 2
    assert bench.path.packets_lost < 30


def test_persistent_congestion() -> None:
    bench = Bench()
    bench.send(0.0, 2)
    bench.ack(RTT, (0, 1))
    for tick in range(10):
        bench.send(0.02 + tick * 0.02)
    bench.send(0.3)
    bench.ack(0.31, (12, 12))

    assert bench.path.congestion.window == 2 * SIZE


def test_no_persistent_congestion_when_something_arrived_between() -> None:
    bench = Bench()
    bench.send(0.0, 2)
    bench.ack(RTT, (0, 1))
    for tick in range(10):
        bench.send(0.02 + tick * 0.02)
    bench.send(0.3)
    bench.ack(0.31, (6, 6), (12, 12))

    assert bench.path.congestion.window > 2 * SIZE


def test_probe_timeout_backs_off_to_its_limit_and_tells() -> None:
    bench = Bench()
    bench.send(0.0, 2)
    now, gaps = 0.0, []
    for _ in range(8):
        when = bench.path.next_timeout()
        assert when is not None
        gaps.append(when - now)
        now = when
        bench.path.on_timeout(now)
        assert bench.path.ping_due
        assert bench.path.probes == 1
        assert bench.lost() == [(0, 1000)]

    first = 0.05 + 0.1 + MAX_ACK_DELAY
    assert gaps == pytest.approx([first, 2 * first, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert bench.events == [PathLost(0)]

    bench.ack(now, (0, 1))
    assert bench.events == [PathLost(0), PathFound(0)]
    assert bench.path.pto_count == 0


def test_ack_of_a_packet_never_sent() -> None:
    bench = Bench()
    bench.send(0.0, 2)
    with pytest.raises(BadMessage):
        bench.ack(RTT, (0, 2))


def test_black_hole_needs_small_packets_that_pass() -> None:
    bench = Bench(max_payload=8944)
    path = bench.path
    path.mtu.on_acked(8944, 0.0)
    path._set_payload()
    bench.events.clear()
    for _ in range(8):
        bench.send(0.0, size=8944)
    bench.send(0.0, size=100)
    bench.ack(RTT, (8, 8))

    assert bench.events == [MtuChanged(0, 1200)]
    assert path.payload == path.congestion.mss == 1200


def test_burst_loss_of_large_packets_is_no_black_hole() -> None:
    bench = Bench(max_payload=8944)
    path = bench.path
    path.mtu.on_acked(8944, 0.0)
    path._set_payload()
    bench.events.clear()
    for step in range(20):
        bench.send(step * 1e-5, size=8944)
    bench.ack(RTT, (0, 0), (19, 19))

    assert path.packets_lost == 16
    assert bench.events == []


@pytest.mark.parametrize("seed", range(30))
def test_take_against_a_set(seed: int) -> None:
    random = Random(seed)
    runs: list[Run] = []
    outstanding: set[int] = set()
    pn = 0
    for _ in range(20):
        pn += random.randrange(3)
        count = random.choice([1, 1, 5, 30])
        run = Run(pn, pn + count - 1, 1, 0.0)
        run.offset, run.step, run.stop = pn * 10, 10, (pn + count) * 10
        runs.append(run)
        outstanding |= set(range(pn, pn + count))
        pn += count
    for _ in range(15):
        numbers = RangeSet()
        for _ in range(random.randrange(1, 6)):
            start = random.randrange(pn)
            numbers.add(start, min(pn, start + random.randrange(1, 20)))
        taken = take(runs, [(low, high - 1) for low, high in numbers])
        got = {number for run in taken for number in range(run.first, run.last + 1)}
        assert got == {number for number in outstanding if number in numbers}
        outstanding -= got
        assert {number for run in runs for number in range(run.first, run.last + 1)} == outstanding
        for run in runs + taken:
            assert (run.offset, run.stop) == (run.first * 10, run.last * 10 + 10)
        assert [run.first for run in runs] == sorted(run.first for run in runs)


def test_memory_of_lost_packets_is_bounded() -> None:
    bench = Bench(100_000)
    for step in range(2000):
        bench.send(step * 1e-6, 2)
        if step % 100 == 99:
            bench.ack(step * 1e-6 + 1e-7, *((pn, pn) for pn in range(step * 2 - 196, step * 2 + 1, 2)))
    assert bench.path.packets_lost > LOST_MEMORY
    assert len(bench.path.lost_runs) <= LOST_MEMORY
