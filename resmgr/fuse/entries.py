"""What a server says of a name: an entry, or where the name leads on to another server."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse.formats import AttrTuple
from resmgr.fuse.servers import Server, Servers, User
from resmgr.iomsg import ATTR, DELEGATED, EMPTY, ENTRY, LIVE, REDIRECT, SYMLINK, WATCHED, XATTR, XATTR_OF_NAME, Connect

if TYPE_CHECKING:
    from resmgr.fuse.request import Request

_ENTRY_ATTR_SIZE: Final = ENTRY.size + ATTR.size
_attr_of: Final = ATTR.unpack_from
_entry_of: Final = ENTRY.unpack_from


class Found(NamedTuple):
    """A parsed entry: whose it is as seen from here, handles, attributes (None: a redirect, `data` is the path left), first bytes."""

    connection: Connection
    server: Server
    handle: int
    ocb: int
    attr: AttrTuple | None
    data: Buffer
    live: bool = False
    watched: bool = False
    empty: bool = False
    delegated: bool = False


def parse(servers: Servers, via: Connection, user: User, reply: Buffer) -> Found:
    """Read the entry that the server behind *via* replied, asked by *user*. Raises `BadMessage`."""
    try:
        nd, pid, chid, handle, ocb, length = _entry_of(reply)
        if nd == 0 and chid == via.chid and pid == via.pid:
            connection = via
        elif nd and via.nd:
            raise BadMessage("another node says what a third one has")
        else:
            connection = servers.translate(via, (nd, pid, chid), user)
        server = servers.of(connection)
        if length & REDIRECT:
            return Found(connection, server, handle, 0, None, bytes(memoryview(reply)[ENTRY.size :]))
        live, watched, empty = bool(length & LIVE), bool(length & WATCHED), bool(length & EMPTY)
        delegated = bool(length & DELEGATED)
        length &= ~(LIVE | WATCHED | EMPTY | DELEGATED)
        attr: AttrTuple = _attr_of(reply, ENTRY.size)
    except struct.error:
        raise BadMessage("entry cut short") from None
    if len(reply) != _ENTRY_ATTR_SIZE + length:
        raise BadMessage("entry's data has another length than it says")
    data = memoryview(reply)[_ENTRY_ATTR_SIZE:] if length else b""
    return Found(connection, server, handle, ocb, attr, data, live, watched, empty, delegated)


def readdressed(request: Request, rest: bytes) -> tuple[bytes, bytes]:
    """What stands before and after the path in the request's message if *rest* is all that is left of that."""
    fixed = request.fixed
    if request.subtype == Connect.SYMLINK:
        return SYMLINK.pack(len(rest)), request.path[len(request.name) :]
    if request.subtype == Connect.XATTR:
        request.flags &= ~XATTR_OF_NAME
        operation, size, length, name_length = XATTR.unpack(fixed)
        return XATTR.pack(operation, size, len(rest), name_length), request.path[length:]
    return fixed, b""
