"""Open files: CREATE, OPEN, READ, FLUSH, RELEASE, FSYNC, TMPFILE. WRITE is in `writing`.

OPEN is one message that brings attributes and, for a read-only open of a file whose pages the kernel may not have, the first bytes. READs
inside them are answered without the server; the bytes are dropped once they were read to their end, and after `attr_valid` seconds, and
not kept if something was changed from here since OPEN was sent: what was written then may have been answered before. If
they are the whole file, and it is opened for the first time, they are given to the kernel as pages (NOTIFY_STORE) before the answer, and it
asks for none.

Close-to-open: pages that the kernel has stay only if change value, mtime, size and inode number are what they were when the pages began
to be filled, and nothing was written from here since. If the attributes differ from what the kernel was told, it is told that they are
not valid before it gets the answer to OPEN, and its next question is answered from what OPEN brought.

Where pages must go, the program that opens waits in the kernel, deaf to signals, for every READ that fills one of them. So a first open
never asks for it, and while a READ is under way such an open bypasses the cache; the next one clears it.

An answer about attributes during which the kernel hears that they are not valid is shown to the program, and does not become the size by
which the kernel reads. While others change a file their events come at any time, so a read-only open of one that was changed or replaced a
moment ago bypasses the cache, which goes by no size.

Some more opens bypass the page cache: O_APPEND (the server knows where the end is), what its server calls live, devices and FIFOs, and
read-only opens of files of size 0, which may be of the kind that has no size (/proc) and would read as empty.

FLUSH waits for WRITEs under way, gives the process's locks up (`locking`) and tells a remembered error; a file opened for reading needs
none. Several processes may have one open file, and each closes it, at the latest when it ends, which looks at no error: so FLUSH does not
take the error from the others.
"""

from __future__ import annotations

import errno
import struct
from stat import S_IFCHR, S_IFIFO, S_IFREG
from typing import Final

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse import changing, formats, locking, overdue, owned, polling, writing
from resmgr.fuse.caller import ends
from resmgr.fuse.core import CONNECT, DEVICES, ENTRY_MAX, Core, Found, alike
from resmgr.fuse.delegated import Held
from resmgr.fuse.formats import (
    BODY,
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FOPEN_NOFLUSH,
    FOPEN_NONSEEKABLE,
    FOPEN_STREAM,
    O_ACCMODE,
    O_APPEND,
    O_CREAT,
    O_EXCL,
    O_NONBLOCK,
    O_SYNC,
    O_TRUNC,
    AttrTuple,
    Opcode,
    name_at,
)
from resmgr.fuse.inode import Node, same_type
from resmgr.fuse.openfile import File
from resmgr.fuse.overdue import whole
from resmgr.fuse.request import Request
from resmgr.iomsg import NONBLOCK, OPEN, OPEN_DELEGATE, READ, REQUEST, SYNC_DATA_ONLY, Connect, Io

UNSETTLED: Final = 0.25
"""For so many seconds after the server told of a change of a file it may tell of more."""
SERVER_FLAGS: Final = O_ACCMODE | O_CREAT | O_EXCL | O_TRUNC | O_APPEND | O_NONBLOCK | O_SYNC
"""Open flags that mean something to a server; O_DIRECT, O_NOFOLLOW and the like are the kernel's here."""
_READ_MESSAGE: Final = struct.Struct(REQUEST.format + READ.format[1:])
_READ: Final = int(Io.READ)
_NO_FILE: Final = (-errno.ELOOP, -errno.EISDIR, -errno.ENXIO)
"""Answers to OPEN of a symbolic link, a directory, a socket."""
_read_in: Final = formats.READ_IN.parse


