"""Names behind which a file system may not answer: where network and FUSE file systems are mounted.

A file system is known by the device of an open descriptor (`device`), but a walk, a stat or a listing with attributes crosses into one that
it has not met yet, and a file system that does not answer keeps whoever looks at its root. So the last components of such mount points are
kept, and whatever goes through a name like that is left to a worker thread. A directory elsewhere that happens to have the name is slower,
not wrong.

The list is read when the kernel says that it changed: mountinfo has an exceptional condition then (proc(5)).
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from resmgr.hostfs.device import blocks

_ESCAPES = ((rb"\040", b" "), (rb"\011", b"\t"), (rb"\012", b"\n"), (rb"\134", b"\\"))


def names_at_risk(mountinfo: bytes) -> dict[bytes, int]:
    """Last components of the mount points of file systems that may not answer, and the device (st_dev) that is mounted there.

    Of several with one name, the latest. Lines that do not parse are left out.
    """
    found: dict[bytes, int] = {}
    for line in mountinfo.splitlines():
        fields = line.split(b" ")
        try:
            kind = fields[fields.index(b"-", 6) + 1]
            name = fields[4].rpartition(b"/")[2]
            major, minor = map(int, fields[2].split(b":"))
        except (ValueError, IndexError):
            continue
        if name and blocks(kind):
            found[unescape(name)] = os.makedev(major, minor)
    return found


def unescape(name: bytes) -> bytes:
    """A path or name as mountinfo has it, as it is."""
    for escape, byte in _ESCAPES:
        name = name.replace(escape, byte)
    return name


class MountPoints:
    """Those of the mount namespace of the thread that makes it. Without /proc there are none, and nothing is known to be at risk."""

    def __init__(self) -> None:
        self.names: dict[bytes, int] = {}
        self.on_change: Callable[[], None] = lambda: None
        """Called by `look` when something was mounted or unmounted."""
        self._poll = select.poll()
        try:
            self._list = os.open("/proc/thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._list = -1
            return
        self._poll.register(self._list, select.POLLPRI)
        self._read()

    def _read(self) -> None:
        parts = []
        at = 0
        while part := os.pread(self._list, 65536, at):
            parts.append(part)
            at += len(part)
        self.names = names_at_risk(b"".join(parts))

    def look(self) -> dict[bytes, int]:
        """The names now. Costs a system call when nothing has changed."""
        if self._list >= 0 and self._poll.poll(0):
            self._read()
            self.on_change()
        return self.names

    def close(self) -> None:
        """Idempotent."""
        if self._list >= 0:
            os.close(self._list)
            self._list = -1
