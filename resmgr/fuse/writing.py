"""WRITE, and the two ways in which a program is told that it is done.

A write to a regular file is usually answered at once, while its message is on the way (write-behind, `behind`,
docs/decisions/fuse-write-behind.md). It waits for its server when the program asked for that (O_SYNC, O_DSYNC, O_DIRECT), when the server
decides where it goes (O_APPEND), when the kernel writes pages of shared mappings (which it may have many of under way by itself), and for
devices. A write that overlaps one on the way is sent when that one has arrived, either way.

The error of a write behind is told to each program that has the file open (each open file of the node, as Linux does with errors of
its own write-back): once by its next WRITE or FSYNC, and by each FLUSH (close) before that. If the file that was written through is
closed without any of these having told it, that is logged. A short write is continued, so that its reason comes out; one that the
server's node has no room for (EAGAIN) is sent again later.

A small write while others of its file are on the way is not sent at once: what continues it goes with it (`behind.Gathered`).

The data of a large write lie in the buffer that the request was read into, which is kept until the server has answered; small ones are
copied, since a buffer is a megabyte.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Callable
from functools import partial
from stat import S_IFIFO, S_IFREG
from typing import Final

from resmgr.dispatch import Buffer
from resmgr.fuse import changing, formats, owned
from resmgr.fuse.behind import OVERHEAD, TOTAL_MAX, Behind, Gathered
from resmgr.fuse.caller import broken_pipe
from resmgr.fuse.core import Core
from resmgr.fuse.formats import BODY, O_APPEND, O_DSYNC, O_NONBLOCK
from resmgr.fuse.openfile import File
from resmgr.fuse.overdue import FAR, Span, whole
from resmgr.fuse.request import LOST, RESEND_AFTER, RESEND_FOR, Request, told
from resmgr.iomsg import ATTR, LOSES_BITS, NONBLOCK, OFFSET_APPEND, REQUEST, SURE, WRITE, WRITE_AT, WRITE_ATTR, Io

logger = logging.getLogger(__name__)

HELD_WRITE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Data of WRITEs that wait for servers. Stops programs from filling memory through a server that hangs: ENOMEM beyond."""
COPY_MAX: Final = 64 * 1024
"""Data up to this size are copied out of the read buffer."""
SYNCHRONOUS: Final = O_APPEND | O_DSYNC | os.O_DIRECT
"""Open flags with which a write waits for its server. O_SYNC contains O_DSYNC."""
OCB_OFFSET: Final = 8
_TRIES_MAX: Final = int(RESEND_FOR / RESEND_AFTER)
_OCB: Final = struct.Struct("!Q")
_SIZE: Final = struct.Struct("!I")
_MESSAGE: Final = struct.Struct(REQUEST.format + WRITE.format[1:])
_WRITE: Final = int(Io.WRITE)
_REPLY_MAX: Final = ATTR.size + len(SURE)
_DATA: Final = BODY + formats.WRITE_IN.size


def write(core: Core, request: Request, view: memoryview) -> None:
    fh, offset, size, how, _, flags = formats.WRITE_IN.parse(view, BODY)
    file = core.files.get(fh)
    if file is None or len(view) - _DATA != size:
        core.error(request, errno.EBADF if file is None else errno.EINVAL)
        return
    mapped = bool(how & formats.WRITE_CACHE)
    if file.error and not mapped:
        core.error(request, file.take_error())
        return
    if core.held_bytes + size > HELD_WRITE_BYTES_MAX:
        core.drops["writes_refused"] += 1
        core.error(request, errno.ENOMEM)
        return
    # Whether it appends may have been changed since it was opened: the kernel says it with each write, but not with pages of a mapping.
    placed = bool(file.flags & O_APPEND and (mapped or not flags & O_APPEND))
    if flags & O_APPEND and not mapped:
        offset = OFFSET_APPEND
    flags |= file.flags & ~O_NONBLOCK
    node = file.node
    node.cached = True
    changing.written(core, node)
    behind = node.behind
    synchronous = mapped or bool(flags & SYNCHRONOUS)
    loses = bool(how & formats.WRITE_KILL_SUIDGID) and file.roots
    if behind is not None and behind.gathered is not None:
        if not synchronous and not loses and size <= COPY_MAX and behind.continues(file, offset, size) and _room_for(core, behind, size):
            _gather(core, request, file, behind, view[_DATA:])
            return
        behind.send_gathered()
    if size <= COPY_MAX or view.readonly:
        view = memoryview(bytearray(view))
        let_go = _nothing
    else:
        let_go = core.borrow()
    # The message's head overwrites the request's, right in front of the data: one part, nothing is joined.
    start = _DATA - _MESSAGE.size
    how = NONBLOCK if flags & O_NONBLOCK else 0
    if size <= COPY_MAX and owned.begins_on(request, node):
        how |= WRITE_ATTR
    if placed:
        how |= WRITE_AT
    if loses:
        how |= LOSES_BITS
    _MESSAGE.pack_into(view, start, _WRITE, 0, how, file.ocb, offset, size)
    writing = _Writing(core, request, file, offset, size, mapped, view[start:], let_go)
    if synchronous or node.mode & 0o170000 != S_IFREG or not size or not core.options.write_behind:
        begin = writing.wait
        file.writes += 1
    else:
        begin = writing.go_behind
        if node.behind is None:
            node.behind = Behind()
    if node.behind is None:
        begin()
    else:
        writing.when_free(node.behind, begin)


