"""Writes a file of frames while they pass, without ever making them wait: pcapng, read by Wireshark and tcpdump.

Blocks are collected and written by a worker thread, FLUSH_SIZE at a time or every FLUSH_TIME; into a pipe at the end of each turn, so
that who reads it sees frames as they come. What a slow disk or reader cannot take is lost beyond WAITING_MAX, and the next frame of the
file says how many were. A file that cannot be written any more (disk full) ends there: that is logged once and shown.

A file that is there keeps what it has until the first write. Who is closed before that and has no frame, since the start fails for another
module's sake, leaves it so, and takes away one that he made.

Only its end waits: `close` writes what has not been written, at most WAITING_MAX. What was handed to a thread that has not begun is among
that, and the thread then finds nothing to do.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading

from resmgr.dispatch import Dispatch, Timer
from stack.core.errors import ModuleError
from stack.frame import Frame
from stack.wire import pcapng
from stack.wire.pcap import SNAP_MAX

log = logging.getLogger(__name__)

FLUSH_SIZE = 256 << 10
FLUSH_TIME = 0.2
"""Seconds that a frame may wait to be written."""
PIPE_RETRY = 0.01
"""Seconds after which a full pipe is tried again."""
WAITING_MAX = 16 << 20
"""Bytes that wait for a slow disk. More are lost: recording must not fill memory."""
NANOSECONDS = 1_000_000_000


class Recorder:
    """See the head of this file. One interface. ModuleError when the file cannot be made."""

    def __init__(self, dispatch: Dispatch, path: str, interface: str, snap: int = SNAP_MAX, limit: int | None = None) -> None:
        """*snap*: bytes kept of each frame. *limit*: bytes after which the file ends."""
        self._dispatch = dispatch
        self._path = path
        self._snap = snap
        self._limit = limit
        self._blocks: list[bytes] = [pcapng.pack_section("qnetpy io-pkt"), pcapng.pack_interface(interface, snap)]
        self._waiting = sum(map(len, self._blocks))
        self._size = self._waiting
        self._writing = False
        self._timer: Timer | None = None
        self._flush_due = False
        self._lock = threading.Lock()
        """Held while the file is written, by a worker or at the end."""
        self._handed = b""
        """What a worker is to write. Whoever writes it takes it, under the lock."""
        self._torn = False
        """A worker's write failed somewhere in a block: nothing that came behind it could be read. Under the lock."""
        self._closed = False
        self.ended = ""
        """Why nothing more is recorded."""
        self.frames = 0
        self.lost = 0
        self._untold = 0
        self._fd, self._pipe, self._made = _open(path)
        self._begun = self._pipe
        """What the file had before is gone."""
        self._schedule()

    def put(self, frames: list[Frame], direction: int, drops: int = 0) -> None:
        """Record *frames*, which passed now. *drops*: frames that were dropped on this interface since the last call."""
        if self.ended or self._closed:
            return
        if self._waiting >= WAITING_MAX:
            self.lost += len(frames)
            self._untold += len(frames) + drops
            return
        time = int(self._dispatch.wall() * NANOSECONDS)
        snap, drops = self._snap, drops + self._untold
        self._untold = 0
        for frame in frames:
            block = pcapng.pack_packet(0, time, frame if len(frame) <= snap else frame[:snap], len(frame), direction, drops)
            if self._limit is not None and self._size + len(block) > self._limit:
                self._end("it has reached its limit")
                break
            drops = 0
            self._blocks.append(block)
            self._waiting += len(block)
            self._size += len(block)
            self.frames += 1
        self._schedule()

    def describe(self) -> str:
        """For people."""
        how = f"{self._path}: {self.frames} frames" + (f", {self.lost} lost" if self.lost else "")
        return how + (f"; ended: {self.ended}" if self.ended else "")

    def close(self, drops: int = 0, comment: str = "") -> None:
        """Write what waits, and how many frames were dropped altogether, and why; let go. Waits for a write that is under way."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            if self._torn:
                self._blocks.clear()
            elif not self.ended:
                time = int(self._dispatch.wall() * NANOSECONDS)
                self._blocks.append(pcapng.pack_statistics(0, time, self.frames + self.lost, drops + self.lost, comment))
            try:
                if self._begun or self.frames or self.lost or drops:
                    self._write(self._handed + b"".join(self._blocks))
                elif self._made:
                    _take_away(self._path, self._fd)
            except OSError as error:
                log.warning("pcap: the end of %s is missing: %s", self._path, error.strerror)
            self._handed = b""
            os.close(self._fd)

    def _end(self, why: str) -> None:
        self.ended = why
        log.warning("pcap: %s is not recorded any further: %s", self._path, why)

    # Writing

    def _schedule(self) -> None:
        if self._closed or self._writing or not self._blocks:
            return
        if self._pipe:
            if not self._flush_due:
                self._flush_due = True
                self._dispatch.at_turn_end(self._flush_pipe)
        elif self._waiting >= FLUSH_SIZE:
            self._flush_file()
        elif self._timer is None:
            self._timer = self._dispatch.call_at(self._dispatch.now() + FLUSH_TIME, self._timeout)

    def _timeout(self) -> None:
        self._timer = None
        if self._pipe:
            self._flush_pipe()
        elif not self._writing:
            self._flush_file()

    def _taken(self) -> bytes:
        data = b"".join(self._blocks)
        self._blocks.clear()
        return data

    def _flush_pipe(self) -> None:
        self._flush_due = False
        if self._closed or self._timer is not None:
            return
        data = memoryview(self._taken())
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except BlockingIOError:
            self._timer = self._dispatch.call_at(self._dispatch.now() + PIPE_RETRY, self._timeout)
        except OSError as error:
            self._end(error.strerror or "the pipe is broken")
            data = data[:0]
        self._waiting = len(data)
        if data:
            self._blocks.append(bytes(data))

    def _flush_file(self) -> None:
        self._handed = self._taken()
        if self._handed:
            self._writing = True
            self._dispatch.call_blocking(self._work, self._written)

    def _work(self) -> int:
        """In a worker thread, which may begin when all is over."""
        with self._lock:
            data, self._handed = self._handed, b""
            try:
                self._write(data)
            except OSError:
                self._torn = True
                raise
        return len(data)

    def _write(self, data: bytes) -> None:
        if data and not self._begun:
            self._begun = True
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                os.ftruncate(self._fd, 0)
        _write(self._fd, data)

    def _written(self, done: int | BaseException) -> None:
        self._writing = False
        if isinstance(done, OSError):
            self._end(done.strerror or "it cannot be written")
            self._blocks.clear()
            self._waiting = 0
        elif isinstance(done, BaseException):
            raise done
        else:
            self._waiting -= done
            self._schedule()


def _open(path: str) -> tuple[int, bool, bool]:
    """The file, whether it is a pipe, and whether there was none."""
    try:
        pipe = os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)
        # Read and write, so that a pipe can be opened before its reader comes.
        if pipe:
            return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), True, False
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), False, True
        except FileExistsError:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), False, False
    except OSError as error:
        raise ModuleError(error.errno or errno.EIO, f"cannot write {path}: {error.strerror}") from error


def _take_away(path: str, fd: int) -> None:
    """The file that is open as *fd*, if *path* still is that."""
    if os.path.samestat(os.lstat(path), os.fstat(fd)):
        os.unlink(path)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
