"""GETATTR, STATX, SETATTR, ACCESS, STATFS.

A directory is asked by its base handle, an open file by its OCB when the same user has it open, a leaf by its name: if another object has
the name now, the kernel gets ESTALE and looks at its names again. The OCB is right even if the file was renamed, replaced or removed by
others, and the kernel does not say which requests are of a descriptor (fchmod, fchown): by the name they would change what has it now.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse import allowed, changing, formats, owned
from resmgr.fuse.answers import NOT_VALID
from resmgr.fuse.core import CONNECT, ENTRY_MAX, Core
from resmgr.fuse.formats import (
    BODY,
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_FH,
    FATTR_GID,
    FATTR_KILL_SUIDGID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
    NSEC,
    AttrTuple,
    Opcode,
)
from resmgr.fuse.inode import Node, same_type
from resmgr.fuse.openfile import File
from resmgr.fuse.overdue import FAR, Span
from resmgr.fuse.request import Request
from resmgr.iomsg import (
    ACCESS,
    ATTR,
    BIRTH,
    LOSES_BITS,
    REQUEST,
    SET_ATIME,
    SET_ATIME_NOW,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_MTIME_NOW,
    SET_SIZE,
    SET_UID,
    SETATTR,
    SETATTR_SURE,
    STAT_BIRTH,
    STATFS,
    SURE,
    WANT_BIRTH,
    Connect,
    Io,
)

_BITS = (
    (FATTR_MODE, SET_MODE),
    (FATTR_UID, SET_UID),
    (FATTR_GID, SET_GID),
    (FATTR_SIZE, SET_SIZE),
    (FATTR_ATIME, SET_ATIME),
    (FATTR_MTIME, SET_MTIME),
    (FATTR_ATIME_NOW, SET_ATIME_NOW),
    (FATTR_MTIME_NOW, SET_MTIME_NOW),
)
TIME_MAX: Final = (1 << 63) - 1
_STAT: Final = int(Io.STAT)
_SETATTR: Final = int(Io.SETATTR)


def getattr_(core: Core, request: Request, view: memoryview) -> None:
    node = request.node
    if node.attr_sure and core.leases.attributes(request):
        core.answer_attr(request, node)
        return
    if node.fresh and request.at - node.attr_at < core.options.attr_valid:
        core.answer_attr(request, node)
        return
    if node.directory:
        core.on_base(request, node, _STAT, 0, 0, b"", b"", ATTR.size, _got_attr)
        return
    file = open_file(core, request, view)
    if file is not None:
        core.on_file(request, file, (REQUEST.pack(_STAT, 0, 0, file.ocb),), ATTR.size, _got_attr)
    elif not node.named and core.replaced.looked(request):
        core.answer_attr(request, node)
    else:
        core.on_leaf(request, node, Connect.LOOKUP, 0, b"", ENTRY_MAX, _looked_at)


def statx(core: Core, request: Request, view: memoryview) -> None:
    """As GETATTR, with the birth time, which costs the server a system call more. Sent only for programs that ask for it."""
    formats.STATX_IN.parse(view, BODY)
    node = request.node
    room = ATTR.size + BIRTH.size
    if node.directory:
        core.on_base(request, node, _STAT, 0, STAT_BIRTH, b"", b"", room, _born)
        return
    file = open_file(core, request, view)
    if file is not None:
        core.on_file(request, file, (REQUEST.pack(_STAT, 0, STAT_BIRTH, file.ocb),), room, _born)
    else:
        core.on_leaf(request, node, Connect.LOOKUP, WANT_BIRTH, b"", ENTRY_MAX, _looked_at)


def _born(request: Request, status: int, reply: Buffer) -> None:
    if status < 0:
        request.core.failed(request, status)
        return
    view = memoryview(reply)
    _take(request, parse_attr(view), _birth(view[ATTR.size :]))


def _birth(data: Buffer) -> int | None:
    if not len(data):
        return None
    try:
        (born,) = BIRTH.unpack(data)
    except struct.error:
        raise BadMessage("birth time of another size") from None
    return int(born)


def _take(request: Request, attr: AttrTuple, born: int | None = None, by_name: bool = False) -> None:
    """The server told *attr* of the request's node: so is the kernel."""
    core, node = request.core, request.node
    if (attr[1] ^ node.mode) & 0o170000:
        core.error(request, errno.ESTALE)
        return
    take_attr(core, node, attr, request.at)
    core.leases.took(node, request.at, request.user, by_name)
    if request.opcode != Opcode.STATX:
        core.answer_attr(request, node)
    elif not request.answered:
        entry = core.entry_fields(node)
        core.answer(request, formats.statx_reply(request.unique, (entry[3], entry[5]), entry[6:], born))


