"""What each controller reaches on a virtual wire of 125 MB/s: loss by round trip time. docs/decisions/congestion.md shows the table.

The figures are virtual, so they repeat exactly; the ranges leave room for honest changes. `python
tests/sim/test_transport_throughput.py` prints
the table.
"""

from __future__ import annotations

from random import Random

import pytest

from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.events import MessageReceived
from qnetpy.link.transport.testing import Faults, Pair

RATE = 125e6
SIZE = 4 << 20
CONTROLLERS = ("tolerant", "cubic", "newreno")
LOSSES = (0.0, 0.01, 0.05, 0.10)
ROUND_TRIPS = (100e-6, 2e-3, 20e-3)

# Least megabytes per second, by loss and round trip time, for the controllers in their order.
FLOORS: dict[tuple[float, float], tuple[float, float, float]] = {
    (0.0, 100e-6): (95, 95, 95),
    (0.0, 2e-3): (75, 60, 50),
    (0.0, 20e-3): (15, 15, 10),
    (0.01, 100e-6): (90, 50, 40),
    (0.01, 2e-3): (50, 5, 4),
    (0.05, 100e-6): (80, 15, 8),
    (0.05, 2e-3): (40, 1, 1),
    (0.10, 100e-6): (30, 3, 1),
    (0.10, 2e-3): (20, 0.3, 0.2),
}

pytestmark = pytest.mark.sim


def measure(controller: str, faults: Faults, both: bool = False) -> tuple[float, float]:
    """Megabytes per second of one direction, and the share of packets sent again."""
    pair = Pair(TransportConfig(congestion=controller))
    pair.join(0, (faults, faults), Random(7), 1400)
    pair.run(0.2, lambda: False)
    began = pair.now
    for end in (0, 1) if both else (0,):
        for stream in range(4):
            pair.send(end, stream, bytes(SIZE // 4))
    assert pair.run(began + 120.0)
    statistics = pair.ends[0].statistics()
    return SIZE / (pair.now - began) / 1e6, statistics.resent_bytes / SIZE


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize(("loss", "round_trip"), list(FLOORS))
def test_floor(controller: str, loss: float, round_trip: float) -> None:
    speed, _ = measure(controller, Faults(rate=RATE, delay=round_trip / 2, loss=loss))

    assert speed >= FLOORS[loss, round_trip][CONTROLLERS.index(controller)]


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_the_bad_link_both_ways(controller: str) -> None:
    """5 % loss, 5 % reordering, 2 % duplicates and 0.5 % corruption, both directions at once."""
    faults = Faults(rate=RATE, loss=0.05, reorder=0.05, duplicate=0.02, corrupt=0.005)
    speed, resent = measure(controller, faults, both=True)

    assert speed >= (45 if controller == "tolerant" else 10)
    assert resent < 0.09, "reordering must not pass for loss"


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_reordering_alone_costs_little(controller: str) -> None:
    speed, resent = measure(controller, Faults(rate=RATE, reorder=0.05, queue=4 << 20))

    assert speed >= 95
    assert resent < 0.02


@pytest.mark.parametrize("queue", [16 << 10, 32 << 10, 64 << 10, 128 << 10])
def test_short_queue_is_not_flooded_without_end(queue: int) -> None:
    """The default's floor assumes a queue of SLACK; where there is less, it is taken back."""
    speed, resent = measure("tolerant", Faults(rate=RATE, queue=queue))

    assert speed >= 80
    assert resent < 0.12


def test_full_speed_within_milliseconds() -> None:
    pair = Pair()
    pair.join(0, (Faults(rate=RATE), Faults(rate=RATE)), Random(1), 1400)
    pair.send(0, 1, bytes(1 << 20))
    assert pair.run(1.0, lambda: bool(pair.received[1]))
    assert pair.now < 0.011, "1 MiB from a cold start; the wire alone takes 8.8 ms"


@pytest.mark.parametrize("paths", [1, 2])
def test_small_messages_wait_less_than_two_milliseconds_for_a_transfer_without_end(paths: int) -> None:
    """64 bytes every 0.7 ms beside 4 MiB that are always under way, over 125 MB/s with a queue of 256 KiB."""
    pair = Pair()
    for path in range(paths):
        pair.join(path, (Faults(rate=RATE), Faults(rate=RATE)), Random(path), 1468)
    pair.run(0.2, lambda: False)
    times: list[float] = []
    sent: dict[int, float] = {}

    def arrived(end: int, event: MessageReceived, now: float) -> None:
        if len(event.data) == 64:
            times.append(now - sent.pop(event.stream))
        else:
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
    pair.run(0.4, lambda: False)
    end = pair.now + 0.4
    small()
    pair.run(end + 0.1, lambda: False)
    times.sort()
    assert len(times) > 500
    assert times[len(times) * 99 // 100] < 0.002


def test_paths_with_small_and_large_packets_add_up() -> None:
    """One takes 1500, the other 9000 and then only 1300, in mid-flow."""
    pair = Pair()
    pair.join(0, (Faults(rate=8e6), Faults(rate=8e6)), Random(1), 1468)
    pair.join(1, (Faults(rate=8e6, mtu_changes=((0.5, 1300),)), Faults(rate=8e6)), Random(2), 8968)
    pair.run(0.2, lambda: False)
    data = Random(3).randbytes(8 << 20)
    began = pair.now
    pair.send(0, 1, data)
    pair.run(0.45, lambda: False)
    assert pair.ends[0].statistics().paths[1].payload == 8968
    assert pair.run(3.0)
    assert [event.data for event in pair.received[1]] == [data]
    assert len(data) / (pair.now - began) > 12e6
    assert 1200 <= pair.ends[0].statistics().paths[1].payload <= 1300


def table() -> str:
    """The table of the decision page, in Markdown."""
    lines = ["| loss | RTT | " + " | ".join(CONTROLLERS) + " |", "|---|---|" + "---|" * len(CONTROLLERS)]
    for loss in LOSSES:
        for round_trip in ROUND_TRIPS:
            cells = []
            for controller in CONTROLLERS:
                speed, resent = measure(controller, Faults(rate=RATE, delay=round_trip / 2, loss=loss))
                cells.append(f"{speed:.1f} ({resent:.0%})")
            lines.append(f"| {loss:.0%} | {round_trip * 1e3:g} ms | " + " | ".join(cells) + " |")
    bad = Faults(rate=RATE, loss=0.05, reorder=0.05, duplicate=0.02, corrupt=0.005)
    cells = [f"{speed:.1f} ({resent:.0%})" for speed, resent in (measure(controller, bad, both=True) for controller in CONTROLLERS)]
    lines.append("| 5 % and reordering, both ways | 0.1 ms | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
