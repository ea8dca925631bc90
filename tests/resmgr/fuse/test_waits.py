"""What the kernel is to be told is told, also where there is no room for a descriptor, a thread or a process just then."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager

import pytest
import trio

from resmgr.fuse import formats
from resmgr.fuse.waits import Waits
from resmgr.runner import TrioDispatch, open_dispatch
from tests.resmgr.limits import no_descriptors, no_room_for_threads

MESSAGE = formats.inval_entry(1, b"name")


@asynccontextmanager
async def waits() -> AsyncIterator[tuple[TrioDispatch, Waits, int]]:
    """Those of a "device" that is a pipe, and its other end."""
    there, here = os.pipe2(os.O_NONBLOCK)
    try:
        async with open_dispatch() as dispatch:
            found = Waits(dispatch, here, 1 << 16, b"/", None)
            yield dispatch, found, there
            found.close()
    finally:
        os.close(here)
        os.close(there)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110  # there is no event for a dispatch going on
            await trio.sleep(0.001)


@pytest.mark.parametrize("room", [no_descriptors, no_room_for_threads])
async def test_it_is_told_when_there_is_room_again(room: Callable[[], AbstractContextManager[None]]) -> None:
    results: list[int] = []
    async with waits() as (dispatch, found, there):
        with room():
            dispatch.enter(lambda: found.tell([MESSAGE], results.append))
            await until(lambda: dispatch.statistics().blocking_now == 0)
            assert not results
        await until(lambda: bool(results))
        assert results == [0]
        assert os.read(there, 1 << 16) == MESSAGE


@pytest.mark.parametrize("room", [no_descriptors, no_room_for_threads])
async def test_nothing_is_left_open_when_the_processes_cannot_be_started(room: Callable[[], AbstractContextManager[None]]) -> None:
    async with waits() as (dispatch, found, _):
        before = len(os.listdir("/proc/self/fd"))
        with room():
            dispatch.enter(found.start)
            await until(lambda: dispatch.statistics().blocking_now == 0)
        assert not found.entries.ready
        assert not found.pages.ready
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_without_room_for_its_threads_ends_and_says_nothing() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [str(theirs.fileno()), "entries", "0", "4096"]
    begun = f"from resmgr.fuse import notifier; notifier.STACK = 1 << 46; notifier.main({words!r})"
    with ours, theirs:
        ended = subprocess.run([sys.executable, "-c", begun], pass_fds=[theirs.fileno()], capture_output=True, timeout=20, check=False)
    assert (ended.returncode, ended.stderr) == (1, b"")
