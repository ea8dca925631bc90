"""GETXATTR, LISTXATTR, SETXATTR, REMOVEXATTR. The server decides, as for every operation; ACLs pass through as the attributes they are, so
`getfacl` and `setfacl` show and change those of the server, whose kernel keeps mode and ACL one.

Attributes of a name by which the mounted manager leads on to another server (`/net/B`) are that manager's: those in OF_NAMES, and the list.

A directory, and a file that the user has open, are asked by their handle, anything else by its name. A value too long for a message that
path managers hand on goes to a handle, got for it.

Two questions are asked so often by what does not want to know that they have answers of their own:

- `ls -l` asks each file for its ACL and its label, `cp -a` and the like for all. Which entries of a directory have any is known after a
  while (`bare`). That one of the others has no label is told as EOPNOTSUPP: ls then asks no further file of the mount for its label.
- The kernel asks for the length of `security.capability` before a write or truncation, to take capabilities away. The server's kernel does
  that (FUSE_HANDLE_KILLPRIV_V2), so for a file that is open for writing here the answer is that there are none.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse import changing, formats
from resmgr.fuse.attributes import done
from resmgr.fuse.core import ENTRY_MAX, Core
from resmgr.fuse.formats import BODY, O_ACCMODE
from resmgr.fuse.request import Request, Step
from resmgr.iomsg import (
    LENGTH,
    OF_NAMES,
    WANT_HANDLE,
    XATTR,
    XATTR_GET,
    XATTR_INLINE_MAX,
    XATTR_LIST,
    XATTR_OF_NAME,
    XATTR_REMOVE,
    XATTR_SET,
    XATTR_SIZE_MAX,
    Connect,
    Io,
)
from resmgr.iorequest import XattrRequest

if TYPE_CHECKING:
    from resmgr.fuse.inode import Node
    from resmgr.fuse.servers import User

NAME_MAX: Final = 255
_LISTED: Final = (b"user.", b"security.", b"trusted.", b"system.posix_acl_")
"""Spaces of names whose attributes a listing of attributes tells."""
_CAPABILITY: Final = b"security.capability"
_LABEL: Final = b"security.selinux"


def answered_here(core: Core, node: Node, user: User, pid: int, view: memoryview, now: float) -> int:
    """The errno to answer a GETXATTR with that needs no request of ours, as most of `ls -l` are; 0: it is to be carried out."""
    try:
        name, _ = formats.value_at(view, BODY + formats.GETXATTR_IN.size, 0)
    except BadMessage:
        return 0
    if not name.startswith(_LISTED) or not core.bare.lacks(node, user, pid, now):
        return 0
    return errno.EOPNOTSUPP if name == _LABEL else errno.ENODATA


def getxattr(core: Core, request: Request, view: memoryview) -> None:
    (room,) = formats.GETXATTR_IN.parse(view, BODY)
    name, _ = formats.value_at(view, BODY + formats.GETXATTR_IN.size, 0)
    node = request.node
    if not room and name == _CAPABILITY and any(file.flags & O_ACCMODE for file in node.files):
        core.error(request, errno.ENODATA)
        return

    def ask() -> None:
        _ask(core, request, XattrRequest(XATTR_GET, name, size=room), min(room, XATTR_SIZE_MAX), _got)

    def none() -> None:
        core.error(request, errno.EOPNOTSUPP if name == _LABEL else errno.ENODATA)

    if name.startswith(_LISTED):
        core.bare.without(request, none, ask)
    else:
        ask()


def listxattr(core: Core, request: Request, view: memoryview) -> None:
    (room,) = formats.GETXATTR_IN.parse(view, BODY)

    def none() -> None:
        if room:
            core.answer_data(request)
        else:
            core.answer(request, formats.GETXATTR_REPLY.pack(24, 0, request.unique, 0))

    core.bare.without(request, none, lambda: _ask(core, request, XattrRequest(XATTR_LIST, size=room), min(room, XATTR_SIZE_MAX), _got))


def setxattr(core: Core, request: Request, view: memoryview) -> None:
    size, flags = formats.SETXATTR_IN.parse(view, BODY)
    name, value = formats.value_at(view, BODY + formats.SETXATTR_IN.size, size)
    changing.changes_node(request, request.node, rights=True)
    _ask(core, request, XattrRequest(XATTR_SET, name, value, flags=flags), 0, _set)


def removexattr(core: Core, request: Request, view: memoryview) -> None:
    name, _ = formats.value_at(view, BODY, 0)
    changing.changes_node(request, request.node, rights=True)
    _ask(core, request, XattrRequest(XATTR_REMOVE, name), 0, _set)


def _ask(core: Core, request: Request, asked: XattrRequest, room: int, step: Step) -> None:
    """Send *asked* about the request's node. At least the length must fit into the reply, and a byte more, to see a server's lie."""
    node = request.node
    of_name = _is_of_name(node, asked)
    if (node.server.no_xattr and not of_name) or len(asked.name) > NAME_MAX:
        core.error(request, errno.ERANGE if of_name or not node.server.no_xattr else errno.EOPNOTSUPP)
        return
    request.extra = asked.size
    room = max(room, LENGTH.size) + 1
    fixed = XATTR.pack(asked.operation, asked.size, 0, len(asked.name))
    tail = asked.name + asked.value
    if of_name:
        assert node.parent is not None
        fixed = XATTR.pack(asked.operation, asked.size, len(node.name), len(asked.name))
        flags = asked.flags | XATTR_OF_NAME
        core.on_base(request, node.parent, Io.CONNECT, Connect.XATTR, flags, fixed, node.name + tail, room, _of_name(asked, room, step))
    elif node.directory:
        core.on_base(request, node, Io.XATTR, 0, asked.flags, fixed, tail, room, step)
    elif (file := node.descriptor(node.server.connections.get(request.user))) is not None:
        core.on_file(request, file, (asked.pack(file.ocb),), room, step)
    elif not node.named:
        core.error(request, errno.ESTALE)
    elif len(asked.value) > XATTR_INLINE_MAX:
        _with_handle(core, request, asked)
    else:
        way = None if node.via is None else node.way(core.servers.connect(node.server, request.user))
        name = node.name if way is None else way[1]
        fixed = XATTR.pack(asked.operation, asked.size, len(name), len(asked.name))
        core.on_leaf(request, node, Connect.XATTR, asked.flags, fixed, room, step, tail)


def _is_of_name(node: Node, asked: XattrRequest) -> bool:
    """Whether it is for the mounted manager, which has sent the kernel on from the node's name to another server, to answer."""
    parent = node.parent
    if not node.directory or parent is None or parent.parent is not None:
        return False
    if node.server is parent.server or parent.server.key[0] or parent.server.no_name_attributes:
        return False
    return asked.operation == XATTR_LIST or asked.name.startswith(OF_NAMES)


