"""A pair of drivers on a real dispatch, for `stack.testing.driver.check_driver`, and waiting for what the kernel does."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from stack.core.driver import Driver

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


__all__ = ["Pair", "settle"]
