"""The processes that tell the kernel of changes: how they end, and how their packets get to them."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest
import trio

from resmgr.fuse import formats, notifier, notifying, waits
from resmgr.fuse.notifying import Begun, Helper
from resmgr.runner import TrioDispatch, open_dispatch

pytestmark = pytest.mark.host

WAITING = """
import _socket, os, sys
from resmgr.fuse.notifier import Threads
control, out, gate = (int(number) for number in sys.argv[1:])
def perform(packet):
    os.write(out, b"p")
    return len(os.read(gate, 1))
Threads(_socket.socket(fileno=control), perform, lambda: os.write(out, b"m")).start()
"""
"""What it does for each packet takes until there is something at the gate."""


class Waiting:
    """A process of this kind. `link`: our end of its socket; `said`: what it does; `gate`: lets it go on."""

    def __init__(self, process: subprocess.Popen[bytes], link: socket.socket, said: int, gate: int) -> None:
        self.process = process
        self.link = link
        self.said = said
        self.gate = gate

    def says(self, seconds: float = 10.0) -> bytes:
        return os.read(self.said, 1) if select.select([self.said], [], [], seconds)[0] else b""


@contextmanager
def waiting(threads: int = notifier.THREADS) -> Iterator[Waiting]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    (said, out), (gate, opens) = os.pipe(), os.pipe()
    numbers = [theirs.fileno(), out, gate]
    process = subprocess.Popen([sys.executable, "-c", WAITING, *map(str, numbers)], pass_fds=numbers)
    theirs.close()
    os.close(out)
    os.close(gate)
    try:
        for _ in range(threads):
            assert notifier.ANSWER.unpack(ours.recv(64))[0] == notifier.HERE
        yield Waiting(process, ours, said, opens)
    finally:
        process.kill()
        process.wait(10)
        ours.close()
        os.close(said)
        os.close(opens)


def test_it_ends_when_what_it_does_is_done() -> None:
    with waiting() as helper:
        helper.link.send(notifier.NUMBER.pack(1))
        assert helper.says() == b"p"
        helper.link.close()
        assert helper.says() == b"m"
        assert helper.process.poll() is None
        os.write(helper.gate, b"x")
        assert helper.process.wait(10) == 0
        assert helper.says() == b""


def test_it_does_nothing_else_where_somebody_else_serves() -> None:
    with waiting() as helper:
        helper.link.send(notifier.NUMBER.pack(1))
        assert helper.says() == b"p"
        helper.link.send(notifier.NUMBER.pack(notifier.LEAVE))
        helper.link.send(notifier.NUMBER.pack(2))
        helper.link.close()
        assert helper.says() == b"p"
        os.write(helper.gate, b"xx")
        assert helper.process.wait(10) == 0
        assert helper.says() == b""


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process that is reaped by who is told that it has ended."""
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exec sleep 60"], os.environ)
    yield pid
    os.kill(pid, signal.SIGKILL)


async def test_a_full_socket_is_waited_for(sleeper: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    begun: Begun = ours, sleeper, os.pidfd_open(sleeper)
    jobs, results = 20, list[int]()
    with trio.fail_after(30), theirs:
        async with open_dispatch() as dispatch:
            helper = Helper(dispatch, pytest.fail)
            helper.start(lambda: begun)
            for thread in range(notifier.THREADS):
                theirs.send(notifier.ANSWER.pack(notifier.HERE, thread + 1))
            while not helper.ready:
                await trio.lowlevel.checkpoint()
            for _ in range(jobs):
                helper.do([bytes(1000)], results.append)
            for taken in range(jobs):
                await trio.lowlevel.wait_readable(theirs)
                number = notifier.NUMBER.unpack_from(theirs.recv(notifier.PACKET_MAX))[0]
                theirs.send(notifier.ANSWER.pack(number, taken))
            while len(results) < jobs:
                await trio.lowlevel.checkpoint()
            assert results == list(range(jobs))
            helper.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifying, "SILENCE", 0.1)


async def served(dispatch: TrioDispatch, process: Waiting, stopped: Callable[[], None]) -> Helper:
    """The daemon's end of *process*."""
    helper = Helper(dispatch, stopped)
    ours = process.link.dup()
    ours.setblocking(False)
    helper.start(lambda: (ours, process.process.pid, os.pidfd_open(process.process.pid)))
    await until(lambda: helper.ready)
    return helper


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # there is no event for a dispatch going on
        await trio.sleep(0.001)


