"""The user's terminal while a remote program has it: raw mode, its size, and the way back to what it was before."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
import tty
from types import TracebackType
from typing import NamedTuple

ESCAPE = b"~"
"""At the beginning of a line, followed by `.`: leave, whatever the other side does; by Ctrl-Z: stop, here and there. Twice: itself."""
STOP = b"\x1a"


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


class Raw:
    """Raw mode for the length of a `with` block. Does nothing where *fd* is no terminal. The terminal's settings are put back on every way
    out but SIGKILL; the caller turns signals into ordinary ends of the block.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[int | list[bytes | int]] | None = None

    def __enter__(self) -> Raw:
        self.again()
        return self

    def again(self) -> None:
        """Raw mode once more after `restore`, over whatever the settings are now."""
        if self._fd >= 0 and os.isatty(self._fd):
            self._before = termios.tcgetattr(self._fd)
            tty.setraw(self._fd, termios.TCSADRAIN)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()

    def restore(self) -> None:
        """Idempotent."""
        before, self._before = self._before, None
        if before is not None:
            try:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, before)
            except termios.error:
                pass  # The terminal is gone.


class Escape:
    """Looks for `~.` and `~^Z` at the beginning of a line in what is typed."""

    def __init__(self) -> None:
        self._line_begins = True
        self._pending = False
        self.stops = 0
        """How often stopping was asked for, since somebody set this to 0."""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What to send on, and whether the user wants to leave."""
        out = bytearray()
        for byte in data:
            character = bytes((byte,))
            if self._pending:
                self._pending = False
                if character == b".":
                    return bytes(out), True
                if character == STOP:
                    self.stops += 1
                    continue
                if character != ESCAPE:
                    out += ESCAPE
            elif self._line_begins and character == ESCAPE:
                self._pending = True
                continue
            out += character
            self._line_begins = character in b"\r\n"
        return bytes(out), False