def _room_for(core: Core, behind: Behind, size: int) -> bool:
    """Whether the program may go on when so many bytes more are on the way."""
    return behind.cost + size <= core.options.write_behind and core.behind_cost + size <= TOTAL_MAX


def _gather(core: Core, request: Request, file: File, behind: Behind, data: memoryview) -> None:
    """The write goes with the one before it, which is not sent yet."""
    size = len(data)
    behind.gather(data)
    core.held_bytes += size
    core.behind_cost += size
    core.drops["writes_gathered"] += 1
    file.written += 1
    core.answer(request, formats.WRITE_REPLY.pack(24, 0, request.unique, size))


def lost(core: Core, file: File) -> None:
    """A write through *file* failed after the program was told that it is done, and nobody asked until it was closed."""
    core.drops["writes_lost"] += 1
    path = file.node.path().decode("utf-8", "backslashreplace")
    logger.error("data written to %r are lost: %s; the program did not wait for close", path, os.strerror(file.error))


class _Writing:
    """One WRITE, until its server has answered. `message` is the head and the data."""

    __slots__ = (
        "core", "file", "final", "let_go", "mapped", "message", "number", "offset", "opened", "request", "size", "tries", "wrote",
    )  # fmt: skip

    def __init__(
        self,
        core: Core,
        request: Request,
        file: File,
        offset: int,
        size: int,
        mapped: bool,
        message: memoryview,
        let_go: Callable[[], None],
    ) -> None:
        self.core = core
        self.request = request
        self.file = file
        self.offset = offset
        self.size = size
        self.mapped = mapped
        """The kernel writes pages of a shared mapping: no program waits for the answer."""
        self.message: Buffer = message
        self.let_go = let_go
        self.opened = 0
        """How often the file had been opened when the message was sent."""
        self.number = 0
        self.wrote = 0
        """Bytes that earlier messages of a write behind have brought there."""
        self.tries = 0
        self.final = False
        """The file is not waited for any more."""
        core.held_bytes += size

    def when_free(self, behind: Behind, begin: Callable[[], None]) -> None:
        """Begin, when what it overlaps has arrived."""
        start, end = (0, FAR) if self.offset == OFFSET_APPEND else (self.offset, self.offset + self.size)
        if behind.overdue is not None and (numbers := behind.overdue.over(start, end)):
            self.core.drops["writes_overlapped"] += 1
            behind.overdue.wait(numbers, partial(self._after_overdue, behind, begin))
        elif behind.outstanding and (self.offset == OFFSET_APPEND or behind.overlaps(start, end)):
            self.core.drops["writes_overlapped"] += 1
            behind.after(partial(self._after_others, begin))
        else:
            begin()

    def _after_overdue(self, behind: Behind, begin: Callable[[], None]) -> None:
        self._readdress()
        self.when_free(behind, begin)

    def _after_others(self, begin: Callable[[], None]) -> None:
        self._readdress()
        begin()

    # ---- the program waits

    def wait(self) -> None:
        if self.request.answered:
            # Given up before it was sent.
            self._over(-errno.ECANCELED, b"")
            self._returned()
        elif not self._lost(self._wait_again):
            request, file = self.request, self.file
            self.opened = file.opened
            end = self.offset + self.size
            request.span = whole() if self.offset == OFFSET_APPEND else Span(self.offset, end, end > file.node.attr[6])
            request.step = self._written
            pending = file.connection.submit((self.message,), _REPLY_MAX, request.file_done)
            if pending is not None:
                request.pending = pending
                request.at_server = True

    def _lost(self, then: Callable[[int], None]) -> bool:
        """Whether the file is lost: then *then* when it is open again, and its locks are set, or is not."""
        lost = self.core.reopening.lost.get(self.file.fh)
        if lost is not None:
            self.core.reopening.wait(lost, then)
        return lost is not None

    def _written(self, request: Request, status: int, reply: Buffer) -> None:
        core, file = self.core, self.file
        if (
            status in LOST
            and not self.final
            and not request.answered
            # What may have been appended is not appended once more; who does not know the file has not.
            and (self.offset != OFFSET_APPEND or status == -errno.EBADF)
            and core.reopening.again(file, self.opened, status, self._wait_again)
        ):
            return
        self._over(status, reply)
        if status < 0:
            code = told(status)
            if request.answered or self.mapped:
                file.error = file.error or code
                # Of pages of a mapping the kernel tells by itself, too.
                file.unseen = file.unseen or not self.mapped
            if code == errno.EPIPE and not request.answered and file.node.mode & 0o170000 == S_IFIFO:
                broken_pipe(request.pid)
            core.error(request, code)
        else:
            self._acknowledge(min(status, self.size))
        self._returned()

    def _returned(self) -> None:
        file = self.file
        file.writes -= 1
        if not file.writes and file.waiting:
            waiting, file.waiting = file.waiting, []
            for call in waiting:
                call()

    def _wait_again(self, code: int) -> None:
        if code or self.request.answered:
            self.final = True
            self._written(self.request, -(code or errno.EINTR), b"")
        else:
            self._readdress()
            self.wait()

    def _readdress(self) -> None:
        """The file was opened again, or may have been: the message goes to its new OCB. A server that was started anew begins with the same
        numbers, so that of before may be another file's."""
        if not isinstance(self.message, memoryview) or self.message.readonly:
            self.message = memoryview(bytearray(self.message))
        _OCB.pack_into(self.message, OCB_OFFSET, self.file.ocb)

    # ---- the program goes on

    def go_behind(self) -> None:
        if self.request.answered:
            # Given up before it was sent.
            self._over(-errno.ECANCELED, b"")
            return
        core, behind = self.core, self._account()
        long_ago = core.dispatch.now() - core.options.attr_valid
        others = bool(behind.outstanding)
        self.number = behind.begin(self.offset, self.offset + self.size, long_ago)
        core.behind_cost += self.size + OVERHEAD
        if others and self.size <= COPY_MAX and _room_for(core, behind, 0):
            behind.send_gathered()
            behind.gathered = Gathered(self.file, self.number, self.size, self._send_with)
        else:
            self._send()
        if not self.number:
            return
        if behind.cost <= core.options.write_behind and core.behind_cost <= TOTAL_MAX:
            self._acknowledge(self.size)
        else:
            behind.throttled.append(self._room)
            core.drops["writes_throttled"] += 1

    def _send_with(self, more: bytearray) -> None:
        """The message goes now, with *more*, which continues it."""
        if more:
            message = bytearray(self.message)
            message += more
            self.size = len(message) - _MESSAGE.size
            _SIZE.pack_into(message, _MESSAGE.size - _SIZE.size, self.size)
            self.message = memoryview(message)
        # The file may have been opened again meanwhile.
        self._readdress()
        self._send()

    def _send(self) -> None:
        if not self._lost(self._send_again):
            self.opened = self.file.opened
            self.file.connection.submit((self.message,), _REPLY_MAX, self._arrived)

    def _arrived(self, status: int, reply: Buffer) -> None:
        core = self.core
        if 0 < status < self.size - self.wrote:
            self.wrote += status
            left = self.size - self.wrote
            head = _MESSAGE.pack(_WRITE, 0, 0, self.file.ocb, self.offset + self.wrote, left)
            self.message = head + bytes(memoryview(self.message)[-left:])
            self._send()
            return
        if status == -errno.EAGAIN and self.tries < _TRIES_MAX:
            self.tries += 1
            core.drops["writes_again"] += 1
            core.dispatch.call_at(core.dispatch.now() + RESEND_AFTER, partial(self._send_again, 0))
            return
        if status in LOST and not self.final and core.reopening.again(self.file, self.opened, status, self._send_again):
            return
        request, behind = self.request, self._account()
        self._over(status, reply)
        if status <= 0:
            code = told(status) if status else errno.EIO
            if request.answered:
                core.drops["writes_failed"] += 1
                for file in self.file.node.files:
                    file.error = file.error or code
                self.file.unseen = True
            core.error(request, code)
        else:
            self._acknowledge(self.size)
        number, self.number = self.number, 0
        core.behind_cost -= self.size + OVERHEAD
        behind.finish(number, core.dispatch.now())
        throttled = behind.throttled
        while throttled and (not behind.outstanding or (behind.cost <= core.options.write_behind and core.behind_cost <= TOTAL_MAX)):
            throttled.popleft()()

    def _send_again(self, code: int) -> None:
        if code:
            self.final = True
            self._arrived(-code, b"")
        else:
            self._readdress()
            self._send()

    def _room(self) -> None:
        if self.number:
            self._acknowledge(self.size)

    def _account(self) -> Behind:
        behind = self.file.node.behind
        assert behind is not None
        return behind

    # ---- both

    def _acknowledge(self, size: int) -> None:
        if not self.request.answered:
            self.file.written += 1
        self.core.answer(self.request, formats.WRITE_REPLY.pack(24, 0, self.request.unique, size))

    def _over(self, status: int, reply: Buffer) -> None:
        """The server has answered, or the message was never sent."""
        self.core.held_bytes -= self.size
        if status != -errno.EINTR:
            # After an unblock the server may still be busy with the data: then the buffer is left to it.
            self.let_go()
        node = self.file.node
        owned.ended(self.request)
        changing.written(self.core, node)
        if status == self.size and len(reply) == _REPLY_MAX and bytes(memoryview(reply)[ATTR.size :]) == SURE:
            owned.believe_attr(self.request, node, ATTR.unpack_from(reply), self.core.dispatch.now())


def _nothing() -> None:
    pass