def _of_name(asked: XattrRequest, room: int, step: Step) -> Step:
    """*step*, or the question to the node itself if the manager tells nothing of names."""

    def told(request: Request, status: int, reply: Buffer) -> None:
        if status == -errno.ENOSYS:
            assert request.node.parent is not None
            request.node.parent.server.no_name_attributes = True
            _ask(request.core, request, asked, room - 1, step)
        else:
            step(request, status, reply)

    return told


def _with_handle(core: Core, request: Request, asked: XattrRequest) -> None:
    """Get a handle of the leaf, send *asked* to it, close it."""

    def found(request: Request, status: int, reply: Buffer) -> None:
        if status < 0:
            core.failed(request, status)
            return
        entry, attr = core.entry(request, reply)
        if not entry.handle:
            core.error(request, errno.EOPNOTSUPP)
            return
        connection, handle = entry.connection, entry.handle
        if attr[0] != request.node.ino:
            core.handles.close_later(connection, handle)
            core.error(request, errno.ESTALE)
            return

        def over(status: int, reply: Buffer) -> None:
            core.handles.close_later(connection, handle)
            request.file_done(status, reply)

        request.step = _set
        request.pending = connection.submit((asked.pack(handle),), 0, over)

    core.on_leaf(request, request.node, Connect.LOOKUP, WANT_HANDLE, b"", ENTRY_MAX, found)


def _got(request: Request, status: int, reply: Buffer) -> None:
    core = request.core
    if status < 0:
        _refused(request, status)
        return
    room = request.extra
    if room:
        if len(reply) > room:
            raise BadMessage("more of an extended attribute than there is room for")
        core.answer_data(request, reply)
        return
    try:
        (length,) = LENGTH.unpack(reply)
    except struct.error:
        raise BadMessage("length of an extended attribute") from None
    if length > XATTR_SIZE_MAX:
        raise BadMessage("an extended attribute longer than any is")
    core.answer(request, formats.GETXATTR_REPLY.pack(24, 0, request.unique, length))


def _refused(request: Request, status: int) -> None:
    if status == -errno.ENOSYS:
        request.node.server.no_xattr = True
    request.core.failed(request, status)


def _set(request: Request, status: int, reply: Buffer) -> None:
    """An ACL may have changed the mode, and anything the time of change: the kernel asks again."""
    core, node = request.core, request.node
    if status >= 0:
        core.take_back(node)
        done(request, status, reply)
    else:
        _refused(request, status)
