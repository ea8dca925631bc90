"""Devices and FIFOs of this machine: which of them a client may open, by its export's words, and what is needed to open one.

A special file reaches further than its bytes: reading takes data away from others, opening alone may start something (a watchdog, a tape),
and a disk or /dev/mem holds everything. So an export serves of them only what its `devices` say (`resmgr.access`): null, zero, full, random
and urandom, and FIFOs, unless told otherwise. What counts is the device's number, not its name, so a device made somewhere else under a
harmless name is not let through; and mounts with `nodev` refuse as for local programs.

/dev/tty is nobody's here: it would be the terminal that the daemon was started from.
"""

from __future__ import annotations

import errno
import glob
import os
from stat import S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT

from resmgr.access import ALL_DEVICES, FIFOS, MEMORY, TERMINALS
from resmgr.hostfs.objects import HostHandle
from resmgr.hostfs.opened import own_path

MEMORY_DEVICES = frozenset(os.makedev(1, minor) for minor in (3, 5, 7, 8, 9))
OWN_TERMINAL = os.makedev(5, 0)
PTMX = os.makedev(5, 2)
PTS_MAJORS = range(136, 144)
MEM_MAJOR = 1
_KEPT = os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DSYNC
_ALWAYS = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Special:
    """A special file that is to be opened. Owns `node`, a descriptor that only names it; `close` gives it back."""

    __slots__ = ("flags", "kind", "node", "rdev", "status")

    def __init__(self, node: HostHandle, status: os.stat_result, flags: int) -> None:
        self.node = node
        self.status = status
        self.flags = flags
        self.kind = S_IFMT(status.st_mode)
        self.rdev = status.st_rdev

    @property
    def quick(self) -> bool:
        """Whether opening and closing it wait for nobody: a FIFO opened without blocking, memory, a pseudo terminal."""
        return self.kind == S_IFIFO or (self.kind == S_IFCHR and (os.major(self.rdev) in (MEM_MAJOR, *PTS_MAJORS) or self.rdev == PTMX))

    def open(self, access: int | None = None) -> int:
        """Open it, without waiting, as the calling thread's user; a new descriptor. *access*: another access mode."""
        flags = self.flags & _KEPT | _ALWAYS
        if access is not None:
            flags = flags & ~os.O_ACCMODE | access
        return os.open(own_path(self.node.fd), flags)

    def close(self) -> None:
        self.node.close()

    discard = close


def check(special: Special) -> None:
    """Raises OSError unless the export lets its client open it so."""
    scope, status, kind = special.node.scope, special.status, special.kind
    access = special.flags & os.O_ACCMODE
    if special.flags & os.O_DIRECTORY:
        raise NotADirectoryError(errno.ENOTDIR, "not a directory")
    if not scope.verbs:
        raise FileNotFoundError(errno.ENOENT, "not exported")
    if special.rdev == OWN_TERMINAL and kind == S_IFCHR:
        raise OSError(errno.ENXIO, "no client has a controlling terminal here")
    if not serves(scope.devices, status):
        raise PermissionError(errno.EACCES, "the export does not serve this device")
    if access != os.O_RDONLY and not scope.write:
        raise OSError(errno.EROFS, "export is read-only")
    if access != os.O_WRONLY and not scope.read:
        raise PermissionError(errno.EACCES, "export is write-only")
    if kind == S_IFIFO and not scope.write:
        raise OSError(errno.EROFS, "export is read-only, and reading a FIFO takes the data away")


def serves(words: frozenset[str], status: os.stat_result) -> bool:
    """Whether an export with these `devices` serves the special file."""
    kind = S_IFMT(status.st_mode)
    if ALL_DEVICES in words:
        return True
    if kind == S_IFIFO:
        return FIFOS in words
    if kind == S_IFCHR:
        if MEMORY in words and status.st_rdev in MEMORY_DEVICES:
            return True
        if TERMINALS in words and is_terminal(status.st_rdev):
            return True
    return any(word.startswith("/") and _leads_to(word, kind, status.st_rdev) for word in words)


def _leads_to(pattern: str, kind: int, rdev: int) -> bool:
    for path in glob.iglob(pattern):
        try:
            status = os.stat(path)
        except OSError:
            continue
        if S_IFMT(status.st_mode) == kind and status.st_rdev == rdev and kind in (S_IFCHR, S_IFBLK):
            return True
    return False


def is_terminal(rdev: int) -> bool:
    """Whether a terminal's driver has the character device (/proc/tty/drivers)."""
    major, minor = os.major(rdev), os.minor(rdev)
    try:
        with open("/proc/tty/drivers", encoding="ascii", errors="replace") as drivers:
            for line in drivers:
                fields = line.split()
                if len(fields) >= 4 and fields[2] == str(major):
                    first, _, last = fields[3].partition("-")
                    if int(first) <= minor <= int(last or first):
                        return True
    except (OSError, ValueError):
        pass
    return False
