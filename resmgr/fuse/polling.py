"""POLL: which conditions hold is the server's to say, and its word wakes those who wait (select, poll, epoll of any program).

A POLL is NOTIFY_POLL, answered at once. If nothing of what is wanted holds, and somebody waits in the kernel, one NOTIFY_ARM per open file
is left with the server; its answer becomes the kernel's wake-up (NOTIFY_POLL of the FUSE protocol), after which the kernel asks again. So
a wake-up tells nothing that could be outdated, and one too many does no harm. The armed message goes with the open file, the link, the
server; the last two wake, and the kernel's next question gets the error, which programs see as POLLERR.

What a server without NOTIFY serves is always ready, as regular files are; it may be without it for one type of nodes.
"""

from __future__ import annotations

import errno
from stat import S_IFREG
from typing import TYPE_CHECKING, Final

from resmgr.dispatch import Buffer
from resmgr.fuse import formats
from resmgr.fuse.formats import BODY
from resmgr.iomsg import NOTIFY_ARM, NOTIFY_POLL, POLL_ALL, POLL_IN, POLL_OUT
from resmgr.iorequest import pack_notify

if TYPE_CHECKING:
    from resmgr.channel import Pending
    from resmgr.fuse.core import Core
    from resmgr.fuse.openfile import File
    from resmgr.fuse.request import Request

RDNORM: Final = 0x40
WRNORM: Final = 0x100
READY: Final = POLL_IN | POLL_OUT | RDNORM | WRNORM
AGAIN: Final = 0.25
"""Seconds after which those who wait ask again when the server has no room for one more who waits."""


class Armed:
    """A NOTIFY_ARM with the server."""

    __slots__ = ("kh", "over", "pending", "wanted")

    def __init__(self, kh: int, wanted: int) -> None:
        self.kh = kh
        self.wanted = wanted
        self.pending: Pending | None = None
        self.over = False

    def cancel(self) -> None:
        self.over = True
        if self.pending is not None:
            self.pending.unblock()


def poll(core: Core, request: Request, view: memoryview) -> None:
    fh, kh, flags, events = formats.POLL_IN.parse(view, BODY)
    file = core.files.get(fh)
    if file is None:
        core.error(request, errno.EBADF)
        return
    kind = file.node.mode & 0o170000
    if kind in file.node.server.no_notify:
        _answer(core, request, READY)
        return
    wanted = events & POLL_ALL | (POLL_IN if events & RDNORM else 0) | (POLL_OUT if events & WRNORM else 0)

    def told(request: Request, status: int, reply: Buffer) -> None:
        if status == -errno.ENOSYS:
            file.node.server.no_notify.add(kind)
            _answer(core, request, READY)
        elif status < 0:
            core.failed(request, status)
        else:
            held = status & POLL_ALL
            _answer(core, request, held | (RDNORM if held & POLL_IN else 0) | (WRNORM if held & POLL_OUT else 0))
            if not held & wanted and flags & formats.POLL_SCHEDULE:
                arm(core, file, kh, wanted)

    core.on_file(request, file, (pack_notify(file.ocb, NOTIFY_POLL, POLL_ALL),), 0, told)


def _answer(core: Core, request: Request, events: int) -> None:
    core.answer(request, formats.POLL_REPLY.pack(formats.POLL_REPLY.size, 0, request.unique, events))


def arm(core: Core, file: File, kh: int, wanted: int) -> None:
    """Have the kernel woken when one of *wanted* holds."""
    armed = file.armed
    if armed is not None:
        if not wanted & ~armed.wanted:
            return
        wanted |= armed.wanted
        file.armed = None
        armed.cancel()
    if core.files.get(file.fh) is not file:
        return
    new = file.armed = Armed(kh, wanted)
    core.drops["armed"] += 1

    def fired(status: int, reply: Buffer) -> None:
        new.pending = None
        if new.over:
            return
        new.over = True
        if file.armed is new:
            file.armed = None
        if status == -errno.EAGAIN:
            core.drops["arms_refused"] += 1
            core.dispatch.call_at(core.dispatch.now() + AGAIN, wake)
        else:
            wake()

    def wake() -> None:
        if core.files.get(file.fh) is file:
            core.drops["poll_woken"] += 1
            if file.node.mode & 0o170000 == S_IFREG:
                # It has grown, mostly: the kernel must not answer the read that follows from what it knew of the size.
                core.take_back(file.node)
            core.emit(formats.poll_wakeup(kh))

    pending = file.connection.submit((pack_notify(file.ocb, NOTIFY_ARM, wanted),), 0, fired)
    if not new.over:
        new.pending = pending


def released(file: File) -> None:
    """Nobody has the open file any more."""
    armed, file.armed = file.armed, None
    if armed is not None:
        armed.cancel()
