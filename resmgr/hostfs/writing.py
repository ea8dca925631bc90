"""WRITE of `HostFs`: data that arrive in parts."""

from __future__ import annotations

import errno
import os
from time import monotonic
from typing import Final

from resmgr.channel import ND_LOCAL, Message
from resmgr.dispatch import Buffer
from resmgr.hostfs.objects import HostClient, HostHandle
from resmgr.hostfs.opened import lose_bits
from resmgr.hostfs.running import Running
from resmgr.iomsg import LOSES_BITS, SURE, WATCH_MODIFY, WRITE_ATTR
from resmgr.iorequest import WRITE_HEAD

FIRST_PART: Final = 1024 * 1024 + WRITE_HEAD
"""A write of 1 MiB, the most that a kernel's FUSE client sends, arrives in one piece; the rest of larger ones is pulled."""
WRITE_MAX: Final = 16 * 1024 * 1024
"""Bytes of one WRITE; a longer one is cut, as a short write."""
PULL: Final = 1024 * 1024


class Write:
    """A WRITE under way: each part is written as it arrives; what is beyond the first part is pulled. An append is gathered first.

    Runs as the client, because a write by anybody but root takes away set-uid bits, and for quotas and reserves.
    """

    __slots__ = (
        "_append",
        "_attr",
        "_client",
        "_count",
        "_expected",
        "_fs",
        "_gathered",
        "_handle",
        "_identity",
        "_loses",
        "_message",
        "_offset",
        "_pulling",
        "_size",
    )

    def __init__(
        self,
        fs: Running,
        message: Message,
        client: HostClient,
        handle: HostHandle,
        offset: int,
        size: int,
        append: bool,
        flags: int,
    ) -> None:
        self._fs = fs
        self._message = message
        self._client = client
        self._handle = handle
        self._identity = fs.identity(client)
        self._offset = offset
        self._size = size
        self._count = 0
        self._append = append
        self._attr = bool(flags & WRITE_ATTR)
        """Its maker wants to hear what it makes of the file."""
        self._loses = bool(flags & LOSES_BITS)
        self._expected = 0
        self._gathered = bytearray()
        self._pulling = False

    def more(self, part: Buffer) -> None:
        """The next bytes are here."""
        if self._append and (self._gathered or len(part) < self._size):
            self._gathered += part
            if len(self._gathered) < self._size:
                self._pull(len(self._gathered))
                return
            part = self._gathered
        self._expected = len(part)
        fs = self._fs
        device = self._handle.device
        now = fs.dispatch.now()
        if device.blocking_until > now:
            fs.counters["threaded"] += 1
            # A client of this kernel that gives up may use its buffer again while the thread writes; what came from elsewhere is ours.
            data = bytes(part) if self._message.info.nd == ND_LOCAL else part
            fs.manager.background(
                self._message,
                self._client,
                (self._handle,),
                lambda: fs.switch.run(self._identity, self._put, data),
                self._written,
                lane=device.lane,
            )
            return
        place = self._handle.place
        if place is not None:
            fs.watching.before(self._client, place[0])
        start = monotonic()
        try:
            count = fs.switch.run(self._identity, self._put, part)
        finally:
            device.took(monotonic() - start, now)
        sure = place is not None and fs.watching.made(self._client, (*place, WATCH_MODIFY))
        if sure and self._attr and count == self._size and not self._count:
            self._message.reply(count, fs.ops_of(self._client).attr(os.fstat(self._handle.fd)) + SURE)
        else:
            self._written(count)

    def _put(self, part: Buffer) -> int:
        """Write all of *part*; the bytes that went, fewer than all only if some went before the error. Any thread."""
        fd = self._handle.fd
        offset = self._offset + self._count
        count = 0
        view = memoryview(part)
        if self._loses:
            lose_bits(fd)
        while count < len(part):
            try:
                if self._append:
                    count += os.pwritev(fd, (view[count:],), 0, os.RWF_APPEND)
                else:
                    count += os.pwrite(fd, view[count:] if count else view, offset + count)
            except OSError:
                if count or self._count:
                    break
                raise
        return count

    def _written(self, count: int) -> None:
        self._count += count
        if self._count >= self._size or count < self._expected:
            self._message.reply(self._count)
        else:
            self._pull(self._count)

    def _pull(self, at: int) -> None:
        self._pulling = True
        self._message.read(WRITE_HEAD + at, min(PULL, self._size - at), self._pulled)
        self._pulling = False

    def _pulled(self, count: int, part: Buffer) -> None:
        if self._pulling:
            # Answered from inside the call: not deeper and deeper.
            self._fs.dispatch.call_soon(lambda: self._next(count, part))
        else:
            self._next(count, part)

    def _next(self, count: int, part: Buffer) -> None:
        message = self._message
        if message.answered:
            return
        try:
            if count <= 0 or self._client.gone or self._handle.closed:
                if self._count:
                    message.reply(self._count)
                else:
                    message.error(-count if count < 0 else errno.EBADMSG if count == 0 else errno.EBADF)
            else:
                left = self._size - (len(self._gathered) or self._count)
                self.more(part if len(part) <= left else memoryview(part)[:left])
        except Exception as error:
            self._fs.manager.failed(message, error)
