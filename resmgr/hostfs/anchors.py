"""Where a file system is mounted: open_by_handle_at takes a directory of it (`reopen`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from resmgr.hostfs.mountpoints import unescape

ANCHORS_MAX: Final = 16
"""Mount points of one file system that are tried. Stops a machine that has it mounted a thousand times from keeping a thread."""


def anchors(device: int, top: bytes) -> Iterator[tuple[int, bytes]]:
    """Where the file system *device* (st_dev) is mounted at or below *top* (which ends with a slash), or around it: a descriptor, and the
    path, which ends with a slash. What is not below that is not seen there. Each descriptor is closed when the next is asked for. Opened
    with the daemon's own rights; on the calling thread, which may have to wait."""
    try:
        with open("/proc/thread-self/mountinfo", "rb") as mounts:
            found = [point for point in map(unescape, points(mounts.read(), device)) if related(point, top)]
    except OSError:
        return
    for point in found[:ANCHORS_MAX]:
        with suppress(OSError):
            fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)
            try:
                if os.fstat(fd).st_dev == device:
                    yield fd, point.rstrip(b"/") + b"/"
            finally:
                os.close(fd)


def points(mountinfo: bytes, device: int) -> list[bytes]:
    """Mount points of *device*, as they are written there; first those at which the whole of it is seen. Lines that do not parse are left
    out."""
    name = b"%d:%d" % (os.major(device), os.minor(device))
    lines = [fields for line in mountinfo.splitlines() if len(fields := line.split(b" ")) > 4 and fields[2] == name]
    return [fields[4] for fields in sorted(lines, key=lambda fields: fields[3] != b"/")]


def related(point: bytes, top: bytes) -> bool:
    """Whether what is mounted at *point* may hold something below *top*."""
    slashed = point.rstrip(b"/") + b"/"
    return slashed.startswith(top) or top.startswith(slashed)
