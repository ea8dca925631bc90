"""A pair of drivers on a real dispatch, for `stack.testing.driver.check_driver`, and waiting for what the kernel does."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from resmgr.dispatch import Dispatch
from stack.core.driver import Driver
from stack.drivers.wrap.fault import FaultDriver, FaultOptions

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


def through_fault(dispatch: Dispatch, *drivers: Driver) -> list[Driver]:
    """Each in a fault wrapper that does nothing: the contract must hold through any wrapper, whatever the driver can do besides."""
    outer: list[Driver] = []
    for driver in drivers:
        wrapper = FaultDriver(dispatch, FaultOptions())
        wrapper.around(driver)
        outer.append(wrapper)
    return outer


__all__ = ["Pair", "settle", "through_fault"]
