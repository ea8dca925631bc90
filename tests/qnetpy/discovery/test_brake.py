"""How the time that mDNS may take is kept to, without a network but for the kernel's own random choice."""

from __future__ import annotations

import socket

import pytest

from qnetpy.discovery.brake import BURST, LOOK, PART_MIN, SHARE, Brake, program
from stack.filter.bpf.attach import attach

COST = 1e-4
"""Seconds for a packet."""


def run(brake: Brake, rate: float, seconds: float) -> float:
    """Under so many packets a second: the processor time that went."""
    used = 0.0
    for _ in range(int(seconds / LOOK)):
        took = min(LOOK, rate * brake.part * COST * LOOK)
        brake.look(took, LOOK)
        used += took
    return used


def test_a_start_and_a_busy_network_are_heard_whole() -> None:
    brake = Brake()
    brake.look(0.2, LOOK)
    run(brake, 0.9 * SHARE / COST, 60.0)
    assert brake.part == 1.0


@pytest.mark.parametrize("rate", [2_000, 20_000, 300_000])
def test_a_flood_takes_its_share_and_no_more(rate: float) -> None:
    brake = Brake()
    assert run(brake, rate, 10.0) <= BURST + 10.0 * SHARE + 2 * LOOK
    for _ in range(10):
        assert run(brake, rate, 2.0) <= 1.3 * SHARE * 2.0
    assert brake.part * rate * COST > SHARE / 8, "as much is heard as there is time for"


def test_all_is_heard_again_soon_after() -> None:
    brake = Brake()
    run(brake, 1e9, 10.0)
    assert brake.part == PART_MIN
    run(brake, 10.0, 4.0)
    assert brake.part == 1.0


def test_the_kernel_takes_that_part() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        here.bind(("127.0.0.1", 0))
        here.setblocking(False)

        def heard(part: float) -> int:
            attach(here, program(part))
            count = 0
            for _ in range(2000):
                there.sendto(b"announcement", here.getsockname())
                try:
                    assert here.recv(100) == b"announcement"
                    count += 1
                except BlockingIOError:
                    pass
            return count

        assert heard(1.0) == 2000
        assert 350 < heard(0.25) < 650
        assert heard(PART_MIN) < 20
        assert heard(1.0) == 2000
