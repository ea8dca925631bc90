"""Formats of the FUSE kernel protocol, 7.31 to 7.40, as in include/uapi/linux/fuse.h. All numbers are in the machine's byte order.

A request is an `IN_HEADER` (40 bytes), the operation's fixed part, then names (each ended by a zero byte) or data. A reply is an
`OUT_HEADER` (16 bytes: total length, 0 or -errno, the request's `unique`) and, without error, the operation's reply. A message with
`unique` 0 and a positive code in the place of the error is a notification. One read(2) gives one request, one write(2) takes one reply.

Parsing raises only `BadMessage`. What is listed here is what the machine uses; operations it does not serve are named in `Opcode` so that
counters and `status` can name them.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage

MAJOR: Final = 7
MINOR_MIN: Final = 31
"""Linux 5.4. Older kernels differ in structures and are refused with a clear message."""
MINOR_MAX: Final = 40
ROOT_ID: Final = 1


class Opcode(enum.IntEnum):
    """Every opcode of the protocol."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


class Init(enum.IntFlag):
    """Flags of INIT. Bits from 32 on travel in `flags2`."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    HAS_RESEND = 1 << 39


O_ACCMODE: Final = 0o3
O_RDWR: Final = 0o2
O_CREAT: Final = 0o100
O_EXCL: Final = 0o200
O_TRUNC: Final = 0o1000
O_APPEND: Final = 0o2000
O_NONBLOCK: Final = 0o4000
O_DSYNC: Final = 0o10000
O_SYNC: Final = 0o4000000 | O_DSYNC
"""Open flags with the same numbers on all machines."""

FOPEN_DIRECT_IO: Final = 1
FOPEN_KEEP_CACHE: Final = 2
FOPEN_CACHE_DIR: Final = 8
FOPEN_NONSEEKABLE: Final = 4
FOPEN_STREAM: Final = 16
FOPEN_NOFLUSH: Final = 32
"""7.35: the kernel sends no FLUSH for this open file."""

FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_KILL_SUIDGID: Final = 1 << 11

GETATTR_FH: Final = 1
WRITE_KILL_SUIDGID: Final = 1 << 2
WRITE_CACHE: Final = 1
"""WRITE flag: the data come from a shared mapping, the file handle is any writable one of the inode."""
FSYNC_DATA: Final = 1
NOTIFY_POLL: Final = 1
NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3
NOTIFY_STORE: Final = 4
NOTIFY_RESEND: Final = 7
EXPIRE_ONLY: Final = 1
"""INVAL_ENTRY flag."""


class Format:
    """A fixed part at a place in a message."""

    __slots__ = ("_unpack", "pack", "size")

    def __init__(self, layout: str) -> None:
        compiled = struct.Struct("=" + layout)
        self.size = compiled.size
        self.pack = compiled.pack
        self._unpack = compiled.unpack_from

    def parse(self, view: Buffer, offset: int = 0) -> tuple[int, ...]:
        """The fields at *offset*. `BadMessage` when *view* ends before."""
        try:
            return self._unpack(view, offset)
        except struct.error:
            raise BadMessage("kernel request cut short") from None


IN_HEADER = Format("IIQQIIIHH")
"""len, opcode, unique, nodeid, uid, gid, pid, length of extensions, padding."""
BODY: Final = IN_HEADER.size
OUT_HEADER = Format("IiQ")
"""len, error (0 or -errno; a notification's code), unique."""

INIT_IN = Format("IIII")
"""major, minor, max_readahead, flags; flags2 follows when flags has INIT_EXT."""
INIT_FLAGS2 = Format("I")
INIT_OUT = Format("IIIIHHIIHHI28x")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages, map_alignment, flags2."""
GETATTR_IN = Format("I4xQ")
"""flags, fh."""
SETATTR_IN = Format("I4xQQQqqqIIIIIIII")
"""valid, fh, size, lock_owner, atime, mtime, ctime (s), their nanoseconds, mode, unused, uid, gid, unused."""
MKNOD_IN = Format("IIII")
"""mode, rdev (32 bits), umask, padding; name."""
MKDIR_IN = Format("II")
"""mode, umask; name."""
RENAME_IN = Format("Q")
"""new directory; old name, new name."""
RENAME2_IN = Format("QI4x")
"""new directory, flags; old name, new name."""
LINK_IN = Format("Q")
"""existing node; the header's node is the directory; new name."""
OPEN_IN = Format("II")
"""flags, open_flags."""
CREATE_IN = Format("IIII")
"""flags, mode, umask, open_flags; name."""
RELEASE_IN = Format("QIIQ")
"""fh, flags, release_flags, lock_owner."""
FH_IN = Format("Q")
"""What begins requests on something open: fh."""
FLUSH_IN = Format("Q8xQ")
"""fh, lock_owner."""
READ_IN = Format("QQIIQI4x")
"""fh, offset, size, read_flags, lock_owner, open flags. READDIR and READDIRPLUS use it too."""
WRITE_IN = Format("QQIIQI4x")
"""fh, offset, size, write_flags, lock_owner, open flags; data."""
FSYNC_IN = Format("QI4x")
"""fh, flags."""
POLL_IN = Format("QQII")
"""fh, kh (to wake with), flags, events."""
POLL_SCHEDULE: Final = 1
"""POLL flag: somebody waits and wants to be woken."""
IOCTL_IN = Format("QIIQII")
"""fh, flags, command, arg, size of the data, room for the answer's; data."""
LK_IN = Format("QQQQIII4x")
"""fh, owner, start, end (included), type, pid, flags."""
LK_FLOCK: Final = 1
ACCESS_IN = Format("I4x")
"""mask."""
INTERRUPT_IN = Format("Q")
"""unique of the request."""
FORGET_IN = Format("Q")
"""lookups to take back."""
BATCH_FORGET_IN = Format("I4x")
"""count; as many FORGET_ONE follow."""
FORGET_ONE = Format("QQ")
"""nodeid, lookups."""
FALLOCATE_IN = Format("QQQI4x")
"""fh, offset, length, mode."""
LSEEK_IN = Format("QQI4x")
"""fh, offset, whence."""
COPY_IN = Format("QQQQQQQ")
"""fh of the source, its offset, node and fh of the destination, its offset, length, flags."""
GETXATTR_IN = Format("I4x")
"""room (0: only the length is wanted); name for GETXATTR. LISTXATTR has no name."""
SETXATTR_IN = Format("II")
"""length of the value, flags; name, value."""
STATX_IN = Format("I4xQII")
"""getattr flags, fh, AT_STATX flags, mask."""

ATTR_LAYOUT: Final = "QQQqqqIIIIIIIIII"
"""ino, size, blocks, atime, mtime, ctime (s), their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags."""
ENTRY_LAYOUT: Final = "QQQQII" + ATTR_LAYOUT
"""nodeid, generation, entry and attribute validity (s), their nanoseconds, attributes."""
ENTRY_OUT = Format(ENTRY_LAYOUT)
ENTRY_REPLY = Format("IiQ" + ENTRY_LAYOUT)
ATTR_REPLY = Format("IiQ" + "QI4x" + ATTR_LAYOUT)
"""header, attribute validity (s), its nanoseconds, attributes."""
CREATE_REPLY = Format("IiQ" + ENTRY_LAYOUT + "QI4x")
"""header, entry, fh, open flags."""
OPEN_REPLY = Format("IiQ" + "QI4x")
"""header, fh, open flags."""
WRITE_REPLY = Format("IiQ" + "I4x")
"""header, bytes written."""
POLL_REPLY = Format("IiQ" + "I4x")
"""header, events that hold."""
IOCTL_REPLY = Format("IiQ" + "iIII")
"""header, result, three zeros; data."""
POLL_WAKEUP = Format("IiQ" + "Q")
"""header, kh."""
LK_REPLY = Format("IiQ" + "QQII")
"""header, start, end (included), type, pid."""
LSEEK_REPLY = Format("IiQ" + "Q")
"""header, offset."""
GETXATTR_REPLY = Format("IiQ" + "I4x")
"""header, length."""
STATX_REPLY = Format("IiQ" + "QII16x" + "IIQIIIH2xQQQQ" + "qI4x" * 4 + "IIII112x")
"""header, validity (s), its nanoseconds, flags; mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, mask of attributes,
atime, btime, ctime, mtime (s, ns each), rdev major, minor, dev major, minor."""
STATX_BASIC: Final = 0x7FF
STATX_BTIME: Final = 0x800
STATFS_REPLY = Format("IiQ" + "QQQQQIII28x")
"""header, blocks, bfree, bavail, files, ffree, bsize, namelen, frsize."""
DIRENT = Format("QQII")
"""ino, offset of the next entry, length of the name, type (mode >> 12); name, padded to 8 bytes."""
INVAL_INODE = Format("IiQ" + "Qqq")
"""header, nodeid, offset (negative: attributes only), length."""
ENTRY_AND_DIRENT = Format(ENTRY_LAYOUT + "QQII")
"""An entry of READDIRPLUS: ENTRY_OUT, then DIRENT."""
STORE = Format("IiQ" + "QQI4x")
"""header, nodeid, offset, size; data."""
INVAL_ENTRY = Format("IiQ" + "QII")
"""header, parent's nodeid, length of the name, flags; name and a zero byte."""

NSEC: Final = 1_000_000_000
MASK64: Final = (1 << 64) - 1
AttrTuple = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int]
"""The 13 fields of `iomsg.Attr`, in its order: ino mode nlink uid gid rdev size blocks blksize atime mtime ctime change."""


