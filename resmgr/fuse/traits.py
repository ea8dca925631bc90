"""What a request of the kernel means to the parts of the daemon that do not perform it: one row for each operation, sets made of them.

Who adds an operation decides here, in one place, whether it waits for writes, may be sent twice, may outlast its deadline and so on.
"""

from __future__ import annotations

import enum

from resmgr.fuse.formats import Opcode


class Trait(enum.IntFlag):
    """Of an operation."""

    NONE = 0
    ON_OPEN = enum.auto()
    """Needs what is open; the file handle is the first field of most."""
    BY_NODE = enum.auto()
    """Of those ON_OPEN: may say by which open file it asks, and may not."""
    AFTER_WRITES = enum.auto()
    """Begins when the writes that are on the way to its node have arrived."""
    NOT_TWICE = enum.auto()
    """Done a second time it does something else, or fails; WRITE is here because `writing` sends those again that say where the data go."""
    NEVER_KEPT = enum.auto()
    """Ends when its node goes down, also on a mount that waits."""
    NO_DEADLINE = enum.auto()
    """May take as long as it takes."""
    LOCKING = enum.auto()
    """The kernel holds the lock of its directory, or pages of its file, meanwhile."""
    NOT_WAITED_FOR = enum.auto()
    """Follows from what a program did; none waits for its answer. The kernel says it once: it is done also when it was given up."""
    STREAMING = enum.auto()
    """Moves data: through a character device or FIFO for as long as that takes."""
    TELLS_ERRORS = enum.auto()
    """Tells what became of writes that were said to be done."""
    AFTER_REMOVALS = enum.auto()
    """Begins when the removals that are on the way, and that it could notice or be taken for a sign of, have arrived (`removals`)."""
    XATTR = enum.auto()
    """Answered with ENOSYS on mounts without extended attributes: the kernel asks once and never again."""


_T = Trait
TRAITS: dict[Opcode, Trait] = {
    Opcode.LOOKUP: _T.LOCKING | _T.AFTER_REMOVALS,
    Opcode.FORGET: _T.NOT_WAITED_FOR,
    Opcode.BATCH_FORGET: _T.NOT_WAITED_FOR,
    Opcode.GETATTR: _T.ON_OPEN | _T.BY_NODE | _T.AFTER_WRITES | _T.AFTER_REMOVALS,
    Opcode.SETATTR: _T.ON_OPEN | _T.BY_NODE | _T.AFTER_WRITES | _T.AFTER_REMOVALS | _T.LOCKING,
    Opcode.STATX: _T.ON_OPEN | _T.BY_NODE | _T.AFTER_WRITES | _T.AFTER_REMOVALS,
    Opcode.READLINK: _T.NONE,
    Opcode.ACCESS: _T.NONE,
    Opcode.STATFS: _T.AFTER_REMOVALS,
    Opcode.SYMLINK: _T.NOT_TWICE | _T.LOCKING | _T.AFTER_REMOVALS,
    Opcode.MKNOD: _T.NOT_TWICE | _T.LOCKING | _T.AFTER_REMOVALS,
    Opcode.MKDIR: _T.NOT_TWICE | _T.LOCKING | _T.AFTER_REMOVALS,
    Opcode.UNLINK: _T.NOT_TWICE | _T.LOCKING | _T.AFTER_REMOVALS,
    Opcode.RMDIR: _T.NOT_TWICE | _T.LOCKING | _T.AFTER_REMOVALS,
    Opcode.RENAME: _T.NOT_TWICE | _T.LOCKING | _T.AFTER_REMOVALS,
    Opcode.RENAME2: _T.NOT_TWICE | _T.LOCKING | _T.AFTER_REMOVALS,
    Opcode.LINK: _T.NOT_TWICE | _T.LOCKING | _T.AFTER_REMOVALS,
    Opcode.CREATE: _T.NOT_TWICE | _T.LOCKING | _T.AFTER_REMOVALS,
    Opcode.TMPFILE: _T.AFTER_REMOVALS,
    Opcode.OPEN: _T.AFTER_WRITES | _T.AFTER_REMOVALS,
    Opcode.READ: _T.ON_OPEN | _T.AFTER_WRITES | _T.LOCKING | _T.STREAMING,
    Opcode.WRITE: _T.ON_OPEN | _T.NOT_TWICE | _T.LOCKING | _T.STREAMING | _T.TELLS_ERRORS | _T.AFTER_REMOVALS,
    Opcode.FLUSH: _T.ON_OPEN | _T.AFTER_WRITES | _T.TELLS_ERRORS | _T.AFTER_REMOVALS,
    Opcode.FSYNC: _T.ON_OPEN | _T.AFTER_WRITES | _T.TELLS_ERRORS | _T.AFTER_REMOVALS,
    Opcode.RELEASE: _T.NEVER_KEPT | _T.NOT_WAITED_FOR | _T.AFTER_REMOVALS,
    Opcode.FALLOCATE: _T.ON_OPEN | _T.AFTER_WRITES | _T.NOT_TWICE,
    Opcode.LSEEK: _T.ON_OPEN | _T.AFTER_WRITES,
    Opcode.COPY_FILE_RANGE: _T.ON_OPEN | _T.AFTER_WRITES,
    Opcode.OPENDIR: _T.AFTER_REMOVALS,
    Opcode.READDIR: _T.ON_OPEN | _T.LOCKING | _T.AFTER_REMOVALS,
    Opcode.READDIRPLUS: _T.ON_OPEN | _T.LOCKING | _T.AFTER_REMOVALS,
    Opcode.FSYNCDIR: _T.ON_OPEN | _T.LOCKING | _T.AFTER_REMOVALS,
    Opcode.RELEASEDIR: _T.NEVER_KEPT | _T.NOT_WAITED_FOR,
    Opcode.GETLK: _T.ON_OPEN,
    Opcode.SETLK: _T.ON_OPEN | _T.AFTER_WRITES | _T.AFTER_REMOVALS,
    Opcode.SETLKW: _T.ON_OPEN | _T.AFTER_WRITES | _T.NO_DEADLINE | _T.AFTER_REMOVALS,
    Opcode.POLL: _T.NEVER_KEPT | _T.NO_DEADLINE,
    Opcode.IOCTL: _T.NOT_TWICE | _T.NEVER_KEPT | _T.NO_DEADLINE,
    Opcode.GETXATTR: _T.XATTR,
    Opcode.LISTXATTR: _T.XATTR,
    Opcode.SETXATTR: _T.XATTR | _T.NOT_TWICE | _T.LOCKING | _T.AFTER_REMOVALS,
    Opcode.REMOVEXATTR: _T.XATTR | _T.NOT_TWICE | _T.LOCKING | _T.AFTER_REMOVALS,
}


def _having(trait: Trait) -> frozenset[int]:
    return frozenset(opcode for opcode, traits in TRAITS.items() if trait in traits)


ON_OPEN = _having(Trait.ON_OPEN)
BY_NODE = _having(Trait.BY_NODE)
AFTER_WRITES = _having(Trait.AFTER_WRITES)
AFTER_REMOVALS = _having(Trait.AFTER_REMOVALS)
NOT_TWICE = _having(Trait.NOT_TWICE)
NEVER_KEPT = _having(Trait.NEVER_KEPT)
NO_DEADLINE = _having(Trait.NO_DEADLINE)
LOCKING = _having(Trait.LOCKING)
NOT_WAITED_FOR = _having(Trait.NOT_WAITED_FOR)
STREAMING = _having(Trait.STREAMING)
TELLS_ERRORS = _having(Trait.TELLS_ERRORS)
XATTRS = _having(Trait.XATTR)
