"""What drivers ask of a frame: may it be sent on this link, and is it for this station; and what a driver has taken of those it got."""

from __future__ import annotations

from collections.abc import Callable

from stack.core.statistics import Drop
from stack.frame import BadFrame, Frame
from stack.wire.ethernet import HEADER_SIZE, MAC_SIZE, TAG_SIZE, TPIDS, ethertype_of, is_group, unpack_type


def fitting(frames: list[Frame], mtu: int, count: Callable[[str], None]) -> list[Frame]:
    """Those of *frames* that a link of *mtu* carries, in order, or *frames* itself if that is all; *count* hears of each other one. A tag
    does not count as payload."""
    longest = mtu + HEADER_SIZE
    sizes = list(map(len, frames))
    if not sizes or (max(sizes) <= longest and min(sizes) >= HEADER_SIZE):
        return frames
    good: list[Frame] = []
    for frame in frames:
        size = len(frame)
        if size < HEADER_SIZE:
            count(Drop.TOO_SHORT)
        elif size > longest and not (unpack_type(frame)[0] in TPIDS and size <= longest + TAG_SIZE):
            count(Drop.TOO_LONG)
        else:
            good.append(frame)
    return good


def for_station(frames: list[Frame], mac: bytes, count: Callable[[str, int], None]) -> list[Frame]:
    """Those of *frames* that are for the station *mac* or for a group, in order; *count* hears how many are for others."""
    ours = [frame for frame in frames if frame[:MAC_SIZE] == mac or (frame and frame[0] & 1)]
    if len(ours) < len(frames):
        count(Drop.OTHER_HOST, len(frames) - len(ours))
    return ours


def accepted(frames: list[Frame], ethertypes: frozenset[int] | None) -> list[Frame]:
    """Those of *frames* that `accept(ethertypes)` asks for."""
    return list(frames) if ethertypes is None else [frame for frame in frames if is_accepted(frame, ethertypes)]


def taken(frames: list[Frame], mtu: int, dropped: int) -> list[Frame]:
    """Those of *frames* that a driver took, which has dropped as many as *dropped* of them: those that do not fit, or else it is not known
    which, and the first stand for the others."""
    fits = fitting(frames, mtu, _nobody)
    return fits[: max(0, len(frames) - dropped)]


def _nobody(reason: str) -> None:
    pass


def is_accepted(frame: Frame, ethertypes: frozenset[int] | None) -> bool:
    """Whether `accept(ethertypes)` asks for it. One whose tags make no sense is of no ethertype."""
    if ethertypes is None:
        return True
    try:
        return ethertype_of(frame) in ethertypes
    except BadFrame:
        return False


def is_wanted(frame: Frame, mac: bytes, others: bool, ethertypes: frozenset[int] | None) -> bool:
    """Whether a station *mac* hands it up: it is for it, for a group, or anybody's if *others*; and of an ethertype that is wanted."""
    return (others or is_group(frame) or frame[:MAC_SIZE] == mac) and is_accepted(frame, ethertypes)