def device_32(rdev: int) -> int:
    """Linux's 64-bit device number as the 32 bits that FUSE carries (new_encode_dev)."""
    major = (rdev >> 8) & 0xFFF | (rdev >> 32) & ~0xFFF
    minor = rdev & 0xFF | (rdev >> 12) & ~0xFF
    return (minor & 0xFF | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12) & 0xFFFFFFFF


def device_64(rdev: int) -> int:
    """The opposite of `device_32`: FUSE's 32 bits as the number that makedev(3) makes."""
    major = (rdev & 0xFFF00) >> 8
    minor = rdev & 0xFF | (rdev >> 12) & 0xFFF00
    return (major & 0xFFF) << 8 | (major & ~0xFFF) << 32 | minor & 0xFF | (minor & ~0xFF) << 12


def attr_fields(attr: AttrTuple, ino: int, mode: int) -> tuple[int, ...]:
    """The fields of ATTR_LAYOUT from those of `iomsg.Attr`, with another *ino* and *mode*. Cannot fail for parsed attributes."""
    _, _, nlink, uid, gid, rdev, size, blocks, blksize, atime, mtime, ctime, _ = attr
    atime_s, atime_ns = divmod(atime, NSEC)
    mtime_s, mtime_ns = divmod(mtime, NSEC)
    ctime_s, ctime_ns = divmod(ctime, NSEC)
    return (
        ino,
        size,
        blocks,
        atime_s,
        mtime_s,
        ctime_s,
        atime_ns,
        mtime_ns,
        ctime_ns,
        mode,
        nlink,
        uid,
        gid,
        device_32(rdev) if rdev else 0,
        blksize,
        0,
    )


