"""A pair of drivers on a real dispatch, for `stack.testing.driver.check_driver`, and waiting for what the kernel does.

check_on_dispatch(lambda dispatch: (MyDriver(dispatch, near), MyDriver(dispatch, far)))
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from resmgr.dispatch import Dispatch
from resmgr.runner import open_dispatch
from stack.core.driver import Driver
from stack.drivers.wrap.fault import FaultDriver, FaultOptions
from stack.testing.driver import Stations, check_driver

LOOK_EVERY = 0.002


async def settle(until: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Let the dispatch run until the predicate holds (True) or *seconds* have passed (False)."""
    with trio.move_on_after(seconds):
        while not until():  # noqa: ASYNC110  # what is awaited is the kernel: there is no event to wait for
            await trio.sleep(LOOK_EVERY)
        return True
    return False


@attrs.define
class Pair:
    """A `stack.testing.driver.DriverPair` whose drivers are on a `TrioDispatch`."""

    a: Driver
    b: Driver

    async def settle(self, until: Callable[[], bool], seconds: float) -> bool:
        return await settle(until, seconds)


def check_on_dispatch(make: Callable[[Dispatch], tuple[Driver, Driver]], stations: Stations | None = None) -> None:
    """The contract of the two drivers that *make* gives, and that nothing of them is left on the dispatch. Blocks, in a Trio run of its
    own."""

    async def check() -> None:
        async with open_dispatch() as dispatch:
            await check_driver(Pair(*make(dispatch)), stations)
            left = dispatch.statistics().descriptors
            assert left == 0, f"after detach {left} descriptors are attached to the dispatch"

    trio.run(check)


def through_fault(dispatch: Dispatch, *drivers: Driver) -> list[Driver]:
    """Each in a fault wrapper that does nothing: the contract must hold through any wrapper, whatever the driver can do besides."""
    outer: list[Driver] = []
    for driver in drivers:
        wrapper = FaultDriver(dispatch, FaultOptions())
        wrapper.around(driver)
        outer.append(wrapper)
    return outer


__all__ = ["Pair", "check_on_dispatch", "settle", "through_fault"]
