"""The daemon's end of its `notifier`: two processes for each mount that do what the kernel may have to wait for.

docs/decisions/fuse-notifier.md: a thread of the daemon that waits there keeps /dev/fuse open when the daemon is killed, and all hang.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from resmgr.dispatch import Dispatch, Timer
from resmgr.fuse import notifier
from resmgr.fuse.mount import open_device
from resmgr.ownthread import new_thread

log = logging.getLogger("resmgr.fuse")

SILENCE: Final = 2.0
"""Seconds after which a process that has something to do is asked whether it lives, and then has to say so."""
DEV_IOC_CLONE = 0x8004E500
"""_IOR(229, 0, uint32_t), linux/fuse.h."""

Begun = tuple[socket.socket, int, int]
"""Our end of the process's socket, its pid, a descriptor of it."""


class Job:
    """Packets for the process, one after the other. `done` is called with the first result that is not 0, or with 0."""

    __slots__ = ("at", "done", "packets", "result")

    def __init__(self, packets: Sequence[bytes], done: Callable[[int], None]) -> None:
        self.packets = packets
        self.done = done
        self.at = 0
        self.result = 0


class Helper:
    """One process. `start` has it started by a worker thread; `ready` says whether `do` may be called. `close` ends it.

    If it ends by itself, all jobs are done with the result -1, and `ready` is False for good. So it is when it says nothing any more, since
    it was stopped: then it is killed, and *stopped* is called before that.
    """

    def __init__(self, dispatch: Dispatch, stopped: Callable[[], None]) -> None:
        self.ready = False
        self.process = 0
        """Its pid, 0 when there is none."""
        self.threads: set[int] = set()
        """The numbers of its threads."""
        self._dispatch = dispatch
        self._stopped = stopped
        self._timer: Timer | None = None
        """Of when it is asked, or should have answered, `_asked`, next."""
        self._asked = False
        self._closed = False
        self._lock = threading.Lock()
        """For `_closed` and `_begun`, which a worker thread sets."""
        self._begun: Begun | None = None
        self._socket: socket.socket | None = None
        self._number = 0
        self._waiting: deque[Job] = deque()
        self._jobs: dict[int, Job] = {}

    def start(self, begin: Callable[[], Begun], after: Callable[[], None] | None = None) -> None:
        """*begin*: starts the process. OSError is logged, and it is never ready. *after* is called when it has returned, or could not be
        called."""

        def work() -> Begun | None:
            begun = begin()
            with self._lock:
                if not self._closed:
                    self._begun = begun
                    return begun
            # Nobody may be there any more who would be called.
            _end(begun)
            return None

        def done(begun: Begun | BaseException | None) -> None:
            if after is not None:
                after()
            self._started(begun)

        self._dispatch.call_blocking(work, done)

    def _started(self, begun: Begun | BaseException | None) -> None:
        if isinstance(begun, BaseException):
            log.warning("no process that tells the kernel of changes, so programs may hang on a mount whose daemon is killed: %s", begun)
            return
        if begun is None or self._closed:
            return
        self._socket, self.process, pidfd = begun
        self._dispatch.attach_fd(pidfd, self._ended)
        self._dispatch.attach_fd(self._socket.fileno(), self._readable)

    def do(self, packets: Sequence[bytes], done: Callable[[int], None]) -> None:
        """Have *packets* (without their numbers) carried out in order. Only when `ready`."""
        self._waiting.append(Job(packets, done))
        self._send()
        self._watch()

    def _watch(self) -> None:
        if self._timer is None:
            due = self._dispatch.now() + SILENCE
            self._timer = self._dispatch.call_at(due, lambda: self._look(due))

    def _look(self, due: float) -> None:
        """While there are jobs: it has not said for SILENCE that it lives, or it was asked so long ago."""
        self._timer = None
        # What it has said counts, though it was not read: this process may have been stopped.
        self._readable()
        if self._socket is None or not (self._jobs or self._waiting):
            self._asked = False
            return
        late = self._dispatch.now() > due + SILENCE / 2
        if self._asked and not late:
            self._kill()
            return
        try:
            self._socket.send(notifier.NUMBER.pack(notifier.PING))
        except OSError:
            pass  # full, of what it has not read; or it has ended, which its pidfd tells
        self._asked = True
        self._watch()

    def _kill(self) -> None:
        log.warning("process %d, which tells the kernel of changes, says nothing: stopped? It is killed", self.process)
        begun = self._begun
        if begun is not None:
            try:
                signal.pidfd_send_signal(begun[2], signal.SIGKILL)
            except OSError as error:
                log.warning("it cannot be killed: %s", error.strerror)
        left = self._close_with_jobs()
        self._stopped()
        for job in left:
            job.done(-1)

    def _send(self) -> None:
        waiting = self._waiting
        while waiting and len(self._jobs) < notifier.JOBS and self._socket is not None:
            job = waiting[0]
            try:
                self._socket.send(notifier.NUMBER.pack(self._number) + job.packets[job.at])
            except BlockingIOError:
                return  # full of what is under way: the next answer makes room
            except OSError:
                return  # it has ended, which its pidfd tells
            self._jobs[self._number] = job
            self._number += 1
            waiting.popleft()

    def _readable(self) -> None:
        while self._socket is not None:
            try:
                answer = self._socket.recv(notifier.ANSWER.size)
            except BlockingIOError:
                break
            except OSError:
                answer = b""
            if not answer:
                self._dispatch.detach_fd(self._socket.fileno())
                return
            number, result = notifier.ANSWER.unpack(answer)
            if number == notifier.HERE:
                self.threads.add(result)
                self.ready = len(self.threads) == notifier.THREADS
                continue
            if number == notifier.PING:
                self._asked = False
                continue
            job = self._jobs.pop(number)
            job.at += 1
            job.result = job.result or result
            if job.at < len(job.packets):
                self._waiting.append(job)
            else:
                job.done(job.result)
        self._send()

    def close(self, *, leave: bool = False) -> None:
        """End it, as soon as the kernel has let go of it. Nobody is told of what was under way. *leave*: somebody else serves the mount."""
        with self._lock:
            self._closed = True
            begun, self._begun = self._begun, None
        self.ready = False
        self.process = 0
        self.threads.clear()
        self._waiting.clear()
        self._jobs.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if begun is None:
            return
        link, _, pidfd = begun
        if self._socket is not None:
            self._dispatch.detach_fd(pidfd)
            self._dispatch.detach_fd(link.fileno())
            self._socket = None
        if leave:
            try:
                link.send(notifier.NUMBER.pack(notifier.LEAVE))
            except OSError as error:
                log.warning("the process that tells the kernel of changes does not listen: %s", error)
        link.close()
        # By a thread of its own: whoever closes may have nobody left who would be called.
        if new_thread("notifier", partial(_reap, pidfd)) is None:
            _reap(pidfd, os.WNOHANG)

    def _ended(self) -> None:
        log.warning("the process that tells the kernel of changes has ended, so programs may hang on a mount whose daemon is killed")
        for job in self._close_with_jobs():
            job.done(-1)

    def _close_with_jobs(self) -> list[Job]:
        """Those that it has not done."""
        left = [*self._jobs.values(), *self._waiting]
        self.close()
        return left


