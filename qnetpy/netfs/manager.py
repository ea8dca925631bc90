"""The /net manager: one directory, one entry per node that can be reached, and a redirect for everything below an entry.

A connect message for `B/etc/hostname` is answered with a redirect to B's path manager and the rest, `etc/hostname`: the client goes
on there and then talks to the server on B directly; nothing of a file ever passes through this manager. This node itself is an entry,
too, so that `/net/<own name>/x` is `x` here.

The listing is what the node table knows now: it asks nobody, so it never blocks (QNX lists cached name mappings, which may be hours
old). A node that is known but down gives EHOSTDOWN, a name nobody ever authenticated ENOENT.

Clients of other nodes get ENOENT for everything but the directory itself: they have a /net of their own. (QNX: `/net/B/net/C` goes on
to C.)
"""

from __future__ import annotations

import errno
import os
import stat

from qnetpy.nodes import NodeTable
from resmgr.channel import CHID_PATHMGR, ND_LOCAL, PID_SYSTEM, Kernel, Message
from resmgr.iofunc.handle import Client, Handle
from resmgr.iofunc.manager import Manager
from resmgr.iomsg import READDIR_ATTRS, STATFS, WANT_HANDLE, Attr, Connect, DirEntry, Entry, Io, Target, pack_dirent
from resmgr.iorequest import ConnectRequest, parse_readdir

ROOT_INO = 1
NAME_SPACE = 63
"""Longest node name: a DNS label."""


class _Root(Handle):
    """A base handle or OCB of the directory; it holds nothing."""

    __slots__ = ()


