"""Reading directories: OPENDIR, READDIR, READDIRPLUS, RELEASEDIR, FSYNCDIR.

OPENDIR is an OPEN whose reply may bring the first entries, as that of a file brings its first bytes (what a READDIR with READDIR_ATTRS
from cookie 0 gives); from a server that sends none they are fetched while the kernel takes the answer. While a chunk is handed to the
kernel the next one is under way. `.` and `..` are made here.

Positions told to the kernel are counters within one open directory (0 `.`, 1 `..`, then the server's entries in the order they came); the
server's cookie of each is kept, so that seekdir(3) and telldir(3) work for any cookies a manager may use.
"""

from __future__ import annotations

import errno
import struct
from array import array
from os import O_DIRECTORY
from typing import NamedTuple

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse import formats
from resmgr.fuse.attributes import done
from resmgr.fuse.core import CONNECT, ENTRY_MAX, Core
from resmgr.fuse.formats import BODY, AttrTuple
from resmgr.fuse.inode import Node, same_type
from resmgr.fuse.request import Request
from resmgr.iomsg import ATTR, COOKIE_END, DIRENT, NAME_MAX, OPEN, READDIR, READDIR_ATTRS, REQUEST, SYNC_DATA_ONLY, Connect, Io

CHUNK_FIRST = 32 * 1024
CHUNK = 256 * 1024
"""Bytes of entries asked for at once."""
_DIRENT = formats.DIRENT.pack
_ENTRY = formats.ENTRY_OUT.pack
_READDIR = int(Io.READDIR)
_NO_ENTRY = bytes(formats.ENTRY_OUT.size)
_DOTS = 2


class Item(NamedTuple):
    """One entry as the server told it."""

    name: bytes
    ino: int
    mode: int
    attr: AttrTuple | None


class Directory:
    """An open directory: the chunk of entries at hand, the cookies of all that passed, and a fetch that may be under way."""

    __slots__ = ("connection", "cookies", "end", "fetching", "fh", "items", "node", "ocb", "start", "waiting", "with_attrs")

    def __init__(self, fh: int, node: Node, connection: Connection, ocb: int) -> None:
        self.fh = fh
        self.node = node
        self.connection = connection
        self.ocb = ocb
        self.items: list[Item] = []
        self.start = 0
        """Index of items[0]; the server's entries count from 0."""
        self.cookies = array("Q")
        """cookies[i] leads to the entry after entry i."""
        self.end = -1
        """Number of entries, once known."""
        self.with_attrs = True
        self.fetching = -1
        """Index that is being fetched; -1: none."""
        self.waiting: list[tuple[Request, int, int, bool]] = []
        """READDIRs to be served when the fetch has come: request, index, size, with entries."""


def opendir(core: Core, request: Request, view: memoryview) -> None:
    formats.OPEN_IN.parse(view, BODY)
    fixed = OPEN.pack(0, 0, CHUNK_FIRST)
    core.on_base(request, request.node, CONNECT, Connect.OPEN, O_DIRECTORY, fixed, b"", ENTRY_MAX + CHUNK_FIRST, _opened)


def _opened(request: Request, status: int, reply: Buffer) -> None:
    core, node = request.core, request.node
    if status < 0:
        core.failed(request, status)
        return
    found, attr = core.entry(request, reply)
    if found.handle:
        core.handles.keep(node, found.connection, found.handle)
    if node.parent is not None and (attr[0] != node.ino or not same_type(node, attr)):
        core.handles.close_now(found.connection, found.ocb)
        core.error(request, errno.ESTALE)
        return
    directory = Directory(core.new_fh(), node, found.connection, found.ocb)
    core.directories[directory.fh] = directory
    if len(found.data):
        _arrived(directory, 0, True, *parse_entries(found.data, True))
    else:
        _fetch(core, directory, 0, True)
    core.answer(request, formats.OPEN_REPLY.pack(32, 0, request.unique, directory.fh, 0))


def parse_entries(reply: Buffer, with_attrs: bool) -> tuple[list[int], list[Item]]:
    """Cookies and entries of a READDIR reply, without `.` and `..`, should a server send them."""
    cookies: list[int] = []
    items: list[Item] = []
    view = memoryview(reply)
    offset, end = 0, len(view)
    try:
        while offset < end:
            ino, cookie, mode, length = DIRENT.unpack_from(view, offset)
            offset += DIRENT.size
            name = bytes(view[offset : offset + length])
            offset += length
            attr: AttrTuple | None = None
            if with_attrs:
                attr = ATTR.unpack_from(view, offset)
                offset += ATTR.size
            if len(name) != length or not 0 < length <= NAME_MAX or b"/" in name or b"\0" in name:
                raise BadMessage("directory entry's name")
            if name == b"." or name == b"..":
                # Its cookie still counts: the entry before leads past it.
                if cookies:
                    cookies[-1] = cookie
                continue
            cookies.append(cookie)
            items.append(Item(name, ino, mode, attr if attr and attr[1] else None))
    except struct.error:
        raise BadMessage("directory entry cut short") from None
    return cookies, items


def _arrived(directory: Directory, index: int, with_attrs: bool, cookies: list[int], items: list[Item]) -> None:
    directory.items = items
    directory.start = index
    directory.with_attrs = with_attrs
    if index == len(directory.cookies):
        directory.cookies.extend(cookies)
    elif index + len(cookies) > len(directory.cookies):
        directory.cookies.extend(cookies[len(directory.cookies) - index :])
    if not items:
        directory.end = index
    elif cookies[-1] == COOKIE_END:
        directory.end = index + len(items)


