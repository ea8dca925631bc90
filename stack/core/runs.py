"""Runs of segments that go through the stack in one piece (`stack.wire.run`): who may meet them, and where they are cut.

    driver -- whole, if asked --> IN hooks with `runs` --> Stack.output --> OUT hooks with `runs` --> driver, if it has `transmit_runs`
                                        |                                        |                         |
                                        +--- cut before the first who has not ---+-------------------------+

Nobody meets a run who did not say so. A driver hands them up whole only while a hook wants them, and only when no wrapper is around it:
what a wrapper sees is what is on a wire. While no hook wants runs, none is in the stack, and ordinary batches pay nothing for this; while
one does, a batch is looked through once when it comes in, some 30 ns per frame. In a batch with runs, and in what is sent outside of any,
they are looked for at each of these places. So a hook sends a run in the call that brought it, or from a callback of its own; not while it
has a batch without runs in hand, where it would not be cut and the driver would drop it as too long.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard

from stack.core.driver import Driver
from stack.frame import Frame
from stack.wire.run import Run


class RunDriver(Driver, Protocol):
    """A driver that receives runs and can send them."""

    def whole_runs(self, on: bool) -> None:
        """From now on deliver runs that are longer than the MTU allows as `Run`, or cut as before. Those that cannot be cut never come."""
        ...

    def transmit_runs(self, frames: list[Frame]) -> None:
        """As `transmit`, in the same order with it; runs among *frames* leave in one piece, and whoever is behind cuts them."""
        ...


def carries_runs(driver: Driver) -> TypeGuard[RunDriver]:
    return hasattr(driver, "whole_runs") and hasattr(driver, "transmit_runs")


def has_runs(frames: list[Frame]) -> bool:
    return Run in map(type, frames)


def cut_runs(frames: list[Frame]) -> list[Frame]:
    """*frames* as they are on a wire: the list itself when there is no run in it."""
    if not has_runs(frames):
        return frames
    wire: list[Frame] = []
    for frame in frames:
        if isinstance(frame, Run):
            wire += frame.segments()
        else:
            wire.append(frame)
    return wire
