"""The connect messages of `HostFs`: names in directories. Each is one operation of `operations`, carried out by `running`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from resmgr.channel import Message
from resmgr.hostfs.made import Opened
from resmgr.hostfs.objects import HostClient
from resmgr.hostfs.operations import Operations
from resmgr.hostfs.running import Operation, Running, resizes
from resmgr.iofunc.handle import Handle
from resmgr.iomsg import (
    ATTR,
    ENTRY,
    LOOKUP_WATCH,
    MKDIR_WATCH,
    OPEN_DELEGATE,
    OPEN_WATCH,
    SETATTR_SURE,
    WATCH_ATTRIB,
    WATCH_CLOSE_WRITE,
    WATCH_MODIFY,
    XATTR_WHICH,
    Connect,
)
from resmgr.iorequest import ConnectRequest

Handler = Callable[[Message, HostClient, ConnectRequest, Handle | None], None]


def handlers(fs: Running) -> dict[Connect, Handler]:
    """The table for `Manager`."""

    def plain(operation: Operation) -> Handler:
        return lambda message, client, request, base: fs.run(message, client, base, request, operation)

    def lookup(message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        if request.flags & LOOKUP_WATCH and message.channel is fs.manager.channel:
            request.watch = partial(fs.watching.add, client)
        fs.run(message, client, base, request, Operations.lookup)

    def open_(message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        fs.manager.check_room(client)
        room = message.reply_len - ENTRY.size - ATTR.size
        if request.prefetch > room:
            request.prefetch = max(0, room)
        if request.flags & OPEN_WATCH and message.channel is fs.manager.channel:
            request.watch = partial(fs.watching.add, client)
        delegate: Callable[[Opened], bool] | None = None
        if request.flags & OPEN_DELEGATE and message.channel is fs.manager.channel:
            place = fs.place(client, base)
            delegate = partial(fs.delegations.offer, client, place, request.path)
        fs.run(message, client, base, request, Operations.open, delegate=delegate)

    def mkdir(message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        fs.manager.check_room(client)
        if request.flags & MKDIR_WATCH and message.channel is fs.manager.channel:
            request.watch = partial(fs.watching.add, client)
        fs.run(message, client, base, request, Operations.mkdir)

    def setattr_(message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        path = request.path
        if request.flags & SETATTR_SURE and fs.watching.active and path.find(b"/") < 0:
            place = fs.place(client, base)
            if path:
                kinds = WATCH_ATTRIB | WATCH_MODIFY | (WATCH_CLOSE_WRITE if resizes(request) else 0)
                request.after = lambda: fs.watching.made(client, (place.ino, path, kinds))
            else:
                request.after = lambda: fs.watching.made_of(client, place.ino, place.fd, place.scope)
        fs.run(message, client, base, request, Operations.setattr)

    def rename(message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        base2 = fs.second(message, client, request)
        fs.run(message, client, base, request, lambda ops, place, asked: ops.rename(place, asked, base2), base2)

    def link(message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        base2 = fs.second(message, client, request)
        fs.run(message, client, base, request, lambda ops, place, asked: ops.link(place, asked, base2), base2)

    def tmpfile(message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        fs.manager.check_room(client)
        fs.run(message, client, base, request, Operations.tmpfile)

    def xattr(message: Message, client: HostClient, request: ConnectRequest, base: Handle | None) -> None:
        inline = request.xattr is None or request.xattr.operation != XATTR_WHICH
        fs.run(message, client, base, request, Operations.xattr, inline=inline)

    return {
        Connect.LOOKUP: lookup,
        Connect.OPEN: open_,
        Connect.UNLINK: plain(Operations.unlink),
        Connect.RMDIR: plain(Operations.rmdir),
        Connect.REMOVE: plain(Operations.unlink),
        Connect.RENAME: rename,
        Connect.MKDIR: mkdir,
        Connect.MKNOD: plain(Operations.mknod),
        Connect.LINK: link,
        Connect.SYMLINK: plain(Operations.symlink),
        Connect.READLINK: plain(Operations.readlink),
        Connect.SETATTR: setattr_,
        Connect.ACCESS: plain(Operations.access),
        Connect.STATFS: plain(Operations.statfs),
        Connect.REOPEN: fs.reopening.reopen,
        Connect.XATTR: xattr,
        Connect.TMPFILE: tmpfile,
    }
