"""What the kernel of one mount is told that it may have to wait for: by whom, and what becomes of it where that one cannot.

Pages are dropped by the process `pages`, whose requests are answered here, unseen by the machine; else, as entries, by notifications that
`entries` writes; before that one runs, and when it does not, by a thread of this process, which may then keep the daemon from dying.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Callable
from typing import Final

from resmgr.dispatch import Buffer, Dispatch
from resmgr.fuse import formats
from resmgr.fuse.formats import FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, Opcode
from resmgr.fuse.notifier import write_all
from resmgr.fuse.notifying import Helper, begin_entries, begin_pages, joined

log = logging.getLogger("resmgr.fuse")

REPLACED_MAX: Final = 16
"""Processes of one mount that were stopped and are replaced. Stops one who stops each of them from having them made for ever."""
TRY_AGAIN: Final = 0.05
"""Seconds after which it is tried again where there was no descriptor or no thread."""
FH: Final = (1 << 64) - 1
"""The file handle of everything that `pages` has open."""
MAY_BE_OURS: Final = frozenset((int(Opcode.OPEN), int(Opcode.OPENDIR), int(Opcode.RELEASE), int(Opcode.RELEASEDIR)))
_HEAD: Final = struct.Struct("=IIQQIII")
_FH: Final = struct.Struct("=Q")
_NOT_THERE: Final = (errno.ESTALE, errno.ENOENT, errno.ENOTCONN)
"""Of opening: the kernel has no such inode, or the mount is not where it was at the moment. The next file may be opened again."""


class Waits:
    """Of one session. `start` when its mount is served; `close` when it is served no more."""

    def __init__(self, dispatch: Dispatch, fd: int, buffer_size: int, place: bytes, namespace: int | None) -> None:
        """*fd*: the open /dev/fuse; it stays the session's, which calls `close` before it closes that."""
        self.entries = Helper(dispatch, self._entries_stopped)
        self.pages = Helper(dispatch, self._pages_stopped)
        self.replaced = 0
        """Processes that were stopped, and replaced."""
        self.on_replaced: Callable[[], None] = lambda: None
        self.threads = 0
        """Threads of this process that are in the kernel for that."""
        self._dispatch = dispatch
        self._size = buffer_size
        self._place = place
        self._namespace = namespace
        self._fd = fd
        self._opened: set[int] = set()
        """Nodes that `pages` has opened and was not answered about yet."""

    def start(self) -> None:
        """Have the processes started. Until they run all is told by threads."""
        self._start_pages()
        self._start_entries()

    def _start_pages(self) -> None:
        place, namespace = self._place, self._namespace
        self.pages.start(lambda: begin_pages(place, namespace))

    def _start_entries(self) -> None:
        try:
            copy = os.dup(self._fd)
        except OSError as error:
            log.warning("no process that tells the kernel of changed entries: %s", error.strerror)
            return
        self.entries.start(lambda: begin_entries(copy, self._size), lambda: os.close(copy))

    def _pages_stopped(self) -> None:
        if self._may_replace():
            self.pages = Helper(self._dispatch, self._pages_stopped)
            self._start_pages()

    def _entries_stopped(self) -> None:
        if self._may_replace():
            self.entries = Helper(self._dispatch, self._entries_stopped)
            self._start_entries()

    def _may_replace(self) -> bool:
        if self.replaced >= REPLACED_MAX:
            return False
        self.replaced += 1
        self.on_replaced()
        return True

    def close(self, *, leave: bool = False) -> None:
        """*leave*: somebody else goes on serving. Nobody is told any more what became of what was under way."""
        self.entries.close(leave=leave)
        self.pages.close(leave=leave)
        self._fd = -1

    def tell(self, messages: list[bytes], done: Callable[[int], None]) -> None:
        """Have notifications written in order, and call *done* with how many failed."""
        if not self.entries.ready:
            self._in_thread(messages, done)
            return

        def told(failed: int) -> None:
            if failed >= 0:
                done(failed)
            elif self._fd >= 0:
                self._in_thread(messages, done)

        self.entries.do(joined(messages), told)

    def _in_thread(self, messages: list[bytes], done: Callable[[int], None]) -> None:
        def again() -> None:
            if self._fd >= 0:
                self._in_thread(messages, done)

        try:
            fd = os.dup(self._fd)
        except OSError:
            self._dispatch.call_at(self._dispatch.now() + TRY_AGAIN, again)
            return

        def written(failed: int | BaseException) -> None:
            self.threads -= 1
            os.close(fd)
            if isinstance(failed, int):
                done(failed)
            else:
                # There is no room for a thread. What the kernel is not told it believes for ever.
                self._dispatch.call_at(self._dispatch.now() + TRY_AGAIN, again)

        self.threads += 1
        self._dispatch.call_blocking(lambda: write_all(fd, memoryview(b"".join(messages))), written)

    def drop_pages(self, nodeid: int, done: Callable[[int], None]) -> None:
        """Neither pages nor attributes of a regular file are valid any more; as `tell`."""

        def dropped(result: int) -> None:
            opened = nodeid in self._opened
            self._opened.discard(nodeid)
            if not result and opened:
                done(0)
                return
            if result not in _NOT_THERE and self.pages.ready:
                log.info("pages are dropped by notifications: %s", os.strerror(result) if result else "not by opening a file")
                self.pages.close()
            if self._fd >= 0:
                self.tell([formats.inval_pages(nodeid)], done)

        if not self.pages.ready:
            self.tell([formats.inval_pages(nodeid)], done)
            return
        try:
            os.write(self._fd, formats.inval_inode(nodeid))
        except OSError as error:
            if error.errno == errno.ENOENT:
                done(0)
                return
        self._opened.discard(nodeid)
        self.pages.do([_FH.pack(nodeid)], dropped)

    def answer(self, opcode: int, view: Buffer) -> bytes | None:
        """The answer to a request of `pages`; None: it is somebody else's. *opcode* is one that `MAY_BE_OURS`.

        The kernel numbers threads as in the pid namespace of whoever made the mount. A daemon and the one that takes over from it are in
        the same: a process of another cannot end the earlier one."""
        _, _, unique, nodeid, _, _, pid = _HEAD.unpack_from(view)
        if opcode in (Opcode.RELEASE, Opcode.RELEASEDIR):
            return formats.error_reply(unique, 0) if _FH.unpack_from(view, 40)[0] == FH else None
        if pid not in self.pages.threads:
            return None
        if opcode == Opcode.OPENDIR:
            return formats.OPEN_REPLY.pack(formats.OPEN_REPLY.size, 0, unique, FH, FOPEN_KEEP_CACHE)
        self._opened.add(nodeid)
        return formats.OPEN_REPLY.pack(formats.OPEN_REPLY.size, 0, unique, FH, FOPEN_NOFLUSH)
