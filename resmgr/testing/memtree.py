"""The objects of a file system in memory, what they hold, and the rules of names and permissions: no messages."""

from __future__ import annotations

import errno
from collections.abc import Callable
from stat import S_IFDIR, S_IFMT, S_IFREG, S_ISDIR

import attrs

from resmgr.channel import Credentials
from resmgr.dispatch import Buffer
from resmgr.iomsg import (
    NAME_MAX,
    OFFSET_APPEND,
    SET_ATIME,
    SET_ATIME_NOW,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_MTIME_NOW,
    SET_SIZE,
    SET_UID,
    WATCH_ATTRIB,
    WATCH_CREATE,
    WATCH_DELETE,
    WATCH_MODIFY,
    Attr,
)
from resmgr.iorequest import SetAttr

FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
MAY_READ, MAY_WRITE, MAY_SEARCH = 4, 2, 1
BLOCK = 4096


@attrs.define(eq=False)
class Inode:
    """One object. `entries` of a directory: name -> (object, cookie), in the order of the cookies."""

    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int = 0
    atime: int = 0
    mtime: int = 0
    ctime: int = 0
    change: int = 0
    born: int = 0
    data: bytearray = attrs.Factory(bytearray)
    entries: dict[bytes, tuple[Inode, int]] = attrs.Factory(dict)
    parent: Inode | None = None


