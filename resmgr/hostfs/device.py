"""What is known of each mounted file system (one `st_dev`): does it answer at once, can it read without blocking, which inode numbers.

An operation that a local file system answers from memory is done inline; a thread hop would cost ten times as much. But the dispatch must
not wait for a disk or for another machine, so:

- network and FUSE file systems are never touched inline, nor is the way across their mount points gone inline (`mountpoints`); nor is
  /proc, where a read may wait for the pages and locks of another process, which may be pages that this daemon is to bring;
- a file system on which an inline operation took longer than `SLOW` is left to worker threads for `REST` seconds, unless its files are
  pages in memory and nothing else;
- what goes to threads goes there by the file system's lane (`resmgr.iofunc.lanes`): a dead one keeps a few threads, not all;
- a read is tried with RWF_NOWAIT; where that is refused, the device is remembered as one whose reads go to a thread, unless it is
  one that lives in memory;
- a read of an open file asks on most kinds nobody who reads it (docs/decisions/acting-as-a-user.md).

The number of a file system that was unmounted may be given to another one. So kinds are looked at again when something was mounted.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from resmgr.iofunc.lanes import Lane, Lanes

SLOW: Final = 0.02
"""Seconds. Heartbeats and all other traffic of the node wait for an inline operation."""
REST: Final = 2.0
FOREVER = float("inf")
NETWORK: Final = frozenset(
    {b"nfs", b"nfs4", b"cifs", b"smb3", b"9p", b"ceph", b"afs", b"lustre", b"glusterfs", b"fuse", b"fuseblk", b"coda", b"autofs"}
)
MEMORY: Final = frozenset({b"tmpfs", b"ramfs", b"devtmpfs", b"proc", b"cgroup2", b"hugetlbfs"})
PAGES: Final = frozenset({b"tmpfs", b"ramfs", b"devtmpfs"})
"""Of these, the ones that never wait for anything: what took long was work (truncating a large file) or another process's turn."""
OPEN_COUNTS: Final = PAGES | {b"ext2", b"ext3", b"ext4", b"xfs", b"btrfs", b"f2fs", b"bcachefs", b"overlay", b"squashfs", b"erofs"}
"""Whoever has a file of these open may read it, whoever he is by then: the kernel asks when it is opened."""
INO_BITS: Final = 48
PROC: Final = b"proc"


def blocks(kind: bytes) -> bool:
    """Whether file systems of this kind wait for somebody else, who may never answer."""
    return kind in NETWORK or kind.startswith(b"fuse.") or kind == PROC


class Device:
    """One file system."""

    __slots__ = ("blocking_until", "kind", "lane", "memory", "nowait", "number", "open_counts", "proc", "salt")

    def __init__(self, number: int, kind: bytes, salt: int, lanes: Lanes) -> None:
        self.number = number
        self.kind = kind
        self.salt = salt
        """Or-ed over the inode numbers of this device, so that they are unique in the served tree."""
        self.memory = kind in MEMORY
        self.proc = kind == PROC
        self.open_counts = kind in OPEN_COUNTS
        self.nowait = True
        """RWF_NOWAIT has not been refused yet."""
        self.blocking_until = FOREVER if blocks(kind) else 0.0
        """Until then (monotonic seconds) everything goes to worker threads."""
        name = f"file system {os.major(number)}:{os.minor(number)} ({kind.decode(errors='replace') or 'unknown'})"
        self.lane = Lane(lanes, name, blocks(kind))
        """Where its work in threads waits."""

    def took(self, seconds: float, now: float, work: float = 0.0) -> None:
        """An inline operation ended at *now* and took *seconds*, of which *work* are expected of its size."""
        if seconds > SLOW + work and self.kind not in PAGES:
            self.blocking_until = max(self.blocking_until, now + REST)


def _kinds() -> dict[bytes, bytes]:
    """Kind by `major:minor` of what is mounted; what does not parse is left out."""
    kinds: dict[bytes, bytes] = {}
    try:
        with open("/proc/thread-self/mountinfo", "rb") as mounts:
            for line in mounts:
                fields = line.split()
                try:
                    kinds[fields[2]] = fields[fields.index(b"-") + 1]
                except (ValueError, IndexError):
                    continue
    except OSError:
        pass
    return kinds


def _name(number: int) -> bytes:
    return b"%d:%d" % (os.major(number), os.minor(number))


class Devices:
    """All file systems seen so far. The tree's own device has salt 0, so its inode numbers are the real ones."""

    def __init__(self, root: int, lanes: Lanes) -> None:
        self.lanes = lanes
        self._devices: dict[int, Device] = {}
        self._salts: set[int] = set()
        self._lock = threading.Lock()
        self.root = self.get(root)

    def get(self, number: int) -> Device:
        device = self._devices.get(number)
        if device is None:
            with self._lock:
                device = self._devices.get(number)
                if device is None:
                    device = Device(number, _kinds().get(_name(number), b""), self._salt(number), self.lanes)
                    self._devices[number] = device
        return device

    def mounts_changed(self) -> None:
        """Something was mounted or unmounted. Dispatch context."""
        kinds = _kinds()
        with self._lock:
            for number, device in list(self._devices.items()):
                kind = kinds.get(_name(number))
                if kind is not None and kind != device.kind:
                    # Another one: nothing of the old one is open, or it would still have its number.
                    self._devices[number] = Device(number, kind, device.salt, self.lanes)

    def _salt(self, number: int) -> int:
        if not self._devices:
            salt = 0
        else:
            # From the number, so that it is the same after a restart; the next free one if two numbers meet.
            salt = (number * 0x9E3779B97F4A7C15 >> 48) & 0xFFFF
            while salt in self._salts:
                salt = salt + 1 & 0xFFFF
        self._salts.add(salt)
        return salt << INO_BITS

    def ino(self, device: int, ino: int) -> int:
        """The inode number to tell, from st_dev and st_ino."""
        return ino ^ self.get(device).salt
