"""What interfaces have in common whose link lies inside the stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stack.frame import BadFrame, Frame
from stack.wire.ethernet import ethertype_of


def made_address(random: Callable[[int], bytes]) -> bytes:
    """A locally administered address of a station."""
    made = random(6)
    return bytes((made[0] & 0xFC | 0x02,)) + made[1:]


def accepted(frames: Sequence[Frame], ethertypes: frozenset[int] | None) -> list[Frame]:
    """Those of *frames* that a driver of `accept(ethertypes)` hands up."""
    if ethertypes is None:
        return list(frames)
    return [frame for frame in frames if _kind(frame) in ethertypes]


def _kind(frame: Frame) -> int:
    try:
        return ethertype_of(frame)
    except BadFrame:
        return -1