def statx_reply(unique: int, valid: tuple[int, int], fields: tuple[int, ...], born: int | None) -> bytes:
    """The reply to STATX from fields of ATTR_LAYOUT and the birth time (ns), None: not known."""
    ino, size, blocks, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode, nlink, uid, gid, rdev, blksize, _ = fields
    mask = STATX_BASIC if born is None else STATX_BASIC | STATX_BTIME
    born_s, born_ns = divmod(born or 0, NSEC)
    times = (atime, atime_ns, born_s, born_ns, ctime, ctime_ns, mtime, mtime_ns)
    device = device_64(rdev)
    major, minor = (device >> 8) & 0xFFF | (device >> 32) & ~0xFFF & 0xFFFFFFFF, device & 0xFF | (device >> 12) & ~0xFF & 0xFFFFFFFF
    named = (mask, blksize, 0, nlink, uid, gid, mode & 0xFFFF, ino, size, blocks, 0)
    return STATX_REPLY.pack(STATX_REPLY.size, 0, unique, *valid, 0, *named, *times, major, minor, 0, 0)


def error_reply(unique: int, code: int) -> bytes:
    """A reply without data: errno *code*, or 0 for success."""
    return OUT_HEADER.pack(16, -code, unique)


def inval_inode(nodeid: int) -> bytes:
    """Notification: the attributes of *nodeid* are not valid any more. Takes no page lock in the kernel, so it never waits for a READ."""
    return INVAL_INODE.pack(INVAL_INODE.size, NOTIFY_INVAL_INODE, 0, nodeid, -1, 0)


