"""Requests of `resmgr.iomsg`, parsed and packed: the one place that knows where names and fixed parts lie (docs/protocol/iomsg.md).

A manager gets a `ConnectRequest` from `parse_connect`; I/O requests are a fixed part after the common header, so they have one parse
function each. Everything here is pure; hostile bytes raise `BadMessage` only, and a name that is too long raises
`ResmgrError(ENAMETOOLONG)`, since that is what a program that asked for it wants to hear.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError
from resmgr.iomsg import (
    ACCESS,
    COPY,
    DEVCTL,
    MAKE,
    NAME_MAX,
    NOTIFY,
    NOTIFY_CHANGE,
    OPEN,
    PATH_MAX,
    POLL_ALL,
    READ,
    READDIR,
    REMOVE,
    RENAME,
    REOPEN,
    REQUEST,
    SEEK,
    SEEK_DATA,
    SEEK_HOLE,
    SET_ATIME,
    SET_ATIME_NOW,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_MTIME_NOW,
    SET_SIZE,
    SET_UID,
    SETATTR,
    SPACE,
    SYMLINK,
    TOKEN_MAX,
    WRITE,
    XATTR,
    XATTR_GET,
    XATTR_LIST,
    XATTR_OF_NAME,
    XATTR_SET,
    XATTR_SIZE_MAX,
    XATTR_WHICH,
    Connect,
    Io,
)

if TYPE_CHECKING:
    from resmgr.access import Scope

HEAD: Final = REQUEST.size
SET_ALL: Final = SET_MODE | SET_UID | SET_GID | SET_SIZE | SET_ATIME | SET_MTIME | SET_ATIME_NOW | SET_MTIME_NOW
TARGET_MAX: Final = PATH_MAX - 1
"""Longest text of a symbolic link, as Linux has it."""
CONNECT_MAX: Final = 3 * PATH_MAX
"""Bytes of a connect message; longer ones cannot be meant seriously and are refused before they are parsed."""
_LOOKUP: Final = int(Connect.LOOKUP)
_OPEN: Final = int(Connect.OPEN)
_UNLINK: Final = int(Connect.UNLINK)
_RENAME: Final = int(Connect.RENAME)
_MKDIR: Final = int(Connect.MKDIR)
_MKNOD: Final = int(Connect.MKNOD)
_LINK: Final = int(Connect.LINK)
_SYMLINK: Final = int(Connect.SYMLINK)
_SETATTR: Final = int(Connect.SETATTR)
_ACCESS: Final = int(Connect.ACCESS)
_XATTR: Final = int(Connect.XATTR)
_TMPFILE: Final = int(Connect.TMPFILE)
_REOPEN: Final = int(Connect.REOPEN)
_REMOVE: Final = int(Connect.REMOVE)


def check_path(path: bytes) -> bytes:
    """*path* if it is what a connect message may carry: relative, single slashes, no `.`, no `..`, no NUL; empty is the base itself."""
    if not path:
        return path
    if len(path) > PATH_MAX:
        raise ResmgrError(errno.ENAMETOOLONG)
    # `find` and not `in`, which tries bytes for a number first, and that is an exception each time.
    if path.find(b"\0") >= 0:
        raise BadMessage("path holds a NUL")
    if path.find(b"/") < 0:
        if path == b"." or path == b"..":
            raise BadMessage("path has a dot component")
        if len(path) > NAME_MAX:
            raise ResmgrError(errno.ENAMETOOLONG)
        return path
    for name in path.split(b"/"):
        if not name or name == b"." or name == b"..":
            raise BadMessage("path has an empty or a dot component")
        if len(name) > NAME_MAX:
            raise ResmgrError(errno.ENAMETOOLONG)
    return path


@attrs.define
class SetAttr:
    """What to change: bits SET_* say which fields count. Times are nanoseconds since the epoch."""

    valid: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    atime: int = 0
    mtime: int = 0

    def pack(self) -> bytes:
        return SETATTR.pack(self.valid, self.mode, self.uid, self.gid, self.size, self.atime, self.mtime)

    @classmethod
    def parse(cls, data: Buffer, offset: int) -> SetAttr:
        try:
            change = cls(*SETATTR.unpack_from(data, offset))
        except struct.error:
            raise BadMessage("attribute change cut short") from None
        if change.valid & ~SET_ALL:
            raise BadMessage("attribute change has unknown bits")
        return change


@attrs.define
class XattrRequest:
    """What to do with extended attributes. `flags` are XATTR_CREATE 1, XATTR_REPLACE 2 and XATTR_OF_NAME 4; `size` is the room for what is
    got."""

    operation: int
    name: bytes = b""
    value: bytes = b""
    size: int = 0
    flags: int = 0

    def pack(self, handle: int, path: bytes | None = None) -> bytes:
        """The whole message: about *path*, or about what *handle* is if that is None."""
        fixed = XATTR.pack(self.operation, self.size, len(path or b""), len(self.name))
        if path is None:
            head = REQUEST.pack(Io.XATTR, 0, self.flags, handle)
        else:
            head = REQUEST.pack(Io.CONNECT, Connect.XATTR, self.flags, handle)
        return b"".join((head, fixed, path or b"", self.name, self.value))


def parse_xattr(data: Buffer) -> tuple[bytes, XattrRequest]:
    """path (empty in an I/O message) and request of XATTR. `ResmgrError` for names and values that Linux takes from nobody."""
    try:
        _, _, flags, _ = REQUEST.unpack_from(data)
        operation, size, length, name_length = XATTR.unpack_from(data, HEAD)
    except struct.error:
        raise BadMessage("extended attribute cut short") from None
    if not XATTR_GET <= operation <= XATTR_WHICH or flags & ~7:
        raise BadMessage("extended attribute request of an unknown kind")
    start = HEAD + XATTR.size
    view = memoryview(data)
    if len(view) < start + length + name_length:
        raise BadMessage("extended attribute's name cut short")
    path = check_path(bytes(view[start : start + length]))
    start += length
    name = bytes(view[start : start + name_length])
    value = bytes(view[start + name_length :])
    if name.find(b"\0") >= 0 or bool(name) == (operation in (XATTR_LIST, XATTR_WHICH)) or (value and operation != XATTR_SET):
        raise BadMessage("extended attribute request with what it has no use for")
    if len(name) > NAME_MAX:
        raise ResmgrError(errno.ERANGE)
    if len(value) > XATTR_SIZE_MAX:
        raise ResmgrError(errno.E2BIG)
    how = flags & ~XATTR_OF_NAME
    if how == 3 or (how and operation != XATTR_SET):
        raise ResmgrError(errno.EINVAL)
    return path, XattrRequest(operation, name, value, min(size, XATTR_SIZE_MAX), flags)


class ConnectRequest:
    """A connect message. `path` is relative to `handle`; `path2` is the second name of RENAME and LINK (relative to `handle2`), a symbolic
    link's text, or REOPEN's token; `ino` and
    `ctime` are what REMOVE's name leads to, as it was known. Fields that the subtype has no use for are zero. `flags` are open
    flags (OPEN, REOPEN), rename flags (RENAME), else this protocol's.
    """

    __slots__ = (
        "after", "change", "ctime", "flags", "handle", "handle2", "ino", "mode", "path", "path2", "prefetch", "rdev", "subtype", "umask",
        "watch", "xattr",
    )  # fmt: skip

    def __init__(
        self,
        subtype: int,
        flags: int,
        handle: int,
        path: bytes,
        mode: int = 0,
        umask: int = 0,
        rdev: int = 0,
        prefetch: int = 0,
        handle2: int = 0,
        path2: bytes = b"",
        change: SetAttr | None = None,
        xattr: XattrRequest | None = None,
        ino: int = 0,
        ctime: int = 0,
    ) -> None:
        self.subtype = subtype
        self.flags = flags
        self.handle = handle
        self.path = path
        self.mode = mode
        self.umask = umask
        self.rdev = rdev
        self.prefetch = prefetch
        self.handle2 = handle2
        self.ino = ino
        self.ctime = ctime
        self.path2 = path2
        self.change = change
        self.xattr = xattr
        self.watch: Callable[[int, Scope], bool] | None = None
        """At the server, where it can: watches the directory that a descriptor is, and says whether it could."""
        self.after: Callable[[], bool] | None = None
        """At the server, where it can: called after a change and before what it made is looked at. Whether all changes before are told."""

    def pack(self) -> bytes:
        """The whole message."""
        head = REQUEST.pack(Io.CONNECT, self.subtype, self.flags, self.handle)
        kind = self.subtype
        if kind in (Connect.OPEN, Connect.TMPFILE):
            return b"".join((head, OPEN.pack(self.mode, self.umask, self.prefetch), self.path))
        if kind in (Connect.MKDIR, Connect.MKNOD):
            return b"".join((head, MAKE.pack(self.mode, self.umask, self.rdev), self.path))
        if kind in (Connect.RENAME, Connect.LINK):
            return b"".join((head, RENAME.pack(self.handle2, len(self.path), 0), self.path, self.path2))
        if kind == Connect.SYMLINK:
            return b"".join((head, SYMLINK.pack(len(self.path)), self.path, self.path2))
        if kind == Connect.SETATTR and self.change is not None:
            return b"".join((head, self.change.pack(), self.path))
        if kind == Connect.REMOVE:
            return b"".join((head, REMOVE.pack(self.ino, self.ctime), self.path))
        if kind == Connect.REOPEN:
            return b"".join((head, REOPEN.pack(len(self.path2)), self.path2, self.path))
        if kind == Connect.XATTR and self.xattr is not None:
            return self.xattr.pack(self.handle, self.path)
        if kind == Connect.ACCESS:
            return b"".join((head, ACCESS.pack(self.mode), self.path))
        return head + self.path


def _two_names(data: Buffer, start: int, length: int) -> tuple[bytes, bytes]:
    names = bytes(data[start:])
    if length > len(names):
        raise BadMessage("first name cut short")
    return names[:length], names[length:]


def parse_connect(data: Buffer) -> ConnectRequest:
    """A connect message whose type was already seen to be CONNECT. Unknown subtypes parse as a bare path: the manager answers ENOSYS."""
    if len(data) > CONNECT_MAX:
        raise BadMessage("connect message too long")
    try:
        head = REQUEST.unpack_from(data)
        kind: int = head[1]
        flags: int = head[2]
        handle: int = head[3]
        if kind in (_UNLINK, _LOOKUP):
            return ConnectRequest(kind, flags, handle, check_path(bytes(data[HEAD:])))
        if kind == _REMOVE:
            ino, ctime = REMOVE.unpack_from(data, HEAD)
            return ConnectRequest(kind, flags, handle, check_path(bytes(data[HEAD + REMOVE.size :])), ino=ino, ctime=ctime)
        if kind in (_OPEN, _TMPFILE):
            mode, umask, prefetch = OPEN.unpack_from(data, HEAD)
            return ConnectRequest(kind, flags, handle, check_path(bytes(data[HEAD + OPEN.size :])), mode, umask, 0, prefetch)
        if kind in (_MKDIR, _MKNOD):
            mode, umask, rdev = MAKE.unpack_from(data, HEAD)
            return ConnectRequest(kind, flags, handle, check_path(bytes(data[HEAD + MAKE.size :])), mode, umask, rdev)
        if kind in (_RENAME, _LINK):
            handle2, length, _ = RENAME.unpack_from(data, HEAD)
            path, path2 = _two_names(data, HEAD + RENAME.size, length)
            return ConnectRequest(kind, flags, handle, check_path(path), handle2=handle2, path2=check_path(path2))
        if kind == _SYMLINK:
            (length,) = SYMLINK.unpack_from(data, HEAD)
            path, text = _two_names(data, HEAD + SYMLINK.size, length)
            if b"\0" in text:
                raise BadMessage("link text holds a NUL")
            if len(text) > TARGET_MAX:
                raise ResmgrError(errno.ENAMETOOLONG)
            return ConnectRequest(kind, flags, handle, check_path(path), path2=text)
        if kind == _REOPEN:
            (length,) = REOPEN.unpack_from(data, HEAD)
            token, path = _two_names(data, HEAD + REOPEN.size, length)
            if length > TOKEN_MAX:
                raise BadMessage("token too long")
            return ConnectRequest(kind, flags, handle, check_path(path), path2=token)
        if kind == _SETATTR:
            change = SetAttr.parse(data, HEAD)
            return ConnectRequest(kind, flags, handle, check_path(bytes(data[HEAD + SETATTR.size :])), change=change)
        if kind == _XATTR:
            path, xattr = parse_xattr(data)
            return ConnectRequest(kind, flags, handle, path, xattr=xattr)
        if kind == _ACCESS:
            (mode,) = ACCESS.unpack_from(data, HEAD)
            return ConnectRequest(kind, flags, handle, check_path(bytes(data[HEAD + ACCESS.size :])), mode)
        return ConnectRequest(kind, flags, handle, check_path(bytes(data[HEAD:])))
    except struct.error:
        raise BadMessage("connect message cut short") from None


def pack_read(handle: int, offset: int, size: int, flags: int = 0) -> bytes:
    return REQUEST.pack(Io.READ, 0, flags, handle) + READ.pack(offset, size)


def parse_read(data: Buffer) -> tuple[int, int]:
    """offset, size of READ."""
    try:
        offset, size = READ.unpack_from(data, HEAD)
    except struct.error:
        raise BadMessage("read cut short") from None
    return offset, size


WRITE_HEAD: Final = HEAD + WRITE.size
"""Where the data of a WRITE message begins."""


def pack_write(handle: int, offset: int, size: int, flags: int = 0) -> bytes:
    """Everything of a WRITE message but its data, which the caller sends as a further part."""
    return REQUEST.pack(Io.WRITE, 0, flags, handle) + WRITE.pack(offset, size)


def parse_write(data: Buffer) -> tuple[int, int]:
    """offset (OFFSET_APPEND: the end), size of WRITE; the data begins at WRITE_HEAD of the message."""
    try:
        offset, size = WRITE.unpack_from(data, HEAD)
    except struct.error:
        raise BadMessage("write cut short") from None
    return offset, size


def pack_readdir(handle: int, cookie: int, size: int, flags: int = 0) -> bytes:
    return REQUEST.pack(Io.READDIR, 0, flags, handle) + READDIR.pack(cookie, size)


def parse_readdir(data: Buffer) -> tuple[int, int]:
    """cookie, size of READDIR."""
    try:
        cookie, size = READDIR.unpack_from(data, HEAD)
    except struct.error:
        raise BadMessage("readdir cut short") from None
    return cookie, size


def pack_space(handle: int, mode: int, offset: int, length: int) -> bytes:
    return REQUEST.pack(Io.SPACE, 0, 0, handle) + SPACE.pack(mode, offset, length)


def parse_space(data: Buffer) -> tuple[int, int, int]:
    """fallocate mode, offset, length of SPACE."""
    try:
        mode, offset, length = SPACE.unpack_from(data, HEAD)
    except struct.error:
        raise BadMessage("space cut short") from None
    return mode, offset, length


def pack_copy(handle: int, destination: int, start: int, to: int, length: int, how: int = 0) -> bytes:
    """COPY from open file *handle* to open file *destination* of the same client. *how*: LOSES_BITS."""
    return REQUEST.pack(Io.COPY, 0, how, handle) + COPY.pack(destination, start, to, length, 0)


def parse_copy(data: Buffer) -> tuple[int, int, int, int]:
    """destination OCB, offset in the source, offset in the destination, length of COPY."""
    try:
        destination, start, to, length, flags = COPY.unpack_from(data, HEAD)
    except struct.error:
        raise BadMessage("copy cut short") from None
    if flags:
        raise BadMessage("copy of an unknown kind")
    return destination, start, to, length


def pack_seek(handle: int, whence: int, offset: int) -> bytes:
    return REQUEST.pack(Io.SEEK, 0, 0, handle) + SEEK.pack(whence, offset)


def parse_seek(data: Buffer) -> tuple[int, int]:
    """SEEK_DATA or SEEK_HOLE, offset of SEEK."""
    try:
        whence, offset = SEEK.unpack_from(data, HEAD)
    except struct.error:
        raise BadMessage("seek cut short") from None
    if whence not in (SEEK_DATA, SEEK_HOLE):
        raise BadMessage("seek of an unknown kind")
    return whence, offset


def pack_setattr(handle: int, change: SetAttr) -> bytes:
    return REQUEST.pack(Io.SETATTR, 0, 0, handle) + change.pack()


def pack_devctl(handle: int, command: int, data: Buffer = b"") -> bytes:
    return b"".join((REQUEST.pack(Io.DEVCTL, 0, 0, handle), DEVCTL.pack(command, len(data)), data))


def parse_devctl(data: Buffer) -> tuple[int, Buffer]:
    """command, its data."""
    try:
        command, length = DEVCTL.unpack_from(data, HEAD)
    except struct.error:
        raise BadMessage("devctl cut short") from None
    start = HEAD + DEVCTL.size
    if len(data) - start != length:
        raise BadMessage("devctl's data has another length than it says")
    return command, memoryview(data)[start:]


def pack_notify(handle: int, action: int, wanted: int) -> bytes:
    return REQUEST.pack(Io.NOTIFY, 0, 0, handle) + NOTIFY.pack(action, wanted)


def parse_notify(data: Buffer) -> tuple[int, int]:
    """action, wanted conditions."""
    try:
        action, wanted = NOTIFY.unpack_from(data, HEAD)
    except struct.error:
        raise BadMessage("notify cut short") from None
    if action > NOTIFY_CHANGE or wanted & ~POLL_ALL:
        raise BadMessage("notify of an unknown kind")
    return action, wanted
