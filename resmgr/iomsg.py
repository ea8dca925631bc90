"""Formats of the messages that resource managers answer: connect messages and I/O messages (QNX `_IO_CONNECT`, `_IO_READ`, ...).

Every request begins with the same 16 bytes, network byte order, followed by the operation's own fixed part and then names or data:

    0       2         4         8                16
    +-------+---------+---------+-----------------+----------------
    | type  | subtype | flags   | handle          | fixed part, then bytes
    +-------+---------+---------+-----------------+----------------

*Connect* messages (type CONNECT) act on a name: `handle` is a base handle that an earlier reply gave (0: the manager's root) and the
trailing bytes are a path relative to it, components separated by one slash, never absolute, never `.` or `..`, possibly empty (the base
itself). Symbolic links are never followed: the walk of links is the client's business. *I/O* messages act on `handle`, an open control
block (OCB) or a base handle. Names are bytes.

Which server a handle belongs to is told by the reply (`Entry.target`): `/net/B` answers with a target on node B, and whatever follows is
sent there. A handle is only meaningful on the connection's server and only to the client (scoid) that obtained it.

Numbers of messages are QNX's where QNX has them. `mode`, open flags and rename flags are Linux's values.
"""

from __future__ import annotations

import enum
import os
import struct
from typing import Final

import attrs

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage


class Io(enum.IntEnum):
    """Message types. 0x100 to 0x11a are QNX's `_IO_*`; 0x140 on are ours."""

    CONNECT = 0x100
    READ = 0x101
    WRITE = 0x102
    STAT = 0x104
    NOTIFY = 0x105
    DEVCTL = 0x106
    LOCK = 0x10F
    SPACE = 0x110
    CLOSE = 0x116
    SYNC = 0x119
    READDIR = 0x140
    SETATTR = 0x141
    STATFS = 0x142
    COPY = 0x143
    SEEK = 0x144
    XATTR = 0x145
    WATCH = 0x146
    IDENTIFY = 0x147
    OFFER = 0x148
    FETCH = 0x149
    TAKE = 0x14A
    """Copies between two other nodes (`resmgr.copymsg`)."""
    DELEGATION = 0x14B


class Connect(enum.IntEnum):
    """Subtypes of CONNECT."""

    LOOKUP = 1
    OPEN = 2
    UNLINK = 3
    RMDIR = 4
    RENAME = 5
    MKDIR = 6
    MKNOD = 7
    LINK = 8
    SYMLINK = 9
    READLINK = 10
    SETATTR = 11
    ACCESS = 12
    STATFS = 13
    XATTR = 14
    TMPFILE = 15
    REOPEN = 16
    REMOVE = 18


REQUEST: Final = struct.Struct("!HHIQ")
NAME_MAX: Final = 255
PATH_MAX: Final = 4096
"""A longer trailing path is refused with ENAMETOOLONG; callers walk in steps."""

WANT_HANDLE: Final = 1
"""LOOKUP flag: keep a base handle even for what is not a directory."""
WANT_BIRTH: Final = 2
"""LOOKUP flag: `data` of the entry is the birth time as BIRTH; empty if the server does not know it."""
STAT_BIRTH: Final = 1
"""STAT flag: the birth time follows the attributes, as BIRTH, if the server knows it."""
BIRTH: Final = struct.Struct("!q")
"""Nanoseconds since the epoch."""
LOOKUP_WATCH: Final = 4
"""LOOKUP flag: if it is a directory, watch it."""
MKDIR_WATCH: Final = 4
"""MKDIR flag: watch what is made."""
OPEN_WATCH: Final = 1 << 30
"""OPEN flag beside Linux's: the directory is to be watched."""
OPEN_DELEGATE: Final = 1 << 29
"""OPEN flag beside Linux's: a delegation of the file is wanted (docs/protocol/delegation.md)."""
UNLINK_DIRECTORY: Final = 1
READDIR_ATTRS: Final = 1
"""READDIR flag: entries come with attributes."""
SYNC_DATA_ONLY: Final = 1
CLOSE_BATCH: Final = 1
"""CLOSE flag: the trailing bytes are further handles, eight bytes each."""
IDENTIFY_BATCH: Final = 1
"""IDENTIFY flag: the same trailing bytes. The reply is a length of one byte and a token for each, length 0 for what has none."""
IDENTIFY_MAX: Final = 64
"""Handles of one IDENTIFY message."""

