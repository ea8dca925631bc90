"""Options of `-d xdp`."""

from __future__ import annotations

from typing import Literal

import attrs

from stack.core.options import Size


def _power_of_two(_: object, field: object, value: int) -> None:
    if value & (value - 1) or not 64 <= value <= 1 << 16:
        raise ValueError("must be a power of two from 64 to 64k")


@attrs.frozen
class XdpOptions:
    """`ifname` is Linux's name of the interface; `name` what the stack calls it, the same by default."""

    ifname: str
    name: str = ""
    xdp: Literal["auto", "native", "generic"] = "auto"
    """Where the program runs: in the driver, or behind it."""
    copy: Literal["auto", "on", "off"] = "auto"
    """Whether the kernel copies frames into our memory; off (zero copy) needs a driver that can."""
    frames: Size = attrs.field(default=Size(2048), validator=_power_of_two)
    """Slots of each ring, per queue and direction."""
