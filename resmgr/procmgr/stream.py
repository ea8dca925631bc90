"""Standard streams of a spawned process as the client sees them: numbered READs and WRITEs over a pipe or a terminal.

Back-pressure is the pipe's own. An outlet reads the pipe only to answer a READ that waits, so a client that stops reading stops the
program once the pipe is full. An inlet pulls the bytes of one WRITE at a time from the client, piece by piece, and answers it when the
pipe has taken all, so a client cannot push more into this node than one piece per process.

A descriptor is watched only while a message waits for it: the dispatch's descriptors are level-triggered.
"""

from __future__ import annotations

import errno
import os
import termios
from collections.abc import Callable
from typing import Final

from resmgr.channel import Message
from resmgr.dispatch import Buffer, Dispatch, Timer
from resmgr.procmgr.message import READ_MAX, STREAM_DATA

READS_MAX: Final = 16
"""READs, and WRITEs, of one stream under way. Stops a client from parking messages without end."""
PIECE: Final = 256 * 1024
"""Bytes of a WRITE held here at a time."""
TERMINAL_RETRY: Final = 0.02
"""Seconds until a full terminal is tried again. Its descriptor cannot be waited on for writing alone: it is readable as well."""


class Outlet:
    """Standard output or standard error: READs are answered in the order of their numbers, with 0 bytes at the end."""

    def __init__(self, dispatch: Dispatch, fd: int) -> None:
        """*fd* is non-blocking and belongs to the outlet from now on."""
        self._dispatch = dispatch
        self._fd = fd
        self._watched = False
        self._next = 0
        self._waiting: dict[int, tuple[Message, int]] = {}
        self.carried = 0

    @property
    def ended(self) -> bool:
        return self._fd < 0

    def read(self, message: Message, number: int, size: int) -> None:
        if number in self._waiting or not self._next <= number < self._next + READS_MAX:
            message.error(errno.EINVAL)
            return
        self._waiting[number] = (message, min(size, READ_MAX, message.reply_len))
        message.on_unblock = lambda: self._give_up(number)
        self._serve()

    def drain(self, room: int) -> bytes:
        """Up to *room* bytes that are there now, before the first READ."""
        parts: list[bytes] = []
        while self._fd >= 0 and room > 0:
            try:
                data = os.read(self._fd, room)
            except BlockingIOError:
                break
            if not data:
                self._let_go()
            parts.append(data)
            room -= len(data)
        data = b"".join(parts)
        self.carried += len(data)
        return data

    def close(self) -> None:
        """Nothing more is wanted. Waiting READs get EBADF."""
        self._let_go()
        for message, _ in self._waiting.values():
            message.error(errno.EBADF)
        self._waiting.clear()

    def _give_up(self, number: int) -> None:
        message, _ = self._waiting.pop(number)
        message.error(errno.EINTR)

    def _serve(self) -> None:
        while self._next in self._waiting:
            message, size = self._waiting[self._next]
            data = b""
            if self._fd >= 0:
                try:
                    data = os.read(self._fd, size)
                except BlockingIOError:
                    if not self._watched:
                        self._watched = True
                        self._dispatch.attach_fd(self._fd, self._serve)
                    return
                except OSError:
                    # EIO: every program has closed the terminal.
                    data = b""
                if not data and size:
                    self._let_go()
            del self._waiting[self._next]
            self._next += 1
            self.carried += len(data)
            message.reply(len(data), data)
        self._unwatch()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._dispatch.detach_fd(self._fd)

    def _let_go(self) -> None:
        if self._fd >= 0:
            self._unwatch()
            os.close(self._fd)
            self._fd = -1