def resend() -> bytes:
    """Notification: send again what was read and not answered; for a kernel with `HAS_RESEND`."""
    return OUT_HEADER.pack(OUT_HEADER.size, NOTIFY_RESEND, 0)


def poll_wakeup(kh: int) -> bytes:
    """Notification: whoever polls the open file *kh* asks again. Never waits."""
    return POLL_WAKEUP.pack(POLL_WAKEUP.size, NOTIFY_POLL, 0, kh)


def inval_pages(nodeid: int) -> bytes:
    """Notification: neither attributes nor pages of *nodeid* are valid. Waits for READs of its pages: send it from a thread."""
    return INVAL_INODE.pack(INVAL_INODE.size, NOTIFY_INVAL_INODE, 0, nodeid, 0, 0)


def store(nodeid: int, data: Buffer) -> tuple[Buffer, ...]:
    """Notification: *data* are what the file *nodeid* begins with; the kernel keeps them as pages. Takes page locks, so it waits for READs
    of those pages: send it only when none can be under way."""
    return (STORE.pack(STORE.size + len(data), NOTIFY_STORE, 0, nodeid, 0, len(data)), data)


def inval_entry(parent: int, name: bytes, expire: bool = False) -> bytes:
    """Notification: forget what *name* in *parent* is, or (*expire*, if the kernel offers `HAS_EXPIRE_ONLY`) ask before it is believed.
    Waits for the directory's lock: send it from a thread that answers no request."""
    size = INVAL_ENTRY.size + len(name) + 1
    return INVAL_ENTRY.pack(size, NOTIFY_INVAL_ENTRY, 0, parent, len(name), EXPIRE_ONLY if expire else 0) + name + b"\0"


def name_at(view: Buffer, offset: int) -> bytes:
    """The one zero-ended name that ends a request at *offset*; not empty, no dot name, no slash."""
    text = bytes(view[offset:])
    end = len(text) - 1
    # `find` and not `in`, which tries bytes for a number first, and that is an exception each time.
    if end <= 0 or text.find(b"\0") != end or text.find(b"/") >= 0 or text == b".\0" or text == b"..\0":
        raise BadMessage("not the name of a directory entry")
    return text[:end]


def names_at(view: Buffer, offset: int, count: int) -> list[bytes]:
    """*count* zero-ended names from *offset* on; none may be empty, a dot name or hold a slash."""
    pieces = bytes(memoryview(view)[offset:]).split(b"\0", count)
    if len(pieces) != count + 1:
        raise BadMessage("name without end")
    del pieces[count]
    for name in pieces:
        if not name or name.find(b"/") >= 0 or name == b"." or name == b"..":
            raise BadMessage("not the name of a directory entry")
    return pieces


def value_at(view: Buffer, offset: int, size: int) -> tuple[bytes, bytes]:
    """A zero-ended name and the *size* bytes behind it, with which a request ends."""
    name, end, value = bytes(view[offset:]).partition(b"\0")
    if not end or not name or len(value) != size:
        raise BadMessage("not a name and a value")
    return name, value


def strings_at(view: Buffer, offset: int, count: int) -> list[bytes]:
    """As `names_at`, for names and texts of symbolic links, which may be anything."""
    pieces = bytes(memoryview(view)[offset:]).split(b"\0", count)
    if len(pieces) != count + 1:
        raise BadMessage("name without end")
    return pieces[:count]


def forgets(view: Buffer) -> list[tuple[int, int]]:
    """(nodeid, lookups) of a BATCH_FORGET."""
    (count,) = BATCH_FORGET_IN.parse(view, BODY)
    start = BODY + BATCH_FORGET_IN.size
    if len(view) < start + count * FORGET_ONE.size:
        raise BadMessage("kernel request cut short")
    layout = struct.Struct("=QQ")
    return [(node, lookups) for node, lookups in layout.iter_unpack(memoryview(view)[start : start + count * 16])]