class NetFs:
    """Serve the directory on a channel of *kernel*. Pure; everything happens in dispatch context and is answered at once."""

    def __init__(self, kernel: Kernel, nodes: NodeTable) -> None:
        self._kernel = kernel
        self._nodes = nodes
        self._began = int(kernel.dispatch.wall() * 1e9)
        self._changed = self._began
        self.manager: Manager[Client] = Manager(
            kernel,
            name="net",
            make_client=Client,
            connect={
                Connect.LOOKUP: self._lookup,
                Connect.OPEN: self._open,
                Connect.UNLINK: self._forward,
                Connect.RMDIR: self._forward,
                Connect.MKDIR: self._forward,
                Connect.MKNOD: self._forward,
                Connect.SYMLINK: self._forward,
                Connect.READLINK: self._forward,
                Connect.SETATTR: self._forward,
                Connect.ACCESS: self._access,
                Connect.STATFS: self._statfs,
                Connect.RENAME: self._forward,
                Connect.LINK: self._forward,
            },
            io={Io.STAT: self._stat, Io.READDIR: self._readdir, Io.STATFS: self._io_statfs, Io.SYNC: self._sync},
        )
        self.target = Target(ND_LOCAL, PID_SYSTEM, self.manager.channel.chid)

    def changed(self) -> None:
        """A node came or went: the directory's times move on."""
        self._changed = max(self._changed + 1, int(self._kernel.dispatch.wall() * 1e9))

    def destroy(self) -> None:
        self.manager.destroy()

    def attr(self) -> Attr:
        names = self._names()
        return Attr(
            ino=ROOT_INO,
            mode=stat.S_IFDIR | 0o555,
            nlink=2 + len(names),
            uid=0,
            gid=0,
            rdev=0,
            size=0,
            blocks=0,
            blksize=4096,
            atime=self._changed,
            mtime=self._changed,
            ctime=self._changed,
            change=self._changed,
        )

    def _names(self) -> list[tuple[bytes, int]]:
        """(name, ino) of every entry, sorted by name."""
        entries = [(node.name.encode(), ROOT_INO + int(node.nd)) for node in self._nodes.listed()]
        entries.append((self._kernel.node_name.encode(), ROOT_INO + 0x10000))
        return sorted(entries)

    def _walk(self, message: Message, request: ConnectRequest) -> Entry | None:
        """A redirect to the node that the path names; None when the path is the directory itself. Raises OSError for what is not there."""
        if not request.path:
            return None
        if message.info.nd != ND_LOCAL:
            raise OSError(errno.ENOENT, "not for other nodes")
        name, _, rest = request.path.partition(b"/")
        text = os.fsdecode(name)
        if text == self._kernel.node_name:
            return Entry(Target(ND_LOCAL, PID_SYSTEM, CHID_PATHMGR), 0, 0, None, rest=rest)
        node = self._nodes.get(text)
        if node is None:
            raise OSError(errno.ENOENT, "no such node")
        if not node.reachable:
            raise OSError(errno.EHOSTDOWN, "node is down")
        return Entry(Target(node.nd, PID_SYSTEM, CHID_PATHMGR), 0, 0, None, rest=rest)

    def _lookup(self, message: Message, client: Client, request: ConnectRequest, base: Handle | None) -> None:
        entry = self._walk(message, request)
        if entry is None:
            number = 0
            if request.flags & WANT_HANDLE or base is None:
                self.manager.check_room(client)
                number = self.manager.add(message, client, _Root())
            entry = Entry(self.target, number, 0, self.attr())
        message.reply(0, entry.pack())

    def _open(self, message: Message, client: Client, request: ConnectRequest, base: Handle | None) -> None:
        entry = self._walk(message, request)
        if entry is None:
            if request.flags & os.O_ACCMODE != os.O_RDONLY:
                raise OSError(errno.EISDIR, "is a directory")
            self.manager.check_room(client)
            entry = Entry(self.target, 0, self.manager.add(message, client, _Root()), self.attr())
        message.reply(0, entry.pack())

    def _forward(self, message: Message, client: Client, request: ConnectRequest, base: Handle | None) -> None:
        """What changes names: redirected below an entry, refused for the entries themselves, which only nodes make."""
        if b"/" not in request.path:
            raise OSError(errno.EPERM, "entries of /net are nodes")
        entry = self._walk(message, request)
        if entry is None or (request.path2 and request.subtype in (Connect.RENAME, Connect.LINK)):
            raise OSError(errno.EXDEV, "two names through /net: open the node first")
        message.reply(0, entry.pack())

    def _access(self, message: Message, client: Client, request: ConnectRequest, base: Handle | None) -> None:
        entry = self._walk(message, request)
        if entry is not None:
            message.reply(0, entry.pack())
        elif request.mode & os.W_OK:
            message.error(errno.EROFS)
        else:
            message.reply(0)

    def _statfs(self, message: Message, client: Client, request: ConnectRequest, base: Handle | None) -> None:
        entry = self._walk(message, request)
        message.reply(0, entry.pack() if entry is not None else self._sizes())

    def _sizes(self) -> bytes:
        return STATFS.pack(0, 0, 0, len(self._names()), 0, 4096, NAME_SPACE, 4096)

    def _stat(self, message: Message, client: Client, handle: Handle, flags: int) -> None:
        message.reply(0, self.attr().pack())

    def _io_statfs(self, message: Message, client: Client, handle: Handle, flags: int) -> None:
        message.reply(0, self._sizes())

    def _sync(self, message: Message, client: Client, handle: Handle, flags: int) -> None:
        message.reply(0)

    def _readdir(self, message: Message, client: Client, handle: Handle, flags: int) -> None:
        """Cookies are nd-based (ino), so an entry that goes does not shift the others. Attributes of entries would need a question to each
        node, and a listing never asks: entries come without, even if attributes were wanted (mode 0 in a full `Attr`)."""
        cookie, size = parse_readdir(message.data)
        parts: list[bytes] = []
        room = min(size, message.reply_len)
        for name, ino in sorted(self._names(), key=lambda entry: entry[1]):
            if ino <= cookie:
                continue
            entry = DirEntry(name, ino, ino, stat.S_IFDIR, self._entry_attr(ino) if flags & READDIR_ATTRS else None)
            packed = pack_dirent(entry)
            if len(packed) > room:
                break
            room -= len(packed)
            parts.append(packed)
        message.reply(0, b"".join(parts))

    def _entry_attr(self, ino: int) -> Attr:
        attr = self.attr()
        attr.ino = ino
        attr.mode = 0
        return attr