def create(core: Core, request: Request, view: memoryview) -> None:
    flags, mode, umask, _ = formats.CREATE_IN.parse(view, BODY)
    request.name = name_at(view, BODY + formats.CREATE_IN.size)
    request.extra = flags
    fixed = OPEN.pack(mode & 0o7777, umask, 0)
    wanted = flags & SERVER_FLAGS | O_CREAT
    changing.changes_name(request, request.node, request.name)
    core.on_base(request, request.node, CONNECT, Connect.OPEN, wanted, fixed, request.name, ENTRY_MAX, _created)


def _created(request: Request, status: int, reply: Buffer) -> None:
    core = request.core
    if status < 0:
        # A symbolic link appeared under the name: the kernel has to look again.
        core.failed(request, -errno.ESTALE if status == -errno.ELOOP else status)
        return
    found, attr = core.entry(request, reply)
    changing.changed(request)
    node = core.enter(request, request.node, request.name, found, attr)
    owned.believe(request)
    _made(request, node, found)


def tmpfile(core: Core, request: Request, view: memoryview) -> None:
    """O_TMPFILE: a file that has no name, until LINK gives it one by its open file."""
    flags, mode, umask, _ = formats.CREATE_IN.parse(view, BODY)
    request.extra = flags
    fixed = OPEN.pack(mode & 0o7777, umask, 0)
    core.on_base(request, request.node, CONNECT, Connect.TMPFILE, flags & SERVER_FLAGS, fixed, b"", ENTRY_MAX, _nameless)


def _nameless(request: Request, status: int, reply: Buffer) -> None:
    core = request.core
    if status < 0:
        core.failed(request, status)
        return
    found, attr = core.entry(request, reply)
    if attr[1] & 0o170000 != S_IFREG:
        raise BadMessage("not a regular file")
    if found.handle:
        core.handles.close_later(found.connection, found.handle)
    node = core.nodes.enter_nameless(request.node, found.server, attr)
    node.attr_at = request.at
    _made(request, node, found)


def _made(request: Request, node: Node, found: Found) -> None:
    """*node* was made and opened."""
    core = request.core
    node.pages = node.version()
    node.cached = True
    file = core.add_file(node, found.connection, found.ocb, request.extra)
    node.lookups += 1
    fields = core.entry_fields(node)
    size = formats.CREATE_REPLY.size
    flags = FOPEN_DIRECT_IO if found.live or request.extra & O_APPEND else 0
    core.answer(request, formats.CREATE_REPLY.pack(size, 0, request.unique, *fields, file.fh, flags))


def open_(core: Core, request: Request, view: memoryview) -> None:
    flags, _ = formats.OPEN_IN.parse(view, BODY)
    request.extra = flags
    if core.replaced.kept and (kept := core.replaced.take(request)) is not None:
        _open(request, kept.found, kept.attr, kept.at)
        return
    held = core.delegated.find(request, flags)
    if held is not None:
        _open_here(core, request, held)
    elif not core.open_ahead.places or not core.open_ahead.take(
        request, flags, lambda found, attr, at: _open_ahead(request, found, attr, at), lambda: _ask(core, request)
    ):
        _ask(core, request)
    core.open_ahead.opened(request, flags)


def _ask(core: Core, request: Request) -> None:
    """Have the request's node opened by its server."""
    node, flags = request.node, request.extra
    if flags & (O_ACCMODE | O_TRUNC) and node.parent is not None:
        core.handles.hurry((node.parent, node.name))
    prefetch = 0
    if not flags & (O_ACCMODE | O_TRUNC) and node.pages is None and node.mode & 0o170000 == S_IFREG:
        prefetch = core.options.prefetch
    if flags & O_TRUNC:
        changing.changes_node(request, node)
        request.span = whole()
    fixed = OPEN.pack(0, 0, prefetch)
    if not node.named:
        # By /proc/PID/fd: what has no name is opened again through what is open.
        connection = core.servers.connect(node.server, request.user)
        file = node.file_of(connection)
        if file is not None:
            core.direct(request, connection, (file.ocb, b""), Connect.OPEN, flags & SERVER_FLAGS, fixed, b"", ENTRY_MAX + prefetch, _opened)
            return
        if node.parent is not None and node.name and not node.files and not flags & O_TRUNC:
            # What has its name now, for the kernel's next try (`replaced`).
            core.on_base(request, node.parent, CONNECT, Connect.OPEN, flags & SERVER_FLAGS, fixed, node.name, ENTRY_MAX + prefetch, _opened)
            return
    wanted = flags & SERVER_FLAGS | (OPEN_DELEGATE if core.delegated.asks(request, flags) else 0)
    core.on_leaf(request, node, Connect.OPEN, wanted, fixed, ENTRY_MAX + prefetch, _opened)


