"""Lanes on real threads: how many jobs of each run at a time, in which order, and what becomes of those that wait."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from resmgr.iofunc.lanes import LANE_MAX, PATIENT_MAX, PATIENT_SUM, Lane, Lanes
from resmgr.runner import TrioDispatch, open_dispatch


class Bench:
    """Jobs that stay in their thread until `gate` of their lane opens."""

    def __init__(self, dispatch: TrioDispatch) -> None:
        self.dispatch = dispatch
        self.lanes = Lanes(dispatch)
        self.gates: dict[str, threading.Event] = {}
        self.done: list[tuple[str, int]] = []

    def lane(self, name: str, patient: bool) -> Lane:
        self.gates[name] = threading.Event()
        return Lane(self.lanes, name, patient)

    def submit(self, lane: Lane, number: int) -> None:
        gate = self.gates[lane.name]
        lane.submit(lambda: gate.wait(20), lambda _: self.done.append((lane.name, number)))

    async def until(self, count: int) -> None:
        with trio.fail_after(10):
            while len(self.done) < count:  # noqa: ASYNC110  # as of every test with real threads: they end when they end
                await trio.sleep(0.001)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with open_dispatch() as dispatch:
        bench = Bench(dispatch)
        yield bench
        for gate in bench.gates.values():
            gate.set()


async def test_each_lane_has_its_share_and_dead_ones_together_have_theirs(bench: Bench) -> None:
    dead = [bench.lane(f"dead{number}", True) for number in range(2 * PATIENT_SUM // PATIENT_MAX)]
    disk = bench.lane("disk", False)

    def start() -> None:
        for lane in dead:
            for number in range(3 * PATIENT_MAX):
                bench.submit(lane, number)
        for number in range(2 * LANE_MAX):
            bench.submit(disk, number)

    bench.dispatch.enter(start)
    assert [lane.running for lane in dead] == [PATIENT_MAX] * (len(dead) // 2) + [0] * (len(dead) // 2)
    assert (disk.running, disk.waiting) == (LANE_MAX, LANE_MAX)
    bench.gates["disk"].set()
    await bench.until(2 * LANE_MAX)
    assert {name for name, _ in bench.done} == {"disk"}
    assert (disk.running, disk.waiting) == (0, 0)


async def test_lanes_that_wait_for_the_common_limit_take_turns(bench: Bench) -> None:
    lanes = [bench.lane(f"far{number}", True) for number in range(2 * PATIENT_SUM // PATIENT_MAX)]

    def start() -> None:
        for lane in lanes:
            for number in range(2 * PATIENT_MAX):
                bench.submit(lane, number)

    bench.dispatch.enter(start)
    # The first answers: what it gives back goes to those that have nothing, before it gets more.
    bench.gates["far0"].set()
    await bench.until(PATIENT_MAX)
    waited = [lane for lane in lanes[len(lanes) // 2 :] if lane.running]
    assert waited
    for gate in bench.gates.values():
        gate.set()
    await bench.until(len(lanes) * 2 * PATIENT_MAX)
    assert all((lane.running, lane.waiting) == (0, 0) for lane in lanes)


async def test_what_waits_can_be_cancelled_and_what_runs_cannot(bench: Bench) -> None:
    lane = bench.lane("far", True)

    def ended(number: int, result: bool | BaseException) -> None:
        bench.done.append(("far", number))

    def start() -> None:
        jobs = [lane.submit(partial(bench.gates["far"].wait, 20), partial(ended, number)) for number in range(PATIENT_MAX + 3)]
        assert [job.cancel() for job in jobs] == [False] * PATIENT_MAX + [True] * 3
        assert [job.cancel() for job in jobs] == [False] * (PATIENT_MAX + 3)

    bench.dispatch.enter(start)
    bench.gates["far"].set()
    await bench.until(PATIENT_MAX)
    assert sorted(bench.done) == [("far", number) for number in range(PATIENT_MAX)]
    assert lane.waiting == 0


async def test_a_lane_that_does_not_answer_is_told_of_once_and_when_it_is_back(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.lanes.silent = 0.0
    lane = bench.lane("file system 0:44 (nfs4)", True)

    def start() -> None:
        for number in range(PATIENT_MAX + 5):
            bench.submit(lane, number)

    bench.dispatch.enter(start)
    (record,) = caplog.records
    assert record.getMessage() == "file system 0:44 (nfs4) has not answered for 0 s: what needs it waits, the rest goes on"
    assert bench.lanes.waited == 5
    bench.gates[lane.name].set()
    await bench.until(PATIENT_MAX + 5)
    assert [record.getMessage() for record in caplog.records[1:]] == ["file system 0:44 (nfs4) answers again"]