class Tree:
    """A tree of objects. *wall* is the clock of its times, in seconds. With *check* the mode bits count."""

    def __init__(self, wall: Callable[[], float], check: bool) -> None:
        self.check = check
        self.on_name: Callable[[Inode, bytes, int], None] | None = None
        """Told of names that come and go: directory, name, kind (WATCH_*)."""
        self.on_inode: Callable[[Inode, int], None] | None = None
        """Told of contents and attributes that change."""
        self.size_max: int | None = None
        """Bytes that a file can hold; None: no limit."""
        self._wall = wall
        self._next_ino = 1
        self._next_cookie = 1
        self._change = 0
        self.root = self.new(S_IFDIR | 0o777, Credentials(0, 0))
        self.root.nlink = 2
        self.root.parent = self.root

    # ---- for the test: what is in it, without messages

    def find(self, path: bytes) -> Inode:
        """The object at *path* from the root. KeyError if there is none."""
        inode = self.root
        for name in path.split(b"/"):
            if name:
                inode = inode.entries[name][0]
        return inode

    def add(self, path: bytes, data: bytes = b"", mode: int = S_IFREG | 0o644, uid: int = 0) -> Inode:
        """Put an object there (directories on the way are made), or change its data, as if somebody else did it."""
        inode = self.root
        *above, last = [name for name in path.split(b"/") if name]
        for name in above:
            if name not in inode.entries:
                self.enter(inode, name, self.new(S_IFDIR | 0o755, Credentials(0, 0)))
            inode = inode.entries[name][0]
        if last in inode.entries:
            found = inode.entries[last][0]
        else:
            found = self.new(mode, Credentials(uid, uid))
            self.enter(inode, last, found)
        found.data[:] = data
        self.touch(found, data=True)
        return found

    def remove(self, path: bytes) -> None:
        """Take the name away, whatever it is, as if somebody else did it."""
        above, _, last = path.rpartition(b"/")
        self.drop(self.find(above), last)

    # ---- objects

    def _now(self) -> int:
        return int(self._wall() * 1e9)

    def touch(self, inode: Inode, *, data: bool = False) -> None:
        self._change += 1
        inode.change = self._change
        inode.ctime = self._now()
        if data:
            inode.mtime = inode.ctime
        if self.on_inode is not None:
            self.on_inode(inode, WATCH_MODIFY if data and not S_ISDIR(inode.mode) else WATCH_ATTRIB)

    def new(self, mode: int, who: Credentials, rdev: int = 0) -> Inode:
        inode = Inode(self._next_ino, mode, who.uid, who.gid, 0, rdev)
        self._next_ino += 1
        self.touch(inode, data=True)
        inode.atime = inode.born = inode.ctime
        return inode

    def enter(self, directory: Inode, name: bytes, inode: Inode) -> None:
        directory.entries[name] = (inode, self._next_cookie)
        self._next_cookie += 1
        inode.nlink += 1
        if S_ISDIR(inode.mode):
            inode.nlink = 2
            inode.parent = directory
            directory.nlink += 1
        self.touch(directory, data=True)
        self.touch(inode)
        if self.on_name is not None:
            self.on_name(directory, name, WATCH_CREATE)

    def drop(self, directory: Inode, name: bytes) -> None:
        inode, _ = directory.entries.pop(name)
        inode.nlink -= 1
        if S_ISDIR(inode.mode):
            inode.nlink = 0
            directory.nlink -= 1
        self.touch(directory, data=True)
        self.touch(inode)
        if self.on_name is not None:
            self.on_name(directory, name, WATCH_DELETE)

    def attr(self, inode: Inode) -> Attr:
        """What stat tells of it."""
        size = len(inode.data) if not S_ISDIR(inode.mode) else BLOCK
        return Attr(
            inode.ino,
            inode.mode,
            inode.nlink,
            inode.uid,
            inode.gid,
            inode.rdev,
            size,
            (size + 511) // 512,
            BLOCK,
            inode.atime,
            inode.mtime,
            inode.ctime,
            inode.change,
        )

    # ---- what they hold

    def store(self, inode: Inode, offset: int, data: Buffer) -> int:
        """Write *data*; how many bytes of them were."""
        content = inode.data
        if offset == OFFSET_APPEND:
            offset = len(content)
        if self.size_max is not None and offset + len(data) > self.size_max:
            # As on a full disk: what fits is written, then nothing.
            data = memoryview(data)[: max(0, self.size_max - offset)]
            if not len(data):
                raise OSError(errno.ENOSPC, "full")
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        if len(content) == offset:
            content += data
        else:
            content[offset : offset + len(data)] = data
        self.touch(inode, data=True)
        return len(data)

    def space(self, inode: Inode, mode: int, offset: int, length: int) -> None:
        """As fallocate(2) does."""
        content = inode.data
        if mode & FALLOC_PUNCH_HOLE:
            end = min(offset + length, len(content))
            if offset < end:
                content[offset:end] = bytes(end - offset)
        elif mode & ~FALLOC_KEEP_SIZE:
            raise OSError(errno.EOPNOTSUPP, "mode")
        elif not mode & FALLOC_KEEP_SIZE and offset + length > len(content):
            self._fits(offset + length)
            content.extend(bytes(offset + length - len(content)))
        self.touch(inode, data=True)

    def set(self, who: Credentials, inode: Inode, change: SetAttr, writable: bool) -> None:
        """Change attributes. *writable*: by a handle that is open for writing."""
        valid = change.valid
        owner = not self.check or who.uid in (0, inode.uid)
        if not owner and valid & (SET_MODE | SET_UID | SET_GID | SET_ATIME | SET_MTIME):
            raise PermissionError(errno.EPERM, "not the owner")
        if valid & SET_SIZE:
            if S_ISDIR(inode.mode):
                raise IsADirectoryError(errno.EISDIR, "size")
            if not writable:
                self.may(inode, who, MAY_WRITE)
            length = len(inode.data)
            self._fits(change.size)
            if change.size < length:
                del inode.data[change.size :]
            else:
                inode.data.extend(bytes(change.size - length))
        if valid & SET_MODE:
            inode.mode = S_IFMT(inode.mode) | change.mode & 0o7777
        if valid & SET_UID:
            inode.uid = change.uid
        if valid & SET_GID:
            inode.gid = change.gid
        self.touch(inode, data=bool(valid & SET_SIZE))
        if valid & SET_ATIME:
            inode.atime = change.atime
        if valid & SET_MTIME:
            inode.mtime = change.mtime
        if valid & SET_ATIME_NOW:
            inode.atime = inode.ctime
        if valid & SET_MTIME_NOW:
            inode.mtime = inode.ctime

    def _fits(self, size: int) -> None:
        """ENOSPC for a file of more than `size_max`, if that is set."""
        if self.size_max is not None and size > self.size_max:
            raise OSError(errno.ENOSPC, "full")

    # ---- names

    def may(self, inode: Inode, who: Credentials, mask: int) -> None:
        if not self.check or who.uid == 0:
            return
        if who.uid == inode.uid:
            bits = inode.mode >> 6
        elif inode.gid == who.gid or inode.gid in who.groups:
            bits = inode.mode >> 3
        else:
            bits = inode.mode
        if mask & ~bits & 7:
            raise PermissionError(errno.EACCES, "mode")

    def walk(self, who: Credentials, base: Inode | None, path: bytes) -> tuple[Inode, bytes, Inode | None]:
        """(directory, last name, object or None) of a path; for an empty path the base itself under the name b"" ."""
        inode = self.root if base is None else base
        if not path:
            return inode, b"", inode
        *above, last = path.split(b"/")
        for name in (*above, None):
            if not S_ISDIR(inode.mode):
                raise NotADirectoryError(errno.ENOTDIR, "component")
            self.may(inode, who, MAY_SEARCH)
            if inode.nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "directory was removed")
            if name is not None:
                if name not in inode.entries:
                    raise FileNotFoundError(errno.ENOENT, "component")
                inode = inode.entries[name][0]
        found = inode.entries.get(last)
        return inode, last, None if found is None else found[0]

    def existing(self, who: Credentials, base: Inode | None, path: bytes) -> tuple[Inode, bytes, Inode]:
        directory, name, inode = self.walk(who, base, path)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "name")
        return directory, name, inode

    def vacant(self, who: Credentials, base: Inode | None, path: bytes) -> tuple[Inode, bytes]:
        directory, name, inode = self.walk(who, base, path)
        if inode is not None or not name:
            raise FileExistsError(errno.EEXIST, "name")
        if len(name) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, "name")
        self.may(directory, who, MAY_WRITE | MAY_SEARCH)
        return directory, name
