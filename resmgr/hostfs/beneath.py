"""From a base and a path to a descriptor, and not out of the tree.

Paths are walked by openat2 with RESOLVE_BENEATH, NO_SYMLINKS and NO_MAGICLINKS; where the kernel has no openat2, one component at a time
with O_NOFOLLOW. There is no `..` in a path (`iorequest.check_path`), so no rename and no race can lead a walk out of the tree. What the
client may see is computed by going down its export scope with the same names.
"""

from __future__ import annotations

import errno
import os
from stat import S_ISLNK
from typing import Final

from resmgr.access import Scope
from resmgr.hostfs.device import Devices
from resmgr.hostfs.objects import HostHandle
from resmgr.hostfs.ownproc import refuse_own
from resmgr.hostfs.syscalls import OpenHow, openat2

NODE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
"""What stands for an object: a symbolic link for itself."""
_DIRECTORY: Final = os.O_DIRECTORY
_PARENT_HOW: Final = OpenHow(os.O_PATH | os.O_DIRECTORY)
_OBJECT_HOW: Final = OpenHow(os.O_PATH | os.O_NOFOLLOW)


class Beneath:
    """The walks of one served tree. Who calls closes the descriptors that they give."""

    def __init__(self, devices: Devices) -> None:
        self.devices = devices
        self._openat2 = True

    def _walk(self, fd: int, path: bytes, how: OpenHow, flags: int) -> int:
        """Open a path of several components beneath *fd*. The caller closes the result."""
        if self._openat2:
            try:
                return openat2(fd, path, how)
            except OSError as error:
                if error.errno != errno.ENOSYS and not (error.errno == errno.EPERM and self._no_openat2(fd)):
                    raise
                self._openat2 = False
        names = path.split(b"/")
        here = fd
        try:
            for name in names[:-1]:
                below = _step(here, name, NODE | _DIRECTORY)
                if here != fd:
                    os.close(here)
                here = below
            return _step(here, names[-1], flags)
        finally:
            if here != fd:
                os.close(here)

    @staticmethod
    def _no_openat2(fd: int) -> bool:
        """Whether a sandbox refuses the call itself: opening the base again cannot be forbidden otherwise."""
        try:
            os.close(openat2(fd, b".", _PARENT_HOW))
        except OSError as error:
            return error.errno == errno.EPERM
        return False

    def _parent(self, base: HostHandle, path: bytes) -> tuple[int, bytes, Scope, int]:
        """(descriptor, name, scope of the directory, descriptor to close or -1) of the last component's directory."""
        scope = base.scope
        cut = path.rfind(b"/")
        if cut < 0:
            if not path:
                raise OSError(errno.EBUSY, "the base itself")
            if base.device.proc:
                refuse_own([path])
            return base.fd, path, scope, -1
        lead = path[:cut]
        if not (scope.fixed and scope.verbs):
            scope = scope.enter_all(lead.split(b"/"))
        fd = self._walk(base.fd, lead, _PARENT_HOW, NODE | _DIRECTORY)
        self._refuse_own(fd, path)
        return fd, path[cut + 1 :], scope, fd

    def _refuse_own(self, fd: int, path: bytes) -> None:
        """Close *fd* and raise ENOENT if the *path* to it, or on from it by a name, leads through this process in /proc."""
        names = [name for name in path.split(b"/") if name.isdigit()]
        if not names:
            return
        try:
            if self.devices.get(os.fstat(fd).st_dev).proc:
                refuse_own(names)
        except BaseException:
            os.close(fd)
            raise

    def _object(self, base: HostHandle, path: bytes) -> tuple[int, Scope]:
        """(new O_PATH descriptor, scope) of the object itself, a symbolic link included."""
        scope = base.scope
        if not path:
            return os.dup(base.fd), scope
        if not (scope.fixed and scope.verbs):
            scope = scope.enter_all(path.split(b"/"))
        fd = self._walk(base.fd, path, _OBJECT_HOW, NODE) if path.find(b"/") >= 0 else os.open(path, NODE, dir_fd=base.fd)
        self._refuse_own(fd, path)
        return fd, scope


def _step(fd: int, name: bytes, flags: int) -> int:
    try:
        return os.open(name, flags, dir_fd=fd)
    except NotADirectoryError:
        if S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, "symbolic link in the path") from None
        raise
