"""The user's terminal while a remote program has it: raw mode, its size, and the way back to what it was before."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
import tty
from types import TracebackType
from typing import NamedTuple

ESCAPE = b"~"
"""At the beginning of a line, followed by `.`: leave, whatever the other side does; by Ctrl-Z: stop, here and there; by `?`: what there is.
Twice: itself."""
STOP = b"\x1a"
INTERRUPT = b"\x03"
HELP = (
    "at the beginning of a line:",
    "  ~.   leave: the program gets SIGHUP",
    "  ~^Z  stop qnet on, whatever runs there",
    "  ~?   this",
    "  ~~   ~ itself",
)


class Size(NamedTuple):
    rows: int
    columns: int
    width: int = 0
    height: int = 0


def size(fd: int) -> Size:
    """The size of the terminal at *fd*; 24 by 80 where it cannot be told."""
    try:
        found = Size(*struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))))
    except OSError:
        return Size(24, 80)
    return found if found.rows and found.columns else Size(24, 80)


def foreground(fd: int) -> bool:
    """Whether this process may read the terminal at *fd* and change its settings: all others are stopped for it. True where *fd* is no
    terminal, or not the one that controls this process."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True


class Raw:
    """Raw mode for the length of a `with` block. Does nothing where *fd* is no terminal. The terminal's settings are put back on every way
    out but SIGKILL; the caller turns signals into ordinary ends of the block.

    In the background (`&`, `bg`) the terminal is somebody else's and left alone: `again` once this process is in the foreground.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[int | list[bytes | int]] | None = None

    def __enter__(self) -> Raw:
        self.again()
        return self

    @property
    def held(self) -> bool:
        """The terminal is in raw mode by this object."""
        return self._before is not None

    def again(self) -> None:
        """Raw mode if it is not there, after `restore` or because a shell had the terminal in between; over whatever the settings are."""
        if self._fd < 0 or not os.isatty(self._fd):
            return
        while foreground(self._fd):
            # Who is put into the background at this very moment is stopped here, and learns by EINTR that it was continued.
            try:
                before = termios.tcgetattr(self._fd)
                tty.setraw(self._fd, termios.TCSADRAIN)
            except termios.error as error:
                if error.args[0] != errno.EINTR:
                    return  # the terminal is gone
            else:
                self._before = self._before or before
                return

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()

    def restore(self) -> None:
        """Idempotent."""
        before, self._before = self._before, None
        while before is not None and foreground(self._fd):
            try:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, before)
            except termios.error as error:
                if error.args[0] == errno.EINTR:
                    continue
            return  # done, or the terminal is gone


class Escape:
    """Looks in what is typed for `~.`, `~^Z` and `~?` at the beginning of a line, and for somebody who wants to interrupt in vain."""

    def __init__(self) -> None:
        self._line_begins = True
        self._pending = False
        self.interrupts = 0
        """How often Ctrl-C was typed last, with nothing in between."""
        self.stops = 0
        """How often stopping was asked for, since somebody set this to 0."""
        self.questions = 0
        """How often help was asked for, likewise."""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What to send on, and whether the user wants to leave."""
        out = bytearray()
        for byte in data:
            character = bytes((byte,))
            self.interrupts = self.interrupts + 1 if character == INTERRUPT else 0
            if self._pending:
                self._pending = False
                if character == b".":
                    return bytes(out), True
                if character == STOP:
                    self.stops += 1
                    continue
                if character == b"?":
                    self.questions += 1
                    continue
                if character != ESCAPE:
                    out += ESCAPE
            elif self._line_begins and character == ESCAPE:
                self._pending = True
                continue
            out += character
            self._line_begins = character in b"\r\n"
        return bytes(out), False