OPEN: Final = struct.Struct("!III")
"""mode, umask, prefetch: open flags are in `flags`; up to `prefetch` first bytes come with the reply of a read-only open."""
MAKE: Final = struct.Struct("!IIQ")
"""MKDIR, MKNOD: mode (with type), umask, rdev."""
RENAME: Final = struct.Struct("!QIH")
"""new base handle, length of the old path, padding; rename flags are in `flags`; old path, then new path follow."""
LINK: Final = struct.Struct("!QIH")
"""As RENAME: the existing name is (handle, old path), the new one (second handle, new path)."""
SYMLINK: Final = struct.Struct("!I")
"""Length of the path; path, then target follow."""
REMOVE: Final = struct.Struct("!Qq")
"""ino, ctime: what the name has to lead to, as it was known."""
REOPEN: Final = struct.Struct("!I")
"""Length of the token that IDENTIFY gave; token, then path follow. Open flags are in `flags`. The reply is OPEN's; with O_PATH, of a
directory, LOOKUP's."""
TOKEN_MAX: Final = 255
"""Bytes of a token."""
READ: Final = struct.Struct("!QI")
"""offset, size."""
WRITE: Final = struct.Struct("!QI")
"""offset, size; data follows. Offset OFFSET_APPEND asks for the end of file."""
OFFSET_APPEND: Final = (1 << 64) - 1
NONBLOCK: Final = 1
"""READ and WRITE flag: EAGAIN instead of waiting."""
WRITE_ATTR: Final = 2
"""WRITE flag: the reply is Attr as it is after the write, SURE, if the server can say that."""
WRITE_AT: Final = 4
"""WRITE flag: the offset counts, also of what was opened with O_APPEND (pages of a mapping; O_APPEND that was taken back)."""
LOSES_BITS: Final = 8
"""WRITE, SETATTR (of what is open), SPACE and COPY flag: who does it, with what root has opened, is not root: set-id bits go first."""
SETATTR_SURE: Final = 1
"""SETATTR flag, of either kind: the reply ends with SURE, if the server can say that."""
SURE: Final = b"\1"
"""Behind an Attr: every change that is not in it will be told to the connection. RENAME's reply: the old name is gone."""
READDIR: Final = struct.Struct("!QI")
"""cookie (0: start), size: at most that many bytes of entries."""
COOKIE_END: Final = (1 << 64) - 1
"""Cookie of an entry behind which the server knows that there is none: who got it need not ask for the end."""
ACCESS: Final = struct.Struct("!I")
SPACE: Final = struct.Struct("!IQQ")
"""fallocate mode, offset, length."""
COPY: Final = struct.Struct("!QQQQI")
"""OCB of the destination, offset in the source, offset in the destination, length, flags (zero). The status are the bytes copied."""
COPY_MAX: Final = 128 * 1024 * 1024
"""Bytes that one COPY copies at most; a longer one is cut, as a short write."""
SEEK: Final = struct.Struct("!IQ")
"""SEEK_DATA or SEEK_HOLE (Linux's 3 and 4), offset. The reply is an offset, as OFFSET."""
SEEK_DATA: Final = 3
SEEK_HOLE: Final = 4
OFFSET: Final = struct.Struct("!Q")
XATTR: Final = struct.Struct("!IIHH")
"""operation XATTR_*, size of the room for what is got (0: only its length is asked for, answered as LENGTH), length of the path (0 in an
I/O message), length of the name. Path, name and value follow. The head's flags are Linux's: XATTR_CREATE 1, XATTR_REPLACE 2."""
XATTR_GET: Final = 1
XATTR_SET: Final = 2
XATTR_LIST: Final = 3
"""Names, each with a zero byte behind it."""
XATTR_REMOVE: Final = 4
XATTR_WHICH: Final = 5
"""On a directory: the names of its entries that have any extended attribute, each with a zero byte behind it. EFBIG: too many entries."""
XATTR_OF_NAME: Final = 4
"""Flag of the connect message: about the name itself, told by who would send the client on from it (docs/protocol/node.md, "Attributes of
names")."""
OF_NAMES: Final = b"user.qnet."
"""How the names of all such attributes begin."""
XATTR_SIZE_MAX: Final = 65536
"""Bytes of a value and of a list, as Linux has it: E2BIG."""
XATTR_INLINE_MAX: Final = 4096
"""A longer value is not sent with a name but to a handle: path managers hand on messages of one first part."""
LENGTH: Final = struct.Struct("!I")
DEVCTL: Final = struct.Struct("!II")
"""command, length of the data; the data follows. The reply's status is the command's own result, its bytes the data given back."""
NOTIFY: Final = struct.Struct("!II")
"""action NOTIFY_*, conditions POLL_* that are wanted. The reply's status are those that hold."""
NOTIFY_POLL: Final = 0
"""Answered at once."""
NOTIFY_ARM: Final = 1
"""Answered when one of the wanted conditions holds, which may be at once (QNX _NOTIFY_ACTION_POLLARM)."""
NOTIFY_CHANGE: Final = 2
"""Answered at the next change after which one holds, whatever holds now (QNX _NOTIFY_ACTION_TRANARM)."""
POLL_IN: Final = 1
POLL_PRI: Final = 2
POLL_OUT: Final = 4
POLL_ERR: Final = 8
POLL_HUP: Final = 16
POLL_ALL: Final = 31
"""Linux's numbers. ERR and HUP are always wanted."""
LOCK: Final = struct.Struct("!IIQQQI")
"""operation (LOCK_*), type (F_RDLCK 0, F_WRLCK 1, F_UNLCK 2), start, length (0: to the end), owner, pid to tell others. The flag LOCK_WHOLE
makes it a flock: the whole of the object, and an owner is an open file. LOCK_TEST is answered with LOCK_FOUND."""
LOCK_TEST: Final = 5
LOCK_SET: Final = 6
LOCK_WAIT: Final = 7
"""Linux's F_GETLK, F_SETLK, F_SETLKW."""
LOCK_WHOLE: Final = 1
LOCK_RECLAIM: Final = 2
"""Flag of LOCK: it was had before the connection or the server's daemon ended, and is refused if anybody had what conflicts meanwhile."""
DELEGATION_ASK: Final = 1
"""DELEGATION flag: all locks of what is open are to be the client's own affair. The status is 1 if they are from now on, else 0."""
DELEGATION_LOCK: Final = struct.Struct("!IQQQII")
"""One lock that stands when that is given back: type, start, length (0: to the end), owner, pid, LOCK_WHOLE or 0."""
DELEGATION_LOCKS_MAX: Final = 256
"""A message with so many keeps a server busy for about 10 ms."""
LOCK_FOUND: Final = struct.Struct("!IIQQ")
"""type (F_UNLCK: nobody is in the way), pid (0: a process of another node than the one that asks), start, length (0: to the end)."""


