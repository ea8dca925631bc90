"""A task that is alone with its dispatch waits for its answer itself; one that is not waits as Trio's tasks do."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import trio
import trio.lowlevel
import trio.testing

from resmgr.aio import ReceiveChannel, send
from resmgr.channel import ND_LOCAL, Connection, Credentials, Kernel, Message
from resmgr.company import STRETCH_ALONE
from resmgr.dispatch import Buffer
from resmgr.realtime import Wanted
from resmgr.runner import TrioDispatch, open_dispatch


class Steps(trio.abc.Instrument):
    """Counts steps of tasks."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


@contextmanager
def steps() -> Iterator[Steps]:
    counter = Steps()
    trio.lowlevel.add_instrument(counter)
    try:
        yield counter
    finally:
        trio.lowlevel.remove_instrument(counter)


class Mirror:
    """A thread that answers each datagram after *delay* seconds: what a server on another node is to the dispatch."""

    def __init__(self, delay: float = 0.0) -> None:
        self.near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._delay = delay
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while data := self._far.recv(100):
                self._end.wait(self._delay)
                self._far.send(data)
        except (BrokenPipeError, ConnectionResetError):
            """The near end was closed meanwhile."""

    def close(self) -> None:
        self.near.close()
        self._end.set()
        self._thread.join()
        self._far.close()


@contextmanager
def mirrored(dispatch: TrioDispatch, delay: float = 0.0) -> Iterator[Connection]:
    """A connection to a channel whose messages are answered when the thread has sent them back."""
    mirror = Mirror(delay)
    waiting: list[Message] = []
    kernel = Kernel(dispatch, "here")

    def serve(message: Message) -> None:
        waiting.append(message)
        mirror.near.send(b"x")

    def answered() -> None:
        if mirror.near.recv(100):
            waiting.pop(0).reply(0, b"y")

    dispatch.attach_fd(mirror.near.fileno(), answered)
    channel = kernel.channel(serve)
    try:
        yield kernel.connect(ND_LOCAL, channel.pid, channel.chid, Credentials(1000, 1000))
    finally:
        dispatch.detach_fd(mirror.near.fileno())
        mirror.close()


@pytest.mark.parametrize("spin", [0.0, 0.02], ids=["napping", "looking"])
async def test_alone_an_answer_costs_no_change_of_tasks(spin: float) -> None:
    async with open_dispatch(spin=spin) as dispatch:
        await trio.testing.wait_all_tasks_blocked()
        with mirrored(dispatch) as connection, steps() as counter:
            for _ in range(200):
                assert (await send(connection, (b"q",), 10)).data == b"y"
        # One way each time the stretch is over, of 5 ms; through Trio it would be two or more for each.
        assert counter.count < 150


async def test_others_that_can_run_do_so_meanwhile() -> None:
    async with open_dispatch() as dispatch, trio.open_nursery() as nursery:
        counted = 0

        async def count() -> None:
            nonlocal counted
            while True:
                counted += 1
                await trio.lowlevel.checkpoint()

        with mirrored(dispatch, 0.002) as connection:
            nursery.start_soon(count)
            for _ in range(5):
                before = counted
                await send(connection, (b"q",), 10)
                assert counted > before
        nursery.cancel_scope.cancel()


async def test_a_long_stream_of_answers_lets_others_run() -> None:
    async with open_dispatch() as dispatch:
        with mirrored(dispatch) as connection:
            ran = False

            def from_thread() -> None:
                nonlocal ran
                ran = True

            token = trio.lowlevel.current_trio_token()
            thread = threading.Timer(0.01, token.run_sync_soon, (from_thread,))
            thread.start()
            with trio.fail_after(10):
                while not ran:
                    await send(connection, (b"q",), 10)
            thread.join()


