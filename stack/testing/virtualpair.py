"""A pair of drivers under virtual time, for `stack.testing.driver.check_driver`."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from resmgr.testing.virtual import VirtualDispatch
from stack.core.driver import Driver


@attrs.define
class VirtualPair:
    """A `stack.testing.driver.DriverPair` whose drivers are on a `VirtualDispatch`."""

    dispatch: VirtualDispatch
    a: Driver
    b: Driver

    async def settle(self, until: Callable[[], bool], seconds: float) -> bool:
        return self.dispatch.run_until(until, limit=seconds)