def request(kind: Io, subtype: int = 0, flags: int = 0, handle: int = 0) -> bytes:
    """The common 16 bytes."""
    return REQUEST.pack(kind, subtype, flags, handle)


@attrs.define
class Attr:
    """What stat tells. Times are nanoseconds since the epoch, `blocks` counts 512 bytes, `rdev` is Linux's 64-bit makedev.

    `ino` is unique in the whole tree of one server (it mixes the device in), `change` differs whenever data or metadata changed
    (ctime in nanoseconds where the file system has nothing better).
    """

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime: int
    mtime: int
    ctime: int
    change: int

    def pack(self) -> bytes:
        return ATTR.pack(
            self.ino,
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            self.rdev,
            self.size,
            self.blocks,
            self.blksize,
            self.atime,
            self.mtime,
            self.ctime,
            self.change,
        )

    @classmethod
    def parse(cls, view: Buffer, offset: int = 0) -> Attr:
        try:
            return cls(*ATTR.unpack_from(view, offset))
        except struct.error:
            raise BadMessage("attributes cut short") from None

    @classmethod
    def of(cls, status: os.stat_result, ino: int | None = None) -> Attr:
        """From an `os.stat_result`."""
        return cls(
            status.st_ino if ino is None else ino,
            status.st_mode,
            status.st_nlink,
            status.st_uid,
            status.st_gid,
            status.st_rdev,
            status.st_size,
            status.st_blocks,
            status.st_blksize,
            status.st_atime_ns,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ctime_ns,
        )