def _opened(request: Request, status: int, reply: Buffer) -> None:
    core, node = request.core, request.node
    if status < 0:
        # The name is gone, or of something else that is no file, but the kernel thinks that it is there: a program that wants it made
        # otherwise hears that it does not exist, and one that opens by /proc/PID/fd what that leads to.
        if status == -errno.ENOENT or (status in _NO_FILE and node.mode & 0o170000 == S_IFREG and request.base is not None):
            if request.named(node):
                _look_again(core, node)
            status = -errno.ESTALE
        core.failed(request, status)
        return
    found, attr = core.entry(request, reply)
    if found.handle:
        core.handles.close_later(found.connection, found.handle)
    if found.server is not node.server or not same_type(node, attr) or attr[0] != node.ino:
        if request.named(node):
            _look_again(core, node)
        core.replaced.keep(request, found, attr)
        core.error(request, errno.ESTALE)
        return
    _open(request, found, attr, request.at)


def _look_again(core: Core, node: Node) -> None:
    """The server was asked by *node*'s name, and it does not lead there. After ESTALE the kernel walks the path again: that LOOKUP is not
    answered from here; or opens /proc/PID/fd again, which has the file by what is open."""
    directory = node.parent
    if directory is None:
        return
    changing.found_changed(core, directory, node.name)
    if node.files and node.named and node.via is None:
        core.nodes.unname(node, directory, node.name)


def _open(request: Request, found: Found, attr: AttrTuple, at: float, ahead: bool = False) -> None:
    """The request's node was opened as *found*, with *attr*, by a question of the time *at*; *ahead*: before the kernel asked."""
    core, node = request.core, request.node
    # What came may be of before a change that was made from here since, and that programs were told is done.
    current = node.changed <= at
    settled = _settled(core, node, attr)
    if node.attr_at <= at:
        node.tell(attr, at)
        core.leases.took(node, at, request.user, by_name=ahead or request.base is not None)
    flags = request.extra
    file = core.add_file(node, found.connection, found.ocb, flags)
    if found.delegated:
        core.delegated.took(request, file, at, ahead)
    answer = _pages(core, node, flags, found.live, settled)
    if len(found.data) and current:
        file.data = bytes(found.data)
        file.data_at = at
        file.data_ends = len(file.data) < core.options.prefetch
        if _may_store(node, attr, answer, file.data):
            core.drops["stored"] += 1
            core.output.append(formats.store(node.nodeid, file.data))
            answer |= FOPEN_KEEP_CACHE
    node.cached = True
    if flags & O_TRUNC:
        node.doubt_attr()
        if node.behind is not None:
            node.behind.truncated()
    elif node.told is None and node.parent is not None and node.parent.lease is not None:
        # An event may have come while the kernel was still busy with an answer, and what it was told then did not take it back.
        core.take_back(node)
        node.fresh = current
    elif node.told is not None and not alike(node.told, node.attr):
        core.take_back(node)
        node.fresh = current
        core.drops["attributes_changed"] += 1
    core.answer(request, formats.OPEN_REPLY.pack(32, 0, request.unique, file.fh, answer))


