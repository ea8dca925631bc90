"""Keeps a mount that this process serves out of this process's own mount namespace, for as long as it is mounted.

The namespace follows the machine's (`mount.private_namespace`), so that disks mounted later are served. Whoever binds our mount to another
place, or a tree that holds it (`mount --rbind / /mnt`), would give us a copy of ourselves: the first look at it would wait for an answer
that only we can give. The kernel tells of changes of a namespace by an exceptional condition of its mountinfo (proc(5)); each is
answered by a look at the list, which touches no file system.

This takes a thread, which sleeps: asking for the condition takes it back, and an epoll that watches another asks for itself, so a dispatch
below another event loop would never see it. What looks at the copy before the thread did still waits: only for as long as nobody aborts
the connection, and the time is some tens of microseconds after somebody with root's rights mounted it.
"""

from __future__ import annotations

import os
import select

from resmgr.fuse.mount import Mount
from resmgr.ownthread import new_thread, no_room


class CopyWatch:
    """Detaches copies of *mount* in the mount namespace of the calling thread as they appear. `close` it before the mount goes. OSError
    if there is no room for its thread."""

    def __init__(self, mount: Mount) -> None:
        self.detached = 0
        """Copies removed so far."""
        self._mount = mount
        self._list = os.open("/proc/thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._stopped, self._stop = os.pipe2(os.O_CLOEXEC)
        thread = new_thread("mount-copies", self._watch)
        if thread is None:
            for fd in (self._list, self._stopped, self._stop):
                os.close(fd)
            raise no_room()
        self._thread = thread

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._list, select.POLLPRI)
        poll.register(self._stopped, select.POLLIN)
        while True:
            try:
                self.detached += self._mount.detach_here()
            except OSError:
                # Covered by another mount: the next change of the list may free it.
                pass
            if any(fd == self._stopped for fd, _ in poll.poll()):
                return

    def close(self) -> None:
        """Idempotent."""
        if self._thread.is_alive():
            os.close(self._stop)
            self._thread.join()
            os.close(self._stopped)
            os.close(self._list)
