"""Rings in memory that the kernel shares with us: packet(7), AF_XDP.

The kernel orders its writes (frame, then status) and so must we. Python cannot issue barriers: a ring relies on total store order, which
x86 has.
"""

from __future__ import annotations

import platform

_TOTAL_STORE_ORDER = frozenset(("x86_64", "i686", "i386", "AMD64"))


def ring_is_safe() -> bool:
    """The processor keeps the order of stores and loads that a ring needs."""
    return platform.machine() in _TOTAL_STORE_ORDER
