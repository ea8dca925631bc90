"""TrioDispatch: order inside a turn, descriptors, timers, threads, fairness to other tasks, and that an idle one sleeps."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable

import pytest
import trio
import trio.testing

from resmgr.dispatch import Dispatch
from resmgr.errors import Misuse
from resmgr.runner import SPIN_DEFAULT, STRETCH_ALONE, TrioDispatch, open_dispatch
from tests.resmgr.limits import no_room_for_threads


async def until(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until *condition* is true."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110  # there is no event for a dispatch going on
            await trio.sleep(0.0005)


async def test_is_a_dispatch() -> None:
    async with open_dispatch() as dispatch:
        checked: Dispatch = dispatch
        assert abs(checked.wall() - time.time()) < 1
        assert abs(checked.now() - time.monotonic()) < 1


async def test_order_inside_a_turn() -> None:
    left, right = socket.socketpair()
    seen: list[str] = []
    async with open_dispatch() as dispatch:

        def readable() -> None:
            right.recv(10)
            seen.append("descriptor")
            dispatch.at_turn_end(lambda: end("end"))
            dispatch.call_soon(lambda: seen.append("soon"))
            dispatch.call_at(dispatch.now(), lambda: seen.append("timer"))

        def end(name: str) -> None:
            seen.append(name)
            if name == "end":
                dispatch.call_soon(lambda: seen.append("late soon"))
                dispatch.at_turn_end(lambda: end("late end"))

        dispatch.attach_fd(right.fileno(), readable)
        left.send(b"x")
        await until(lambda: len(seen) == 6)
        assert seen == ["descriptor", "timer", "soon", "end", "late soon", "late end"]
    left.close()
    right.close()


async def test_now_is_cached_for_the_length_of_a_turn() -> None:
    stamps: list[float] = []
    async with open_dispatch() as dispatch:

        def slow() -> None:
            stamps.append(dispatch.now())
            time.sleep(0.002)
            stamps.append(dispatch.now())

        dispatch.call_soon(slow)
        await until(lambda: len(stamps) == 2)
        assert stamps[0] == stamps[1] < dispatch.now()


async def test_timers_run_in_order_and_cancelled_ones_do_not() -> None:
    seen: list[int] = []
    async with open_dispatch() as dispatch:
        start = dispatch.now()
        dispatch.call_at(start + 0.004, lambda: seen.append(3))
        dispatch.call_at(start + 0.002, lambda: seen.append(1))
        dispatch.call_at(start + 0.002, lambda: seen.append(2))
        dropped = dispatch.call_at(start + 0.003, lambda: seen.append(99))
        dropped.cancel()
        dropped.cancel()
        assert dispatch.statistics().timers == 3
        await until(lambda: len(seen) == 3)
        assert seen == [1, 2, 3]
        assert dispatch.now() >= start + 0.004


async def test_a_timer_set_by_another_task_wakes_a_sleeping_dispatch() -> None:
    async with open_dispatch(spin=0) as dispatch:
        dispatch.call_at(dispatch.now() + 60, lambda: None)
        await trio.sleep(0.005)
        assert dispatch.statistics().sleeps >= 1
        rang = trio.Event()
        dispatch.call_at(dispatch.now() + 0.003, rang.set)
        with trio.fail_after(2):
            await rang.wait()


async def test_many_cancelled_timers_do_not_pile_up() -> None:
    async with open_dispatch() as dispatch:
        for _ in range(10_000):
            dispatch.call_at(dispatch.now() + 100, lambda: None).cancel()
        assert len(dispatch._timers._heap) < 200


async def test_calls_from_tasks_and_threads_wake_it() -> None:
    seen: list[str] = []
    async with open_dispatch(spin=0) as dispatch:
        await trio.sleep(0.003)
        dispatch.call_soon(lambda: seen.append("soon"))
        await until(lambda: seen == ["soon"])
        await trio.sleep(0.003)
        dispatch.at_turn_end(lambda: seen.append("end"))
        await until(lambda: seen == ["soon", "end"])

        def post() -> None:
            for _ in range(500):
                dispatch.call_from_thread(lambda: seen.append("thread"))

        threads = [threading.Thread(target=post) for _ in range(2)]
        for thread in threads:
            thread.start()
        await until(lambda: len(seen) == 1002)
        for thread in threads:
            thread.join()


async def test_blocking_calls_return_results_and_exceptions_with_bounded_threads() -> None:
    results: list[object] = []
    here = threading.get_ident()
    running = 0
    most = 0
    lock = threading.Lock()

    def work() -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1
        return threading.get_ident()

    def fails() -> int:
        raise FileNotFoundError("x")

    async with open_dispatch(threads=3) as dispatch:
        for _ in range(12):
            dispatch.call_blocking(work, results.append)
        dispatch.call_blocking(fails, results.append)
        await until(lambda: len(results) == 13)
        assert most == 3 == dispatch.statistics().threads
        assert here not in results
        assert sum(isinstance(result, FileNotFoundError) for result in results) == 1


async def test_without_room_for_a_thread_a_blocking_call_waits_or_is_refused() -> None:
    results: list[object] = []
    gate = threading.Event()
    async with open_dispatch(threads=3) as dispatch:
        with no_room_for_threads():
            dispatch.call_blocking(gate.wait, results.append)
            assert not results
            await until(lambda: len(results) == 1)
        assert isinstance(results[0], OSError)
        assert results[0].errno == errno.EAGAIN
        dispatch.call_blocking(gate.wait, results.append)
        with no_room_for_threads():
            dispatch.call_blocking(threading.get_ident, results.append)
        gate.set()
        await until(lambda: len(results) == 3)
        assert results[1] is True
        statistics = dispatch.statistics()
        assert (statistics.threads, statistics.blocking_now) == (1, 0)


async def test_want_write_and_detach() -> None:
    left, right = socket.socketpair()
    left.setblocking(False)
    writable = 0
    readable = 0
    async with open_dispatch() as dispatch:

        def on_write() -> None:
            nonlocal writable
            writable += 1
            dispatch.want_write(left.fileno(), None)

        def on_read() -> None:
            nonlocal readable
            readable += 1
            dispatch.detach_fd(left.fileno())

        dispatch.attach_fd(left.fileno(), on_read)
        with pytest.raises(Misuse):
            dispatch.attach_fd(left.fileno(), on_read)
        with pytest.raises(Misuse):
            dispatch.want_write(right.fileno(), on_write)
        dispatch.want_write(left.fileno(), on_write)
        await until(lambda: writable == 1)
        await trio.sleep(0.005)
        assert (writable, readable) == (1, 0)
        right.send(b"x")
        await until(lambda: readable == 1)
        await trio.sleep(0.003)
        assert readable == 1
        dispatch.detach_fd(left.fileno())
        assert dispatch.statistics().descriptors == 0
    left.close()
    right.close()


async def test_want_read_pauses_and_hang_up_is_still_told() -> None:
    left, right = socket.socketpair()
    got: list[bytes] = []
    async with open_dispatch() as dispatch:
        dispatch.attach_fd(right.fileno(), lambda: got.append(right.recv(10)))
        dispatch.want_read(right.fileno(), False)
        dispatch.want_read(right.fileno(), False)
        left.send(b"x")
        await trio.sleep(0.003)
        assert got == []
        dispatch.want_read(right.fileno(), True)
        await until(lambda: got == [b"x"])
        dispatch.want_read(right.fileno(), False)
        left.close()
        await until(lambda: got[1:2] == [b""])
        dispatch.detach_fd(right.fileno())
    right.close()


async def test_an_idle_dispatch_sleeps_and_does_not_spin() -> None:
    async with open_dispatch(spin=0.01) as dispatch:
        dispatch.call_soon(lambda: None)
        await trio.sleep(0.06)
        before = dispatch.statistics()
        await trio.sleep(0.1)
        after = dispatch.statistics()
        assert after.spins == before.spins
        assert after.turns == before.turns


async def test_timers_alone_do_not_make_it_spin() -> None:
    async with open_dispatch() as dispatch:
        count = 0

        def tick() -> None:
            nonlocal count
            count += 1
            if count < 10:
                dispatch.call_at(dispatch.now() + 0.001, tick)

        await trio.sleep(0.02)
        before = dispatch.statistics().spins
        tick()
        await until(lambda: count == 10)
        # The alarm that rings is a descriptor; it may earn one look, never a look per tick.
        assert dispatch.statistics().spins - before < 200


async def ping_pong(dispatch: TrioDispatch, rounds: int) -> None:
    left, right = socket.socketpair()

    def answer() -> None:
        right.send(right.recv(100))

    dispatch.attach_fd(right.fileno(), answer)

    def client() -> None:
        for _ in range(rounds):
            left.send(b"ping")
            left.recv(100)

    await trio.to_thread.run_sync(client)
    dispatch.detach_fd(right.fileno())
    left.close()
    right.close()


async def test_looking_pays_while_traffic_flows() -> None:
    async with open_dispatch(spin=0.02) as dispatch:
        await ping_pong(dispatch, 300)
        statistics = dispatch.statistics()
        assert statistics.sleeps < 100


async def test_spin_zero_never_looks() -> None:
    async with open_dispatch(spin=0) as dispatch:
        await ping_pong(dispatch, 100)
        assert dispatch.statistics().spins == 0


async def test_alone_it_naps_instead_of_sleeping_through_trio() -> None:
    left, right = socket.socketpair()
    rounds = 200
    async with open_dispatch(spin=0) as dispatch:
        dispatch.attach_fd(right.fileno(), lambda: right.sendall(right.recv(100)))

        def client() -> None:
            for _ in range(rounds):
                left.send(b"ping")
                left.recv(100)

        thread = threading.Thread(target=client)
        thread.start()
        # Nobody else waits for anything in Trio: this task only for the thread.
        await trio.to_thread.run_sync(thread.join)
        statistics = dispatch.statistics()
        assert statistics.naps > rounds // 2
        assert statistics.sleeps < rounds // 2
    left.close()
    right.close()


async def test_it_does_not_nap_while_others_wait_in_trio() -> None:
    left, right = socket.socketpair()
    ours, theirs = trio.socket.socketpair()
    async with open_dispatch(spin=0) as dispatch, trio.open_nursery() as nursery:
        dispatch.attach_fd(right.fileno(), lambda: right.sendall(right.recv(100)))
        nursery.start_soon(ours.recv, 1)
        await trio.testing.wait_all_tasks_blocked()
        before = dispatch.statistics().naps

        def client() -> None:
            for _ in range(100):
                left.send(b"ping")
                left.recv(100)

        await trio.to_thread.run_sync(client)
        assert dispatch.statistics().naps == before
        nursery.cancel_scope.cancel()
    for one in (left, right, ours, theirs):
        one.close()


async def test_it_gives_way_before_a_deadline_of_trio() -> None:
    """Permanent traffic, nobody else there but a task that sleeps: it wakes in time, not when the traffic ends."""
    left, right = socket.socketpair()
    async with open_dispatch(spin=0) as dispatch:
        dispatch.attach_fd(right.fileno(), lambda: None)
        left.send(b"never read: always readable")
        late = []
        for _ in range(20):
            until_ = trio.current_time() + STRETCH_ALONE * 0.3
            await trio.sleep_until(until_)
            late.append(trio.current_time() - until_)
        assert sorted(late)[10] < STRETCH_ALONE * 0.5
        dispatch.detach_fd(right.fileno())
    left.close()
    right.close()


async def test_other_tasks_run_under_permanent_load() -> None:
    left, right = socket.socketpair()
    async with open_dispatch() as dispatch:
        turns = 0

        def busy() -> None:
            nonlocal turns
            turns += 1

        dispatch.attach_fd(right.fileno(), busy)
        left.send(b"never read: always readable")
        await until(lambda: turns > 0)
        worst = 0
        for _ in range(100):
            before = turns
            await trio.lowlevel.checkpoint()
            worst = max(worst, turns - before)
        assert turns > 100
        assert worst <= 32
    left.close()
    right.close()


async def test_an_endless_chain_of_soon_calls_gives_way() -> None:
    async with open_dispatch() as dispatch:
        count = 0

        def again() -> None:
            nonlocal count
            count += 1
            dispatch.call_soon(again)

        dispatch.call_soon(again)
        await until(lambda: count > 1000)


@pytest.mark.parametrize("round_", range(10))
async def test_a_woken_task_runs_after_the_turn_that_woke_it(round_: int) -> None:
    """Trio shuffles the order of tasks, so once is not enough."""
    left, right = socket.socketpair()
    async with open_dispatch() as dispatch:
        turns = 0
        event = trio.Event()
        lag: list[int] = []

        def busy() -> None:
            nonlocal turns
            turns += 1
            if turns == 40:
                event.set()

        async def waiter() -> None:
            await event.wait()
            lag.append(turns)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter)
            await trio.lowlevel.checkpoint()
            dispatch.attach_fd(right.fileno(), busy)
            left.send(b"x")
            await until(lambda: bool(lag))
        assert lag[0] <= 42
    left.close()
    right.close()


async def test_enter_leaves_timers_to_the_dispatch_task() -> None:
    async with open_dispatch() as dispatch:
        seen: list[str] = []
        dispatch.call_at(dispatch.now(), lambda: seen.append("late"))
        dispatch.enter(lambda: seen.append("now"))
        assert seen == ["now"]
        await until(lambda: seen == ["now", "late"])


async def test_a_woken_task_waits_for_one_turn_at_most_though_there_is_always_another() -> None:
    """A node that sends without a pause has a turn to run whenever it looks."""
    async with open_dispatch() as dispatch:
        waited: list[int] = []
        woken_at = -1
        going = True
        waiting: trio.lowlevel.Task | None = None

        def again() -> None:
            if going:
                dispatch.call_at(dispatch.now(), again)

        async def waiter() -> None:
            nonlocal waiting

            def abort(_: object) -> trio.lowlevel.Abort:
                return trio.lowlevel.Abort.SUCCEEDED

            for _ in range(200):
                waiting = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
                waited.append(dispatch.statistics().turns - woken_at)

        def wake() -> None:
            nonlocal waiting, woken_at
            if waiting is not None:
                woken_at = dispatch.statistics().turns
                trio.lowlevel.reschedule(waiting)
                waiting = None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter)
            dispatch.enter(again)
            while len(waited) < 200:
                dispatch.call_soon(wake)
                await trio.lowlevel.checkpoint()
            going = False
        assert max(waited) <= 1


async def test_enter_runs_a_turn_in_the_callers_task() -> None:
    async with open_dispatch(spin=0) as dispatch:
        await until(lambda: dispatch.statistics().sleeps > 0)
        seen: list[str] = []

        def work() -> None:
            dispatch.at_turn_end(lambda: seen.append("flushed"))
            dispatch.enter(lambda: seen.append("inner"))

        before = dispatch.statistics().sleeps
        dispatch.enter(work)
        assert seen == ["inner", "flushed"]
        await trio.sleep(0.003)
        assert dispatch.statistics().sleeps == before


async def test_an_exception_in_a_callback_ends_the_node() -> None:
    async def by_turn() -> None:
        async with open_dispatch() as dispatch:
            dispatch.call_soon(lambda: print(1 // 0))
            await trio.sleep_forever()

    async def by_enter() -> None:
        async with open_dispatch(spin=0) as dispatch:
            await trio.sleep(0.002)
            dispatch.enter(lambda: print(1 // 0))
            await trio.sleep_forever()

    with pytest.raises(ZeroDivisionError):
        await by_turn()
    with pytest.raises(ZeroDivisionError):
        await by_enter()


async def test_start_task_and_exit_cancels_it() -> None:
    states: list[str] = []

    async def task(name: str) -> None:
        states.append(name)
        try:
            await trio.sleep_forever()
        finally:
            states.append("ended")

    async with open_dispatch() as dispatch:
        dispatch.start_task(task, "started")
        await until(lambda: states == ["started"])
    assert states == ["started", "ended"]


async def test_no_descriptor_is_left_and_late_threads_are_harmless() -> None:
    before = len(os.listdir("/proc/self/fd"))
    gate = threading.Event()
    async with open_dispatch() as dispatch:
        dispatch.call_blocking(gate.wait, lambda result: None)
    gate.set()
    dispatch.call_from_thread(lambda: None)
    assert len(os.listdir("/proc/self/fd")) == before


def test_defaults_are_as_documented() -> None:
    assert 50e-6 <= SPIN_DEFAULT <= 200e-6
