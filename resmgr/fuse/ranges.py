"""Ranges of files: FALLOCATE, LSEEK (where data and holes are), COPY_FILE_RANGE.

A copy between two files that one server has open for one user is made there, one between files of two other nodes by these (`between`);
between any others the kernel copies by reading and writing (EXDEV). Writes on the way to either file arrive first.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse import changing, formats, overdue
from resmgr.fuse.attributes import done, parse_attr
from resmgr.fuse.between import copy_between
from resmgr.fuse.core import Core
from resmgr.fuse.formats import BODY
from resmgr.fuse.openfile import File
from resmgr.fuse.overdue import Span, of_space
from resmgr.fuse.request import Request, told
from resmgr.iomsg import ATTR, COPY_MAX, LOSES_BITS, OFFSET, REQUEST, SEEK_DATA, SEEK_HOLE, SPACE, Io
from resmgr.iorequest import pack_copy, pack_seek

OFFSET_MAX: Final = (1 << 63) - 1


def fallocate(core: Core, request: Request, view: memoryview) -> None:
    fh, offset, length, mode = formats.FALLOCATE_IN.parse(view, BODY)
    file = core.files.get(fh)
    if file is None:
        core.error(request, errno.EBADF)
        return
    changing.changes_node(request, file.node, contents=True)
    request.span = of_space(mode, offset, length, file.node.attr[6])
    message = REQUEST.pack(Io.SPACE, 0, _how(request, file), file.ocb) + SPACE.pack(mode, offset, length)
    core.on_file(request, file, (message,), 0, done)


def _how(request: Request, file: File) -> int:
    """The flags of a message that changes *file* for whoever asks."""
    return LOSES_BITS if request.user[0] and file.roots else 0


def lseek(core: Core, request: Request, view: memoryview) -> None:
    fh, offset, whence = formats.LSEEK_IN.parse(view, BODY)
    file = core.files.get(fh)
    if file is None or whence not in (SEEK_DATA, SEEK_HOLE):
        core.error(request, errno.EBADF if file is None else errno.EINVAL)
        return

    def all_data(request: Request, status: int, reply: Buffer) -> None:
        if status < 0:
            core.failed(request, status)
            return
        size = parse_attr(reply)[6]
        if offset >= size:
            core.error(request, errno.ENXIO)
        else:
            _answer(core, request, offset if whence == SEEK_DATA else size)

    def sought(request: Request, status: int, reply: Buffer) -> None:
        if status == -errno.ENOSYS:
            # The server tells nothing of holes: all is data, up to the size of now.
            if not request.answered:
                core.on_file(request, file, (REQUEST.pack(Io.STAT, 0, 0, file.ocb),), ATTR.size, all_data)
            return
        if status < 0:
            core.failed(request, status)
            return
        try:
            (found,) = OFFSET.unpack(reply)
        except struct.error:
            raise BadMessage("an offset of another size") from None
        if not offset <= found <= OFFSET_MAX:
            raise BadMessage("data or a hole before where they were looked for")
        _answer(core, request, found)

    core.on_file(request, file, (pack_seek(file.ocb, whence, offset),), OFFSET.size + 1, sought)


def _answer(core: Core, request: Request, offset: int) -> None:
    core.answer(request, formats.LSEEK_REPLY.pack(24, 0, request.unique, offset))


def copy_file_range(core: Core, request: Request, view: memoryview) -> None:
    fh, start, nodeid, fh_out, to, length, flags = formats.COPY_IN.parse(view, BODY)
    file, there = core.files.get(fh), core.files.get(fh_out)
    if file is None or there is None or there.node.nodeid != nodeid or flags:
        core.error(request, errno.EINVAL if flags else errno.EBADF)
        return
    kept = bytes(view)
    lost = core.reopening.lost.get(fh_out)
    if lost is not None:
        core.reopening.wait(lost, lambda code: _open_again(core, request, kept, code))
        return
    here = file.connection is there.connection
    if not here and (_how(request, there) or core.pairs.names(file, there, start, length) is None):
        core.error(request, errno.EXDEV)
        return
    length = min(length, COPY_MAX)
    request.span = Span(to, to + length, to + length > there.node.attr[6])
    changing.changes_node(request, there.node, contents=True)

    def copied(request: Request, status: int, reply: Buffer) -> None:
        if status == -errno.ENOSYS:
            core.error(request, errno.EXDEV)
        elif status < 0:
            core.failed(request, status)
        elif status > length:
            raise BadMessage("more copied than was asked for")
        else:
            core.answer(request, formats.WRITE_REPLY.pack(24, 0, request.unique, status))

    def copy() -> None:
        if request.answered or overdue.after(there.node, to, to + length, copy):
            return
        lost = core.reopening.lost.get(fh) or core.reopening.lost.get(fh_out)
        if lost is not None:
            core.reopening.wait(lost, lambda code: _open_again(core, request, kept, code))
            return
        if here and file.connection is not there.connection:
            # One of them was opened again meanwhile. The kernel reads and writes, and is told what became of the other.
            core.error(request, errno.EXDEV)
        elif here:
            core.on_file(request, file, (pack_copy(file.ocb, there.ocb, start, to, length, _how(request, there)),), 0, copied, there)
        elif not copy_between(core, request, file, there, start, to, length, copied):
            core.error(request, errno.EXDEV)

    behind = there.node.behind
    if behind is None or not behind.outstanding:
        copy()
    else:
        behind.after(copy)


def _open_again(core: Core, request: Request, view: bytes, code: int) -> None:
    """The source or the destination was opened again, or cannot be."""
    if request.answered:
        return
    if code:
        core.error(request, told(-code))
    else:
        copy_file_range(core, request, memoryview(view))
