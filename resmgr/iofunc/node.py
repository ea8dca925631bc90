"""Trees of objects served with default handlers: what QNX's iofunc_*_default functions do for attributes, permissions, OCBs and listings.

Write a `Node` with the methods that make sense for it, put nodes into a `Directory`, and give the root to a `TreeManager`. What a node does
not implement is answered as QNX and Linux do: EINVAL for reading what has no text, EROFS or EPERM for what cannot be changed.
`/proc`-like values, one-value devices and the list of nodes under `/net` are all this.

A manager that wants another operation overrides entries of the tables (`connect_table`, `io_table`). The nodes are in `nodes`, what is done
to open ones in `nodeio`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from hashlib import blake2b

from resmgr.access import NOBODY_USER, MappedUser
from resmgr.channel import ClientInfo, Kernel, Message
from resmgr.dispatch import Buffer
from resmgr.iofunc.devctl import FROM_DEVICE
from resmgr.iofunc.handle import Client, Handle
from resmgr.iofunc.manager import Manager
from resmgr.iofunc.nodeio import VALUE_WRITE_MAX as VALUE_WRITE_MAX
from resmgr.iofunc.nodeio import NodeIo, read_data
from resmgr.iofunc.nodes import Directory as Directory
from resmgr.iofunc.nodes import Elsewhere as Elsewhere
from resmgr.iofunc.nodes import Link as Link
from resmgr.iofunc.nodes import Node as Node
from resmgr.iofunc.nodes import NodeHandle as NodeHandle
from resmgr.iofunc.nodes import Setting as Setting
from resmgr.iofunc.nodes import Value as Value
from resmgr.iofunc.nodes import opened
from resmgr.iofunc.permission import READ, SEARCH, WRITE, check
from resmgr.iofunc.waiting import Later
from resmgr.iomsg import (
    ATTR,
    DIRENT,
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
from resmgr.iorequest import HEAD, ConnectRequest, SetAttr, parse_devctl, parse_readdir

NANOSECOND = 1_000_000_000


def local_or_nobody(info: ClientInfo) -> MappedUser:
    """The default mapping: local clients are themselves, those of other nodes nobody."""
    if info.nd:
        return NOBODY_USER
    return MappedUser(info.credentials.uid, info.credentials.gid, info.credentials.groups)


def anybody(info: ClientInfo) -> bool:
    """The default: who may change something is up to the nodes."""
    return True


class NodeClient(Client):
    __slots__ = ("may_change", "user")

    def __init__(self, info: ClientInfo, user: MappedUser, may_change: bool) -> None:
        super().__init__(info)
        self.user = user
        self.may_change = may_change


class TreeManager:
    """Serves *root* and what is below it. *user* maps clients to users (or to an errno that refuses them). For those of whom *may_change*
    says no, the tree is a read-only file system (EROFS)."""

    def __init__(
        self,
        kernel: Kernel,
        root: Node,
        *,
        name: str,
        user: Callable[[ClientInfo], MappedUser | int] = local_or_nobody,
        may_change: Callable[[ClientInfo], bool] = anybody,
        pid: int = 1,
        chid: int | None = None,
        remote: bool = True,
    ) -> None:
        self.root = root
        self._user = user
        self._may_change = may_change
        self._started = kernel.dispatch.wall()
        self.opened = NodeIo(self._failed)
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
        self.opened.count_in(self.counters)

    def connect_table(self) -> dict[Connect, Callable[[Message, NodeClient, ConnectRequest, Handle | None], None]]:
        """The default connect handlers. Override to add or replace some."""
        table: dict[Connect, Callable[[Message, NodeClient, ConnectRequest, Handle | None], None]] = {
            Connect.LOOKUP: self._lookup,
            Connect.OPEN: self._open,
            Connect.READLINK: self._readlink,
            Connect.SETATTR: self._setattr_path,
            Connect.ACCESS: self._access,
            Connect.STATFS: self._statfs_path,
            Connect.UNLINK: self._unlink,
        }
        for fixed in (Connect.MKDIR, Connect.MKNOD, Connect.LINK, Connect.SYMLINK, Connect.RMDIR, Connect.RENAME):
            table[fixed] = self._fixed
        return table

    def io_table(self) -> dict[Io, Callable[[Message, NodeClient, Handle, int], None]]:
        """The default I/O handlers. Override to add or replace some."""
        return {
            Io.READ: self.opened.read,
            Io.WRITE: self.opened.write,
            Io.STAT: self._stat,
            Io.READDIR: self._readdir,
            Io.SETATTR: self._setattr,
            Io.STATFS: self._statfs,
            Io.SYNC: self._sync,
            Io.DEVCTL: self._devctl,
            Io.LOCK: self.opened.lock,
            Io.NOTIFY: self.opened.notify,
        }

    def _failed(self, message: Message, error: BaseException) -> None:
        self.manager.failed(message, error)

    def destroy(self) -> None:
        self.manager.destroy()

    def _client(self, info: ClientInfo) -> NodeClient:
        user = self._user(info)
        if isinstance(user, int):
            raise OSError(user, "refused")
        return NodeClient(info, user, self._may_change(info))

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
        attr = self.attr(node, path)
        number = 0
        if isinstance(node, Directory) or request.flags & WANT_HANDLE:
            self.manager.check_room(client)
            number = self.manager.add(message, client, NodeHandle(node, path))
        message.reply(0, Entry(self.target, number, 0, attr).pack())

    def _open(self, message: Message, client: NodeClient, request: ConnectRequest, base: Handle | None) -> None:
        flags = request.flags
        made = False
        try:
            node, path, rest = self._walk(client, base, request.path)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            node, path, rest = self._create(client, base, request)
            made = True
        if self._redirected(message, node, rest):
            return
        access = flags & os.O_ACCMODE
        if flags & os.O_CREAT and flags & os.O_EXCL and not made:
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
        if want & WRITE and not client.may_change:
            raise OSError(errno.EROFS, "export is read-only")
        if not made:
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
            if request.prefetch and not node.live and access == os.O_RDONLY and attr.size and not directory:
                wanted = min(request.prefetch, attr.size)
                first = node.read(handle.state, 0, wanted)
                if isinstance(first, Later):
                    first.give_up()
                elif first is not None:
                    data = read_data(node, first, wanted)
        except BaseException:
            handle.close()
            raise
        number = self.manager.add(message, client, handle)
        message.reply(0, Entry(self.target, number if directory else 0, number, attr, data, live=node.live).pack())

    def _above(self, client: NodeClient, base: Handle | None, path: bytes) -> tuple[Node, bytes, bytes, bytes]:
        """The directory of the last name, its path, what is left of the walk, and the name; its names may be changed by the client."""
        lead, _, name = path.rpartition(b"/")
        above, where, rest = self._walk(client, base, lead)
        if isinstance(above, Directory):
            if not client.may_change:
                raise OSError(errno.EROFS, "export is read-only")
            check(above.mode, above.uid, above.gid, client.user, WRITE | SEARCH)
        return above, where, rest, name

    def _create(self, client: NodeClient, base: Handle | None, request: ConnectRequest) -> tuple[Node, bytes, bytes]:
        above, where, rest, name = self._above(client, base, request.path)
        if not isinstance(above, Directory):
            return above, where, rest
        return above.create(name, client.user, request.mode & ~request.umask & 0o777), where + b"/" + name, b""

    def _unlink(self, message: Message, client: NodeClient, request: ConnectRequest, base: Handle | None) -> None:
        lead, _, name = request.path.rpartition(b"/")
        above = self._walk(client, base, lead)[0]
        if not isinstance(above, Directory) or type(above).remove is Directory.remove:
            self._fixed(message, client, request, base)
            return
        node, _, rest = self._walk(client, base, request.path)
        if self._redirected(message, node, rest):
            return
        self._above(client, base, request.path)
        if isinstance(node, Directory) or not name:
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        above.remove(name, client.user)
        message.reply(0)

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

    def _stat(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        assert isinstance(handle, NodeHandle)
        message.reply(0, self.attr(handle.node, handle.path).pack())

    def _readdir(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        ocb = opened(handle)
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
        if not client.may_change:
            raise OSError(errno.EROFS, "export is read-only")
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

    def _devctl(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        if not client.may_change and parse_devctl(message.data)[0] >> 30 != FROM_DEVICE:
            raise OSError(errno.EROFS, "export is read-only")
        self.opened.devctl(message, client, handle, flags)

    def _statfs(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        message.reply(0, _NO_SPACE)

    def _sync(self, message: Message, client: NodeClient, handle: Handle, flags: int) -> None:
        message.reply(0)


_ELSEWHERE = Attr(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
"""Attributes of what somebody else serves, in a listing: only a lookup there tells them."""
_NO_SPACE = StatFs(0, 0, 0, 0, 0, 4096, 255, 4096).pack()
