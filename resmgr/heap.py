"""How the C library's allocator treats a daemon that handles megabytes in pieces of a packet's size.

A burst of packets is a megabyte or two that is allocated, sent and freed, again and again. With its defaults glibc gives memory at the end
of the heap back to the system as soon as 128 KiB are free there, and takes blocks of 128 KiB and more from the system one by one: each
burst then begins with page faults, a quarter of all processor time of a node that sends files.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
KEPT: Final = 16 * 1024 * 1024
"""Bytes free at the end of the heap that are kept for the next burst."""
GROWTH: Final = 1024 * 1024
MAPPED: Final = 8 * 1024 * 1024
"""Blocks of this size and above are still the system's own."""


def keep_freed_memory() -> bool:
    """Set this process's allocator so; for daemons, at their start. False where the C library has no such settings."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_TRIM_THRESHOLD, KEPT), (_M_TOP_PAD, GROWTH), (_M_MMAP_THRESHOLD, MAPPED))
    return all(mallopt(ctypes.c_int(which), ctypes.c_int(value)) == 1 for which, value in settings)