def open_file(core: Core, request: Request, view: memoryview) -> File | None:
    """The open file to ask: what the kernel names, or one of the same user's, or for a nameless file anybody's (to look is no harm)."""
    node = request.node
    if not node.files:
        return None
    flags, fh = formats.GETATTR_IN.parse(view, BODY)
    if flags & formats.GETATTR_FH:
        file = core.files.get(fh)
        if file is not None:
            return file
    return node.file_of(node.server.connections.get(request.user)) if node.named else node.file_of(None)


def parse_attr(reply: Buffer) -> AttrTuple:
    try:
        attr: AttrTuple = ATTR.unpack_from(reply)
    except struct.error:
        raise BadMessage("attributes cut short") from None
    return attr


def take_attr(core: Core, node: Node, attr: AttrTuple, now: float) -> None:
    """The server said *attr* of the object that *node* is."""
    node.tell(attr, now)
    if node.ino != attr[0]:
        core.nodes.rebind(node, attr)


def _got_attr(request: Request, status: int, reply: Buffer) -> None:
    if status < 0:
        request.core.failed(request, status)
    else:
        _take(request, parse_attr(reply))


def _looked_at(request: Request, status: int, reply: Buffer) -> None:
    core = request.core
    if status < 0:
        core.failed(request, status)
        return
    found, attr = core.entry(request, reply)
    node = request.node
    if found.handle:
        core.handles.close_later(found.connection, found.handle)
    if found.server is not node.server or not same_type(node, attr):
        core.error(request, errno.ESTALE)
        return
    if attr[0] != node.ino:
        directory = node.parent
        if node.aliases and request.base is not None:
            # One of its names: the kernel may mean it by another.
            core.nodes.unname(node, request.base, request.path)
            core.on_leaf(request, node, Connect.LOOKUP, request.flags, b"", ENTRY_MAX, _looked_at)
            return
        named = request.named(node)
        if node.files or node.aliases or directory is None or not named or core.nodes.of(node.server, attr) is not None:
            if directory is not None and named:
                changing.found_changed(core, directory, node.name)
            core.error(request, errno.ESTALE)
            return
        core.nodes.rebind(node, attr)
    _take(request, attr, _birth(found.data), by_name=True)


def setattr_(core: Core, request: Request, view: memoryview) -> None:
    fields = formats.SETATTR_IN.parse(view, BODY)
    asked, fh, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = fields
    valid = 0
    for theirs, ours in _BITS:
        if asked & theirs:
            valid |= ours
    node = request.node
    request.extra = valid
    if valid & SET_MODE and mode & 0o111:
        # It may be run next, which fails while it is open for writing.
        core.handles.hurry()
    if valid & SET_SIZE:
        request.span = Span(min(size, node.attr[6]), FAR, True)
    rights = bool(valid & (SET_MODE | SET_UID | SET_GID))
    changing.changes_node(request, node, contents=bool(valid & SET_SIZE), rights=rights)
    fixed = SETATTR.pack(valid, mode & 0o7777, uid, gid, size, _time(atime, atime_ns), _time(mtime, mtime_ns))
    if node.directory:
        how = SETATTR_SURE if node.lease is not None else 0
        core.on_base(request, node, CONNECT, Connect.SETATTR, how, fixed, b"", ENTRY_MAX, _set)
        return
    how = SETATTR_SURE if owned.begins_on(request, node) else 0
    file = core.files.get(fh) if asked & FATTR_FH else None
    if file is None:
        file = node.descriptor(node.server.connections.get(request.user), bool(valid & SET_SIZE))
    if file is not None:
        if asked & FATTR_KILL_SUIDGID and valid and file.roots:
            how |= LOSES_BITS
        core.on_file(request, file, (REQUEST.pack(_SETATTR, 0, how, file.ocb) + fixed,), ATTR.size + len(SURE), _set)
    else:
        core.on_leaf(request, node, Connect.SETATTR, how, fixed, ENTRY_MAX, _set)


