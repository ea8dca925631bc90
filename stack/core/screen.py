"""Screening: what a protocol tells drivers about its frames, so that a flood of worthless ones costs it little.

An ethertype may have a `Screen`. It sorts frames into two queues, or sheds them, before they wake anybody:

    main    frames that are worth a look at once
    side    frames that strangers can send; a short queue with a budget of its own. What does not fit is lost there, and nowhere else
    shed    neither: gone, for the price of the program; a sample of them goes to the side queue cut short, so that they can be counted

A driver that can screen (the packet driver: in the kernel) has `screen`, and is then a `Screening`. Any other delivers everything, which is
slower under a flood and otherwise the same: a protocol never relies on a screen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeGuard

import attrs

from stack.core.driver import Driver
from stack.filter.bpf.assembler import Code


@attrs.frozen(eq=False)
class Screen:
    """Two programs in classic BPF, run on each frame of the ethertype that is for this machine.

    They begin with X = where the payload begins and end with RET: WHOLE in the queue where the frame belongs, 0 in the other, in `side`
    also SAMPLE_SIZE.
    """

    main: Code
    side: Code
    sample_of: int
    """Shed frames that a sampled one stands for."""
    pressed: Callable[[], None]
    """Called in dispatch context when the side queue held more than its budget."""


class Screening(Driver, Protocol):
    """A driver that screens."""

    def screen(self, screens: Mapping[int, Screen]) -> None:
        """From now on screen these ethertypes, and no others."""
        ...

    @property
    def shed(self) -> int:
        """Frames shed since the start, as far as samples tell."""
        ...


def can_screen(driver: Driver) -> TypeGuard[Screening]:
    return hasattr(driver, "screen")