async def test_a_deadline_of_the_tasks_own_is_kept() -> None:
    async with open_dispatch(spin=0) as dispatch:
        kernel = Kernel(dispatch, "here")
        held: list[Message] = []

        def serve(message: Message) -> None:
            if message.data == b"now":
                message.reply(0, b"")
            else:
                message.on_unblock = lambda: message.error(4)
                held.append(message)

        channel = kernel.channel(serve)
        connection = kernel.connect(ND_LOCAL, channel.pid, channel.chid, Credentials(1000, 1000))
        late = []
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(20):
            # Now it is known that nobody else is there, and the scope below is set behind that knowledge's back.
            await send(connection, (b"now",), 10)
            began = trio.current_time()
            with trio.move_on_after(STRETCH_ALONE * 0.2) as scope:
                await send(connection, (b"q",), 10)
            assert scope.cancelled_caught
            late.append(trio.current_time() - began - STRETCH_ALONE * 0.2)
        assert min(late) < STRETCH_ALONE * 0.4


async def served(dispatch: TrioDispatch, step: Callable[[], Awaitable[object]], rounds: int) -> list[float]:
    """Seconds that a readable descriptor of the dispatch waits while this task does *step* again and again."""
    near, far = socket.socketpair()
    waits: list[float] = []
    asked = 0.0

    def readable() -> None:
        nonlocal asked
        near.recv(1)
        waits.append(time.monotonic() - asked)
        asked = 0.0

    dispatch.attach_fd(near.fileno(), readable)
    for _ in range(rounds):
        if not asked:
            asked = time.monotonic()
            far.send(b"x")
        await step()
    dispatch.detach_fd(near.fileno())
    near.close()
    far.close()
    return waits


@pytest.mark.parametrize("way", ["local sends", "backlog"])
async def test_what_comes_from_outside_does_not_wait_for_a_busy_task(way: str) -> None:
    async with open_dispatch() as dispatch:
        kernel = Kernel(dispatch, "here")
        with ReceiveChannel(kernel) as backlog:
            echo = kernel.channel(lambda message: message.reply(0, b"y"))
            local = kernel.connect(ND_LOCAL, echo.pid, echo.chid, Credentials(1000, 1000))
            full = kernel.connect(ND_LOCAL, backlog.channel.pid, backlog.channel.chid, Credentials(1000, 1000))
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(500):
                full.submit((b"q",), 10, lambda status, reply: None)

            async def one() -> None:
                if way == "local sends":
                    await send(local, (b"q",), 10)
                else:
                    message = await backlog.receive()
                    assert isinstance(message, Message)
                    dispatch.enter(partial(message.reply, 0, b"y"))

            waits = await served(dispatch, one, 500)
        # Each step lets it in; without that, it would once in 5 ms.
        assert len(waits) > 200


async def test_one_message_now_and_then_costs_no_polling() -> None:
    async with open_dispatch() as dispatch:
        with mirrored(dispatch) as connection:
            for _ in range(10):
                await send(connection, (b"q",), 10)
                await trio.sleep(0.02)
            before = dispatch.statistics()
            for _ in range(20):
                await send(connection, (b"q",), 10)
                await trio.sleep(0.02)
            after = dispatch.statistics()
        assert after.spins - before.spins < 20 * 30
        assert after.naps - before.naps < 20 * 1.7


async def test_a_task_that_a_driven_turn_schedules_runs_at_once() -> None:
    """With means of Trio's that know nothing of the dispatch."""
    async with open_dispatch(spin=0) as dispatch, trio.open_nursery() as nursery:
        waits: list[float] = []
        event = trio.Event()
        set_at = 0.0

        async def waiter() -> None:
            nonlocal event
            while True:
                await event.wait()
                waits.append(time.monotonic() - set_at)
                event = trio.Event()

        def tell() -> None:
            nonlocal set_at
            set_at = time.monotonic()
            event.set()

        nursery.start_soon(waiter)
        with mirrored(dispatch, STRETCH_ALONE * 0.9) as connection:
            while len(waits) < 20:
                dispatch.call_at(dispatch.now() + STRETCH_ALONE * 0.1, tell)
                await send(connection, (b"q",), 10)
        assert min(waits) < STRETCH_ALONE * 0.4
        nursery.cancel_scope.cancel()


