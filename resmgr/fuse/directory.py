"""Reading directories: OPENDIR, READDIR, READDIRPLUS, RELEASEDIR, FSYNCDIR.

OPENDIR is an OPEN whose reply may bring the first entries, as that of a file brings its first bytes (what a READDIR with READDIR_ATTRS
from cookie 0 gives); from a server that sends none they are fetched while the kernel takes the answer. While a chunk is handed to the
kernel the next one is under way. `.` and `..` are made here. Entries and their positions: `listing`.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from os import O_DIRECTORY
from typing import Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse import formats
from resmgr.fuse.attributes import done
from resmgr.fuse.core import CONNECT, DEVICES, ENTRY_MAX, Core, alike
from resmgr.fuse.formats import BODY, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, AttrTuple
from resmgr.fuse.inode import Node, same_type
from resmgr.fuse.listing import Directory
from resmgr.fuse.removals import unsaid
from resmgr.fuse.request import LOST, STALE, Request, Step
from resmgr.fuse.walking import subdirectories
from resmgr.iomsg import (
    ATTR,
    ENTRY,
    OPEN,
    OPEN_WATCH,
    READDIR,
    READDIR_ATTRS,
    REQUEST,
    SYNC_DATA_ONLY,
    Connect,
    Io,
)

CHUNK_FIRST: Final = 32 * 1024
CHUNK: Final = 256 * 1024
"""Bytes of entries asked for at once."""
_DIRENT: Final = formats.DIRENT.pack
_ENTRY_AND_DIRENT: Final = formats.ENTRY_AND_DIRENT.pack
_READDIR: Final = int(Io.READDIR)
_NO_ENTRY: Final = bytes(formats.ENTRY_OUT.size)
_DOTS: Final = 2
_NOT_BY_HANDLE: Final = STALE | LOST | {-errno.ENOSYS, -errno.EINVAL}
_NOT_THERE: Final = frozenset((-errno.ENOENT, -errno.ENOTDIR, -errno.ELOOP))


def opendir(core: Core, request: Request, view: memoryview) -> None:
    formats.OPEN_IN.parse(view, BODY)
    node = request.node
    connection = node.server.connections.get(request.user)
    if node.lease is not None and connection is not None and core.leases.lists(node, request.user):
        _open_at_home(core, request, connection)
        return
    if connection is not None and core.leases.opens(node, request.user):
        _open_later(core, request, connection)
        return
    if not core.walking.take(request, lambda reply: _expected(request, reply)):
        _open(core, request)
    core.walking.opened(request, None)


def _open(core: Core, request: Request) -> None:
    node = request.node
    connection = node.server.connections.get(request.user)
    fixed = OPEN.pack(0, 0, CHUNK_FIRST)
    flags = O_DIRECTORY
    if core.leases.wanted(node):
        flags |= OPEN_WATCH
        # No other request has this time: what it brings belongs to the lease that it begins.
        request.at = math.nextafter(request.at, math.inf)
    if node.parent is None or (connection is not None and connection in node.handles):
        core.on_base(request, node, CONNECT, Connect.OPEN, flags, fixed, b"", ENTRY_MAX + CHUNK_FIRST, _opened)
    else:
        # By its name: one message, where getting a handle first would be two.
        core.on_leaf(request, node, Connect.OPEN, flags, fixed, ENTRY_MAX + CHUNK_FIRST, _opened)


def _enter(core: Core, directory: Directory) -> None:
    node = directory.node
    others = core.opened.get(node)
    if others:
        directory.cookies = others[-1].cookies
    elif directory.home and node.lease is not None and node.lease.cookies is not None:
        directory.cookies = node.lease.cookies
    core.add_directory(directory)


def _alike(core: Core, directory: Directory) -> bool:
    """Whether what *directory* has read to its end may stand for what others that have it open were told."""
    others = core.opened[directory.node]
    if len(others) == 1:
        return True
    cookies = directory.cookies
    return directory.plain and directory.end == len(cookies) and all(other.cookies is cookies for other in others)


def _open_at_home(core: Core, request: Request, connection: Connection) -> None:
    """The kernel has the listing, and nothing has changed since it read it."""
    node = request.node
    directory = Directory(core.new_fh(), node, connection, 0, core.ahead.record(node, connection, request.user), request.pid)
    directory.home = directory.cached = True
    _enter(core, directory)
    core.drops["lease_hits"] += 1
    core.at_home = not core.bare.opened(request, connection)
    core.answer(request, formats.OPEN_REPLY.pack(32, 0, request.unique, directory.fh, FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE))


def _open_later(core: Core, request: Request, connection: Connection) -> None:
    """It is opened when it is listed after all."""
    directory = Directory(
        core.new_fh(), request.node, connection, 0, core.ahead.record(request.node, connection, request.user), request.pid
    )
    _enter(core, directory)
    directory.cached = core.leases.opened(request)
    core.drops["lease_hits"] += 1
    core.at_home = True
    core.answer(request, formats.OPEN_REPLY.pack(32, 0, request.unique, directory.fh, FOPEN_CACHE_DIR if directory.cached else 0))


def _expected(request: Request, reply: bytes | None) -> None:
    """The directory was opened before the kernel asked (`walking`); *reply* is what its server said, None: that it was not."""
    core, node = request.core, request.node
    if reply is not None and (
        request.answered or len(reply) < ENTRY.size + ATTR.size or ATTR.unpack_from(reply, ENTRY.size)[0] != node.ino
    ):
        core.walking.unwanted(request.connection, request.user, reply)
        reply = None
    if request.answered:
        return
    if reply is None:
        request.at = core.dispatch.now()
        _open(core, request)
        return
    try:
        _opened(request, 0, reply)
    except BadMessage:
        core.bad_reply(request)


def _opened(request: Request, status: int, reply: Buffer) -> None:
    core, node = request.core, request.node
    if status < 0:
        # If the name leads elsewhere now, the kernel has to look again.
        core.failed(request, -errno.ESTALE if status in _NOT_THERE and request.base is not node else status)
        return
    found, attr = core.entry(request, reply)
    if node.parent is not None and (attr[0] != node.ino or not same_type(node, attr)):
        if found.handle and found.handle != found.ocb:
            core.handles.close_later(found.connection, found.handle)
        core.handles.close_now(found.connection, found.ocb)
        if found.watched:
            core.leases.refused(found.connection, attr[0])
        core.error(request, errno.ESTALE)
        return
    node.server = found.server
    if found.handle == found.ocb:
        core.handles.share(node, found.connection, found.ocb)
    elif found.handle:
        core.handles.keep(node, found.connection, found.handle)
    if found.watched:
        core.leases.began(node, found.connection, request.at, True)
        _took(core, request, attr)
    record = core.ahead.record(node, found.connection, request.user)
    directory = Directory(core.new_fh(), node, found.connection, found.ocb, record, request.pid)
    _enter(core, directory)
    directory.cached = core.leases.opened(request)
    core.bare.opened(request, found.connection)
    answer = FOPEN_CACHE_DIR if directory.cached else 0
    if len(found.data):
        directory.arrived(0, True, bytes(found.data), request.at)
        core.walking.opened(request, subdirectories(directory.items))
    else:
        core.walking.opened(request, iter(()))
        _fetch(core, directory, 0, True)
    core.answer(request, formats.OPEN_REPLY.pack(32, 0, request.unique, directory.fh, answer))


def _took(core: Core, request: Request, attr: AttrTuple) -> None:
    """The answer that says *watched* brings attributes that hold from then on: the kernel has older ones."""
    node = request.node
    if node.attr_at > request.at:
        return
    if node.told is not None and not alike(node.told, attr):
        core.take_back(node)
    node.tell(attr, request.at)
    core.leases.took(node, request.at, request.user, by_name=True)


def _open_now(core: Core, directory: Directory, request: Request, then: Callable[[], None]) -> None:
    """Open at the server what was opened without it, then go on with *request*."""
    node = directory.node

    def opened(request: Request, status: int, reply: Buffer) -> None:
        if status < 0:
            core.failed(request, status)
            return
        found, attr = core.entry(request, reply)
        if found.handle and found.handle != found.ocb:
            core.handles.close_later(found.connection, found.handle)
        if attr[0] != node.ino or core.directories.get(directory.fh) is not directory or directory.ocb:
            core.handles.close_now(found.connection, found.ocb)
        if attr[0] != node.ino:
            core.error(request, errno.ESTALE)
            return
        if not directory.ocb:
            directory.connection, directory.ocb = found.connection, found.ocb
        then()

    core.on_base(request, node, CONNECT, Connect.OPEN, O_DIRECTORY, OPEN.pack(0, 0, 0), b"", ENTRY_MAX, opened)


def readdir(core: Core, request: Request, view: memoryview) -> None:
    _read(core, request, view, False)


def readdirplus(core: Core, request: Request, view: memoryview) -> None:
    _read(core, request, view, True)


def _read(core: Core, request: Request, view: memoryview, plus: bool) -> None:
    fh, offset, size, _, _, _ = formats.READ_IN.parse(view, BODY)
    directory = core.directories.get(fh)
    if directory is None:
        core.error(request, errno.EBADF)
        return
    if not offset:
        if directory.served:
            directory.rewind()
        directory.served = True
        if (lease := directory.node.lease) is not None:
            lease.unlisted = False
    _serve(core, directory, request, offset, size, plus)


def _serve(core: Core, directory: Directory, request: Request, offset: int, size: int, plus: bool) -> None:
    index = max(offset - _DOTS, 0)
    position = directory.place(index)
    if offset == 0 and not request.extra and core.leases.outdates(directory.node, directory.began):
        # From the beginning again, once: the kernel would keep it as the listing of now.
        if directory.fetching >= 0:
            directory.waiting.append((request, offset, size, plus))
            return
        request.extra = 1
        directory.rewind()
        position = directory.place(index)
    if 0 <= position < len(directory.items) and (directory.with_attrs or not plus):
        _hand_over(core, directory, request, offset, size, plus, position)
    elif directory.ended(index):
        if offset < _DOTS:
            _hand_over(core, directory, request, offset, size, plus, position)
        else:
            if not directory.cached:
                core.answer_data(request)
            elif _alike(core, directory):
                core.leases.listed(directory.node, directory.began, directory.cookies)
                core.answer_data(request)
            else:
                # The kernel waits for nothing to drop a listing's pages, so this request does not hold it up.
                pages = formats.inval_pages(directory.node.nodeid)
                core.telling.tell(directory.node, [pages], blocking=False, then=lambda: core.answer_data(request))
    elif index > len(directory.cookies) and not directory.home:
        # A position that was never told to anybody.
        core.error(request, errno.EINVAL)
    elif not directory.ocb:
        _open_now(core, directory, request, lambda: _serve(core, directory, request, offset, size, plus))
    else:
        directory.waiting.append((request, offset, size, plus))
        if directory.fetching < 0:
            _fetch(core, directory, min(index, len(directory.cookies)), plus)


def _fetch(core: Core, directory: Directory, index: int, with_attrs: bool) -> None:
    """Ask for the entries from *index* on; whoever waits is served when they came."""
    cookie = directory.cookies[index - 1] if index else 0
    directory.fetching = index
    at = core.dispatch.now()
    flags = READDIR_ATTRS if with_attrs else 0
    message = REQUEST.pack(_READDIR, 0, flags, directory.ocb) + READDIR.pack(cookie, CHUNK)

    rewinds, sent_to = directory.rewinds, directory.ocb

    def came(status: int, reply: Buffer) -> None:
        if directory.rewinds != rewinds:
            return
        directory.fetching = -1
        waiting, directory.waiting = directory.waiting, []
        if status == -errno.EBADF and core.reopening.forgot_directory(directory, sent_to):
            status = -errno.EHOSTDOWN
        if status >= 0:
            try:
                directory.arrived(index, with_attrs, bytes(reply) if with_attrs else reply, at)
                core.walking.more(directory.pid, directory.node, subdirectories(directory.items))
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


def _hand_over(core: Core, directory: Directory, request: Request, offset: int, size: int, plus: bool, position: int) -> None:
    """Answer with entries of the chunk at hand, and have the next one fetched when it is used up."""
    parts: list[bytes] = []
    node = directory.node
    if offset == 0:
        size -= _dot(parts, b".", node, 1, size, plus)
        offset = 1
    if offset == 1:
        size -= _dot(parts, b"..", node.parent or node, 2, size, plus)
        offset = 2
    items, numbers = directory.items, directory.numbers
    salt = node.server.salt
    count = len(items)
    at = directory.at
    age = core.dispatch.now() - at
    valid = core.left(age)
    doubted, floor = core.logs.of(node)
    unsure = age >= core.options.attr_valid or at <= floor or directory.record.dropped
    if not plus and len(directory.raw):
        core.ahead.learn(directory.record, directory.raw, at)
    directory.raw = b""
    fixed = 24 + (128 if plus else 0)
    devices = core.options.devices_as_files
    children, server, enter, of, fields_of = node.children, node.server, core.nodes.enter, core.nodes.of, core.entry_fields
    lease = node.lease
    while position < count:
        name, ino, mode, attr = items[position]
        length = len(name)
        room = fixed + (length + 7 & ~7)
        if room > size:
            break
        size -= room
        number = numbers[position]
        position += 1
        if devices and mode & 0o170000 in DEVICES:
            mode = 0o100000
        entry = ((ino ^ salt) or 1, number + 1 + _DOTS, length, mode >> 12 & 15)
        if not plus:
            parts.append(_DIRENT(*entry))
        elif attr is None or unsure or (doubted and doubted.get(name, 0.0) >= at):
            # Not known, for too long, or changed from here meanwhile: a lookup will tell.
            parts.append(_NO_ENTRY + _DIRENT(*entry))
        elif (known := children.get(name)) is not None and (known.server is not server or known.attr_at > at or known.changed >= at):
            # Another manager's root, or something newer is known.
            parts.append(_NO_ENTRY + _DIRENT(*entry))
        elif known is None and (known := of(server, attr)) is not None and (known.attr_at > at or known.changed >= at):
            # By another name.
            parts.append(_NO_ENTRY + _DIRENT(*entry))
        else:
            child = enter(node, name, server, attr)
            child.attr_at = at
            child.lookups += 1
            if lease is not None:
                core.leases.entered(node, name, child, at, directory.record.user)
                if at > node.changed:
                    # Who may list but not search is told no attributes.
                    lease.users.add(directory.record.user)
            parts.append(_ENTRY_AND_DIRENT(*fields_of(child, valid), *entry))
        parts.append(name + b"\0\0\0\0\0\0\0"[: -length & 7])
    core.answer_data(request, b"".join(parts))
    if position >= count and count and directory.fetching < 0 and directory.end < 0:
        _fetch(core, directory, numbers[-1] + 1, plus)


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
    directory = core.remove_directory(fh)
    if directory is None:
        core.drops["unknown_file"] += 1
    else:
        core.reopening.released(fh)
        lease = directory.node.lease
        if lease is not None and not directory.home and not directory.served:
            lease.unlisted = True
        if directory.ocb:
            core.handles.let_go(directory.node, directory.connection, directory.ocb)


def fsyncdir(core: Core, request: Request, view: memoryview) -> None:
    fh, flags = formats.FSYNC_IN.parse(view, BODY)
    directory = core.directories.get(fh)
    if directory is None:
        core.error(request, errno.EBADF)
        return
    if error := unsaid(directory.node, request.user, request.at):
        core.error(request, error)
        return
    how = SYNC_DATA_ONLY if flags & formats.FSYNC_DATA else 0
    ocb = directory.ocb

    def synced(request: Request, status: int, reply: Buffer) -> None:
        if status == -errno.EBADF and core.reopening.forgot_directory(directory, ocb):
            status = -errno.EHOSTDOWN
        _synced(request, status, reply)

    handle = directory.ocb or directory.node.handles.get(directory.connection, 0)

    def by_base(request: Request, status: int, reply: Buffer) -> None:
        if status in _NOT_BY_HANDLE:
            # The handle is not good any more, or its server syncs only what is open.
            _open_now(core, directory, request, lambda: _sync(directory.connection, directory.ocb, request, how, _synced))
        else:
            # An error of the sync itself is said once.
            _synced(request, status, reply)

    if handle:
        _sync(directory.connection, handle, request, how, synced if directory.ocb else by_base)
    else:
        _open_now(core, directory, request, lambda: _sync(directory.connection, directory.ocb, request, how, _synced))


def _sync(connection: Connection, handle: int, request: Request, how: int, step: Step) -> None:
    request.step = step
    pending = connection.submit((REQUEST.pack(Io.SYNC, 0, how, handle),), 0, request.file_done)
    if pending is not None:
        request.pending = pending


def _synced(request: Request, status: int, reply: Buffer) -> None:
    if status == -errno.ENOSYS:
        status = 0
    done(request, status, reply)