def _time(seconds: int, nanoseconds: int) -> int:
    """Nanoseconds since the epoch; what 64 bits do not hold (before 1677, after 2262) becomes the nearest time that they do."""
    return max(-TIME_MAX - 1, min(TIME_MAX, seconds * NSEC + nanoseconds))


def _set(request: Request, status: int, reply: Buffer) -> None:
    core = request.core
    if status < 0:
        core.failed(request, status)
        return
    attr = parse_attr(reply)
    node = request.node
    before = node.attr
    node.fresh = False
    changing.changed(request)
    take_attr(core, node, attr, request.at)
    if bytes(memoryview(reply)[ATTR.size :]) == SURE:
        owned.believe_attr(request, node, attr, request.at)
    if request.extra & SET_SIZE:
        if node.behind is not None:
            node.behind.truncated()
    elif node.pages is not None and (before[6] == attr[6] and (before[10] == attr[10] or request.extra & (SET_MTIME | SET_MTIME_NOW))):
        # Our own chmod or utimes moved the change value, not the data.
        node.pages = node.version() if node.pages[2:] == (before[10], before[6]) else None
    if request.extra:
        core.answer_attr(request, node)
    else:
        # Set-id bits go with this, or with a write that comes now.
        core.answer_attr(request, node, NOT_VALID)


def access(core: Core, request: Request, view: memoryview) -> None:
    (mask,) = formats.ACCESS_IN.parse(view, BODY)
    node = request.node
    if allowed.known(core, request, mask):
        core.error(request, 0)
        return
    request.extra = mask
    fixed = ACCESS.pack(mask)
    if node.directory:
        core.on_base(request, node, CONNECT, Connect.ACCESS, 0, fixed, b"", ENTRY_MAX, _accessible)
    elif not node.named and (file := node.descriptor(node.server.connections.get(request.user))) is not None:
        # By /proc/PID/fd: what has no name is asked about through what is open.
        core.direct(request, file.connection, (file.ocb, b""), Connect.ACCESS, 0, fixed, b"", ENTRY_MAX, _accessible)
    else:
        core.on_leaf(request, node, Connect.ACCESS, 0, fixed, ENTRY_MAX, _accessible)


def _accessible(request: Request, status: int, reply: Buffer) -> None:
    if status == 0:
        allowed.learn(request, request.extra)
    done(request, status, reply)


def done(request: Request, status: int, reply: Buffer) -> None:
    """Answer success or the error, nothing else."""
    if status < 0:
        request.core.failed(request, status)
    else:
        request.core.error(request, 0)


def statfs(core: Core, request: Request, view: memoryview) -> None:
    node = request.node
    if node.directory:
        core.on_base(request, node, Io.STATFS, 0, 0, b"", b"", ENTRY_MAX, _statfs)
    elif (file := node.descriptor(node.server.connections.get(request.user))) is not None:
        core.on_file(request, file, (REQUEST.pack(Io.STATFS, 0, 0, file.ocb),), ENTRY_MAX, _statfs)
    else:
        core.on_leaf(request, node, Connect.STATFS, 0, b"", ENTRY_MAX, _statfs)


def _statfs(request: Request, status: int, reply: Buffer) -> None:
    core = request.core
    if status == -errno.ENOSYS:
        # A manager without a file system behind it (a root of names): df shows an empty one.
        core.answer(request, formats.STATFS_REPLY.pack(96, 0, request.unique, 0, 0, 0, 0, 0, 4096, 255, 4096))
        return
    if status < 0:
        core.failed(request, status)
        return
    try:
        fields = STATFS.unpack(reply)
    except struct.error:
        raise BadMessage("file system attributes cut short") from None
    core.answer(request, formats.STATFS_REPLY.pack(96, 0, request.unique, *fields))
