"""System calls that Python's os module lacks, through ctypes. Each raises OSError with the kernel's errno."""

from __future__ import annotations

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

# Numbers above 424 are the same on all machines.
_OPENAT2 = 437
_FACCESSAT2 = 439
_RESOLVE = 0x08 | 0x04 | 0x02
"""RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS."""
AT_SYMLINK_NOFOLLOW = 0x100
AT_EACCESS = 0x200
AT_EMPTY_PATH = 0x1000


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_HOW_SIZE = ctypes.c_long(ctypes.sizeof(_OpenHow))
_OPENAT2_ARG = ctypes.c_long(_OPENAT2)
_FACCESSAT2_ARG = ctypes.c_long(_FACCESSAT2)


class OpenHow:
    """Constant flags of an `openat2`; the structure is built once."""

    __slots__ = ("_how", "pointer")

    def __init__(self, flags: int) -> None:
        self._how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE)
        self.pointer = ctypes.byref(self._how)


def _fail(path: bytes | None = None) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def openat2(fd: int, path: bytes, how: OpenHow) -> int:
    """Open *path* below *fd* without following any symbolic link and without ever leaving *fd*'s tree."""
    while True:
        opened: int = _syscall(_OPENAT2_ARG, fd, path, how.pointer, _HOW_SIZE)
        if opened >= 0:
            return opened
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            raise _fail()


_renameat2 = _libc.renameat2


def renameat2(fd: int, name: bytes, new_fd: int, new_name: bytes, flags: int) -> None:
    if _renameat2(fd, name, new_fd, new_name, flags) != 0:
        raise _fail()


def faccessat2(fd: int, name: bytes, mode: int, flags: int) -> None:
    """Like access(2), for the effective user of the calling thread."""
    if _syscall(_FACCESSAT2_ARG, fd, name, mode, flags) != 0:
        raise _fail()


_fallocate = _libc.fallocate64 if hasattr(_libc, "fallocate64") else _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _fallocate(fd, mode, offset, length) != 0:
        raise _fail()


class _Timespec(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
_utimensat = _libc.utimensat


def utimensat(fd: int, name: bytes, atime: tuple[int, int], mtime: tuple[int, int], flags: int) -> None:
    """Times are (seconds, nanoseconds); nanoseconds may be UTIME_NOW or UTIME_OMIT."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    if _utimensat(fd, name, times, flags) != 0:
        raise _fail()


class _StatxTime(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_int64), ("nsec", ctypes.c_uint32), ("reserved", ctypes.c_int32)]


class _Statx(ctypes.Structure):
    _fields_ = [
        ("mask", ctypes.c_uint32),
        ("before", ctypes.c_ubyte * 76),
        ("btime", _StatxTime),
        ("after", ctypes.c_ubyte * 160),
    ]


_STATX_BTIME = 0x800
_statx = getattr(_libc, "statx", None)


def birth_ns(fd: int, name: bytes = b"") -> int | None:
    """When what *fd* is, or *name* in it, was made, nanoseconds since the epoch; None if nobody knows."""
    found = _Statx()
    if _statx is None or _statx(fd, name, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, _STATX_BTIME, ctypes.byref(found)) != 0:
        return None
    if not found.mask & _STATX_BTIME:
        return None
    return int(found.btime.sec) * 1_000_000_000 + int(found.btime.nsec)


SPLICE_NONBLOCK = 2
_tee = _libc.tee
_tee.restype = ctypes.c_ssize_t
_tee.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint]


def tee(source: int, destination: int, size: int, flags: int) -> int:
    """Copy up to *size* bytes from one pipe to another without taking them; the bytes copied, 0: empty and nobody can write."""
    count: int = _tee(source, destination, size, flags)
    if count < 0:
        raise _fail()
    return count


def process_umask() -> int:
    """The umask of this process, without the trick of setting it (which other threads would see)."""
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o777


_getdents64 = _libc.getdents64
_getdents64.restype = ctypes.c_ssize_t
_getdents64.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]


def getdents64(fd: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Fill *buffer* with directory records; the bytes used, 0 at the end."""
    count: int = _getdents64(fd, ctypes.addressof(buffer), len(buffer))
    if count < 0:
        raise _fail()
    return count


HANDLE_MAX = 128
"""MAX_HANDLE_SZ."""
_AT_HANDLE_FID = 0x200


class _FileHandle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_ubyte * HANDLE_MAX)]


_name_to_handle_at = _libc.name_to_handle_at
_open_by_handle_at = _libc.open_by_handle_at


def name_to_handle(fd: int) -> tuple[int, bytes]:
    """Type and bytes of the handle of what *fd* is: its identity in its file system, over restarts. EOPNOTSUPP where there is none."""
    handle = _FileHandle(HANDLE_MAX, 0)
    mount = ctypes.c_int(0)
    for flags in (AT_EMPTY_PATH, AT_EMPTY_PATH | _AT_HANDLE_FID):
        if _name_to_handle_at(fd, b"", ctypes.byref(handle), ctypes.byref(mount), flags) == 0:
            return int(handle.kind), bytes(handle.data[: handle.bytes])
        if ctypes.get_errno() != errno.EOPNOTSUPP:
            break
    error = _fail()
    raise OSError(errno.EOPNOTSUPP, error.strerror) if error.errno == errno.EINVAL else error


def open_by_handle(anchor: int, kind: int, data: bytes) -> int:
    """An O_PATH descriptor of the file with that handle in *anchor*'s file system. Needs CAP_DAC_READ_SEARCH."""
    if len(data) > HANDLE_MAX:
        raise OSError(errno.EINVAL, "handle too long")
    handle = _FileHandle(len(data), kind, (ctypes.c_ubyte * HANDLE_MAX)(*data))
    fd: int = _open_by_handle_at(anchor, ctypes.byref(handle), os.O_PATH | os.O_CLOEXEC)
    if fd < 0:
        raise _fail()
    return fd
