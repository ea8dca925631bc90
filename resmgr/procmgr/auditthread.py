"""The thread that writes the audit log: a file can be on a disk that does not answer, or a FIFO that nobody reads, and the daemon goes on.

Lines are written in the order in which they were put. At most LINES_MAX wait; beyond it a line counts as one that cannot be written.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable

from resmgr.errors import ResmgrError

LINES_MAX = 4096
CLOSE_PATIENCE = 0.5
"""Seconds that an end waits for the lines that are left."""

Written = Callable[[OSError | None], None]
"""Is told, in any thread, whether a line was written. Raises nothing and does not block."""


class AuditThread:
    """Started with the first line. `put` and `close` in dispatch context."""

    def __init__(self) -> None:
        self._lines: deque[tuple[Callable[[], None], Written]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, write: Callable[[], None], written: Written) -> None:
        """Have *write*, which may block and raise OSError, called in the thread."""
        with self._changed:
            full = self._closed or len(self._lines) >= LINES_MAX
            if not full:
                self._lines.append((write, written))
                self._changed.notify()
        if full:
            written(OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
        elif self._thread is None:
            self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
            self._thread.start()

    def close(self) -> bool:
        """No further lines; waits a while for those that are left. Whether all are written."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_PATIENCE)
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    if self._closed:
                        return
                    self._changed.wait()
                write, written = self._lines.popleft()
            failure: OSError | None = None
            try:
                write()
            except OSError as error:
                failure = error
            written(failure)
            # They refer to what they are about, and the next line may be hours away.
            del write, written


class Record:
    """One line on its way, for a thread that must not go on before it is written."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._failure: OSError | None = None

    def written(self, failure: OSError | None) -> None:
        """`Written`."""
        self._failure = failure
        self._done.set()

    def wait(self, seconds: float) -> None:
        """Blocks. OSError if it could not be written; ETIMEDOUT if that is not known after *seconds*."""
        if not self._done.wait(seconds):
            raise TimeoutError(errno.ETIMEDOUT, "not written in time")
        if self._failure is not None:
            raise self._failure


class NotRecorded(ResmgrError):
    """A line is not in the log."""


def recorded(record: Record, seconds: float) -> None:
    """`Record.wait`. NotRecorded for whatever it raises."""
    try:
        record.wait(seconds)
    except OSError as error:
        raise NotRecorded(error.errno or errno.EIO, error.strerror) from None