ATTR: Final = struct.Struct("!QIIIIQQQIqqqq")


@attrs.frozen
class Target:
    """The server that a handle belongs to: as seen by the sender of the reply, so `nd` 0 means the replying node."""

    nd: int
    pid: int
    chid: int

    def same(self, other: Target) -> bool:
        """Equality for compiled modules, in which `==` of two of these is identity."""
        return self.nd == other.nd and self.pid == other.pid and self.chid == other.chid


ENTRY: Final = struct.Struct("!IIIQQI")
"""nd, pid, chid of the server, base handle (0: none kept), OCB handle (0: not opened), length of prefetched data."""


@attrs.frozen
class Entry:
    """Reply to LOOKUP, OPEN, MKDIR, MKNOD, LINK, SYMLINK: the object's server, handles, attributes and perhaps its first bytes.

    With `redirect` set the walk is not finished: send the same request with `rest`, the unresolved path, and base `handle` to `target`.
    """

    target: Target
    handle: int
    ocb: int
    attr: Attr | None
    data: Buffer = b""
    rest: bytes | None = None
    live: bool = False
    """Opened: what it holds changes by itself, or depends on who reads how far, so nothing of it may be kept."""
    watched: bool = False
    """A directory: every change since before the attributes and data were read is told to the connection (`Io.WATCH`)."""
    empty: bool = False
    """A directory just made: nothing is in it, and its maker may search it."""
    delegated: bool = False
    """Opened: nobody changes it before the connection was asked to give that back (`Io.DELEGATION`)."""

    @property
    def redirect(self) -> bool:
        return self.attr is None

    def pack(self) -> bytes:
        head = ENTRY.pack(
            self.target.nd,
            self.target.pid,
            self.target.chid,
            self.handle,
            self.ocb,
            len(self.data) | (REDIRECT if self.attr is None else self._bits()),
        )
        if self.attr is None:
            return head + (self.rest or b"")
        return b"".join((head, self.attr.pack(), self.data))

    def _bits(self) -> int:
        bits = (LIVE if self.live else 0) | (WATCHED if self.watched else 0) | (EMPTY if self.empty else 0)
        return bits | (DELEGATED if self.delegated else 0)

    @classmethod
    def parse(cls, view: Buffer) -> Entry:
        try:
            nd, pid, chid, handle, ocb, length = ENTRY.unpack_from(view)
        except struct.error:
            raise BadMessage("entry cut short") from None
        target = Target(nd, pid, chid)
        if length & REDIRECT:
            return cls(target, handle, ocb, None, rest=bytes(view[ENTRY.size :]))
        live = bool(length & LIVE)
        watched, empty, delegated = bool(length & WATCHED), bool(length & EMPTY), bool(length & DELEGATED)
        length &= ~(LIVE | WATCHED | EMPTY | DELEGATED)
        attr = Attr.parse(view, ENTRY.size)
        start = ENTRY.size + ATTR.size
        if len(view) - start != length:
            raise BadMessage("entry's data has another length than it says")
        data = memoryview(view)[start:]
        return cls(target, handle, ocb, attr, data, live=live, watched=watched, empty=empty, delegated=delegated)


REDIRECT: Final = 1 << 31
LIVE: Final = 1 << 30
WATCHED: Final = 1 << 29
EMPTY: Final = 1 << 28
DELEGATED: Final = 1 << 27
STATUS_REDIRECT: Final = 1
"""Status of a reply to any connect message whose data is a redirect `Entry`; 0 is the answer proper. Only connect messages have it."""

SETATTR: Final = struct.Struct("!IIIIQqq")
"""valid (bits SET_*), mode, uid, gid, size, atime, mtime; times in nanoseconds. The reply is Attr."""
SET_MODE: Final = 1
SET_UID: Final = 2
SET_GID: Final = 4
SET_SIZE: Final = 8
SET_ATIME: Final = 16
SET_MTIME: Final = 32
SET_ATIME_NOW: Final = 64
SET_MTIME_NOW: Final = 128

DIRENT: Final = struct.Struct("!QQIH")
"""ino, cookie of the next entry, type bits of mode, length of the name; the name follows, then Attr if asked for (mode 0: unknown)."""


