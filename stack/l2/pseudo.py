"""What interfaces have in common whose link lies inside the stack."""

from __future__ import annotations

from collections.abc import Callable


def made_address(random: Callable[[int], bytes]) -> bytes:
    """A locally administered address of a station."""
    made = random(6)
    return bytes((made[0] & 0xFC | 0x02,)) + made[1:]