def _open_ahead(request: Request, found: Found, attr: AttrTuple, at: float) -> None:
    """The request's node was opened before the kernel asked (`openahead`)."""
    core = request.core
    core.at_home = True
    _open(request, found, attr, at, True)


def _is_being_read(core: Core, node: Node) -> bool:
    """Whether a READ of *node* waits for its server."""
    return any(request.opcode == Opcode.READ and request.node is node for request in core.outstanding.values())


def _open_here(core: Core, request: Request, held: Held) -> None:
    """Nobody has changed the file since it was opened before, and nobody does before we are asked: it is open already."""
    node = request.node
    file = core.add_file(node, held.connection, held.ocb, request.extra)
    core.delegated.shares(held, file)
    answer = _pages(core, node, request.extra, False, _settled(core, node, node.attr))
    node.cached = True
    core.at_home = True
    core.answer(request, formats.OPEN_REPLY.pack(32, 0, request.unique, file.fh, answer))


def _pages(core: Core, node: Node, flags: int, live: bool, settled: bool) -> int:
    """What the kernel is told of *node*, of which all is known that its server told, opened with *flags*: above all, which pages of it
    are good."""
    attr = node.attr
    version = node.version()
    kind = attr[1] & 0o170000
    answer = 0 if flags & O_ACCMODE else FOPEN_NOFLUSH
    if kind in DEVICES:
        answer |= FOPEN_DIRECT_IO | (FOPEN_NONSEEKABLE | FOPEN_STREAM if kind in (S_IFCHR, S_IFIFO) else 0)
    elif live or flags & O_APPEND or (not flags & O_ACCMODE and not (attr[6] and settled)):
        answer |= FOPEN_DIRECT_IO
    if node.pages == version or not node.cached:
        answer |= FOPEN_KEEP_CACHE
        node.pages = version
    elif _is_being_read(core, node):
        answer |= FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE
        node.pages = None
        core.drops["bypassed"] += 1
    else:
        node.pages = version
    return answer


def _settled(core: Core, node: Node, attr: AttrTuple) -> bool:
    """Whether nobody else seems to be changing the file, of which the server says *attr*."""
    if node.told is not None and node.told[6] != attr[6]:
        return False
    lease = None if node.parent is None else node.parent.lease
    return lease is None or not lease.overtaken(node.name, core.dispatch.now() - UNSETTLED)


def _may_store(node: Node, attr: AttrTuple, answer: int, data: bytes) -> bool:
    """Whether *data* can be given to the kernel as the file's pages: they are all of it, the kernel knows its size, and there has been no
    READ of this node and no page, so that nothing can hold a page's lock and wait for an answer of ours."""
    told = node.told
    return not node.cached and not answer & FOPEN_DIRECT_IO and len(data) == attr[6] and told is not None and alike(told, attr)


def read(core: Core, request: Request, view: memoryview) -> None:
    fh, offset, size, _, _, now = _read_in(view, BODY)
    how = NONBLOCK if now & O_NONBLOCK else 0
    file = core.files.get(fh)
    if file is None:
        core.error(request, errno.EBADF)
        return
    first: Buffer | None = None
    if file.data is not None:
        first = _prefetched(core, request, file, offset, size)
        if request.answered:
            return
        if first is not None:
            offset += len(first)
            size -= len(first)
            known = first

            def joined(request: Request, status: int, reply: Buffer) -> None:
                if status < 0:
                    core.failed(request, status)
                else:
                    core.answer_data(request, known, reply)

            core.on_file(request, file, (_READ_MESSAGE.pack(_READ, 0, how, file.ocb, offset, size),), size, joined)
            return
    request.step = _have_read
    request.file = file
    request.opened = file.opened
    pending = file.connection.submit((_READ_MESSAGE.pack(_READ, 0, how, file.ocb, offset, size),), size, request.file_done)
    if pending is not None:
        request.pending = pending