def _end(begun: Begun) -> None:
    link, _, pidfd = begun
    link.close()
    _reap(pidfd)


def _reap(pidfd: int, how: int = 0) -> None:
    """Wait for a process that ends; with WNOHANG one that has not ended is left to the end of this one."""
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | how)
    except ChildProcessError:
        pass
    finally:
        os.close(pidfd)


def joined(messages: Sequence[bytes]) -> list[bytes]:
    """Notifications as packets."""
    packets = []
    start = size = 0
    for at, message in enumerate(messages):
        if size and size + len(message) > notifier.PACKET_MAX - notifier.NUMBER.size:
            packets.append(b"".join(messages[start:at]))
            start, size = at, 0
        size += len(message)
    return [*packets, b"".join(messages[start:])]


def begin_entries(device: int, buffer_size: int) -> Begun:
    """Start the one that writes notifications. *device*: an open /dev/fuse with a mount."""
    clone = open_device()
    try:
        fcntl.ioctl(clone, DEV_IOC_CLONE, struct.pack("=I", device))
        return _begin(["entries", str(clone), str(buffer_size)], [clone])
    finally:
        os.close(clone)


def begin_pages(place: bytes, namespace: int | None) -> Begun:
    """Start the one that has pages dropped of the mount at *place* in a mount namespace, None: that of this thread."""
    if namespace is None:
        return _begin(["pages", os.fsdecode(place)], [])
    return _begin(["pages", os.fsdecode(place), str(namespace)], [namespace])


def _begin(words: list[str], files: list[int]) -> Begun:
    if not sys.executable:
        raise OSError(errno.ENOENT, "no interpreter to run it with")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", notifier.__file__, str(theirs.fileno()), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={},
            pass_fds=(theirs.fileno(), *files),
        )
        # Reaped through its pidfd: this object shall neither wait for it nor complain that nobody did.
        process.returncode = 0
        ours.setblocking(False)
        try:
            return ours, process.pid, os.pidfd_open(process.pid)
        except OSError:
            ours.close()
            os.waitpid(process.pid, 0)
            raise
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
