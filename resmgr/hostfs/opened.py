"""What is done to something already open: reading, attributes, directory entries. Safe to run on any thread, as `operations`."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Mapping, Set
from stat import S_IFREG, S_IFSOCK, S_ISDIR, S_ISGID, S_ISLNK, S_ISREG, S_ISUID
from typing import Final, Protocol

from resmgr.access import Scope
from resmgr.hostfs import syscalls
from resmgr.hostfs.objects import HostHandle, Leased
from resmgr.hostfs.ownproc import own
from resmgr.iomsg import (
    ATTR,
    BIRTH,
    COOKIE_END,
    DIRENT,
    OFFSET,
    READDIR_ATTRS,
    SET_ATIME,
    SET_ATIME_NOW,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_MTIME_NOW,
    SET_SIZE,
    SET_UID,
    STATFS,
    SURE,
)
from resmgr.iorequest import SetAttr
from resmgr.owners import Owners

RWF_NOWAIT = os.RWF_NOWAIT
PERMISSIONS: Final = 0o7777
SET_ID: Final = 0o6000
_BLANK_ATTR: Final = bytes(ATTR.size)
_END = COOKIE_END.to_bytes(8, "big")
_AT_FDCWD: Final = -100


class Attributes(Protocol):
    """Packs what stat says, with inode numbers of the served tree and owners as the client is told them. `at_risk`: names that a listing
    must not stat (`mountpoints`). `leased`: files (st_dev, st_ino) that somebody has a delegation of."""

    owners: Owners | None
    at_risk: Mapping[bytes, int]
    leased: Set[tuple[int, int]]

    def attr(self, status: os.stat_result) -> bytes: ...


def own_path(fd: int) -> bytes:
    """A path that leads to exactly what *fd* is, for calls that take no descriptor of the O_PATH kind."""
    return b"/proc/self/fd/%d" % fd


def read_now(fd: int, size: int, offset: int) -> bytearray | memoryview | None:
    """Up to *size* bytes from the page cache; shorter only at the end of the file. None: that would block. OSError EOPNOTSUPP: never."""
    buffer = bytearray(size)
    count = 0
    try:
        while count < size:
            part = os.preadv(fd, (memoryview(buffer)[count:] if count else buffer,), offset + count, RWF_NOWAIT)
            if part == 0:
                return memoryview(buffer)[:count]
            count += part
    except BlockingIOError:
        return None
    return buffer


def read_waiting(fd: int, size: int, offset: int) -> bytes:
    """Up to *size* bytes; shorter only at the end of the file."""
    data = os.pread(fd, size, offset)
    if len(data) in (0, size):
        return data
    parts = [data]
    count = len(data)
    while count < size:
        data = os.pread(fd, size - count, offset + count)
        if not data:
            break
        parts.append(data)
        count += len(data)
    return b"".join(parts)


def check_set_id(scope: Scope, mode: int, before: int) -> None:
    """EPERM when *mode* of a file sets a set-ID bit that *before* has not, and the export does not let it."""
    if mode & ~before & SET_ID and not scope.setuid:
        raise PermissionError(errno.EPERM, "the export allows no set-ID bits")


def change(attrs: Attributes, fd: int, scope: Scope, change: SetAttr, writable: bool, after: Callable[[], bool] | None = None) -> bytes:
    """Change attributes of what *fd* is (any descriptor, O_PATH too). *writable*: the client has it open for writing. *after* is called
    before the result is looked at, which is SURE if it says so."""
    if not scope.write:
        raise OSError(errno.EROFS, "export is read-only")
    valid = change.valid
    path = own_path(fd)
    if valid & SET_SIZE:
        if change.size >= 1 << 63:
            raise OSError(errno.EFBIG, "size")
        if writable:
            os.ftruncate(fd, change.size)
        else:
            status = os.fstat(fd)
            kind = status.st_mode
            if not S_ISREG(kind):
                raise OSError(errno.EISDIR if S_ISDIR(kind) else errno.EINVAL, "not a regular file")
            key = (status.st_dev, status.st_ino)
            if key in attrs.leased:
                raise Leased(key)
            # truncate(2) by a name waits in the kernel for whoever has a lease.
            try:
                writing = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            except BlockingIOError:
                raise Leased(key) from None
            try:
                os.ftruncate(writing, change.size)
            finally:
                os.close(writing)
    if not valid:
        _lose_bits(path)
    if valid & (SET_UID | SET_GID):
        uid = change.uid if valid & SET_UID else -1
        gid = change.gid if valid & SET_GID else -1
        owners = attrs.owners
        if owners is not None:
            uid = owners.user_in(uid) if uid >= 0 else uid
            gid = owners.group_in(gid) if gid >= 0 else gid
        os.chown(path, uid, gid)
    if valid & SET_MODE:
        mode = os.fstat(fd).st_mode
        if S_ISLNK(mode):
            raise OSError(errno.EOPNOTSUPP, "a symbolic link has no mode")
        if not S_ISDIR(mode):
            check_set_id(scope, change.mode, mode)
        os.chmod(path, change.mode & PERMISSIONS)
    if valid & (SET_ATIME | SET_MTIME | SET_ATIME_NOW | SET_MTIME_NOW):
        atime = _time(valid, SET_ATIME, SET_ATIME_NOW, change.atime)
        mtime = _time(valid, SET_MTIME, SET_MTIME_NOW, change.mtime)
        syscalls.utimensat(_AT_FDCWD, path, atime, mtime, 0)
    if after is not None and after():
        return attrs.attr(os.fstat(fd)) + SURE
    return attrs.attr(os.fstat(fd))


def read_directory(attrs: Attributes, handle: HostHandle, cookie: int, size: int, flags: int) -> bytes:
    """Entries from *cookie* on, at most *size* bytes of them."""
    stream = handle.stream
    if stream is None:
        raise NotADirectoryError(errno.ENOTDIR, "not open as a directory")
    want = flags & READDIR_ATTRS
    salt = handle.device.salt
    proc = handle.device.proc
    scope = handle.scope
    children = scope.children
    fd = handle.fd
    fixed = DIRENT.size + (ATTR.size if want else 0)
    pack = DIRENT.pack
    out: list[bytes] = []
    room = size
    with stream.lock:
        if cookie == COOKIE_END:
            return b""
        stream.seek(cookie)
        head = b""
        at = 0
        everything = scope.verbs and children is None
        at_risk = attrs.at_risk
        stat = os.stat
        while records := stream.rest():
            for taken, (ino, following, kind, name) in enumerate(records):
                if name == b"." or name == b".." or not (everything or scope.step(name) is not None) or (proc and own(name)):
                    continue
                length = len(name)
                room -= fixed + length
                if room < 0:
                    stream.advance(taken)
                    if not out:
                        raise OSError(errno.EINVAL, "no room for one entry")
                    return b"".join(out)
                if not want:
                    head, attr = pack(ino ^ salt, following, kind << 12, length), b""
                elif name in at_risk:
                    # A file system that may not answer is mounted there: the client asks for it by name, which takes a thread.
                    head, attr = pack(ino ^ salt, following, kind << 12, length), _BLANK_ATTR
                else:
                    try:
                        status = stat(name, dir_fd=fd, follow_symlinks=False)
                    except FileNotFoundError:
                        # Gone since the record was read.
                        room += fixed + length
                        continue
                    except OSError:
                        head, attr = pack(ino ^ salt, following, kind << 12, length), _BLANK_ATTR
                    else:
                        attr = attrs.attr(status)
                        head = attr[:8] + pack(0, following, status.st_mode & 0o170000, length)[8:]
                at = len(out)
                out += (head, name, attr)
            stream.advance(len(records))
        if out:
            out[at] = head[:8] + _END + head[16:]
    return b"".join(out)


def _lose_bits(path: bytes) -> None:
    """What changes nothing takes set-id bits away: chown(-1, -1), and what a kernel does before a write. Who may only write is told no
    error: the write itself does it."""
    try:
        os.chown(path, -1, -1)
    except PermissionError:
        pass


def lose_bits(fd: int) -> None:
    """Before the contents of an open file change for somebody who may not keep set-id bits, though the client may."""
    if os.fstat(fd).st_mode & (S_ISUID | S_ISGID):
        _lose_bits(own_path(fd))


def birth_of(fd: int) -> bytes:
    """When what *fd* is was made, as BIRTH; empty if the file system does not tell."""
    born = syscalls.birth_ns(fd)
    return b"" if born is None else BIRTH.pack(born)


def seek(fd: int, whence: int, offset: int) -> bytes:
    """Where data or a hole begins, as OFFSET. The position of *fd*, which nothing here uses, moves."""
    return OFFSET.pack(os.lseek(fd, offset, whence))


def no_append(fd: int) -> None:
    """From now on only what is said to go to the end does: Linux appends what is written to a place, too. PermissionError for a file that
    can only be appended to."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_APPEND:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_APPEND)


