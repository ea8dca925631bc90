"""A process that has no descriptors left: loading a driver is refused in a sentence, wherever they end, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import random
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
import trio

from resmgr.runner import TrioDispatch, open_dispatch
from resmgr.system import System
from stack.core.errors import ModuleError
from stack.core.stack import Stack
from stack.testing.namespace import Veth

pytestmark = pytest.mark.priv

MOST = 60
"""More than any driver needs."""
OPTIONS = {
    "packet": "ifname=va",
    "xdp": "ifname=va",
    "tap": "ifname=t0",
    "veth": "ifname=q0,peer=q1",
    "vxlan": "vni=42,remote=10.9.0.2",
    "udp": "port=34997",
}


@pytest.fixture
async def dispatch() -> AsyncIterator[TrioDispatch]:
    async with open_dispatch() as made:
        yield made


@contextmanager
def left(number: int) -> Iterator[None]:
    """The process can open *number* descriptors more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + MOST, limits[1]))
    taken = []
    try:
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for _ in range(number):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def held() -> int:
    return len(os.listdir("/proc/self/fd"))


async def given_back(before: int) -> bool:
    """As many are open as *before*; a worker thread may close the last of them a moment after the driver has gone."""
    with trio.move_on_after(3):
        while held() != before:  # noqa: ASYNC110  # what is awaited is a thread: there is no event to wait for
            await trio.sleep(0.002)
    return held() == before


@pytest.mark.parametrize("name", OPTIONS)
async def test_without_descriptors_a_driver_is_refused_and_leaves_none(dispatch: TrioDispatch, veth: Veth, name: str) -> None:
    veth.a.ip("link", "set", "lo", "up")
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    gc.disable()  # what only the collector closes is left
    try:
        before = held()
        with veth.a.entered():
            stack.unload(stack.load(name, OPTIONS[name]))  # imports need descriptors, too
        assert await given_back(before)
        with veth.a.entered():
            refused = 0
            for number in range(MOST):
                with left(number):
                    try:
                        loaded = stack.load(name, OPTIONS[name])
                    except ModuleError:
                        refused += 1
                        continue
                stack.unload(loaded)
                break
        assert refused == number > 1
        assert await given_back(before)
    finally:
        gc.enable()
    stack.close()
