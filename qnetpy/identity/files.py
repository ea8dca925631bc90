"""Reading and writing key files: modes, owners, symbolic links, whole or not at all. docs/protocol/identity.md has the rules. Blocks."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from resmgr.errors import ResmgrError

FILE_MAX = 64 * 1024
"""Bytes read of a key file."""


class StoreError(ResmgrError):
    """A key file is missing, exposed, broken or does not fit the others; `strerror` is a sentence that names the file."""


def make_directory(path: Path) -> None:
    """Make it, closed to others. EACCES when it is there and others may write in it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(error.errno or errno.EIO, f"{path}: {error.strerror}") from error
    status = path.stat()
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise StoreError(errno.EACCES, f"{path}: others may write here; make it 0700 (chmod 700 {path})")


def read(path: Path, private: bool, limit: int = FILE_MAX) -> bytes:
    """All of *path*; a private file must be ours and closed to others, and is checked on the descriptor that is read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if private else 0))
    except OSError as error:
        text = "is a symbolic link, which a private file must not be" if error.errno == errno.ELOOP else error.strerror
        raise StoreError(error.errno or errno.EIO, f"{path}: {text}") from error
    try:
        status = os.fstat(fd)
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(errno.EINVAL, f"{path}: not a regular file")
        if private and mode & 0o077:
            raise StoreError(errno.EACCES, f"{path}: mode is {mode:04o} and others may use it; it must be 0600 (chmod 600 {path})")
        if private and status.st_uid not in (0, os.geteuid()):
            raise StoreError(errno.EACCES, f"{path}: belongs to user {status.st_uid}; it must be owned by root or the user of the daemon")
        data = b""
        while len(data) <= limit and (piece := os.read(fd, limit + 1 - len(data))):
            data += piece
    finally:
        os.close(fd)
    if len(data) > limit:
        raise StoreError(errno.EFBIG, f"{path}: too long for a key file")
    return data


def write(path: Path, data: bytes, mode: int) -> None:
    """The whole file or the old one: written aside, synced, renamed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            os.fchmod(fd, mode)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StoreError(error.errno or errno.EIO, f"{path}: {error.strerror}") from error