def is_special(status: os.stat_result) -> bool:
    """Whether it is a device or a FIFO. What is neither that nor a regular file or directory is not opened: OSError."""
    kind = status.st_mode & 0o170000
    if kind == S_IFREG or kind == 0o040000:
        return False
    if S_ISLNK(kind):
        raise OSError(errno.ELOOP, "symbolic link")
    if kind == S_IFSOCK:
        raise OSError(errno.ENXIO, "socket")
    return True


def is_gone(dirfd: int, name: bytes) -> bool:
    """Whether *name* is not there: a rename of one name of a file to another one of it does nothing."""
    try:
        os.stat(name, dir_fd=dirfd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def is_empty(fd: int) -> bool:
    """Whether nothing is in the directory *fd*, and the client may list and search it."""
    try:
        own = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return False
    try:
        return not os.listdir(own)
    finally:
        os.close(own)


def pack_statfs(fd: int) -> bytes:
    status = os.fstatvfs(fd)
    return STATFS.pack(
        status.f_blocks,
        status.f_bfree,
        status.f_bavail,
        status.f_files,
        status.f_ffree,
        status.f_bsize,
        status.f_namemax,
        status.f_frsize,
    )


def _time(valid: int, given: int, now: int, value: int) -> tuple[int, int]:
    if valid & now:
        return (0, syscalls.UTIME_NOW)
    if valid & given:
        return divmod(value, 1_000_000_000)
    return (0, syscalls.UTIME_OMIT)