class Inlet:
    """Standard input: WRITEs go to the program in the order of their numbers, whole; EPIPE once it does not read any more."""

    def __init__(self, dispatch: Dispatch, fd: int, typed: Callable[[Buffer], None] | None = None) -> None:
        """*fd* is non-blocking and belongs to the inlet from now on. *typed*: it is a terminal, and this is told what that was given."""
        self._dispatch = dispatch
        self._fd = fd
        self._terminal = typed is not None
        self._typed = typed
        self._watched = False
        self._timer: Timer | None = None
        self._next = 0
        self._waiting: dict[int, tuple[Message, bool]] = {}
        self._offset = STREAM_DATA
        self._piece: Buffer = b""
        self._pulling = False
        self._serving = False
        self._line_begins = True
        self.carried = 0

    def write(self, message: Message, number: int, last: bool) -> None:
        if number in self._waiting or not self._next <= number < self._next + READS_MAX:
            message.error(errno.EINVAL)
            return
        self._waiting[number] = (message, last)
        message.on_unblock = lambda: self._give_up(number)
        self._serve()

    def close(self) -> None:
        """End of file for the program. Waiting WRITEs get EBADF."""
        self._let_go()
        waiting, self._waiting = self._waiting, {}
        for message, _ in waiting.values():
            message.error(errno.EBADF)

    def _give_up(self, number: int) -> None:
        message, _ = self._waiting.pop(number)
        if number == self._next:
            # Some of it may have gone to the program: the stream has a hole that nobody can mend.
            self._let_go()
            self._next += 1
        message.error(errno.EINTR)

    def _serve(self) -> None:
        """Run until something has to be waited for. What completes at once comes back here as a loop, not as a recursion."""
        if self._serving:
            return
        self._serving = True
        try:
            while not self._pulling and self._step():
                pass
        finally:
            self._serving = False

    def _step(self) -> bool:
        """Do one thing; False when there is nothing to do now."""
        if self._next not in self._waiting:
            self._unwatch()
            return False
        message, last = self._waiting[self._next]
        if self._fd < 0:
            self._finish(errno.EPIPE)
        elif len(self._piece):
            return self._push()
        elif self._offset < message.msglen:
            self._pulling = True
            number = self._next
            message.read(self._offset, min(PIECE, message.msglen - self._offset), lambda count, data: self._pulled(number, count, data))
        else:
            if last:
                self._end_of_file()
            self._finish(0)
        return True

    def _pulled(self, number: int, count: int, data: Buffer) -> None:
        self._pulling = False
        if number == self._next and number in self._waiting:
            if count <= 0:
                self._let_go()
                self._finish(errno.EIO)
            else:
                self._offset += count
                self._piece = data
                if self._fd >= 0:
                    self._push()
        self._serve()

    def _push(self) -> bool:
        """Write what is here. The piece is the client's message, valid only during the call that brought it: copy what is left."""
        piece = memoryview(self._piece)
        try:
            count = os.write(self._fd, piece)
        except BlockingIOError:
            count = 0
        except OSError:
            self._piece = b""
            self._let_go()
            return True
        self.carried += count
        if count:
            self._line_begins = piece[count - 1] in b"\r\n"
            if self._typed is not None:
                self._typed(piece[:count])
        self._piece = b"" if count == len(piece) else self._piece if isinstance(self._piece, bytes) and not count else bytes(piece[count:])
        if not len(self._piece):
            return True
        self._watch()
        return False

    def _finish(self, code: int) -> None:
        message, _ = self._waiting.pop(self._next)
        self._next += 1
        count = self._offset - STREAM_DATA
        self._offset = STREAM_DATA
        self._piece = b""
        if code:
            message.error(code)
        else:
            message.reply(count)

    def _end_of_file(self) -> None:
        if self._terminal:
            # A terminal cannot be closed by half: the end of input is typed. In the middle of a line that takes two.
            try:
                settings = termios.tcgetattr(self._fd)
                if settings[3] & termios.ICANON:
                    os.write(self._fd, settings[6][termios.VEOF] * (1 if self._line_begins else 2))
            except (OSError, termios.error):
                pass
        else:
            self._let_go()

    def _watch(self) -> None:
        if self._terminal:
            if self._timer is None:
                self._timer = self._dispatch.call_at(self._dispatch.now() + TERMINAL_RETRY, self._retry)
        elif not self._watched:
            self._watched = True
            # Readable means hung up here: the program closed its end. Writing then tells.
            self._dispatch.attach_fd(self._fd, self._serve)
            self._dispatch.want_write(self._fd, self._serve)

    def _retry(self) -> None:
        self._timer = None
        self._serve()

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watched:
            self._watched = False
            self._dispatch.detach_fd(self._fd)

    def _let_go(self) -> None:
        self._piece = b""
        if self._fd >= 0:
            self._unwatch()
            os.close(self._fd)
            self._fd = -1