async def test_a_guest_is_never_alone() -> None:
    async with open_dispatch(spin=0, guest=True) as dispatch:
        await trio.testing.wait_all_tasks_blocked()
        with mirrored(dispatch) as connection:
            for _ in range(50):
                await send(connection, (b"q",), 10)
        assert dispatch.statistics().naps == 0


async def test_the_first_failure_counts() -> None:
    async def run() -> None:
        async with open_dispatch(spin=0) as dispatch:
            await trio.testing.wait_all_tasks_blocked()
            dispatch.enter(lambda: print(1 // 0))
            dispatch.enter(lambda: print([][0]))
            await trio.sleep_forever()

    with pytest.raises(ZeroDivisionError):
        await run()


async def test_a_failure_in_a_turn_is_the_nodes() -> None:
    async def run() -> None:
        async with open_dispatch() as dispatch:
            dispatch.call_at(dispatch.now() + 0.001, lambda: print(1 // 0))
            await trio.testing.wait_all_tasks_blocked()
            dispatch.drive(Wanted(), float("inf"), soon=True)
            await trio.sleep_forever()

    with pytest.raises(ZeroDivisionError):
        await run()


async def test_timers_of_others_are_not_forgotten() -> None:
    """A timer set while a task drives is rung for the dispatch that sleeps in Trio."""
    async with open_dispatch() as dispatch:
        rung = trio.Event()
        with mirrored(dispatch) as connection:
            await trio.testing.wait_all_tasks_blocked()
            await send(connection, (b"q",), 10)
            dispatch.call_at(dispatch.now() + 0.002, rung.set)
            await send(connection, (b"q",), 10)
            with trio.fail_after(5):
                while not rung.is_set():
                    await trio.lowlevel.checkpoint()


async def test_a_server_that_is_a_task_is_alone_too() -> None:
    async with open_dispatch() as dispatch:
        kernel = Kernel(dispatch, "here")
        with ReceiveChannel(kernel) as channel:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection = kernel.connect(ND_LOCAL, channel.channel.pid, channel.channel.chid, Credentials(1000, 1000))

            def answered(status: int, reply: Buffer) -> None:
                near.send(bytes(reply))

            def asked() -> None:
                if near.recv(100):
                    connection.submit((b"q",), 10, answered)

            def client() -> None:
                for _ in range(200):
                    far.send(b"x")
                    assert far.recv(100) == b"y"

            dispatch.attach_fd(near.fileno(), asked)
            await trio.testing.wait_all_tasks_blocked()
            thread = threading.Thread(target=client)
            thread.start()
            with steps() as counter:
                for _ in range(200):
                    message = await channel.receive()
                    assert isinstance(message, Message)
                    dispatch.enter(partial(message.reply, 0, b"y"))
            await trio.to_thread.run_sync(thread.join)
            assert counter.count < 200
            dispatch.detach_fd(near.fileno())
            near.close()
            far.close()


@pytest.mark.host
def test_an_interrupt_ends_the_program_and_no_turn() -> None:
    """Ctrl-C while a task drives: raised at a checkpoint, not in the middle of a machine."""
    turns: list[str] = []

    async def main() -> None:
        async with open_dispatch() as dispatch:
            with mirrored(dispatch) as connection:
                threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
                while True:

                    def turn() -> None:
                        turns.append("begun")
                        turns.append("ended")

                    dispatch.call_soon(turn)
                    await send(connection, (b"q",), 10)

    # A shell's `&` has interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)) as raised:
            trio.run(main)
    finally:
        signal.signal(signal.SIGINT, before)
    error: BaseException = raised.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, KeyboardInterrupt)
    assert turns.count("begun") == turns.count("ended") > 0