def _prefetched(core: Core, request: Request, file: File, offset: int, size: int) -> Buffer | None:
    """Answer from the first bytes if they are enough; else return what of them the answer begins with, if any."""
    data = file.data
    assert data is not None
    length = len(data)
    if request.at - file.data_at > core.options.attr_valid or offset >= length:
        file.data = None
        return None
    if offset + size >= length:
        file.data = None
    if offset + size <= length or file.data_ends:
        core.drops["prefetch_hits"] += 1
        core.answer_data(request, data if offset == 0 and size >= length else memoryview(data)[offset : offset + size])
        return None
    return memoryview(data)[offset:]


def _have_read(request: Request, status: int, reply: Buffer) -> None:
    if status < 0:
        request.core.failed(request, status)
    else:
        request.core.answer_data(request, reply)


def flush(core: Core, request: Request, view: memoryview) -> None:
    fh, owner = formats.FLUSH_IN.parse(view, BODY)
    file = core.files.get(fh)
    if file is None:
        core.error(request, errno.EBADF)
        return

    def told_now() -> None:
        if not request.answered:
            code = file.show_error(not file.error or not ends(request.pid))
            if not code and file.dead and file.written != file.synced:
                # Its server took the data, and may have gone with them.
                code = errno.ESTALE
            core.error(request, code)

    def written() -> None:
        locking.closing(core, file, owner, told_now)

    if file.writes:
        file.waiting.append(written)
    else:
        written()


def fsync(core: Core, request: Request, view: memoryview) -> None:
    fh, flags = formats.FSYNC_IN.parse(view, BODY)
    file = core.files.get(fh)
    if file is None:
        core.error(request, errno.EBADF)
        return
    how = SYNC_DATA_ONLY if flags & formats.FSYNC_DATA else 0

    before = 0

    def synced(request: Request, status: int, reply: Buffer) -> None:
        if status < 0:
            # It may be carried out again, and tells the error then; else the next call does.
            core.failed(request, status)
            return
        if not file.error:
            file.synced = max(file.synced, before)
        if not request.answered:
            core.error(request, file.take_error())

    def sync() -> None:
        nonlocal before
        if not request.answered:
            behind = file.node.behind
            # What was written since the request came may overtake it, or be overtaken.
            before = 0 if behind is not None and behind.outstanding else file.written
            core.on_file(request, file, (REQUEST.pack(Io.SYNC, 0, how, file.ocb),), 0, synced)

    if file.writes:
        file.waiting.append(sync)
    else:
        sync()


def release(core: Core, request: Request, view: memoryview) -> None:
    """Nobody waits for it: answered at once, the OCB is closed at the end of the turn or when the last WRITE came back."""
    fh = formats.RELEASE_IN.parse(view, BODY)[0]
    core.error(request, 0)
    file = core.files.pop(fh, None)
    if file is None:
        core.drops["unknown_file"] += 1
        return

    def close() -> None:
        file.node.files.remove(file)
        core.reopening.released(fh)
        core.nodes.settle(file.node)
        locking.released(file)
        polling.released(file)
        program = file.flags & O_ACCMODE and file.node.mode & 0o111
        if core.delegated.released(file):
            # Others use the open control block, or will: what was locked through it does not end by itself.
            for one in list(file.held):
                locking.unlock(core, file, one, _nothing)
        elif file.locked or program or file.node.mode & 0o170000 != S_IFREG:
            core.handles.close_now(file.connection, file.ocb)
        else:
            core.handles.close_lazily(file.connection, file.ocb)
        if file.unseen:
            writing.lost(core, file)

    def arrived() -> None:
        if file.writes:
            file.waiting.append(close)
        else:
            close()

    def settled() -> None:
        if not overdue.after(file.node, 0, overdue.FAR, settled):
            arrived()

    behind = file.node.behind
    if behind is None:
        arrived()
    else:
        # The node stays, and with it the account of its writes.
        behind.after(settled)


def _nothing() -> None:
    pass
