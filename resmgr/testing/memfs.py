"""A file system in memory, as a resource manager: every message of `resmgr.iomsg` that a file system answers, with faults on demand.

For tests of what uses managers (the FUSE front end, transports, the simulator): deterministic, needs no right and no disk, and can be
made to be late, to fail, or to hang. It does what hostfs does, but: no device or FIFO can be opened, OPEN of a directory brings its first
entries when a prefetch is asked for, and a change value is a counter, so every change differs."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_ISDIR, S_ISREG

from resmgr.channel import PID_SYSTEM, Kernel, Message
from resmgr.dispatch import Buffer
from resmgr.iofunc.handle import Client, Handle
from resmgr.iofunc.manager import Manager
from resmgr.iomsg import (
    COOKIE_END,
    LOOKUP_WATCH,
    MKDIR_WATCH,
    NAME_MAX,
    OFFSET_APPEND,
    OPEN_DELEGATE,
    OPEN_WATCH,
    READDIR_ATTRS,
    SET_SIZE,
    SETATTR_SURE,
    SURE,
    WANT_HANDLE,
    WRITE_AT,
    WRITE_ATTR,
    Connect,
    DirEntry,
    Entry,
    Io,
    StatFs,
    Target,
    pack_dirent,
)
from resmgr.iorequest import HEAD, WRITE_HEAD, ConnectRequest, SetAttr, parse_read, parse_readdir, parse_space, parse_write
from resmgr.testing.memdelegations import MemDelegations
from resmgr.testing.memfault import Fault as Fault
from resmgr.testing.memtree import BLOCK, MAY_READ, MAY_SEARCH, MAY_WRITE, Inode, Tree
from resmgr.testing.memwatch import MemWatch

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
CAPACITY_BLOCKS = 1 << 20
"""What statfs says; nothing is enforced."""


class MemHandle(Handle):
    """A base handle (*flags* None) or an open control block."""

    __slots__ = ("flags", "inode", "name")

    def __init__(self, inode: Inode, name: bytes, flags: int | None = None) -> None:
        super().__init__()
        self.inode = inode
        self.name = name
        self.flags = flags


def _inode(handle: MemHandle | None) -> Inode | None:
    return None if handle is None else handle.inode


class MemFs(Tree):
    """Serve a new, empty file system on a channel of *kernel*; `target` is its address on this node.

    `faults` may be changed at any time; `requests` counts messages by operation. With *check* the mode bits count, as for a local file
    system.
    """

    def __init__(self, kernel: Kernel, *, pid: int = PID_SYSTEM, chid: int | None = None, check: bool = True) -> None:
        self.faults: list[Fault] = []
        self.tells_end = False
        """The last entry of a directory has COOKIE_END."""
        self.shares_handles = False
        """An open directory's OCB is told as its base handle, too."""
        self.watching: MemWatch | None = None
        """Set it to have directories watched."""
        self.delegations: MemDelegations | None = None
        self.requests: dict[str, int] = {}
        self._answered_late: dict[Message, float] = {}
        self.hanging: list[Message] = []
        super().__init__(kernel.dispatch.wall, check)
        self._dispatch = kernel.dispatch
        connect = {
            Connect.LOOKUP: self._lookup,
            Connect.OPEN: self._open,
            Connect.UNLINK: self._unlink,
            Connect.RMDIR: self._rmdir,
            Connect.REMOVE: self._unlink,
            Connect.RENAME: self._rename,
            Connect.MKDIR: self._mkdir,
            Connect.MKNOD: self._mknod,
            Connect.LINK: self._link,
            Connect.SYMLINK: self._symlink,
            Connect.READLINK: self._readlink,
            Connect.SETATTR: self._setattr_path,
            Connect.ACCESS: self._access,
            Connect.STATFS: self._statfs_path,
        }
        io = {
            Io.READ: self._read,
            Io.WRITE: self._write,
            Io.STAT: self._stat,
            Io.READDIR: self._readdir,
            Io.SETATTR: self._setattr,
            Io.STATFS: self._statfs,
            Io.SYNC: self._sync,
            Io.SPACE: self._space,
        }
        self.manager: Manager[Client] = Manager(
            kernel,
            name="memfs",
            make_client=Client,
            connect={subtype: self._connect_gate(subtype.name.lower(), handler) for subtype, handler in connect.items()},
            io={kind: self._io_gate(kind.name.lower(), handler) for kind, handler in io.items()},
            pid=pid,
            chid=chid,
            watch=self._watch,
            on_gone=lambda client: None if self.watching is None else self.watching.gone(client),
        )
        self.target = Target(0, pid, self.manager.channel.chid)

    def delegate(self) -> MemDelegations:
        """From now on files are delegated to who asks, and locked. After `watch`."""
        delegations = self.delegations = MemDelegations(self)
        self.manager.serve(Io.LOCK, self._io_gate("lock", delegations.lock))
        self.manager.serve(Io.DELEGATION, self._io_gate("delegation", delegations.message))
        return delegations

    def inode_of(self, handle: Handle) -> Inode:
        """What *handle*, one of this file system, is of."""
        assert isinstance(handle, MemHandle)
        return handle.inode

    def writes(self, handle: Handle) -> bool:
        """Whether *handle* is open for writing."""
        return isinstance(handle, MemHandle) and handle.flags is not None and bool(handle.flags & os.O_ACCMODE)

    def opens(self, handle: Handle) -> bool:
        """Whether *handle* is an open control block."""
        return isinstance(handle, MemHandle) and handle.flags is not None

    def watch(self) -> MemWatch:
        """From now on directories are watched for who asks."""
        self.watching = MemWatch(self._dispatch)
        self.on_name, self.on_inode = self.watching.name, self.watching.inode
        return self.watching

    def _watch(self, message: Message, client: Client, subtype: int) -> None:
        self.requests["watch"] = self.requests.get("watch", 0) + 1
        if self.watching is None:
            message.error(errno.ENOSYS)
        else:
            self.watching.message(message, client, subtype)

    def destroy(self) -> None:
        """The server is gone: its clients get ESRCH and EBADF."""
        self.manager.destroy()

    # ---- faults

    def _connect_gate(
        self, operation: str, handler: Callable[[Message, Client, ConnectRequest, MemHandle | None], None]
    ) -> Callable[[Message, Client, ConnectRequest, Handle | None], None]:
        def gate(message: Message, client: Client, request: ConnectRequest, base: Handle | None) -> None:
            memory = base if isinstance(base, MemHandle) else None
            if self.delegations is not None and self.delegations.held_up(message, client, request, memory):
                return
            go_on = self._made_by(client, lambda: handler(message, client, request, memory))
            self._admit(message, operation, request.path.rpartition(b"/")[2], go_on)

        return gate

    def _io_gate(
        self, operation: str, handler: Callable[[Message, Client, MemHandle, int], None]
    ) -> Callable[[Message, Client, Handle, int], None]:
        def gate(message: Message, client: Client, handle: Handle, flags: int) -> None:
            assert isinstance(handle, MemHandle)
            self._admit(message, operation, handle.name, self._made_by(client, lambda: handler(message, client, handle, flags)))

        return gate

    def _made_by(self, client: Client, go_on: Callable[[], None]) -> Callable[[], None]:
        """*go_on*, of which *client* need not be told."""

        def made() -> None:
            if self.watching is not None:
                self.watching.maker = client
            try:
                go_on()
            finally:
                if self.watching is not None:
                    self.watching.maker = None

        return made

    def _sure(self, client: Client, inode: Inode) -> bytes:
        return SURE if self.watching is not None and self.watching.sure(client, inode) else b""

    def _admit(self, message: Message, operation: str, name: bytes, go_on: Callable[[], None]) -> None:
        self.requests[operation] = self.requests.get(operation, 0) + 1
        for fault in self.faults:
            if fault.operation in ("*", operation) and fault.name in (None, name):
                self._suffer(message, fault, go_on)
                return
        go_on()

    def _suffer(self, message: Message, fault: Fault, go_on: Callable[[], None]) -> None:
        fault.hits += 1
        if fault.times is not None and fault.hits >= fault.times:
            self.faults.remove(fault)
        if fault.hang:
            self.hanging.append(message)
            message.on_unblock = (lambda: None) if fault.deaf else (lambda: self._unblock(message))
        elif fault.late:
            self._answered_late[message] = fault.late
            go_on()
        elif fault.delay:
            if fault.deaf:
                message.on_unblock = lambda: None
            self._dispatch.call_at(self._dispatch.now() + fault.delay, lambda: self._late(message, fault.code, go_on))
        elif fault.code:
            message.error(fault.code)
        else:
            go_on()

    def _unblock(self, message: Message) -> None:
        if not message.answered:
            self.hanging.remove(message)
            message.error(errno.EINTR)

    def _late(self, message: Message, code: int, go_on: Callable[[], None]) -> None:
        if message.answered:
            return
        if code:
            message.error(code)
            return
        try:
            go_on()
        except Exception as error:
            self.manager.failed(message, error)

    # ---- connect messages

    def _entry(
        self,
        message: Message,
        client: Client,
        inode: Inode,
        name: bytes,
        *,
        ocb: MemHandle | None = None,
        data: Buffer = b"",
        keep: bool = False,
        watch: bool = False,
        empty: bool = False,
        delegated: bool = False,
    ) -> None:
        handle = 0
        if keep or (ocb is None and S_ISDIR(inode.mode)):
            self.manager.check_room(client)
            handle = self.manager.add(message, client, MemHandle(inode, name))
        number = 0 if ocb is None else self.manager.add(message, client, ocb)
        if number and self.shares_handles and S_ISDIR(inode.mode):
            handle = number
        own = watch and message.channel is self.manager.channel and S_ISDIR(inode.mode)
        watched = own and self.watching is not None and self.watching.add(client, inode)
        entry = Entry(self.target, handle, number, self.attr(inode), data, watched=watched, empty=empty and watched, delegated=delegated)
        reply = entry.pack()
        late = self._answered_late.pop(message, 0.0)
        if late:
            self._dispatch.call_at(self._dispatch.now() + late, lambda: None if message.answered else message.reply(0, reply))
        else:
            message.reply(0, reply)

    def _lookup(self, message: Message, client: Client, request: ConnectRequest, base: MemHandle | None) -> None:
        _, name, inode = self.existing(message.info.credentials, _inode(base), request.path)
        self._entry(message, client, inode, name, keep=bool(request.flags & WANT_HANDLE), watch=bool(request.flags & LOOKUP_WATCH))

    def _open(self, message: Message, client: Client, request: ConnectRequest, base: MemHandle | None) -> None:
        flags = request.flags
        directory, name, inode = self.walk(message.info.credentials, _inode(base), request.path)
        if inode is None:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "name")
            self.may(directory, message.info.credentials, MAY_WRITE | MAY_SEARCH)
            inode = self.new(S_IFREG | (request.mode & ~request.umask & 0o7777), message.info.credentials)
            self.enter(directory, name, inode)
        else:
            if flags & os.O_CREAT and flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, "name")
            if S_IFMT(inode.mode) == S_IFLNK:
                raise OSError(errno.ELOOP, "symbolic link")
            if not S_ISDIR(inode.mode) and not S_ISREG(inode.mode):
                raise OSError(errno.ENXIO, "not a regular file")
            access = flags & os.O_ACCMODE
            if self.delegations is not None and self.delegations.waits(message, inode, flags):
                return
            if S_ISDIR(inode.mode) and access != os.O_RDONLY:
                raise IsADirectoryError(errno.EISDIR, "directory")
            self.may(
                inode, message.info.credentials, (MAY_READ if access != os.O_WRONLY else 0) | (MAY_WRITE if access != os.O_RDONLY else 0)
            )
            if flags & os.O_TRUNC and S_ISREG(inode.mode):
                del inode.data[:]
                self.touch(inode, data=True)
        self.manager.check_room(client)
        data: Buffer = b""
        if request.prefetch and S_ISDIR(inode.mode):
            data = b"".join(self._entries(inode, 0, request.prefetch, True))
        elif request.prefetch and flags & os.O_ACCMODE == os.O_RDONLY:
            data = bytes(inode.data[: request.prefetch])
        ocb = MemHandle(inode, name, flags)
        asked = flags & OPEN_DELEGATE and message.channel is self.manager.channel
        delegated = bool(asked) and self.delegations is not None and self.delegations.offer(client, directory, ocb)
        self._entry(message, client, inode, name, ocb=ocb, data=data, watch=bool(flags & OPEN_WATCH), delegated=delegated)

    def _make(
        self, message: Message, client: Client, request: ConnectRequest, base: MemHandle | None, mode: int, data: bytes = b""
    ) -> None:
        directory, name = self.vacant(message.info.credentials, _inode(base), request.path)
        kind = S_IFMT(mode)
        inode = self.new(mode, message.info.credentials, request.rdev)
        inode.data[:] = data
        self.enter(directory, name, inode)
        watch = kind == S_IFDIR and bool(request.flags & MKDIR_WATCH)
        self._entry(message, client, inode, name, watch=watch, empty=watch and self.watching is not None)

    def _mkdir(self, message: Message, client: Client, request: ConnectRequest, base: MemHandle | None) -> None:
        self._make(message, client, request, base, S_IFDIR | (request.mode & ~request.umask & 0o7777))

    def _mknod(self, message: Message, client: Client, request: ConnectRequest, base: MemHandle | None) -> None:
        self._make(message, client, request, base, (S_IFMT(request.mode) or S_IFREG) | (request.mode & ~request.umask & 0o7777))

    def _symlink(self, message: Message, client: Client, request: ConnectRequest, base: MemHandle | None) -> None:
        self._make(message, client, request, base, S_IFLNK | 0o777, request.path2)

    def _readlink(self, message: Message, client: Client, request: ConnectRequest, base: MemHandle | None) -> None:
        _, _, inode = self.existing(message.info.credentials, _inode(base), request.path)
        if S_IFMT(inode.mode) != S_IFLNK:
            raise OSError(errno.EINVAL, "not a symbolic link")
        message.reply(0, bytes(inode.data))

    def _second(self, message: Message, client: Client, request: ConnectRequest) -> MemHandle | None:
        if not request.handle2:
            return None
        handle = self.manager.table.find(client, request.handle2, True)
        if not isinstance(handle, MemHandle):
            raise OSError(errno.EBADF, "second handle")
        return handle

    def _link(self, message: Message, client: Client, request: ConnectRequest, base: MemHandle | None) -> None:
        _, _, inode = self.existing(message.info.credentials, _inode(base), request.path)
        if S_ISDIR(inode.mode):
            raise PermissionError(errno.EPERM, "directory")
        directory, name = self.vacant(message.info.credentials, _inode(self._second(message, client, request)), request.path2)
        self.enter(directory, name, inode)
        self._entry(message, client, inode, name)

    def _rename(self, message: Message, client: Client, request: ConnectRequest, base: MemHandle | None) -> None:
        old_dir, old_name, inode = self.existing(message.info.credentials, _inode(base), request.path)
        new_dir, new_name, other = self.walk(message.info.credentials, _inode(self._second(message, client, request)), request.path2)
        if not old_name or not new_name:
            raise OSError(errno.EBUSY, "root")
        for directory in (old_dir, new_dir):
            self.may(directory, message.info.credentials, MAY_WRITE | MAY_SEARCH)
        above: Inode | None = new_dir
        while above is not None and above is not self.root:
            if above is inode:
                raise OSError(errno.EINVAL, "into itself")
            above = above.parent
        if request.flags & RENAME_EXCHANGE:
            if other is None:
                raise FileNotFoundError(errno.ENOENT, "name")
            self.drop(old_dir, old_name)
            self.drop(new_dir, new_name)
            self.enter(new_dir, new_name, inode)
            self.enter(old_dir, old_name, other)
            message.reply(0)
            return
        if other is inode:
            message.reply(0)
            return
        if other is not None:
            if request.flags & RENAME_NOREPLACE:
                raise FileExistsError(errno.EEXIST, "name")
            if S_ISDIR(other.mode) and not S_ISDIR(inode.mode):
                raise IsADirectoryError(errno.EISDIR, "name")
            if S_ISDIR(inode.mode) and not S_ISDIR(other.mode):
                raise NotADirectoryError(errno.ENOTDIR, "name")
            if other.entries:
                raise OSError(errno.ENOTEMPTY, "name")
            self.drop(new_dir, new_name)
        self.drop(old_dir, old_name)
        self.enter(new_dir, new_name, inode)
        message.reply(0, SURE)

    def _unlink(self, message: Message, client: Client, request: ConnectRequest, base: MemHandle | None) -> None:
        directory, name, inode = self.existing(message.info.credentials, _inode(base), request.path)
        if S_ISDIR(inode.mode):
            raise IsADirectoryError(errno.EISDIR, "name")
        if request.subtype == Connect.REMOVE and (request.ino != inode.ino or request.ctime < inode.born):
            raise FileNotFoundError(errno.ENOENT, "name")
        self._removes(message, directory, name)

    def _removes(self, message: Message, directory: Inode, name: bytes) -> None:
        self.may(directory, message.info.credentials, MAY_WRITE | MAY_SEARCH)
        self.drop(directory, name)
        message.reply(0)

    def _rmdir(self, message: Message, client: Client, request: ConnectRequest, base: MemHandle | None) -> None:
        directory, name, inode = self.existing(message.info.credentials, _inode(base), request.path)
        if not S_ISDIR(inode.mode):
            raise NotADirectoryError(errno.ENOTDIR, "name")
        if inode.entries:
            raise OSError(errno.ENOTEMPTY, "name")
        if not name:
            raise OSError(errno.EBUSY, "root")
        self._removes(message, directory, name)

    def _setattr_path(self, message: Message, client: Client, request: ConnectRequest, base: MemHandle | None) -> None:
        _, _, inode = self.existing(message.info.credentials, _inode(base), request.path)
        assert request.change is not None
        if request.change.valid & SET_SIZE and self.delegations is not None and self.delegations.waits(message, inode, os.O_WRONLY):
            return
        self._set(message, inode, request.change, writable=False, told=client if request.flags & SETATTR_SURE else None)

    def _access(self, message: Message, client: Client, request: ConnectRequest, base: MemHandle | None) -> None:
        _, _, inode = self.existing(message.info.credentials, _inode(base), request.path)
        self.may(inode, message.info.credentials, request.mode & 7)
        message.reply(0)

    def _statfs_path(self, message: Message, client: Client, request: ConnectRequest, base: MemHandle | None) -> None:
        self.existing(message.info.credentials, _inode(base), request.path)
        self._tell_statfs(message)

    # ---- I/O messages

    def _read(self, message: Message, client: Client, handle: MemHandle, flags: int) -> None:
        offset, size = parse_read(message.data)
        if handle.flags is None or handle.flags & os.O_ACCMODE == os.O_WRONLY:
            raise OSError(errno.EBADF, "not open for reading")
        message.reply(0, bytes(memoryview(handle.inode.data)[offset : offset + size]))

    def _write(self, message: Message, client: Client, handle: MemHandle, flags: int) -> None:
        offset, size = parse_write(message.data)
        if handle.flags is None or handle.flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "not open for writing")
        if handle.flags & os.O_APPEND and not flags & WRITE_AT:
            offset = OFFSET_APPEND
        here = memoryview(message.data)[WRITE_HEAD : WRITE_HEAD + size]
        if len(here) == size:
            self._store(message, handle.inode, offset, here, client if flags & WRITE_ATTR else None)
            return

        def pulled(count: int, data: Buffer) -> None:
            if count < 0:
                message.error(-count)
            else:
                self._store(message, handle.inode, offset, data)

        message.read(WRITE_HEAD, size, pulled)

    def _store(self, message: Message, inode: Inode, offset: int, data: Buffer, told: Client | None = None) -> None:
        count = self.store(inode, offset, data)
        sure = b"" if told is None else self._sure(told, inode)
        message.reply(count, self.attr(inode).pack() + sure if sure else b"")

    def _stat(self, message: Message, client: Client, handle: MemHandle, flags: int) -> None:
        message.reply(0, self.attr(handle.inode).pack())

    def _entries(self, directory: Inode, cookie: int, size: int, with_attrs: bool) -> Iterator[bytes]:
        entries = list(directory.entries.items())
        last = entries[-1][0] if entries and self.tells_end else None
        for name, (inode, mine) in entries:
            if mine <= cookie:
                continue
            if name == last:
                mine = COOKIE_END
            attr = self.attr(inode) if with_attrs else None
            packed = pack_dirent(DirEntry(name, inode.ino, mine, S_IFMT(inode.mode), attr))
            size -= len(packed)
            if size < 0:
                return
            yield packed

    def _readdir(self, message: Message, client: Client, handle: MemHandle, flags: int) -> None:
        cookie, size = parse_readdir(message.data)
        if not S_ISDIR(handle.inode.mode):
            raise NotADirectoryError(errno.ENOTDIR, "handle")
        self.may(handle.inode, message.info.credentials, MAY_READ)
        message.reply(0, b"".join(self._entries(handle.inode, cookie, min(size, message.reply_len), bool(flags & READDIR_ATTRS))))

    def _setattr(self, message: Message, client: Client, handle: MemHandle, flags: int) -> None:
        writable = handle.flags is not None and handle.flags & os.O_ACCMODE != os.O_RDONLY
        told = client if flags & SETATTR_SURE else None
        self._set(message, handle.inode, SetAttr.parse(message.data, HEAD), writable=writable, told=told)

    def _set(self, message: Message, inode: Inode, change: SetAttr, *, writable: bool, told: Client | None) -> None:
        self.set(message.info.credentials, inode, change, writable)
        message.reply(0, self.attr(inode).pack() + (b"" if told is None else self._sure(told, inode)))

    def _statfs(self, message: Message, client: Client, handle: MemHandle, flags: int) -> None:
        self._tell_statfs(message)

    def _tell_statfs(self, message: Message) -> None:
        free = CAPACITY_BLOCKS - self._next_ino
        message.reply(0, StatFs(CAPACITY_BLOCKS, free, free, CAPACITY_BLOCKS, free, BLOCK, NAME_MAX, BLOCK).pack())

    def _sync(self, message: Message, client: Client, handle: MemHandle, flags: int) -> None:
        message.reply(0)

    def _space(self, message: Message, client: Client, handle: MemHandle, flags: int) -> None:
        mode, offset, length = parse_space(message.data)
        self.space(handle.inode, mode, offset, length)
        message.reply(0)
