"""Leases of this machine's kernel on descriptors (fcntl F_SETLEASE), and who hears that one is being broken.

The kernel says so with a signal, which it sends to one thread (F_SETOWN_EX, F_OWNER_TID): ours, which has it blocked and reads it from a
signalfd. So no other thread has to block it, no program that is started inherits anything, and no handler runs. If the kernel has no room
for such signals it sends SIGIO in their place, which that thread has blocked, too: then all leases are looked at.

The dispatch hears it through a pipe. If it does not for `unheard` seconds, because it waits in the kernel itself, perhaps for this very
lease, the thread lets go: that is longer than any client believes a server that is silent.

F_SETLEASE F_UNLCK forgets F_SETSIG, so each lease begins with it. The caller has the daemon's own rights: the kernel sends the signal with
those of who set the owner, and lets only the owner of a file, or CAP_LEASE, set a lease.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import select
import signal
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from resmgr.dispatch import Dispatch
from resmgr.errors import Misuse
from resmgr.ownthread import new_thread

logger = logging.getLogger(__name__)

F_SETSIG: Final = 10
F_SETOWN_EX: Final = 15
F_OWNER_TID: Final = 0
_OWNER: Final = struct.Struct("@ii")
_FD: Final = struct.Struct("=i")
_INFO_SIZE: Final = 128
"""struct signalfd_siginfo: ssi_signo first, ssi_fd at 20."""
_LEASES: Final = "/proc/sys/fs/lease-break-time"
_libc = ctypes.CDLL(None, use_errno=True)


def break_time() -> int:
    """Seconds that the kernel waits before it breaks a lease by itself; 0: it has none."""
    try:
        with open(_LEASES, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


class Breaks:
    """The leases of one daemon. `broken(fd)` is called in dispatch context when somebody waits for one; perhaps more than once."""

    def __init__(self, dispatch: Dispatch, broken: Callable[[int], None]) -> None:
        self._dispatch = dispatch
        self._broken = broken
        self.unheard = 2.5
        """Seconds after which the thread does not wait for the dispatch."""
        self.least = 6.0
        """Seconds that the kernel has to wait for who has a lease (`lease-break-time`): less would be over before a client has lost it."""
        self._signal = signal.SIGRTMIN + 2
        self._lock = threading.Lock()
        self._held: dict[int, int] = {}
        """What was taken, by descriptor."""
        self._gone: set[int] = set()
        """Descriptors whose lease the thread has let go, and the dispatch was not told yet."""
        self._unheard: dict[int, float] = {}
        """Descriptors of which the dispatch was not told yet, and when (time.monotonic) it is not waited for any more."""
        self._thread: threading.Thread | None = None
        self._tid = 0
        self._ready = threading.Event()
        self._told = (-1, -1)
        self._stop = -1
        self._useless = False

    def take(self, fd: int, *, write: bool = False) -> bool:
        """Set a lease on *fd*, which is open for reading only, or the only open file of what it is (*write*). False: somebody has it open
        otherwise, or leases cannot be had there."""
        if not self._begin():
            return False
        try:
            fcntl.fcntl(fd, F_SETSIG, self._signal)
            fcntl.fcntl(fd, F_SETOWN_EX, _OWNER.pack(F_OWNER_TID, self._tid))
            kind = fcntl.F_WRLCK if write else fcntl.F_RDLCK
            with self._lock:
                fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
                self._held[fd] = kind
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINVAL, errno.EPERM):
                logger.warning("a file cannot be leased: %s", error.strerror)
            return False
        return True

    def give(self, fd: int) -> None:
        """Let go of the lease on *fd*, which is still open."""
        with self._lock:
            self._gone.discard(fd)
            self._unheard.pop(fd, None)
            if self._held.pop(fd, None) is not None:
                _let_go(fd)

    def close(self) -> None:
        """Let go of all. Idempotent."""
        with self._lock:
            for fd in self._held:
                _let_go(fd)
            self._held.clear()
            self._gone.clear()
            self._unheard.clear()
        if self._thread is not None:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            self._thread = None
            self._dispatch.detach_fd(self._told[0])
            for fd in (*self._told, self._stop):
                os.close(fd)
        self._useless = True

    # ---- the dispatch

    def _begin(self) -> bool:
        if self._thread is None and not self._useless:
            if break_time() < self.least:
                self._useless = True
                return False
            reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                self._dispatch.attach_fd(reading, self._hear)
            except Misuse:
                # Without descriptors, under virtual time, nobody would hear.
                os.close(reading)
                os.close(writing)
                self._useless = True
                return False
            self._told = reading, writing
            self._stop = os.eventfd(0, os.EFD_CLOEXEC)
            self._thread = new_thread("leases", self._watch)
            if self._thread is None:
                self._dispatch.detach_fd(reading)
                for fd in (*self._told, self._stop):
                    os.close(fd)
                return False
            self._ready.wait()
        return not self._useless

    def _hear(self) -> None:
        try:
            data = os.read(self._told[0], 4096)
        except BlockingIOError:
            return
        for (fd,) in _FD.iter_unpack(data[: len(data) // _FD.size * _FD.size]):
            with self._lock:
                self._unheard.pop(fd, None)
                broken = fd in self._gone or self._is_broken(fd)
                self._gone.discard(fd)
            if broken:
                self._broken(fd)

    def _is_broken(self, fd: int) -> bool:
        """Whether somebody waits for the lease on *fd*, or the kernel has ended it."""
        kind = self._held.get(fd)
        try:
            return kind is not None and fcntl.fcntl(fd, fcntl.F_GETLEASE) != kind
        except OSError:
            return True

    # ---- the thread

    def _watch(self) -> None:
        numbers = {self._signal, signal.SIGIO}
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        mask = bytearray(128)
        for number in numbers:
            mask[(number - 1) // 8] |= 1 << (number - 1) % 8
        fd = _libc.signalfd(-1, (ctypes.c_char * 128).from_buffer(mask), os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            logger.warning("leases of files cannot be had: %s", os.strerror(ctypes.get_errno()))
            self._useless = True
            self._ready.set()
            return
        self._tid = threading.get_native_id()
        self._ready.set()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        try:
            while True:
                ready = {which for which, _ in poll.poll(self.unheard * 250 if self._unheard else None)}
                if self._stop in ready:
                    return
                if fd in ready:
                    self._signals(fd)
                self._impatient()
        finally:
            os.close(fd)

    def _signals(self, fd: int) -> None:
        try:
            data = os.read(fd, 32 * _INFO_SIZE)
        except BlockingIOError:
            return
        broken: set[int] = set()
        for start in range(0, len(data), _INFO_SIZE):
            (number,) = struct.unpack_from("=I", data, start)
            if number == signal.SIGIO:
                with self._lock:
                    broken |= {one for one in self._held if self._is_broken(one)}
            else:
                broken.add(_FD.unpack_from(data, start + 20)[0])
        until = time.monotonic() + self.unheard
        with self._lock:
            new = [one for one in broken if one in self._held and one not in self._unheard]
            for one in new:
                self._unheard[one] = until
        for one in new:
            try:
                os.write(self._told[1], _FD.pack(one))
            except BlockingIOError:
                # The dispatch hears nothing at the moment; what it does not hear in time is let go.
                pass

    def _impatient(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [fd for fd, until in self._unheard.items() if until < now]
            for fd in late:
                del self._unheard[fd]
                if self._held.pop(fd, None) is not None:
                    self._gone.add(fd)
                    _let_go(fd)
        if late:
            logger.warning("%d leases of files were let go: this daemon did not hear in time that somebody waits for them", len(late))


def _let_go(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        # The kernel has broken it.
        pass
