"""A log that programs of all nodes append lines to: `echo started >>/dev/log.d`, `tail -f /net/B/dev/log.d`.

A reader that waits with select or poll is woken by the next line; one that only reads comes to the end, as of a file.

    python examples/log.py [PATH]
"""

import errno
import sys
import time

from qnetpy.manage import POLL_IN, POLL_OUT, Node, serve
from resmgr.access import MappedUser
from resmgr.dispatch import Buffer

LIMIT = 1 << 20
"""Bytes kept; then the log begins anew, as when a file is truncated."""


class Reader:
    """One open of the log, and how far it was read."""

    def __init__(self) -> None:
        self.at = 0


class Log(Node):
    mode = 0o100666
    live = True
    """Whoever polls it is told by how far he has read, so each read must come here."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.changed = time.time()

    def size(self) -> int:
        return len(self.text)

    def open(self, user: MappedUser, flags: int) -> Reader:
        return Reader()

    def read(self, state: object | None, offset: int, size: int) -> Buffer:
        found = bytes(self.text[offset : offset + size])
        if isinstance(state, Reader):
            state.at = offset + len(found)
        return found

    def write(self, state: object | None, offset: int, data: Buffer) -> int:
        """Always at the end, whatever *offset* says: nobody overwrites another's lines."""
        if len(data) > LIMIT // 2:
            raise OSError(errno.EMSGSIZE, "line too long")
        if len(self.text) + len(data) > LIMIT:
            self.text.clear()
        self.text += data
        self.changed = time.time()
        self.notify()
        return len(data)

    def poll(self, state: object | None) -> int:
        more = isinstance(state, Reader) and state.at != len(self.text)
        return POLL_OUT | (POLL_IN if more else 0)


if __name__ == "__main__":
    serve(sys.argv[1] if len(sys.argv) > 1 else "/dev/log.d", Log())
