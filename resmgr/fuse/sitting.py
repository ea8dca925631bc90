"""In which directories of a mount programs of this machine stand: their current directories, as /proc tells."""

from __future__ import annotations

import os
from typing import Final

PROCESSES_MAX: Final = 65536
"""Processes that are asked. Stops a machine full of them from keeping a thread for long."""


def sitting(mountpoint: bytes) -> set[bytes]:
    """The current directories below *mountpoint*, as paths from there, as the kernel has their names; of those processes that this one may
    look at. To read the link asks no file system. Some microseconds for each process, so it is for a worker thread."""
    top = mountpoint.rstrip(b"/") + b"/"
    found: set[bytes] = set()
    try:
        processes = os.listdir(b"/proc")
    except OSError:
        return found
    for process in [one for one in processes if one.isdigit()][:PROCESSES_MAX]:
        try:
            path = os.readlink(b"/proc/%b/cwd" % process)
        except OSError:
            continue
        if path.startswith(top):
            found.add(path[len(top) :])
    return found