@attrs.define
class DirEntry:
    """One name of a directory."""

    name: bytes
    ino: int
    cookie: int
    mode: int
    attr: Attr | None = None


@attrs.define
class StatFs:
    """What statfs tells of a file system; sizes in units of `frsize`."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    namelen: int
    frsize: int

    def pack(self) -> bytes:
        return STATFS.pack(self.blocks, self.bfree, self.bavail, self.files, self.ffree, self.bsize, self.namelen, self.frsize)

    @classmethod
    def parse(cls, view: Buffer) -> StatFs:
        try:
            return cls(*STATFS.unpack(view))
        except struct.error:
            raise BadMessage("file system attributes cut short") from None


def pack_dirent(entry: DirEntry) -> bytes:
    head = DIRENT.pack(entry.ino, entry.cookie, entry.mode, len(entry.name))
    if entry.attr is None:
        return head + entry.name
    return b"".join((head, entry.name, entry.attr.pack()))


def parse_dirents(view: Buffer, attrs_too: bool) -> list[DirEntry]:
    """All entries of a READDIR reply."""
    entries: list[DirEntry] = []
    offset, end = 0, len(view)
    while offset < end:
        try:
            ino, cookie, mode, length = DIRENT.unpack_from(view, offset)
        except struct.error:
            raise BadMessage("directory entry cut short") from None
        offset += DIRENT.size
        name = bytes(view[offset : offset + length])
        if len(name) != length or not 0 < length <= NAME_MAX:
            raise BadMessage("directory entry's name cut short")
        offset += length
        attr = None
        if attrs_too:
            attr = Attr.parse(view, offset)
            offset += ATTR.size
        entries.append(DirEntry(name, ino, cookie, mode, attr))
    return entries


WATCH_NEXT: Final = 1
WATCH_DROP: Final = 2
"""Subtypes of WATCH: answer with events when there are any; inode numbers, eight bytes each, that are not to be watched any more."""
EVENT: Final = struct.Struct("!QIIH")
"""ino of the directory (0: of all), kind (bits WATCH_*), cookie, length of the name; the name follows."""
WATCH_MODIFY: Final = 0x2
WATCH_ATTRIB: Final = 0x4
WATCH_CLOSE_WRITE: Final = 0x8
WATCH_MOVED_FROM: Final = 0x40
WATCH_MOVED_TO: Final = 0x80
WATCH_CREATE: Final = 0x100
WATCH_DELETE: Final = 0x200
WATCH_DELETE_SELF: Final = 0x400
WATCH_MOVE_SELF: Final = 0x800
WATCH_OVERFLOW: Final = 0x4000
WATCH_IGNORED: Final = 0x8000
WATCH_ISDIR: Final = 1 << 30
"""Linux's inotify numbers."""
WATCH_RECALL: Final = 1 << 29
"""Not of a directory: the delegation of the file with that inode number is to be given back."""
WATCH_CONTENT: Final = WATCH_MODIFY | WATCH_CLOSE_WRITE
WATCH_NAMES: Final = WATCH_MOVED_FROM | WATCH_MOVED_TO | WATCH_CREATE | WATCH_DELETE
WATCH_REPEATED: Final = WATCH_MODIFY | WATCH_ATTRIB | WATCH_CLOSE_WRITE


@attrs.frozen
class WatchEvent:
    """What happened in a watched directory. Without a name: to the directory itself."""

    ino: int
    kind: int
    cookie: int
    name: bytes


def parse_events(view: Buffer) -> list[WatchEvent]:
    """The answer to WATCH_NEXT."""
    events: list[WatchEvent] = []
    data = bytes(view)
    offset, end = 0, len(data)
    while offset < end:
        try:
            ino, kind, cookie, length = EVENT.unpack_from(data, offset)
        except struct.error:
            raise BadMessage("event cut short") from None
        offset += EVENT.size
        name = data[offset : offset + length]
        if len(name) != length or length > NAME_MAX or name.find(b"/") >= 0 or name.find(b"\0") >= 0:
            raise BadMessage("event's name")
        offset += length
        events.append(WatchEvent(ino, kind, cookie, name))
    return events


STATFS: Final = struct.Struct("!QQQQQIII")
"""blocks, bfree, bavail, files, ffree, bsize, namelen, frsize."""
