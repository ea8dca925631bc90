"""Trees of objects served with default handlers: what QNX's iofunc_*_default functions do for attributes, permissions, OCBs and listings.

Write a `Node` with the methods that make sense for it, put nodes into a `Directory`, and give the root to a `TreeManager`. What a node does
not implement is answered as QNX and Linux do: EINVAL for reading what has no text, EROFS or EPERM for what cannot be changed.
`/proc`-like values, one-value devices and the list of nodes under `/net` are all this.

Node methods run in dispatch context and must not block. A manager that answers later, or that wants another operation, overrides entries
of the tables (`connect_table`, `io_table`) and gives them to `Manager` itself.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b

from resmgr.access import NOBODY_USER, MappedUser
from resmgr.channel import ClientInfo, Kernel, Message
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.iofunc.handle import Client, Handle
from resmgr.iofunc.locking import FileLocks
from resmgr.iofunc.manager import Manager
from resmgr.iofunc.permission import READ, SEARCH, WRITE, check
from resmgr.iomsg import (
    ATTR,
    DIRENT,
    OFFSET_APPEND,
    READDIR_ATTRS,
    STATUS_REDIRECT,
    WANT_HANDLE,
    Attr,
    Connect,
    DirEntry,
    Entry,
    Io,
    StatFs,
    Target,
    pack_dirent,
)
from resmgr.iorequest import (
    HEAD,
    WRITE_HEAD,
    ConnectRequest,
    SetAttr,
    parse_devctl,
    parse_read,
    parse_readdir,
    parse_write,
)

VALUE_WRITE_MAX = 64 * 1024
"""Bytes of one write to a node: it is a value, not a file; more is EMSGSIZE."""
NANOSECOND = 1_000_000_000


class Node:
    """One object: a value, a device, a directory. Override what it can do. `mode` includes the type."""

    mode = 0o100444
    uid = 0
    gid = 0
    changed = 0.0
    """Seconds since the epoch, told as all three times; 0: the manager's start."""

    def size(self) -> int:
        """Bytes, as stat tells. 0 is usual for what is made when it is opened."""
        return 0

    def open(self, user: MappedUser, flags: int) -> object | None:
        """Called at open, after the permission check. What it returns is given to `read`, `write` and `close` as *state*."""
        return None

    def read(self, state: object | None, offset: int, size: int) -> Buffer:
        raise OSError(errno.EINVAL, "cannot be read")

    def write(self, state: object | None, offset: int, data: Buffer) -> int:
        """Bytes taken. *offset* is OFFSET_APPEND for the end."""
        raise OSError(errno.EINVAL, "cannot be written")

    def truncate(self, size: int) -> None:
        """A shell's `> name` comes as this and a write; by default it does nothing for something writable."""

    def change(self, change: SetAttr) -> None:
        raise PermissionError(errno.EPERM, "attributes are fixed")

    def devctl(self, state: object | None, command: int, data: Buffer) -> tuple[int, Buffer]:
        """(result, data back). QNX: an unknown command is ENOTTY."""
        raise OSError(errno.ENOTTY, "no such command")

    def close(self, state: object | None) -> None:
        """The last use of an open is gone, or its client is."""


class Value(Node):
    """Text made by a callable when it is opened, so that a reader sees one state however it reads."""

    def __init__(self, text: Callable[[], bytes], mode: int = 0o444) -> None:
        self._text = text
        self.mode = 0o100000 | mode

    def open(self, user: MappedUser, flags: int) -> object | None:
        return self._text()

    def read(self, state: object | None, offset: int, size: int) -> Buffer:
        text = state if isinstance(state, bytes) else b""
        return text[offset : offset + size]


class Setting(Value):
    """A one-value device: reading tells it, writing (a line) sets it. *put* may raise OSError, EINVAL for instance."""

    def __init__(self, get: Callable[[], bytes], put: Callable[[bytes], None], mode: int = 0o644) -> None:
        super().__init__(get, mode)
        self._put = put

    def write(self, state: object | None, offset: int, data: Buffer) -> int:
        self._put(bytes(data))
        return len(data)


