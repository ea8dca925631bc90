"""Reads a file of frames ahead of its replay: a regular file by a worker thread, CHUNK at a time; a pipe as bytes come.

`records` holds what has been read and not yet been taken; reading stops while there are AHEAD_MAX of them.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import deque
from collections.abc import Callable

from resmgr.dispatch import Dispatch
from resmgr.errors import BadMessage
from stack.core.errors import ModuleError
from stack.wire.capture import CaptureReader
from stack.wire.pcap import Record

CHUNK = 256 << 10
AHEAD_MAX = 2048
"""Frames read ahead."""
END_OF_FILE = "end of file"


class Replay:
    """See the head of this file. *more* is called when there are more records, or there will be none (`ended`). Silent before `start`.
    ModuleError when the file cannot be opened."""

    def __init__(self, dispatch: Dispatch, path: str, more: Callable[[], None]) -> None:
        self._dispatch = dispatch
        self._more = more
        self._path = path
        self.records: deque[Record] = deque()
        self.found = 0
        """Records of this round."""
        self.ended = ""
        """Why there are no more: END_OF_FILE, or what is wrong with it."""
        try:
            # A pipe whose writer has not come yet must not keep us waiting.
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ModuleError(error.errno or errno.EIO, f"cannot read {path}: {error.strerror}") from error
        self.live = not stat.S_ISREG(os.fstat(self._fd).st_mode)
        """A pipe: its writer sets the pace."""
        self._reader = CaptureReader()
        self._reading = False
        self._held = False
        self._started = False
        self._closed = False
        self._lock = threading.Lock()
        """Held by a worker that reads."""

    def start(self) -> None:
        """Begin to read."""
        self._started = True
        if self.live:
            self._dispatch.attach_fd(self._fd, self._readable)
        else:
            self._read_on()

    def rewind(self) -> None:
        """From the beginning once more; of a regular file that has ended."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._reader = CaptureReader()
        self.ended = ""
        self.found = 0
        self._read_on()

    def taken(self) -> None:
        """Records were taken: go on reading, if need be."""
        if self._closed or self.ended or len(self.records) >= AHEAD_MAX:
            return
        if not self.live:
            self._read_on()
        elif self._held:
            self._held = False
            self._dispatch.want_read(self._fd, True)

    def close(self) -> None:
        """Idempotent. Waits for a read that is under way."""
        if self._closed:
            return
        self._closed = True
        self.records.clear()
        if self.live and self._started:
            self._dispatch.detach_fd(self._fd)
        with self._lock:
            os.close(self._fd)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._take(error)
            return
        self._take(data)
        self._hold()

    def _hold(self) -> None:
        """Read no further from a pipe while there is enough."""
        if self._started and not self._closed and len(self.records) >= AHEAD_MAX:
            self._held = True
            self._dispatch.want_read(self._fd, False)

    def _read_on(self) -> None:
        if not self._reading:
            self._reading = True
            self._dispatch.call_blocking(self._work, self._take)

    def _work(self) -> bytes:
        """In a worker thread."""
        with self._lock:
            return b"" if self._closed else os.read(self._fd, CHUNK)

    def _take(self, data: bytes | BaseException) -> None:
        self._reading = False
        if self._closed:
            return
        if isinstance(data, OSError):
            self.ended = data.strerror or "it cannot be read"
        elif isinstance(data, BaseException):
            raise data
        elif not data:
            self.ended = END_OF_FILE if self._reader.whole else "it ends in the middle of a frame, or is empty"
        else:
            before = len(self.records)
            try:
                self.records.extend(self._reader.feed(data))
            except BadMessage as error:
                self.ended = str(error)
            self.found += len(self.records) - before
        if self.live and self.ended:
            self._dispatch.detach_fd(self._fd)
            self._started = False
        self._more()
        if not self.live:
            self.taken()