@pytest.mark.usefixtures("hasty")
async def test_one_that_is_stopped_is_killed_and_what_it_had_to_do_given_back() -> None:
    results: list[object] = []
    with trio.fail_after(30), waiting(0) as process:
        async with open_dispatch() as dispatch:
            helper = await served(dispatch, process, lambda: results.append("stopped"))
            process.process.send_signal(signal.SIGSTOP)
            for _ in range(notifier.JOBS + 2):
                dispatch.enter(lambda: helper.do([b"x"], results.append))
            await until(lambda: len(results) == notifier.JOBS + 3)
            assert results == ["stopped", *[-1] * (notifier.JOBS + 2)]
            assert not helper.ready


async def test_one_whose_threads_wait_in_the_kernel_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Long enough for a thread that answers, on a machine that others use.
    monkeypatch.setattr(notifying, "SILENCE", 0.4)
    results: list[int] = []
    with trio.fail_after(30), waiting(0) as process:
        async with open_dispatch() as dispatch:
            helper = await served(dispatch, process, pytest.fail)
            for _ in range(notifier.JOBS):
                dispatch.enter(lambda: helper.do([b"x"], results.append))
            began = dispatch.now()
            await until(lambda: not helper.ready or dispatch.now() > began + 2.5 * notifying.SILENCE)
            assert helper.ready
            os.write(process.gate, bytes(notifier.JOBS))
            await until(lambda: len(results) == notifier.JOBS)
            assert results == [1] * notifier.JOBS
            helper.close()


class Silent:
    """The other end of a process that has begun, and does nothing by itself."""

    def __init__(self) -> None:
        ours, self.link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.link.setblocking(False)
        process = subprocess.Popen(["sleep", "60"])
        # Reaped by the helper.
        process.returncode = 0
        for thread in range(notifier.THREADS):
            self.link.send(notifier.ANSWER.pack(notifier.HERE, thread + 1))
        self._process = os.pidfd_open(process.pid)
        self.begun: Begun = (ours, process.pid, os.dup(self._process))
        self.heard: list[int] = []

    def hears(self) -> list[int]:
        """The numbers of all packets that came."""
        try:
            while packet := self.link.recv(notifier.PACKET_MAX):
                self.heard.append(notifier.NUMBER.unpack_from(packet)[0])
        except BlockingIOError:
            pass
        return self.heard

    def close(self) -> None:
        self.link.close()
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._process, os.WEXITED)
        os.close(self._process)


async def test_a_daemon_that_was_stopped_itself_asks_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may have been stopped with it, and have had no time to answer since."""
    monkeypatch.setattr(notifying, "SILENCE", 0.2)
    with trio.fail_after(30), closing(Silent()) as peer:
        async with open_dispatch() as dispatch:
            helper = Helper(dispatch, pytest.fail)
            helper.start(lambda: peer.begun)
            await until(lambda: helper.ready)
            dispatch.enter(lambda: helper.do([b"x"], lambda _: None))
            await until(lambda: notifier.PING in peer.hears())
            time.sleep(3 * notifying.SILENCE)  # noqa: ASYNC251  # nothing goes on here meanwhile
            await until(lambda: peer.hears().count(notifier.PING) > 1)
            assert helper.ready
            helper.close()


@pytest.mark.usefixtures("hasty")
async def test_those_that_are_stopped_are_replaced_so_often_only(monkeypatch: pytest.MonkeyPatch) -> None:
    peers: list[Silent] = []

    def begin(*_: object) -> Begun:
        peers.append(Silent())
        return peers[-1].begun

    monkeypatch.setattr(waits, "REPLACED_MAX", 2)
    monkeypatch.setattr(waits, "begin_entries", begin)
    monkeypatch.setattr(waits, "begin_pages", begin)
    told: list[int] = []
    device = os.open(os.devnull, os.O_WRONLY)
    with trio.fail_after(30):
        async with open_dispatch() as dispatch:
            those = waits.Waits(dispatch, device, 8192, b"/", None)
            those.start()
            for number in range(3):
                await until(lambda: those.entries.ready)
                dispatch.enter(lambda: those.tell([formats.inval_pages(5)], told.append))
                await until(lambda number=number: len(told) == number + 1)  # type: ignore[misc]
            assert told == [0] * 3, "by threads"
            assert those.replaced == 2
            assert len(peers) == 4
            assert not those.entries.ready
            those.close()
    os.close(device)
    for peer in peers:
        peer.close()