class Link(Node):
    """A symbolic link."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.mode = 0o120777

    def size(self) -> int:
        return len(self.text)


class Elsewhere(Node):
    """A name served by somebody else: a walk that reaches it is answered with a redirect to *target*, base handle *handle*."""

    mode = 0o040555

    def __init__(self, target: Target, handle: int = 0) -> None:
        self.target = target
        self.handle = handle


class Directory(Node):
    """A directory. Override `lookup` and `entries` for one that is made on demand."""

    mode = 0o040555

    def __init__(self, nodes: dict[bytes, Node] | None = None) -> None:
        self.nodes = {} if nodes is None else nodes

    def lookup(self, name: bytes) -> Node | None:
        return self.nodes.get(name)

    def entries(self) -> Iterable[tuple[bytes, Node]]:
        """Names and nodes; called once per opening, so that a listing is of one moment."""
        return self.nodes.items()


class NodeHandle(Handle):
    """A base handle or OCB of a node. `path` gives it its inode number."""

    __slots__ = ("flags", "listing", "node", "opened", "path", "state")

    def __init__(self, node: Node, path: bytes) -> None:
        super().__init__()
        self.node = node
        self.path = path
        self.opened = False
        self.flags = 0
        self.state: object | None = None
        self.listing: list[tuple[bytes, Node]] | None = None

    def release(self) -> None:
        if self.opened:
            self.node.close(self.state)


def local_or_nobody(info: ClientInfo) -> MappedUser:
    """The default mapping: local clients are themselves, those of other nodes nobody."""
    if info.nd:
        return NOBODY_USER
    return MappedUser(info.credentials.uid, info.credentials.gid, info.credentials.groups)


class NodeClient(Client):
    __slots__ = ("user",)

    def __init__(self, info: ClientInfo, user: MappedUser) -> None:
        super().__init__(info)
        self.user = user


class TreeManager:
    """Serves *root* and what is below it. *user* maps clients to users (or to an errno that refuses them)."""

    def __init__(
        self,
        kernel: Kernel,
        root: Directory,
        *,
        name: str,
        user: Callable[[ClientInfo], MappedUser | int] = local_or_nobody,
        pid: int = 1,
        chid: int | None = None,
        remote: bool = True,
    ) -> None:
        self.root = root
        self._user = user
        self._started = kernel.dispatch.wall()
        self._locks = FileLocks()
        self.manager = Manager(
            kernel,
            name=name,
            make_client=self._client,
            connect=self.connect_table(),
            io=self.io_table(),
            pid=pid,
            chid=chid,
            remote=remote,
        )
        self.channel = self.manager.channel
        self.target = Target(0, pid, self.channel.chid)
        self.counters = self.manager.counters
        self._locks.count_in(self.counters)

    def connect_table(self) -> dict[Connect, Callable[[Message, NodeClient, ConnectRequest, Handle | None], None]]:
        """The default connect handlers. Override to add or replace some."""
        table: dict[Connect, Callable[[Message, NodeClient, ConnectRequest, Handle | None], None]] = {
            Connect.LOOKUP: self._lookup,
            Connect.OPEN: self._open,
            Connect.READLINK: self._readlink,
            Connect.SETATTR: self._setattr_path,
            Connect.ACCESS: self._access,
            Connect.STATFS: self._statfs_path,
        }
        for fixed in (Connect.MKDIR, Connect.MKNOD, Connect.LINK, Connect.SYMLINK, Connect.UNLINK, Connect.RMDIR, Connect.RENAME):
            table[fixed] = self._fixed
        return table

    def io_table(self) -> dict[Io, Callable[[Message, NodeClient, Handle, int], None]]:
        """The default I/O handlers. Override to add or replace some."""
        return {
            Io.READ: self._read,
            Io.WRITE: self._write,
            Io.STAT: self._stat,
            Io.READDIR: self._readdir,
            Io.SETATTR: self._setattr,
            Io.STATFS: self._statfs,
            Io.SYNC: self._sync,
            Io.DEVCTL: self._devctl,
            Io.LOCK: self._lock,
        }

    def destroy(self) -> None:
        self.manager.destroy()

    def _client(self, info: ClientInfo) -> NodeClient:
        user = self._user(info)
        if isinstance(user, int):
            raise OSError(user, "refused")
        return NodeClient(info, user)

    # ---- walking

    def _walk(self, client: NodeClient, base: Handle | None, path: bytes) -> tuple[Node, bytes, bytes]:
        """(node, its path in the tree, rest); a rest or an `Elsewhere` means that the walk goes on at another server."""
        node: Node = self.root
        where = b""
        if base is not None:
            assert isinstance(base, NodeHandle)
            node, where = base.node, base.path
        names = path.split(b"/") if path else []
        for index, name in enumerate(names):
            if isinstance(node, Elsewhere):
                return node, where, b"/".join(names[index:])
            if not isinstance(node, Directory):
                raise OSError(errno.ELOOP if isinstance(node, Link) else errno.ENOTDIR, "not a directory")
            check(node.mode, node.uid, node.gid, client.user, SEARCH)
            below = node.lookup(name)
            if below is None:
                raise FileNotFoundError(errno.ENOENT, "no such name")
            node = below
            where = where + b"/" + name
        return node, where, b""

    def attr(self, node: Node, path: bytes) -> Attr:
        """What stat tells of *node*."""
        directory = isinstance(node, Directory | Elsewhere)
        when = int((node.changed or self._started) * NANOSECOND)
        size = node.size()
        ino = int.from_bytes(blake2b(path, digest_size=8).digest(), "big") >> 1 or 1
        links = 2 if directory else 1
        return Attr(ino, node.mode, links, node.uid, node.gid, 0, size, size + 511 >> 9, 4096, when, when, when, when)

    def _redirected(self, message: Message, node: Node, rest: bytes) -> bool:
        if not isinstance(node, Elsewhere):
            return False
        message.reply(STATUS_REDIRECT, Entry(node.target, node.handle, 0, None, rest=rest).pack())
        return True

    # ---- connect messages

    def _lookup(self, message: Message, client: NodeClient, request: ConnectRequest, base: Handle | None) -> None:
        node, path, rest = self._walk(client, base, request.path)
        if self._redirected(message, node, rest):
            return
        number = 0
        if isinstance(node, Directory) or request.flags & WANT_HANDLE:
            self.manager.check_room(client)
            number = self.manager.add(message, client, NodeHandle(node, path))
        message.reply(0, Entry(self.target, number, 0, self.attr(node, path)).pack())

    def _open(self, message: Message, client: NodeClient, request: ConnectRequest, base: Handle | None) -> None:
        node, path, rest = self._walk(client, base, request.path)
        if self._redirected(message, node, rest):
            return
        flags = request.flags
        access = flags & os.O_ACCMODE
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "exists")
        if isinstance(node, Link):
            raise OSError(errno.ELOOP, "symbolic link")
        directory = isinstance(node, Directory)
        if directory and (access != os.O_RDONLY or flags & os.O_TRUNC):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        if flags & os.O_DIRECTORY and not directory:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        want = {os.O_RDONLY: READ, os.O_WRONLY: WRITE, os.O_RDWR: READ | WRITE}.get(access)
        if want is None:
            raise OSError(errno.EINVAL, "access mode 3")
        if flags & os.O_TRUNC:
            want |= WRITE
        check(node.mode, node.uid, node.gid, client.user, want)
        self.manager.check_room(client)
        handle = NodeHandle(node, path)
        handle.flags = flags
        handle.state = node.open(client.user, flags)
        handle.opened = True
        data: Buffer = b""
        try:
            if flags & os.O_TRUNC:
                node.truncate(0)
            attr = self.attr(node, path)
            if request.prefetch and access == os.O_RDONLY and attr.size and not directory:
                data = node.read(handle.state, 0, min(request.prefetch, attr.size))
        except BaseException:
            handle.close()
            raise
        number = self.manager.add(message, client, handle)
        message.reply(0, Entry(self.target, number if directory else 0, number, attr, data).pack())

    def _readlink(self, message: Message, client: NodeClient, request: ConnectRequest, base: Handle | None) -> None:
        node, _, rest = self._walk(client, base, request.path)
        if self._redirected(message, node, rest):
            return
        if not isinstance(node, Link):
            raise OSError(errno.EINVAL, "not a symbolic link")
        message.reply(0, node.text)

    def _setattr_path(self, message: Message, client: NodeClient, request: ConnectRequest, base: Handle | None) -> None:
        node, path, rest = self._walk(client, base, request.path)
        if not self._redirected(message, node, rest):
            assert request.change is not None
            message.reply(0, self._changed(client, node, path, request.change).pack())

    def _access(self, message: Message, client: NodeClient, request: ConnectRequest, base: Handle | None) -> None:
        node, _, rest = self._walk(client, base, request.path)
        if not self._redirected(message, node, rest):
            check(node.mode, node.uid, node.gid, client.user, request.mode & 7)
            message.reply(0)

    def _statfs_path(self, message: Message, client: NodeClient, request: ConnectRequest, base: Handle | None) -> None:
        node, _, rest = self._walk(client, base, request.path)
        if not self._redirected(message, node, rest):
            message.reply(0, _NO_SPACE)

    def _fixed(self, message: Message, client: NodeClient, request: ConnectRequest, base: Handle | None) -> None:
        """Making, moving and removing names: the tree is what it is, but the walk may lead elsewhere."""
        names = request.path.split(b"/")
        try:
            node, _, rest = self._walk(client, base, request.path)
        except FileNotFoundError:
            self._walk(client, base, b"/".join(names[:-1]))
            raise OSError(errno.EROFS, "the tree is fixed") from None
        if isinstance(node, Elsewhere) and rest:
            if request.subtype in (Connect.RENAME, Connect.LINK):
                raise OSError(errno.EXDEV, "names on another server: use its base handles")
            self._redirected(message, node, rest)
        elif request.subtype in (Connect.MKDIR, Connect.MKNOD, Connect.SYMLINK):
            raise FileExistsError(errno.EEXIST, "exists")
        else:
            raise OSError(errno.EROFS, "the tree is fixed")

    # ---- I/O messages

    def _read(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        ocb = _opened(handle)
        offset, size = parse_read(message.data)
        if isinstance(ocb.node, Directory):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        if ocb.flags & os.O_ACCMODE == os.O_WRONLY:
            raise OSError(errno.EBADF, "not open for reading")
        data = ocb.node.read(ocb.state, offset, min(size, message.reply_len))
        message.reply(len(data), data)

    def _write(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        ocb = _opened(handle)
        offset, size = parse_write(message.data)
        if ocb.flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "not open for writing")
        if size > VALUE_WRITE_MAX:
            raise OSError(errno.EMSGSIZE, "value too long")
        if size > message.msglen - WRITE_HEAD:
            raise BadMessage("write has less data than it says")
        if ocb.flags & os.O_APPEND:
            offset = OFFSET_APPEND
        have = len(message.data) - WRITE_HEAD
        if have >= size:
            message.reply(ocb.node.write(ocb.state, offset, memoryview(message.data)[WRITE_HEAD : WRITE_HEAD + size]))
            return

        def pulled(count: int, data: Buffer) -> None:
            try:
                if count != size:
                    raise OSError(-count if count < 0 else errno.EBADMSG, "client gone")
                message.reply(ocb.node.write(ocb.state, offset, data))
            except Exception as error:
                self.manager.failed(message, error)

        message.read(WRITE_HEAD, size, pulled)

    def _stat(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        assert isinstance(handle, NodeHandle)
        message.reply(0, self.attr(handle.node, handle.path).pack())

    def _readdir(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        ocb = _opened(handle)
        cookie, size = parse_readdir(message.data)
        if not isinstance(ocb.node, Directory):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        if cookie == 0 or ocb.listing is None:
            ocb.listing = list(ocb.node.entries())
        message.reply(0, b"".join(self._entries(ocb, cookie, min(size, message.reply_len), flags & READDIR_ATTRS)))

    def _entries(self, ocb: NodeHandle, cookie: int, size: int, attrs: int) -> Iterator[bytes]:
        listing = ocb.listing or []
        fixed = DIRENT.size + (ATTR.size if attrs else 0)
        for index in range(cookie, len(listing)):
            name, node = listing[index]
            size -= fixed + len(name)
            if size < 0:
                if index == cookie:
                    raise OSError(errno.EINVAL, "no room for one entry")
                return
            attr = self.attr(node, ocb.path + b"/" + name)
            told = _ELSEWHERE if isinstance(node, Elsewhere) else attr
            yield pack_dirent(DirEntry(name, attr.ino, index + 1, node.mode & 0o170000, told if attrs else None))

    def _changed(self, client: NodeClient, node: Node, path: bytes, change: SetAttr) -> Attr:
        size = change.valid & 8
        if size:
            check(node.mode, node.uid, node.gid, client.user, WRITE)
            if isinstance(node, Directory):
                raise IsADirectoryError(errno.EISDIR, "is a directory")
            node.truncate(change.size)
        if change.valid & ~8:
            if client.user.uid not in (0, node.uid):
                raise PermissionError(errno.EPERM, "not the owner")
            node.change(change)
        return self.attr(node, path)

    def _setattr(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        assert isinstance(handle, NodeHandle)
        message.reply(0, self._changed(client, handle.node, handle.path, SetAttr.parse(message.data, HEAD)).pack())

    def _statfs(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        message.reply(0, _NO_SPACE)

    def _sync(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        message.reply(0)

    def _lock(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        ocb = _opened(handle)
        access = ocb.flags & os.O_ACCMODE
        self._locks.answer(message, client, ocb, ocb.path, access != os.O_WRONLY, access != os.O_RDONLY)

    def _devctl(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        ocb = _opened(handle)
        command, data = parse_devctl(message.data)
        result, back = ocb.node.devctl(ocb.state, command, data)
        message.reply(result, back)


_ELSEWHERE = Attr(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
"""Attributes of what somebody else serves, in a listing: only a lookup there tells them."""
_NO_SPACE = StatFs(0, 0, 0, 0, 0, 4096, 255, 4096).pack()


def _opened(handle: Handle) -> NodeHandle:
    assert isinstance(handle, NodeHandle)
    if not handle.opened:
        raise OSError(errno.EBADF, "not open")
    return handle