def readdir(core: Core, request: Request, view: memoryview) -> None:
    _read(core, request, view, False)


def readdirplus(core: Core, request: Request, view: memoryview) -> None:
    _read(core, request, view, True)


def _read(core: Core, request: Request, view: memoryview, plus: bool) -> None:
    fh, offset, size, _, _, _ = formats.READ_IN.parse(view, BODY)
    directory = core.directories.get(fh)
    if directory is None:
        core.error(request, errno.EBADF)
    else:
        _serve(core, directory, request, offset, size, plus)


def _serve(core: Core, directory: Directory, request: Request, offset: int, size: int, plus: bool) -> None:
    index = max(offset - _DOTS, 0)
    position = index - directory.start
    if 0 <= position < len(directory.items) and (directory.with_attrs or not plus):
        _hand_over(core, directory, request, offset, size, plus)
    elif directory.end >= 0 and index >= directory.end:
        if offset < _DOTS:
            _hand_over(core, directory, request, offset, size, plus)
        else:
            core.answer_data(request)
    elif index > len(directory.cookies):
        # A position that was never told to anybody.
        core.error(request, errno.EINVAL)
    else:
        directory.waiting.append((request, offset, size, plus))
        if directory.fetching < 0:
            _fetch(core, directory, index, plus)


def _fetch(core: Core, directory: Directory, index: int, with_attrs: bool) -> None:
    """Ask for the entries from *index* on; whoever waits is served when they came."""
    cookie = directory.cookies[index - 1] if index else 0
    directory.fetching = index
    flags = READDIR_ATTRS if with_attrs else 0
    message = REQUEST.pack(_READDIR, 0, flags, directory.ocb) + READDIR.pack(cookie, CHUNK)

    def came(status: int, reply: Buffer) -> None:
        directory.fetching = -1
        waiting, directory.waiting = directory.waiting, []
        if status >= 0:
            try:
                _arrived(directory, index, with_attrs, *parse_entries(reply, with_attrs))
            except BadMessage:
                core.drops["bad_reply"] += 1
                status = -errno.EIO
        for request, offset, size, plus in waiting:
            request.pending = None
            if status < 0:
                core.failed(request, status)
            elif not request.answered:
                _serve(core, directory, request, offset, size, plus)

    pending = directory.connection.submit((message,), CHUNK, came)
    if pending is not None:
        for request, _, _, _ in directory.waiting:
            request.pending = pending


def _hand_over(core: Core, directory: Directory, request: Request, offset: int, size: int, plus: bool) -> None:
    """Answer with entries of the chunk at hand, and have the next one fetched when it is used up."""
    parts: list[bytes] = []
    node = directory.node
    if offset == 0:
        size -= _dot(parts, b".", node, 1, size, plus)
        offset = 1
    if offset == 1:
        size -= _dot(parts, b"..", node.parent or node, 2, size, plus)
        offset = 2
    start = directory.start
    position = offset - _DOTS - start
    items = directory.items
    salt = node.server.salt
    count = len(items)
    while position < count:
        name, ino, mode, attr = items[position]
        length = len(name)
        room = 24 + (length + 7 & ~7) + (128 if plus else 0)
        if room > size:
            break
        size -= room
        if plus:
            if attr is None:
                parts.append(_NO_ENTRY)
            elif (known := node.children.get(name)) is not None and known.server is not node.server:
                # Another manager's root: only a lookup tells what it is.
                parts.append(_NO_ENTRY)
            else:
                child = core.nodes.enter(node, name, node.server, attr)
                child.attr_at = request.at
                child.lookups += 1
                parts.append(_ENTRY(*core.entry_fields(child)))
        if core.options.devices_as_files and mode & 0o170000 in (0o020000, 0o060000, 0o010000):
            mode = 0o100000
        position += 1
        parts.append(_DIRENT((ino ^ salt) or 1, start + position + _DOTS, length, mode >> 12 & 15))
        parts.append(name + b"\0\0\0\0\0\0\0"[: -length & 7])
    core.answer_data(request, b"".join(parts))
    if position >= count and count and directory.fetching < 0 and directory.end < 0:
        _fetch(core, directory, start + count, plus)


def _dot(parts: list[bytes], name: bytes, node: Node, following: int, size: int, plus: bool) -> int:
    room = 32 + (128 if plus else 0)
    if room > size:
        return size
    if plus:
        parts.append(_NO_ENTRY)
    parts.append(_DIRENT((node.ino ^ node.server.salt) or 1, following, len(name), 4))
    parts.append(name.ljust(8, b"\0"))
    return room


def releasedir(core: Core, request: Request, view: memoryview) -> None:
    fh = formats.RELEASE_IN.parse(view, BODY)[0]
    core.error(request, 0)
    directory = core.directories.pop(fh, None)
    if directory is None:
        core.drops["unknown_file"] += 1
    else:
        core.handles.close_lazily(directory.connection, directory.ocb)


def fsyncdir(core: Core, request: Request, view: memoryview) -> None:
    fh, flags = formats.FSYNC_IN.parse(view, BODY)
    directory = core.directories.get(fh)
    if directory is None:
        core.error(request, errno.EBADF)
        return
    how = SYNC_DATA_ONLY if flags & formats.FSYNC_DATA else 0
    request.step = _synced
    pending = directory.connection.submit((REQUEST.pack(Io.SYNC, 0, how, directory.ocb),), 0, request.file_done)
    if pending is not None:
        request.pending = pending


def _synced(request: Request, status: int, reply: Buffer) -> None:
    if status == -errno.ENOSYS:
        status = 0
    done(request, status, reply)
