"""The system calls behind each connect message: pure functions of (descriptor, name), safe to run on any thread.

Rules that hold everywhere here:

- Every call acts on a directory descriptor and one name, and never follows a symbolic link in that name. `beneath` walks longer paths.
- What the client may see and do is computed by going down its export scope with the same names. What has no verb does not exist.
- Here only regular files and directories are opened: devices and FIFOs, whose opening has effects of its own, are found and left to
  `special`; sockets are refused. No open blocks (O_NONBLOCK).
- The caller has already taken the client's identity; the kernel checks permissions. Only export verbs are checked here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Set
from stat import S_IFIFO, S_IFMT, S_IFREG, S_IFSOCK, S_ISBLK, S_ISCHR, S_ISDIR
from typing import Final

from resmgr.access import Scope
from resmgr.hostfs import syscalls
from resmgr.hostfs.beneath import NODE, Beneath
from resmgr.hostfs.device import Devices
from resmgr.hostfs.made import Opened
from resmgr.hostfs.objects import HostHandle, Leased
from resmgr.hostfs.opened import (
    PERMISSIONS,
    birth_of,
    change,
    check_set_id,
    is_empty,
    is_gone,
    is_special,
    own_path,
    pack_statfs,
    read_directory,
    read_now,
)
from resmgr.hostfs.ownproc import refuse_own
from resmgr.hostfs.special import Special
from resmgr.hostfs.verbs import check_verbs, may_make, may_make_new, may_remove, no_wider
from resmgr.hostfs.xattr import inherits_acl, xattr
from resmgr.iomsg import (
    ATTR,
    ENTRY,
    READDIR_ATTRS,
    SURE,
    UNLINK_DIRECTORY,
    WANT_BIRTH,
    WANT_HANDLE,
    Connect,
)
from resmgr.iorequest import ConnectRequest
from resmgr.owners import Owners

OPEN_FLAGS: Final = (
    os.O_ACCMODE | os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_APPEND | os.O_DIRECTORY | os.O_SYNC | os.O_DSYNC | os.O_NOATIME
) & ~os.O_PATH
"""Open flags a client may set. O_DIRECT would need aligned buffers, O_TMPFILE has its own message, O_PATH is not for files of others."""
_ACCMODE: Final = os.O_ACCMODE
_RDONLY: Final = os.O_RDONLY
_WRONLY: Final = os.O_WRONLY
_CREAT: Final = os.O_CREAT
_EXCL: Final = os.O_EXCL
_TRUNC: Final = os.O_TRUNC
_DIRECTORY: Final = os.O_DIRECTORY
_ALWAYS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
PREFETCH_MAX: Final = 128 * 1024
RENAME_FLAGS: Final = 1 | 2 | 4
"""NOREPLACE, EXCHANGE, WHITEOUT."""
_EXCHANGE: Final = 2
_REMOVE: Final = int(Connect.REMOVE)


class Operations(Beneath):
    """The operations of one served tree, for clients who are told owners as *owners* says (None: as they are)."""

    def __init__(self, devices: Devices, process_umask: int, owners: Owners | None = None) -> None:
        super().__init__(devices)
        self.owners = owners
        self.head = (0, 0, 0)
        """The ENTRY target (nd, pid, chid) of its channel; set once that exists."""
        self._process_umask = process_umask
        self.at_risk: Mapping[bytes, int] = {}
        self.leased: Set[tuple[int, int]] = frozenset()
        """For `read_directory` and `change`."""

    def for_owners(self, owners: Owners | None) -> Operations:
        """The same for clients with another view of owners."""
        if owners is None:
            return self
        other = Operations(self.devices, self._process_umask, owners)
        other.head = self.head
        other.leased = self.leased
        return other

    # ---- attributes

    def ino(self, status: os.stat_result) -> int:
        """The inode number that clients are told."""
        ino, devices = status.st_ino, self.devices
        return ino if status.st_dev == devices.root.number else devices.ino(status.st_dev, ino)

    def attr(self, status: os.stat_result) -> bytes:
        """Packed `Attr` of a stat result."""
        owners = self.owners
        change = status.st_ctime_ns
        return ATTR.pack(
            self.ino(status),
            status.st_mode,
            status.st_nlink,
            status.st_uid if owners is None else owners.user_out(status.st_uid),
            status.st_gid if owners is None else owners.group_out(status.st_gid),
            status.st_rdev,
            status.st_size,
            status.st_blocks,
            status.st_blksize,
            status.st_atime_ns,
            status.st_mtime_ns,
            change,
            change,
        )

    def entry(self, attr: bytes, node: int = 0, ocb: int = 0, data: bytes | bytearray = b"", bits: int = 0) -> bytes:
        """Packed `Entry`. *bits*: WATCHED, EMPTY."""
        head = ENTRY.pack(*self.head, node, ocb, len(data) | bits)
        return b"".join((head, attr, data)) if data else head + attr

    def _handle(self, fd: int, status: os.stat_result, scope: Scope, flags: int = os.O_PATH) -> HostHandle:
        handle = HostHandle(fd, scope, self.devices.get(status.st_dev), S_ISDIR(status.st_mode), flags)
        handle.inode = status.st_ino
        return handle

    # ---- connect messages

    def lookup(self, base: HostHandle, request: ConnectRequest) -> bytes | Opened:
        path = request.path
        keep = request.flags & WANT_HANDLE
        birth = request.flags & WANT_BIRTH
        if not keep and not birth and path and path.find(b"/") < 0:
            scope = base.scope.enter(path)
            status = os.stat(path, dir_fd=base.fd, follow_symlinks=False)
            if status.st_mode & 0o170000 != 0o040000:
                if not scope.verbs:
                    raise FileNotFoundError(errno.ENOENT, "not exported")
                return ENTRY.pack(*self.head, 0, 0, 0) + self.attr(status)
            fd = os.open(path, NODE | _DIRECTORY, dir_fd=base.fd)
            self._refuse_own(fd, path)
        else:
            fd, scope = self._object(base, path)
        try:
            status = os.fstat(fd)
            if not scope.verbs and not S_ISDIR(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "not exported")
            data = birth_of(fd) if birth else b""
            if keep or S_ISDIR(status.st_mode):
                watched = request.watch is not None and S_ISDIR(status.st_mode) and request.watch(fd, scope)
                if watched:
                    # What is told of it must not be older than the watch.
                    status = os.fstat(fd)
                return Opened(self.attr(status), self._handle(fd, status, scope), None, data, watched)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return self.entry(self.attr(status), 0, 0, data)

    def open(self, base: HostHandle, request: ConnectRequest) -> Opened | Special:
        flags = request.flags & OPEN_FLAGS
        access = flags & _ACCMODE
        if access == _ACCMODE:
            raise OSError(errno.EINVAL, "access mode 3")
        writes = access != _RDONLY or bool(flags & _TRUNC)
        if not request.path:
            return self._open_base(base, request, flags, writes)
        dirfd, name, parent_scope, owned = self._parent(base, request.path)
        try:
            scope = parent_scope.enter(name)
            exists = True
            special = False
            pinned = parent_scope.pinned(name)
            if flags & (_CREAT | _EXCL) == _CREAT | _EXCL and parent_scope.write and not pinned:
                exists = False
            else:
                try:
                    special = is_special(os.stat(name, dir_fd=dirfd, follow_symlinks=False))
                except FileNotFoundError:
                    if not flags & _CREAT:
                        raise
                    exists = False
                if exists and flags & _CREAT and flags & _EXCL:
                    raise FileExistsError(errno.EEXIST, "exists")
            if special:
                return self._special(os.open(name, NODE, dir_fd=dirfd), scope, request.flags)
            if exists:
                check_verbs(scope, access != _WRONLY, writes)
                if not scope.verbs:
                    flags |= _DIRECTORY
                if flags & _CREAT and (pinned or not parent_scope.write):
                    flags &= ~_CREAT
            elif not parent_scope.write:
                raise OSError(errno.EROFS, "export is read-only")
            elif pinned:
                raise OSError(errno.EBUSY, "an export begins there")
            elif access != _WRONLY and not scope.read:
                raise PermissionError(errno.EACCES, "export is write-only")
            mode, lost = (0, 0) if exists else self._mode(dirfd, request)
            if not exists:
                check_set_id(parent_scope, mode, 0)
            fd = os.open(name, flags | _ALWAYS, mode, dir_fd=dirfd)
        finally:
            if owned >= 0:
                os.close(owned)
        return self._opened(fd, scope, flags, request, lost)

    def tmpfile(self, base: HostHandle, request: ConnectRequest) -> Opened:
        """O_TMPFILE: a file without a name in the directory that the path leads to."""
        flags = request.flags & OPEN_FLAGS & ~(os.O_CREAT | os.O_TRUNC | os.O_DIRECTORY)
        if flags & os.O_ACCMODE not in (os.O_WRONLY, os.O_RDWR):
            raise OSError(errno.EINVAL, "a file without a name is for writing")
        dirfd, scope = self._object(base, request.path)
        try:
            if not scope.write:
                raise OSError(errno.EROFS, "export is read-only")
            if flags & os.O_ACCMODE == os.O_RDWR and not scope.read:
                raise PermissionError(errno.EACCES, "export is write-only")
            mode, lost = self._mode(dirfd, request)
            check_set_id(scope, mode, 0)
            fd = os.open(b".", flags | os.O_TMPFILE | _ALWAYS & ~os.O_NOFOLLOW, mode, dir_fd=dirfd)
        finally:
            os.close(dirfd)
        return self._opened(fd, scope, flags, request, lost)

    def _mode(self, dirfd: int, request: ConnectRequest) -> tuple[int, int]:
        """Permissions for what is made in *dirfd*, and those of them that this process's own umask will take away. The maker's umask does
        not count where a default ACL rules, and the kernel lets ours not count either."""
        mode = request.mode & PERMISSIONS
        if mode & (request.umask | self._process_umask) & 0o777 and inherits_acl(dirfd):
            return mode, 0
        mode &= ~request.umask
        return mode, mode & self._process_umask & 0o777

    def _special(self, fd: int, scope: Scope, flags: int) -> Special:
        """What *fd* is, if it is a device or FIFO that the client may open."""
        try:
            status = os.fstat(fd)
            if not is_special(status):
                raise OSError(errno.ESTALE, "it was a special file a moment ago")
            return Special(self._handle(fd, status, scope), status, flags)
        except BaseException:
            os.close(fd)
            raise

    def _open_base(self, base: HostHandle, request: ConnectRequest, flags: int, writes: bool) -> Opened | Special:
        """Open what the base handle itself is, again, with the client's rights."""
        check_verbs(base.scope, flags & os.O_ACCMODE != os.O_WRONLY, writes)
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "exists")
        flags &= ~os.O_CREAT
        if base.directory:
            # Not by ".": that would take the right to search it.
            fd = os.open(own_path(base.fd), (flags | _ALWAYS | os.O_DIRECTORY) & ~os.O_NOFOLLOW)
        else:
            if is_special(os.fstat(base.fd)):
                return self._special(os.dup(base.fd), base.scope, request.flags)
            fd = os.open(own_path(base.fd), (flags | _ALWAYS) & ~os.O_NOFOLLOW)
        return self._opened(fd, base.scope, flags, request, 0)

    def _opened(self, fd: int, scope: Scope, flags: int, request: ConnectRequest, lost: int) -> Opened:
        data: bytes | bytearray = b""
        prefetch = request.prefetch
        try:
            watched = request.watch is not None and bool(flags & _DIRECTORY) and request.watch(fd, scope)
            status = os.fstat(fd)
            kind = S_IFMT(status.st_mode)
            if kind != S_IFREG and not S_ISDIR(kind):
                raise OSError(errno.ENXIO, "not a regular file")
            if lost:
                status = self._fix_mode(fd, status, lost)
            handle = self._handle(fd, status, scope, flags)
            if handle.device.proc:
                # Again: a thread of ours may have got the number since its directory was asked.
                refuse_own(request.path.split(b"/"))
            if prefetch and kind == S_IFREG and handle.readable and not handle.writable and status.st_size:
                data = self._prefetch(handle, min(prefetch, PREFETCH_MAX, status.st_size))
            elif prefetch and handle.stream is not None and handle.readable:
                data = self._first_entries(handle, min(prefetch, PREFETCH_MAX))
            return Opened(self.attr(status), None, handle, data, watched)
        except BaseException:
            os.close(fd)
            raise

    def _first_entries(self, handle: HostHandle, size: int) -> bytes:
        try:
            return read_directory(self, handle, 0, size, READDIR_ATTRS)
        except OSError:
            # Whoever reads the directory is told.
            return b""

    @staticmethod
    def _prefetch(handle: HostHandle, size: int) -> bytes | bytearray:
        device = handle.device
        if device.nowait:
            try:
                data = read_now(handle.fd, size, 0)
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    device.nowait = False
            else:
                return b"" if data is None else bytes(data) if isinstance(data, memoryview) else data
        return os.pread(handle.fd, size, 0) if device.memory else b""

    @staticmethod
    def _fix_mode(fd: int, status: os.stat_result, lost: int) -> os.stat_result:
        """Give back the permission bits *lost* that this process's own umask took from a file just made."""
        if not lost & ~status.st_mode:
            return status
        os.chmod(own_path(fd), status.st_mode & PERMISSIONS | lost)
        return os.fstat(fd)

    def mkdir(self, base: HostHandle, request: ConnectRequest) -> Opened:
        dirfd, name, parent_scope, owned = self._parent(base, request.path)
        try:
            scope = may_make_new(dirfd, parent_scope, name)
            mode, lost = self._mode(dirfd, request)
            os.mkdir(name, mode, dir_fd=dirfd)
            fd = os.open(name, NODE | _DIRECTORY, dir_fd=dirfd)
        finally:
            if owned >= 0:
                os.close(owned)
        try:
            status = self._fix_mode(fd, os.fstat(fd), lost)
            watched = request.watch is not None and request.watch(fd, scope)
            if watched:
                status = os.fstat(fd)
            opened = Opened(self.attr(status), self._handle(fd, status, scope), None, b"", watched)
            opened.empty = watched and bool(scope.verbs) and is_empty(fd)
            return opened
        except BaseException:
            os.close(fd)
            raise

    def mknod(self, base: HostHandle, request: ConnectRequest) -> bytes:
        kind = S_IFMT(request.mode) or S_IFREG
        if kind not in (S_IFREG, S_IFIFO, S_IFSOCK) and not S_ISCHR(kind) and not S_ISBLK(kind):
            raise OSError(errno.EINVAL, "no such type of node")
        dirfd, name, parent_scope, owned = self._parent(base, request.path)
        try:
            may_make_new(dirfd, parent_scope, name)
            mode, lost = self._mode(dirfd, request)
            check_set_id(parent_scope, mode, 0)
            os.mknod(name, kind | mode, request.rdev, dir_fd=dirfd)
            fd = os.open(name, NODE, dir_fd=dirfd)
            try:
                status = self._fix_mode(fd, os.fstat(fd), lost)
            finally:
                os.close(fd)
        finally:
            if owned >= 0:
                os.close(owned)
        return self.entry(self.attr(status))

    def symlink(self, base: HostHandle, request: ConnectRequest) -> bytes:
        dirfd, name, parent_scope, owned = self._parent(base, request.path)
        try:
            may_make_new(dirfd, parent_scope, name)
            os.symlink(request.path2, name, dir_fd=dirfd)
            status = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
        finally:
            if owned >= 0:
                os.close(owned)
        return self.entry(self.attr(status))

    def readlink(self, base: HostHandle, request: ConnectRequest) -> bytes:
        if not request.path:
            return os.readlink(b"", dir_fd=base.fd)
        dirfd, name, parent_scope, owned = self._parent(base, request.path)
        try:
            if not parent_scope.enter(name).verbs:
                raise FileNotFoundError(errno.ENOENT, "not exported")
            return os.readlink(name, dir_fd=dirfd)
        finally:
            if owned >= 0:
                os.close(owned)

    def unlink(self, base: HostHandle, request: ConnectRequest) -> bytes:
        dirfd, name, parent_scope, owned = self._parent(base, request.path)
        try:
            may_remove(parent_scope, name)
            if request.flags & UNLINK_DIRECTORY:
                os.rmdir(name, dir_fd=dirfd)
            else:
                # A program of this machine may still put another file there, within microseconds.
                if request.subtype == _REMOVE and not self._is_meant(dirfd, name, request):
                    raise FileNotFoundError(errno.ENOENT, "another file has that name")
                self._recall(dirfd, name)
                os.unlink(name, dir_fd=dirfd)
        finally:
            if owned >= 0:
                os.close(owned)
        return b""

    def _is_meant(self, dirfd: int, name: bytes, request: ConnectRequest) -> bool:
        """Whether *name* leads to the file that REMOVE is about. One with its inode number that was made after the client knew it is
        another: file systems give the number of a removed file anew. What was not changed since then needs no second look."""
        status = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
        if self.ino(status) != request.ino:
            return False
        if status.st_ctime_ns == request.ctime:
            return True
        born = syscalls.birth_ns(dirfd, name)
        return born is None or born <= request.ctime

    def _recall(self, dirfd: int, name: bytes) -> None:
        """Raise `Leased` if a client may believe that the name leads to a file that is delegated to it: it is asked first."""
        if self.leased:
            try:
                status = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
            except FileNotFoundError:
                return
            if (status.st_dev, status.st_ino) in self.leased:
                raise Leased((status.st_dev, status.st_ino))

    def rmdir(self, base: HostHandle, request: ConnectRequest) -> bytes:
        request.flags |= UNLINK_DIRECTORY
        return self.unlink(base, request)

    def rename(self, base: HostHandle, request: ConnectRequest, base2: HostHandle) -> bytes:
        if request.flags & ~RENAME_FLAGS:
            raise OSError(errno.EINVAL, "rename flags")
        dirfd, name, parent_scope, owned = self._parent(base, request.path)
        owned2 = -1
        try:
            dirfd2, name2, parent_scope2, owned2 = self._parent(base2, request.path2)
            old = may_remove(parent_scope, name)
            new = may_make(parent_scope2, name2)
            if parent_scope2.pinned(name2):
                raise OSError(errno.EBUSY, "an export begins there")
            no_wider(old, new)
            if request.flags & _EXCHANGE:
                no_wider(new, old)
            self._recall(dirfd, name)
            self._recall(dirfd2, name2)
            if request.flags:
                syscalls.renameat2(dirfd, name, dirfd2, name2, request.flags)
            else:
                os.rename(name, name2, src_dir_fd=dirfd, dst_dir_fd=dirfd2)
            return SURE if is_gone(dirfd, name) else b""
        finally:
            if owned >= 0:
                os.close(owned)
            if owned2 >= 0:
                os.close(owned2)

    def link(self, base: HostHandle, request: ConnectRequest, base2: HostHandle) -> bytes:
        dirfd2, name2, parent_scope2, owned2 = self._parent(base2, request.path2)
        owned = -1
        try:
            new = may_make_new(dirfd2, parent_scope2, name2)
            if request.path:
                dirfd, name, parent_scope, owned = self._parent(base, request.path)
                old = parent_scope.enter(name)
            else:
                dirfd, name, old = base.fd, b"", base.scope
            no_wider(old, new)
            if name:
                os.link(name, name2, src_dir_fd=dirfd, dst_dir_fd=dirfd2, follow_symlinks=False)
            else:
                os.link(own_path(dirfd), name2, dst_dir_fd=dirfd2, follow_symlinks=True)
            status = os.stat(name2, dir_fd=dirfd2, follow_symlinks=False)
        finally:
            if owned >= 0:
                os.close(owned)
            if owned2 >= 0:
                os.close(owned2)
        return self.entry(self.attr(status))

    def access(self, base: HostHandle, request: ConnectRequest) -> bytes:
        fd, scope = self._object(base, request.path)
        try:
            if request.mode & os.W_OK and not scope.write:
                raise OSError(errno.EROFS, "export is read-only")
            if request.mode & os.R_OK and not scope.read and scope.verbs:
                raise PermissionError(errno.EACCES, "export is write-only")
            syscalls.faccessat2(fd, b"", request.mode, syscalls.AT_EACCESS | syscalls.AT_EMPTY_PATH)
        finally:
            os.close(fd)
        return b""

    def statfs(self, base: HostHandle, request: ConnectRequest) -> bytes:
        fd, _ = self._object(base, request.path)
        try:
            return pack_statfs(fd)
        finally:
            os.close(fd)

    def xattr(self, base: HostHandle, request: ConnectRequest) -> bytes:
        assert request.xattr is not None
        fd, scope = self._object(base, request.path)
        try:
            if not scope.verbs and not S_ISDIR(os.fstat(fd).st_mode):
                raise FileNotFoundError(errno.ENOENT, "not exported")
            return xattr(fd, scope, request.xattr, self.owners, self.at_risk)
        finally:
            os.close(fd)

    def setattr(self, base: HostHandle, request: ConnectRequest) -> bytes:
        assert request.change is not None
        fd, scope = self._object(base, request.path)
        try:
            return change(self, fd, scope, request.change, False, request.after)
        finally:
            os.close(fd)
